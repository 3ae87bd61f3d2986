//! (being built)

pub mod codec;

pub use codec::Payload;
