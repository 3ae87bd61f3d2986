//! Remote procedure call: what is executed how often, and what is known when no answer comes.

mod bank;
mod binding;
mod calls;
mod exactly_once;
mod ending;
mod failures;
mod killed;
mod many;
mod processes;
mod refused;
mod simulated;
mod streams;
mod support;
mod variants;
mod versions;
mod weather;
