//! Open groups: who is no member may send to them.
//!
//! Guarantee   a message from outside is one of the group, at a place in its order, multicast by the member that took it; all
//!             that is said of members' messages holds for it. [`Visitor::cast`] returns when that member has delivered it.
//!             It is never delivered twice. A closed group refuses it with a typed error, and nobody delivers it.
//! Method      the visitor asks its contacts in turn which of them is a member and takes messages, and gives it to the first.
//! Source      van Steen & Tanenbaum, open and closed groups.
//! Trust       who the visitor is, is known as far as the transport knows it; see
//!             [`NodeBuilder::admit`](crate::node::NodeBuilder::admit).
//! Format      behind the kind: the visitor's life and the message's number, both `u64`; then of a message its payload, of an
//!             answer a verdict `u8` and a limit `u64`, of a question nothing; little-endian.
//! Limits      a message of one frame; [`UNDER_WAY_MAX`] messages and [`UNDER_WAY_BYTES_MAX`] bytes from outside that a member
//!             has taken and not delivered yet; beyond that it is busy.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::group::Command;
use quorate_transports::{Identity, NodeId};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::ASIDE_OUTSIDE;
use crate::driver::{self, ASIDE_HEADER, send_aside};
use crate::node::{
    Address, Channel, ChannelGuard, ChannelHandler, ChannelTaken, Lane, Node, PeerEvent, SendError,
};

/// Sends to an open group from outside. A node is a visitor or a member of a group, not both.
///
/// ```
/// use std::time::Duration;
///
/// use quorate::group::{Builder, Event, Visitor};
/// use quorate::node::Node;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
/// let (_group, mut events) = Builder::total("room").open().create(&node).await?;
///
/// let other = Node::builder().start().await?;
/// let visitor = Visitor::new(&other, "room", &node.addresses())?;
/// visitor.cast("knock".into(), Duration::from_secs(10)).await?;
/// while let Some(event) = events.next().await {
///     if let Event::Outside { from, payload, .. } = event {
///         assert_eq!((from, payload), (other.identity().node, "knock".into()));
///         break;
///     }
/// }
/// # Ok(()) }
/// ```
pub struct Visitor {
    node: Node,
    group: String,
    channel: Channel,
    contacts: Vec<Address>,
    life: u64,
    numbers: AtomicU64,
    door: Arc<Door>,
    _guard: ChannelGuard,
}

/// Why a message from outside is not known to be delivered. Unless a variant says otherwise, nobody delivers it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisitError {
    /// The group takes messages of its members only.
    #[error("group {group:?} is closed")]
    Closed {
        /// The group.
        group: String,
    },
    /// None of the contacts was reached, or none of them is a member.
    #[error("no member of group {group:?} found")]
    NoMember {
        /// The group.
        group: String,
    },
    /// The member has as many messages from outside under way as it may. Retry later.
    #[error("the member has too many messages from outside under way")]
    Busy,
    /// Larger than the group's messages, or than one of the connection. Retrying cannot help.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The member that has the message was lost, or has not delivered it in time: it may or may not be delivered, once.
    #[error("outcome unknown")]
    Unknown,
    /// The node is a member or a visitor of that group already.
    #[error("the node has to do with group {group:?} already")]
    Taken {
        /// The group.
        group: String,
        /// The channel.
        #[source]
        source: ChannelTaken,
    },
    /// The node is shut down.
    #[error("the node is shut down")]
    ShutDown,
}

impl VisitError {
    /// True when the same call may succeed later without change, and cannot have the message delivered twice.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NoMember { .. } | Self::Busy)
    }
}

impl Visitor {
    /// A visitor of the group `name` that knows members, or nodes that may be, at `contacts`.
    ///
    /// # Errors
    /// [`VisitError::Taken`].
    pub fn new(node: &Node, name: impl Into<String>, contacts: &[Address]) -> Result<Self, VisitError> {
        let group = name.into();
        let channel = Channel::named("group", &group);
        let door = Arc::new(Door { channel, waiting: Mutex::default() });
        let guard = node
            .open(channel, door.clone())
            .map_err(|source| VisitError::Taken { group: group.clone(), source })?;
        Ok(Self {
            node: node.clone(),
            group,
            channel,
            contacts: contacts.to_vec(),
            life: driver::new_life(node).incarnation,
            numbers: AtomicU64::new(0),
            door,
            _guard: guard,
        })
    }

    /// Sends to the group and returns when the member that took the message has delivered it: then all members that go on
    /// deliver it, in a group of total order even if that one dies.
    ///
    /// # Errors
    /// [`VisitError`].
    /// # Cancel safety
    /// Dropping the future may leave the message sent; it is never sent twice.
    pub async fn cast(&self, payload: Bytes, within: Duration) -> Result<(), VisitError> {
        let until = Instant::now() + within.min(WITHIN_MAX);
        for contact in &self.contacts {
            let Ok(met) = timeout_at(until, self.node.connect(contact)).await else { break };
            let Ok(identity) = met else { continue };
            if identity.node == self.node.identity().node {
                continue;
            }
            // First whether it takes messages, so that only the next question can have an unknown outcome.
            match self.ask(identity, ASK, Bytes::new(), until).await? {
                Some((READY, _)) => {}
                Some((CLOSED, _)) => return Err(VisitError::Closed { group: self.group.clone() }),
                _ => continue,
            }
            let size = payload.len();
            return match self.ask(identity, MESSAGE, payload, until).await? {
                Some((DELIVERED, _)) => Ok(()),
                Some((CLOSED, _)) => Err(VisitError::Closed { group: self.group.clone() }),
                Some((NO_MEMBER, _)) => Err(VisitError::NoMember { group: self.group.clone() }),
                Some((BUSY, _)) => Err(VisitError::Busy),
                Some((TOO_LARGE, limit)) => {
                    Err(VisitError::TooLarge { size, limit: usize::try_from(limit).unwrap_or(usize::MAX) })
                }
                _ => Err(VisitError::Unknown),
            };
        }
        Err(VisitError::NoMember { group: self.group.clone() })
    }

    /// What a node answers; `None` when it does not, or not in time. An error means that nothing was sent.
    async fn ask(
        &self,
        to: Identity,
        kind: u8,
        body: Bytes,
        until: Instant,
    ) -> Result<Option<Answer>, VisitError> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let expected = self.door.expect((to.node, self.life, number), kind);
        let mut head = BytesMut::from(&ASIDE_HEADER[..]);
        head.put_u8(ASIDE_OUTSIDE);
        head.put_slice(&frame(kind, self.life, number));
        match self.node.send_to_life(to, Lane::Ordinary, self.channel, &[&head], body) {
            Ok(()) => Ok(timeout_at(until, expected.answer()).await.ok().flatten()),
            Err(SendError::TooLarge { size, limit }) => Err(VisitError::TooLarge { size, limit }),
            Err(SendError::ShutDown) => Err(VisitError::ShutDown),
            Err(SendError::Full { .. }) => Err(VisitError::Busy),
            Err(SendError::Unreachable { .. }) => Err(VisitError::NoMember { group: self.group.clone() }),
        }
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Visitor({:?})", self.group)
    }
}

/// Of a visitor, or to a member: the node, the visitor's life, and the number.
type Question = (NodeId, u64, u64);

/// A verdict, and the limit of a message's bytes.
type Answer = (u8, u64);

/// Where answers come in.
struct Door {
    channel: Channel,
    /// With the kind of what was asked.
    waiting: Mutex<BTreeMap<Question, (u8, oneshot::Sender<Answer>)>>,
}

/// An answer that is awaited; dropped, it is not any more.
struct Expected<'a> {
    door: &'a Door,
    question: Question,
    answer: oneshot::Receiver<Answer>,
}

impl Expected<'_> {
    /// `None` when it cannot come any more.
    async fn answer(mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.door.lock().remove(&self.question);
    }
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Question, (u8, oneshot::Sender<Answer>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, question: Question, kind: u8) -> Expected<'_> {
        let (sender, answer) = oneshot::channel();
        self.lock().insert(question, (kind, sender));
        Expected { door: self, question, answer }
    }

    fn hear(&self, from: NodeId, mut frame: Bytes) {
        if frame.len() < ASIDE_HEADER.len() {
            return;
        }
        frame.advance(ASIDE_HEADER.len());
        if frame.try_get_u8() != Ok(ASIDE_OUTSIDE) {
            return;
        }
        let Some((ANSWER, life, number, mut rest)) = parse(frame) else { return };
        if let (Ok(verdict), Ok(limit)) = (rest.try_get_u8(), rest.try_get_u64_le())
            && let Some((_, waiting)) = self.lock().remove(&(from, life, number))
        {
            // Who waited may be gone.
            let _ = waiting.send((verdict, limit));
        }
    }

    /// Nothing more comes from this node. Where it is no member, nothing came of a mere question; a message may have been
    /// taken before.
    fn settle(&self, node: NodeId, is_refusal: bool) {
        let mut waiting = self.lock();
        let of_node = (node, 0, 0)..=(node, u64::MAX, u64::MAX);
        let all: Vec<_> = waiting.range(of_node).map(|(question, _)| *question).collect();
        for (kind, sender) in all.iter().filter_map(|question| waiting.remove(question)).collect::<Vec<_>>() {
            if is_refusal && kind == ASK {
                let _ = sender.send((NO_MEMBER, 0));
            }
        }
    }
}

impl ChannelHandler for Door {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        frames.drain(..).for_each(|frame| self.hear(from.node, frame));
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        if let PeerEvent::Down(peer) = event {
            self.settle(peer.node, false);
        }
    }

    fn on_refused(&self, peer: Identity, channel: Channel) {
        if channel == self.channel {
            self.settle(peer.node, true);
        }
    }
}

/// A member's side: what came from outside and is not delivered yet.
pub(super) struct Desk {
    node: Node,
    channel: Channel,
    is_open: bool,
    payload_bytes_max: usize,
    waiting: VecDeque<(Question, Bytes)>,
    under_way: BTreeMap<Question, usize>,
    bytes: usize,
}

impl Desk {
    pub(super) fn new(node: Node, channel: Channel, is_open: bool, payload_bytes_max: usize) -> Self {
        let (waiting, under_way) = (VecDeque::new(), BTreeMap::new());
        Self { node, channel, is_open, payload_bytes_max, waiting, under_way, bytes: 0 }
    }

    /// Takes what a visitor sent; true when it is to be multicast.
    pub(super) fn hear(&mut self, from: NodeId, frame: Bytes, is_member: bool) -> bool {
        let Some((kind @ (MESSAGE | ASK), life, number, payload)) = parse(frame) else { return false };
        let question = (from, life, number);
        if self.under_way.contains_key(&question) {
            // Said again: the answer will come, and what is under way is not under way twice.
            return false;
        }
        let is_busy =
            self.under_way.len() >= UNDER_WAY_MAX || self.bytes + payload.len() > UNDER_WAY_BYTES_MAX;
        let verdict = match () {
            () if !is_member => NO_MEMBER,
            () if !self.is_open => CLOSED,
            () if kind == ASK => READY,
            () if payload.len() > self.payload_bytes_max => TOO_LARGE,
            () if is_busy && !self.under_way.is_empty() => BUSY,
            () => {
                self.bytes += payload.len();
                self.under_way.insert(question, payload.len());
                self.waiting.push_back((question, payload));
                return true;
            }
        };
        self.answer(question, verdict);
        false
    }

    /// The next one for the group.
    pub(super) fn next(&mut self) -> Option<Command> {
        let ((node, life, number), payload) = self.waiting.pop_front()?;
        Some(Command::CastOutside { from: (node.0, life, number), payload })
    }

    pub(super) fn has_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// One that this member multicast was delivered here.
    pub(super) fn delivered(&mut self, (node, life, number): (u64, u64, u64)) {
        let question = (NodeId(node), life, number);
        if let Some(bytes) = self.under_way.remove(&question) {
            self.bytes -= bytes;
            self.answer(question, DELIVERED);
        }
    }

    /// The machine has not taken one: nobody delivers it.
    pub(super) fn refused(&mut self, (node, life, number): (u64, u64, u64)) {
        let question = (NodeId(node), life, number);
        if let Some(bytes) = self.under_way.remove(&question) {
            self.bytes -= bytes;
            self.answer(question, BUSY);
        }
    }

    /// The membership is over: what became of the rest nobody here will know.
    pub(super) fn close(&mut self) {
        self.waiting.clear();
        for question in std::mem::take(&mut self.under_way).into_keys() {
            self.answer(question, UNKNOWN);
        }
    }

    fn answer(&self, (node, life, number): Question, verdict: u8) {
        let mut out = BytesMut::new();
        out.put_u8(ASIDE_OUTSIDE);
        out.put_slice(&frame(ANSWER, life, number));
        out.put_u8(verdict);
        out.put_u64_le(self.payload_bytes_max as u64);
        send_aside(&self.node, self.channel, node, &out);
    }
}

fn frame(kind: u8, life: u64, number: u64) -> [u8; 17] {
    let mut frame = [kind; 17];
    frame[1..9].copy_from_slice(&life.to_le_bytes());
    frame[9..].copy_from_slice(&number.to_le_bytes());
    frame
}

/// Kind, life, number, and what follows.
fn parse(mut frame: Bytes) -> Option<(u8, u64, u64, Bytes)> {
    let kind = frame.try_get_u8().ok()?;
    let (life, number) = (frame.try_get_u64_le().ok()?, frame.try_get_u64_le().ok()?);
    Some((kind, life, number, frame))
}

/// Messages from outside that a member has taken and not delivered yet.
pub const UNDER_WAY_MAX: usize = 256;

/// Their bytes; a larger message is taken alone.
pub const UNDER_WAY_BYTES_MAX: usize = 16 << 20;

/// As good as for ever, and far from the end of the clock.
const WITHIN_MAX: Duration = Duration::from_secs(1 << 30);

const MESSAGE: u8 = 0;
const ANSWER: u8 = 1;
const ASK: u8 = 2;

const DELIVERED: u8 = 0;
const CLOSED: u8 = 1;
const BUSY: u8 = 2;
const TOO_LARGE: u8 = 3;
const NO_MEMBER: u8 = 4;
const UNKNOWN: u8 = 5;
const READY: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_visitor_that_repeats_itself_has_one_message_under_way() {
        let node = Node::builder().start().await.unwrap();
        let mut desk = Desk::new(node, Channel::named("group", "room"), true, 1 << 20);
        let said =
            |number: u64, size: usize| [&frame(MESSAGE, 1, number)[..], &vec![0; size]].concat().into();
        assert!(desk.hear(NodeId(9), said(1, 0), true));
        for size in [0, 1 << 20, 7] {
            assert!(!desk.hear(NodeId(9), said(1, size), true), "the same message again");
        }
        assert!(desk.hear(NodeId(9), said(2, 100), true));
        assert_eq!((desk.waiting.len(), desk.under_way.len(), desk.bytes), (2, 2, 100));
        desk.delivered((9, 1, 2));
        desk.refused((9, 1, 1));
        assert_eq!((desk.under_way.len(), desk.bytes), (0, 0));
    }
}
