//! One story at a time: costs, every row of the time-out table, the blocking case, both sides' recovery.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use quorate::sim::{
    Action, Boot, Config, Counts, Fault, Keep, Moment, Nodes, Observed, Plan, Scenario, World, replay,
};
use quorate_protocols::commit::{
    self, AbortReason, BeginError, Command, Event, Manager, Message, Outcome, Record, TxnId, Vote, Work,
};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Violation, Wire};

/// One transaction, begun by node 0 over the nodes 1 to n, in fair weather but for the faults given.
struct Story {
    participants: u64,
    /// What a node votes and after how long; yes at once unless said otherwise.
    votes: BTreeMap<usize, (Vote, Duration)>,
    faults: Vec<Fault>,
}

/// What came of it.
#[derive(Default)]
struct Told {
    events: Vec<(u64, usize, Event)>,
    /// Who was in doubt, by the second.
    in_doubt: Vec<Vec<usize>>,
    counts: Counts,
}

const TXN: TxnId = TxnId { node: 0, incarnation: 1, sequence: 0 };
/// Long enough for every retry that follows a restart.
const SECONDS: u64 = 20;

impl Story {
    fn of(participants: u64) -> Self {
        Self { participants, votes: BTreeMap::new(), faults: Vec::new() }
    }

    fn vote(mut self, node: usize, vote: Vote, after_ms: u64) -> Self {
        self.votes.insert(node, (vote, Duration::from_millis(after_ms)));
        self
    }

    fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    fn tell(self) -> Told {
        let mut told = Told::default();
        let mut plan = Plan::calm();
        plan.faults = self.faults.clone();
        let config = Config { active: Duration::from_secs(SECONDS), ..Config::default() };
        let mut slot = Some(Stage { story: &self, told: &mut told });
        let counts = replay(&config, 1, &plan, |_| slot.take().unwrap()).unwrap();
        told.counts = counts;
        told
    }
}

impl Told {
    /// When a node heard the event first, in milliseconds.
    fn at(&self, node: usize, event: &Event) -> Option<u64> {
        self.events.iter().find(|(_, who, what)| *who == node && what == event).map(|(at, _, _)| *at)
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.events.iter().find_map(|(_, _, event)| match event {
            Event::Decided { outcome, .. } => Some(outcome),
            _ => None,
        })
    }

    fn nodes_that_heard(&self, event: &Event) -> Vec<usize> {
        let mut nodes: Vec<usize> =
            self.events.iter().filter(|(_, _, what)| what == event).map(|(_, node, _)| *node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

struct Stage<'a> {
    story: &'a Story,
    told: &'a mut Told,
}

impl Scenario for Stage<'_> {
    type Machine = Manager;

    fn nodes(&self) -> usize {
        self.story.participants as usize + 1
    }

    fn boot(&mut self, boot: Boot<Manager>) -> Manager {
        Manager::new(boot.id, boot.now, commit::Config::default(), boot.records)
    }

    fn start(&mut self, world: &mut World<Manager>) {
        let work =
            (1..=self.story.participants).map(|node| Work { node, payload: Bytes::from_static(b"work") });
        world.command(0, Command::Begin { token: 0, work: work.collect() });
        world.wake_in(Duration::from_secs(1), 0);
    }

    fn wake(&mut self, token: u64, world: &mut World<Manager>) -> Result<(), Violation> {
        let doubts =
            |node: &usize| world.machine(*node).is_some_and(|manager| !manager.in_doubt().is_empty());
        self.told.in_doubt.push((0..world.nodes()).filter(doubts).collect());
        if !world.is_calm() {
            world.wake_in(Duration::from_secs(1), token);
        }
        Ok(())
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Manager>) -> Result<(), Violation> {
        self.told.events.push((who.at.as_nanos() / 1_000_000, who.node, event.clone()));
        match event {
            Event::Prepare { txn, .. } => {
                let (vote, after) =
                    self.story.votes.get(&who.node).copied().unwrap_or((Vote::Yes, Duration::ZERO));
                world.command_in(after, who.node, Command::Vote { txn: *txn, vote });
            }
            Event::Commit(txn) | Event::Abort(txn) => world.command(who.node, Command::Applied(*txn)),
            _ => {}
        }
        Ok(())
    }

    fn promise(&self, output: &Output<Manager>) -> Option<u8> {
        match output {
            Output::Persist(Record::Committed { .. }) => Some(COMMITTED),
            Output::Persist(Record::Prepared { .. }) => Some(PREPARED),
            Output::Send { message: Message::Acknowledged(_), .. } => Some(ACKNOWLEDGED),
            _ => None,
        }
    }

    fn finish(&mut self, world: &mut World<Manager>) -> Result<(), Violation> {
        for node in 0..world.nodes() {
            let load = world.machine(node).map(Manager::load);
            if load != Some(commit::Load::default()) {
                return Err(Violation(format!("node {node} is left with {load:?}")));
            }
        }
        Ok(())
    }
}

const COMMITTED: u8 = 0;
const PREPARED: u8 = 1;
const ACKNOWLEDGED: u8 = 2;

fn die_for_ten_seconds(node: usize, class: u8, moment: Moment) -> Fault {
    let action = Action::Die { down_us: 10_000_000, keep: Keep::Nothing };
    Fault::Strike { from_us: 0, node, class, skip: 0, moment, action }
}

// ---- costs ------------------------------------------------------------------------------------------------------

#[test]
fn k02_a_commit_without_failures_costs_4n_messages_and_2n_plus_1_forced_writes() {
    for n in 1..=6 {
        let told = Story::of(n).tell();
        assert_eq!(told.outcome(), Some(&Outcome::Committed));
        assert_eq!(told.nodes_that_heard(&Event::Commit(TXN)).len() as u64, n);
        assert_eq!((told.counts.sent, told.counts.syncs), (4 * n, 2 * n + 1), "{n} participants");
    }
}

#[test]
fn k02_a_read_only_voter_takes_no_part_in_the_second_phase() {
    let told = Story::of(3).vote(2, Vote::ReadOnly, 0).tell();
    assert_eq!(told.outcome(), Some(&Outcome::Committed));
    assert_eq!(told.nodes_that_heard(&Event::Commit(TXN)), [1, 3]);
    // Two messages and one forced write less; its vote is the one that stays.
    assert_eq!((told.counts.sent, told.counts.syncs), (4 * 3 - 2, 2 * 3 + 1 - 1));

    let told = Story::of(2).vote(1, Vote::ReadOnly, 0).vote(2, Vote::ReadOnly, 0).tell();
    assert_eq!(told.outcome(), Some(&Outcome::Committed));
    assert_eq!(
        (told.counts.sent, told.counts.syncs),
        (4, 2),
        "no second phase and no record of the coordinator"
    );
}

#[test]
fn k02_an_abort_costs_the_coordinator_no_write_and_nobody_an_acknowledgement() {
    let told = Story::of(2).vote(2, Vote::No, 5).tell();
    assert_eq!(told.outcome(), Some(&Outcome::Aborted(AbortReason::VotedNo(2))));
    assert_eq!(told.nodes_that_heard(&Event::Abort(TXN)), [1], "whoever voted no has aborted already");
    assert_eq!((told.counts.sent, told.counts.syncs), (2 + 2 + 1, 1));
}

// ---- the time-out table -----------------------------------------------------------------------------------------

#[test]
fn k02_a_coordinator_without_all_votes_asks_again_and_then_aborts() {
    let cut = |for_us| Fault::Cut { at_us: 0, for_us, from: Nodes::one(0), to: Nodes::one(2) };
    let told = Story::of(2).fault(cut(1_000_000)).tell();
    assert_eq!(told.outcome(), Some(&Outcome::Committed), "the first prepare was lost, a later one was not");

    let told = Story::of(2).fault(cut(15_000_000)).tell();
    assert_eq!(told.outcome(), Some(&Outcome::Aborted(AbortReason::TimedOut(vec![2]))));
    assert_eq!(told.nodes_that_heard(&Event::Abort(TXN)), [1]);
}

#[test]
fn k02_a_commit_is_repeated_until_everyone_has_acknowledged() {
    let cut = Fault::Cut { at_us: 5_000, for_us: 6_000_000, from: Nodes::one(0), to: Nodes::one(2) };
    // Node 2 votes at once, node 1 only when the way to node 2 is cut; node 2 can also not ask node 1.
    let alone = Fault::Cut { at_us: 5_000, for_us: 6_000_000, from: Nodes::one(1), to: Nodes::one(2) };
    let told = Story::of(2).vote(1, Vote::Yes, 10).fault(cut).fault(alone).tell();
    let (early, late) = (told.at(1, &Event::Commit(TXN)), told.at(2, &Event::Commit(TXN)));
    assert!(early.is_some_and(|at| at < 100), "{early:?}");
    assert!(late.is_some_and(|at| at > 6_000), "{late:?}");
}

#[test]
fn k02_participants_that_are_all_uncertain_block_until_the_coordinator_is_back() {
    let before = Story::of(3).fault(die_for_ten_seconds(0, COMMITTED, Moment::Before)).tell();
    for second in 0..9 {
        assert_eq!(
            before.in_doubt[second],
            [1, 2, 3],
            "second {second}: everyone is uncertain, nobody decides"
        );
    }
    // The decision had not been written: presumed abort.
    assert_eq!(before.nodes_that_heard(&Event::Abort(TXN)), [1, 2, 3]);
    assert!(before.nodes_that_heard(&Event::Commit(TXN)).is_empty());

    let durable = Story::of(3).fault(die_for_ten_seconds(0, COMMITTED, Moment::Durable)).tell();
    for second in 0..9 {
        assert_eq!(
            durable.in_doubt[second],
            [1, 2, 3],
            "second {second}: everyone is uncertain, nobody decides"
        );
    }
    assert_eq!(durable.nodes_that_heard(&Event::Commit(TXN)), [1, 2, 3], "it had been written, and is kept");
    assert_eq!(durable.outcome(), Some(&Outcome::Committed), "the user is told after the restart");
}

#[test]
fn k02_an_uncertain_participant_learns_the_decision_from_another() {
    let cut = Fault::Cut { at_us: 5_000, for_us: 20_000_000, from: Nodes::one(0), to: Nodes::one(2) };
    let crash = Fault::Crash { at_us: 50_000, node: 0, down_us: 10_000_000, keep: Keep::Nothing };
    let told = Story::of(2).vote(1, Vote::Yes, 10).fault(cut).fault(crash).tell();
    let at = told.at(2, &Event::Commit(TXN));
    assert!(at.is_some_and(|at| at < 5_000), "node 2 commits while the coordinator is down: {at:?}");
}

#[test]
fn k02_a_participant_that_was_never_asked_refuses_so_that_others_need_not_wait() {
    let cut = Fault::Cut { at_us: 0, for_us: 20_000_000, from: Nodes::one(0), to: Nodes::one(2) };
    let crash = Fault::Crash { at_us: 50_000, node: 0, down_us: 10_000_000, keep: Keep::Nothing };
    let told = Story::of(2).fault(cut).fault(crash).tell();
    let at = told.at(1, &Event::Abort(TXN));
    assert!(at.is_some_and(|at| at < 5_000), "node 1 aborts while the coordinator is down: {at:?}");
    assert!(told.nodes_that_heard(&Event::Commit(TXN)).is_empty());
}

// ---- recovery of participants -----------------------------------------------------------------------------------

#[test]
fn k02_a_participant_that_dies_after_its_vote_is_durable_keeps_its_promise() {
    let told = Story::of(2).fault(die_for_ten_seconds(2, PREPARED, Moment::Durable)).tell();
    // The vote never left, so the coordinator may abort; the participant must ask and not guess.
    let doubt = Event::InDoubt { txn: TXN, payload: Bytes::from_static(b"work") };
    assert!(told.at(2, &doubt).is_some_and(|at| at >= 10_000));
    assert_eq!(told.outcome(), Some(&Outcome::Aborted(AbortReason::TimedOut(vec![2]))));
    assert_eq!(told.nodes_that_heard(&Event::Abort(TXN)), [1, 2]);
}

#[test]
fn k02_a_lost_acknowledgement_is_repeated_after_a_restart() {
    let told = Story::of(2).fault(die_for_ten_seconds(2, ACKNOWLEDGED, Moment::Before)).tell();
    assert_eq!(told.nodes_that_heard(&Event::Commit(TXN)), [1, 2]);
    assert_eq!(
        told.events.iter().filter(|(_, node, event)| *node == 2 && *event == Event::Commit(TXN)).count(),
        1
    );
}

// ---- what a caller or a peer can get wrong ----------------------------------------------------------------------

/// A machine and the events that its inputs cause, with every output carried out at once.
fn begin(manager: &mut Manager, token: u64, nodes: &[u64]) -> Vec<Event> {
    let work = nodes.iter().map(|node| Work { node: *node, payload: Bytes::new() }).collect();
    feed(manager, Input::Command(Command::Begin { token, work }))
}

fn feed(manager: &mut Manager, input: Input<Manager>) -> Vec<Event> {
    let mut out = Outputs::new();
    manager.handle(Time::ZERO, input, &mut out);
    let events = out.drain().filter_map(|output| match output {
        Output::Event(event) => Some(event),
        _ => None,
    });
    events.collect()
}

const ME: ProcessId = ProcessId { node: 0, incarnation: 1 };

#[test]
fn a_transaction_that_cannot_be_is_refused_with_its_reason() {
    let config = commit::Config { participants_max: 2, transactions_max: 1, ..commit::Config::default() };
    let mut manager = Manager::new(ME, Time::ZERO, config, []);
    let refused = |reason| vec![Event::Refused { token: 9, reason }];
    assert_eq!(begin(&mut manager, 9, &[]), refused(BeginError::NoParticipants));
    assert_eq!(begin(&mut manager, 9, &[4, 4]), refused(BeginError::Repeated(4)));
    assert_eq!(begin(&mut manager, 9, &[1, 2, 3]), refused(BeginError::TooMany { count: 3, limit: 2 }));
    assert_eq!(begin(&mut manager, 8, &[1]), [Event::Begun { token: 8, txn: TXN }]);
    assert_eq!(begin(&mut manager, 9, &[1]), refused(BeginError::Full { limit: 1 }));
}

#[test]
fn strangers_neither_vote_nor_decide() {
    let mut manager = Manager::new(ME, Time::ZERO, commit::Config::default(), []);
    begin(&mut manager, 0, &[1]);
    let stranger = ProcessId { node: 7, incarnation: 1 };
    let yes = Message::Vote { txn: TXN, vote: Vote::Yes };
    assert!(feed(&mut manager, Input::Received { from: stranger, message: yes }).is_empty());
    let no = Message::Vote { txn: TXN, vote: Vote::No };
    assert!(feed(&mut manager, Input::Received { from: stranger, message: no }).is_empty());
    assert_eq!(manager.load().voting, 1);

    let theirs = TxnId { node: 3, incarnation: 1, sequence: 0 };
    let prepare = || Message::Prepare {
        txn: theirs,
        floor: (1, 0),
        participants: [0, 5].into(),
        payload: Bytes::new(),
    };
    assert!(feed(&mut manager, Input::Received { from: stranger, message: prepare() }).is_empty());
    let owner = ProcessId { node: 3, incarnation: 1 };
    assert_eq!(feed(&mut manager, Input::Received { from: owner, message: prepare() }).len(), 1);
    feed(&mut manager, Input::Command(Command::Vote { txn: theirs, vote: Vote::Yes }));
    let commit = Message::Decided { txn: theirs, decision: commit::Decision::Commit };
    assert!(feed(&mut manager, Input::Received { from: stranger, message: commit.clone() }).is_empty());
    assert_eq!(manager.in_doubt().len(), 1);
    assert_eq!(feed(&mut manager, Input::Received { from: owner, message: commit }), [Event::Commit(theirs)]);
}

#[test]
fn queries_about_made_up_coordinators_do_not_fill_the_memory() {
    let mut manager = Manager::new(ME, Time::ZERO, commit::Config::default(), []);
    let stranger = ProcessId { node: 7, incarnation: 1 };
    for node in 100..10_000 {
        let txn = TxnId { node, incarnation: 1, sequence: 0 };
        feed(&mut manager, Input::Received { from: stranger, message: Message::Query(txn) });
    }
    assert_eq!(manager.snapshot().len(), 1_024);
    manager.check().unwrap();
}

#[test]
fn a_snapshot_says_what_the_whole_log_said() {
    let theirs = |sequence| TxnId { node: 3, incarnation: 2, sequence };
    let participants: std::sync::Arc<[u64]> = [0, 5].into();
    let prepared = |sequence| Record::Prepared {
        txn: theirs(sequence),
        participants: participants.clone(),
        payload: Bytes::from_static(b"x"),
    };
    let mine = TxnId { node: 0, incarnation: 1, sequence: 4 };
    let log = vec![
        Record::Floor(theirs(1)),
        prepared(1),
        Record::Committed { txn: mine, waiting: [1, 2].into() },
        Record::Finished { txn: theirs(1), ending: commit::Ending::Committed },
        prepared(2),
        Record::Committed { txn: TXN, waiting: [1].into() },
        Record::Forgotten(TXN),
    ];
    let reborn = ProcessId { node: 0, incarnation: 2 };
    let of = |records| Manager::new(reborn, Time::ZERO, commit::Config::default(), records);
    let manager = of(log);
    let snapshot = manager.snapshot();
    assert_eq!(
        snapshot,
        [
            Record::Floor(theirs(1)),
            Record::Finished { txn: theirs(1), ending: commit::Ending::Committed },
            prepared(2),
            Record::Committed { txn: mine, waiting: [1, 2].into() },
        ]
    );
    assert_eq!(of(snapshot.clone()).snapshot(), snapshot);
    assert_eq!(of(snapshot).in_doubt(), manager.in_doubt());
}

proptest! {
    #[test]
    fn garbage_is_refused_or_understood_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), tag in 0u8..8) {
        let mut tagged = vec![tag];
        tagged.extend_from_slice(&bytes);
        for input in [bytes, tagged] {
            if let Ok(message) = Message::from_bytes(input.clone().into()) {
                prop_assert_eq!(message.to_bytes(), &input[..]);
            }
            if let Ok(record) = Record::from_bytes(input.clone().into()) {
                prop_assert_eq!(record.to_bytes(), &input[..]);
            }
        }
    }
}
