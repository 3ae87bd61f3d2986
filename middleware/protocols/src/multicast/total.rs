//! The choice of a total order: one contract, several ways to it.
//!
//! Guarantee   that of either: one order for all members, which keeps each sender's own and the causal one, uniformly. All
//!             members of a group use the same way.

use crate::machine::{ProcessId, Violation};
use crate::planted::Plant;
use crate::stack::{Down, Flow, Impossible, Layer, Offer, Up};
use crate::time::Time;

use super::total_lamport::TotalLamport;
use super::total_sequencer::TotalSequencer;
use super::total_token::TotalToken;

/// How members agree on the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TotalBy {
    /// The longest-standing member says it: see [`total_sequencer`](super::total_sequencer). The fastest.
    #[default]
    Sequencer,
    /// It follows from the messages' sending times: see [`total_lamport`](super::total_lamport). Every member has to say
    /// something before a message is delivered.
    Lamport,
    /// A token goes round, and whoever holds it places its own messages: see [`total_token`](super::total_token). Nobody orders
    /// for another, and each gets its turn.
    Token,
}

/// The chosen way as a layer.
pub enum Total {
    /// The longest-standing member says the order.
    Sequencer(TotalSequencer),
    /// It follows from sending times.
    Lamport(TotalLamport),
    /// A token goes round.
    Token(TotalToken),
}

impl Total {
    /// The layer of process `me`.
    pub fn new(me: ProcessId, by: TotalBy, plant: Plant) -> Self {
        match by {
            TotalBy::Sequencer => Self::Sequencer(TotalSequencer::new(me, plant)),
            TotalBy::Lamport => Self::Lamport(TotalLamport::new(me, plant)),
            TotalBy::Token => Self::Token(TotalToken::new(me, plant)),
        }
    }

    fn layer(&self) -> &dyn Layer<Message = ()> {
        match self {
            Self::Sequencer(layer) => layer,
            Self::Lamport(layer) => layer,
            Self::Token(layer) => layer,
        }
    }

    fn layer_mut(&mut self) -> &mut dyn Layer<Message = ()> {
        match self {
            Self::Sequencer(layer) => layer,
            Self::Lamport(layer) => layer,
            Self::Token(layer) => layer,
        }
    }
}

impl Layer for Total {
    type Message = ();

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<()>) {
        self.layer_mut().down(now, request, flow);
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<()>) {
        self.layer_mut().up(now, event, flow);
    }

    fn receive(&mut self, now: Time, from: ProcessId, (): (), flow: &mut Flow<()>) {
        self.layer_mut().receive(now, from, (), flow);
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<()>) {
        self.layer_mut().tick(now, flow);
    }

    fn deadline(&self) -> Option<Time> {
        self.layer().deadline()
    }

    fn check(&self) -> Result<(), Violation> {
        self.layer().check()
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        self.layer().stands_on(below)
    }
}
