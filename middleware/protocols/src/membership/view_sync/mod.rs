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
//!             Who leads and who is left out follows from who hears whom, which members tell all others.
//! Source      single-decree consensus: Lamport 1998; views and flush: Birman & Joseph 1987; the joint choice of
//!             members and cut follows virtually synchronous Paxos, Birman, Malkhi & van Renesse 2010.
//! Needs       processes that crash, and do not lie: whoever reaches the group says who it is, and is believed when it tells of
//!             a later view. Also a joiner may be the only one left that can, so membership is no test of it.
//!             A configured quorum, which all views carry, is asked for besides the majority: fewer members than that
//!             accept nothing and are not left over, but for those that left by themselves.
//! Limits      one joiner is admitted for each member that has the state, so that the ones with the state are never
//!             outvoted by more joiners at once; the last one with the state leaves only when another has it. A member
//!             two views behind cannot catch up and is expelled.

mod change;
mod message;
mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use message::{Ballot, Message, Proposal};

use super::heartbeat;
use crate::machine::{Lane, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Down, Ended, Flow, Impossible, Layer, MEMBERS_MAX, Offer, Up, View, ViewId};
use crate::time::Time;
use change::{Leading, Promise, Step};
use reach::Reports;

/// The limits of view changes. Their times follow from the failure detector's, see [`ViewSync::new`].
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Joiners remembered at most. Default 64; more are not heard until there is room.
    pub joiners_max: usize,
    /// Members of a view at most. Default and upper limit [`MEMBERS_MAX`]; a joiner beyond it is told so.
    pub members_max: usize,
    /// The configured quorum, which counts where this process founds the group: see [`View::quorum_min`]. Default 1.
    pub quorum_min: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self { joiners_max: 64, members_max: MEMBERS_MAX, quorum_min: 1 }
    }
}

/// The times of view changes, all from the detector's: a leader that is less patient than the detector would go on
/// without members that nobody suspects.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between repetitions of unanswered messages.
    retry: Duration,
    /// How long a leader waits for a member that seems alive before it goes on without it; three times as long waits a
    /// member for a leader before it takes over.
    patience: Duration,
    /// How long a joiner that has fallen silent is remembered, and what a member reported.
    memory: Duration,
    /// How long a suspicion that not all share waits for the next: within a beat or two a deaf member suspects everyone
    /// that it does not hear, and only then can it be told from those.
    settle: Duration,
}

impl Pace {
    fn of(detector: &heartbeat::Config) -> Self {
        Self {
            retry: detector.interval.clamp(RETRY_MIN, RETRY_MAX),
            patience: detector.timeout,
            memory: detector.timeout * 2,
            settle: detector.interval * 2,
        }
    }
}

/// View changes as a layer.
pub struct ViewSync {
    me: ProcessId,
    config: Config,
    pace: Pace,
    plant: Plant,
    phase: Phase,
    synced: bool,
    leaving: bool,
    /// Wants to leave as soon as its own messages are safe, or at that time at the latest.
    leave_by: Option<Time>,
    /// Whom I do not hear.
    suspects: BTreeSet<ProcessId>,
    /// Whom the other members do not hear.
    reports: Reports,
    joiners: BTreeMap<ProcessId, Time>,
    leavers: BTreeSet<ProcessId>,
    /// Those that the last view change has left out although they did not wish to go, and who have not spoken since.
    given_up: BTreeSet<ProcessId>,
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
    /// The leader that was heard of last, and when to take over if it does not get on.
    yields: Option<(ProcessId, Time)>,
    /// Since when somebody misses somebody.
    flawed_since: Option<Time>,
    /// No own attempt before: two leaders that refuse each other must not do so at the speed of the network.
    lead_at: Time,
    /// To be accepted once the cut is filled.
    accepting: Option<(Ballot, Proposal)>,
    accepted: Option<(Ballot, Proposal)>,
    /// To be installed once the cut is filled.
    decided: Option<Proposal>,
    leading: Option<Leading>,
    round_seen: u64,
    /// When a leaver or whoever suspects somebody speaks again.
    report_at: Time,
    /// The last report had something to say, so one that has nothing must follow it.
    reported: bool,
    /// Members that came without the state and are known to have it by now.
    caught_up: BTreeSet<ProcessId>,
}

impl Member {
    fn new(view: View, origin: Option<Proposal>) -> Self {
        Self {
            view,
            origin,
            frozen: None,
            promised: None,
            yields: None,
            flawed_since: None,
            lead_at: Time::ZERO,
            accepting: None,
            accepted: None,
            decided: None,
            leading: None,
            round_seen: 0,
            report_at: Time::ZERO,
            reported: false,
            caught_up: BTreeSet::new(),
        }
    }

    fn quorum(&self, plant: Plant, has: impl Fn(ProcessId) -> bool) -> bool {
        let holds = |rank: usize| has(self.view.members[rank]);
        if plant.has(Planted::ViewQuorumHalf) {
            let count = (0..self.view.members.len()).filter(|&rank| holds(rank)).count();
            return count * 2 >= self.view.members.len();
        }
        if plant.has(Planted::ViewIgnoresQuorumMin) {
            return self.view.is_majority(holds);
        }
        self.view.is_quorum(holds)
    }
}

impl ViewSync {
    /// The layer of process `me`, idle until it creates or joins a group. A leader has patience with a member that
    /// seems alive for as long as `detector` has with a silent one.
    pub fn new(me: ProcessId, config: Config, detector: &heartbeat::Config, plant: Plant) -> Self {
        Self {
            me,
            config,
            pace: Pace::of(detector),
            plant,
            phase: Phase::Idle,
            synced: false,
            leaving: false,
            leave_by: None,
            suspects: BTreeSet::new(),
            reports: Reports::default(),
            joiners: BTreeMap::new(),
            leavers: BTreeSet::new(),
            given_up: BTreeSet::new(),
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

    /// The members to go on with, as far as is known: all, without those that miss, or are missed by, too many others,
    /// and without those that I do not hear.
    fn fit(&self) -> Vec<ProcessId> {
        let Phase::Member(member) = &self.phase else { return Vec::new() };
        if self.suspects.is_empty() && self.reports.is_empty() {
            return member.view.members.to_vec();
        }
        let own = self.suspects.iter().map(|suspect| (self.me, *suspect));
        let mut fit = reach::mutual(&member.view.members, own.chain(self.reports.edges()));
        fit.retain(|process| !self.suspects.contains(process));
        // Half of the members may be dead: the others, who all miss them, are as many and must not give up.
        if fit.is_empty() {
            let heard = member.view.members.iter().filter(|process| !self.suspects.contains(process));
            fit.extend(heard);
        }
        fit
    }

    /// When enough is known of who hears whom; `Time::ZERO` when nobody misses anybody, or all the same ones.
    fn settled_at(&self) -> Time {
        let Phase::Member(member) = &self.phase else { return Time::ZERO };
        let Some(since) = member.flawed_since else { return Time::ZERO };
        let own = self.suspects.iter().map(|suspect| (self.me, *suspect));
        let edges: BTreeSet<_> = own.chain(self.reports.edges()).collect();
        let missed: BTreeSet<_> = edges.iter().map(|(_, missed)| *missed).collect();
        let mut others = member.view.members.iter().filter(|process| !missed.contains(process));
        let agreed = others.all(|process| missed.iter().all(|missed| edges.contains(&(*process, *missed))));
        if agreed { Time::ZERO } else { since + self.pace.settle }
    }

    fn leaves(&self, process: ProcessId) -> bool {
        self.leavers.contains(&process) || (self.leaving && process == self.me)
    }

    /// The member that should lead the next change: the longest-standing one to go on with that stays.
    fn candidate(&self) -> Option<ProcessId> {
        let fit = self.fit();
        let stays = fit.iter().copied().find(|process| !self.leaves(*process));
        stays.or_else(|| fit.first().copied())
    }

    /// True when the current view should not stay as it is.
    fn wants_change(&self) -> bool {
        let Phase::Member(member) = &self.phase else { return false };
        let flags = member.view.members.iter().copied().zip(member.view.synced.iter());
        let all: Vec<_> = flags.map(|(p, synced)| (p, *synced || member.caught_up.contains(&p))).collect();
        let (leave, stay): (Vec<_>, Vec<_>) = all.iter().partition(|(process, _)| self.leaves(*process));
        // The last ones with the state wait until somebody who stays has it.
        let lets_go = !leave.is_empty() && (stay.is_empty() || stay.iter().any(|(_, synced)| *synced));
        let flawed = !self.suspects.is_empty() || !self.reports.is_empty();
        let synced = all.iter().map(|(_, synced)| *synced);
        let admits = !self.joiners.is_empty() && self.joiners_admitted(synced) > 0;
        lets_go || flawed || admits || member.frozen.is_some()
    }

    /// How many joiners may enter beside members of whom these have the state.
    fn joiners_admitted(&self, synced: impl Iterator<Item = bool>) -> usize {
        let (with, without) = synced.fold((0, 0), |(w, o), has| if has { (w + 1, o) } else { (w, o + 1) });
        let room = self.config.members_max.min(MEMBERS_MAX).saturating_sub(with + without);
        usize::saturating_sub(with, without).min(room)
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

    /// After every input: what is due is done, and what this process says to itself is heard.
    fn steer(&mut self, now: Time, flow: &mut Flow<Message>) {
        let flawed = !self.suspects.is_empty() || !self.reports.is_empty();
        if let Some(member) = self.member() {
            member.flawed_since = member.flawed_since.or(Some(now)).filter(|_| flawed);
        }
        loop {
            if self.lead_due_at().is_some_and(|at| at <= now) {
                self.lead(now, flow);
            }
            self.propose_if_ready(now, flow);
            self.decide_if_ready(now, flow);
            let Some(message) = self.to_self.pop() else { break };
            self.on_message(now, self.me, message, flow);
        }
        self.report(now, flow);
        self.watch_quorum(flow);
    }

    /// Tells all others, again and again, what they must know: any of them may be the one that leads.
    fn report(&mut self, now: Time, flow: &mut Flow<Message>) {
        let (me, leaving, synced) = (self.me, self.leaving, self.synced);
        let has_news = self.has_news();
        // That one has the state is of use to the next joiner only, and can wait for it.
        let is_urgent = leaving || !self.suspects.is_empty();
        let pause = if is_urgent { self.pace.retry } else { self.pace.patience };
        let suspects = self.suspects.clone();
        let Some(member) = self.member() else { return };
        if member.report_at > now || !(has_news || member.reported) {
            return;
        }
        (member.report_at, member.reported) = (now + pause, has_news);
        let report = Message::Report { view: member.view.id, suspects, leaving, synced };
        flow.multicast(member.view.others(me), Lane::Control, report);
    }

    fn has_news(&self) -> bool {
        let Phase::Member(member) = &self.phase else { return false };
        let rank = member.view.rank(self.me);
        let is_late = self.synced && rank.is_some_and(|rank| !member.view.synced[rank]);
        self.leaving || !self.suspects.is_empty() || is_late
    }

    /// Something has changed that the others should hear of at once.
    fn report_soon(&mut self) {
        if let Some(member) = self.member() {
            member.report_at = Time::ZERO;
        }
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
        if self.given_up.remove(&from) {
            // It lives: the suspicion was false, and it is too late to take it back.
            flow.up(Up::Trust(from));
        }
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
            Message::Report { view, suspects, leaving, synced } => {
                if self.is_current(from, view, flow) {
                    self.on_report(now, from, suspects, leaving);
                    if let Some(member) = self.member().filter(|_| synced) {
                        member.caught_up.insert(from);
                    }
                }
            }
            Message::Prepare { view, ballot } => self.on_prepare(now, from, view, ballot, flow),
            Message::Promise { view, ballot, accepted, received, synced, leaving } => {
                if self.is_current(from, view, flow) {
                    self.on_promise(from, ballot, Promise { accepted, received, synced, leaving });
                }
            }
            Message::Accept { view, ballot, proposal } => {
                self.on_accept(now, from, view, ballot, proposal, flow)
            }
            Message::Accepted { view, ballot } => self.on_accepted(from, view, ballot, flow),
            Message::Refuse { view, promised } => self.on_refuse(now, from, view, promised, flow),
            Message::Install { proposal } => self.on_install(proposal, flow),
            Message::Full => {
                let Phase::Joining { contacts, .. } = &self.phase else { return };
                let asked =
                    |contact: &ProcessId| *contact == from || *contact == ProcessId::any_life(from.node);
                if contacts.iter().any(asked) {
                    self.end(Ended::Full, flow);
                }
            }
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

    fn on_report(&mut self, now: Time, from: ProcessId, suspects: BTreeSet<ProcessId>, leaving: bool) {
        let Phase::Member(member) = &self.phase else { return };
        let suspects = suspects.into_iter().filter(|suspect| member.view.contains(*suspect)).collect();
        self.reports.insert(from, suspects, now + self.pace.memory);
        if leaving {
            self.leavers.insert(from);
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
        if from != joiner && !member.view.contains(from) {
            return; // only members pass on who wants to join
        }
        // A newer life of a node proves that the older one is over.
        let former: Vec<_> = member.view.members.iter().copied().filter(|m| is_former(*m, joiner)).collect();
        let is_full = member.view.members.len() >= self.config.members_max;
        // Whoever only comes back, or comes while another goes, waits for the place.
        if is_full && former.is_empty() && from == joiner && !self.wants_change() {
            return self.send(joiner, Message::Full, flow);
        }
        let known = self.suspects.len();
        self.suspects.extend(former);
        if self.suspects.len() > known {
            self.report_soon();
        }
        self.joiners.retain(|other, _| other.node != joiner.node || other.incarnation >= joiner.incarnation);
        if self.joiners.len() < self.config.joiners_max || self.joiners.contains_key(&joiner) {
            self.joiners.insert(joiner, now + self.pace.memory);
        }
        if let Some(candidate) = self.candidate().filter(|candidate| from == joiner && *candidate != self.me)
        {
            self.send(candidate, Message::Join { joiner }, flow);
        }
    }

    fn on_view(&mut self, view: View, flow: &mut Flow<Message>) {
        let origin = self.member().and_then(|member| member.decided.take());
        self.joiners.retain(|joiner, _| !view.contains(*joiner));
        let before: Vec<_> = self.member().map_or_else(Vec::new, |member| member.view.members.to_vec());
        let is_given_up = |process: &ProcessId| !view.contains(*process) && !self.leavers.contains(process);
        self.given_up = before.into_iter().filter(is_given_up).collect();
        self.leavers.retain(|leaver| view.contains(*leaver));
        // The detector starts afresh with each view, too: who is in it has just answered.
        self.suspects.clear();
        self.reports.clear();
        let mut member = Member::new(view.clone(), origin);
        // The state may have come between the promise and the view, which then says that it has not.
        member.caught_up.extend(self.synced.then_some(self.me));
        self.phase = Phase::Member(Box::new(member));
        flow.up(Up::View(view));
    }

    fn end(&mut self, why: Ended, flow: &mut Flow<Message>) {
        self.phase = Phase::Ended;
        flow.up(Up::Ended(why));
    }

    fn on_create(&mut self, group: u64, flow: &mut Flow<Message>) {
        if matches!(self.phase, Phase::Idle) {
            self.synced = true;
            let id = ViewId { group, number: 1 };
            let quorum_min = self.config.quorum_min;
            let view = View { id, members: [self.me].into(), synced: [true].into(), quorum_min };
            self.phase = Phase::Member(Box::new(Member::new(view.clone(), None)));
            flow.down(Down::Install { view, cut: None });
        }
    }

    /// What this member cast is to be safe first; but a group without quorum must not keep it for ever.
    fn on_leave(&mut self, now: Time, flow: &mut Flow<Message>) {
        match &self.phase {
            Phase::Member(_) if self.leaving || self.leave_by.is_some() => {}
            Phase::Member(_) => {
                self.leave_by = Some(now + self.pace.patience * 2);
                flow.down(Down::Drain);
            }
            _ => self.leave_now(flow),
        }
    }

    fn leave_now(&mut self, flow: &mut Flow<Message>) {
        self.leave_by = None;
        match &mut self.phase {
            Phase::Member(member) if member.view.members.len() > 1 => {
                self.leaving = true;
                self.report_soon();
            }
            Phase::Ended => {}
            // Alone, or not in yet: nobody has to agree.
            _ => self.end(Ended::Left, flow),
        }
    }
}

impl Layer for ViewSync {
    type Message = Message;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Message>) {
        match request {
            Down::Create { group } => self.on_create(group, flow),
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
                self.report_soon();
            }
            other => flow.down(other),
        }
        self.steer(now, flow);
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Message>) {
        match event {
            Up::Suspect(process) => {
                self.suspects.insert(process);
                self.report_soon();
                flow.up(event);
            }
            Up::Trust(process) => {
                self.suspects.remove(&process);
                self.report_soon();
                flow.up(event);
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
            Up::Drained if self.leave_by.is_some() => self.leave_now(flow),
            Up::Drained => {}
            Up::Filled { cut } => self.on_filled(&cut, flow),
            Up::View(view) => self.on_view(view, flow),
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
        self.reports.expire(now);
        if let Phase::Joining { contacts, retry_at } = &mut self.phase
            && *retry_at <= now
        {
            *retry_at = now + self.pace.retry;
            let joiner = self.me;
            for contact in contacts.iter().filter(|contact| **contact != joiner) {
                flow.send(*contact, Lane::Control, Message::Join { joiner });
            }
        }
        self.repeat_attempt(now, flow);
        if self.leave_by.is_some_and(|at| at <= now) {
            self.leave_now(flow);
        }
        self.steer(now, flow);
    }

    fn deadline(&self) -> Option<Time> {
        let expiries = self.joiners.values().copied().min().into_iter().chain(self.reports.deadline());
        let own = match &self.phase {
            Phase::Idle | Phase::Ended => return None,
            Phase::Joining { retry_at, .. } => Some(*retry_at),
            Phase::Member(member) => {
                let leading = member.leading.as_ref().map(|leading| match leading.step {
                    // Impatience while preparing only widens what the next promise may complete.
                    Step::Preparing { .. } => leading.resend_at,
                    Step::Accepting { .. } => leading.resend_at.min(leading.patience_until),
                });
                let report = (self.has_news() || member.reported).then_some(member.report_at);
                leading.into_iter().chain(self.lead_due_at()).chain(report).chain(self.leave_by).min()
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

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let needed = Offer::SUSPICIONS.and(Offer::FIFO).and(Offer::CUT);
        let below = below.with_all("view changes", needed)?.with_none("view changes", Offer::VIEWS)?;
        Ok(below.and(Offer::VIEWS).without(Offer::CUT))
    }
}

fn is_former(member: ProcessId, joiner: ProcessId) -> bool {
    member.node == joiner.node && member.incarnation < joiner.incarnation
}

/// Below this, repetitions would overtake their answers even between near machines.
const RETRY_MIN: Duration = Duration::from_millis(20);

/// However patient the detector is: a lost message should not cost more than this.
const RETRY_MAX: Duration = Duration::from_millis(100);
