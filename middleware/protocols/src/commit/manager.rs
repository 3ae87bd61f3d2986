//! Both roles of one process behind the one contract of machines.

use std::collections::VecDeque;
use std::sync::Arc;

use super::coordinator::Coordinator;
use super::message::{Message, Record};
use super::participant::Participant;
use super::{Command, Config, Effects, Event, TxnId};
use crate::machine::{Input, Machine, Outputs, ProcessId, Violation};
use crate::time::Time;

/// The transaction manager of one process: coordinator of what it begins, participant of what it is asked.
pub struct Manager {
    me: ProcessId,
    coordinator: Coordinator,
    participant: Participant,
    /// What a restart found, to be told with the first input.
    announced: bool,
    born: Time,
    to_self: VecDeque<Message>,
}

/// A transaction on which this participant has voted yes and does not know the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InDoubt {
    /// The transaction; its name tells the coordinator.
    pub txn: TxnId,
    /// Since when; the time of the restart if it is older.
    pub since: Time,
    /// Everyone who takes part.
    pub participants: Arc<[u64]>,
}

impl Manager {
    /// A new life of the process `me`, from the records of earlier ones, in order; none for a new process.
    pub fn new(me: ProcessId, now: Time, config: Config, records: impl IntoIterator<Item = Record>) -> Self {
        let mut coordinator = Coordinator::new(me, config);
        let mut participant = Participant::new(me.node, config);
        for record in records {
            coordinator.recover(now, &record);
            participant.recover(now, &record);
        }
        Self { me, coordinator, participant, announced: false, born: now, to_self: VecDeque::new() }
    }

    /// Transactions on which this process has voted yes and does not know the decision.
    pub fn in_doubt(&self) -> Vec<InDoubt> {
        self.participant.in_doubt()
    }

    /// How much is open.
    pub fn load(&self) -> Load {
        let (voting, committing) = self.coordinator.load();
        Load { voting, committing, participating: self.participant.open() }
    }

    /// The fewest records from which [`new`](Self::new) makes the same durable state: write them, then drop what came
    /// before. Everything that was emitted must be durable when this is called.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = Vec::new();
        self.participant.snapshot(&mut records);
        self.coordinator.snapshot(&mut records);
        records
    }

    fn receive(&mut self, now: Time, from: u64, message: Message, fx: &mut Effects<'_>) {
        let me = self.me.node;
        match message {
            Message::Prepare { txn, floor, participants, payload } => {
                if txn.node == from {
                    self.participant.on_prepare(now, txn, floor, participants, payload, fx);
                }
            }
            Message::Vote { txn, vote } => {
                if txn.node == me {
                    self.coordinator.on_vote(now, from, txn, vote, fx);
                }
            }
            Message::Decided { txn, decision } => self.participant.on_decided(from, txn, decision, fx),
            Message::Acknowledged(txn) => {
                if txn.node == me {
                    self.coordinator.on_acknowledged(from, txn, fx);
                }
            }
            Message::Query(txn) if txn.node == me => self.coordinator.on_query(from, txn, fx),
            Message::Query(txn) => self.participant.on_query(from, txn, fx),
        }
    }
}

/// How many transactions a [`Manager`] holds open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Coordinated here, not decided.
    pub voting: usize,
    /// Coordinated here, committed, not acknowledged by all.
    pub committing: usize,
    /// Taken part in here, not over.
    pub participating: usize,
}

impl Machine for Manager {
    type Command = Command;
    type Event = Event;
    type Message = Message;
    type Record = Record;

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        let mut to_self = std::mem::take(&mut self.to_self);
        let mut fx = Effects { me: self.me.node, out, to_self: &mut to_self };
        if !self.announced {
            self.announced = true;
            self.participant.announce(&mut fx);
            self.coordinator.announce(&mut fx);
        }
        match input {
            Input::Tick => {
                self.coordinator.tick(now, &mut fx);
                self.participant.tick(now, &mut fx);
            }
            Input::Received { from, message } => self.receive(now, from.node, message, &mut fx),
            Input::Command(Command::Begin { token, work }) => {
                self.coordinator.begin(now, token, work, &mut fx)
            }
            Input::Command(Command::Cancel(txn)) => self.coordinator.cancel(txn, &mut fx),
            Input::Command(Command::Vote { txn, vote }) => self.participant.vote(now, txn, vote, &mut fx),
            Input::Command(Command::Applied(txn)) => self.participant.applied(txn, &mut fx),
            // Time-outs do the same, and a broken connection is no proof of anything.
            Input::Reachable(_) | Input::Unreachable(_) => {}
        }
        // What one role told the other; each answer is another turn, and every exchange ends within a few.
        while let Some(message) = fx.to_self.pop_front() {
            self.receive(now, self.me.node, message, &mut fx);
        }
        self.to_self = to_self;
    }

    fn deadline(&self) -> Option<Time> {
        let announce = (!self.announced).then_some(self.born);
        [announce, self.coordinator.deadline(), self.participant.deadline()].into_iter().flatten().min()
    }

    fn check(&self) -> Result<(), Violation> {
        self.coordinator.check()?;
        self.participant.check()
    }
}
