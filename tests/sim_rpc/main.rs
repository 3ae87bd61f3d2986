//! Calls, orphans, streams and remote references in the simulator: every seed obeys, every planted bug is found.
//!
//! Proves      catalogue rows R3 (streams), R7, R8 and R9 for the pure machines: an effect is neither lost nor doubled
//!             whatever is lost, repeated or overtaken, and whoever crashes at whatever moment; who waits is answered;
//!             what executes for a caller that is gone is ended, and what somebody waits for is not.

mod mutants;
mod objects;
mod once;
mod orphans;
mod service;
mod streams;
mod sweeps;
