//! The mutation gate: each planted bug must be found, or the sweep proves nothing.

use quorate::sim::hunt;
use quorate_protocols::planted::{Plant, Planted};

use super::relay::{Relay, config};

/// How many seeds a bug may hide in.
const SEEDS: u64 = 500;

fn must_be_found(bug: Planted) {
    match hunt(&config(), 0..SEEDS, |rng| Relay::new(rng, Plant::of(bug))) {
        Some(found) => println!("{bug:?}: seed {} of {SEEDS}: {}", found.tried, found.breach),
        None => panic!("{bug:?} hid in {SEEDS} seeds"),
    }
}

#[test]
fn an_acknowledgement_before_the_disk_is_found() {
    must_be_found(Planted::TransferAcknowledgesUnstored);
}

#[test]
fn a_position_that_is_not_on_the_disk_is_found() {
    must_be_found(Planted::TransferTellsUnstored);
}

#[test]
fn messages_dropped_when_they_are_sent_are_found() {
    must_be_found(Planted::TransferSettlesUnstored);
}

#[test]
fn a_batch_behind_a_hole_is_found() {
    must_be_found(Planted::TransferSkipsGaps);
}

#[test]
fn messages_that_are_stored_again_are_found() {
    must_be_found(Planted::TransferStoresDuplicates);
}

#[test]
fn a_receiver_that_forgets_its_places_is_found() {
    must_be_found(Planted::TransferForgetsPlaces);
}

#[test]
fn a_new_disk_taken_for_the_old_one_is_found() {
    must_be_found(Planted::TransferIgnoresBirth);
}

#[test]
fn a_restored_disk_taken_for_one_that_went_on_is_found() {
    must_be_found(Planted::TransferIgnoresForks);
}
