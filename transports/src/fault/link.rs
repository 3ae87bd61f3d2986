//! Links with faults: frames are judged where they arrive, cuts where they leave as well.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::model::{Corruption, Loss, StreamFate};
use super::{ELSEWHERE, Manner, Registered, Shared, State};
use crate::address::Address;
use crate::error::LinkError;
use crate::frame::{Inbox, Outbox};
use crate::timer::{Timer, instant_at};
use crate::transport::{FrameReceiver, FrameSender, Link};

/// Wraps a link of `site`; `dialled` is the address it was dialled by, `None` when it was accepted.
pub(super) fn wrap(shared: &Arc<Shared>, site: u64, dialled: Option<&Address>, link: Link) -> Link {
    let registered = dialled.map(|_| shared.register(link.local.clone(), site));
    let ends = Arc::new(Ends {
        shared: shared.clone(),
        site,
        // Who dials a name is linked to whoever listens under that name, whatever the system makes of it.
        peer: dialled.unwrap_or(&link.peer).clone(),
        peer_site: AtomicU64::new(ELSEWHERE),
        is_reset: AtomicBool::new(false),
        _registered: registered,
    });
    let [send_id, receive_id] = {
        let mut state = shared.state();
        ends.peer_site(&state);
        [state.fresh_id(), state.fresh_id()]
    };
    let sender = FaultySender {
        inner: link.sender,
        waiting: Waiting { ends: ends.clone(), id: send_id },
        outbox: Outbox::new(usize::MAX),
    };
    let receiver = FaultyReceiver {
        inner: link.receiver,
        waiting: Waiting { ends, id: receive_id },
        inbox: Inbox::new(0),
        held: Held::default(),
        unjudged: VecDeque::new(),
        due_last: 0,
        came: 0,
        end: None,
        timer: Timer::default(),
    };
    Link { sender: Box::new(sender), receiver: Box::new(receiver), ..link }
}

/// What both halves of an end share.
struct Ends {
    shared: Arc<Shared>,
    site: u64,
    peer: Address,
    /// The peer's site, once it is known: an address may be forgotten while its links live on.
    peer_site: AtomicU64,
    is_reset: AtomicBool,
    _registered: Option<Registered>,
}

impl Ends {
    /// The site at the other end. A peer that dialled is known from the moment at which its dialling is done.
    fn peer_site(&self, state: &State) -> u64 {
        let known = self.peer_site.load(Ordering::Acquire);
        if known != ELSEWHERE {
            return known;
        }
        let found = state.site_of(&self.peer);
        self.peer_site.store(found, Ordering::Release);
        found
    }

    /// The error of a link that the model has reset.
    fn check(&self) -> Result<(), LinkError> {
        if self.is_reset.load(Ordering::Acquire) {
            return Err(LinkError::broken(&self.peer, ErrorKind::ConnectionReset));
        }
        Ok(())
    }
}

/// A half of a link that may wait for a change of the network.
struct Waiting {
    ends: Arc<Ends>,
    id: u64,
}

impl Waiting {
    /// To be woken by the next change.
    fn wait(&self, state: &mut State, cx: &Context<'_>) {
        state.waiting.insert(self.id, cx.waker().clone());
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.ends.shared.state().waiting.remove(&self.id);
    }
}

struct FaultySender {
    inner: Box<dyn FrameSender>,
    waiting: Waiting,
    /// Frames that no cut has taken, for the inner sender.
    outbox: Outbox,
}

impl FrameSender for FaultySender {
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>> {
        loop {
            self.waiting.ends.check()?;
            // Also with nothing to send: the inner sender has its own opinion of a closed link.
            ready!(self.inner.poll_send(cx, &mut self.outbox))?;
            if outbox.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let ends = &self.waiting.ends;
            let mut state = ends.shared.state();
            let there = ends.peer_site(&state);
            if !state.network.reaches(ends.site, there) {
                match state.manner {
                    Manner::Stream => {
                        self.waiting.wait(&mut state, cx);
                        return Poll::Pending;
                    }
                    Manner::Frames => {
                        while outbox.pop_frame().is_some() {
                            state.stats.frames += 1;
                            state.stats.cut += 1;
                        }
                        continue;
                    }
                }
            }
            drop(state);
            while self.outbox.bytes() < BATCH_BYTES
                && let Some(frame) = outbox.pop_frame()
            {
                if let Err(source) = self.outbox.push_body(&[], frame) {
                    return Poll::Ready(Err(LinkError::Frame { peer: ends.peer.clone(), source }));
                }
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.waiting.ends.check()?;
        // Not with nothing to send: a closing that had to wait is asked for again, and takes no more sends.
        if !self.outbox.is_empty() {
            ready!(self.inner.poll_send(cx, &mut self.outbox))?;
        }
        self.inner.poll_close(cx)
    }
}

struct FaultyReceiver {
    inner: Box<dyn FrameReceiver>,
    waiting: Waiting,
    inbox: Inbox,
    held: Held<Bytes>,
    /// Read, and not judged because of a cut: the first of them stalls the rest.
    unjudged: VecDeque<Bytes>,
    /// When the last frame so far is due, for streams.
    due_last: u64,
    /// Frames so far, until as many came as are spared.
    came: u32,
    /// How the inner link ended; told when everything held back is out.
    end: Option<Result<(), LinkError>>,
    timer: Timer,
}

impl FrameReceiver for FaultyReceiver {
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>> {
        loop {
            self.waiting.ends.check()?;
            self.inbox.set_frame_bytes_max(inbox.frame_bytes_max());
            self.judge(cx);
            self.waiting.ends.check()?;
            if self.release(inbox)? {
                return Poll::Ready(Ok(true));
            }
            let is_stalled = !self.unjudged.is_empty();
            let is_full = self.held.bytes >= self.waiting.ends.shared.config.held_bytes_max.max(1);
            if self.end.is_none() && !is_stalled && !is_full {
                match self.inner.poll_receive(cx, &mut self.inbox) {
                    Poll::Ready(Ok(true)) => {
                        self.take();
                        continue;
                    }
                    Poll::Ready(Ok(false)) => {
                        self.end = Some(Ok(()));
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        // What came before the error is whole.
                        self.take();
                        self.end.get_or_insert(Err(error));
                        continue;
                    }
                    Poll::Pending => {}
                }
            }
            if self.held.frames.is_empty() && !is_stalled {
                match self.end.take() {
                    Some(Ok(())) => {
                        self.end = Some(Ok(()));
                        return Poll::Ready(Ok(false));
                    }
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => {}
                }
            }
            let Some(due) = self.held.next_due() else { return Poll::Pending };
            let at = instant_at(self.waiting.ends.shared.state().epoch(), due);
            ready!(self.timer.poll_until(cx, at));
        }
    }
}

impl FaultyReceiver {
    /// Takes whole frames out of the inner inbox.
    fn take(&mut self) {
        loop {
            match self.inbox.next_frame() {
                Ok(Some(frame)) => self.unjudged.push_back(frame),
                Ok(None) => return,
                Err(source) => {
                    self.end = Some(Err(LinkError::Frame { peer: self.waiting.ends.peer.clone(), source }));
                    return;
                }
            }
        }
    }

    /// Decides what becomes of the frames that were read, up to one that stalls.
    fn judge(&mut self, cx: &Context<'_>) {
        if self.unjudged.is_empty() {
            return;
        }
        let ends = &self.waiting.ends;
        let mut guard = ends.shared.state();
        let now = guard.now();
        let from = ends.peer_site(&guard);
        while let Some(frame) = self.unjudged.pop_front() {
            let state = &mut *guard;
            match state.manner {
                Manner::Stream => {
                    match state.network.stream_fate(now, from, ends.site, frame.len(), &mut state.rng) {
                        StreamFate::Arrives(delivery) => {
                            state.stats.frames += 1;
                            let due = now.saturating_add(delivery.delay_nanos).max(self.due_last);
                            self.due_last = due;
                            self.held.hold(state, now, due, frame, delivery.corruption);
                        }
                        StreamFate::Stalls => {
                            self.unjudged.push_front(frame);
                            self.waiting.wait(state, cx);
                            return;
                        }
                        StreamFate::Resets => {
                            state.stats.resets += 1;
                            ends.is_reset.store(true, Ordering::Release);
                            return;
                        }
                    }
                }
                Manner::Frames if self.came < ends.shared.config.frames_spared => {
                    self.came += 1;
                    state.stats.frames += 1;
                    self.held.hold(state, now, now, frame, None);
                }
                Manner::Frames => self.held.judge(state, now, (from, ends.site), frame),
            }
        }
    }

    /// Hands out what is due; true when something was.
    fn release(&mut self, inbox: &mut Inbox) -> Result<bool, LinkError> {
        if self.held.frames.is_empty() {
            return Ok(false);
        }
        let now = self.waiting.ends.shared.state().now();
        let mut is_any = false;
        while let Some(frame) = self.held.pop_due(now) {
            is_any = true;
            if let Err(source) = inbox.push_frame(frame) {
                return Err(LinkError::Frame { peer: self.waiting.ends.peer.clone(), source });
            }
        }
        Ok(is_any)
    }
}

/// Frames or datagrams that are held back, by the time at which they are due and their order.
pub(super) struct Held<T> {
    frames: BTreeMap<(u64, u64), T>,
    bytes: usize,
    held: u64,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { frames: BTreeMap::new(), bytes: 0, held: 0 }
    }
}

/// Something with a payload that can be damaged.
pub(super) trait Payload: Clone {
    fn payload(&self) -> &Bytes;
    fn replace(&mut self, payload: Bytes);
}

impl Payload for Bytes {
    fn payload(&self) -> &Bytes {
        self
    }

    fn replace(&mut self, payload: Bytes) {
        *self = payload;
    }
}

impl<T: Payload> Held<T> {
    /// Decides what becomes of a single message.
    pub(super) fn judge(&mut self, state: &mut State, now: u64, (from, to): (u64, u64), message: T) {
        state.stats.frames += 1;
        let fate = state.network.fate(now, from, to, message.payload().len(), &mut state.rng);
        match fate.loss() {
            Some(Loss::Cut) => state.stats.cut += 1,
            Some(Loss::Lost) => state.stats.lost += 1,
            Some(Loss::Congested) => state.stats.congested += 1,
            None => {}
        }
        state.stats.duplicated += u64::from(fate.len() > 1);
        for copy in fate.iter() {
            self.hold(state, now, now.saturating_add(copy.delay_nanos), message.clone(), copy.corruption);
        }
    }

    fn hold(
        &mut self,
        state: &mut State,
        now: u64,
        due: u64,
        mut message: T,
        corruption: Option<Corruption>,
    ) {
        if let Some(corruption) = corruption {
            let mut damaged = BytesMut::from(&message.payload()[..]);
            corruption.apply(&mut damaged);
            message.replace(damaged.freeze());
            state.stats.corrupted += 1;
        }
        state.stats.delayed += u64::from(due > now);
        self.bytes += cost(&message);
        self.held += 1;
        self.frames.insert((due, self.held), message);
    }

    /// The first message that is due by now.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<T> {
        let first = self.frames.first_entry().filter(|first| first.key().0 <= now)?;
        let message = first.remove();
        self.bytes -= cost(&message);
        Some(message)
    }

    /// When the first message is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.frames.first_key_value().map(|(key, _)| key.0)
    }

    /// Bytes held back.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a message counts; an empty one counts as well, or a flood of them would be free.
fn cost(message: &impl Payload) -> usize {
    message.payload().len() + size_of::<((u64, u64), Bytes)>()
}

/// Bytes moved to the inner sender at once.
const BATCH_BYTES: usize = 256 * 1024;
