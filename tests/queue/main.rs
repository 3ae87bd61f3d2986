//! Queues, as their users see them, and as crashes leave them.

mod backlog;
mod broker;
mod channels;
mod crash;
mod delivery;
mod engines;
mod kill;
mod limits;
mod managers;
mod order;
mod together;
mod transfer;
mod units;

use quorate::queue::{Delivery, Queue, Queues};
use quorate_journal::{Config, Storage};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Small segments, so that a short test has several.
fn config() -> Config {
    Config::new(1).segment_bytes(16 << 10).zero_fill_bytes(4 << 10)
}

fn open(storage: impl Storage) -> Queues {
    Queues::open(storage, config()).expect("a good disk")
}

/// Takes everything that is ready, and holds it.
fn take_all(queue: &Queue) -> Vec<Delivery> {
    std::iter::from_fn(|| queue.poll().expect("an open queue")).collect()
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| String::from_utf8_lossy(delivery.payload()).into_owned()).collect()
}
