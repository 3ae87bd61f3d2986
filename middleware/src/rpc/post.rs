//! What calls ask of the node: names, times, and the sending of one message.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_protocols::rpc::{Message, Spoken};
use quorate_protocols::{Lane, ProcessId, Time, Wire, WireError};
use tokio::time::Instant;

use super::port::Unsaid;
use crate::node::{self, Channel, Identity, Node, NodeId, Outlet, SendError, identity_of, lane_of};

/// What became of a message that is not to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Posted {
    /// On its way, or lost: the protocol repeats it.
    Sent,
    /// It can never be sent.
    TooLarge { size: usize, limit: usize },
    /// So many bytes of one-way calls wait already that this one is given up.
    NoRoom { waiting: usize },
    /// Nothing can be sent any more.
    ShutDown,
}

/// The connection takes no more for now.
pub(super) struct Full;

/// The way to one peer: its connection, found once and used until it ends.
///
/// Small messages that are sent faster than they leave travel together as one; see [`each_message`].
#[derive(Default)]
pub(super) struct Way {
    outlet: Option<Outlet>,
}

impl Way {
    /// Sends to whichever life of the node is there: the session in the message says for which one it is meant. `life`
    /// is the one that is believed to be there.
    #[expect(clippy::too_many_arguments, reason = "whom, where, what, and the room to write it in")]
    pub(super) fn send(
        &mut self,
        node: &Node,
        to: NodeId,
        life: Option<Identity>,
        lane: Lane,
        channel: Channel,
        message: &Message,
        head: &mut BytesMut,
    ) -> Result<Posted, Full> {
        head.clear();
        let body = message.encode_head(head);
        let lane = lane_of(lane);
        if let Some(posted) = self.shorter(node, life, lane, channel, head, body) {
            return posted;
        }
        outcome(node.send(to, lane, channel, &[head], body.clone()))
    }

    /// Sends to one life of a client; a later one has other calls.
    pub(super) fn answer(
        &mut self,
        node: &Node,
        to: ProcessId,
        lane: Lane,
        message: &Message,
        head: &mut BytesMut,
    ) -> Result<Posted, Full> {
        head.clear();
        let body = message.encode_head(head);
        let (to, lane, channel) = (identity_of(to), lane_of(lane), reply_channel(message.client()));
        if let Some(posted) = self.shorter(node, Some(to), lane, channel, head, body) {
            return posted;
        }
        outcome(node.send_to_life(to, lane, channel, &[head], body.clone()))
    }

    /// Sends a word of a stream.
    pub(super) fn say(
        &mut self,
        node: &Node,
        to: Identity,
        channel: Channel,
        spoken: &Spoken,
        head: &mut BytesMut,
    ) -> Result<(), Unsaid> {
        head.clear();
        let body = spoken.encode_head(head);
        // Items must not hold up calls; what a reader says is small and waited for.
        let lane = if spoken.word.is_writers() { node::Lane::Bulk } else { node::Lane::Urgent };
        match self.shorter(node, Some(to), lane, channel, head, &body) {
            Some(Ok(Posted::Sent)) => Ok(()),
            Some(Ok(Posted::TooLarge { size, limit })) => Err(Unsaid::TooLarge { size, limit }),
            Some(Err(Full)) => Err(Unsaid::Full),
            // A stream lasts as long as its connection.
            Some(Ok(Posted::ShutDown | Posted::NoRoom { .. })) | None => Err(Unsaid::Gone),
        }
    }

    /// Sends over the connection that is known, or found now; `None` when there is none.
    fn shorter(
        &mut self,
        node: &Node,
        to: Option<Identity>,
        lane: node::Lane,
        channel: Channel,
        head: &[u8],
        body: &Bytes,
    ) -> Option<Result<Posted, Full>> {
        if self.outlet.as_ref().map(Outlet::peer) != to {
            self.outlet = None;
        }
        for _ in 0..2 {
            if self.outlet.is_none() {
                self.outlet = node.outlet(to?);
            }
            let outlet = self.outlet.as_ref()?;
            let sent = if body.len() <= JOINED_BODY_BYTES_MAX {
                outlet.send_joined(lane, channel, channel.0, &[], &[head, body])
            } else {
                outlet.send(lane, channel, &[head], body.clone())
            };
            match sent {
                // It is over; another one may stand.
                Err(SendError::Unreachable { .. }) => self.outlet = None,
                sent => return Some(outcome(sent)),
            }
        }
        None
    }
}

/// Gives the messages of a frame, in order; words of streams are put aside.
///
/// # Errors
/// [`WireError`] at the first that is damaged; what stands behind it is lost.
pub(super) fn each_message(
    mut frame: Bytes,
    words: &mut Vec<Spoken>,
    mut take: impl FnMut(Message),
) -> Result<(), WireError> {
    loop {
        if Spoken::is_next(&frame) {
            words.push(Spoken::decode(&mut frame)?);
        } else {
            take(Message::decode(&mut frame)?);
        }
        if frame.is_empty() {
            return Ok(());
        }
    }
}

fn outcome(sent: Result<(), SendError>) -> Result<Posted, Full> {
    match sent {
        Ok(()) => Ok(Posted::Sent),
        Err(SendError::Full { .. }) => Err(Full),
        Err(SendError::TooLarge { size, limit }) => Ok(Posted::TooLarge { size, limit }),
        Err(SendError::ShutDown) => Ok(Posted::ShutDown),
        // Lost like any message on a broken connection: timers and the other side's return repeat it.
        Err(SendError::Unreachable { .. }) => Ok(Posted::Sent),
    }
}

/// Where a service hears its clients.
pub(super) fn service_channel(name: &str) -> Channel {
    Channel::named("rpc", name)
}

/// Where client `number` of a process hears its servers.
pub(super) const fn reply_channel(number: u32) -> Channel {
    const BASE: Channel = Channel::named("rpc replies", "");
    // An odd factor keeps different numbers different.
    Channel(BASE.0.wrapping_add((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// A seed that differs between any two lives of any two nodes, clients and services, and is the same in every run of
/// the same program.
pub(super) fn seed(identity: Identity, number: u32) -> u64 {
    let words = [identity.node.0, identity.incarnation.0, u64::from(number)];
    words.iter().fold(0x5eed_0fca_1151, |hash: u64, word| {
        let mixed = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        (mixed ^ (mixed >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(29)
    })
}

/// The machine's time: since the epoch of its face.
pub(super) fn time_since(epoch: Instant) -> Time {
    Time::ZERO + epoch.elapsed()
}

/// The moment that the machine calls so; one that lies beyond all calendars becomes one that nobody lives to see.
pub(super) fn instant_of(epoch: Instant, time: Time) -> Instant {
    epoch + time.since(Time::ZERO).min(BEYOND)
}

/// Longer than any caller waits; keeps sums of times within what the clock can say.
pub(super) const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longer than any program runs, and [`FAR`] more.
const BEYOND: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// The largest body that is copied behind others: more gains nothing, and is better sent as it is.
const JOINED_BODY_BYTES_MAX: usize = 1024;
