//! Many seeds of the healthy machine.

use quorate::sim::{Config, sweep};
use quorate_protocols::planted::Plant;

use crate::oracle::Bank;

#[test]
fn k02_every_transaction_commits_everywhere_or_nowhere_in_every_seed() {
    let summary = sweep(&Config::default(), 0..2_000, |rng| Bank::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
    assert!(summary.counts.strikes > summary.seeds, "aimed crashes hit: {summary}");
}
