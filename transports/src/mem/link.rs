//! A link in memory: two bounded queues of frames.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::config::MemConfig;
use crate::address::Address;
use crate::error::LinkError;
use crate::frame::{Inbox, Outbox};
use crate::transport::{FrameReceiver, FrameSender, Link};

/// The two ends of a new link.
pub(super) fn pair(config: &MemConfig, dialler: Address, listener: Address) -> (Link, Link) {
    let one = Arc::new(Pipe::new(config.link_bytes_max));
    let two = Arc::new(Pipe::new(config.link_bytes_max));
    let end = |out: &Arc<Pipe>, into: &Arc<Pipe>, local: &Address, peer: &Address| Link {
        sender: Box::new(MemSender { pipe: out.clone(), peer: peer.clone() }),
        receiver: Box::new(MemReceiver { pipe: into.clone(), peer: peer.clone() }),
        local: local.clone(),
        peer: peer.clone(),
        credentials: Default::default(),
    };
    (end(&one, &two, &dialler, &listener), end(&two, &one, &listener, &dialler))
}

/// One direction.
struct Pipe {
    state: Mutex<State>,
    bytes_max: usize,
}

struct State {
    frames: VecDeque<Bytes>,
    bytes: usize,
    writing: Writing,
    is_read: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    Open,
    /// Everything was handed over.
    Closed,
    /// The sender was dropped without closing.
    Aborted,
}

impl Pipe {
    fn new(bytes_max: usize) -> Self {
        let state = State {
            frames: VecDeque::new(),
            bytes: 0,
            writing: Writing::Open,
            is_read: true,
            reader: None,
            writer: None,
        };
        Self { state: Mutex::new(state), bytes_max: bytes_max.max(1) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, how: Writing) {
        let reader = {
            let mut state = self.state();
            if state.writing == Writing::Open {
                state.writing = how;
            }
            state.reader.take()
        };
        wake(reader);
    }
}

struct MemSender {
    pipe: Arc<Pipe>,
    peer: Address,
}

impl FrameSender for MemSender {
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>> {
        let mut state = self.pipe.state();
        if state.writing != Writing::Open {
            return Poll::Ready(Err(LinkError::Closed));
        }
        if !state.is_read {
            return Poll::Ready(Err(LinkError::broken(&self.peer, ErrorKind::BrokenPipe)));
        }
        let mut is_moved = false;
        while state.bytes < self.pipe.bytes_max
            && let Some(frame) = outbox.pop_frame()
        {
            // An empty frame counts as well, or a flood of them would be free.
            state.bytes += cost(&frame);
            state.frames.push_back(frame);
            is_moved = true;
        }
        let reader = if is_moved { state.reader.take() } else { None };
        let result = if outbox.is_empty() {
            Poll::Ready(Ok(()))
        } else {
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        };
        drop(state);
        wake(reader);
        result
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.pipe.end(Writing::Closed);
        Poll::Ready(Ok(()))
    }
}

impl Drop for MemSender {
    fn drop(&mut self) {
        self.pipe.end(Writing::Aborted);
    }
}

struct MemReceiver {
    pipe: Arc<Pipe>,
    peer: Address,
}

impl FrameReceiver for MemReceiver {
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>> {
        let mut state = self.pipe.state();
        if state.frames.is_empty() {
            return match state.writing {
                Writing::Open => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                Writing::Closed => Poll::Ready(Ok(false)),
                Writing::Aborted => {
                    Poll::Ready(Err(LinkError::broken(&self.peer, ErrorKind::ConnectionReset)))
                }
            };
        }
        // All of it: the pipe's own limit bounds the batch.
        let mut result = Ok(true);
        while let Some(frame) = state.frames.pop_front() {
            state.bytes -= cost(&frame);
            if let Err(source) = inbox.push_frame(frame) {
                result = Err(LinkError::Frame { peer: self.peer.clone(), source });
                break;
            }
        }
        let writer = state.writer.take();
        drop(state);
        wake(writer);
        Poll::Ready(result)
    }
}

impl Drop for MemReceiver {
    fn drop(&mut self) {
        let writer = {
            let mut state = self.pipe.state();
            state.is_read = false;
            state.frames.clear();
            state.bytes = 0;
            state.writer.take()
        };
        wake(writer);
    }
}

/// What a frame counts against the limit of a direction.
fn cost(frame: &Bytes) -> usize {
    frame.len() + size_of::<Bytes>()
}

/// Wakes outside the lock: the waker may run the other end at once.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
