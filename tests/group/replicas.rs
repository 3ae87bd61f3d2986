//! Replicated state machines over a group in total order.

use std::time::Duration;

use bytes::Bytes;
use quorate::group::{Builder, Group, Total};
use quorate::node::Node;
use quorate::replication::{ApplyError, Replicated, RestoreError, StateMachine};
use serde::{Deserialize, Serialize};
use tests::{Net, nets, within};

/// Adds up, and remembers in which order.
#[derive(Default, Serialize, Deserialize)]
struct Ledger {
    entries: Vec<(String, i64)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Add {
    who: String,
    amount: i64,
}

impl StateMachine for Ledger {
    type Command = Add;
    type Response = i64;

    fn apply(&mut self, command: Add) -> i64 {
        self.entries.push((command.who, command.amount));
        self.entries.iter().map(|(_, amount)| amount).sum()
    }

    fn snapshot(&self) -> Bytes {
        let text: Vec<_> = self.entries.iter().map(|(who, amount)| format!("{who} {amount}\n")).collect();
        text.concat().into()
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError> {
        let bad = |_| RestoreError("not a ledger".into());
        let text = std::str::from_utf8(&snapshot).map_err(|error| RestoreError(error.to_string()))?;
        let entry = |line: &str| {
            let (who, amount) = line.split_once(' ').unwrap_or((line, ""));
            Ok((who.to_owned(), amount.parse().map_err(bad)?))
        };
        self.entries = text.lines().map(entry).collect::<Result<_, RestoreError>>()?;
        Ok(())
    }
}

type Replica = Replicated<Ledger, Group<Total>>;

async fn replica(net: &Net, id: u64, contacts: &[&Node]) -> (Node, Replica) {
    let node = net.node(id).await;
    let builder = Builder::total("ledger");
    let (group, events) = if contacts.is_empty() {
        builder.create(&node).await.expect("founds the group")
    } else {
        let addresses: Vec<_> = contacts.iter().flat_map(|contact| contact.addresses()).collect();
        within(builder.join(&node, &addresses)).await.expect("joins the group")
    };
    let replica = Replica::start(group, events, Ledger::default());
    assert!(within(replica.wait_state()).await, "the replica gets the state");
    (node, replica)
}

fn add(who: &str, amount: i64) -> Add {
    Add { who: who.into(), amount }
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_replicas_agree_while_one_dies_and_comes_back() {
    for net in nets() {
        let (first_node, first) = replica(&net, 1, &[]).await;
        assert_eq!(within(first.apply(&add("early", 5))).await, Ok(5));
        let (second_node, second) = replica(&net, 2, &[&first_node]).await;
        let (third_node, third) = replica(&net, 3, &[&first_node, &second_node]).await;
        assert_eq!(third.read(|ledger| ledger.entries.len()), 1, "a joiner starts with the state");

        let load = |replica: Replica, name: &'static str| {
            tokio::spawn(async move {
                let mut acknowledged = 0;
                for number in 0..400 {
                    let name = format!("{name}{number}");
                    match replica.apply(&Add { who: name, amount: 1 }).await {
                        Ok(_) => acknowledged += 1,
                        Err(ApplyError::Unknown | ApplyError::Ended | ApplyError::Cast(_)) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                acknowledged
            })
        };
        let loads = [load(first.clone(), "a"), load(second.clone(), "b"), load(third.clone(), "c")];
        // The sequencer dies in the middle.
        let mut watch = second.watch();
        within(async {
            while second.applied() < 300 {
                tokio::task::yield_now().await
            }
        })
        .await;
        first_node.shutdown(Duration::ZERO).await;
        let gone =
            watch.wait_for(|progress| progress.view.as_ref().is_some_and(|view| view.members.len() == 2));
        within(gone).await.expect("the survivors agree on a view");
        let mut acknowledged = Vec::new();
        for load in loads {
            acknowledged.push(within(load).await.expect("the load ends well"));
        }
        assert_eq!(acknowledged[1..], [400, 400], "{net:?}: the survivors lose nothing");

        let (_fourth_node, fourth) = replica(&net, 4, &[&second_node, &third_node]).await;
        let total = within(fourth.apply(&add("end", 0))).await.expect("the group goes on");
        within(second.read_latest(|_| ())).await.expect("the group goes on");
        within(third.read_latest(|_| ())).await.expect("the group goes on");
        let of_second = second.read(|ledger| ledger.entries.clone());
        assert_eq!(of_second, third.read(|ledger| ledger.entries.clone()), "{net:?}");
        assert_eq!(of_second, fourth.read(|ledger| ledger.entries.clone()), "{net:?}");
        assert_eq!(of_second.iter().map(|(_, amount)| amount).sum::<i64>(), total);
        for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
            let kept = of_second.iter().filter(|(who, _)| who.starts_with(name)).count();
            assert!(kept >= acknowledged[index], "{net:?}: {kept} of {} of {name}", acknowledged[index]);
        }
        within(third.leave(Duration::from_secs(5))).await.expect("leaves in good order");
        assert_eq!(
            within(third.apply(&add("late", 1))).await.map_err(|error| error.is_not_applied()),
            Err(true)
        );
    }
}
