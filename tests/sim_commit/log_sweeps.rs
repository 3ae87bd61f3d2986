//! Many seeds of the healthy log, and the gate of bugs that it must find.

use quorate::sim::{Config, Kind, hunt, sweep};
use quorate_protocols::planted::{Plant, Planted};

use crate::log_oracle::Registers;

/// In how many seeds from the given one on a bug must be found; that one is where it was when it was planted.
const SEEDS: u64 = 2_000;

fn config() -> Config {
    Config { kinds: Kind::ALL.to_vec(), ..Config::default() }
}

fn must_be_found(bug: Planted, first: u64) {
    let found = hunt(&config(), first..first + SEEDS, |rng| Registers::new(rng, Plant::of(bug)));
    match found {
        Some(found) => println!("{bug:?}: seed {} from {first} on: {}", found.tried, found.breach),
        None => panic!("{bug:?} hid in {SEEDS} seeds"),
    }
}

#[test]
fn d05_replicas_of_a_log_deliver_the_same_and_clients_see_one_register_in_every_seed() {
    let summary = sweep(&config(), 0..150, |rng| Registers::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
    assert!(summary.counts.strikes > summary.seeds, "aimed crashes hit: {summary}");
}

#[test]
fn seed_233_a_log_that_is_full_after_a_restart_takes_what_makes_it_shorter() {
    sweep(&config(), 0x233..0x234, |rng| Registers::new(rng, Plant::NONE)).unwrap();
}

macro_rules! gate {
    ($($name:ident: $bug:ident from $first:literal),+ $(,)?) => {
        $(#[test]
        fn $name() {
            must_be_found(Planted::$bug, $first);
        })+
    };
}

gate! {
    a_replicas_vote_before_its_record_is_found: LogVotesBeforeRecord from 130,
    two_votes_in_one_term_are_found: LogVotesTwice from 70,
    a_leader_that_lacks_entries_is_found: LogElectsOutdated from 0,
    half_of_the_voters_as_a_quorum_is_found: LogQuorumOfHalf from 0,
    entries_acknowledged_before_their_record_are_found: LogAcknowledgesBeforeRecord from 0,
    a_leader_that_counts_itself_early_is_found: LogCountsItselfEarly from 0,
    entries_after_another_terms_entry_are_found: LogIgnoresOtherTerms from 0,
    entries_dropped_by_an_old_message_are_found: LogTruncatesMatching from 0,
    a_read_at_a_deposed_leader_is_found: LogReadsUnconfirmed from 330,
    a_read_before_the_leaders_own_entry_is_found: LogReadsBeforeOwnEntry from 0,
    a_proposal_that_is_delivered_twice_is_found: LogDeliversTwice from 0,
    a_snapshot_that_forgets_what_was_delivered_is_found: LogSnapshotForgetsSeats from 0,
}
