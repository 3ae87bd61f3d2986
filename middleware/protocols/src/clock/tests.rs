//! Random computations, in which it is known what happened before what, seen through each kind of clock.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::hybrid::{Hybrid, HybridStamp};
use super::lamport::{Lamport, LamportStamp};
use super::vector::{PROCESSES_MAX, Relation, Vector, VectorClock};
use super::{COUNT_MAX, Logical, StampError};
use crate::machine::ProcessId;
use crate::wire::Wire;

/// What a process does next.
#[derive(Debug, Clone)]
enum Step {
    Event,
    /// A message to this process.
    Send(usize),
    /// One of the messages that are under way to it, if any: not always the oldest.
    Receive(usize),
}

fn process(place: usize) -> ProcessId {
    // Two lives of each node, and lives that are as large as real ones.
    ProcessId { node: place as u64 / 2, incarnation: 7_000_000_000_000 + place as u64 % 2 }
}

const PROCESSES: usize = 5;

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        Just(Step::Event),
        (0..PROCESSES).prop_map(Step::Send),
        (0..8_usize).prop_map(Step::Receive),
        (0..8_usize).prop_map(Step::Receive),
    ];
    proptest::collection::vec((0..PROCESSES, step), 1..120)
}

/// An event: its stamp, and the set of all events that happened before it.
struct Happened<S> {
    stamp: S,
    before: u128,
}

/// Runs the steps over clocks of one kind; `physical` is what each process takes for the time of day at each step.
fn run<K: Logical>(
    steps: &[(usize, Step)],
    clock: impl Fn(ProcessId) -> K,
    physical: impl Fn(usize, usize) -> Duration,
) -> Vec<Happened<K::Stamp>> {
    let mut clocks: Vec<K> = (0..PROCESSES).map(|place| clock(process(place))).collect();
    let mut known = [0_u128; PROCESSES];
    let mut under_way: Vec<Vec<(Bytes, u128)>> = vec![Vec::new(); PROCESSES];
    let mut happened = Vec::new();
    for (number, (who, step)) in steps.iter().enumerate() {
        let now = physical(*who, number);
        let stamp = match step {
            Step::Receive(which) => {
                if under_way[*who].is_empty() {
                    continue;
                }
                let which = which % under_way[*who].len();
                let (sent, before) = under_way[*who].swap_remove(which);
                known[*who] |= before;
                let sent = K::Stamp::from_bytes(sent).expect("what a clock wrote");
                clocks[*who].receive(now, &sent).expect("an honest stamp")
            }
            Step::Event | Step::Send(_) => clocks[*who].event(now),
        };
        let before = known[*who];
        known[*who] |= 1 << happened.len();
        if let Step::Send(to) = step {
            under_way[*to].push((stamp.to_bytes(), known[*who]));
        }
        happened.push(Happened { stamp, before });
    }
    happened
}

fn is_before<S>(events: &[Happened<S>], one: usize, other: usize) -> bool {
    events[other].before & (1 << one) != 0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn c02_what_happened_before_has_the_smaller_stamp_and_all_stamps_are_in_one_order(steps in steps()) {
        let events = run(&steps, Lamport::new, |_, _| Duration::ZERO);
        for (one, first) in events.iter().enumerate() {
            for (other, second) in events.iter().enumerate() {
                prop_assert_eq!(first.stamp == second.stamp, one == other);
                prop_assert!(!is_before(&events, one, other) || first.stamp < second.stamp);
            }
        }
    }

    #[test]
    fn c03_vectors_know_exactly_what_happened_before_what_and_what_is_concurrent(steps in steps()) {
        let events = run(&steps, Vector::new, |_, _| Duration::ZERO);
        for (one, first) in events.iter().enumerate() {
            for (other, second) in events.iter().enumerate() {
                let expected = match (is_before(&events, one, other), is_before(&events, other, one)) {
                    (true, _) => Relation::Before,
                    (_, true) => Relation::After,
                    _ if one == other => Relation::Same,
                    _ => Relation::Concurrent,
                };
                prop_assert_eq!(first.stamp.relation(&second.stamp), expected);
            }
        }
    }

    #[test]
    fn c03_differences_are_enough_where_order_is_kept_and_bytes_are_few(steps in steps()) {
        let events = run(&steps, Vector::new, |_, _| Duration::ZERO);
        let (mut told, mut heard) = (VectorClock::default(), VectorClock::default());
        // Moments that one process passes through, as they would leave for another one.
        let mut moment = VectorClock::default();
        for event in &events {
            moment.merge(&event.stamp);
            let difference = moment.since(&told).to_bytes();
            prop_assert!(difference.len() <= moment.to_bytes().len());
            // Two bytes for a node, its life and its count, most of the time; the first life takes seven.
            prop_assert!(moment.to_bytes().len() <= 8 + 5 * PROCESSES);
            heard.merge(&VectorClock::from_bytes(difference).expect("what a clock wrote"));
            told.clone_from(&moment);
            prop_assert_eq!(&heard, &moment);
        }
    }

    #[test]
    fn c03_what_happened_before_has_the_smaller_hybrid_stamp_whatever_the_clocks_say(
        steps in steps(),
        skews in proptest::collection::vec(0..2_000_u64, PROCESSES),
        jumps in proptest::collection::vec(0..2_000_u64, 120),
    ) {
        // Each clock has its own error, goes backwards at times, and stands still at others.
        let physical = |who: usize, step: usize| Duration::from_micros(1_000_000 + skews[who] + jumps[step] / 400 * 400);
        let limit = Duration::from_micros(4_000);
        let events = run(&steps, |me| Hybrid::new(me, limit), physical);
        for (one, first) in events.iter().enumerate() {
            prop_assert!((1_000_000..=1_004_000).contains(&first.stamp.micros), "nobody's clock says so");
            for (other, second) in events.iter().enumerate() {
                prop_assert_eq!(first.stamp == second.stamp, one == other);
                prop_assert!(!is_before(&events, one, other) || first.stamp < second.stamp);
            }
        }
    }

    #[test]
    fn c03_bytes_of_strangers_are_a_clock_or_an_error_and_a_clock_has_one_encoding(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Ok(clock) = VectorClock::from_bytes(bytes.clone().into()) {
            prop_assert_eq!(&clock.to_bytes()[..], &bytes[..]);
        }
    }
}

#[test]
fn c02_a_clock_that_was_behind_is_put_right_by_what_it_hears() {
    // The textbook's three clocks, which tick 6, 8 and 10 at a time: two messages come from a clock ahead.
    let mut clocks = [1, 2, 3].map(|node| Lamport::new(ProcessId { node, incarnation: 1 }));
    let mut count = |place: usize, events: u64| {
        (0..events).map(|_| clocks[place].event(Duration::ZERO)).last().expect("some events")
    };
    let (sent, _) = (count(2, 60), count(1, 55));
    let received = clocks[1].receive(Duration::ZERO, &sent).expect("an honest stamp");
    assert_eq!(received.time, 61);
    assert!(sent < received);
    let tie = LamportStamp { time: 61, process: ProcessId { node: 1, incarnation: 1 } };
    assert!(tie < received, "equal times are ordered by process");
}

#[test]
fn c02_a_stamp_that_leaves_no_numbers_is_refused() {
    let me = process(0);
    let mut clock = Lamport::new(me);
    let sent = LamportStamp { time: COUNT_MAX, process: process(1) };
    let refused = clock.receive(Duration::ZERO, &sent);
    assert_eq!(refused, Err(StampError::Beyond { count: COUNT_MAX, limit: COUNT_MAX }));
    assert_eq!(clock.event(Duration::ZERO).time, 1, "as before");
}

#[test]
fn c03_a_stamp_that_cannot_be_is_refused_and_changes_nothing() {
    let mut clock = Vector::new(process(0));
    let mut liar = Vector::new(process(0));
    let ahead = liar.event(Duration::ZERO);
    assert_eq!(clock.receive(Duration::ZERO, &ahead), Err(StampError::FromTheFuture { count: 1, own: 0 }));
    // A clock of as many processes as there may be, and one more.
    let mut crowd = VectorClock::default();
    (1..=PROCESSES_MAX).for_each(|place| crowd.merge(&Vector::new(process(place)).event(Duration::ZERO)));
    let refused = clock.receive(Duration::ZERO, &crowd);
    assert!(matches!(refused, Err(StampError::TooManyProcesses { .. })), "{refused:?}");
    let mut bytes = BytesMut::new();
    bytes.put_slice(&[0xff, 0xff, 0x7f]);
    assert!(VectorClock::from_bytes(bytes.freeze()).is_err(), "more processes than there may be");
    assert_eq!(clock.event(Duration::ZERO).iter().collect::<Vec<_>>(), [(process(0), 1)]);
}

#[test]
fn c03_one_machine_with_a_wrong_clock_does_not_drag_the_others_along() {
    let (noon, hour) = (Duration::from_secs(43_200), Duration::from_secs(3_600));
    let mut clock = Hybrid::new(process(0), Duration::from_secs(1));
    let mut fast = Hybrid::new(process(1), Duration::from_secs(1));
    let refused = clock.receive(noon, &fast.event(noon + hour));
    assert_eq!(refused, Err(StampError::TooFarAhead { ahead: hour, limit: Duration::from_secs(1) }));
    assert_eq!(clock.event(noon).micros, 43_200_000_000);
    // Its own clock is set back: it counts on where it was.
    let after = clock.event(noon - hour);
    assert_eq!((after.micros, after.count), (43_200_000_000, 1));
    let crowded = HybridStamp { micros: 43_200_000_000, count: u32::MAX, process: process(1) };
    let after = clock.receive(noon, &crowded).expect("an honest time");
    assert_eq!((after.micros, after.count), (43_200_000_001, 0));
}
