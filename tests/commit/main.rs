//! Distributed commit over real sockets and journals, in one process and in several that are killed.
//!
//! Proves      catalogue row K2 for its users: typed outcomes, promises that survive restarts, books that balance
//!             whoever is killed.

mod killed;
mod local;
mod log_killed;
mod log_local;
mod log_simulated;
mod registers;
mod vault;
