//! Many seeds of the healthy machine.

use quorate::sim::sweep;
use quorate_protocols::planted::Plant;

use super::relay::{Relay, config};

#[test]
fn q05_every_message_is_stored_once_and_in_order_at_the_end_of_its_way_in_every_seed() {
    let summary = sweep(&config(), 0..1_000, |rng| Relay::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
    assert!(summary.counts.strikes > summary.seeds, "aimed crashes hit: {summary}");
}
