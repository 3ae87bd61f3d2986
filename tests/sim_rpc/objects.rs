//! Remote references in the simulator: nobody loses what he holds, nobody keeps what nobody holds.
//!
//! Oracle      when an owner collects an object, no process that is up believes itself to hold it; a reference that came
//!             in time from a sender that kept its lease is not dangling; when everybody has let go in calm weather,
//!             nothing is left in any table (catalogue R10).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quorate::sim::{Boot, Chance, Config, Kind, Observed, Rng, Scenario, World, hunt, sweep};
use quorate_protocols::objects::{
    Objects, ObjectsCommand, ObjectsConfig, ObjectsEvent, ObjectsMessage, Reference, Standing,
};
use quorate_protocols::planted::{Plant, Planted};
use quorate_protocols::{
    Input, Lane, Machine, Output, Outputs, ProcessId, Time, Violation, Wire, WireError, wire,
};

/// A process that passes references on and lets go of them.
struct Node {
    objects: Objects,
    inner: Outputs<Objects>,
    uses: BTreeMap<Reference, u32>,
    /// What came already: a call is executed once.
    seen: BTreeSet<u64>,
    /// The pins of what has come and is not held yet.
    waiting: BTreeMap<Reference, Vec<u64>>,
}

#[derive(Debug, Clone)]
enum Message {
    Objects(ObjectsMessage),
    /// A call with a reference in it.
    Carry {
        reference: Reference,
        pin: u64,
    },
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Objects(message) => {
                out.put_u8(0);
                message.encode(out);
            }
            Self::Carry { reference, pin } => {
                out.put_u8(1);
                reference.owner.encode(out);
                out.put_u64_le(reference.number);
                out.put_u64_le(*pin);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        if wire::take_u8(input, "kind")? == 0 {
            return ObjectsMessage::decode(input).map(Self::Objects);
        }
        let owner = ProcessId::decode(input)?;
        let reference = Reference { owner, number: wire::take_u64(input, "number")? };
        Ok(Self::Carry { reference, pin: wire::take_u64(input, "pin")? })
    }
}

#[derive(Debug, Clone)]
enum Command {
    Export(u64),
    Send {
        reference: Reference,
        to: ProcessId,
        pin: u64,
    },
    Release(Reference),
    ReleaseAll,
    /// What does your clock show?
    Clock,
}

#[derive(Debug)]
enum Event {
    Collected(u64),
    /// Whether the lease of the owner had ended when this was learnt.
    Dangling {
        standing: Standing,
        lapsed: bool,
        /// With what it had come.
        pins: Vec<u64>,
    },
    /// For how long the sender is certain to keep what it has just sent; zero when it is not.
    Sent {
        reference: Reference,
        pin: u64,
        kept_for: Duration,
    },
    Clock(Time),
}

impl Node {
    fn step(&mut self, now: Time, input: Input<Objects>, out: &mut Outputs<Self>) {
        let lapsed = |objects: &Objects, owner| objects.lease_until(owner).is_some_and(|until| until <= now);
        let late: Vec<ProcessId> = match &input {
            Input::Received { from, .. } if lapsed(&self.objects, *from) => vec![*from],
            _ => Vec::new(),
        };
        let mut inner = std::mem::take(&mut self.inner);
        self.objects.handle(now, input, &mut inner);
        for output in inner.drain() {
            match output {
                Output::Send { to, lane, message } => {
                    for to in to.as_slice() {
                        out.send(*to, lane, Message::Objects(message.clone()));
                    }
                }
                Output::Event(ObjectsEvent::Collected { number }) => out.event(Event::Collected(number)),
                Output::Event(ObjectsEvent::Dangling(reference)) => {
                    let standing = self.objects.standing(now, reference);
                    let lapsed = late.contains(&reference.owner);
                    let pins = self.waiting.remove(&reference).unwrap_or_default();
                    out.event(Event::Dangling { standing, lapsed, pins });
                }
                Output::Persist(()) | Output::Barrier => {}
            }
        }
        self.inner = inner;
        let Self { objects, uses, waiting, .. } = self;
        let is_waiting = |reference: &Reference| {
            uses.contains_key(reference) && objects.standing(now, *reference) != Standing::Held
        };
        waiting.retain(|reference, _| is_waiting(reference));
    }

    fn obey(&mut self, now: Time, command: Command, out: &mut Outputs<Self>) {
        match command {
            Command::Export(number) => {
                self.uses.insert(Reference { owner: self.objects.me(), number }, 1);
                self.step(now, Input::Command(ObjectsCommand::Export { number }), out);
            }
            Command::Send { reference, to, pin } => {
                if !self.uses.contains_key(&reference) {
                    return; // let go of meanwhile
                }
                let transit = self.objects.config().transit;
                let kept_for = match self.objects.standing(now, reference) {
                    Standing::Held if reference.owner == self.objects.me() => transit,
                    Standing::Held => {
                        let lease = self.objects.lease_until(reference.owner).unwrap_or(Time::ZERO);
                        transit.min(lease.since(now))
                    }
                    _ => Duration::ZERO,
                };
                self.step(now, Input::Command(ObjectsCommand::Depart { reference, to, pin }), out);
                out.event(Event::Sent { reference, pin, kept_for });
                out.send(to, Lane::Ordinary, Message::Carry { reference, pin });
            }
            Command::Release(reference) => {
                if let Some(uses) = self.uses.get_mut(&reference) {
                    *uses -= 1;
                    if *uses == 0 {
                        self.uses.remove(&reference);
                    }
                    self.step(now, Input::Command(ObjectsCommand::Release(reference)), out);
                }
            }
            Command::ReleaseAll => {
                for (reference, uses) in std::mem::take(&mut self.uses) {
                    for _ in 0..uses {
                        self.step(now, Input::Command(ObjectsCommand::Release(reference)), out);
                    }
                }
            }
            Command::Clock => out.event(Event::Clock(now)),
        }
    }
}

impl Machine for Node {
    type Command = Command;
    type Event = Event;
    type Message = Message;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Command(command) => self.obey(now, command, out),
            Input::Received { from, message: Message::Carry { reference, pin } } => {
                if self.seen.insert(pin) {
                    *self.uses.entry(reference).or_default() += 1;
                    self.waiting.entry(reference).or_default().push(pin);
                    let command = ObjectsCommand::Arrive { reference, from, pin };
                    self.step(now, Input::Command(command), out);
                }
            }
            Input::Received { from, message: Message::Objects(message) } => {
                self.step(now, Input::Received { from, message }, out);
            }
            Input::Tick => self.step(now, Input::Tick, out),
            Input::Reachable(peer) => self.step(now, Input::Reachable(peer), out),
            Input::Unreachable(peer) => self.step(now, Input::Unreachable(peer), out),
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.objects.deadline()
    }

    fn check(&self) -> Result<(), Violation> {
        self.objects.check()
    }
}

struct Sent {
    reference: Reference,
    from: ProcessId,
    kept_until: Time,
}

struct Passing {
    config: ObjectsConfig,
    nodes: usize,
    every: Duration,
    next: u64,
    /// What each node's clock is ahead of the world's, in the life in which it was asked.
    clocks: BTreeMap<usize, (ProcessId, u64)>,
    sent: BTreeMap<u64, Sent>,
}

impl Passing {
    fn new(rng: &mut Rng, plant: Plant) -> Self {
        let config = ObjectsConfig {
            lease: Duration::from_millis(rng.between(300, 3_000)),
            transit: Duration::from_millis(rng.between(300, 5_000)),
            holder_max: if rng.chance(Chance::percent(10)) { 2 } else { 1_000 },
            plant,
            ..ObjectsConfig::default()
        };
        let every = Duration::from_micros(rng.between(2_000, 200_000));
        let nodes = rng.between(2, 5) as usize;
        Self { config, nodes, every, next: 0, clocks: BTreeMap::new(), sent: BTreeMap::new() }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn act(&mut self, world: &mut World<Node>) {
        let node = world.rng().below(self.nodes as u64) as usize;
        let Some(machine) = world.machine(node) else { return };
        let uses: Vec<Reference> = machine.uses.keys().copied().collect();
        let pick = world.rng().below(100);
        if uses.is_empty() || pick < 10 {
            let number = self.number();
            return world.command(node, Command::Export(number));
        }
        let reference = uses[world.rng().below(uses.len() as u64) as usize];
        if pick < 60 {
            let other = (node + 1 + world.rng().below(self.nodes as u64 - 1) as usize) % self.nodes;
            let (to, pin) = (world.id(other), self.number());
            world.command(node, Command::Send { reference, to, pin });
            // Most dangerous: nobody but the reference on its way holds the object now.
            if world.rng().chance(Chance::percent(50)) {
                world.command(node, Command::Release(reference));
            }
        } else {
            world.command(node, Command::Release(reference));
        }
    }

    /// What the node's clock shows now; `None` when it was not asked in this life.
    fn clock(&self, node: usize, world: &World<Node>) -> Option<Time> {
        let (id, ahead) = self.clocks.get(&node)?;
        (*id == world.id(node)).then(|| Time::from_nanos(world.now().as_nanos().wrapping_add(*ahead)))
    }

    fn holds(&self, node: usize, reference: Reference, world: &World<Node>) -> bool {
        let (Some(machine), Some(now)) = (world.machine(node), self.clock(node, world)) else { return false };
        machine.objects.standing(now, reference) == Standing::Held
    }
}

impl Scenario for Passing {
    type Machine = Node;

    fn nodes(&self) -> usize {
        self.nodes
    }

    fn boot(&mut self, boot: Boot<Node>) -> Node {
        Node {
            objects: Objects::new(boot.id, 0, self.config.clone()),
            inner: Outputs::new(),
            uses: BTreeMap::new(),
            seen: BTreeSet::new(),
            waiting: BTreeMap::new(),
        }
    }

    fn start(&mut self, world: &mut World<Node>) {
        world.wake_in(self.every, ACT);
        world.wake_in(Duration::ZERO, ASK_CLOCKS);
    }

    fn wake(&mut self, token: u64, world: &mut World<Node>) -> Result<(), Violation> {
        match token {
            ACT if !world.is_calm() => {
                self.act(world);
                world.wake_in(self.every, ACT);
            }
            ASK_CLOCKS => {
                for node in 0..self.nodes {
                    world.command(node, Command::Clock);
                }
                world.wake_in(Duration::from_millis(100), ASK_CLOCKS);
            }
            LET_GO => {
                for node in 0..self.nodes {
                    let (Some(machine), Some(now)) = (world.machine(node), self.clock(node, world)) else {
                        return Err(Violation(format!("node {node} is down in calm weather")));
                    };
                    for reference in machine
                        .uses
                        .keys()
                        .filter(|reference| world.id(reference.owner.node as usize) == reference.owner)
                    {
                        let standing = machine.objects.standing(now, *reference);
                        if matches!(standing, Standing::Arriving | Standing::OwnerSilent | Standing::Unknown)
                        {
                            return Err(Violation(format!("{reference} of node {node} is {standing:?}")));
                        }
                    }
                    world.command(node, Command::ReleaseAll);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Node>) -> Result<(), Violation> {
        match event {
            Event::Clock(now) => {
                self.clocks.insert(who.node, (who.id, now.as_nanos().wrapping_sub(world.now().as_nanos())));
            }
            Event::Sent { reference, pin, kept_for } => {
                let kept_until = world.now() + *kept_for;
                self.sent.insert(*pin, Sent { reference: *reference, from: who.id, kept_until });
            }
            Event::Collected(number) => {
                let reference = Reference { owner: who.id, number: *number };
                if let Some(node) =
                    (0..self.nodes).find(|node| *node != who.node && self.holds(*node, reference, world))
                {
                    return Err(Violation(format!("{reference} was collected while node {node} holds it")));
                }
            }
            Event::Dangling { standing: Standing::ObjectGone, lapsed: false, pins } => {
                let is_same = |id: ProcessId| world.id(id.node as usize) == id;
                let was_kept = |sent: &&Sent| {
                    world.now() < sent.kept_until && is_same(sent.from) && is_same(sent.reference.owner)
                };
                if let Some(Sent { reference, from, .. }) =
                    pins.iter().filter_map(|pin| self.sent.get(pin)).find(was_kept)
                {
                    return Err(Violation(format!("{reference} died on its way from {from} to {}", who.id)));
                }
            }
            Event::Dangling { .. } => {}
        }
        self.sent.retain(|_, sent| sent.kept_until > world.now());
        Ok(())
    }

    /// A crash at these moments is where a reference is lost or kept for ever, if anywhere.
    fn promise(&self, output: &Output<Node>) -> Option<u8> {
        match output {
            Output::Send { message: Message::Objects(ObjectsMessage::Known { .. }), .. } => Some(0),
            Output::Send { message: Message::Objects(ObjectsMessage::Arrived { .. }), .. } => Some(1),
            Output::Send { message: Message::Carry { .. }, .. } => Some(2),
            Output::Send { message: Message::Objects(ObjectsMessage::Claims { changes, .. }), .. }
                if !changes.is_empty() =>
            {
                Some(3)
            }
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        4
    }

    fn calm(&mut self, world: &mut World<Node>) {
        world.wake_in(SETTLED, LET_GO);
    }

    fn finish(&mut self, world: &mut World<Node>) -> Result<(), Violation> {
        for node in 0..self.nodes {
            let Some(Node { objects, .. }) = world.machine(node) else {
                return Err(Violation(format!("node {node} is down")));
            };
            let left = (objects.exported(), objects.held(), objects.in_transit());
            if left != (0, 0, 0) {
                return Err(Violation(format!(
                    "nobody holds anything, and node {node} has (exported, held, in transit) {left:?}"
                )));
            }
        }
        Ok(())
    }
}

fn config() -> Config {
    // Leases are measured by clocks, which run at the same rate here: what drift costs is in the lease's margin.
    let kinds =
        Kind::ALL.iter().copied().filter(|kind| !matches!(kind, Kind::Lie | Kind::Clock | Kind::Disk));
    Config { active: Duration::from_secs(10), calm: CALM, kinds: kinds.collect(), ..Config::default() }
}

#[test]
fn r10_whoever_holds_a_reference_keeps_the_object_and_what_nobody_holds_is_collected_in_every_seed() {
    let summary = sweep(&config(), 0..1_500, |rng| Passing::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
    assert!(summary.counts.strikes > summary.seeds, "aimed crashes hit: {summary}");
}

fn must_be_found(bug: Planted) {
    match hunt(&config(), 0..1_000, |rng| Passing::new(rng, Plant::of(bug))) {
        Some(found) => println!("{bug:?}: seed {} of 1000: {}", found.tried, found.breach),
        None => panic!("{bug:?} hid in 1000 seeds"),
    }
}

#[test]
fn r10_a_reference_that_its_sender_does_not_keep_is_found() {
    must_be_found(Planted::ObjectsForgetDeparted);
    must_be_found(Planted::ObjectsCleanWhilePinned);
}

#[test]
fn r10_changes_out_of_their_order_are_found() {
    must_be_found(Planted::ObjectsIgnoreOrder);
}

#[test]
fn r10_a_lease_that_its_holder_believes_too_long_is_found() {
    must_be_found(Planted::ObjectsLeaseFromAnswer);
}

#[test]
fn r10_a_dead_holder_that_is_never_forgotten_is_found() {
    must_be_found(Planted::ObjectsKeepExpired);
}

const ACT: u64 = 1;
const ASK_CLOCKS: u64 = 2;
const LET_GO: u64 = 3;
/// Longer than any pause before an owner is told again.
const SETTLED: Duration = Duration::from_secs(5);
/// Then the longest lease and the longest transit.
const CALM: Duration = Duration::from_secs(16);
