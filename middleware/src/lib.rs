//! (being built)

pub mod codec;
pub mod node;
pub mod rpc;
pub mod sim;

pub use codec::Payload;
pub use node::{Address, Identity, Incarnation, Lane, Node, NodeId};
pub use quorate_macros::service;
