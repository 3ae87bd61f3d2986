//! The book against a plain model, and what it refuses.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::naming::entry::{ENTRY_BYTES_MAX, PART_BYTES};

const LEASE: Duration = Duration::from_secs(5);

fn id(number: u32) -> SessionId {
    SessionId { node: 1, incarnation: 1, number }
}

fn change(book: &mut Book, session: u32, change: Change) -> Result<u64, NameError> {
    book.apply(Command::Change(id(session), change))
}

fn put(sequence: u64, number: u64, name: &str) -> Change {
    Change::Put { sequence, number, name: name.into(), entry: Entry::default() }
}

fn names(book: &Book) -> Vec<String> {
    book.found(&Query::any()).into_iter().map(|kept| kept.name).collect()
}

#[test]
fn p06_a_change_that_comes_late_or_twice_does_nothing() {
    let mut book = Book::new(1);
    change(&mut book, 1, Change::Open { lease: LEASE }).unwrap();
    change(&mut book, 1, put(1, 0, "a")).unwrap();
    change(&mut book, 1, Change::Remove { sequence: 2, number: 0 }).unwrap();
    let version = book.version;
    change(&mut book, 1, put(1, 0, "a")).unwrap();
    assert_eq!((book.version, names(&book)), (version, Vec::new()));
}

#[test]
fn p06_a_repeated_registration_has_the_version_that_it_had() {
    let mut book = Book::new(1);
    for session in [1, 2] {
        change(&mut book, session, Change::Open { lease: LEASE }).unwrap();
    }
    let first = change(&mut book, 1, put(1, 0, "leader")).unwrap();
    let second = change(&mut book, 2, put(1, 0, "leader")).unwrap();
    // The answer to the first was lost, and another replica is asked.
    let repeated = change(&mut book, 1, put(1, 0, "leader")).unwrap();
    assert_eq!(repeated, first);
    assert!(repeated < second, "who came later has the larger token");
}

#[test]
fn p06_a_watch_can_tell_apart_what_directories_of_different_lives_have() {
    let mut digests = [1, 2].map(|life| {
        let mut book = Book::new(life);
        change(&mut book, 1, Change::Open { lease: LEASE }).unwrap();
        change(&mut book, 1, put(1, 0, if life == 1 { "a" } else { "b" })).unwrap();
        book.digest(&Query::any())
    });
    assert_ne!(digests[0], digests[1]);
    digests = [1, 2].map(|life| Book::new(life).digest(&Query::any()));
    assert_eq!(digests[0], digests[1], "nothing is nothing everywhere");
}

#[test]
fn p06_empty_addresses_are_not_free() {
    let entry = Entry::with_texts(vec![String::new(); ENTRY_BYTES_MAX]);
    assert!(matches!(entry.check("a"), Err(NameError::TooLarge { .. })));
}

#[test]
fn p06_a_renewal_makes_the_proposed_end_of_a_lease_void() {
    let mut book = Book::new(1);
    change(&mut book, 1, Change::Open { lease: LEASE }).unwrap();
    change(&mut book, 1, put(1, 0, "a")).unwrap();
    let renewals = book.sessions[&id(1)].renewals;
    change(&mut book, 1, Change::Renew).unwrap();
    book.apply(Command::Expire { session: id(1), renewals }).unwrap();
    assert_eq!(names(&book), ["a"]);
    book.apply(Command::Expire { session: id(1), renewals: renewals + 1 }).unwrap();
    assert!(names(&book).is_empty());
    assert_eq!(change(&mut book, 1, Change::Renew), Err(NameError::SessionEnded));
}

#[test]
fn p06_what_is_refused_leaves_the_book_as_it_was() {
    let mut book = Book::new(1);
    let lease = Duration::from_millis(1);
    let refused = change(&mut book, 1, Change::Open { lease });
    assert!(matches!(refused, Err(NameError::Lease { .. })), "{refused:?}");
    assert_eq!(change(&mut book, 1, put(1, 0, "a")), Err(NameError::SessionEnded));
    change(&mut book, 1, Change::Open { lease: LEASE }).unwrap();
    let before = book.snapshot();
    assert_eq!(change(&mut book, 1, put(1, 0, "")), Err(NameError::Name { bytes: 0 }));
    let entry = Entry::default().with("key", "v".repeat(5000));
    let large = Change::Put { sequence: 1, number: 0, name: "a".into(), entry };
    assert_eq!(change(&mut book, 1, large), Err(NameError::TooLarge { bytes: 5004 + PART_BYTES }));
    assert_eq!(book.snapshot(), before);
}

#[test]
fn p06_one_handle_may_not_fill_the_directory() {
    let mut book = Book::new(1);
    change(&mut book, 1, Change::Open { lease: LEASE }).unwrap();
    for number in 0..SESSION_ENTRIES_MAX as u64 {
        change(&mut book, 1, put(number + 1, number, "a")).unwrap();
    }
    let next = SESSION_ENTRIES_MAX as u64;
    assert_eq!(change(&mut book, 1, put(next + 1, next, "a")), Err(NameError::TooManyOfOne));
    assert!(change(&mut book, 1, put(next + 1, 0, "b")).is_ok(), "it may replace what it has");
    assert_eq!(book.found(&Query::any()).len(), FOUND_MAX);
}

proptest! {
    #[test]
    fn p06_the_book_is_what_its_sessions_registered(
        steps in prop::collection::vec((0u32..3, 0u8..5, 0u64..4, 0usize..3), 0..200)
    ) {
        let all = ["a", "b", "c"];
        let mut book = Book::new(1);
        let mut model = BTreeMap::<u32, BTreeMap<u64, &str>>::new();
        for (sequence, (session, kind, number, name)) in (1u64..).zip(steps) {
            let before = (book.digest(&Query::any()), book.version);
            match kind {
                0 => {
                    change(&mut book, session, Change::Open { lease: LEASE }).unwrap();
                    model.entry(session).or_default();
                }
                1 => {
                    change(&mut book, session, Change::Close).ok();
                    model.remove(&session);
                }
                2 => {
                    change(&mut book, session, Change::Remove { sequence, number }).ok();
                    model.get_mut(&session).map(|entries| entries.remove(&number));
                }
                _ => {
                    change(&mut book, session, put(sequence, number, all[name])).ok();
                    model.get_mut(&session).map(|entries| entries.insert(number, all[name]));
                }
            }
            // A watcher learns of every change: the digest differs when the version does.
            prop_assert_eq!(before.0 == book.digest(&Query::any()), before.1 == book.version);
        }
        let mut expected: Vec<_> = model.values().flat_map(|entries| entries.values().copied()).collect();
        expected.sort_unstable();
        prop_assert_eq!(book.len(), expected.len());
        prop_assert_eq!(names(&book), expected.clone());
        for name in all {
            let found = book.found(&Query::named(name)).len();
            prop_assert_eq!(found, expected.iter().filter(|other| **other == name).count());
        }
        let mut copy = Book::default();
        copy.restore(book.snapshot()).unwrap();
        prop_assert_eq!(names(&copy), names(&book));
        prop_assert_eq!((copy.len(), copy.digest(&Query::any())), (book.len(), book.digest(&Query::any())));
        prop_assert_eq!(copy.snapshot(), book.snapshot());
    }

    #[test]
    fn p06_any_bytes_are_a_book_or_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut book = Book::default();
        for start in [None, Some(SNAPSHOT_VERSION)] {
            let snapshot: Bytes = start.into_iter().chain(bytes.iter().copied()).collect::<Vec<_>>().into();
            if book.restore(snapshot).is_ok() {
                book.found(&Query::any());
            }
        }
    }
}

#[test]
fn p06_who_waits_looks_again_only_after_changes_that_may_concern_it() {
    let mut book = Book::new(7);
    change(&mut book, 1, Change::Open { lease: LEASE_MIN }).unwrap();
    let asked = [Query::any(), Query::named("a"), Query::named("a").with("room", "1"), Query::named("b")];
    let concerned = |book: &Book, since| asked.each_ref().map(|query| book.may_differ(since, query));
    let put = |sequence, name: &str, room: &str| Change::Put {
        sequence,
        number: 0,
        name: name.into(),
        entry: Entry::default().with("room", room),
    };
    let start = book.looked();
    assert_eq!(concerned(&book, start), [false; 4]);
    change(&mut book, 1, put(1, "a", "1")).unwrap();
    assert_eq!(concerned(&book, start), [true, true, true, false]);
    let second = book.looked();
    change(&mut book, 1, put(2, "a", "2")).unwrap();
    assert_eq!(concerned(&book, second), [true, true, true, false], "it was there before");
    let third = book.looked();
    change(&mut book, 1, put(3, "b", "2")).unwrap();
    assert_eq!(concerned(&book, third), [true, true, false, true]);
    assert_eq!(concerned(&book, book.looked()), [false; 4]);
    // What is too long ago, or in another book, is not known.
    for sequence in 4..4 + LATEST_MAX as u64 {
        change(&mut book, 1, put(sequence, "c", "3")).unwrap();
    }
    assert_eq!(concerned(&book, third), [true; 4]);
    let before = book.looked();
    let snapshot = book.snapshot();
    book.restore(snapshot).unwrap();
    assert_eq!(concerned(&book, before), [true; 4]);
}
