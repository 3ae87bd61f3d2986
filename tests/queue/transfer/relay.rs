//! Stations in a line; messages are put at the first one and must arrive at the last.
//!
//! Oracle      at every moment and after every crash, what has arrived is a beginning of what was put, in order, each once;
//!             nothing arrives that was not put; in calm weather everything arrives whose put was told durable, and nothing
//!             stays on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate::sim::{Boot, Chance, Config, Observed, Rng, Scenario, World};
use quorate_protocols::planted::Plant;
use quorate_protocols::transfer;
use quorate_protocols::{Output, Violation};

use super::station::{Command, Event, Record, Station};

pub(crate) struct Relay {
    plant: Plant,
    stations: usize,
    window_bytes: usize,
    batch_bytes: usize,
    store_time: Duration,
    put_every: Duration,
    replaces: bool,
    /// The first disk goes back to a copy, sooner or later.
    restores: bool,
    /// What may arrive again because of that.
    again: BTreeSet<u64>,
    serial: u64,
    /// Told durable at the first station.
    put: BTreeSet<u64>,
    births: u64,
    is_calm: bool,
    broken: Option<Violation>,
}

impl Relay {
    pub(crate) fn new(rng: &mut Rng, plant: Plant) -> Self {
        Self {
            plant,
            stations: rng.between(2, 3) as usize,
            window_bytes: rng.between(1, 200) as usize,
            batch_bytes: transfer::BATCH_BYTES + rng.between(1, 160) as usize,
            store_time: Duration::from_micros(rng.between(1, 300_000)),
            put_every: Duration::from_micros(rng.between(5_000, 300_000)),
            replaces: rng.chance(Chance::percent(30)),
            restores: rng.chance(Chance::percent(30)),
            again: BTreeSet::new(),
            serial: 0,
            put: BTreeSet::new(),
            births: 1,
            is_calm: false,
            broken: None,
        }
    }

    /// Whether what has arrived is right: once, and in order.
    fn check(&self, station: &Station) -> Result<(), Violation> {
        let arrived = &station.disk().arrived;
        let once = || arrived.iter().filter(|serial| !self.again.contains(serial));
        match once().zip(once().skip(1)).find(|(before, after)| before >= after) {
            Some((before, after)) => Err(Violation(format!("{after} arrived after {before}"))),
            None if arrived.last().is_some_and(|last| *last > self.serial) => {
                Err(Violation("something arrived that was not put".into()))
            }
            None => Ok(()),
        }
    }

    /// Copies the first disk, or takes it back to its copy; true when there is more to do.
    fn restore(&mut self, world: &mut World<Station>) -> bool {
        let Some(disk) = world.machine(0).map(Station::disk) else { return true };
        let Some(saved) = disk.saved() else {
            world.command(0, Command::Save);
            return true;
        };
        let saved: BTreeSet<u64> = saved.collect();
        // What was put since and has not left goes with the disk; whether it is durable is not told any more.
        if disk.outgoing().chain([self.serial]).any(|serial| !self.put.contains(&serial)) {
            return true;
        }
        self.put.retain(|serial| saved.contains(serial) || !disk.is_waiting(*serial));
        self.again.extend(saved);
        world.command(0, Command::Restore);
        false
    }

    fn put(&mut self, world: &mut World<Station>) {
        self.serial += 1;
        world.command(0, Command::Put(self.serial));
    }
}

impl Scenario for Relay {
    type Machine = Station;

    fn nodes(&self) -> usize {
        self.stations
    }

    fn boot(&mut self, boot: Boot<Station>) -> Station {
        let mut config = transfer::Config::new(1, boot.id.incarnation);
        config.window_bytes = self.window_bytes;
        config.batch_bytes = self.batch_bytes;
        config.plant = self.plant;
        let next = (boot.node + 1 < self.stations).then_some(boot.node as u64 + 1);
        let station = Station::new(config, 1, next, &boot.records);
        self.broken = self.broken.take().or_else(|| self.check(&station).err());
        station
    }

    fn start(&mut self, world: &mut World<Station>) {
        world.wake_in(self.put_every, 0);
    }

    fn wake(&mut self, _: u64, world: &mut World<Station>) -> Result<(), Violation> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        if self.is_calm {
            return Ok(());
        }
        // Storing may be slow: what is on its way must have arrived at the end of the calm.
        let has_room = world.machine(0).is_some_and(|station| station.waiting() < WAITING_MAX);
        if world.is_up(0) && has_room {
            let is_empty = world.machine(0).is_some_and(Station::is_empty);
            // Nothing is lost with a disk that is empty; then its numbers begin again.
            if self.replaces && is_empty && self.put.contains(&self.serial) {
                self.births += 1000;
                world.command(0, Command::Replace(self.births));
                self.replaces = world.rng().chance(Chance::percent(50));
            } else if self.restores && world.rng().chance(Chance::percent(10)) {
                self.restores = self.restore(world);
            } else {
                let burst = if world.rng().chance(Chance::percent(20)) { 8 } else { 1 };
                (0..burst).for_each(|_| self.put(world));
            }
        }
        world.wake_in(self.put_every, 0);
        Ok(())
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Station>) -> Result<(), Violation> {
        match event {
            Event::Put(serial) => {
                self.put.insert(*serial);
                Ok(())
            }
            Event::Store => {
                let most = self.store_time.as_micros() as u64;
                let delay = Duration::from_micros(world.rng().between(0, most));
                world.command_in(delay, who.node, Command::Store);
                Ok(())
            }
            Event::Arrived => {
                let last = world.machine(who.node);
                last.map_or(Ok(()), |station| self.check(station))
            }
            Event::Gap => Err(Violation("a receiver has less than it told".into())),
        }
    }

    /// A crash at these moments is where messages are lost or doubled, if anywhere.
    fn promise(&self, output: &Output<Station>) -> Option<u8> {
        match output {
            Output::Persist(Record::Stored { .. }) => Some(0),
            Output::Send { message: transfer::Message::Stored { .. }, .. } => Some(1),
            Output::Persist(Record::Settled { .. }) => Some(2),
            Output::Send { message: transfer::Message::Batch { .. }, .. } => Some(3),
            Output::Event(Event::Store) => Some(4),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        5
    }

    fn calm(&mut self, world: &mut World<Station>) {
        self.is_calm = true;
        self.put(world);
    }

    fn finish(&mut self, world: &mut World<Station>) -> Result<(), Violation> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        for node in 0..self.stations {
            let Some(station) = world.machine(node) else {
                return Err(Violation(format!("station {node} is down")));
            };
            if !station.is_empty() {
                return Err(Violation(format!("station {node} still has something: {:?}", station.disk())));
            }
            if node + 1 == self.stations {
                self.check(station)?;
                let arrived: BTreeSet<u64> = station.disk().arrived.iter().copied().collect();
                if let Some(lost) = self.put.difference(&arrived).next() {
                    return Err(Violation(format!("{lost} was put and has not arrived")));
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn config() -> Config {
    Config { active: Duration::from_secs(15), calm: Duration::from_secs(25), ..Config::default() }
}

const WAITING_MAX: usize = 20;
