//! Remote procedure call: what is executed how often, and what is known when no answer comes.

mod ahead;
mod bank;
mod binding;
mod calls;
mod ending;
mod exactly_once;
mod expected;
mod failures;
mod killed;
mod layers;
mod lossy;
mod manners;
mod many;
mod objects;
mod objects_killed;
mod orphans;
mod processes;
mod simulated;
mod states;
mod streams;
mod support;
mod variants;
mod versions;
mod weather;
