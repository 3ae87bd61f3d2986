//! Two endpoints and the path between them, under virtual time.

mod application;
mod mischief;

use std::collections::BTreeMap;

use super::plan::{Ending, Habit, Half, Plan, SILENCE_MAX};
use crate::fault::model::{LinkModel, Network, Rng, TraceHash};
use crate::udp::machine::endpoint::{Endpoint, Place};
use crate::udp::machine::plant::{Plant, Planted};
use crate::udp::machine::{Broken, MILLI, Nanos};

impl Place for u16 {
    fn bytes(&self) -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[..2].copy_from_slice(&self.to_le_bytes());
        bytes
    }
}

/// What a run without a failure shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) trace: u64,
    pub(super) packets: u64,
    pub(super) ended_at: Nanos,
    /// When an application got a byte for the last time.
    pub(super) read_at: Nanos,
}

/// Runs a seed to its end; the error says which promise was broken.
pub(super) fn run(seed: u64, bug: Option<Planted>) -> Result<Summary, String> {
    let mut rng = Rng::labelled(seed, 1);
    run_plan(seed, Plan::drawn(&mut rng), bug)
}

/// Runs a plan of its own.
pub(super) fn run_plan(seed: u64, plan: Plan, bug: Option<Planted>) -> Result<Summary, String> {
    World::new(seed, plan, bug).run()
}

struct World {
    now: Nanos,
    serial: u64,
    queue: BTreeMap<(Nanos, u64), Event>,
    network: Network<u16>,
    rng: Rng,
    plan: Plan,
    ends: [End; 2],
    /// Every address that the dialler had.
    proved: Vec<u16>,
    is_healed: bool,
    /// Bytes to and from addresses at which nobody is.
    fooled: BTreeMap<u16, [u64; 2]>,
    /// Packets that a stranger saw, for later.
    seen: Vec<(u16, u16, Vec<u8>)>,
    packets: u64,
    packets_since_cut: u64,
    read_at: Nanos,
    trace: TraceHash,
    failure: Option<String>,
}

enum Event {
    Arrives { from: u16, to: u16, datagram: Vec<u8> },
    Wake(usize),
    App(usize),
    Cut(u8),
    Heal(u8),
    HealAll,
    Move,
    Drop(usize),
    DropHalf(usize, Half),
}

struct End {
    endpoint: Endpoint<u16>,
    place: u16,
    /// The link, once it is dialled or accepted, and as long as the application holds it.
    id: Option<u64>,
    dialling: Option<u64>,
    habit: Habit,
    /// What the other one writes.
    expected: u64,
    written: u64,
    read: u64,
    is_finished: bool,
    is_delivered: bool,
    has_end: bool,
    broken: Option<Broken>,
    is_done: bool,
    is_dropped: bool,
    /// Dropped alone.
    dropped: Option<Half>,
    /// The reader found that its writer is gone.
    is_reset: bool,
    /// It was not told to wait, or has got news since: whoever is not woken does not look.
    may_read: bool,
    may_write: bool,
    wake_at: Option<Nanos>,
    app_at: Option<Nanos>,
}

impl World {
    fn new(seed: u64, plan: Plan, bug: Option<Planted>) -> Self {
        let end = |index: usize| {
            let secret = [seed ^ 0x51, index as u64];
            let mut endpoint = Endpoint::new(plan.limits.clone(), secret, index == LISTENER);
            endpoint.plant = Plant { bug };
            End {
                endpoint,
                place: [DIALLER_PLACE, LISTENER_PLACE][index],
                id: None,
                dialling: None,
                habit: plan.habits[index].clone(),
                expected: plan.habits[1 - index].bytes,
                written: 0,
                read: 0,
                is_finished: false,
                is_delivered: false,
                has_end: false,
                broken: None,
                is_done: false,
                is_dropped: false,
                dropped: None,
                is_reset: false,
                may_read: true,
                may_write: true,
                wake_at: None,
                app_at: None,
            }
        };
        let ends = [end(DIALLER), end(LISTENER)];
        let mut world = Self {
            now: 0,
            serial: 0,
            queue: BTreeMap::new(),
            network: Network::new(LinkModel::LOCAL),
            rng: Rng::labelled(seed, 2),
            plan,
            ends,
            proved: vec![DIALLER_PLACE],
            is_healed: false,
            fooled: BTreeMap::new(),
            seen: Vec::new(),
            packets: 0,
            packets_since_cut: 0,
            read_at: 0,
            trace: TraceHash::new(),
            failure: None,
        };
        world.join(DIALLER_PLACE);
        for (from, until, ways) in world.plan.cuts.clone() {
            world.at(from, Event::Cut(ways));
            world.at(until, Event::Heal(ways));
        }
        for at in world.plan.moves.clone() {
            world.at(at, Event::Move);
        }
        world.at(world.plan.healed_at, Event::HealAll);
        match world.plan.ending {
            Ending::Whole => {}
            Ending::Cut { at, ways } => world.at(at, Event::Cut(ways)),
            Ending::Dropped { at, by } => world.at(at, Event::Drop(by)),
            Ending::Halved { at, by, half } => world.at(at, Event::DropHalf(by, half)),
        }
        world.ends[DIALLER].dialling = Some(world.ends[DIALLER].endpoint.dial(0, LISTENER_PLACE));
        world
    }

    /// The path of the plan from and to this place of the dialler.
    fn join(&mut self, place: u16) {
        self.network.set_link(place, LISTENER_PLACE, self.plan.ways[0]);
        self.network.set_link(LISTENER_PLACE, place, self.plan.ways[1]);
    }

    fn at(&mut self, at: Nanos, event: Event) {
        self.serial += 1;
        self.queue.insert((at.max(self.now), self.serial), event);
    }

    fn run(mut self) -> Result<Summary, String> {
        self.pump(DIALLER);
        let mut events = 0;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            events += 1;
            if events > EVENTS_MAX {
                return Err(self.describe("a storm of events"));
            }
            if self.now > END {
                break;
            }
            self.step(event);
            if let Some(failure) = self.failure.take() {
                return Err(self.describe(&failure));
            }
            if self.is_done() {
                break;
            }
        }
        self.check_end().map_err(|failure| self.describe(&failure))?;
        Ok(Summary {
            trace: self.trace.value(),
            packets: self.packets,
            ended_at: self.now,
            read_at: self.read_at,
        })
    }

    fn describe(&self, failure: &str) -> String {
        let end = |end: &End| {
            format!(
                "wrote {}/{}, read {}/{}, delivered {}, end {}, broken {:?}, held {:?}",
                end.written,
                end.habit.bytes,
                end.read,
                end.expected,
                end.is_delivered,
                end.has_end,
                end.broken,
                end.endpoint.held()
            )
        };
        format!(
            "{failure}, at {} ms after {} packets; {:?}\ndialler: {}\nlistener: {}",
            self.now / MILLI,
            self.packets,
            self.plan.ending,
            end(&self.ends[0]),
            end(&self.ends[1])
        )
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Arrives { from, to, datagram } => {
                let Some(index) = self.ends.iter().position(|end| end.place == to) else { return };
                if !self.proved.contains(&from) && from != LISTENER_PLACE {
                    self.fooled.entry(from).or_default()[1] += datagram.len() as u64;
                }
                self.trace.word(self.now);
                self.trace.bytes(&datagram);
                self.ends[index].endpoint.handle(self.now, from, &datagram);
                self.pump(index);
            }
            Event::Wake(index) => {
                self.ends[index].wake_at = None;
                self.pump(index);
            }
            Event::App(index) => {
                self.ends[index].app_at = None;
                self.app(index);
                self.pump(index);
            }
            Event::Cut(ways) => {
                for place in self.proved.clone() {
                    if ways & 1 != 0 {
                        self.network.cut_one_way(place, LISTENER_PLACE);
                    }
                    if ways & 2 != 0 {
                        self.network.cut_one_way(LISTENER_PLACE, place);
                    }
                }
                self.packets_since_cut = 0;
            }
            Event::Heal(ways) => {
                for place in self.proved.clone() {
                    if ways & 1 != 0 {
                        self.network.heal_one_way(place, LISTENER_PLACE);
                    }
                    if ways & 2 != 0 {
                        self.network.heal_one_way(LISTENER_PLACE, place);
                    }
                }
            }
            Event::HealAll => {
                self.is_healed = true;
                self.network.reset_links();
            }
            Event::Move => {
                let place = DIALLER_PLACE + self.proved.len() as u16;
                self.proved.push(place);
                self.ends[DIALLER].place = place;
                self.join(place);
            }
            Event::Drop(by) => {
                if let Some(id) = self.ends[by].id.or(self.ends[by].dialling) {
                    self.release(by, id);
                    self.pump(by);
                } else {
                    // Not accepted yet.
                    self.at(self.now + 10 * MILLI, Event::Drop(by));
                }
            }
            Event::DropHalf(by, half) => {
                let end = &mut self.ends[by];
                if end.id.is_none() && !end.is_dropped {
                    self.at(self.now + 10 * MILLI, Event::DropHalf(by, half));
                } else if let Some(id) = end.id.filter(|_| !end.is_dropped) {
                    end.dropped = Some(half);
                    match half {
                        Half::Sender => end.endpoint.drop_sender(self.now, id),
                        Half::Receiver => end.endpoint.drop_receiver(self.now, id),
                    }
                    self.app(by);
                    self.pump(by);
                }
            }
        }
    }

    fn release(&mut self, index: usize, id: u64) {
        let end = &mut self.ends[index];
        if !end.is_dropped {
            end.is_dropped = true;
            if end.dropped != Some(Half::Sender) {
                end.endpoint.drop_sender(self.now, id);
            }
            if end.dropped != Some(Half::Receiver) {
                end.endpoint.drop_receiver(self.now, id);
            }
        }
    }

    /// Lets an endpoint do all that it wants to do now.
    fn pump(&mut self, index: usize) {
        let now = self.now;
        for round in 0.. {
            self.ends[index].endpoint.on_time(now);
            loop {
                let mut bytes = Vec::new();
                let segments = 1 + self.rng.below(8) as usize;
                let Some(transmit) = self.ends[index].endpoint.transmit(now, segments, &mut bytes) else {
                    break;
                };
                if bytes.len() > segments * transmit.segment_bytes {
                    self.failure = Some("more segments than asked for".to_owned());
                }
                for datagram in bytes.chunks(transmit.segment_bytes) {
                    self.send(index, transmit.to, datagram);
                }
            }
            let mut has_news = false;
            let end = &mut self.ends[index];
            while let Some((id, news)) = end.endpoint.pop_news() {
                let is_mine = end.id.or(end.dialling).is_none_or(|mine| mine == id);
                end.may_read |= is_mine && news.read;
                end.may_write |= is_mine && news.write;
                has_news = true;
            }
            if has_news {
                self.app(index);
            } else if self.ends[index].endpoint.deadline().is_none_or(|at| at > now) {
                break;
            }
            if round > ROUNDS_MAX {
                self.failure = Some("it spins".to_owned());
                return;
            }
        }
        let (connections, incoming, outgoing) = self.ends[index].endpoint.held();
        // One that is dialled, and at most as many again as a dialler asks for when it does not hear the welcome.
        if connections > 1 + self.proved.len() || incoming > self.plan.limits.receive_bytes_max {
            self.failure = Some(format!("{connections} connections hold {incoming} bytes"));
        }
        if outgoing > self.plan.limits.send_bytes_max {
            self.failure = Some(format!("{outgoing} bytes wait to be sent"));
        }
        let end = &mut self.ends[index];
        if let Some(at) = end.endpoint.deadline()
            && end.wake_at.is_none_or(|wake_at| at < wake_at)
        {
            end.wake_at = Some(at);
            self.at(at, Event::Wake(index));
        }
    }

    fn send(&mut self, index: usize, to: u16, datagram: &[u8]) {
        let from = self.ends[index].place;
        self.packets += 1;
        self.packets_since_cut += 1;
        if !self.proved.contains(&to) && to != LISTENER_PLACE {
            let [sent, received] = self.fooled.entry(to).or_default();
            *sent += datagram.len() as u64;
            if sent > received {
                self.failure = Some(format!("{sent} bytes to a place that sent {received}"));
            }
        }
        self.travel(from, to, datagram);
        let mischief = self.plan.mischief;
        if !self.is_healed && self.rng.chance(mischief) {
            self.make_mischief(from, to, datagram);
        }
    }

    fn travel(&mut self, from: u16, to: u16, datagram: &[u8]) {
        let fate = self.network.fate(self.now, from, to, datagram.len(), &mut self.rng);
        for delivery in fate.iter() {
            let mut datagram = datagram.to_vec();
            if let Some(corruption) = delivery.corruption {
                corruption.apply(&mut datagram);
            }
            self.at(self.now + delivery.delay_nanos, Event::Arrives { from, to, datagram });
        }
    }

    /// Nothing is left to happen: both applications are done, and the endpoints have forgotten them.
    fn is_done(&self) -> bool {
        self.is_healed && self.ends.iter().all(|end| end.is_dropped && end.endpoint.held().0 == 0)
    }

    fn check_end(&self) -> Result<(), String> {
        let [one, two] = &self.ends;
        match self.plan.ending {
            Ending::Whole => {
                // Whoever has everything may be gone to where the last acknowledgement does not come from.
                let may_doubt = |end: &End| end.broken.is_some() && !self.plan.moves.is_empty();
                let is_well = |end: &End| end.has_end && (end.is_delivered || may_doubt(end));
                if !(is_well(one) && is_well(two)) {
                    return Err("not everything arrived although the path has healed".to_owned());
                }
            }
            Ending::Cut { .. } => {
                // Whoever was not done before is told.
                for end in &self.ends {
                    if !(end.is_dropped || end.id.is_none()) {
                        return Err("a silent peer is not missed".to_owned());
                    }
                }
                let per_end = PACKETS_PER_CUT_MAX + 4 * SILENCE_MAX / (1_000 * MILLI);
                if self.packets_since_cut > 2 * per_end && one.broken.is_some() {
                    return Err(format!("{} packets into a cut path", self.packets_since_cut));
                }
            }
            Ending::Dropped { .. } => {
                if self.ends.iter().any(|end| end.id.is_some() && !end.is_dropped) {
                    return Err("a dropped link is not missed".to_owned());
                }
            }
            Ending::Halved { by, half, .. } => {
                let (dropper, other) = (&self.ends[by], &self.ends[1 - by]);
                let may_doubt =
                    !self.plan.moves.is_empty() && self.ends.iter().any(|end| end.broken.is_some());
                let is_whole =
                    |reader: &End| reader.has_end && !reader.is_reset && reader.read == reader.expected;
                let is_well = match half {
                    Half::Sender => is_whole(dropper) && other.has_end,
                    Half::Receiver => is_whole(other) && other.is_delivered,
                };
                if !(is_well || may_doubt) {
                    return Err(format!("without the {half:?} of {by} the other direction did not arrive"));
                }
            }
        }
        if self.ends.iter().any(|end| end.endpoint.held().0 > 0) {
            return Err("an ended connection is remembered for ever".to_owned());
        }
        Ok(())
    }
}

const DIALLER: usize = 0;
const LISTENER: usize = 1;
const LISTENER_PLACE: u16 = 1_000;
const DIALLER_PLACE: u16 = 1;
/// The first of the addresses at which nobody is.
const STRANGER_PLACE: u16 = 5_000;
/// Ten times what the busiest seed needs.
const EVENTS_MAX: u64 = 200_000;
/// Rounds of timers, packets and news at one moment.
const ROUNDS_MAX: u32 = 100;
const END: Nanos = 120_000 * MILLI;
/// What a window, the probes of a cut path and the signs of life come to.
const PACKETS_PER_CUT_MAX: u64 = 120;
