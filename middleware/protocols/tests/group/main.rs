//! Small groups on a network that does what a test says.

mod detection;
mod membership;
mod multicast;
mod net;
