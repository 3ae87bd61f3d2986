//! The log on a simulated disk, and bugs planted into it that must be found.

mod crash;
mod offline;
mod planted;
mod world;
