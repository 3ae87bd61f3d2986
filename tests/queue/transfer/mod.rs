//! Store-and-forward in the simulator: every seed obeys, every planted bug is found.
//!
//! Proves      catalogue row Q5 for the pure machine: what was put for a distant process is stored there once and in order,
//!             over one hop or two, whatever is lost, repeated or overtaken, whoever crashes at whatever moment, and also
//!             when the sender's disk was replaced.

mod limits;
mod mutants;
mod relay;
mod station;
mod sweeps;
