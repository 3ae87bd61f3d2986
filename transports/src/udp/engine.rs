//! Moves packets between a socket and its machine.
//!
//! Method      one task per socket receives and minds the time. Whoever writes sends what may leave at once, in its own
//!             task, so that a lone message does not wait for another task to run.
//! Limits      one lock per socket, held while packets are made and handed to the system, never across a wait.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::config::UdpConfig;
use super::machine::{Broken, Endpoint, Nanos, Read, Transmit};
use super::socket::{BatchSocket, Path};
use crate::timer::{Timer, instant_at};

/// A socket, its machine, and who waits for it. Lives until the last link, the listener and the task are gone.
#[derive(Clone)]
pub(super) struct Engine {
    shared: Arc<Mutex<State>>,
}

struct State {
    machine: Endpoint<Path>,
    /// Gone when nobody needs it any more, or when the system took it away.
    socket: Option<BatchSocket>,
    packet_bytes: usize,
    epoch: Instant,
    waiting: BTreeMap<u64, Waiting>,
    acceptor: Option<Waker>,
    driver: Option<Waker>,
    /// When the driver wakes up by itself.
    driver_at: Option<Nanos>,
    /// What the socket did not take.
    unsent: Option<(Transmit<Path>, Vec<u8>)>,
    scratch: Vec<u8>,
    /// To be woken outside of the lock.
    woken: Vec<Waker>,
}

#[derive(Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Engine {
    /// Starts the task of a socket that takes connections.
    pub(super) fn listen(config: &UdpConfig, socket: BatchSocket) -> Self {
        let engine = Self::new(config, socket, true);
        engine.drive();
        engine
    }

    /// Begins the connection of a socket of its own; from now on it is the caller's.
    pub(super) fn dial(config: &UdpConfig, socket: BatchSocket, place: Path) -> (Self, u64) {
        let engine = Self::new(config, socket, false);
        let id = engine.with(|state, now| {
            let id = state.machine.dial(now, place);
            state.waiting.insert(id, Waiting::default());
            state.flush(now);
            id
        });
        // Not before: a task that runs elsewhere gives a socket without connections back at once.
        engine.drive();
        (engine, id)
    }

    fn new(config: &UdpConfig, socket: BatchSocket, accepts: bool) -> Self {
        let limits = config.limits();
        let packet_bytes = limits.packet_bytes;
        let seed = ["one", "two"].map(|half| RandomState::new().hash_one(half));
        let state = State {
            machine: Endpoint::new(limits, seed, accepts),
            socket: Some(socket),
            packet_bytes,
            epoch: Instant::now(),
            waiting: BTreeMap::new(),
            acceptor: None,
            driver: None,
            driver_at: None,
            unsent: None,
            scratch: Vec::new(),
            woken: Vec::new(),
        };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// Starts the task.
    fn drive(&self) {
        tokio::spawn(Driver { engine: self.clone(), timer: Timer::default() });
    }

    pub(super) fn poll_dialled(&self, cx: &Context<'_>, id: u64) -> Poll<io::Result<()>> {
        self.with(|state, _| {
            state.check()?;
            match state.machine.dialled(id) {
                Some(Ok(())) => Poll::Ready(Ok(())),
                Some(Err(broken)) => Poll::Ready(Err(io_error(broken))),
                None => {
                    state.wait(id).writer = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    /// The next connection from outside; from then on it is the caller's.
    pub(super) fn poll_accept(&self, cx: &Context<'_>) -> Poll<io::Result<(u64, Path)>> {
        self.with(|state, _| {
            state.check()?;
            match state.machine.accept() {
                Some((id, place)) => {
                    state.waiting.insert(id, Waiting::default());
                    Poll::Ready(Ok((id, place)))
                }
                None => {
                    state.acceptor = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    /// Takes no more connections.
    pub(super) fn stop_accepting(&self) {
        self.with(|state, now| {
            state.machine.stop_accepting(now);
            state.flush(now);
        });
    }

    pub(super) fn poll_write(
        &self,
        cx: &Context<'_>,
        id: u64,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        self.with(|state, now| {
            state.check()?;
            match state.machine.write(now, id, slices).map_err(io_error)? {
                0 => {
                    state.wait(id).writer = Some(cx.waker().clone());
                    state.flush(now);
                    Poll::Pending
                }
                taken => Poll::Ready(Ok(taken)),
            }
        })
    }

    /// Sends what was written, as far as it may leave.
    pub(super) fn flush(&self) {
        self.with(State::flush);
    }

    pub(super) fn poll_finish(&self, cx: &Context<'_>, id: u64) -> Poll<io::Result<()>> {
        self.with(|state, now| {
            state.check()?;
            if state.machine.finish(now, id).map_err(io_error)? {
                return Poll::Ready(Ok(()));
            }
            state.wait(id).writer = Some(cx.waker().clone());
            state.flush(now);
            Poll::Pending
        })
    }

    pub(super) fn poll_read(
        &self,
        cx: &Context<'_>,
        id: u64,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|state, now| {
            let read = state.machine.read(now, id, buffer.remaining(), |bytes| buffer.put_slice(bytes));
            match read.map_err(io_error)? {
                Read::Bytes(_) => {
                    // Perhaps the peer waits for credit.
                    state.flush(now);
                    Poll::Ready(Ok(()))
                }
                Read::End => Poll::Ready(Ok(())),
                Read::Nothing => {
                    state.check()?;
                    state.wait(id).reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    pub(super) fn drop_sender(&self, id: u64) {
        self.with(|state, now| {
            state.machine.drop_sender(now, id);
            state.flush(now);
        });
    }

    pub(super) fn drop_receiver(&self, id: u64) {
        self.with(|state, now| {
            state.machine.drop_receiver(now, id);
            state.flush(now);
        });
    }

    /// The owner of a connection has dropped both halves.
    pub(super) fn release(&self, id: u64) {
        self.with(|state, _| state.waiting.remove(&id));
    }

    /// Does something under the lock, and wakes whom it concerns behind it.
    fn with<T>(&self, what: impl FnOnce(&mut State, Nanos) -> T) -> T {
        let mut state = self.lock();
        let now = state.now();
        let result = what(&mut state, now);
        state.tell();
        let is_early = match (state.machine.deadline(), state.driver_at) {
            (Some(at), Some(driver_at)) => at < driver_at,
            (at, _) => at.is_some(),
        };
        if is_early || state.unsent.is_some() || state.socket.is_none() {
            let driver = state.driver.take();
            state.woken.extend(driver);
        }
        let woken = std::mem::take(&mut state.woken);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn now(&self) -> Nanos {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The error of a socket that is gone.
    fn check(&self) -> io::Result<()> {
        if self.socket.is_some() { Ok(()) } else { Err(ErrorKind::ConnectionAborted.into()) }
    }

    fn wait(&mut self, id: u64) -> &mut Waiting {
        self.waiting.entry(id).or_default()
    }

    /// Sends until the machine has nothing to send, or the socket takes no more.
    fn flush(&mut self, now: Nanos) {
        let Some(socket) = &self.socket else { return };
        if let Some((transmit, bytes)) = &self.unsent {
            if !socket.try_send(transmit, bytes) {
                return;
            }
            self.unsent = None;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        // Asked anew for every run: the system may say only when it gets one that it cannot cut it into packets.
        while let Some(transmit) =
            self.machine.transmit(now, socket.segments_max(self.packet_bytes), &mut scratch)
        {
            if !socket.try_send(&transmit, &scratch) {
                self.unsent = Some((transmit, scratch));
                return;
            }
            scratch.clear();
        }
        // An idle socket keeps no buffer.
        if scratch.capacity() <= SCRATCH_KEPT_MAX {
            self.scratch = scratch;
        }
        if self.machine.is_empty() {
            self.socket = None;
        }
    }

    /// Passes on what the machine has to tell.
    fn tell(&mut self) {
        while let Some((id, news)) = self.machine.pop_news() {
            if let Some(waiting) = self.waiting.get_mut(&id) {
                let reader = if news.read { waiting.reader.take() } else { None };
                let writer = if news.write { waiting.writer.take() } else { None };
                self.woken.extend(reader.into_iter().chain(writer));
            }
        }
        if self.machine.has_backlog() {
            self.woken.extend(self.acceptor.take());
        }
    }

    /// The system took the socket away, or the task is gone: nothing will come or go.
    fn fail(&mut self) {
        self.socket = None;
        for waiting in self.waiting.values_mut() {
            self.woken.extend(waiting.reader.take().into_iter().chain(waiting.writer.take()));
        }
        self.woken.extend(self.acceptor.take());
    }
}

/// The task of a socket.
struct Driver {
    engine: Engine,
    timer: Timer,
}

impl Drop for Driver {
    /// It may be that its runtime has ended: whoever waits elsewhere for a link must not wait for ever.
    fn drop(&mut self) {
        self.engine.with(|state, _| state.fail());
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        for _ in 0..ROUNDS_PER_TURN {
            let mut state = this.engine.lock();
            let outcome = turn(&mut state, cx);
            state.driver = Some(cx.waker().clone());
            state.driver_at = state.machine.deadline();
            let wait = state.driver_at.map(|at| instant_at(state.epoch, at));
            let woken = std::mem::take(&mut state.woken);
            drop(state);
            woken.into_iter().for_each(Waker::wake);
            match outcome {
                Turn::Over => return Poll::Ready(()),
                Turn::Again => continue,
                Turn::Idle => {}
            }
            match wait.map(|at| this.timer.poll_until(cx, at)) {
                Some(Poll::Ready(())) => {}
                _ => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

enum Turn {
    Again,
    Idle,
    Over,
}

/// One round of receiving and sending.
fn turn(state: &mut State, cx: &mut Context<'_>) -> Turn {
    let now = state.now();
    let Some(socket) = &state.socket else { return Turn::Over };
    let machine = &mut state.machine;
    let received = socket.poll_receive(cx, |from, datagram| machine.handle(now, from, datagram));
    state.machine.on_time(now);
    state.flush(now);
    if let Poll::Ready(Err(error)) = &received {
        tracing::warn!(error = error as &dyn std::error::Error, "udp socket lost");
        state.fail();
    }
    state.tell();
    let Some(socket) = &state.socket else { return Turn::Over };
    if received.is_ready() || state.unsent.is_some() && socket.poll_writable(cx).is_ready() {
        Turn::Again
    } else {
        Turn::Idle
    }
}

fn io_error(broken: Broken) -> io::Error {
    let kind = match broken {
        Broken::Silence | Broken::NoAnswer => ErrorKind::TimedOut,
        Broken::Refused => ErrorKind::ConnectionRefused,
        Broken::Reset => ErrorKind::ConnectionReset,
        Broken::Stopped => ErrorKind::BrokenPipe,
    };
    kind.into()
}

/// Rounds before the task lets others run.
const ROUNDS_PER_TURN: usize = 16;
/// A larger buffer for packets that leave is given back: a socket of a dialled link is one of many.
const SCRATCH_KEPT_MAX: usize = 2 * 1024;
