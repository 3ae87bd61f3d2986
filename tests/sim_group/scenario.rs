//! A group of machines under faults, before an oracle.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::BufMut;
use quorate::sim::{Boot, Fault, Keep, Observed, Rng, Scenario, World};
use quorate_protocols::group::{Command, Config, Event, Group};
use quorate_protocols::membership::detector::{Detection, Detector};
use quorate_protocols::membership::heartbeat::Judge;
use quorate_protocols::membership::view_sync;
use quorate_protocols::multicast::{fragment, reliable, state_transfer};
use quorate_protocols::stack::{Either, Layer, Pair};
use quorate_protocols::{Output, ProcessId, Violation};
use tests::oracle::{Oracle, Process, Promise, State, ensure};

pub(crate) struct GroupScenario<S: Layer> {
    nodes: usize,
    /// No crash takes the latest view's quorum, or the last one with its state.
    outlives: bool,
    oracle: Oracle,
    make: fn(ProcessId, Config) -> Group<S>,
    config: Config,
    casts_a_second: u64,
    payload_bytes_max: u64,
    classify: fn(&S::Message) -> Option<u8>,
    until: Duration,
    /// Runs whose group ended without quorum or without anyone who has the state.
    lost: Rc<Cell<u64>>,
}

impl<S: Layer> GroupScenario<S> {
    pub(crate) fn draw(
        rng: &mut Rng,
        make: fn(ProcessId, Config) -> Group<S>,
        promise: Promise,
        config: Config,
        classify: fn(&S::Message) -> Option<u8>,
        until: Duration,
        lost: Rc<Cell<u64>>,
    ) -> Self {
        let mut config = config;
        // Small limits now and then: the rare paths of windows, batches and chunks.
        if rng.below(3) == 0 {
            config.reliable.window_messages = 1 + rng.below(8);
            config.reliable.batch_bytes = 40 + rng.below(200) as usize;
            config.reliable.repair_bytes = config.reliable.batch_bytes * (1 + rng.below(4) as usize);
        }
        if rng.below(3) == 0 {
            config.state_transfer.chunk_bytes = 7 + rng.below(60) as usize;
            config.state_transfer.window_chunks = 1 + rng.below(4);
        }
        // Big messages now and then, so that bytes are what limits.
        let payload_bytes_max = if rng.below(8) == 0 { 100 << 10 } else { 40 };
        // Short and long patience: what follows from the detector's times must fit either.
        if rng.below(2) == 0 {
            config.heartbeat.timeout = Duration::from_millis(300 + rng.below(300));
            config.heartbeat.interval = config.heartbeat.timeout / 10;
        }
        // Large messages, as far as fragments go: of some ten at most.
        if rng.below(2) == 0 {
            let payload_bytes_max = payload_bytes_max as usize;
            config.fragment.fragment_bytes = 1 + (24 + payload_bytes_max) / (1 + rng.below(10) as usize);
        }
        config.reliable.feedback = match rng.below(8) {
            0 | 1 => reliable::Feedback::Suppressed { spread: Duration::from_millis(1 + rng.below(60)) },
            2 | 3 => reliable::Feedback::Tree { fanout: 1 + rng.below(3) as u16 },
            _ => reliable::Feedback::Direct,
        };
        if rng.below(3) == 0 {
            config.view_sync.quorum_min = 2 + rng.below(2) as u16;
        }
        config.detection = match rng.below(4) {
            0 => Detection::Heartbeat(Judge::Phi(8.0)),
            1 => Detection::Swim { helpers: 3 },
            2 => Detection::Gossip,
            _ => Detection::Heartbeat(Judge::Timeout),
        };
        Self {
            nodes: 3 + rng.below(4) as usize,
            outlives: rng.below(8) != 0,
            payload_bytes_max,
            oracle: Oracle::new(promise),
            make,
            config,
            casts_a_second: 2 + rng.below(40),
            classify,
            until,
            lost,
        }
    }

    fn join(&self, node: usize, world: &mut World<Group<S>>) {
        let contacts = (0..self.nodes).filter(|&other| other != node).map(|other| world.id(other)).collect();
        world.command(node, Command::Join { contacts });
    }

    /// True for a process that the group has left behind, in a view whose quorum is gone: nobody whom it knows can
    /// tell it. An application that is told `QuorumLost` for long does what is done here, and joins anew.
    fn is_relic(&self, id: ProcessId, world: &World<Group<S>>) -> bool {
        let Some(view) = self.oracle.processes.get(&id).and_then(|process| process.view.as_ref()) else {
            return false;
        };
        let Some(latest) = self.oracle.views.values().next_back() else { return false };
        world.is_calm()
            && !latest.view.contains(id)
            && !view.is_quorum(|rank| self.is_alive(view.members[rank], world))
    }

    fn is_alive(&self, member: ProcessId, world: &World<Group<S>>) -> bool {
        let up = world.is_up(member.node as usize) && world.id(member.node as usize) == member;
        up && self.oracle.processes.get(&member).is_none_or(|process| !process.ended)
    }

    fn cast(&mut self, node: usize, world: &mut World<Group<S>>) {
        let id = world.id(node);
        let live = |process: &Process| process.view.is_some() && !process.ended;
        if world.is_up(node) && self.oracle.processes.get(&id).is_some_and(live) {
            let (number, mut payload) = self.oracle.on_send(id);
            payload.put_bytes(0, world.rng().below(self.payload_bytes_max) as usize);
            let payload = payload.freeze();
            // What a member passes on for somebody outside is a message like any other.
            let from = (9, 1, number);
            let is_outside = world.rng().below(8) == 0;
            let command =
                if is_outside { Command::CastOutside { from, payload } } else { Command::Cast(payload) };
            world.command(node, command);
        }
    }

    /// One or two members leave at the same moment, of a group that can spare them.
    fn leave(&mut self, world: &mut World<Group<S>>) {
        for _ in 0..1 + world.rng().below(2) {
            let node = world.rng().below(self.nodes as u64) as usize;
            let Some(process) = self.oracle.processes.get_mut(&world.id(node)) else { continue };
            let members = process.view.as_ref().map_or(0, |view| view.members.len());
            if world.is_up(node) && members >= LEFT_MIN {
                process.leaving = true;
                world.command(node, Command::Leave);
            }
        }
    }

    /// True when the latest view has lost its quorum or its state for good: a legitimate end of progress.
    fn is_lost(&self, world: &World<Group<S>>) -> bool {
        let Some(record) = self.oracle.views.values().next_back() else { return true };
        let alive = |member: ProcessId| self.is_alive(member, world);
        let members = &record.view.members;
        // Whoever had delivered all of the ending view and began this one with the state.
        let carries = |member: &ProcessId| {
            let process = self.oracle.processes.get(member);
            process.is_some_and(|process| process.synced && process.view.as_ref() == Some(&record.view))
        };
        !record.view.is_quorum(|rank| alive(members[rank]))
            || !members.iter().any(|member| alive(*member) && carries(member))
    }
}

impl<S: Layer> Scenario for GroupScenario<S> {
    type Machine = Group<S>;

    fn nodes(&self) -> usize {
        self.nodes
    }

    fn boot(&mut self, boot: Boot<Group<S>>) -> Group<S> {
        self.oracle.processes.insert(boot.id, Process::default());
        (self.make)(boot.id, self.config)
    }

    fn start(&mut self, world: &mut World<Group<S>>) {
        world.command(0, Command::Create { group: 1 });
        world.wake_in(Duration::ZERO, JOIN);
        world.wake_in(Duration::from_millis(100), CAST);
    }

    fn wake(&mut self, token: u64, world: &mut World<Group<S>>) -> Result<(), Violation> {
        if token == JOIN {
            for node in 0..self.nodes {
                let id = world.id(node);
                let out = self.oracle.processes.get(&id).is_some_and(|process| process.view.is_none());
                if world.is_up(node) && out && id != FOUNDER {
                    self.join(node, world);
                    if let Some(process) = self.oracle.processes.get_mut(&id) {
                        process.asked += 1;
                        // Who let it in may be dead, and the state with them: an application gives up and joins anew.
                        if process.asked > ASKED_MAX && world.is_calm() {
                            reboot(node, world);
                        }
                    }
                }
                let ended = self.oracle.processes.get(&id).is_some_and(|process| process.ended);
                if world.is_up(node) && (ended || self.is_relic(id, world)) {
                    reboot(node, world);
                }
            }
            if world.rng().below(6) == 0 && !world.is_calm() {
                self.leave(world);
            }
            // Now and then an application falls behind for half a second.
            for node in 0..self.nodes {
                let saturated = world.rng().below(8) == 0 && !world.is_calm();
                world.command(node, Command::Saturated(saturated));
            }
            world.wake_in(Duration::from_millis(500), JOIN);
        } else {
            let node = world.rng().below(self.nodes as u64) as usize;
            for _ in 0..1 + world.rng().below(4) {
                self.cast(node, world);
            }
            let pause = world.rng().below(2 * 1_000_000 / self.casts_a_second);
            if world.now().as_nanos() < self.until.as_nanos() as u64 {
                world.wake_in(Duration::from_micros(pause), CAST);
            }
        }
        Ok(())
    }

    fn observe(
        &mut self,
        who: Observed,
        event: &Event,
        world: &mut World<Group<S>>,
    ) -> Result<(), Violation> {
        match event {
            Event::View(view) => self.oracle.on_view(who.id, view),
            Event::Deliver { from, payload } => self.oracle.on_deliver(who.id, *from, payload.clone()),
            Event::DeliverOutside { from: (node, life, number), via, payload } => {
                let is_whole = payload[16..24] == number.to_le_bytes() && (*node, *life) == (9, 1);
                ensure(is_whole, || format!("{} is told another outsider than was", who.id))?;
                self.oracle.on_deliver(who.id, *via, payload.clone())
            }
            Event::StateWanted(view) => {
                let state = self.oracle.processes[&who.id].state.encode(world.rng().below(100) as usize);
                world.command(who.node, Command::State { view: *view, state });
                Ok(())
            }
            Event::State(bytes) => self.oracle.on_state(who.id, State::decode(bytes.clone())),
            Event::Ended(_) => {
                if let Some(process) = self.oracle.processes.get_mut(&who.id) {
                    process.ended = true;
                }
                reboot(who.node, world);
                Ok(())
            }
            Event::Rejected(_) | Event::RejectedOutside(_) => {
                Err(Violation(format!("{} rejects a message", who.id)))
            }
            Event::QuorumLost | Event::QuorumRegained | Event::Suspected(_) | Event::Trusted(_) => Ok(()),
        }
    }

    /// A process that dies is in the view until its silence is noticed, and comes back as another one: three crashes in a
    /// second end most groups. What can be seen then is seen soon; most runs are to see what comes after.
    fn may_crash(&self, node: usize, world: &World<Group<S>>) -> bool {
        let id = world.id(node);
        let Some(record) = self.oracle.views.values().next_back() else {
            return !self.outlives || id != FOUNDER;
        };
        let members = &record.view.members;
        let remains = |member: ProcessId| member != id && self.is_alive(member, world);
        let has_state =
            |member: &ProcessId| self.oracle.processes.get(member).is_some_and(|process| process.synced);
        let goes_on = record.view.is_quorum(|rank| remains(members[rank]))
            && members.iter().any(|member| remains(*member) && has_state(member));
        !self.outlives || !record.view.contains(id) || goes_on
    }

    fn promise(&self, output: &Output<Group<S>>) -> Option<u8> {
        match output {
            Output::Send { message, .. } => (self.classify)(message),
            Output::Event(Event::Deliver { .. }) => Some(DELIVERED),
            Output::Event(Event::View(_)) => Some(VIEW),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        CLASSES
    }

    fn finish(&mut self, world: &mut World<Group<S>>) -> Result<(), Violation> {
        if self.is_lost(world) {
            self.lost.set(self.lost.get() + 1);
            return Ok(());
        }
        let Some((_, latest)) = self.oracle.views.iter().next_back() else { return Ok(()) };
        let mut state: Option<(ProcessId, State)> = None;
        for node in 0..self.nodes {
            let id = world.id(node);
            ensure(latest.view.contains(id), || format!("in the end {id} is not in {}", latest.view))?;
            let process = &self.oracle.processes[&id];
            ensure(!process.leaving, || format!("in the end {id} still waits to leave"))?;
            ensure(process.synced && process.view.as_ref() == Some(&latest.view), || {
                format!("in the end {id} is in {:?} (synced: {})", process.view, process.synced)
            })?;
            let sent = self.oracle.sent(id);
            let delivered = process.state.last.get(&id).copied().unwrap_or(0);
            ensure(sent == delivered, || format!("in the end {id} has {delivered} of its {sent} messages"))?;
            let (first, expected) = state.get_or_insert_with(|| (id, process.state.clone()));
            ensure(*expected == process.state, || {
                format!("in the end {id} has {:?}, {first} has {expected:?}", process.state)
            })?;
        }
        Ok(())
    }
}

/// The parts of a group's messages that are promises.
pub(crate) fn classify<O: Layer>(message: &<Stack<O> as Layer>::Message) -> Option<u8> {
    match message {
        Either::Upper(state_transfer::Message::Chunk { .. }) => Some(STATE),
        Either::Lower(Either::Lower(Either::Upper(view))) => match view {
            view_sync::Message::Promise { .. } => Some(PROMISED),
            view_sync::Message::Accept { .. } => Some(PROPOSED),
            view_sync::Message::Accepted { .. } => Some(ACCEPTED),
            view_sync::Message::Install { .. } => Some(DECIDED),
            _ => None,
        },
        Either::Lower(Either::Lower(Either::Lower(Either::Lower(Either::Upper(
            reliable::Message::Data { .. },
        ))))) => Some(SENT),
        _ => None,
    }
}

/// A stack with order `O`.
pub(crate) type Stack<O> = Pair<state_transfer::StateTransfer, Pair<O, Pair<view_sync::ViewSync, Below>>>;
type Below = Pair<fragment::Fragment, Pair<reliable::Reliable, Detector>>;

pub(crate) const PROMISED: u8 = 0;
pub(crate) const PROPOSED: u8 = 1;
pub(crate) const ACCEPTED: u8 = 2;
pub(crate) const DECIDED: u8 = 3;
pub(crate) const SENT: u8 = 4;
pub(crate) const DELIVERED: u8 = 5;
pub(crate) const VIEW: u8 = 6;
pub(crate) const STATE: u8 = 7;
const CLASSES: u8 = 8;

const FOUNDER: ProcessId = ProcessId { node: 0, incarnation: 1 };
/// Fewer members are not asked to leave.
const LEFT_MIN: usize = 3;
/// Rounds, of half a second each, for which a process goes on with one attempt to join.
const ASKED_MAX: u32 = 6;
const JOIN: u64 = 0;
const CAST: u64 = 1;

/// A process that is out comes back as a new one.
fn reboot<S: Layer>(node: usize, world: &mut World<Group<S>>) {
    world.cause(Fault::Crash { at_us: 0, node, down_us: 10_000, keep: Keep::Nothing });
}
