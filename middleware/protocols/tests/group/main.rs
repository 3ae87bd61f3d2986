//! Small groups on a network that does what a test says.

mod detection;
mod feedback;
mod membership;
mod multicast;
mod net;
