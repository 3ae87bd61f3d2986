//! Two-phase commit in the simulator: every seed obeys, every planted bug is found.
//!
//! Proves      catalogue row K2 for the pure machine: all or nothing, durable votes and decisions, every row of the
//!             time-out table, the blocking case, recovery of both sides, costs.

mod directed;
mod log_directed;
mod log_oracle;
mod log_registers;
mod log_sweeps;
mod mutants;
mod oracle;
mod sweeps;
