//! The inside of a stream: both halves in one process, or one half and the way to the other.
//!
//! Method      what the halves say to each other is [`ReadingHalf`] and [`WritingHalf`]; here are only those who wait. All
//!             that the other half says comes in at [`Half::hear`], under one lock, and needs neither a task nor a clock.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::rpc::{MayWrite, ReadingHalf, WINDOW_ITEMS_MAX, Word, WritingHalf};
use tokio::sync::Notify;

use super::port::{Half, Link, Unsaid};
use super::stream::StreamError;

/// What both halves share in one process, or one half and the way to the other.
pub(super) struct Pipe<T> {
    pub(super) window: u32,
    state: Mutex<State<T>>,
    pub(super) reader: Notify,
    pub(super) writer: Notify,
}

/// The way to the other half, and the stream's number there.
pub(super) type Far = (Arc<dyn Link>, u64);

pub(super) enum State<T> {
    /// Both halves are in this process.
    Here(Here<T>),
    /// The writer is elsewhere.
    Reads(ReadingHalf, Far),
    /// The reader is elsewhere.
    Writes(WritingHalf, Far),
}

pub(super) struct Here<T> {
    pub(super) ready: VecDeque<T>,
    /// Something was written: no half can travel any more.
    is_used: bool,
    /// Nothing more is written; whether that was all.
    pub(super) end: Option<bool>,
    pub(super) is_stopped: bool,
}

impl<T> State<T> {
    fn far(&self) -> Option<&Far> {
        match self {
            Self::Here(_) => None,
            Self::Reads(_, far) | Self::Writes(_, far) => Some(far),
        }
    }

    /// Whether a half may still travel.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self, Self::Here(here) if !here.is_used && here.end.is_none() && !here.is_stopped)
    }
}

impl<T> Pipe<T> {
    pub(super) fn new(window: u32) -> Self {
        let here = Here { ready: VecDeque::new(), is_used: false, end: None, is_stopped: false };
        Self {
            window: window.clamp(1, WINDOW_ITEMS_MAX),
            state: Mutex::new(State::Here(here)),
            reader: Notify::new(),
            writer: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(&*self.state(), State::Here(_))
    }

    /// Writes within the process.
    pub(super) async fn push(&self, item: T) -> Result<(), StreamError> {
        loop {
            let mut moved = pin!(self.writer.notified());
            moved.as_mut().enable();
            {
                let mut state = self.state();
                // Its reader may have travelled while this waited: then the writer is told by the next item.
                let State::Here(here) = &mut *state else { return Err(StreamError::Broken) };
                if here.is_stopped {
                    return Err(StreamError::Stopped);
                }
                if here.ready.len() < self.window as usize {
                    here.is_used = true;
                    here.ready.push_back(item);
                    drop(state);
                    self.reader.notify_waiters();
                    return Ok(());
                }
            }
            moved.await;
        }
    }

    /// Says an item, when it may, or without one the end.
    pub(super) async fn say(&self, item: Option<Bytes>) -> Result<(), StreamError> {
        loop {
            let mut moved = pin!(self.writer.notified());
            moved.as_mut().enable();
            let (link, stream, said) = {
                let mut state = self.state();
                let State::Writes(half, (link, stream)) = &mut *state else {
                    return Err(StreamError::Broken);
                };
                let said = match half.may_write() {
                    MayWrite::Stopped => return Err(StreamError::Stopped),
                    MayWrite::Broken => return Err(StreamError::Broken),
                    MayWrite::Later if item.is_some() => None,
                    MayWrite::Later | MayWrite::Now => {
                        let word = match &item {
                            Some(body) => half.item(body.clone()),
                            None => half.end(true),
                        };
                        let said = link.say(*stream, word);
                        if let (Ok(()), Some(body)) = (said, &item) {
                            half.written(body.len());
                        }
                        Some(said)
                    }
                };
                (Arc::clone(link), *stream, said)
            };
            match said {
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
                        let word = match &*self.state() {
                            State::Writes(half, _) => half.ask(),
                            State::Here(_) | State::Reads(..) => return Err(StreamError::Broken),
                        };
                        let _ = link.say(stream, word);
                    }
                }
            }
        }
    }

    /// Nothing more is written. Should the word not be sent, the reader asks after a while, and is told that nobody
    /// writes.
    pub(super) fn give_up(&self) {
        let word = match &mut *self.state() {
            State::Here(here) => {
                here.end = here.end.or(Some(false));
                None
            }
            State::Writes(half, far) => Some((far.clone(), half.end(false))),
            State::Reads(..) => None,
        };
        self.reader.notify_waiters();
        self.say_last(word);
    }

    /// What was written within the process was all.
    pub(super) fn end_here(&self) {
        if let State::Here(here) = &mut *self.state() {
            here.end = Some(true);
        }
        self.reader.notify_waiters();
    }

    /// Nothing more is read. Should the word not be sent, the writer's next item is answered with it.
    pub(super) fn stop(&self) {
        let word = match &mut *self.state() {
            State::Here(here) => {
                here.is_stopped = true;
                here.ready.clear();
                None
            }
            State::Reads(_, far) => Some((far.clone(), Word::Stop)),
            State::Writes(..) => None,
        };
        self.writer.notify_waiters();
        self.say_last(word);
    }

    /// Says a reader's grant again: whoever waits for long may have missed something.
    pub(super) fn ask_writer(&self) {
        let word = match &mut *self.state() {
            State::Reads(half, far) => Some((far.clone(), half.grant())),
            State::Here(_) | State::Writes(..) => None,
        };
        if let Some(((link, stream), word)) = word {
            let _ = link.say(stream, word);
        }
    }

    fn say_last(&self, word: Option<(Far, Word)>) {
        if let Some(((link, stream), word)) = word {
            let _ = link.say(stream, word);
        }
        self.leave();
    }

    /// No half of this side hears any more.
    pub(super) fn leave(&self) {
        let far = self.state().far().cloned();
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
        let answer = match &mut *self.state() {
            State::Here(_) => None,
            State::Reads(half, _) => half.hear(word),
            State::Writes(half, _) => half.hear(&word),
        };
        self.wake();
        answer
    }

    fn break_off(&self) {
        match &mut *self.state() {
            State::Here(_) => {}
            State::Reads(half, _) => half.break_off(),
            State::Writes(half, _) => half.break_off(),
        }
        self.wake();
    }
}

/// How long one half waits before it asks the other one. Only lost words make it ask in vain.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
