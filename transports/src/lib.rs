//! (being built)

pub mod fault;
