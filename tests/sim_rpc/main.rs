//! Exactly-once calls and remote references in the simulator: every seed obeys, every planted bug is found.
//!
//! Proves      catalogue rows R7 and R8 for the pure machines: an effect is neither lost nor doubled whatever is lost,
//!             repeated or overtaken, and whoever crashes at whatever moment; who waits is answered.

mod mutants;
mod objects;
mod once;
mod service;
mod sweeps;
