//! Remote procedure call: what is executed how often, and what is known when no answer comes.

mod simulated;
