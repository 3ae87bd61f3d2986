//! The mutation gate: each planted bug must be found, or the sweep proves nothing.

use quorate::sim::hunt;
use quorate_protocols::planted::{Plant, Planted};

use crate::once::{Once, config};
use crate::orphans::{self, Abandoned};
use crate::streams::{self, Streams};

/// How many seeds a bug may hide in.
const SEEDS: u64 = 1_000;

fn must_be_found(bug: Planted) {
    match hunt(&config(), 0..SEEDS, |rng| Once::new(rng, Plant::of(bug))) {
        Some(found) => println!("{bug:?}: seed {} of {SEEDS}: {}", found.tried, found.breach),
        None => panic!("{bug:?} hid in {SEEDS} seeds"),
    }
}

fn must_be_found_among_orphans(bug: Planted) {
    match hunt(&orphans::config(), 0..SEEDS, |rng| Abandoned::new(rng, Plant::of(bug))) {
        Some(found) => println!("{bug:?}: seed {} of {SEEDS}: {}", found.tried, found.breach),
        None => panic!("{bug:?} hid in {SEEDS} seeds"),
    }
}

fn must_be_found_in_streams(bug: Planted) {
    match hunt(&streams::config(), 0..SEEDS, |rng| Streams::new(rng, Plant::of(bug))) {
        Some(found) => println!("{bug:?}: seed {} of {SEEDS}: {}", found.tried, found.breach),
        None => panic!("{bug:?} hid in {SEEDS} seeds"),
    }
}

#[test]
fn an_item_taken_twice_is_found() {
    must_be_found_in_streams(Planted::StreamTakesCopies);
}

#[test]
fn an_item_taken_before_those_in_front_of_it_is_found() {
    must_be_found_in_streams(Planted::StreamSkipsGaps);
}

#[test]
fn an_end_that_is_believed_too_early_is_found() {
    must_be_found_in_streams(Planted::StreamEndsEarly);
}

#[test]
fn a_reader_that_waits_for_what_is_lost_is_found() {
    must_be_found_in_streams(Planted::StreamWaitsForTheLost);
}

#[test]
fn an_orphan_that_outlives_its_callers_next_life_is_found() {
    must_be_found_among_orphans(Planted::RpcIgnoresReincarnation);
}

#[test]
fn an_orphan_that_outlives_its_quantum_is_found() {
    must_be_found_among_orphans(Planted::RpcIgnoresSilence);
}

#[test]
fn an_end_without_asking_the_owner_is_found() {
    must_be_found_among_orphans(Planted::RpcEndsUnasked);
}

#[test]
fn an_owner_that_does_not_say_that_it_waits_is_found() {
    must_be_found_among_orphans(Planted::RpcNeverRenews);
}

#[test]
fn an_answer_before_its_record_is_found() {
    must_be_found(Planted::RpcAnswersBeforeRecord);
}

#[test]
fn an_effect_apart_from_its_record_is_found() {
    must_be_found(Planted::RpcRecordsEffectApart);
}

#[test]
fn answers_trimmed_before_they_are_acknowledged_are_found() {
    must_be_found(Planted::RpcTrimsUnacknowledged);
}

#[test]
fn a_life_that_forgets_the_answers_of_the_last_one_is_found() {
    must_be_found(Planted::RpcForgetsAnswers);
}

#[test]
fn a_call_sent_again_to_who_has_forgotten_its_client_is_found() {
    must_be_found(Planted::RpcReissuesUnderNewSeat);
}
