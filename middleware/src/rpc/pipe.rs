//! The inside of a stream: what both halves share in one process, or one half and the way to the other.
//!
//! Method      see [`stream`](super::stream). Everything that the other half says comes in at [`Half::hear`], under one
//!             lock, and needs neither a task nor a clock; only who waits looks at the time.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::port::{Half, Link, Unsaid, Word};
use super::stream::StreamError;

/// What both halves share in one process, or one half and the way to the other.
pub(super) struct Pipe<T> {
    pub(super) window: u64,
    pub(super) state: Mutex<State<T>>,
    pub(super) reader: Notify,
    pub(super) writer: Notify,
}

pub(super) type Far = (Arc<dyn Link>, u64);

pub(super) struct State<T> {
    /// The other half is there; the stream's number there.
    pub(super) far: Option<Far>,
    pub(super) ready: VecDeque<Item<T>>,
    /// Items that have overtaken others.
    pub(super) held: BTreeMap<u64, Bytes>,
    /// Items that came, in order.
    pub(super) arrived: u64,
    pub(super) arrived_bytes: u64,
    pub(super) taken: u64,
    pub(super) taken_bytes: u64,
    /// What the writer was told, or this writer was told.
    pub(super) granted: u64,
    pub(super) granted_bytes: u64,
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    pub(super) end: Option<(u64, bool)>,
    /// How much had arrived when the writer had said more for the first time.
    pub(super) missing_at: Option<u64>,
    pub(super) is_stopped: bool,
    pub(super) is_broken: bool,
}

pub(super) enum Item<T> {
    Here(T),
    Encoded(Bytes),
}

impl<T> State<T> {
    pub(super) fn is_far(&self) -> bool {
        self.far.is_some()
    }
}

impl<T> Pipe<T> {
    pub(super) fn new(window: u32) -> Self {
        let window = u64::from(window.clamp(1, WINDOW_ITEMS_MAX));
        let state = State {
            far: None,
            ready: VecDeque::new(),
            held: BTreeMap::new(),
            arrived: 0,
            arrived_bytes: 0,
            taken: 0,
            taken_bytes: 0,
            granted: 0,
            granted_bytes: 0,
            sent: 0,
            sent_bytes: 0,
            end: None,
            missing_at: None,
            is_stopped: false,
            is_broken: false,
        };
        Self { window, state: Mutex::new(state), reader: Notify::new(), writer: Notify::new() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes within the process.
    pub(super) async fn push(&self, item: T) -> Result<(), StreamError> {
        loop {
            let mut moved = pin!(self.writer.notified());
            moved.as_mut().enable();
            {
                let mut state = self.state();
                if state.is_stopped {
                    return Err(StreamError::Stopped);
                }
                if (state.ready.len() as u64) < self.window {
                    state.arrived += 1;
                    state.ready.push_back(Item::Here(item));
                    drop(state);
                    self.reader.notify_waiters();
                    return Ok(());
                }
            }
            moved.await;
        }
    }

    pub(super) fn end_here(&self, is_whole: bool) {
        let mut state = self.state();
        state.end = Some((state.arrived, is_whole));
        drop(state);
        self.reader.notify_waiters();
    }

    /// Says a writer's word, when it may; an item waits for a grant.
    pub(super) async fn say(
        &self,
        is_item: bool,
        word: impl Fn(&mut State<T>) -> (Word, u64),
    ) -> Result<(), StreamError> {
        loop {
            let mut moved = pin!(self.writer.notified());
            moved.as_mut().enable();
            let (link, stream, sent) = {
                let mut state = self.state();
                if state.is_stopped {
                    return Err(StreamError::Stopped);
                }
                let Some((link, stream)) = state.far.clone().filter(|_| !state.is_broken) else {
                    return Err(StreamError::Broken);
                };
                let may = state.sent < state.granted && state.sent_bytes < state.granted_bytes;
                if is_item && !may {
                    (link, stream, None)
                } else {
                    let (word, size) = word(&mut state);
                    let said = link.say(stream, word);
                    if said.is_ok() && is_item {
                        state.sent += 1;
                        state.sent_bytes += size;
                    }
                    (link, stream, Some(said))
                }
            };
            match sent {
                Some(Ok(())) => return Ok(()),
                Some(Err(Unsaid::TooLarge { size, limit })) => {
                    return Err(StreamError::TooLarge { size, limit });
                }
                Some(Err(Unsaid::Gone)) => return Err(StreamError::Broken),
                Some(Err(Unsaid::Full)) => {
                    tokio::select! {
                        biased;
                        () = moved => {}
                        () = link.ready() => {}
                    }
                }
                None => {
                    if tokio::time::timeout(PATIENCE, moved).await.is_err() {
                        let count = self.state().sent;
                        let _ = link.say(stream, Word::Count { count, asks: true });
                    }
                }
            }
        }
    }

    /// A grant that is worth a message.
    pub(super) fn due_grant(&self, state: &mut State<T>) -> Option<(Far, Word)> {
        let far = state.far.clone()?;
        let grown = state.taken + self.window - state.granted;
        let grown_bytes = state.taken_bytes + WINDOW_BYTES - state.granted_bytes;
        if grown < self.window.div_ceil(2) && grown_bytes < WINDOW_BYTES / 2 {
            return None;
        }
        Some((far, self.grant(state)))
    }

    fn grant(&self, state: &mut State<T>) -> Word {
        state.granted = state.taken + self.window;
        state.granted_bytes = state.taken_bytes + WINDOW_BYTES;
        Word::Grant { items: state.granted, bytes: state.granted_bytes }
    }

    pub(super) fn repeat_grant(&self) {
        let mut state = self.state();
        let Some((link, stream)) = state.far.clone() else { return };
        let word = self.grant(&mut state);
        drop(state);
        let _ = link.say(stream, word);
    }

    /// No half of this side hears any more.
    pub(super) fn leave(&self) {
        let far = self.state().far.clone();
        if let Some((link, stream)) = far {
            link.leave(stream);
        }
    }

    fn wake(&self) {
        self.reader.notify_waiters();
        self.writer.notify_waiters();
    }
}

impl<T: Send + 'static> Half for Pipe<T> {
    fn hear(&self, word: Word) -> Option<Word> {
        let mut state = self.state();
        let answer = match word {
            Word::Item { number, body } => {
                if number >= state.granted || state.arrived_bytes >= state.granted_bytes {
                    // No writer of ours does that.
                    state.is_broken = true;
                } else if number >= state.arrived {
                    state.held.insert(number, body);
                }
                let State { held, arrived, .. } = &mut *state;
                let mut next = Vec::new();
                while let Some(body) = held.remove(arrived) {
                    *arrived += 1;
                    next.push(body);
                }
                for body in next {
                    state.arrived_bytes += body.len() as u64;
                    state.ready.push_back(Item::Encoded(body));
                }
                None
            }
            Word::End { count, is_whole } => {
                state.end = Some((count, is_whole));
                None
            }
            Word::Count { count, asks } => {
                let is_missing = count > state.arrived + state.held.len() as u64;
                if is_missing && state.missing_at == Some(state.arrived) {
                    state.is_broken = true;
                }
                state.missing_at = is_missing.then_some(state.arrived);
                asks.then(|| self.grant(&mut state))
            }
            Word::Gone => {
                state.is_broken |= state.end.is_none_or(|(count, _)| count != state.arrived);
                None
            }
            Word::Grant { items, bytes } => {
                let is_news = items > state.granted || bytes > state.granted_bytes;
                state.granted = state.granted.max(items);
                state.granted_bytes = state.granted_bytes.max(bytes);
                (!is_news).then(|| Word::Count { count: state.sent, asks: false })
            }
            Word::Stop => {
                state.is_stopped = true;
                None
            }
        };
        drop(state);
        self.wake();
        answer
    }

    fn break_off(&self) {
        self.state().is_broken = true;
        self.wake();
    }
}

/// Items of one stream that may wait to be read, at most.
const WINDOW_ITEMS_MAX: u32 = 65_536;
/// Bytes of items that may be on their way or wait to be read.
pub(super) const WINDOW_BYTES: u64 = 1 << 20;
/// How long one half waits before it asks the other one. Only lost words make it ask in vain.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
