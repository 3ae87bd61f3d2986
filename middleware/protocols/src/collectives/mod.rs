//! Collective operations: every member of a fixed company calls the same one, and all of them work it out together.
//!
//! Guarantee   an operation ends on every member that lives: with its result, or with an error when somebody is given up,
//!             calls another operation at that place, or keeps the others waiting beyond
//!             [`CollectiveConfig::give_up_after`]. After an error all later operations fail on that member.
//! Method      broadcast and scatter go down a binomial tree, gather and reduce up the same tree, so each takes a number of
//!             rounds that grows with the logarithm of the members; scan doubles its reach in every round; all-to-all
//!             goes directly. Operations are numbered; a message names number and phase, is repeated until it is
//!             acknowledged, and is acknowledged when its operation has begun here or is about to.
//! Source      the operations of MPI; binomial trees and recursive doubling as in Thakur, Rabenseifner and Gropp 2005;
//!             Hillis and Steele 1986 for the scan.
//! Limits      [`AHEAD_MAX`] operations that others have begun and this member has not; what is beyond is not
//!             acknowledged and comes again.

mod message;
mod operation;
mod steps;
mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::machine::{Input, Lane, Machine, Outputs, ProcessId, Violation};
use crate::time::Time;

pub use message::{CollectiveMessage, Kind};
pub use operation::{CollectiveConfig, CollectiveEnd, CollectiveError, Combine, Operation};
use steps::Step;

/// One member's part in all collective operations of a company.
pub struct Collectives {
    config: CollectiveConfig,
    members: Arc<[ProcessId]>,
    rank: u32,
    /// The number of the next operation to begin.
    next: u64,
    waiting: VecDeque<Operation>,
    running: Option<Running>,
    /// What came for the running operation and later ones, by number, phase and sender.
    heard: BTreeMap<(u64, u8, u32), (Kind, Vec<Bytes>)>,
    /// What was sent and not acknowledged, by number, phase and receiver.
    unacknowledged: BTreeMap<(u64, u8, u32), Sent>,
    failed: Option<CollectiveError>,
}

struct Running {
    operation: Operation,
    kind: Kind,
    give_up_at: Time,
    /// Steps done.
    step: u8,
    /// What this member has so far.
    held: Vec<Bytes>,
}

struct Sent {
    repeat_at: Time,
    give_up_at: Time,
    message: CollectiveMessage,
}

impl Collectives {
    /// The member `rank` of `members`, all of which list the same processes in the same order. `None` when there is no
    /// such member.
    pub fn new(config: CollectiveConfig, members: Arc<[ProcessId]>, rank: u32) -> Option<Self> {
        ((rank as usize) < members.len() && u32::try_from(members.len()).is_ok()).then(|| Self {
            config,
            members,
            rank,
            next: 0,
            waiting: VecDeque::new(),
            running: None,
            heard: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            failed: None,
        })
    }

    fn size(&self) -> u32 {
        self.members.len() as u32
    }

    fn begin(&mut self, now: Time, out: &mut Outputs<Self>) {
        while self.running.is_none()
            && let Some(operation) = self.waiting.pop_front()
        {
            let Some(kind) = operation.kind() else { continue };
            let error = self.failed.or((!self.fits(&operation)).then_some(CollectiveError::Arguments));
            if let Some(error) = error {
                self.end(Err(error), out);
                continue;
            }
            let give_up_at = now + self.config.give_up_after;
            let other =
                self.heard.range((self.next, 0, 0)..(self.next + 1, 0, 0)).find(|(_, (of, _))| *of != kind);
            let other = other.map(|((.., from), _)| *from);
            self.running = Some(Running { operation, kind, give_up_at, step: 0, held: Vec::new() });
            match other {
                Some(rank) => self.fail(CollectiveError::Mismatch { rank }, out),
                None => self.go_on(now, out),
            }
        }
    }

    fn fits(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Broadcast { root, .. }
            | Operation::Gather { root, .. }
            | Operation::Reduce { root, .. } => *root < self.size(),
            Operation::Scatter { root, parts } => {
                *root < self.size() && (*root != self.rank || parts.len() == self.members.len())
            }
            Operation::AllToAll { parts } => parts.len() == self.members.len(),
            _ => true,
        }
    }

    fn end(&mut self, result: Result<Vec<Bytes>, CollectiveError>, out: &mut Outputs<Self>) {
        let number = self.next;
        self.next += 1;
        self.running = None;
        // What the operation did not need cannot be needed any more.
        self.heard.retain(|(of, ..), _| *of > number);
        out.event(CollectiveEnd { number, result });
    }

    /// Everything fails from now on; the others are told once, and find out by their own clocks otherwise.
    fn fail(&mut self, error: CollectiveError, out: &mut Outputs<Self>) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(error);
        self.unacknowledged.clear();
        self.heard.clear();
        let others: Vec<ProcessId> = self.others().map(|rank| self.members[rank as usize]).collect();
        let rank = match error {
            CollectiveError::Gone { rank } | CollectiveError::Mismatch { rank } => rank,
            _ => self.rank,
        };
        out.multicast(others.into(), Lane::Ordinary, CollectiveMessage::Abort { rank });
        if self.running.is_some() {
            self.end(Err(error), out);
        }
        for _ in 0..self.waiting.len() {
            self.waiting.pop_front();
            self.end(Err(error), out);
        }
    }

    fn others(&self) -> impl Iterator<Item = u32> + use<> {
        let own = self.rank;
        (0..self.size()).filter(move |rank| *rank != own)
    }

    fn send(&mut self, now: Time, to: u32, phase: u8, items: Vec<Bytes>, out: &mut Outputs<Self>) {
        let Some(running) = &self.running else { return };
        let message = CollectiveMessage::Part { number: self.next, kind: running.kind, phase, items };
        let repeat_at = now + self.config.repeat_after;
        let give_up_at = now + self.config.give_up_after;
        let sent = Sent { repeat_at, give_up_at, message: message.clone() };
        self.unacknowledged.insert((self.next, phase, to), sent);
        out.send(self.members[to as usize], Lane::Ordinary, message);
    }

    /// What `from` sent in a phase of the running operation.
    fn take(&mut self, phase: u8, from: u32) -> Option<Vec<Bytes>> {
        self.heard.remove(&(self.next, phase, from)).map(|(_, items)| items)
    }

    fn go_on(&mut self, now: Time, out: &mut Outputs<Self>) {
        // Whoever needs nothing of the others could run away from them.
        if self
            .unacknowledged
            .first_key_value()
            .is_some_and(|((oldest, ..), _)| oldest + AHEAD_MAX <= self.next)
        {
            return;
        }
        let Some(mut running) = self.running.take() else { return };
        let operation = running.operation.clone();
        // `send` looks the operation up.
        loop {
            let before = running.step;
            self.running = Some(running);
            let step = self.step(now, &operation, out);
            match (step, self.running.take()) {
                (Step::Done(result), still) => {
                    self.running = still;
                    self.end(Ok(result), out);
                    return;
                }
                (Step::Wait, Some(still)) if still.step == before => {
                    self.running = Some(still);
                    return;
                }
                (Step::Wait, Some(still)) => running = still,
                (Step::Wait, None) => return,
            }
        }
    }

    fn on_part(
        &mut self,
        now: Time,
        from: u32,
        (number, phase): (u64, u8),
        (kind, items): (Kind, Vec<Bytes>),
        out: &mut Outputs<Self>,
    ) {
        if self.failed.is_some() {
            let message = CollectiveMessage::Abort { rank: self.rank };
            out.send(self.members[from as usize], Lane::Ordinary, message);
            return;
        }
        if number > self.next + AHEAD_MAX {
            return;
        }
        out.send(
            self.members[from as usize],
            Lane::Ordinary,
            CollectiveMessage::Acknowledge { number, phase },
        );
        if number < self.next {
            return;
        }
        if number == self.next && self.running.as_ref().is_some_and(|running| running.kind != kind) {
            self.fail(CollectiveError::Mismatch { rank: from }, out);
            return;
        }
        self.heard.entry((number, phase, from)).or_insert((kind, items));
        self.go_on(now, out);
        self.begin(now, out);
    }
}

impl Machine for Collectives {
    type Command = Operation;
    type Event = CollectiveEnd;
    type Message = CollectiveMessage;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Command(Operation::GiveUp { rank }) => self.fail(CollectiveError::Gone { rank }, out),
            Input::Command(operation) => {
                self.waiting.push_back(operation);
                self.begin(now, out);
            }
            Input::Received { from, message } => {
                let Some(rank) = self.members.iter().position(|member| *member == from) else { return };
                let from = rank as u32;
                match message {
                    CollectiveMessage::Part { number, kind, phase, items } => {
                        self.on_part(now, from, (number, phase), (kind, items), out);
                    }
                    CollectiveMessage::Acknowledge { number, phase } => {
                        self.unacknowledged.remove(&(number, phase, from));
                        self.go_on(now, out);
                        self.begin(now, out);
                    }
                    CollectiveMessage::Abort { rank } => {
                        // Whoever gave up may have meant itself: for the others it is gone either way.
                        let rank = if rank < self.size() && rank != self.rank { rank } else { from };
                        self.fail(CollectiveError::Gone { rank }, out);
                    }
                }
            }
            Input::Tick => {
                if self.running.as_ref().is_some_and(|running| running.give_up_at <= now) {
                    self.fail(CollectiveError::TimedOut { waited: self.config.give_up_after }, out);
                }
                // Who acknowledges nothing for so long is gone, also when nothing else is to be had from it.
                let deaf = self.unacknowledged.iter().find(|(_, sent)| sent.give_up_at <= now);
                if let Some(rank) = deaf.map(|((.., to), _)| *to) {
                    self.fail(CollectiveError::Gone { rank }, out);
                }
                let repeat_at = now + self.config.repeat_after;
                for ((.., to), sent) in &mut self.unacknowledged {
                    if sent.repeat_at <= now {
                        sent.repeat_at = repeat_at;
                        out.send(self.members[*to as usize], Lane::Ordinary, sent.message.clone());
                    }
                }
            }
            // Connections come and go; who is dead is for the user to say, and for the clock.
            Input::Reachable(_) | Input::Unreachable(_) => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        let repeat = self.unacknowledged.values().map(|sent| sent.repeat_at.min(sent.give_up_at)).min();
        let give_up = self.running.as_ref().map(|running| running.give_up_at);
        repeat.into_iter().chain(give_up).min()
    }

    fn check(&self) -> Result<(), Violation> {
        if self.heard.keys().any(|(number, ..)| *number < self.next) {
            return Err(Violation("what was heard for an operation that is over is still kept".to_owned()));
        }
        Ok(())
    }
}

/// Operations that others may have begun before this member.
pub const AHEAD_MAX: u64 = 4;
