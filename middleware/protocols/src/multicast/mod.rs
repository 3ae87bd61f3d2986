//! Multicast in views: reliable and FIFO, then totally ordered, then with the state for joiners.

pub mod fifo;
pub mod reliable;
pub mod state_transfer;
pub mod total_sequencer;
