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
mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::machine::{Input, Lane, Machine, Outputs, ProcessId, Violation};
use crate::time::Time;

pub use message::{CollectiveMessage, Kind};
use tree::{children, parent, span};

/// How two partial results become one. It must be associative; it is applied in the order of the ranks.
pub type Combine = Arc<dyn Fn(&[u8], &[u8]) -> Bytes + Send + Sync>;

/// One call of the local member.
#[derive(Clone)]
pub enum Operation {
    /// Nobody goes on before everybody has come.
    Barrier,
    /// The root's bytes go to everybody.
    Broadcast {
        /// Who has them.
        root: u32,
        /// They, on the root; ignored elsewhere.
        body: Bytes,
    },
    /// Each member gets its own part from the root.
    Scatter {
        /// Who has them.
        root: u32,
        /// One for each member, on the root; ignored elsewhere.
        parts: Vec<Bytes>,
    },
    /// The root gets everybody's bytes.
    Gather {
        /// Who gets them.
        root: u32,
        /// This member's.
        body: Bytes,
    },
    /// Everybody gets everybody's bytes.
    AllGather {
        /// This member's.
        body: Bytes,
    },
    /// The root gets the combination of everybody's bytes.
    Reduce {
        /// Who gets it.
        root: u32,
        /// This member's.
        body: Bytes,
        /// How to combine.
        combine: Combine,
    },
    /// Everybody gets the combination of everybody's bytes.
    AllReduce {
        /// This member's.
        body: Bytes,
        /// How to combine.
        combine: Combine,
    },
    /// Everybody gets the combination of the bytes of all members up to itself.
    Scan {
        /// This member's.
        body: Bytes,
        /// How to combine.
        combine: Combine,
    },
    /// Each member has a part for each member.
    AllToAll {
        /// One for each member.
        parts: Vec<Bytes>,
    },
    /// A member is dead as far as this one knows: what needs it fails. Not numbered, and without an event of its own.
    GiveUp {
        /// Which.
        rank: u32,
    },
}

impl Operation {
    fn kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Barrier => Kind::Barrier,
            Self::Broadcast { .. } => Kind::Broadcast,
            Self::Scatter { .. } => Kind::Scatter,
            Self::Gather { .. } => Kind::Gather,
            Self::AllGather { .. } => Kind::AllGather,
            Self::Reduce { .. } => Kind::Reduce,
            Self::AllReduce { .. } => Kind::AllReduce,
            Self::Scan { .. } => Kind::Scan,
            Self::AllToAll { .. } => Kind::AllToAll,
            Self::GiveUp { .. } => return None,
        })
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GiveUp { rank } => write!(f, "give up {rank}"),
            other => write!(f, "{:?}", other.kind()),
        }
    }
}

/// The end of an operation here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveEnd {
    /// Which operation of this member, counting from 0.
    pub number: u64,
    /// One item where the result is one, one for each member in the order of ranks where there are so many, none where
    /// this member gets nothing.
    pub result: Result<Vec<Bytes>, CollectiveError>,
}

/// Why an operation failed here; the members may differ in that, but none of them hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A member is gone.
    #[error("member {rank} is gone")]
    Gone {
        /// Which.
        rank: u32,
    },
    /// The others did not come within the time.
    #[error("not everybody came within {waited:?}")]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// A member calls another operation at this place.
    #[error("member {rank} calls another operation")]
    Mismatch {
        /// Which.
        rank: u32,
    },
    /// The arguments make no sense: a root that is no member, or not one part for each member.
    #[error("not the arguments of this operation")]
    Arguments,
}

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectiveConfig {
    /// After how long an operation is given up. Default 30 s.
    pub give_up_after: Duration,
    /// After how long a message without an acknowledgement is repeated. Default 200 ms.
    pub repeat_after: Duration,
}

impl Default for CollectiveConfig {
    fn default() -> Self {
        Self { give_up_after: Duration::from_secs(30), repeat_after: Duration::from_millis(200) }
    }
}

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

/// What a step of an operation came to.
enum Step {
    /// Something has not come yet.
    Wait,
    Done(Vec<Bytes>),
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

    /// Does the next step that can be done; `Wait` after one, or when there is none.
    fn step(&mut self, now: Time, operation: &Operation, out: &mut Outputs<Self>) -> Step {
        match operation {
            Operation::Broadcast { root, body } => self.down(now, *root, 0, vec![body.clone()], out),
            Operation::Scatter { root, parts } => self.scatter(now, *root, parts, out),
            Operation::Gather { root, body } => self.gather(now, *root, body, false, out),
            Operation::AllGather { body } => self.gather(now, 0, body, true, out),
            Operation::Barrier => match self.reduce(now, 0, &Bytes::new(), &nothing(), true, out) {
                Step::Done(_) => Step::Done(Vec::new()),
                Step::Wait => Step::Wait,
            },
            Operation::Reduce { root, body, combine } => self.reduce(now, *root, body, combine, false, out),
            Operation::AllReduce { body, combine } => self.reduce(now, 0, body, combine, true, out),
            Operation::Scan { body, combine } => self.scan(now, body, combine, out),
            Operation::AllToAll { parts } => self.exchange(now, parts, out),
            Operation::GiveUp { .. } => Step::Wait,
        }
    }

    /// Passes what the root has down the tree in the phase; done with it.
    fn down(&mut self, now: Time, root: u32, phase: u8, own: Vec<Bytes>, out: &mut Outputs<Self>) -> Step {
        let items = match parent(self.rank, root, self.size()) {
            None => own,
            Some(from) => match self.take(phase, from) {
                Some(items) => items,
                None => return Step::Wait,
            },
        };
        // The largest subtree first: it has the longest way.
        for (child, _) in children(self.rank, root, self.size()).into_iter().rev() {
            self.send(now, child, phase, items.clone(), out);
        }
        Step::Done(items)
    }

    /// Each subtree's parts go to its topmost member, in the order of the tree.
    fn scatter(&mut self, now: Time, root: u32, parts: &[Bytes], out: &mut Outputs<Self>) -> Step {
        let size = self.size();
        let items = match parent(self.rank, root, size) {
            None => (0..size).map(|at| parts[((at + root) % size) as usize].clone()).collect(),
            Some(from) => match self.take(0, from) {
                Some(items) => items,
                None => return Step::Wait,
            },
        };
        if items.len() != span(self.rank, root, size) as usize {
            return self.wrong(parent(self.rank, root, size).unwrap_or(self.rank), out);
        }
        for (child, offset) in children(self.rank, root, size).into_iter().rev() {
            let count = span(child, root, size) as usize;
            let own = items[offset as usize..offset as usize + count].to_vec();
            self.send(now, child, 0, own, out);
        }
        Step::Done(items[..1].to_vec())
    }

    /// Collects the subtree, child by child, and passes it up; with `is_for_all` the whole then goes down again.
    fn gather(
        &mut self,
        now: Time,
        root: u32,
        body: &Bytes,
        is_for_all: bool,
        out: &mut Outputs<Self>,
    ) -> Step {
        let size = self.size();
        let children = children(self.rank, root, size);
        if let Some((child, _)) = self.upward(&children) {
            if self.held_mut().is_empty() {
                self.held_mut().push(body.clone());
            }
            let Some(items) = self.take(0, child) else { return Step::Wait };
            if items.len() != span(child, root, size) as usize {
                return self.wrong(child, out);
            }
            self.held_mut().extend(items);
            return self.stepped();
        }
        if self.held_mut().is_empty() {
            self.held_mut().push(body.clone());
        }
        let above = parent(self.rank, root, size);
        if self.steps() == children.len() {
            self.stepped();
            if let Some(above) = above {
                let held = std::mem::take(self.held_mut());
                self.send(now, above, 0, held, out);
            }
        }
        let mut all = std::mem::take(self.held_mut());
        if above.is_none() {
            // From the order of the tree to that of the ranks.
            all.rotate_right(root as usize);
        }
        if !is_for_all {
            return Step::Done(if above.is_none() { all } else { Vec::new() });
        }
        let step = self.down(now, 0, 1, all.clone(), out);
        if matches!(step, Step::Wait) {
            *self.held_mut() = all;
        }
        step
    }

    /// Combines the subtree and passes it up to rank 0, so that the order of the ranks is kept; then on to the root.
    fn reduce(
        &mut self,
        now: Time,
        root: u32,
        body: &Bytes,
        combine: &Combine,
        is_for_all: bool,
        out: &mut Outputs<Self>,
    ) -> Step {
        let children = children(self.rank, 0, self.size());
        if self.held_mut().is_empty() && self.steps() == 0 {
            self.held_mut().push(body.clone());
        }
        if let Some((child, _)) = self.upward(&children) {
            let Some(items) = self.take(0, child) else { return Step::Wait };
            let [item] = &items[..] else { return self.wrong(child, out) };
            if let Some(own) = self.held_mut().first_mut() {
                *own = combine(own, item);
            }
            return self.stepped();
        }
        if self.steps() == children.len() {
            self.stepped();
            let held = std::mem::take(self.held_mut());
            match parent(self.rank, 0, self.size()) {
                Some(above) => self.send(now, above, 0, held, out),
                None if !is_for_all && root != 0 => self.send(now, root, 1, held, out),
                None => *self.held_mut() = held,
            }
        }
        if is_for_all {
            let held = self.held_mut().clone();
            return self.down(now, 0, 1, held, out);
        }
        if self.rank != root {
            return Step::Done(Vec::new());
        }
        if root == 0 {
            return Step::Done(std::mem::take(self.held_mut()));
        }
        self.take(1, 0).map_or(Step::Wait, Step::Done)
    }

    /// In each round a member tells the one twice as far away what it has, and puts what it hears before that.
    fn scan(&mut self, now: Time, body: &Bytes, combine: &Combine, out: &mut Outputs<Self>) -> Step {
        if self.steps() == 0 {
            self.held_mut().push(body.clone());
        }
        // Even steps tell, odd ones hear.
        let (round, is_hearing) = (self.steps() / 2, self.steps() % 2 == 1);
        let Some(reach) = 1_u32.checked_shl(round as u32).filter(|reach| *reach < self.size()) else {
            return Step::Done(std::mem::take(self.held_mut()));
        };
        if !is_hearing {
            let own = self.held_mut().clone();
            if let Some(to) = self.rank.checked_add(reach).filter(|to| *to < self.size()) {
                self.send(now, to, round as u8, own, out);
            }
            return self.stepped();
        }
        if let Some(from) = self.rank.checked_sub(reach) {
            let Some(items) = self.take(round as u8, from) else { return Step::Wait };
            let [item] = &items[..] else { return self.wrong(from, out) };
            if let Some(own) = self.held_mut().first_mut() {
                *own = combine(item, own);
            }
        }
        self.stepped()
    }

    fn exchange(&mut self, now: Time, parts: &[Bytes], out: &mut Outputs<Self>) -> Step {
        let others: Vec<u32> = self.others().collect();
        if self.steps() == 0 {
            for to in &others {
                self.send(now, *to, 0, vec![parts[*to as usize].clone()], out);
            }
            self.stepped();
        }
        if others.iter().any(|from| !self.heard.contains_key(&(self.next, 0, *from))) {
            return Step::Wait;
        }
        let mut all = Vec::with_capacity(parts.len());
        for from in 0..self.size() {
            let item = if from == self.rank {
                parts.get(from as usize).cloned()
            } else {
                self.take(0, from).and_then(|items| items.into_iter().next())
            };
            let Some(item) = item else { return self.wrong(from, out) };
            all.push(item);
        }
        Step::Done(all)
    }

    /// The child whose turn it is to be heard.
    fn upward(&self, children: &[(u32, u32)]) -> Option<(u32, u32)> {
        children.get(self.steps()).copied()
    }

    fn steps(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.step.into())
    }

    fn stepped(&mut self) -> Step {
        if let Some(running) = &mut self.running {
            running.step = running.step.saturating_add(1);
        }
        Step::Wait
    }

    fn held_mut(&mut self) -> &mut Vec<Bytes> {
        // Without an operation nothing is held, and nothing of it is looked at.
        &mut self.running.get_or_insert_with(Running::idle).held
    }

    /// A member sends what does not fit the operation.
    fn wrong(&mut self, from: u32, out: &mut Outputs<Self>) -> Step {
        self.fail(CollectiveError::Mismatch { rank: from }, out);
        Step::Wait
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

impl Running {
    fn idle() -> Self {
        Self {
            operation: Operation::Barrier,
            kind: Kind::Barrier,
            give_up_at: Time::ZERO,
            step: 0,
            held: Vec::new(),
        }
    }
}

fn nothing() -> Combine {
    Arc::new(|_, _| Bytes::new())
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
