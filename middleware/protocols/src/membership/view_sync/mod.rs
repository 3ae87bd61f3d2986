//! View changes: survivors agree on the next view and on what belongs to the one that ends.
//!
//! Guarantee   all members see the same sequence of views (*primary partition*: a view needs a quorum of the one
//!             before it). Members that go from one view to the next together have delivered the same messages in
//!             it (*virtual synchrony*). Safe under any loss, delay, crash and false suspicion; live while a quorum
//!             of the view is up and the detector makes no mistakes for long enough.
//! Method      each view change is one consensus among the members of the ending view, on a [`Proposal`]: the next
//!             members and the *cut*, how many messages of each sender belong to the ending view.
//!             *Prepare*: a leader, the longest-standing member that seems alive, asks with a ballot; members freeze
//!             and promise, and tell what they received and what they accepted before. *Accept*: the leader proposes
//!             what an earlier ballot may have chosen, or else the union of what the promisers received; a member
//!             accepts only when it holds every message of the cut. *Install*: a quorum has accepted; whoever
//!             learns it delivers the rest of the cut and goes on.
//!             Whoever shows up with an older view is told the latest one, or that it is out.
//! Source      single-decree consensus: Lamport 1998; views and flush: Birman & Joseph 1987; the joint choice of
//!             members and cut follows virtually synchronous Paxos, Birman, Malkhi & van Renesse 2010.
//! Limits      one joiner is admitted for each member that has the state, so that the ones with the state are never
//!             outvoted by more joiners at once. A member two views behind cannot catch up and is expelled.

mod change;
mod message;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use message::{Ballot, Message, Proposal};

use crate::machine::{Lane, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Down, Ended, Flow, Layer, Up, View, ViewId};
use crate::time::Time;
use change::{Leading, Promise, Step};

/// The times of view changes.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Time between repetitions of unanswered messages. Default 100 ms.
    pub retry: Duration,
    /// How long a leader waits for a member that seems alive before it goes on without it, and a member for a
    /// leader before it takes over. Default 500 ms. Too short expels slow members.
    pub patience: Duration,
    /// How long a joiner that has fallen silent is remembered, and a suspicion that another member reported.
    /// Default 2 s.
    pub memory: Duration,
    /// Joiners remembered at most. Default 64; more are not heard until there is room.
    pub joiners_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retry: Duration::from_millis(100),
            patience: Duration::from_millis(500),
            memory: Duration::from_secs(2),
            joiners_max: 64,
        }
    }
}

/// View changes as a layer.
pub struct ViewSync {
    me: ProcessId,
    config: Config,
    plant: Plant,
    phase: Phase,
    synced: bool,
    leaving: bool,
    suspects: BTreeSet<ProcessId>,
    /// Suspicions that other members reported, until when.
    reported: BTreeMap<ProcessId, Time>,
    joiners: BTreeMap<ProcessId, Time>,
    leavers: BTreeSet<ProcessId>,
    quorum_lost: bool,
    /// Messages of this process to itself: a leader is also a member.
    to_self: Vec<Message>,
}

enum Phase {
    Idle,
    Joining { contacts: Vec<ProcessId>, retry_at: Time },
    Member(Box<Member>),
    Ended,
}

struct Member {
    view: View,
    /// How this view came to be, for those who have not heard.
    origin: Option<Proposal>,
    /// What was received when this member froze.
    frozen: Option<Vec<u64>>,
    promised: Option<Ballot>,
    /// When to take over from a leader that does not get on.
    takeover_at: Option<Time>,
    /// To be accepted once the cut is filled.
    accepting: Option<(Ballot, Proposal)>,
    accepted: Option<(Ballot, Proposal)>,
    /// To be installed once the cut is filled.
    decided: Option<Proposal>,
    leading: Option<Leading>,
    round_seen: u64,
    /// When a leaver or the reporter of a suspicion speaks again.
    remind_at: Time,
    /// Members that came without the state and are known to have it by now.
    caught_up: BTreeSet<ProcessId>,
}

impl Member {
    fn new(now: Time, config: &Config, view: View, origin: Option<Proposal>) -> Self {
        Self {
            view,
            origin,
            frozen: None,
            promised: None,
            takeover_at: None,
            accepting: None,
            accepted: None,
            decided: None,
            leading: None,
            round_seen: 0,
            remind_at: now + config.retry,
            caught_up: BTreeSet::new(),
        }
    }

    fn quorum(&self, plant: Plant, has: impl Fn(ProcessId) -> bool) -> bool {
        let holds = |rank: usize| has(self.view.members[rank]);
        if plant.has(Planted::ViewQuorumHalf) {
            let count = (0..self.view.members.len()).filter(|&rank| holds(rank)).count();
            return count * 2 >= self.view.members.len();
        }
        self.view.is_quorum(holds)
    }
}

impl ViewSync {
    /// The layer of process `me`, idle until it creates or joins a group.
    pub fn new(me: ProcessId, config: Config, plant: Plant) -> Self {
        Self {
            me,
            config,
            plant,
            phase: Phase::Idle,
            synced: false,
            leaving: false,
            suspects: BTreeSet::new(),
            reported: BTreeMap::new(),
            joiners: BTreeMap::new(),
            leavers: BTreeSet::new(),
            quorum_lost: false,
            to_self: Vec::new(),
        }
    }

    fn member(&mut self) -> Option<&mut Member> {
        match &mut self.phase {
            Phase::Member(member) => Some(member),
            _ => None,
        }
    }

    fn is_suspect(&self, process: ProcessId) -> bool {
        self.suspects.contains(&process) || self.reported.contains_key(&process)
    }

    /// The member that should lead the next change: the longest-standing one that seems alive and stays.
    fn candidate(&self) -> Option<ProcessId> {
        let Phase::Member(member) = &self.phase else { return None };
        let leaves =
            |process: ProcessId| self.leavers.contains(&process) || (self.leaving && process == self.me);
        let alive = || member.view.members.iter().copied().filter(|process| !self.is_suspect(*process));
        alive().find(|process| !leaves(*process)).or_else(|| alive().next())
    }

    /// True when the current view should not stay as it is.
    fn wants_change(&self) -> bool {
        let Phase::Member(member) = &self.phase else { return false };
        let leaves =
            |process: &ProcessId| self.leavers.contains(process) || (self.leaving && *process == self.me);
        let flawed = member.view.members.iter().any(|process| self.is_suspect(*process) || leaves(process));
        let flags = member.view.members.iter().zip(member.view.synced.iter());
        let synced = flags.map(|(process, synced)| *synced || member.caught_up.contains(process));
        let admits = !self.joiners.is_empty() && self.joiners_admitted(synced) > 0;
        flawed || admits || member.frozen.is_some()
    }

    /// How many joiners may enter beside members of whom these have the state.
    fn joiners_admitted(&self, synced: impl Iterator<Item = bool>) -> usize {
        let (with, without) = synced.fold((0, 0), |(w, o), has| if has { (w + 1, o) } else { (w, o + 1) });
        usize::saturating_sub(with, without)
    }

    fn send(&mut self, to: ProcessId, message: Message, flow: &mut Flow<Message>) {
        if to == self.me {
            self.to_self.push(message);
        } else {
            flow.send(to, Lane::Control, message);
        }
    }

    fn send_members(&mut self, message: &Message, flow: &mut Flow<Message>) {
        let Phase::Member(member) = &self.phase else { return };
        flow.multicast(member.view.others(self.me), Lane::Control, message.clone());
        self.to_self.push(message.clone());
    }

    /// After every input: hear oneself, start what is due, notice the loss of the quorum.
    fn steer(&mut self, now: Time, flow: &mut Flow<Message>) {
        self.lead_if_due(now, flow);
        while let Some(message) = self.to_self.pop() {
            self.on_message(now, self.me, message, flow);
        }
        self.watch_quorum(flow);
    }

    fn watch_quorum(&mut self, flow: &mut Flow<Message>) {
        let Phase::Member(member) = &self.phase else { return };
        let lost = !member.quorum(Plant::NONE, |process| !self.suspects.contains(&process));
        if lost != self.quorum_lost {
            self.quorum_lost = lost;
            flow.up(if lost { Up::QuorumLost } else { Up::QuorumRegained });
        }
    }

    /// True when `view` is the current one. Otherwise helps whoever is behind.
    fn is_current(&mut self, from: ProcessId, view: ViewId, flow: &mut Flow<Message>) -> bool {
        let Phase::Member(member) = &self.phase else { return false };
        let mine = member.view.id;
        if view == mine {
            return member.view.contains(from);
        }
        if view.is_before(mine) {
            self.help(from, view, flow);
        } else if mine.is_before(view) {
            self.send(from, Message::Behind { view: mine }, flow);
        }
        false
    }

    /// Tells a process that is still in an older view how it went on.
    fn help(&mut self, from: ProcessId, view: ViewId, flow: &mut Flow<Message>) {
        let Phase::Member(member) = &self.phase else { return };
        let message = match &member.origin {
            Some(proposal) if view.next() == proposal.view.id => {
                Message::Install { proposal: proposal.clone() }
            }
            _ => Message::Expelled { view: member.view.id },
        };
        self.send(from, message, flow);
    }

    fn on_message(&mut self, now: Time, from: ProcessId, message: Message, flow: &mut Flow<Message>) {
        match message {
            Message::Join { joiner } => self.on_join(now, from, joiner, flow),
            Message::Leave { view } => {
                if self.is_current(from, view, flow) {
                    self.leavers.insert(from);
                }
            }
            Message::Suspect { view, member } => {
                let heard = self.is_current(from, view, flow) && !self.is_suspect(from) && member != self.me;
                if heard {
                    self.reported.insert(member, now + self.config.memory);
                }
            }
            Message::Prepare { view, ballot } => self.on_prepare(now, from, view, ballot, flow),
            Message::Promise { view, ballot, accepted, received, synced, leaving } => {
                if self.is_current(from, view, flow) {
                    self.on_promise(from, ballot, Promise { accepted, received, synced, leaving });
                    self.propose_if_ready(now, flow);
                }
            }
            Message::Accept { view, ballot, proposal } => {
                self.on_accept(now, from, view, ballot, proposal, flow)
            }
            Message::Accepted { view, ballot } => self.on_accepted(now, from, view, ballot, flow),
            Message::Refuse { view, promised } => self.on_refuse(now, from, view, promised, flow),
            Message::Install { proposal } => self.on_install(proposal, flow),
            Message::Behind { view } => {
                let Phase::Member(member) = &self.phase else { return };
                if view.is_before(member.view.id) {
                    self.help(from, view, flow);
                }
            }
            Message::Expelled { view } => {
                let Phase::Member(member) = &self.phase else { return };
                if member.view.id.is_before(view) {
                    let why = if self.leaving { Ended::Left } else { Ended::Expelled };
                    self.end(why, flow);
                }
            }
        }
    }

    fn on_join(&mut self, now: Time, from: ProcessId, joiner: ProcessId, flow: &mut Flow<Message>) {
        let Phase::Member(member) = &self.phase else { return };
        if member.view.contains(joiner) {
            if let Some(proposal) = member.origin.clone() {
                self.send(joiner, Message::Install { proposal }, flow);
            }
            return;
        }
        // A newer life of a node proves that the older one is over.
        let former: Vec<_> = member.view.members.iter().copied().filter(|m| is_former(*m, joiner)).collect();
        self.suspects.extend(former);
        self.joiners.retain(|other, _| other.node != joiner.node || other.incarnation >= joiner.incarnation);
        if self.joiners.len() < self.config.joiners_max || self.joiners.contains_key(&joiner) {
            self.joiners.insert(joiner, now + self.config.memory);
        }
        if let Some(candidate) = self.candidate().filter(|candidate| from == joiner && *candidate != self.me)
        {
            self.send(candidate, Message::Join { joiner }, flow);
        }
    }

    fn on_view(&mut self, now: Time, view: View, flow: &mut Flow<Message>) {
        let origin = self.member().and_then(|member| member.decided.take());
        self.joiners.retain(|joiner, _| !view.contains(*joiner));
        self.leavers.retain(|leaver| view.contains(*leaver));
        // The detector starts afresh with each view, too: who is in it has just answered.
        self.suspects.clear();
        self.reported.clear();
        self.phase = Phase::Member(Box::new(Member::new(now, &self.config, view.clone(), origin)));
        flow.up(Up::View(view));
    }

    fn end(&mut self, why: Ended, flow: &mut Flow<Message>) {
        self.phase = Phase::Ended;
        flow.up(Up::Ended(why));
    }

    fn on_create(&mut self, now: Time, group: u64, flow: &mut Flow<Message>) {
        if matches!(self.phase, Phase::Idle) {
            self.synced = true;
            let id = ViewId { group, number: 1 };
            let view = View { id, members: [self.me].into(), synced: [true].into() };
            self.phase = Phase::Member(Box::new(Member::new(now, &self.config, view.clone(), None)));
            flow.down(Down::Install { view, cut: None });
        }
    }

    fn on_leave(&mut self, now: Time, flow: &mut Flow<Message>) {
        match &mut self.phase {
            Phase::Member(member) if member.view.members.len() > 1 => {
                self.leaving = true;
                member.remind_at = now;
            }
            Phase::Ended => {}
            // Alone, or not in yet: nobody has to agree.
            _ => self.end(Ended::Left, flow),
        }
    }

    /// Tells the one that leads, again and again, what it may have missed.
    fn remind(&mut self, now: Time, flow: &mut Flow<Message>) {
        let retry = self.config.retry;
        let leader = self.candidate().filter(|candidate| *candidate != self.me);
        let suspects: Vec<_> = self.suspects.iter().copied().collect();
        let leaving = self.leaving;
        let Some(member) = self.member() else { return };
        if member.remind_at > now {
            return;
        }
        member.remind_at = now + retry;
        let view = member.view.id;
        let Some(leader) = leader else { return };
        for member in suspects {
            self.send(leader, Message::Suspect { view, member }, flow);
        }
        if leaving {
            self.send(leader, Message::Leave { view }, flow);
        }
    }

    fn needs_reminding(&self) -> bool {
        (self.leaving || !self.suspects.is_empty()) && self.candidate().is_some_and(|who| who != self.me)
    }
}

impl Layer for ViewSync {
    type Message = Message;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Message>) {
        match request {
            Down::Create { group } => self.on_create(now, group, flow),
            // Asked again, a joiner goes on with the new contacts.
            Down::Join { contacts } => {
                if matches!(self.phase, Phase::Idle | Phase::Joining { .. }) {
                    self.phase = Phase::Joining { contacts, retry_at: now };
                }
            }
            Down::Leave => self.on_leave(now, flow),
            Down::Synced(process) => {
                self.synced |= process == self.me;
                if let Some(member) = self.member() {
                    member.caught_up.insert(process);
                }
            }
            other => flow.down(other),
        }
        self.steer(now, flow);
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Message>) {
        match event {
            Up::Suspect(process) => {
                self.suspects.insert(process);
            }
            Up::Trust(process) => {
                self.suspects.remove(&process);
            }
            Up::PeerView { peer, view } => {
                self.is_current(peer, view, flow);
            }
            Up::Frozen { received } => {
                if let Some(member) = self.member() {
                    member.frozen = Some(received);
                }
                self.send_promise(flow);
            }
            Up::Filled { cut } => self.on_filled(&cut, flow),
            Up::View(view) => self.on_view(now, view, flow),
            // Messages are the bulk of what passes here, and change nothing about views.
            Up::Deliver { .. } | Up::Safe(_) => return flow.up(event),
            other => flow.up(other),
        }
        self.steer(now, flow);
    }

    fn receive(&mut self, now: Time, from: ProcessId, message: Message, flow: &mut Flow<Message>) {
        self.on_message(now, from, message, flow);
        self.steer(now, flow);
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Message>) {
        self.joiners.retain(|_, until| *until > now);
        self.reported.retain(|_, until| *until > now);
        if let Phase::Joining { contacts, retry_at } = &mut self.phase
            && *retry_at <= now
        {
            *retry_at = now + self.config.retry;
            let joiner = self.me;
            for contact in contacts.iter().filter(|contact| **contact != joiner) {
                flow.send(*contact, Lane::Control, Message::Join { joiner });
            }
        }
        self.repeat_attempt(now, flow);
        self.remind(now, flow);
        if let Some(member) = self.member() {
            member.takeover_at.take_if(|at| *at <= now);
        }
        self.steer(now, flow);
    }

    fn deadline(&self) -> Option<Time> {
        let expiries = self.joiners.values().chain(self.reported.values()).copied().min();
        let own = match &self.phase {
            Phase::Idle | Phase::Ended => return None,
            Phase::Joining { retry_at, .. } => Some(*retry_at),
            Phase::Member(member) => {
                let leading = member.leading.as_ref().map(|leading| match leading.step {
                    // Impatience while preparing only widens what the next promise may complete.
                    Step::Preparing { .. } => leading.resend_at,
                    Step::Accepting { .. } => leading.resend_at.min(leading.patience_until),
                });
                let takeover =
                    member.takeover_at.filter(|_| member.leading.is_none() && member.decided.is_none());
                let takeover = takeover.filter(|_| self.candidate() == Some(self.me));
                let reminder = self.needs_reminding().then_some(member.remind_at);
                leading.into_iter().chain(takeover).chain(reminder).min()
            }
        };
        own.into_iter().chain(expiries).min()
    }

    fn check(&self) -> Result<(), Violation> {
        let Phase::Member(member) = &self.phase else { return Ok(()) };
        let ahead = member.accepted.as_ref().is_some_and(|(ballot, _)| Some(*ballot) > member.promised);
        if ahead && !self.plant.has(Planted::ViewAcceptsOldBallot) {
            return Err(Violation("accepted a ballot beyond the promise".into()));
        }
        Ok(())
    }
}

fn is_former(member: ProcessId, joiner: ProcessId) -> bool {
    member.node == joiner.node && member.incarnation < joiner.incarnation
}
