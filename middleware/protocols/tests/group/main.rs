//! Small groups on a network that does what a test says.

mod membership;
mod multicast;
mod net;
