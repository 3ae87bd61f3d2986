//! Two-phase commit in the simulator: every seed obeys, every planted bug is found.
//!
//! Proves      catalogue row K2 for the pure machine: all or nothing, durable votes and decisions, every row of the
//!             time-out table, the blocking case, recovery of both sides, costs.

mod directed;
mod mutants;
mod oracle;
mod sweeps;
