//! FIFO order: what reliable multicast already gives, handed on as it comes.
//!
//! Guarantee   each sender's messages in its order; nothing is said about messages of different senders.
//! Source      van Steen & Tanenbaum, FIFO-ordered multicasting.

use crate::machine::ProcessId;
use crate::stack::{Down, Flow, Impossible, Layer, Offer, Up};
use crate::time::Time;

/// The layer that adds no order.
#[derive(Debug, Default)]
pub struct Fifo;

impl Layer for Fifo {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        flow.down(request);
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<()>) {
        if !matches!(event, Up::Safe(_)) {
            flow.up(event);
        }
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, _: &mut Flow<()>) {}

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let below = below.with_all("fifo order", Offer::FIFO.and(Offer::VIEWS))?;
        Ok(below.with_none("fifo order", Offer::STATE)?.without(Offer::SAFE))
    }
}
