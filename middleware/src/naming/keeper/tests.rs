//! A directory without room, as those see it who want something registered.

use super::super::book::{Command, ENTRIES_MAX, SESSIONS_MAX};
use super::super::{Directory, Names, NamesOptions, Query};
use super::*;
use crate::node::Node;

const LONG: Duration = Duration::from_secs(3600);

fn filler(number: usize) -> SessionId {
    SessionId { node: u64::MAX, incarnation: 0, number: u32::try_from(number).unwrap() }
}

async fn apply(directory: &Directory, number: usize, change: Change) -> Result<u64, NameError> {
    directory.replica.apply(&Command::Change(filler(number), change)).await.expect("a quorum of one")
}

/// Opens sessions until no more are given; tells how many.
async fn take_all_leases(directory: &Directory) -> usize {
    let mut taken = 0;
    while apply(directory, taken, Change::Open { lease: LONG }).await.is_ok() {
        taken += 1;
    }
    taken
}

async fn handle(node: &Node) -> Names {
    let mut options = NamesOptions::default();
    (options.lease, options.deadline) = (Duration::from_secs(1), Duration::from_secs(60));
    Names::connect_with(node, &node.addresses(), options).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn p06_who_lost_its_lease_gets_another_one_when_there_is_one_and_newcomers_are_told() {
    let node = Node::builder().listen("mem://").start().await.unwrap();
    let directory = Directory::found(&node).await.unwrap();
    let owner = handle(&node).await;
    let mut mine = owner.register("mine", Entry::default()).await.unwrap();
    directory.expel(&Query::named("mine")).await;
    assert_eq!(take_all_leases(&directory).await, SESSIONS_MAX);
    // It finds out when it renews; and does not give up what it had.
    while mine.status() != Status::Pending {
        mine.changed().await.unwrap();
    }
    let newcomer = handle(&node).await;
    let refused = newcomer.register("new", Entry::default()).await.map(drop);
    assert_eq!(refused, Err(NamesError::Refused(NameError::TooManySessions)));
    apply(&directory, 7, Change::Close).await.unwrap();
    while !matches!(mine.status(), Status::Registered { .. }) {
        mine.changed().await.unwrap();
    }
    assert_eq!(owner.lookup(&Query::named("mine")).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn p06_what_was_refused_says_so_again_until_there_is_room_for_it() {
    let node = Node::builder().listen("mem://").start().await.unwrap();
    let directory = Directory::found(&node).await.unwrap();
    let owner = handle(&node).await;
    let mut mine = owner.register("mine", Entry::default()).await.unwrap();
    for number in 0..ENTRIES_MAX {
        let (session, number) = (number / SESSION_ENTRIES_MAX, (number % SESSION_ENTRIES_MAX) as u64);
        if number == 0 {
            apply(&directory, session, Change::Open { lease: LONG }).await.unwrap();
        }
        let (name, entry) = ("filler".to_owned(), Entry::default());
        let put = Change::Put { sequence: number + 1, number, name, entry };
        // The last one has no room yet: the owner has it.
        let _ = apply(&directory, session, put).await;
    }
    directory.expel(&Query::named("mine")).await;
    let (last, number) = (ENTRIES_MAX / SESSION_ENTRIES_MAX - 1, SESSION_ENTRIES_MAX as u64 - 1);
    let (name, entry) = ("filler".to_owned(), Entry::default());
    let put = Change::Put { sequence: number + 2, number, name, entry };
    apply(&directory, last, put).await.unwrap();
    let full = NameError::TooManyEntries;
    while mine.status() != Status::Refused(full.clone()) {
        mine.changed().await.unwrap();
    }
    assert_eq!(mine.update(Entry::default()).await, Err(NamesError::Refused(full)));
    apply(&directory, last, Change::Remove { sequence: number + 3, number }).await.unwrap();
    assert_eq!(mine.update(Entry::default()).await, Ok(()));
    assert_eq!(owner.lookup(&Query::named("mine")).await.unwrap().len(), 1);
    assert_eq!(mine.withdraw().await, Ok(()));
}
