//! The layer contract, and the pair that makes two layers one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Down, Impossible, Offer, Up};
use crate::machine::{Lane, ProcessId, Targets, Violation};
use crate::time::Time;
use crate::wire::{Wire, WireError, take_u8};

/// One layer of a stack. The same rules as for a [`Machine`](crate::Machine): no clock, no blocking, no panic on
/// what a peer sent, and a deadline in the past means "after the inputs that are waiting".
pub trait Layer {
    /// What this layer sends to its own kind.
    type Message: Wire + Clone + fmt::Debug;

    /// Takes a request from the layer above.
    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Self::Message>);

    /// Takes an event from the layer below.
    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Self::Message>);

    /// Takes a message of the same layer of another process.
    fn receive(&mut self, now: Time, from: ProcessId, message: Self::Message, flow: &mut Flow<Self::Message>);

    /// The deadline has come.
    fn tick(&mut self, now: Time, flow: &mut Flow<Self::Message>);

    /// When [`tick`](Self::tick) is wanted next.
    fn deadline(&self) -> Option<Time>;

    /// Checks the layer's own invariants.
    fn check(&self) -> Result<(), Violation> {
        Ok(())
    }

    /// What is offered above this layer when it stands on `below`. A layer that needs nothing and gives what it gets, such as
    /// one that packs payloads, has nothing to say here.
    ///
    /// # Errors
    /// [`Impossible`]: it cannot stand there.
    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        Ok(below)
    }
}

/// What a layer wants to happen next, in order.
pub struct Flow<M> {
    pub(crate) ups: VecDeque<Up>,
    pub(crate) downs: VecDeque<Down>,
    pub(crate) sends: Vec<(Targets, Lane, M)>,
}

impl<M> Flow<M> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { ups: VecDeque::new(), downs: VecDeque::new(), sends: Vec::new() }
    }

    /// Hands an event to the layer above.
    pub fn up(&mut self, event: Up) {
        self.ups.push_back(event);
    }

    /// Hands a request to the layer below.
    pub fn down(&mut self, request: Down) {
        self.downs.push_back(request);
    }

    /// Takes out what goes to the layer above; for whoever runs a layer by hand, in a test.
    pub fn drain_ups(&mut self) -> impl Iterator<Item = Up> + '_ {
        self.ups.drain(..)
    }

    /// Takes out what goes to the layer below; for whoever runs a layer by hand, in a test.
    pub fn drain_downs(&mut self) -> impl Iterator<Item = Down> + '_ {
        self.downs.drain(..)
    }

    /// Takes out what goes to the same layer of others; for whoever runs a layer by hand, in a test.
    pub fn drain_sends(&mut self) -> impl Iterator<Item = (Targets, Lane, M)> + '_ {
        self.sends.drain(..)
    }

    /// Goes on with what another layer wanted, in whose place this one stands.
    pub(crate) fn take_over<N>(&mut self, other: Flow<N>, wrap: impl Fn(N) -> M) {
        self.ups.extend(other.ups);
        self.downs.extend(other.downs);
        self.sends.extend(other.sends.into_iter().map(|(to, lane, message)| (to, lane, wrap(message))));
    }

    /// Sends to the same layer of one other process.
    pub fn send(&mut self, to: ProcessId, lane: Lane, message: M) {
        self.sends.push((Targets::One(to), lane, message));
    }

    /// Sends to the same layer of several other processes.
    pub fn multicast(&mut self, to: Arc<[ProcessId]>, lane: Lane, message: M) {
        if !to.is_empty() {
            self.sends.push((Targets::Many(to), lane, message));
        }
    }
}

impl<M> Default for Flow<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// Two layers as one.
pub struct Pair<U: Layer, L: Layer> {
    upper: U,
    lower: L,
    // Kept between calls for their room only; both are empty whenever no call is running.
    upper_flow: Flow<U::Message>,
    lower_flow: Flow<L::Message>,
}

impl<U: Layer, L: Layer> Pair<U, L> {
    /// Puts `upper` on `lower`.
    pub fn new(upper: U, lower: L) -> Self {
        Self { upper, lower, upper_flow: Flow::new(), lower_flow: Flow::new() }
    }

    /// Lets requests and events pass between the two until both rest.
    fn settle(&mut self, now: Time, flow: &mut Flow<Either<U::Message, L::Message>>) {
        loop {
            if let Some(request) = self.upper_flow.downs.pop_front() {
                self.lower.down(now, request, &mut self.lower_flow);
            } else if let Some(event) = self.lower_flow.ups.pop_front() {
                self.upper.up(now, event, &mut self.upper_flow);
            } else {
                break;
            }
        }
        flow.ups.append(&mut self.upper_flow.ups);
        flow.downs.append(&mut self.lower_flow.downs);
        let upper = self.upper_flow.sends.drain(..).map(|(to, lane, m)| (to, lane, Either::Upper(m)));
        flow.sends.extend(upper);
        let lower = self.lower_flow.sends.drain(..).map(|(to, lane, m)| (to, lane, Either::Lower(m)));
        flow.sends.extend(lower);
    }
}

impl<U: Layer, L: Layer> Layer for Pair<U, L> {
    type Message = Either<U::Message, L::Message>;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Self::Message>) {
        self.upper.down(now, request, &mut self.upper_flow);
        self.settle(now, flow);
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Self::Message>) {
        self.lower.up(now, event, &mut self.lower_flow);
        self.settle(now, flow);
    }

    fn receive(
        &mut self,
        now: Time,
        from: ProcessId,
        message: Self::Message,
        flow: &mut Flow<Self::Message>,
    ) {
        match message {
            Either::Upper(message) => self.upper.receive(now, from, message, &mut self.upper_flow),
            Either::Lower(message) => self.lower.receive(now, from, message, &mut self.lower_flow),
        }
        self.settle(now, flow);
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Self::Message>) {
        // The lower one first: what it delivers may give the upper one something to do in the same tick.
        if self.lower.deadline().is_some_and(|at| at <= now) {
            self.lower.tick(now, &mut self.lower_flow);
            self.settle(now, flow);
        }
        if self.upper.deadline().is_some_and(|at| at <= now) {
            self.upper.tick(now, &mut self.upper_flow);
            self.settle(now, flow);
        }
    }

    fn deadline(&self) -> Option<Time> {
        match (self.upper.deadline(), self.lower.deadline()) {
            (Some(upper), Some(lower)) => Some(upper.min(lower)),
            (one, other) => one.or(other),
        }
    }

    fn check(&self) -> Result<(), Violation> {
        self.upper.check()?;
        self.lower.check()
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        self.upper.stands_on(self.lower.stands_on(below)?)
    }
}

/// A message of one of two layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Either<U, L> {
    /// Of the upper one.
    Upper(U),
    /// Of the lower one.
    Lower(L),
}

impl<U: Wire, L: Wire> Wire for Either<U, L> {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Upper(message) => {
                out.put_u8(0);
                message.encode(out);
            }
            Self::Lower(message) => {
                out.put_u8(1);
                message.encode(out);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "layer")? {
            0 => Ok(Self::Upper(U::decode(input)?)),
            1 => Ok(Self::Lower(L::decode(input)?)),
            other => Err(WireError::Invalid { what: "layer", value: u64::from(other) }),
        }
    }
}
