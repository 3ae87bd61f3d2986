//! The choice of a failure detector: one layer, several manners.
//!
//! Guarantee   that of the chosen one. All members of a group use the same.

use crate::machine::ProcessId;
use crate::stack::{Down, Either, Flow, Impossible, Layer, Offer, Up};
use crate::time::Time;

use super::gossip::{self, GossipDetector};
use super::heartbeat::{Config, Heartbeat, HeartbeatDetector, Judge};
use super::swim::{self, SwimDetector};

/// How members find out that one of them has died.
#[derive(Debug, Clone, Copy)]
pub enum Detection {
    /// Everybody beats, and silence is judged: see [`heartbeat`](super::heartbeat).
    Heartbeat(Judge),
    /// Members probe each other in turn, and ask so many others before they doubt: see [`swim`].
    Swim {
        /// How many are asked. Three are usual; with none, a lost message makes a doubt.
        helpers: usize,
    },
    /// Members pass on who was heard of: see [`gossip`].
    Gossip,
}

impl Default for Detection {
    fn default() -> Self {
        Self::Heartbeat(Judge::default())
    }
}

/// The chosen detector as a layer.
#[derive(Debug)]
pub enum Detector {
    /// Everybody beats.
    Heartbeat(HeartbeatDetector),
    /// Members probe each other in turn.
    Swim(SwimDetector),
    /// Members pass on who was heard of.
    Gossip(GossipDetector),
}

impl Detector {
    /// A detector for the process `me`, idle until the first view.
    pub fn new(me: ProcessId, config: Config, detection: Detection) -> Self {
        match detection {
            Detection::Heartbeat(judge) => Self::Heartbeat(HeartbeatDetector::new(me, config, judge)),
            Detection::Swim { helpers } => Self::Swim(SwimDetector::new(me, config, helpers)),
            Detection::Gossip => Self::Gossip(GossipDetector::new(me, config)),
        }
    }
}

/// What detectors of one manner send each other; another manner's messages are not for them.
pub type Message = Either<Heartbeat, Either<swim::Message, gossip::Message>>;

fn of_swim(message: swim::Message) -> Message {
    Either::Lower(Either::Upper(message))
}

fn of_gossip(message: gossip::Message) -> Message {
    Either::Lower(Either::Lower(message))
}

impl Layer for Detector {
    type Message = Message;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Message>) {
        match self {
            Self::Heartbeat(detector) => within(flow, Either::Upper, |own| detector.down(now, request, own)),
            Self::Swim(detector) => within(flow, of_swim, |own| detector.down(now, request, own)),
            Self::Gossip(detector) => within(flow, of_gossip, |own| detector.down(now, request, own)),
        }
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Message>) {
        match self {
            Self::Heartbeat(detector) => within(flow, Either::Upper, |own| detector.up(now, event, own)),
            Self::Swim(detector) => within(flow, of_swim, |own| detector.up(now, event, own)),
            Self::Gossip(detector) => within(flow, of_gossip, |own| detector.up(now, event, own)),
        }
    }

    fn receive(&mut self, now: Time, from: ProcessId, message: Message, flow: &mut Flow<Message>) {
        match (self, message) {
            (Self::Heartbeat(detector), Either::Upper(message)) => {
                within(flow, Either::Upper, |own| detector.receive(now, from, message, own));
            }
            (Self::Swim(detector), Either::Lower(Either::Upper(message))) => {
                within(flow, of_swim, |own| detector.receive(now, from, message, own));
            }
            (Self::Gossip(detector), Either::Lower(Either::Lower(message))) => {
                within(flow, of_gossip, |own| detector.receive(now, from, message, own));
            }
            _ => {}
        }
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Message>) {
        match self {
            Self::Heartbeat(detector) => within(flow, Either::Upper, |own| detector.tick(now, own)),
            Self::Swim(detector) => within(flow, of_swim, |own| detector.tick(now, own)),
            Self::Gossip(detector) => within(flow, of_gossip, |own| detector.tick(now, own)),
        }
    }

    fn deadline(&self) -> Option<Time> {
        match self {
            Self::Heartbeat(detector) => detector.deadline(),
            Self::Swim(detector) => detector.deadline(),
            Self::Gossip(detector) => detector.deadline(),
        }
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        match self {
            Self::Heartbeat(detector) => detector.stands_on(below),
            Self::Swim(detector) => detector.stands_on(below),
            Self::Gossip(detector) => detector.stands_on(below),
        }
    }
}

/// Lets a detector work, and takes over what it wants.
fn within<M>(flow: &mut Flow<Message>, wrap: fn(M) -> Message, work: impl FnOnce(&mut Flow<M>)) {
    let mut own = Flow::new();
    work(&mut own);
    flow.take_over(own, wrap);
}
