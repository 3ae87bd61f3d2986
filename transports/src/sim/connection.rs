//! Connections of the simulated network: two ends, two directions, and what faults do to them.
//!
//! Guarantee   what arrives is what was sent, in order, whatever was lost on the way; a cut stalls a direction, and data
//!             without acknowledgement for [`SimConfig::break_after`](super::SimConfig::break_after) breaks the end
//!             that sent it.
//! Limits      a direction holds [`SimConfig::window_bytes`](super::SimConfig::window_bytes) and one frame.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};

use super::core::{Core, nanos};
use super::trace::{SimEventKind, digest};
use crate::address::Address;
use crate::fault::model::{Corruption, StreamFate};
use crate::frame::{FrameError, Inbox, Outbox};

/// Two ends and the two directions between them; `pipes[i]` leads away from `ends[i]`.
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) ends: [End; 2],
    pipes: [Pipe; 2],
}

pub(super) struct End {
    pub(super) host: u32,
    pub(super) life: u64,
    pub(super) address: Address,
    /// Why it is of no further use.
    pub(super) broken: Option<ErrorKind>,
    has_sender: bool,
    has_receiver: bool,
}

#[derive(Default)]
struct Pipe {
    /// On their way or arrived, in order of arrival, with the arrival's time.
    arriving: VecDeque<(u64, Item)>,
    /// Behind a cut or before a dead host, in order.
    stalled: VecDeque<Item>,
    /// What the sender has put in and has no acknowledgement for.
    window_used: usize,
    /// Taken by the receiver while the way of the acknowledgements was cut.
    owed: usize,
    /// Since when data goes without acknowledgement because something is cut or down.
    unacknowledged_since: Option<u64>,
    /// The latest arrival so far.
    arrived_last: u64,
    /// The sender has closed its direction.
    is_closed: bool,
    /// The receiver has seen the end.
    is_ended: bool,
    /// When the receiving end learns that the sending end is gone for good.
    reset_at: Option<u64>,
    /// When the sender learns that nobody reads any more.
    unread_at: Option<u64>,
    receiver: Option<Waker>,
    sender: Option<Waker>,
}

enum Item {
    Frame(Bytes, Option<Corruption>),
    /// A clean end.
    End,
    /// The sender was dropped without closing.
    Abort,
}

/// The outcome of one poll.
pub(super) enum Progress<T> {
    Ready(T),
    /// The waker is registered; also look again at this time.
    Wait(Option<u64>),
}

/// Which half of a link.
#[derive(Clone, Copy)]
pub(super) enum Half {
    Sender,
    Receiver,
}

/// Why a send ended.
pub(super) enum SendFailure {
    Closed,
    Broken(ErrorKind),
}

/// Why a receive ended.
pub(super) enum ReceiveFailure {
    Broken(ErrorKind),
    Frame(FrameError),
}

impl Connection {
    /// A connection whose two ends are held.
    pub(super) fn new(id: u64, from: (u32, u64, Address), to: (u32, u64, Address)) -> Self {
        let end = |(host, life, address)| End {
            host,
            life,
            address,
            broken: None,
            has_sender: true,
            has_receiver: true,
        };
        Self { id, ends: [end(from), end(to)], pipes: Default::default() }
    }

    /// True when nobody holds any half of it.
    pub(super) fn is_unheld(&self) -> bool {
        self.ends.iter().all(|end| !end.has_sender && !end.has_receiver)
    }

    pub(super) fn poll_send(
        &mut self,
        core: &mut Core,
        now: u64,
        side: usize,
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
    ) -> Progress<Result<(), SendFailure>> {
        if self.pipes[side].is_closed {
            return Progress::Ready(Err(SendFailure::Closed));
        }
        if let Some(kind) = self.sender_broken(core, now, side) {
            return Progress::Ready(Err(SendFailure::Broken(kind)));
        }
        let window = core.config.window_bytes.max(1);
        while self.pipes[side].window_used < window {
            let Some(frame) = outbox.pop_frame() else { break };
            let (from, to) = (self.ends[side].host, self.ends[1 - side].host);
            core.record(SimEventKind::Send, Some(from), Some(to), self.id, frame.len(), digest(&frame));
            self.pipes[side].window_used += cost(&frame);
            self.transmit(core, now, side, Item::Frame(frame, None));
            if let Some(kind) = self.ends[side].broken {
                return Progress::Ready(Err(SendFailure::Broken(kind)));
            }
        }
        if outbox.is_empty() {
            return Progress::Ready(Ok(()));
        }
        let pipe = &mut self.pipes[side];
        pipe.sender = Some(cx.waker().clone());
        let unread_at = pipe.unread_at;
        Progress::Wait(earliest(self.deadline(core, side), unread_at))
    }

    pub(super) fn poll_close(
        &mut self,
        core: &mut Core,
        now: u64,
        side: usize,
    ) -> Progress<Result<(), SendFailure>> {
        if !self.pipes[side].is_closed {
            if let Some(kind) = self.sender_broken(core, now, side) {
                return Progress::Ready(Err(SendFailure::Broken(kind)));
            }
            self.pipes[side].is_closed = true;
            self.transmit(core, now, side, Item::End);
        }
        Progress::Ready(Ok(()))
    }

    /// A half was dropped.
    pub(super) fn release(&mut self, core: &mut Core, now: u64, side: usize, half: Half) {
        match half {
            Half::Sender => {
                self.ends[side].has_sender = false;
                let pipe = &mut self.pipes[side];
                if !pipe.is_closed && self.ends[side].broken.is_none() {
                    pipe.is_closed = true;
                    self.transmit(core, now, side, Item::Abort);
                }
            }
            Half::Receiver => {
                self.ends[side].has_receiver = false;
                self.unread(core, now, side);
            }
        }
    }

    /// Sends an item, or lets it wait behind those that wait.
    fn transmit(&mut self, core: &mut Core, now: u64, side: usize, item: Item) {
        let waiting = if self.pipes[side].stalled.is_empty() {
            self.try_transmit(core, now, side, item)
        } else {
            Some(item)
        };
        if let Some(item) = waiting {
            core.record(
                SimEventKind::Stall,
                Some(self.ends[side].host),
                Some(self.ends[1 - side].host),
                self.id,
                0,
                0,
            );
            self.pipes[side].stalled.push_back(item);
            self.unacknowledged(core, now, side);
        }
    }

    /// Sends an item; gives it back when it cannot leave now.
    fn try_transmit(&mut self, core: &mut Core, now: u64, side: usize, item: Item) -> Option<Item> {
        let (from, to) = (self.ends[side].host, self.ends[1 - side].host);
        if !core.host(to).is_up {
            return Some(item);
        }
        let bytes = item.bytes();
        let delivery = match core.network.stream_fate(now, from, to, bytes, &mut core.rng) {
            StreamFate::Arrives(delivery) => delivery,
            StreamFate::Stalls => return Some(item),
            StreamFate::Resets => {
                core.record(SimEventKind::Reset, Some(from), Some(to), self.id, 0, 0);
                self.break_end(core, side, ErrorKind::ConnectionReset);
                self.tell_reset(core, now, side);
                return None;
            }
        };
        let at = now.saturating_add(delivery.delay_nanos).max(self.pipes[side].arrived_last);
        core.record(SimEventKind::Arrive, Some(from), Some(to), self.id, bytes, at);
        let peer = &self.ends[1 - side];
        let is_gone = peer.broken.is_some() || !core.is_alive(peer.host, peer.life);
        if is_gone || !peer.has_receiver {
            // Nobody reads it: the other host answers what arrives with a reset. Until then it fills the window like
            // anything that is not acknowledged.
            let answer = core.notice(at, to, from);
            if is_gone {
                let back = &mut self.pipes[1 - side];
                back.reset_at = earliest(back.reset_at, answer);
            } else if item.cost() > 0 {
                let pipe = &mut self.pipes[side];
                pipe.unread_at = earliest(pipe.unread_at, answer);
            }
            if answer.is_none() {
                self.unacknowledged(core, now, side);
            }
            self.wake_end(core, side);
            return None;
        }
        let item = match item {
            Item::Frame(frame, _) => Item::Frame(frame, delivery.corruption),
            other => other,
        };
        let pipe = &mut self.pipes[side];
        pipe.arrived_last = at;
        pipe.arriving.push_back((at, item));
        core.woken.extend(pipe.receiver.take());
        if !core.network.reaches(to, from) {
            self.unacknowledged(core, now, side);
        }
        None
    }

    /// Notes that data of this end goes without acknowledgement, and lets its receiver watch the time.
    fn unacknowledged(&mut self, core: &mut Core, now: u64, side: usize) {
        self.pipes[side].unacknowledged_since.get_or_insert(now);
        self.wake_end(core, side);
    }

    pub(super) fn poll_receive(
        &mut self,
        core: &mut Core,
        now: u64,
        side: usize,
        cx: &mut Context<'_>,
        inbox: &mut Inbox,
    ) -> Progress<Result<bool, ReceiveFailure>> {
        if let Some(kind) = self.timed_out(core, now, side) {
            return Progress::Ready(Err(ReceiveFailure::Broken(kind)));
        }
        let (here, there) = (self.ends[side].host, self.ends[1 - side].host);
        let pipe = &mut self.pipes[1 - side];
        let mut taken = 0;
        let mut frames = 0_u64;
        let mut failure = None;
        while taken < RECEIVE_BYTES_MAX
            && let Some((at, Item::Frame(..))) = pipe.arriving.front()
            && *at <= now
            && let Some((_, Item::Frame(frame, corruption))) = pipe.arriving.pop_front()
        {
            taken += cost(&frame);
            frames += 1;
            let frame = match corruption {
                None => frame,
                Some(corruption) => {
                    let mut damaged = BytesMut::from(&frame[..]);
                    corruption.apply(&mut damaged);
                    damaged.freeze()
                }
            };
            if let Err(error) = inbox.push_frame(frame) {
                failure = Some(error);
                break;
            }
        }
        if frames > 0 {
            core.record(SimEventKind::Deliver, Some(there), Some(here), self.id, taken, frames);
            if core.network.reaches(here, there) && core.host(there).is_up {
                pipe.window_used = pipe.window_used.saturating_sub(taken);
                core.woken.extend(pipe.sender.take());
            } else {
                pipe.owed += taken;
                self.unacknowledged(core, now, 1 - side);
            }
            return Progress::Ready(match failure {
                Some(error) => Err(ReceiveFailure::Frame(error)),
                None => Ok(true),
            });
        }
        if pipe.is_ended {
            return Progress::Ready(Ok(false));
        }
        match pipe.arriving.front() {
            Some((at, Item::End)) if *at <= now => {
                pipe.is_ended = true;
                core.record(SimEventKind::End, Some(there), Some(here), self.id, 0, 0);
                return Progress::Ready(Ok(false));
            }
            Some((at, Item::Abort)) if *at <= now => {
                core.record(SimEventKind::Abort, Some(there), Some(here), self.id, 0, 0);
                return Progress::Ready(Err(ReceiveFailure::Broken(ErrorKind::ConnectionReset)));
            }
            _ => {}
        }
        if pipe.reset_at.is_some_and(|at| at <= now) {
            core.record(SimEventKind::Reset, Some(there), Some(here), self.id, 0, 0);
            self.break_end(core, side, ErrorKind::ConnectionReset);
            return Progress::Ready(Err(ReceiveFailure::Broken(ErrorKind::ConnectionReset)));
        }
        pipe.receiver = Some(cx.waker().clone());
        let arrival = pipe.arriving.front().map(|(at, _)| *at);
        Progress::Wait(earliest(arrival, self.deadline(core, side)))
    }

    /// Why the sender of this end is of no further use.
    fn sender_broken(&mut self, core: &mut Core, now: u64, side: usize) -> Option<ErrorKind> {
        if let Some(kind) = self.timed_out(core, now, side) {
            return Some(kind);
        }
        let is_due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        if is_due(self.pipes[1 - side].reset_at) {
            return Some(ErrorKind::ConnectionReset);
        }
        is_due(self.pipes[side].unread_at).then_some(ErrorKind::BrokenPipe)
    }

    /// Why this end is of no further use, having waited too long for acknowledgements perhaps.
    fn timed_out(&mut self, core: &mut Core, now: u64, side: usize) -> Option<ErrorKind> {
        let end = &self.ends[side];
        if end.broken.is_none() {
            let limit = nanos(core.config.break_after);
            let since = self.pipes[side].unacknowledged_since?;
            if since.saturating_add(limit) > now {
                return None;
            }
            let (from, to) = (end.host, self.ends[1 - side].host);
            core.record(SimEventKind::Break, Some(from), Some(to), self.id, 0, 0);
            self.break_end(core, side, ErrorKind::TimedOut);
            self.tell_reset(core, now, side);
        }
        self.ends[side].broken
    }

    /// When to look again although nothing arrives: a reset on its way, or patience at its end.
    fn deadline(&self, core: &Core, side: usize) -> Option<u64> {
        let patience = self.pipes[side]
            .unacknowledged_since
            .map(|since| since.saturating_add(nanos(core.config.break_after)));
        earliest(self.pipes[1 - side].reset_at, patience)
    }

    /// This end's host or program died.
    pub(super) fn die(&mut self, core: &mut Core, now: u64, side: usize, is_kill: bool) {
        self.break_end(core, side, ErrorKind::ConnectionAborted);
        if is_kill {
            self.tell_reset(core, now, side);
        } else if self.pipes[1 - side].window_used > 0 {
            self.unacknowledged(core, now, 1 - side);
        }
    }

    pub(super) fn break_end(&mut self, core: &mut Core, side: usize, kind: ErrorKind) {
        self.ends[side].broken.get_or_insert(kind);
        self.pipes[side].stalled.clear();
        self.wake_end(core, side);
    }

    /// Sends the other end a reset, which is lost where the way is cut.
    fn tell_reset(&mut self, core: &mut Core, now: u64, side: usize) {
        let notice = core.notice(now, self.ends[side].host, self.ends[1 - side].host);
        let pipe = &mut self.pipes[side];
        // Not before what was sent earlier has arrived.
        let notice = notice.map(|at| at.max(pipe.arrived_last));
        pipe.reset_at = earliest(pipe.reset_at, notice);
        self.wake_end(core, 1 - side);
    }

    /// The receiver of this end was dropped.
    fn unread(&mut self, core: &mut Core, now: u64, side: usize) {
        let pipe = &mut self.pipes[1 - side];
        pipe.arriving.clear();
        pipe.window_used = 0;
        pipe.owed = 0;
        if !pipe.is_ended && self.ends[side].broken.is_none() {
            let notice = core.notice(now, self.ends[side].host, self.ends[1 - side].host);
            pipe.unread_at = earliest(pipe.unread_at, notice);
        }
        self.wake_end(core, 1 - side);
    }

    /// Sends what waited, and gives acknowledgements that were held up, if the ways are open again.
    pub(super) fn resume(&mut self, core: &mut Core, now: u64, side: usize) {
        let (from, to) = (self.ends[side].host, self.ends[1 - side].host);
        if self.ends[side].broken.is_some() || !core.host(to).is_up || !core.network.reaches(from, to) {
            return;
        }
        let peer = &self.ends[1 - side];
        let is_gone = peer.broken.is_some();
        if (is_gone || !peer.has_receiver) && self.pipes[side].unacknowledged_since.is_some() {
            // A retransmission meets a host that knows nothing of the connection, or nobody who reads.
            let answer = core.notice(now, from, to).and_then(|at| core.notice(at, to, from));
            if is_gone {
                let back = &mut self.pipes[1 - side];
                back.reset_at = earliest(back.reset_at, answer);
            } else {
                let pipe = &mut self.pipes[side];
                pipe.unread_at = earliest(pipe.unread_at, answer);
            }
            self.wake_end(core, side);
            return;
        }
        while let Some(item) = self.pipes[side].stalled.pop_front() {
            if let Some(item) = self.try_transmit(core, now, side, item) {
                self.pipes[side].stalled.push_front(item);
                break;
            }
        }
        let pipe = &mut self.pipes[side];
        if pipe.stalled.is_empty() && core.network.reaches(to, from) {
            pipe.window_used = pipe.window_used.saturating_sub(pipe.owed);
            pipe.owed = 0;
            pipe.unacknowledged_since = None;
            core.woken.extend(pipe.sender.take());
        }
    }

    /// Wakes whoever waits at this end.
    fn wake_end(&mut self, core: &mut Core, side: usize) {
        core.woken.extend(self.pipes[side].sender.take());
        core.woken.extend(self.pipes[1 - side].receiver.take());
    }
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Frame(frame, _) => frame.len(),
            Self::End | Self::Abort => 0,
        }
    }

    /// What it counts against the window.
    fn cost(&self) -> usize {
        match self {
            Self::Frame(frame, _) => cost(frame),
            Self::End | Self::Abort => 0,
        }
    }
}

/// What a frame counts against the window; an empty one counts as well, or a flood of them would be free.
fn cost(frame: &Bytes) -> usize {
    frame.len() + size_of::<Bytes>()
}

fn earliest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Bytes taken from a link in one poll, as much as a stream transport reads at once.
const RECEIVE_BYTES_MAX: usize = 128 * 1024;
