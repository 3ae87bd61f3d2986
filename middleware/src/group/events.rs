//! What a member is told, and the queue between its machine and its user.
//!
//! Limits      beyond `Limits::events_waiting_max` unread events, or their bytes, the member stops acknowledging, so that the others'
//!             windows fill and they wait; what is then still under way is bounded by those windows. Own messages that
//!             arrive beyond it keep their places in the window of `Limits::outstanding_max` until half is read. By
//!             `Limits::slow_reader` a member for which that lasts too long leaves.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use quorate_protocols::group::{self, Command};
use quorate_protocols::stack::{Ended, View, ViewId};
use quorate_protocols::{Machine, ProcessId};
use quorate_transports::NodeId;
use tokio::sync::{AcquireError, Notify, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use super::introduce::Introducer;
use super::outside::Desk;
use super::{ASIDE_INTRODUCTION, ASIDE_OUTSIDE, ASIDE_SIDE, GroupStats, Limits, SlowReader};
use crate::driver::{Sink, Stopped};

/// What a member is told, in this order: a view, for a joiner the state at its beginning, then the messages of the
/// view, then the next view.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A view begins: these are the members.
    View(View),
    /// A message of the current view.
    Message {
        /// Who sent it.
        from: ProcessId,
        /// What was sent.
        payload: Bytes,
    },
    /// A message of the current view from outside: the group is [open](super::Builder::open).
    Outside {
        /// Who sent it, as far as the transport of `via` knows.
        from: NodeId,
        /// The member that took it.
        via: ProcessId,
        /// What was sent.
        payload: Bytes,
    },
    /// Joiners need the application's state as of this event. Answer before the next event is applied; until then
    /// nobody joins. Not in a group that is [stateless](super::Builder::stateless).
    StateWanted(StateRequest),
    /// The state of the others at the beginning of the current view: replace what was before.
    State(Bytes),
    /// Too few members seem alive to decide anything. Messages wait; they are delivered when enough come back. When
    /// that does not happen, leave and join anew elsewhere.
    QuorumLost,
    /// Enough members are back.
    QuorumRegained,
    /// This process is no longer a member. The last event.
    Ended(Option<Ended>),
}

/// Asks for the application's state. Dropped unanswered, joiners wait until another view asks again, or give up: see
/// [`Builder::join`](super::Builder::join).
#[must_use = "joiners wait for the state"]
pub struct StateRequest {
    view: ViewId,
    shared: Arc<Shared>,
}

impl StateRequest {
    /// Answers with the state as of the event, in the application's own encoding.
    pub fn answer(self, state: Bytes) {
        // An answer for an earlier view that still waits is of no use any more.
        self.shared.lock().answer = Some(Command::State { view: self.view, state });
        self.shared.wake.notify_one();
    }
}

impl fmt::Debug for StateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateRequest({})", self.view)
    }
}

/// The events of one member. Read them at all times: nobody's messages, nor one's own, find room beside
/// [`Limits::events_waiting_max`] unread ones.
///
/// Who does not want them any more does not want to be a member: dropping them leaves the group, in good order and in
/// the background. That takes a quorum; without one the member stays until there is one, or until its
/// [`Group`](super::Group) is dropped.
#[derive(Debug)]
pub struct Events {
    shared: Arc<Shared>,
}

impl Events {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The next event; `None` after [`Event::Ended`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next event if it is here already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.shared.lock().pop(&self.shared)
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.shared.lock();
        match state.pop(&self.shared) {
            Some(event) => Poll::Ready(Some(event)),
            None if state.is_over => Poll::Ready(None),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl futures_core::Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_event(cx)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // What still arrives is dropped: the group must not wait for it while it lets this member go.
        state.has_reader = false;
        let unread = std::mem::take(&mut state.events);
        state.event_bytes = 0;
        state.make_room(&self.shared);
        drop(state);
        drop(unread);
        self.shared.wake.notify_one();
    }
}

/// Between the machine's task and the user.
pub(super) struct Shared {
    me: ProcessId,
    state: Mutex<State>,
    wake: Arc<Notify>,
    /// Room for own messages, and for their bytes.
    window: Semaphore,
    byte_window: Semaphore,
    view: watch::Sender<Option<View>>,
    ended: watch::Sender<Option<Option<Ended>>>,
    limits: Limits,
}

struct State {
    events: VecDeque<Event>,
    /// Of messages and states among them.
    event_bytes: usize,
    reader: Option<Waker>,
    has_reader: bool,
    /// The machine has been told to leave because nobody reads.
    leaves: bool,
    is_over: bool,
    /// Since when the machine has been told that the user is behind.
    saturated_since: Option<Instant>,
    /// It has been told to leave because that lasts.
    is_too_slow: bool,
    /// Own messages among the events that still have their places in the window, and their bytes.
    withheld: (usize, usize),
    /// The application's state, on its way to the machine.
    answer: Option<Command>,
    totals: GroupStats,
}

impl State {
    fn pop(&mut self, shared: &Shared) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.event_bytes -= bytes_of(&event);
        if !self.is_beyond(&shared.limits, 2) {
            self.make_room(shared);
            if self.saturated_since.is_some() {
                shared.wake.notify_one();
            }
        }
        Some(event)
    }

    /// Gives own messages' places in the window back.
    fn make_room(&mut self, shared: &Shared) {
        let (messages, bytes) = std::mem::take(&mut self.withheld);
        if messages > 0 {
            shared.window.add_permits(messages);
            shared.byte_window.add_permits(bytes);
        }
    }

    /// True when more waits than this part of the limits.
    fn is_beyond(&self, limits: &Limits, part: usize) -> bool {
        self.events.len() > limits.events_waiting_max / part
            || self.event_bytes > limits.events_waiting_bytes_max / part
    }
}

impl Shared {
    pub(super) fn new(me: ProcessId, wake: Arc<Notify>, limits: &Limits) -> Self {
        let state = State {
            events: VecDeque::new(),
            event_bytes: 0,
            reader: None,
            has_reader: true,
            leaves: false,
            is_over: false,
            saturated_since: None,
            is_too_slow: false,
            withheld: (0, 0),
            answer: None,
            totals: GroupStats::default(),
        };
        Self {
            me,
            state: Mutex::new(state),
            wake,
            window: Semaphore::new(limits.outstanding_max),
            byte_window: Semaphore::new(limits.outstanding_bytes_max),
            view: watch::Sender::new(None),
            ended: watch::Sender::new(None),
            limits: limits.clone(),
        }
    }

    pub(super) fn me(&self) -> ProcessId {
        self.me
    }

    /// Room for an own message of so many bytes.
    pub(super) async fn room(&self, bytes: usize) -> Result<[SemaphorePermit<'_>; 2], AcquireError> {
        let message = self.window.acquire().await?;
        Ok([message, self.byte_window.acquire_many(self.share(bytes)).await?])
    }

    /// What a message takes of the window for bytes: a larger one takes all of it.
    fn share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.limits.outstanding_bytes_max)).unwrap_or(u32::MAX)
    }

    pub(super) fn view(&self) -> Option<View> {
        self.view.borrow().clone()
    }

    /// Resolves with the first view; `Err` when the membership ends before.
    pub(super) async fn wait_view(&self) -> Result<View, Option<Ended>> {
        let (mut view, mut ended) = (self.view.subscribe(), self.ended.subscribe());
        tokio::select! {
            biased;
            Ok(view) = view.wait_for(Option::is_some) => view.clone().ok_or(None),
            Ok(ended) = ended.wait_for(Option::is_some) => Err(ended.flatten()),
            else => Err(None),
        }
    }

    pub(super) fn why_ended(&self) -> Option<Ended> {
        self.ended.borrow().flatten()
    }

    /// What is counted here.
    pub(super) fn totals(&self) -> GroupStats {
        let state = self.lock();
        GroupStats { waiting: state.events.len(), waiting_bytes: state.event_bytes, ..state.totals }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        self.put(event, false);
    }

    /// Whoever finds no event after the last one finds the end, and not before it: both change under one lock.
    fn put(&self, event: Event, is_last: bool) {
        let mut state = self.lock();
        state.is_over |= is_last;
        match &event {
            Event::Message { from, payload } => {
                state.totals.delivered += 1;
                if *from == self.me {
                    state.withheld.0 += 1;
                    state.withheld.1 += self.share(payload.len()) as usize;
                }
            }
            Event::Outside { .. } => state.totals.delivered += 1,
            Event::View(_) => state.totals.views += 1,
            _ => {}
        }
        if state.has_reader {
            state.event_bytes += bytes_of(&event);
            state.events.push_back(event);
        }
        if !state.is_beyond(&self.limits, 1) {
            state.make_room(self);
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn end(&self, why: Option<Ended>) {
        self.ended.send_replace(Some(why));
        self.window.close();
        self.byte_window.close();
        self.put(Event::Ended(why), true);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("waiting", &self.lock().events.len()).finish_non_exhaustive()
    }
}

/// What an event takes of the limit for bytes.
fn bytes_of(event: &Event) -> usize {
    match event {
        Event::Message { payload, .. } | Event::Outside { payload, .. } => payload.len(),
        Event::State(state) => state.len(),
        _ => 0,
    }
}

/// The end of the queue that the driver holds.
pub(super) struct GroupSink {
    shared: Arc<Shared>,
    introducer: Introducer,
    desk: Desk,
    /// False when no state is wanted from the application, nor given to it.
    has_state: bool,
    /// The machine's last word.
    over: Option<Ended>,
}

impl GroupSink {
    pub(super) fn new(shared: Arc<Shared>, introducer: Introducer, desk: Desk, has_state: bool) -> Self {
        Self { shared, introducer, desk, has_state, over: None }
    }
}

impl<M: Machine<Command = Command, Event = group::Event>> Sink<M> for GroupSink {
    fn take(&mut self, event: group::Event) {
        let event = match event {
            group::Event::View(view) => {
                tracing::info!(view = %view, me = %self.shared.me, "view installed");
                self.introducer.introduce(&view);
                self.shared.view.send_replace(Some(view.clone()));
                Event::View(view)
            }
            group::Event::Deliver { from, payload } => Event::Message { from, payload },
            group::Event::DeliverOutside { from, via, payload } => {
                if via == self.shared.me {
                    self.desk.delivered(from);
                }
                Event::Outside { from: NodeId(from.0), via, payload }
            }
            group::Event::StateWanted(view) => {
                let request = StateRequest { view, shared: self.shared.clone() };
                if !self.has_state {
                    return request.answer(Bytes::new());
                }
                Event::StateWanted(request)
            }
            group::Event::State(_) if !self.has_state => return,
            group::Event::State(state) => Event::State(state),
            group::Event::QuorumLost => {
                tracing::info!(me = %self.shared.me, "quorum lost");
                Event::QuorumLost
            }
            group::Event::QuorumRegained => Event::QuorumRegained,
            group::Event::Suspected(peer) => {
                tracing::info!(%peer, me = %self.shared.me, "member suspected");
                self.shared.lock().totals.suspicions += 1;
                return;
            }
            group::Event::Trusted(peer) => {
                tracing::info!(%peer, me = %self.shared.me, "suspicion taken back");
                self.shared.lock().totals.false_suspicions += 1;
                return;
            }
            group::Event::Rejected(payload) => {
                // The window is far below the machine's own limit.
                debug_assert!(false, "a message of {} bytes was rejected", payload.len());
                self.shared.window.add_permits(1);
                self.shared.byte_window.add_permits(self.shared.share(payload.len()) as usize);
                return;
            }
            group::Event::RejectedOutside(from) => return self.desk.refused(from),
            group::Event::Ended(why) => {
                // Told when the driver has ended, too: then the name is free again.
                self.over = Some(why);
                return;
            }
        };
        self.shared.push(event);
    }

    fn take_aside(&mut self, from: NodeId, mut frame: Bytes) {
        match frame.try_get_u8() {
            Ok(ASIDE_INTRODUCTION) => self.introducer.hear(from, frame),
            Ok(ASIDE_SIDE) => self.introducer.hear_of_side(from, frame),
            Ok(ASIDE_OUTSIDE) => {
                if self.desk.hear(from, frame, self.shared.view().is_some()) {
                    self.shared.wake.notify_one();
                }
            }
            _ => tracing::debug!(%from, "a frame of unknown kind dropped"),
        }
    }

    fn command(&mut self) -> Option<Command> {
        let mut state = self.shared.lock();
        if let Some(answer) = state.answer.take() {
            return Some(answer);
        }
        if !state.has_reader && !state.leaves {
            state.leaves = true;
            return Some(Command::Leave);
        }
        // The detector's beats let a member of more than one ask often enough; one that is alone holds nobody up.
        if let (Some(since), SlowReader::LeavesAfter(patience)) =
            (state.saturated_since, self.shared.limits.slow_reader)
            && since.elapsed() >= patience
            && !state.leaves
        {
            (state.leaves, state.is_too_slow) = (true, true);
            return Some(Command::Leave);
        }
        let was_full = state.saturated_since.is_some();
        let is_full = state.is_beyond(&self.shared.limits, if was_full { 2 } else { 1 });
        if is_full != was_full {
            state.saturated_since = is_full.then(Instant::now);
            self.shared.wake.notify_one();
            return Some(Command::Saturated(is_full));
        }
        let next = self.desk.next();
        if self.desk.has_more() {
            self.shared.wake.notify_one();
        }
        next
    }

    fn is_over(&self) -> bool {
        self.over.is_some()
    }

    fn ended(&mut self, _: &Stopped) {
        let is_too_slow = self.shared.lock().is_too_slow;
        let why = self.over.map(|why| if is_too_slow && why == Ended::Left { Ended::TooSlow } else { why });
        tracing::info!(me = %self.shared.me, ?why, "membership ended");
        self.desk.close();
        self.shared.end(why);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_reader_that_looks_while_a_membership_ends_finds_why() {
        for _ in 0..2_000 {
            let me = ProcessId { node: 1, incarnation: 1 };
            let shared = Arc::new(Shared::new(me, Arc::default(), &Limits::default()));
            let mut events = Events::new(Arc::clone(&shared));
            let start = Arc::new(Barrier::new(2));
            let begins = Arc::clone(&start);
            let reader = std::thread::spawn(move || {
                begins.wait();
                loop {
                    if let Poll::Ready(event) = events.poll_event(&mut Context::from_waker(Waker::noop())) {
                        return event;
                    }
                }
            });
            start.wait();
            shared.end(Some(Ended::Expelled));
            let last = reader.join().unwrap();
            assert!(matches!(last, Some(Event::Ended(Some(Ended::Expelled)))), "{last:?}");
        }
    }
}
