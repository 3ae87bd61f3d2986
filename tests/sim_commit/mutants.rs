//! The mutation gate: each planted bug must be found, or the sweep proves nothing.

use quorate::sim::{Config, hunt};
use quorate_protocols::planted::{Plant, Planted};

use crate::oracle::Bank;

/// How many seeds a bug may hide in. All eight were found within 10 when this was written.
const SEEDS: u64 = 1_000;

fn must_be_found(bug: Planted) {
    let found = hunt(&Config::default(), 0..SEEDS, |rng| Bank::new(rng, Plant::of(bug)));
    match found {
        Some(found) => println!("{bug:?}: seed {} of {SEEDS}: {}", found.tried, found.breach),
        None => panic!("{bug:?} hid in {SEEDS} seeds"),
    }
}

#[test]
fn a_vote_before_its_record_is_found() {
    must_be_found(Planted::CommitVoteBeforePersist);
}

#[test]
fn a_decision_before_its_record_is_found() {
    must_be_found(Planted::CommitDecisionBeforePersist);
}

#[test]
fn an_uncertain_participant_that_aborts_alone_is_found() {
    must_be_found(Planted::CommitUncertainAborts);
}

#[test]
fn a_coordinator_that_forgets_before_all_have_acknowledged_is_found() {
    must_be_found(Planted::CommitForgetsBeforeAcks);
}

#[test]
fn votes_counted_instead_of_voters_are_found() {
    must_be_found(Planted::CommitCountsDuplicateVotes);
}

#[test]
fn an_acknowledgement_before_its_record_is_found() {
    must_be_found(Planted::CommitAcknowledgesBeforePersist);
}

#[test]
fn a_refusal_that_is_not_recorded_is_found() {
    must_be_found(Planted::CommitRefusesWithoutRecord);
}

#[test]
fn a_participant_that_does_not_remember_what_ended_is_found() {
    must_be_found(Planted::CommitForgetsFinished);
}
