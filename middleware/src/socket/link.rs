//! What a socket knows of one of its links. Pure but for the outlet it holds.

use std::collections::VecDeque;
use std::sync::Weak;
use std::task::Waker;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_transports::connection::Source;
use tokio::time::Instant;

use super::body::Body;
use super::flow::{Amount, Inflow, Outflow};
use super::wire::{self, Class, DataHead, ITEM_OVERHEAD};
use super::{Left, Remote};
use crate::node::{Channel, Identity, Lane, Outlet, OutletBatch, SendError as NodeSendError};

/// One link with a socket of another node, or of this one.
pub(super) struct Link {
    pub(super) number: u32,
    pub(super) peer: Identity,
    /// Where the other socket listens.
    pub(super) channel: Channel,
    /// The other socket's number for the link.
    pub(super) theirs: u32,
    /// What the other socket calls itself.
    pub(super) name: Bytes,
    pub(super) stage: Stage,
    /// This side said hello.
    pub(super) is_dialled: bool,
    pub(super) outlet: Option<Outlet>,
    /// Ordinary messages that its connection will ask for.
    held: Option<Held>,
    pub(super) out: [Outflow; 2],
    pub(super) into: [Inflow; 2],
    /// Messages without their length that wait for credit.
    pub(super) queue: VecDeque<Bytes>,
    pub(super) queue_bytes: usize,
    /// Frames that came and were not taken.
    pub(super) inbox: [VecDeque<(DataHead, Bytes)>; 2],
    /// How much that is, frames for messages: at least one is in each.
    pub(super) waiting: [Amount; 2],
    /// It stands in the socket's list of links with something to read.
    pub(super) is_listed: [bool; 2],
    /// A grant that found no room on its way.
    pub(super) is_grant_due: [bool; 2],
    /// When the last hello, or the last probe for credit, left.
    pub(super) asked_at: Option<Instant>,
    pub(super) is_close_sent: bool,
    /// The other side has said that everything arrived.
    pub(super) is_confirmed: bool,
    /// What the other side has sent in all, by class, and when it said so: it wants the link to end.
    pub(super) ends_at: Option<([u64; 2], Instant)>,
    /// It ended because one of its sides wanted that, and all of the other one's messages came before.
    pub(super) is_ended: bool,
    /// The user who reads this link alone.
    pub(super) reader: Option<Waker>,
    pub(super) dropped: u64,
}

/// The life of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A hello left.
    Connecting,
    Up,
    /// The other side is gone; what it sent may still be read.
    Gone,
}

/// Why a message did not go on a link now.
#[derive(Debug)]
pub(super) enum Refused {
    /// The other socket has granted no more.
    Credit,
    /// The connection's lane is full.
    Lane(Outlet),
    /// The connection is over; whether another one follows is not known yet.
    Broken,
    TooLarge {
        size: usize,
        limit: usize,
    },
}

impl Link {
    pub(super) fn new(
        number: u32,
        peer: Identity,
        channel: Channel,
        windows: [Amount; 2],
        outlet: Option<Outlet>,
    ) -> Self {
        Self {
            number,
            peer,
            channel,
            theirs: 0,
            name: Bytes::new(),
            stage: Stage::Connecting,
            is_dialled: true,
            outlet,
            held: None,
            out: Default::default(),
            into: windows.map(Inflow::new),
            queue: VecDeque::new(),
            queue_bytes: 0,
            inbox: Default::default(),
            waiting: Default::default(),
            is_listed: [false; 2],
            is_grant_due: [false; 2],
            asked_at: None,
            is_close_sent: false,
            is_confirmed: false,
            ends_at: None,
            is_ended: false,
            reader: None,
            dropped: 0,
        }
    }

    pub(super) fn remote(&self) -> Remote {
        Remote { identity: self.peer, link: self.number }
    }

    pub(super) fn is_up(&self) -> bool {
        self.stage == Stage::Up
    }

    pub(super) fn is_drained(&self) -> bool {
        self.inbox.iter().all(VecDeque::is_empty)
    }

    /// Everything that the other side has sent has come, and it wants the link to end.
    pub(super) fn is_complete(&self) -> bool {
        let Some((sent, _)) = self.ends_at else { return false };
        let came = |class: usize| match self.inbox[class].back() {
            Some((head, items)) => head.at.messages.saturating_add(wire::count_items(items).unwrap_or(0)),
            None => self.into[class].taken().messages,
        };
        sent.iter().enumerate().all(|(class, sent)| came(class) >= *sent)
    }

    /// Encodes a message straight into the connection's lane; or, when others wait there already and the connection agrees
    /// to ask `source` for them, into what is held back.
    #[inline]
    pub(super) fn push(
        &mut self,
        class: Class,
        lane: Lane,
        head: &[u8],
        body: &Body<'_>,
        source: Option<&Weak<dyn Source>>,
    ) -> Result<(), Refused> {
        if let Some(held) = &mut self.held
            && class == Class::Ordinary
        {
            let flow = &mut self.out[class as usize];
            if !flow.may_send() {
                return Err(Refused::Credit);
            }
            if held.push(head, body) {
                flow.on_sent(ITEM_OVERHEAD + head.len() + body.len());
                return Ok(());
            }
        }
        let pushed = self.begin(class, lane).and_then(|mut run| {
            if run.push(head, body)?
                && let Some(source) = source
            {
                run.hold_back(source);
            }
            Ok(())
        });
        pushed.map_err(|stop| self.refused(stop))
    }

    /// Queues what is held back.
    pub(super) fn hand_over(&mut self) {
        if let (Some(held), Some(outlet)) = (self.held.take(), &self.outlet) {
            // What finds the connection over is lost with it, like all that waited there.
            let _ = held.hand_over(outlet, self.channel, self.theirs, stamp(self.number, Class::Ordinary));
        }
    }

    /// Encodes `first` and then more of `rest` straight into the connection's lane, under one lock: how many, and the
    /// one that did not go.
    pub(super) fn push_run<'b>(
        &mut self,
        class: Class,
        lane: Lane,
        first: Body<'b>,
        rest: &mut impl Iterator<Item = Body<'b>>,
    ) -> (u64, Option<Body<'b>>) {
        let Ok(mut run) = self.begin(class, lane) else { return (0, Some(first)) };
        let mut next = first;
        for sent in 0..RUN_MAX {
            if run.push(&[], &next).is_err() {
                return (sent, Some(next));
            }
            match rest.next() {
                Some(body) => next = body,
                None => return (sent + 1, None),
            }
        }
        (RUN_MAX, Some(next))
    }

    #[inline]
    fn begin(&mut self, class: Class, lane: Lane) -> Result<Run<'_>, Stop> {
        let flow = &mut self.out[class as usize];
        if !flow.may_send() {
            return Err(Stop::Credit);
        }
        let Some(outlet) = &self.outlet else { return Err(Stop::Broken) };
        let stamp = stamp(self.number, class);
        let held = if class == Class::Ordinary { self.held.take() } else { None };
        let (batch, spare) = match held {
            None => (outlet.batch(lane, self.channel).map_err(Stop::Node)?, BytesMut::new()),
            Some(held) => held.hand_over(outlet, self.channel, self.theirs, stamp).map_err(Stop::Node)?,
        };
        Ok(Run { batch, flow, held: &mut self.held, spare, lane, class, to: self.theirs, stamp })
    }

    #[cold]
    fn refused(&mut self, stop: Stop) -> Refused {
        match (stop, &self.outlet) {
            (Stop::Credit, _) => Refused::Credit,
            (Stop::Node(NodeSendError::Full { .. }), Some(outlet)) => Refused::Lane(outlet.clone()),
            (Stop::Node(NodeSendError::TooLarge { size, limit }), _) => Refused::TooLarge { size, limit },
            (Stop::Broken | Stop::Node(_), _) => {
                // One that only closes takes what was sent before.
                self.hand_over();
                self.outlet = None;
                Refused::Broken
            }
        }
    }

    /// Tells how far this side is, in a frame without messages: the answer is a grant.
    pub(super) fn probe(&mut self, class: Class, lane: Lane) {
        self.hand_over();
        if let Some(outlet) = &self.outlet {
            let head = DataHead { class, to: self.theirs, at: self.out[class as usize].sent }.encode();
            // Asked again when no answer comes.
            let _ = outlet.send(lane, self.channel, &[&head], Bytes::new());
        }
    }

    /// Sends what waits, as far as it may go now.
    pub(super) fn flush(&mut self, lane: Lane) -> Result<(), Refused> {
        while let Some(item) = self.queue.pop_front() {
            let body = Body::Owned(item);
            let pushed = self.push(Class::Ordinary, lane, &[], &body, None);
            match (pushed, body) {
                (Ok(()), body) => self.queue_bytes -= body.len(),
                (Err(Refused::TooLarge { .. }), body) => {
                    self.queue_bytes -= body.len();
                    self.dropped += 1;
                }
                (Err(refused), body) => {
                    self.queue.push_front(body.into_bytes());
                    return Err(refused);
                }
            }
        }
        Ok(())
    }

    /// Queues a message for later; drops the oldest ones as needed and returns how many that were.
    pub(super) fn enqueue(
        &mut self,
        head: &[u8],
        body: &Body<'_>,
        messages_max: usize,
        bytes_max: usize,
    ) -> u64 {
        let item = match body {
            Body::Owned(bytes) if head.is_empty() => bytes.clone(),
            body => [head, body.as_slice()].concat().into(),
        };
        let mut dropped = 0;
        while (self.queue.len() >= messages_max || self.queue_bytes + item.len() > bytes_max)
            && let Some(oldest) = self.queue.pop_front()
        {
            self.queue_bytes -= oldest.len();
            dropped += 1;
        }
        self.queue_bytes += item.len();
        self.queue.push_back(item);
        self.dropped += dropped;
        dropped
    }

    /// What did not leave, and what left and was not confirmed.
    pub(super) fn left(&self) -> Left {
        let unconfirmed = self.out.iter().map(Outflow::unconfirmed).fold(0, u64::saturating_add);
        let is_all_taken = self.queue.is_empty() && unconfirmed == 0;
        if self.is_confirmed || is_all_taken && self.stage == Stage::Gone {
            return Left::default();
        }
        Left { unsent: self.queue.len(), unconfirmed, links: vec![self.remote()] }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// Small messages that were sent and wait for the connection to ask for them.
struct Held {
    lane: Lane,
    /// Where the first one is in the link's row.
    at: Amount,
    /// With their lengths.
    items: BytesMut,
    bytes_max: usize,
}

impl Held {
    /// False when the message is too large to be held back, or what is held back would be.
    #[inline]
    fn push(&mut self, head: &[u8], body: &Body<'_>) -> bool {
        let (length, body) = (head.len() + body.len(), body.as_slice());
        if length > HELD_ITEM_BYTES_MAX || self.items.len() + ITEM_OVERHEAD + length > self.bytes_max {
            return false;
        }
        self.items.put_u32_le(length as u32);
        if !head.is_empty() {
            self.items.put_slice(head);
        }
        self.items.put_slice(body);
        true
    }

    /// Queues them, and gives the batch for what follows and the emptied buffer.
    fn hand_over(
        mut self,
        outlet: &Outlet,
        channel: Channel,
        to: u32,
        stamp: u64,
    ) -> Result<(OutletBatch<'_>, BytesMut), NodeSendError> {
        let mut batch = outlet.batch_held(self.lane, channel, stamp)?;
        if !self.items.is_empty() {
            let head = DataHead { class: Class::Ordinary, to, at: self.at }.encode();
            batch.push_held(stamp, &head, &self.items);
            self.items.clear();
        }
        Ok((batch, self.items))
    }
}

/// What messages of one class on one link are joined under.
fn stamp(link: u32, class: Class) -> u64 {
    u64::from(link) << 1 | class as u64
}

/// The link of a stamp.
pub(super) fn link_of(stamp: u64) -> u32 {
    (stamp >> 1) as u32
}

/// Messages of one link that are queued under one lock of its connection.
struct Run<'a> {
    batch: OutletBatch<'a>,
    flow: &'a mut Outflow,
    held: &'a mut Option<Held>,
    /// For what is to be held back.
    spare: BytesMut,
    lane: Lane,
    class: Class,
    to: u32,
    stamp: u64,
}

/// Why a run ends before its messages do.
enum Stop {
    Credit,
    Broken,
    Node(NodeSendError),
}

impl Run<'_> {
    /// True when it was joined to others.
    #[inline]
    fn push(&mut self, head: &[u8], body: &Body<'_>) -> Result<bool, Stop> {
        if !self.flow.may_send() {
            return Err(Stop::Credit);
        }
        let length = head.len() + body.len();
        let Ok(length_field) = u32::try_from(length) else {
            return Err(Stop::Node(NodeSendError::TooLarge { size: length, limit: u32::MAX as usize }));
        };
        let length_field = length_field.to_le_bytes();
        let is_kept = matches!(body, Body::Owned(bytes) if bytes.len() >= UNCOPIED_BYTES_MIN);
        let is_joined = !is_kept && self.batch.join(self.stamp, &[&length_field, head, body.as_slice()]);
        if !is_joined {
            let data = DataHead { class: self.class, to: self.to, at: self.flow.sent }.encode();
            let begun = match body {
                Body::Owned(bytes) if is_kept => {
                    self.batch.push(&[&data, &length_field, head], bytes.clone())
                }
                body => self.batch.push_joinable(self.stamp, &[&data, &length_field, head, body.as_slice()]),
            };
            begun.map_err(Stop::Node)?;
        }
        self.flow.on_sent(ITEM_OVERHEAD + length);
        Ok(is_joined)
    }

    /// Holds the next ones back if the connection agrees.
    fn hold_back(&mut self, source: &Weak<dyn Source>) {
        if let Some(bytes_max) = self.batch.hold_back(self.stamp, source) {
            let mut items = std::mem::take(&mut self.spare);
            items.reserve(bytes_max);
            *self.held = Some(Held { lane: self.lane, at: self.flow.sent, items, bytes_max });
        }
    }
}

/// Messages that are queued under one lock.
const RUN_MAX: u64 = 64;
/// Larger messages are not held back: to copy them twice costs more than a lock.
const HELD_ITEM_BYTES_MAX: usize = 256;
/// Bodies from here on are not copied into the lane.
const UNCOPIED_BYTES_MIN: usize = 8 * 1024;
