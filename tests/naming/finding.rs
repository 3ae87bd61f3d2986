//! Asking for one name, and waiting until it is there (catalogue P2).

use std::sync::Arc;
use std::time::Duration;

use quorate::naming::{Directory, Entry, NameError, NamesError, Query, Starter};
use quorate::transports::BoxFuture;
use tests::{everywhere, nets, within};

use crate::{addresses, directory, names};

#[tokio::test(flavor = "multi_thread")]
async fn p02_who_asks_for_a_name_waits_until_it_is_registered_and_is_told_when_it_is_not() {
    everywhere(nets(), |net| async move {
        let replicas = directory(&net, 2).await;
        let owner = names(&net.node(10).await, &addresses(&replicas[..1]), 10).await;
        let asker = names(&net.node(11).await, &addresses(&replicas[1..]), 10).await;
        let told = within(asker.find("printer", Duration::ZERO)).await;
        let missing = NameError::NotRegistered { name: "printer".to_owned(), waited: Duration::ZERO };
        assert_eq!(told, Err(NamesError::Refused(missing)));
        let waiting = asker.clone();
        let waiting = tokio::spawn(async move { waiting.find("printer", Duration::from_secs(30)).await });
        // Another name is not what it waits for.
        let _other = within(owner.register("scanner", Entry::default())).await.unwrap();
        let _printer = within(owner.register("printer", Entry::default())).await.unwrap();
        let found = within(waiting).await.unwrap().unwrap();
        assert_eq!((found.len(), &*found[0].name), (1, "printer"));
        assert_eq!(within(asker.find("printer", Duration::ZERO)).await.unwrap(), found);

        // Who is known to be dead is found no more, and who lives comes back by itself.
        assert_eq!(within(replicas[0].1.expel(&Query::named("printer"))).await, 1);
        let found = within(asker.find("printer", Duration::from_secs(30))).await;
        assert_eq!(found.unwrap().len(), 1);
    })
    .await;
}

/// Starts nothing.
struct Lazy;

impl Starter for Lazy {
    fn start<'a>(&'a self, name: &'a str) -> BoxFuture<'a, String> {
        Box::pin(async move {
            if name == "started elsewhere" {
                std::future::pending().await
            } else {
                format!("no {name} today")
            }
        })
    }
}

#[tokio::test]
async fn p02_who_is_to_start_a_name_says_why_it_does_not_come_and_is_asked_only_for_what_is_not_there() {
    let net = &nets()[0];
    let node = net.node(1).await;
    let _directory = within(Directory::found_with(&node, Arc::new(Lazy))).await.unwrap();
    let asker = names(&net.node(2).await, &node.addresses(), 10).await;
    let patience = Duration::from_secs(30);
    let told = within(asker.find("bread", patience)).await;
    let reason = "no bread today".to_owned();
    assert_eq!(told, Err(NamesError::Refused(NameError::NotStarted { name: "bread".to_owned(), reason })));
    assert!(within(asker.lookup(&Query::named("bread"))).await.unwrap().is_empty(), "looking starts nothing");
    let told = within(asker.find("bread", Duration::ZERO)).await;
    assert!(matches!(told, Err(NamesError::Refused(NameError::NotRegistered { .. }))), "{told:?}");

    let waiting = asker.clone();
    let waiting = tokio::spawn(async move { waiting.find("started elsewhere", patience).await });
    let _bread = within(asker.register("bread", Entry::default())).await.unwrap();
    assert_eq!(within(asker.find("bread", patience)).await.unwrap().len(), 1);
    let _other = within(asker.register("started elsewhere", Entry::default())).await.unwrap();
    assert_eq!(within(waiting).await.unwrap().unwrap().len(), 1);
}
