//! (being built)

pub mod codec;
pub mod sim;

pub use codec::Payload;
