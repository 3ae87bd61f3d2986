//! One run: virtual time, an event heap, nodes with clocks and disks, and the faults of the plan.
//!
//! Guarantee   the same seed, plan and scenario give the same run, event by event; the trace hash says so.
//! Outputs     are carried out in order; behind a barrier everything waits until the simulated disk has synced.
//! Order       inputs of one instant come before the ticks of that instant; equal ones in order of scheduling.
//! Limits      [`NODES_MAX`] nodes; an event budget per run, beyond which the run is a storm.
//! Size        one file although long: time, nodes, disks and faults change together, and every rule here is about
//!             their order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::mem;
use std::time::Duration;

use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Targets, Time, Wire};

use quorate_transports::fault::model::{Chance, Clock, Network, Rng};

use super::fault::{Action, Fault, Keep, Moment, Nodes, Plan};
use super::scenario::{Boot, Observed, Scenario};
use super::sweep::{Breach, Config};
use super::trace::Trace;
use super::weather::{Hints, Weather};

/// The most nodes of one run: sets of them are one word.
pub const NODES_MAX: usize = 64;

/// The simulated world as a scenario sees it.
pub struct World<M: Machine> {
    now: u64,
    heap: BinaryHeap<Reverse<(u128, u32)>>,
    slots: Vec<Option<Happening<M>>>,
    free: Vec<u32>,
    scheduled: u64,
    nodes: Vec<Node<M>>,
    network: Network<u32>,
    /// How many cuts lie on each directed link: overlapping ones heal one by one.
    cuts: Vec<u16>,
    weather: Weather,
    faults: Vec<Fault>,
    armed: Vec<Armed>,
    seed: u64,
    user_rng: Rng,
    disk_rng: Rng,
    network_rng: Rng,
    trace: Trace,
    counts: Counts,
    limits: Limits,
    calm: bool,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Everything that happened: deliveries, ticks, commands, syncs, faults.
    pub events: u64,
    /// Messages that machines sent, counted per receiver.
    pub sent: u64,
    /// Messages that reached a machine, copies included.
    pub delivered: u64,
    /// Records that machines appended.
    pub records: u64,
    /// Syncs that barriers forced.
    pub syncs: u64,
    /// Crashes, aimed ones included.
    pub crashes: u64,
    /// Strikes that found their promise.
    pub strikes: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.records += other.records;
        self.syncs += other.syncs;
        self.crashes += other.crashes;
        self.strikes += other.strikes;
    }
}

impl<M: Machine> World<M> {
    /// Virtual time since the start of the run.
    pub fn now(&self) -> Time {
        Time::from_nanos(self.now)
    }

    /// Chance for the workload, independent of the weather.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.user_rng
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// True while the node is up.
    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].machine.is_some()
    }

    /// The node's present (or last) incarnation.
    pub fn id(&self, node: usize) -> ProcessId {
        ProcessId { node: node as u64, incarnation: self.nodes[node].incarnation }
    }

    /// The node's machine, while it is up.
    pub fn machine(&self, node: usize) -> Option<&M> {
        self.nodes[node].machine.as_ref()
    }

    /// The node's records that are durable now.
    pub fn durable(&self, node: usize) -> &[M::Record] {
        let node = &self.nodes[node];
        &node.log[..node.durable]
    }

    /// True once all faults are healed.
    pub fn is_calm(&self) -> bool {
        self.calm
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Gives a command to the present incarnation of the node, at this instant. Lost when it is down.
    pub fn command(&mut self, node: usize, command: M::Command) {
        self.command_in(Duration::ZERO, node, command);
    }

    /// Gives a command after `delay`, unless the incarnation has died by then.
    pub fn command_in(&mut self, delay: Duration, node: usize, command: M::Command) {
        let incarnation = self.nodes[node].incarnation;
        self.schedule(nanos(delay), INPUT, Happening::Command { node: node as u32, incarnation, command });
    }

    /// Calls [`Scenario::wake`] with `token` after `delay`.
    pub fn wake_in(&mut self, delay: Duration, token: u64) {
        self.schedule(nanos(delay), INPUT, Happening::Wake { token });
    }

    /// Causes a fault now; its own time is not looked at. For directed scenarios.
    pub fn cause(&mut self, fault: Fault) {
        let index = self.faults.len() as u32;
        self.faults.push(fault);
        self.schedule(0, INPUT, Happening::Fault { index });
    }

    fn schedule(&mut self, delay: u64, rank: u8, what: Happening<M>) {
        self.schedule_at(self.now.saturating_add(delay), rank, what);
    }

    fn schedule_at(&mut self, at: u64, rank: u8, what: Happening<M>) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(what);
                slot
            }
            None => {
                self.slots.push(Some(what));
                (self.slots.len() - 1) as u32
            }
        };
        // 56 bits of sequence: more events than any budget allows.
        let key = u128::from(at) << 64 | u128::from(rank) << 56 | u128::from(self.scheduled);
        self.scheduled += 1;
        self.heap.push(Reverse((key, slot)));
    }

    fn pop(&mut self, until: u64) -> Option<Happening<M>> {
        let Reverse((key, slot)) = *self.heap.peek()?;
        let at = (key >> 64) as u64;
        if at > until {
            return None;
        }
        self.heap.pop();
        self.now = at;
        self.free.push(slot);
        self.slots[slot as usize].take()
    }

    fn index_of(&self, to: ProcessId) -> Option<usize> {
        usize::try_from(to.node).ok().filter(|index| *index < self.nodes.len())
    }
}

impl<M: Machine> World<M> {
    /// Puts one message on its way to one peer.
    fn send(&mut self, from: usize, to: ProcessId, message: M::Message) {
        self.counts.sent += 1;
        let Some(target) = self.index_of(to) else {
            return;
        };
        let (source, target) = (from as u32, target as u32);
        let fate = self.network.fate(self.now, source, target, MESSAGE_BYTES, &mut self.network_rng);
        let Some((first, copies)) = fate.split_first() else {
            return;
        };
        let from = self.id(from);
        for copy in copies {
            let message = message.clone();
            let at = self.weather.next_turn(self.now.saturating_add(copy.delay_nanos));
            self.schedule_at(
                at,
                INPUT,
                Happening::Deliver { to: target, life: to.incarnation, from, message },
            );
        }
        let at = self.weather.next_turn(self.now.saturating_add(first.delay_nanos));
        self.schedule_at(at, INPUT, Happening::Deliver { to: target, life: to.incarnation, from, message });
    }

    /// Sees to it that the node's next tick is scheduled.
    fn aim_tick(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(deadline) = node.machine.as_ref().and_then(Machine::deadline) else {
            return;
        };
        let at = node.clock.true_time(deadline.as_nanos()).max(now);
        // A tick that is scheduled earlier will look again when it comes; only a nearer deadline needs a new one.
        if at >= node.tick_at || at == u64::MAX {
            return;
        }
        node.tick_at = at;
        node.tick_generation += 1;
        let generation = node.tick_generation;
        self.schedule_at(at, TICK, Happening::Tick { node: index as u32, generation });
    }

    fn change_cuts(&mut self, from: Nodes, to: Nodes, add: bool) {
        let count = self.nodes.len();
        for a in (0..count).filter(|a| from.contains(*a)) {
            for b in (0..count).filter(|b| to.contains(*b) && *b != a) {
                let cuts = &mut self.cuts[a * count + b];
                *cuts = if add { cuts.saturating_add(1) } else { cuts.saturating_sub(1) };
                match *cuts {
                    0 => self.network.heal_one_way(a as u32, b as u32),
                    _ => self.network.cut_one_way(a as u32, b as u32),
                }
            }
        }
    }

    fn begin_sync(&mut self, index: usize) {
        self.counts.syncs += 1;
        let mut delay = self.weather.sync_time(&mut self.disk_rng);
        if self.now < self.nodes[index].slow_until {
            delay += self.nodes[index].slow_by;
        }
        self.finish_sync_in(delay, index);
    }

    /// The running sync of the node ends after `delay`, whatever was said before.
    fn finish_sync_in(&mut self, delay: u64, index: usize) {
        let node = &mut self.nodes[index];
        node.sync += 1;
        let (sync, position) = (node.sync, node.log.len());
        self.schedule(delay, INPUT, Happening::Synced { node: index as u32, sync, position });
    }
}

/// Machines, scenario and world of one run.
pub(crate) struct Engine<'a, S: Scenario> {
    scenario: S,
    world: World<S::Machine>,
    out: Outputs<S::Machine>,
    config: &'a Config,
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) hash: u64,
    pub(crate) at: Time,
    pub(crate) counts: Counts,
    pub(crate) outcome: Result<(), Breach>,
    pub(crate) notes: Vec<String>,
    pub(crate) lines: Vec<String>,
}

impl<'a, S: Scenario> Engine<'a, S> {
    pub(crate) fn new(scenario: S, seed: u64, plan: &Plan, config: &'a Config, lines: usize) -> Self {
        let count = scenario.nodes();
        assert!(count <= NODES_MAX, "at most {NODES_MAX} nodes");
        let mut world = World {
            now: 0,
            heap: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            scheduled: 0,
            nodes: Vec::new(),
            network: Network::new(plan.weather.link),
            cuts: vec![0; count * count],
            weather: plan.weather.clone(),
            faults: plan.faults.clone(),
            armed: Vec::new(),
            seed,
            user_rng: Rng::labelled(seed, USER_STREAM),
            disk_rng: Rng::labelled(seed, DISK_STREAM),
            network_rng: Rng::labelled(seed, NETWORK_STREAM),
            trace: Trace::new(lines),
            counts: Counts::default(),
            limits: Limits { down_max: config.down_max, crashes_max: config.crashes_max },
            calm: false,
        };
        world.nodes.extend((0..count).map(|_| Node::new()));
        Self { scenario, world, out: Outputs::new(), config }
    }

    /// What the run left, also after a panic in the middle of it.
    pub(crate) fn end(mut self, outcome: Result<(), Breach>) -> Ended {
        if let Err(breach) = &outcome {
            self.world.trace.note(self.world.now, || format!("BROKEN: {breach}"));
        }
        let (hash, at, counts) = (self.world.trace.hash(), self.world.now(), self.world.counts);
        let (notes, lines) = self.world.trace.into_text();
        Ended { hash, at, counts, outcome, notes, lines }
    }

    pub(crate) fn run(&mut self) -> Result<(), Breach> {
        for index in 0..self.world.faults.len() {
            let at = match &self.world.faults[index] {
                Fault::Crash { at_us, .. }
                | Fault::Pause { at_us, .. }
                | Fault::Cut { at_us, .. }
                | Fault::ClockStep { at_us, .. }
                | Fault::SlowDisk { at_us, .. }
                | Fault::Lie { at_us, .. } => *at_us,
                Fault::Strike { from_us, .. } => *from_us,
            };
            self.world.schedule_at(micros(at), INPUT, Happening::Fault { index: index as u32 });
        }
        for index in 0..self.world.nodes.len() {
            self.boot(index)?;
        }
        self.scenario.start(&mut self.world);
        let calm_at = nanos(self.config.active);
        self.run_until(calm_at)?;
        self.heal_everything()?;
        self.scenario.calm(&mut self.world);
        self.run_until(calm_at.saturating_add(nanos(self.config.calm)))?;
        self.scenario.finish(&mut self.world).map_err(Breach::Invariant)
    }

    fn run_until(&mut self, end: u64) -> Result<(), Breach> {
        while let Some(what) = self.world.pop(end) {
            self.world.counts.events += 1;
            if self.world.counts.events > self.config.events_max {
                return Err(Breach::Storm { events: self.config.events_max });
            }
            self.step(what)?;
        }
        self.world.now = end;
        Ok(())
    }

    fn step(&mut self, what: Happening<S::Machine>) -> Result<(), Breach> {
        match what {
            Happening::Deliver { to, life, from, message } => {
                let index = to as usize;
                let node = &mut self.world.nodes[index];
                if node.machine.is_none() || (life != ProcessId::ANY_LIFE && life != node.incarnation) {
                    return Ok(());
                }
                if self.world.now < node.paused_until {
                    node.waiting.push_back(Happening::Deliver { to, life, from, message });
                    return Ok(());
                }
                self.world.counts.delivered += 1;
                self.world.trace.mark_variant(self.world.now, to, 1, &message);
                self.world.trace.line(self.world.now, || format!("{to} <- {from}  {message:?}"));
                self.feed(index, Input::Received { from, message })
            }
            Happening::Command { node: to, incarnation, command } => {
                let node = &mut self.world.nodes[to as usize];
                if node.machine.is_none() || incarnation != node.incarnation {
                    return Ok(());
                }
                if self.world.now < node.paused_until {
                    node.waiting.push_back(Happening::Command { node: to, incarnation, command });
                    return Ok(());
                }
                self.world.trace.mark_variant(self.world.now, to, 2, &command);
                self.world.trace.line(self.world.now, || format!("{to} command {command:?}"));
                self.feed(to as usize, Input::Command(command))
            }
            Happening::Hint { node: to, peer, reachable } => {
                let node = &mut self.world.nodes[to as usize];
                if node.machine.is_none() {
                    return Ok(());
                }
                if self.world.now < node.paused_until {
                    node.waiting.push_back(Happening::Hint { node: to, peer, reachable });
                    return Ok(());
                }
                self.world.trace.mark(self.world.now, to, 3);
                let input = if reachable { Input::Reachable(peer) } else { Input::Unreachable(peer) };
                self.world.trace.line(self.world.now, || {
                    format!("{to} hint: {peer} is {}", if reachable { "reachable" } else { "unreachable" })
                });
                self.feed(to as usize, input)
            }
            Happening::Tick { node: to, generation } => self.tick(to as usize, generation),
            Happening::Synced { node: to, sync, position } => {
                let index = to as usize;
                let node = &mut self.world.nodes[index];
                if sync != node.sync {
                    return Ok(());
                }
                node.durable = node.durable.max(position);
                node.held_by_barrier = false;
                self.world.trace.mark(self.world.now, to, 4);
                self.world.trace.line(self.world.now, || format!("{to} synced {position} records"));
                if let Some((at, action)) = self.world.nodes[index].strike_when_durable.take() {
                    if at <= position {
                        // A crash here takes what is held with it; the milder actions let it go.
                        self.strike(index, action)?;
                    } else {
                        self.world.nodes[index].strike_when_durable = Some((at, action));
                    }
                }
                self.release(index)
            }
            Happening::Wake { token } => {
                self.world.trace.mark(self.world.now, u32::MAX, 5);
                self.scenario.wake(token, &mut self.world).map_err(Breach::Invariant)
            }
            Happening::Fault { index } => self.fault(index as usize),
            Happening::Heal { from, to } => {
                self.world.change_cuts(from, to, false);
                self.world.trace.note(self.world.now, || format!("healed {from:?} -> {to:?}"));
                self.hint_about_links(from, to, true);
                Ok(())
            }
            Happening::Restart { node, incarnation } => {
                let index = node as usize;
                let present = &self.world.nodes[index];
                if present.machine.is_some() || present.incarnation != incarnation {
                    Ok(())
                } else {
                    self.boot(index)
                }
            }
            Happening::Resume { node } => {
                let node = &mut self.world.nodes[node as usize];
                if self.world.now < node.paused_until {
                    return Ok(());
                }
                for what in mem::take(&mut node.waiting) {
                    self.world.schedule(0, INPUT, what);
                }
                Ok(())
            }
        }
    }

    fn tick(&mut self, index: usize, generation: u64) -> Result<(), Breach> {
        let now = self.world.now;
        let node = &mut self.world.nodes[index];
        if generation != node.tick_generation || node.machine.is_none() {
            return Ok(());
        }
        if now < node.paused_until {
            node.waiting.push_back(Happening::Tick { node: index as u32, generation });
            return Ok(());
        }
        node.tick_at = u64::MAX;
        let due = node.machine.as_ref().and_then(Machine::deadline).is_some_and(|at| at <= node.local(now));
        if !due {
            self.world.aim_tick(index);
            return Ok(());
        }
        self.world.trace.mark(now, index as u32, 6);
        self.world.trace.line(now, || format!("{index} tick"));
        self.feed(index, Input::Tick)
    }

    /// Hands one input to a machine that is up, carries out what it wants and checks its invariants.
    fn feed(&mut self, index: usize, input: Input<S::Machine>) -> Result<(), Breach> {
        let node = &mut self.world.nodes[index];
        let Some(machine) = node.machine.as_mut() else {
            return Ok(());
        };
        let now = Time::from_nanos(node.clock.local_time(self.world.now));
        machine.handle(now, input, &mut self.out);
        machine.check().map_err(Breach::Invariant)?;
        if !self.out.is_empty() {
            let mut out = mem::take(&mut self.out);
            let incarnation = self.world.nodes[index].incarnation;
            let mut outcome = Ok(());
            for output in out.drain() {
                let node = &mut self.world.nodes[index];
                // A strike in the middle kills the node and, with it, the outputs that are left.
                if node.machine.is_none() || node.incarnation != incarnation || outcome.is_err() {
                    continue;
                }
                let early = self.world.weather.appends_early && matches!(output, Output::Persist(_));
                if node.held_by_barrier && !early {
                    let position = node.log.len();
                    node.held.push_back((position, output));
                } else {
                    outcome = self.carry_out(index, usize::MAX, output);
                }
            }
            self.out = out;
            outcome?;
        }
        self.world.aim_tick(index);
        Ok(())
    }

    /// Carries out what a barrier held, up to the next one.
    fn release(&mut self, index: usize) -> Result<(), Breach> {
        let incarnation = self.world.nodes[index].incarnation;
        loop {
            let node = &mut self.world.nodes[index];
            if node.held_by_barrier || node.machine.is_none() || node.incarnation != incarnation {
                return Ok(());
            }
            let Some((position, output)) = node.held.pop_front() else {
                return Ok(());
            };
            self.carry_out(index, position, output)?;
        }
    }

    /// `position`: the end of the log when the machine asked for it, which is what a barrier waits for.
    fn carry_out(&mut self, index: usize, position: usize, output: Output<S::Machine>) -> Result<(), Breach> {
        if let Output::Barrier = output {
            let node = &mut self.world.nodes[index];
            // Without early appends, records were held as well and the present end of the log is what is meant.
            let position = if self.world.weather.appends_early { position } else { usize::MAX };
            if node.durable < position.min(node.log.len()) {
                node.held_by_barrier = true;
                self.world.begin_sync(index);
            }
            return Ok(());
        }
        if self.world.armed.is_empty() {
            return self.perform(index, output);
        }
        let Some((moment, action)) = self.strike_on(index, &output) else {
            return self.perform(index, output);
        };
        match moment {
            Moment::Before => {
                self.strike(index, action)?;
                // A node that lives on, because the strike was milder or may not kill, does what it was about to do.
                if self.world.is_up(index) { self.perform(index, output) } else { Ok(()) }
            }
            Moment::Durable if matches!(output, Output::Persist(_)) => {
                self.perform(index, output)?;
                let node = &mut self.world.nodes[index];
                node.strike_when_durable = Some((node.log.len(), action));
                Ok(())
            }
            Moment::After | Moment::Durable => {
                self.perform(index, output)?;
                self.strike(index, action)
            }
        }
    }

    fn strike_on(&mut self, index: usize, output: &Output<S::Machine>) -> Option<(Moment, Action)> {
        if !self.world.armed.iter().any(|armed| armed.node == index) {
            return None;
        }
        let class = self.scenario.promise(output)?;
        let mut hit = None;
        self.world.armed.retain_mut(|armed| {
            if armed.node != index || armed.class != class || hit.is_some() {
                return true;
            }
            if armed.skip > 0 {
                armed.skip -= 1;
                return true;
            }
            hit = Some((armed.moment, armed.action));
            false
        });
        if let Some((moment, action)) = hit {
            self.world.counts.strikes += 1;
            self.world
                .trace
                .note(self.world.now, || format!("{index} STRIKE {moment:?} {output:?}: {action:?}"));
        }
        hit
    }

    fn perform(&mut self, index: usize, output: Output<S::Machine>) -> Result<(), Breach> {
        match output {
            Output::Send { to, lane: _, message } => {
                self.world.trace.line(self.world.now, || format!("{index} -> {to:?}  {message:?}"));
                let message = if self.world.weather.wire_check {
                    through_wire(message, "message", &mut self.world.disk_rng, &mut self.world.trace)?
                } else {
                    message
                };
                match to {
                    Targets::One(peer) => self.world.send(index, peer, message),
                    Targets::Many(peers) => {
                        for peer in peers.iter() {
                            self.world.send(index, *peer, message.clone());
                        }
                    }
                }
                Ok(())
            }
            Output::Event(event) => {
                self.world.trace.mark_variant(self.world.now, index as u32, 7, &event);
                self.world.trace.line(self.world.now, || format!("{index} event {event:?}"));
                let who = Observed { node: index, id: self.world.id(index), at: self.world.now() };
                self.scenario.observe(who, &event, &mut self.world).map_err(Breach::Invariant)
            }
            Output::Persist(record) => {
                self.world.counts.records += 1;
                self.world.trace.mark_variant(self.world.now, index as u32, 8, &record);
                self.world.trace.line(self.world.now, || format!("{index} persist {record:?}"));
                let record = if self.world.weather.wire_check {
                    through_wire(record, "record", &mut self.world.disk_rng, &mut self.world.trace)?
                } else {
                    record
                };
                self.world.nodes[index].log.push(record);
                Ok(())
            }
            // Seen to by `carry_out`, which knows how far.
            Output::Barrier => Ok(()),
        }
    }

    fn strike(&mut self, index: usize, action: Action) -> Result<(), Breach> {
        match action {
            Action::Die { down_us, keep } => self.crash(index, down_us, keep),
            Action::Isolate { for_us } => {
                let (one, others) = (Nodes::one(index), Nodes::one(index).others());
                self.cut(one, others, for_us);
                self.cut(others, one, for_us);
            }
            Action::Stall { for_us } => self.pause(index, for_us),
        }
        Ok(())
    }

    fn fault(&mut self, index: usize) -> Result<(), Breach> {
        let fault = self.world.faults[index].clone();
        self.world.trace.mark_variant(self.world.now, index as u32, 9, &fault);
        self.world.trace.note(self.world.now, || format!("FAULT {fault:?}"));
        let count = self.world.nodes.len();
        let known = |node: usize| node < count;
        match fault {
            Fault::Crash { node, down_us, keep, .. } if known(node) => self.crash(node, down_us, keep),
            Fault::Pause { node, for_us, .. } if known(node) => self.pause(node, for_us),
            Fault::Cut { for_us, from, to, .. } => self.cut(from, to, for_us),
            Fault::ClockStep { node, ahead_us, .. } if known(node) => {
                let now = self.world.now;
                self.world.nodes[node].clock.step(now, i64::try_from(micros(ahead_us)).unwrap_or(i64::MAX));
                self.world.nodes[node].tick_at = u64::MAX;
                self.world.aim_tick(node);
            }
            Fault::SlowDisk { node, for_us, sync_us, .. } if known(node) => {
                self.world.nodes[node].slow_until = self.world.now.saturating_add(micros(for_us));
                self.world.nodes[node].slow_by = micros(sync_us);
            }
            Fault::Lie { to, about, reachable, .. } if known(to) && known(about) && to != about => {
                let peer = self.world.id(about);
                self.world.schedule(0, INPUT, Happening::Hint { node: to as u32, peer, reachable });
            }
            Fault::Strike { node, class, skip, moment, action, .. } if known(node) => {
                self.world.armed.push(Armed { node, class, skip, moment, action });
            }
            // A fault of a node that does not exist: the list was written for a larger system.
            _ => {}
        }
        Ok(())
    }

    fn boot(&mut self, index: usize) -> Result<(), Breach> {
        let world = &mut self.world;
        let node = &mut world.nodes[index];
        node.incarnation += 1;
        let mut chance = Rng::labelled(world.seed, LIFE_STREAM + index as u64 + (node.incarnation << 16));
        node.clock = world.weather.clock(world.now, &mut chance);
        let boot = Boot {
            node: index,
            id: ProcessId { node: index as u64, incarnation: node.incarnation },
            now: node.local(world.now),
            seed: chance.next_u64(),
            records: node.log.clone(),
        };
        let id = boot.id;
        world.trace.mark(world.now, index as u32, 10);
        world.trace.note(world.now, || format!("{index} starts as {id} with {} records", boot.records.len()));
        let machine = self.scenario.boot(boot);
        machine.check().map_err(Breach::Invariant)?;
        self.world.nodes[index].machine = Some(machine);
        self.world.aim_tick(index);
        self.hint_about_node(index, true);
        Ok(())
    }

    fn crash(&mut self, index: usize, down_us: u64, keep: Keep) {
        let down = self.world.nodes.iter().filter(|node| node.machine.is_none()).count();
        let limits = &self.world.limits;
        if self.world.nodes[index].machine.is_none()
            || down >= limits.down_max
            || self.world.counts.crashes >= limits.crashes_max
            || !self.scenario.may_crash(index, &self.world)
        {
            return;
        }
        self.world.counts.crashes += 1;
        let node = &mut self.world.nodes[index];
        let tail = node.log.len() - node.durable;
        let kept = match keep {
            Keep::Nothing => 0,
            Keep::Everything => tail,
            Keep::Permille(permille) => tail * permille.min(1000) as usize / 1000,
        };
        node.log.truncate(node.durable + kept);
        node.durable = node.log.len();
        node.machine = None;
        node.held.clear();
        node.held_by_barrier = false;
        node.sync += 1;
        node.waiting.clear();
        node.paused_until = 0;
        node.tick_at = u64::MAX;
        node.tick_generation += 1;
        node.strike_when_durable = None;
        let (incarnation, left) = (node.incarnation, node.log.len());
        self.world.trace.note(self.world.now, || format!("{index} CRASHED, {left} records left"));
        self.world.schedule(micros(down_us), INPUT, Happening::Restart { node: index as u32, incarnation });
        self.hint_about_node(index, false);
        self.scenario.crashed(index, &mut self.world);
    }

    fn pause(&mut self, index: usize, for_us: u64) {
        let until = self.world.now.saturating_add(micros(for_us));
        let node = &mut self.world.nodes[index];
        if node.machine.is_some() && until > node.paused_until {
            node.paused_until = until;
            self.world.schedule_at(until, INPUT, Happening::Resume { node: index as u32 });
        }
    }

    fn cut(&mut self, from: Nodes, to: Nodes, for_us: u64) {
        self.world.change_cuts(from, to, true);
        self.world.schedule(micros(for_us), INPUT, Happening::Heal { from, to });
        self.hint_about_links(from, to, false);
    }

    /// The calm phase begins: no fault is left, and every node is up.
    fn heal_everything(&mut self) -> Result<(), Breach> {
        self.world.trace.note(self.world.now, || "CALM: every fault is healed".to_owned());
        self.world.calm = true;
        self.world.armed.clear();
        self.world.cuts.fill(0);
        self.world.network.heal_all();
        self.world.weather.calm_down();
        self.world.network.set_default(self.world.weather.link);
        for index in 0..self.world.nodes.len() {
            let node = &mut self.world.nodes[index];
            node.paused_until = 0;
            node.slow_until = 0;
            node.strike_when_durable = None;
            for what in mem::take(&mut node.waiting) {
                self.world.schedule(0, INPUT, what);
            }
            if self.world.nodes[index].held_by_barrier {
                // A stalled disk is a fault too.
                let delay = self.world.weather.sync_time(&mut self.world.disk_rng);
                self.world.finish_sync_in(delay, index);
            }
            if self.world.nodes[index].machine.is_none() {
                self.boot(index)?;
            }
        }
        self.hint_about_links(Nodes(u64::MAX), Nodes(u64::MAX), true);
        Ok(())
    }

    /// Everyone else hears, sooner or later, that a node came or went.
    fn hint_about_node(&mut self, index: usize, reachable: bool) {
        let one = Nodes::one(index);
        self.hint_about_links(one, one.others(), reachable);
        if reachable {
            self.hint_about_links(one.others(), one, true);
        }
    }

    /// The nodes of `to` hear about the nodes of `from`.
    fn hint_about_links(&mut self, from: Nodes, to: Nodes, reachable: bool) {
        if self.world.weather.hints == Hints::None {
            return;
        }
        for about in 0..self.world.nodes.len() {
            for told in 0..self.world.nodes.len() {
                let up = !reachable || (self.world.is_up(about) && self.world.is_up(told));
                let cut = !self.world.network.reaches(about as u32, told as u32);
                if about == told || !from.contains(about) || !to.contains(told) || !up || (cut && reachable) {
                    continue;
                }
                let peer = self.world.id(about);
                let delay = self.world.weather.hint_delay(&mut self.world.disk_rng);
                self.world.schedule(delay, INPUT, Happening::Hint { node: told as u32, peer, reachable });
            }
        }
    }
}

enum Happening<M: Machine> {
    Deliver { to: u32, life: u64, from: ProcessId, message: M::Message },
    Command { node: u32, incarnation: u64, command: M::Command },
    Hint { node: u32, peer: ProcessId, reachable: bool },
    Tick { node: u32, generation: u64 },
    Synced { node: u32, sync: u64, position: usize },
    Wake { token: u64 },
    Fault { index: u32 },
    Heal { from: Nodes, to: Nodes },
    Restart { node: u32, incarnation: u64 },
    Resume { node: u32 },
}

struct Node<M: Machine> {
    machine: Option<M>,
    incarnation: u64,
    clock: Clock,
    /// Durable records first, then the tail that no sync has covered.
    log: Vec<M::Record>,
    durable: usize,
    /// What waits behind a barrier, each with the end of the log when it was asked for.
    held: VecDeque<(usize, Output<M>)>,
    held_by_barrier: bool,
    /// The number of the running (or last) sync; a crash makes it another.
    sync: u64,
    waiting: VecDeque<Happening<M>>,
    paused_until: u64,
    slow_until: u64,
    slow_by: u64,
    tick_at: u64,
    tick_generation: u64,
    strike_when_durable: Option<(usize, Action)>,
}

impl<M: Machine> Node<M> {
    fn new() -> Self {
        Self {
            machine: None,
            incarnation: 0,
            clock: Clock::PERFECT,
            log: Vec::new(),
            durable: 0,
            held: VecDeque::new(),
            held_by_barrier: false,
            sync: 0,
            waiting: VecDeque::new(),
            paused_until: 0,
            slow_until: 0,
            slow_by: 0,
            tick_at: u64::MAX,
            tick_generation: 0,
            strike_when_durable: None,
        }
    }

    fn local(&self, now: u64) -> Time {
        Time::from_nanos(self.clock.local_time(now))
    }
}

struct Armed {
    node: usize,
    class: u8,
    skip: u32,
    moment: Moment,
    action: Action,
}

struct Limits {
    down_max: usize,
    crashes_max: u64,
}

/// Encodes and decodes a value, as the wire and the disk would, and feeds the decoder garbage beside it.
fn through_wire<W: Wire>(
    value: W,
    kind: &'static str,
    rng: &mut Rng,
    trace: &mut Trace,
) -> Result<W, Breach> {
    let bytes = value.to_bytes();
    trace.bytes(&bytes);
    let back = W::from_bytes(bytes.clone()).map_err(|error| Breach::Codec(format!("{kind}: {error}")))?;
    if back.to_bytes() != bytes {
        return Err(Breach::Codec(format!("{kind}: decoding and encoding changed {} bytes", bytes.len())));
    }
    // A decoder must refuse or accept what is damaged, never panic; a panic here ends the run as a failure.
    if !bytes.is_empty() && rng.chance(Chance::percent(5)) {
        let cut = rng.below(bytes.len() as u64) as usize;
        if W::from_bytes(bytes.slice(..cut)).is_ok() {
            return Err(Breach::Codec(format!("{kind}: accepted with {cut} of {} bytes", bytes.len())));
        }
        let mut damaged = bytes.to_vec();
        damaged[cut] ^= 1 << rng.below(8);
        let _ = W::from_bytes(damaged.into());
    }
    Ok(back)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

const fn micros(us: u64) -> u64 {
    us.saturating_mul(1_000)
}

const INPUT: u8 = 0;
const TICK: u8 = 1;
const USER_STREAM: u64 = 2;
const DISK_STREAM: u64 = 3;
const NETWORK_STREAM: u64 = 4;
const LIFE_STREAM: u64 = 1 << 8;
/// What a message counts for on links with limited bandwidth; machines' messages have no bytes until encoded.
const MESSAGE_BYTES: usize = 128;
