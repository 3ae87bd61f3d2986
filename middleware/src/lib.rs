//! (being built)

pub mod codec;
mod driver;
pub mod group;
pub mod node;
pub mod replication;
pub mod sim;

pub use codec::Payload;
pub use node::{Address, Identity, Incarnation, Lane, Node, NodeId};
