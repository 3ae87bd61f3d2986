//! The disk under the queues is crashed at every operation of random histories.
//!
//! After each restart every message that was put and not acknowledged is there once, in its queue or in the dead
//! letters, in order and with its bytes; none whose acknowledgement returned is. `QUORATE_SEED=n` runs one seed only,
//! `QUORATE_SEEDS=n` so many. The journal's committer is a thread of its own: a seed gives the same plan and the same disk
//! each time, but not always the same batches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate::queue::{Delivery, Queue, QueueConfig, Queues};
use quorate_journal::{Config, Faults, FaultyStorage};
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

#[test]
fn q02_crash_at_every_disk_operation_keeps_every_message_once_and_in_order() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match (number("QUORATE_SEED"), number("QUORATE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(3),
    };
    let (mut crashes, mut moved) = (0, 0);
    for seed in seeds {
        for crash_at in 0.. {
            let is_cut = runtime.block_on(async {
                let mut world = World::new(seed);
                world.disk.crash_at(crash_at);
                world.live(100).await;
                let is_cut = world.disk.is_crashed();
                world.restart();
                let second = world.chance.next_u64() % 30;
                world.disk.crash_at(second);
                world.live(10).await;
                world.restart();
                world.live(3).await;
                assert!(!world.disk.is_crashed());
                moved += world.moved;
                is_cut
            });
            crashes += 1;
            if !is_cut {
                break;
            }
        }
    }
    println!("{crashes} histories crashed, {moved} messages moved forward in them");
    assert!(moved > 0 || std::env::var_os("QUORATE_SEED").is_some());
}

struct World {
    seed: u64,
    chance: Xoshiro256PlusPlus,
    disk: FaultyStorage,
    serial: u64,
    /// Put and not acknowledged, with the bytes.
    stored: BTreeMap<u64, Vec<u8>>,
    /// A put or an acknowledgement of these was under way when the power went: they may be there or not.
    unknown: BTreeMap<u64, Vec<u8>>,
    gone: BTreeSet<u64>,
    moved: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
        let faults = Faults {
            short_transfers: chance.next_u64().is_multiple_of(2),
            write_back: chance.next_u64().is_multiple_of(2),
            garbage: chance.next_u64().is_multiple_of(2),
            capacity_bytes: None,
        };
        Self {
            seed,
            disk: FaultyStorage::with_faults(seed, faults),
            chance,
            serial: 0,
            stored: BTreeMap::new(),
            unknown: BTreeMap::new(),
            gone: BTreeSet::new(),
            moved: 0,
        }
    }

    fn restart(&mut self) {
        self.disk = self.disk.crash();
    }

    /// Opens the queues, checks them, and works until the power goes or the steps are done.
    async fn live(&mut self, steps: usize) {
        let queues = match Queues::open(self.disk.clone(), config(self.seed)) {
            Ok(queues) => queues,
            Err(error) => {
                assert!(self.disk.is_crashed(), "seed {}: {error:?}", self.seed);
                return;
            }
        };
        if self.work(&queues, steps).await.is_none() {
            assert!(self.disk.is_crashed(), "seed {}: only the crash makes a call fail", self.seed);
        }
        queues.close().await;
    }

    /// `None` when the power went.
    async fn work(&mut self, queues: &Queues, steps: usize) -> Option<()> {
        let settings = QueueConfig::new().deliveries_max(Some(3));
        let queue = queues.queue_with("work", settings).await.ok()?;
        let dead = queues.queue("work.dead").await.ok()?;
        self.check(&queue, &dead)?;
        // Somebody who never comes to an end with the oldest message: it must not hold up the journal.
        self.put(&queue, 1).await?;
        let _held = queue.poll().ok()?;
        let outcome = self.steps(&queue, &dead, steps).await;
        self.moved += queue.stats().moved + dead.stats().moved;
        outcome
    }

    async fn steps(&mut self, queue: &Queue, dead: &Queue, steps: usize) -> Option<()> {
        for _ in 0..steps {
            match self.chance.next_u64() % 10 {
                0..=2 => self.put(queue, 1).await?,
                3 => self.put(queue, 3).await?,
                4..=7 => {
                    let count = 1 + self.chance.next_u64() % 3;
                    let mut deliveries = Vec::new();
                    for _ in 0..count {
                        deliveries.extend(queue.poll().ok()?);
                    }
                    self.acknowledge(deliveries).await?;
                }
                8 => {
                    // Three deliveries without success make a dead letter.
                    if let Some(delivery) = queue.poll().ok()? {
                        delivery.nack(Duration::ZERO).ok()?;
                    }
                }
                _ => {
                    let delivery = dead.poll().ok()?;
                    self.acknowledge(delivery.into_iter().collect()).await?;
                }
            }
        }
        Some(())
    }

    /// Puts `count` messages at once.
    async fn put(&mut self, queue: &Queue, count: u64) -> Option<()> {
        let mut puts = Vec::new();
        for _ in 0..count {
            self.serial += 1;
            let mut payload = vec![self.serial as u8; (self.chance.next_u64() % 900) as usize + 8];
            payload[..8].copy_from_slice(&self.serial.to_le_bytes());
            self.unknown.insert(self.serial, payload.clone());
            let (queue, serial) = (queue.clone(), self.serial);
            puts.push((serial, tokio::spawn(async move { queue.put(payload).await })));
        }
        let mut all = Some(());
        for (serial, put) in puts {
            match put.await.expect("it does not panic") {
                Ok(_) => {
                    let payload = self.unknown.remove(&serial).expect("just noted");
                    self.stored.insert(serial, payload);
                }
                Err(_) => all = None,
            }
        }
        all
    }

    /// Acknowledges all of them at once.
    async fn acknowledge(&mut self, deliveries: Vec<Delivery>) -> Option<()> {
        let mut acks = Vec::new();
        for delivery in deliveries {
            let serial = serial(delivery.payload());
            let payload = self.stored.remove(&serial).expect("what is delivered was stored");
            self.unknown.insert(serial, payload);
            acks.push((serial, tokio::spawn(delivery.ack())));
        }
        let mut all = Some(());
        for (serial, ack) in acks {
            match ack.await.expect("it does not panic") {
                Ok(()) => {
                    self.unknown.remove(&serial);
                    self.gone.insert(serial);
                }
                Err(_) => all = None,
            }
        }
        all
    }

    /// `None` when the power went meanwhile: what is taken is noted on the disk.
    fn check(&mut self, queue: &Queue, dead: &Queue) -> Option<()> {
        let seed = self.seed;
        let mut found = BTreeMap::new();
        // Held until both were looked at: a message given back for the third time goes to the dead letters.
        let held = [take_while_powered(queue)?, take_while_powered(dead)?];
        for held in &held {
            assert!(held.iter().map(Delivery::id).is_sorted(), "seed {seed}");
            for delivery in held {
                let payload = delivery.payload().to_vec();
                let serial = serial(&payload);
                assert!(found.insert(serial, payload).is_none(), "seed {seed}: {serial} is there twice");
            }
        }
        // Puts of one step run at once, and are stored in the order in which they were begun.
        let serials = || held[0].iter().map(|delivery| serial(delivery.payload()));
        assert!(serials().is_sorted(), "seed {seed}: {:?}", serials().collect::<Vec<_>>());
        for (serial, payload) in &self.stored {
            assert_eq!(found.get(serial), Some(payload), "seed {seed}: {serial} was stored");
        }
        for (serial, payload) in &found {
            assert!(!self.gone.contains(serial), "seed {seed}: {serial} was acknowledged");
            let known = self.stored.get(serial).or_else(|| self.unknown.get(serial));
            assert_eq!(known, Some(payload), "seed {seed}: {serial} was never put");
        }
        for (serial, _) in std::mem::take(&mut self.unknown) {
            if !found.contains_key(&serial) {
                self.gone.insert(serial);
            }
        }
        self.stored = found;
        Some(())
    }
}

/// Everything that is ready; `None` when the power went.
fn take_while_powered(queue: &Queue) -> Option<Vec<Delivery>> {
    let mut taken = Vec::new();
    while let Some(delivery) = queue.poll().ok()? {
        taken.push(delivery);
    }
    Some(taken)
}

/// The smallest segments, so that short histories have many.
fn config(seed: u64) -> Config {
    Config::new(1).segment_bytes(8 << 10).zero_fill_bytes([0, 1 << 10][(seed % 2) as usize])
}

fn serial(payload: &[u8]) -> u64 {
    u64::from_le_bytes(*payload.first_chunk().expect("eight bytes at least"))
}
