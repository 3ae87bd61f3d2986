//! Many seeds of the healthy machines.

use quorate::sim::sweep;
use quorate_protocols::planted::Plant;

use crate::once::{Once, config};
use crate::orphans::{self, Abandoned};
use crate::streams::{self, Streams};

#[test]
fn r07_every_exactly_once_call_takes_effect_once_in_every_seed() {
    let summary = sweep(&config(), 0..1_500, |rng| Once::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
    assert!(summary.counts.strikes > summary.seeds, "aimed crashes hit: {summary}");
}

/// A disk that takes a sync for every record once had a backlog of minutes, and refused in calm weather.
#[test]
fn a_service_with_a_slow_disk_answers_all_that_its_clients_wait_for() {
    let summary = sweep(&config(), 0x20d4..0x20d5, |rng| Once::new(rng, Plant::NONE)).unwrap();
    assert!(summary.counts.syncs > 100, "{summary}");
}

#[test]
fn r09_orphans_end_and_what_somebody_waits_for_does_not_in_every_seed() {
    let summary = sweep(&orphans::config(), 0..1_500, |rng| Abandoned::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
    assert!(summary.counts.crashes > summary.seeds, "callers die: {summary}");
}

#[test]
fn r03_a_stream_loses_doubles_and_reorders_nothing_unnoticed_in_any_seed() {
    let summary = sweep(&streams::config(), 0..1_000, |rng| Streams::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
    assert!(summary.counts.delivered > summary.seeds, "{summary}");
}
