//! The protocols know nodes and lanes by their own types, so that they depend on no transport; this is the seam.

use quorate_protocols::machine;
use quorate_transports::connection::Lane;
use quorate_transports::{Identity, Incarnation, NodeId};

/// The protocols' name for an identity.
pub fn process_id_of(identity: Identity) -> machine::ProcessId {
    machine::ProcessId { node: identity.node.0, incarnation: identity.incarnation.0 }
}

/// The identity that the protocols call so.
pub fn identity_of(process: machine::ProcessId) -> Identity {
    Identity::new(NodeId(process.node), Incarnation(process.incarnation))
}

/// The connection's lane for a protocol's lane.
pub fn lane_of(lane: machine::Lane) -> Lane {
    match lane {
        machine::Lane::Control => Lane::Control,
        machine::Lane::Urgent => Lane::Urgent,
        machine::Lane::Ordinary => Lane::Ordinary,
        machine::Lane::Bulk => Lane::Bulk,
    }
}
