//! Every planted bug is found by the same histories that the code without it survives.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::crash::{crash_everywhere, fail_everywhere, flip_somewhere, stale_footer, stale_record};
use crate::planted::{Planted, plant};

/// Each with how it is looked for.
const BUGS: [(Planted, fn(u64)); 10] = [
    (Planted::CommitDoesNotSync, crash),
    (Planted::SealDoesNotSync, crash),
    (Planted::NewFileIsNotSynced, crash),
    (Planted::DirectoryIsNotSynced, crash),
    (Planted::SpareKeepsItsOldName, crash),
    (Planted::HalfAnAppendIsKept, crash),
    (Planted::RecoveryOnlySyncs, fail),
    (Planted::ProofIsIgnored, flip),
    (Planted::StaleRecordIsTaken, |_| stale_record()),
    (Planted::StaleFooterIsTaken, |_| stale_footer()),
];

#[test]
fn q02_every_planted_bug_of_the_journal_is_found() {
    for (bug, look) in BUGS {
        let found = (0..SEEDS).find(|seed| {
            plant(Some(bug));
            let outcome = catch_unwind(AssertUnwindSafe(|| look(*seed)));
            plant(None);
            outcome.is_err()
        });
        println!("{bug:?}: seed {found:?}");
        assert!(found.is_some(), "{bug:?} hides");
    }
}

fn crash(seed: u64) {
    crash_everywhere(seed);
}

fn fail(seed: u64) {
    fail_everywhere(seed);
}

fn flip(seed: u64) {
    flip_somewhere(seed);
}

const SEEDS: u64 = 400;
