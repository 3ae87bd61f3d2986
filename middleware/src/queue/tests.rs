//! The books on a simulated disk that is crashed at every operation, against a model that knows what may be there.
//!
//! One thread, no clock, no task: books, log and disk are values, and a seed gives the same history each time. Planted bugs
//! show that the rules are kept because they are checked. `QUORATE_SEEDS=n` runs so many seeds.
//!
//! Rules   1. What was told to be stored is there after a crash, once, in its queue or among its dead letters, with its bytes;
//!            what was told to be gone is not. 2. Of a unit of work all is there, or nothing. 3. Nothing is given while an
//!            earlier message of its key has not left, and nothing that has expired. 4. A name within the window is known.
//!            5. At any quiet moment the log says what the books say, read as a whole or from its newest checkpoint on. 6. No number is given twice.

mod world;

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_protocols::Time;

use super::books::Books;
use super::message::{Durability, Label, MessageId};
use super::plan::{Refusal, STATE_BYTES_MAX, Wish};
use super::planted::Bug;
use super::record::{Put, Step};
use super::upkeep::LogSize;
use world::{Broken, run};

#[test]
fn q04_after_a_crash_at_every_disk_operation_units_are_whole_and_messages_are_there_once_and_in_order() {
    let seeds = std::env::var("QUORATE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    for seed in 0..seeds * CALM_PER_SEED {
        if let Err(broken) = run(seed, NEVER, None) {
            panic!("seed {seed}, without a crash: {broken}");
        }
    }
    let mut histories = 0;
    for seed in 0..seeds {
        for crash_at in 0.. {
            histories += 1;
            match run(seed, crash_at, None) {
                Ok(true) => {}
                Ok(false) => break,
                Err(broken) => panic!("seed {seed}, crash at {crash_at}: {broken}"),
            }
        }
    }
    println!("{histories} histories");
    assert!(histories > 50 * seeds);
}

#[test]
fn q04_every_planted_bug_is_found() {
    for bug in Bug::ALL {
        let (seed, crash_at, broken) = find(*bug).unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: seed {seed}, crash at {crash_at}: {broken}");
    }
}

#[test]
fn q04_state_under_way_counts_and_the_places_of_peers_are_stored_however_much_the_application_has() {
    let mut books = Books::new(BTreeMap::new());
    let entry = |key: &str| {
        let cells = vec![(Bytes::copy_from_slice(key.as_bytes()), Some(Bytes::from_static(b"value")))];
        Wish { cells, ..Wish::default() }
    };
    books.cell_bytes = STATE_BYTES_MAX - 10;
    assert!(books.plan(Time::ZERO, &entry("one")).is_ok());
    let refused = books.plan(Time::ZERO, &entry("two"));
    assert!(matches!(refused, Err(Refusal::State { .. })), "{refused:?}");
    assert!(books.plan(Time::ZERO, &entry("quorate.place.7")).is_ok());
}

#[test]
fn q09_a_large_message_is_written_again_alone_so_that_one_append_holds_it() {
    let mut books = Books::new(BTreeMap::from([(0, "q".to_owned())]));
    let put = |id: u64, size: usize| {
        Step::Put(Put {
            queue: 0,
            id: MessageId::from_u64(id),
            label: Label::default(),
            origin: None,
            again: None,
            is_kept: false,
            class: Durability::Synced,
            payload: vec![0; size].into(),
        })
    };
    for (place, size) in [10, 15_000, 15_000].into_iter().enumerate() {
        books.replay(Time::ZERO, place as u64, put(1 + place as u64, size)).expect("a queue that is there");
    }
    let log = LogSize { first: 0, segments: 100, segment_bytes: 16 << 10 };
    for expected in [1, 1, 1] {
        let moves = books.upkeep(log).moves.expect("the log is too long");
        assert_eq!(moves.steps.len(), expected);
        books.commit(Time::ZERO, moves, Some(books.done), &mut Vec::new());
    }
    assert!(books.needed.first().is_some_and(|(place, _)| *place == 3), "all lie further on");
}

fn find(bug: Bug) -> Option<(u64, u64, Broken)> {
    // Most show without a crash, at a hundredth of the cost.
    for seed in 0..CALM_SEEDS {
        if let Err(broken) = run(seed, NEVER, Some(bug)) {
            return Some((seed, NEVER, broken));
        }
    }
    for seed in 0..SEEDS {
        for crash_at in 0.. {
            match run(seed, crash_at, Some(bug)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(broken) => return Some((seed, crash_at, broken)),
            }
        }
    }
    None
}

fn noted<T>(found: Option<T>) -> T {
    found.expect("every message was noted")
}

const SEEDS: u64 = 4;
/// Histories without a crash cost little more than one with it, and there are hundreds of those for each seed.
const CALM_PER_SEED: u64 = 15;
const CALM_SEEDS: u64 = 400;
/// A crash that does not come.
const NEVER: u64 = u64::MAX;
