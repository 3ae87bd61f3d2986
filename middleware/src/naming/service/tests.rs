//! How many may wait at a replica.

use std::pin::pin;
use std::task::{Context, Waker};

use super::*;
use crate::naming::Directory;
use crate::node::Node;

/// Nothing is found, and nothing has changed.
fn question() -> Question {
    Question {
        query: Query::any(),
        seen: Seen::default(),
        differs_from: Some(Book::default().digest(&Query::any())),
        patience: PATIENCE_MAX,
        is_latest: false,
        is_for_starter: false,
    }
}

#[tokio::test]
async fn p06_who_waits_leaves_room_for_who_asks_or_changes_something() {
    let node = Node::builder().start().await.unwrap();
    let directory = Directory::found(&node).await.unwrap();
    let office = Office::new(directory.replica.clone(), 1, None);
    let waits = office.look(question());
    let mut waits = pin!(waits);
    assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());

    let refused = office.look(question()).await;
    assert!(matches!(refused, Err(NameError::Unavailable(_))), "{refused:?}");
    let at_once = Question { differs_from: None, ..question() };
    assert!(office.look(at_once).await.unwrap().found.is_empty());

    let session = SessionId { node: 1, incarnation: 1, number: 1 };
    office.change(session, Change::Open { lease: Duration::from_secs(10) }).await.unwrap();
    let put = Change::Put { sequence: 1, number: 0, name: "a".into(), entry: Default::default() };
    office.change(session, put).await.unwrap();
    assert_eq!(waits.await.unwrap().found.len(), 1, "that is what it waited for");
}
