//! Multicast in views: reliable and FIFO, then in causal or total order, then with the state for joiners.

pub mod causal;
pub mod fifo;
pub mod fragment;
mod places;
pub mod reliable;
pub mod state_transfer;
pub mod total;
pub mod total_lamport;
pub mod total_sequencer;
pub mod total_token;
