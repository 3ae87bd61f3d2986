//! Single replicas: their bytes, and what they refuse. What several of them do together stands in `tests/sim_commit`.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::machine::{Input, Machine, Output, Outputs, ProcessId};
use crate::time::Time;
use crate::wire::Wire;

const ME: ProcessId = ProcessId { node: 1, incarnation: 7 };

fn alone(config: Config, records: Vec<Record>) -> Replica {
    let founders = Members::of_voters([ProcessId::any_life(1)]);
    Replica::new(ME, Time::ZERO, 1, config, founders, records).unwrap()
}

/// Feeds an input, then ticks until nothing is due; with what was recorded and told.
fn feed(replica: &mut Replica, at: Time, input: Input<Replica>) -> (Vec<Record>, Vec<Event>) {
    let mut out = Outputs::new();
    replica.handle(at, input, &mut out);
    while replica.deadline().is_some_and(|due| due <= at) {
        replica.handle(at, Input::Tick, &mut out);
    }
    let (mut records, mut events) = (Vec::new(), Vec::new());
    for output in out.drain() {
        match output {
            Output::Persist(record) => records.push(record),
            Output::Event(event) => events.push(event),
            _ => {}
        }
    }
    replica.check().unwrap();
    (records, events)
}

fn later(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

fn propose(token: u64, fence: u64, payload: &'static str) -> Input<Replica> {
    Input::Command(Command::Propose { token, fence, payload: Bytes::from_static(payload.as_bytes()) })
}

fn tokens(events: &[Event]) -> Vec<(Option<u64>, Bytes)> {
    let delivered = events.iter().filter_map(|event| match event {
        Event::Delivered(run) => Some(run.iter().map(|d| (d.token, d.payload.clone()))),
        _ => None,
    });
    delivered.flatten().collect()
}

#[test]
fn one_voter_alone_decides_and_a_restart_delivers_the_same_again() {
    let mut replica = alone(Config::default(), Vec::new());
    let (mut records, _) = feed(&mut replica, later(1_000), Input::Tick);
    assert!(replica.is_leader());
    for (token, payload) in [(5, "a"), (6, "b")] {
        let (more, events) = feed(&mut replica, later(1_001), propose(token, 0, payload));
        records.extend(more);
        assert_eq!(tokens(&events), [(Some(token), Bytes::from_static(payload.as_bytes()))]);
    }
    for records in [records, replica.records()] {
        let mut again = alone(Config::default(), records);
        let (_, events) = feed(&mut again, later(1_000), Input::Tick);
        assert_eq!(tokens(&events), [(None, "a".into()), (None, "b".into())]);
        assert!(again.term() > replica.term());
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let config = Config { outstanding_max: 1, payload_bytes_max: 3, members_max: 2, ..Config::default() };
    let mut replica = alone(config, vec![Record::Promise { term: 5, voted: None }]);
    let refused = |token, reason| vec![Event::Refused { token, reason }];
    assert_eq!(
        feed(&mut replica, later(1), propose(1, 0, "large")).1,
        refused(1, Refusal::TooLarge { size: 5, limit: 3 })
    );
    assert!(feed(&mut replica, later(1), propose(2, 0, "a")).1.is_empty(), "it waits for a leader");
    assert_eq!(feed(&mut replica, later(1), propose(3, 0, "b")).1, refused(3, Refusal::Full { limit: 1 }));
    let change = |change| Input::Command(Command::Reconfigure { token: 4, change });
    let two = ProcessId::any_life(2);
    let early = feed(&mut replica, later(1), change(Change::Learner(two))).1;
    assert_eq!(early, refused(4, Refusal::NotLeader { leader: None }));
    assert_eq!(tokens(&feed(&mut replica, later(1_000), Input::Tick).1).len(), 1);
    let behind = feed(&mut replica, later(1_001), change(Change::Voter(two))).1;
    assert_eq!(behind, refused(4, Refusal::Behind(two)));
    let alone = feed(&mut replica, later(1_001), change(Change::Gone(ProcessId::any_life(1)))).1;
    assert_eq!(alone, refused(4, Refusal::LastVoter));
    let learner = feed(&mut replica, later(1_001), change(Change::Learner(two))).1;
    assert!(learner.contains(&Event::Reconfigured { token: 4 }), "{learner:?}");
    let more = feed(&mut replica, later(1_001), change(Change::Learner(ProcessId::any_life(3)))).1;
    assert_eq!(more, refused(4, Refusal::TooMany { limit: 2 }));
    let term = replica.term();
    assert_eq!(
        tokens(&feed(&mut replica, later(1_001), propose(5, term, "c")).1).len(),
        1,
        "fenced to this term"
    );
    let stale = feed(&mut replica, later(1_001), propose(6, term - 1, "d")).1;
    assert_eq!(stale, refused(6, Refusal::Fenced { term }));
}

#[test]
fn a_log_that_no_snapshot_shortens_takes_nothing_more() {
    let config = Config { log_entries_max: 4, log_entries_kept: 0, ..Config::default() };
    let mut replica = alone(config, Vec::new());
    let (_, mut events) = feed(&mut replica, later(1_000), Input::Tick);
    for token in 0..30 {
        events.extend(feed(&mut replica, later(1_001), propose(token, 0, "x")).1);
    }
    assert_eq!(tokens(&events).len(), 15, "the leader's own entry takes a place, too");
    let wanted: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            Event::SnapshotWanted { index } => Some(*index),
            _ => None,
        })
        .collect();
    assert_eq!(wanted, [4], "asked for once");
    let data = Bytes::from_static(b"state");
    let (_, events) = feed(&mut replica, later(1_002), Input::Command(Command::Snapshot { index: 4, data }));
    assert_eq!(tokens(&events).len(), 4);
    let again = alone(config, replica.records());
    assert_eq!((again.snapshot().index, &again.snapshot().data[..]), (4, &b"state"[..]));
    assert_eq!(again.places(), 5..=20);
}

#[test]
fn records_with_a_hole_are_refused() {
    let entries = vec![Entry { term: 1, content: Content::Nothing }].into();
    let hole = Record::Entries { first: 3, entries };
    let found = Replica::new(ME, Time::ZERO, 1, Config::default(), Members::default(), [hole]);
    assert_eq!(found.err(), Some(RestoreError::Hole { first: 3, last: 0 }));
}

proptest! {
    #[test]
    fn garbage_is_refused_or_understood_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), tag in 0u8..15) {
        let mut tagged = vec![tag];
        tagged.extend_from_slice(&bytes);
        for input in [bytes, tagged] {
            if let Ok(message) = Message::from_bytes(input.clone().into()) {
                prop_assert_eq!(message.to_bytes(), &input[..]);
                let mut replica = alone(Config::default(), Vec::new());
                let from = ProcessId { node: 2, incarnation: 1 };
                feed(&mut replica, later(1), Input::Received { from, message });
            }
            if let Ok(record) = Record::from_bytes(input.clone().into()) {
                prop_assert_eq!(record.to_bytes(), &input[..]);
            }
        }
    }
}
