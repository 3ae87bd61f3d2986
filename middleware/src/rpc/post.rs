//! What calls ask of the node: names, times, and the sending of one message.

use std::time::Duration;

use bytes::BytesMut;
use quorate_protocols::rpc::Message;
use quorate_protocols::{Lane, ProcessId, Time};
use tokio::time::Instant;

use crate::node::{Channel, Identity, Node, NodeId, SendError, identity_of, lane_of};

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

/// Sends to whichever life of the node is there: the session in the message says for which one it is meant.
pub(super) fn send(
    node: &Node,
    to: NodeId,
    lane: Lane,
    channel: Channel,
    message: &Message,
    head: &mut BytesMut,
) -> Result<Posted, Full> {
    head.clear();
    let body = message.encode_head(head);
    outcome(node.send(to, lane_of(lane), channel, &[head], body))
}

/// Sends to one life of a client; a later one has other calls.
pub(super) fn answer(
    node: &Node,
    to: ProcessId,
    lane: Lane,
    message: &Message,
    head: &mut BytesMut,
) -> Result<Posted, Full> {
    head.clear();
    let body = message.encode_head(head);
    let channel = reply_channel(message.client());
    outcome(node.send_to_life(identity_of(to), lane_of(lane), channel, &[head], body))
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

/// The moment that the machine calls so; one that lies beyond all calendars becomes one in [`FAR`].
pub(super) fn instant_of(epoch: Instant, time: Time) -> Instant {
    epoch + time.since(Time::ZERO).min(epoch.elapsed() + FAR)
}

/// Longer than any caller waits; keeps sums of times within what the clock can say.
pub(super) const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
