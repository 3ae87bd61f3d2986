//! One connection at work: the task that writes, reads and watches.
//!
//! Guarantee   a message that [`Connection::send`] took leaves, in its lane's order, unless the connection ends
//!             first; [`Ended::left`] counts those of which a part may not have left.
//! Method      alternates between writing whole segments and reading whole batches until neither moves, then parks.
//!             A link with several streams carries each lane on one of its own, so that a lane which the medium holds up
//!             holds up no other.
//! Limits      lanes as configured, one segment being written on each stream, one read and one incomplete message per lane.

use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::ConnectionConfig;
use super::assembly::{Assembly, Budget, GOODBYE, PING, PONG, Received};
use super::end::{End, Ended};
use super::handle::Connection;
use super::handshake::Established;
use super::lanes::Lane;
use super::look::Looks;
use super::outgoing::{Outgoing, in_hand};
use super::shared::{ConnectionStats, Phase, Shared, State};
use crate::error::LinkError;
use crate::frame::{FrameError, Inbox};
use crate::transport::Link;

/// Takes the messages of a connection, in the driver's task.
pub trait Deliver: Send + Unpin {
    /// Takes messages out of `messages`, in order: `Ready` when it is done with all of them (what it left behind is
    /// dropped), `Pending` when it cannot take the rest now; the same vector is then offered again. `Pending` stops
    /// the reading of the whole connection, so that the peer's senders are held back; wake `cx` when there is room.
    fn poll_deliver(&mut self, cx: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()>;
}

impl Established {
    /// Makes a connection of the link: the handle, and the future that must be polled for anything to move.
    pub fn start<D: Deliver>(self, config: &ConnectionConfig, deliver: D) -> (Connection, Driver<D>) {
        self.start_within(Budget::new(usize::MAX), config, deliver)
    }

    /// As [`start`](Self::start), with a budget for incomplete messages that other connections share.
    pub fn start_within<D: Deliver>(
        self,
        budget: Budget,
        config: &ConnectionConfig,
        deliver: D,
    ) -> (Connection, Driver<D>) {
        let message_bytes_max = self.agreement.message_bytes_max;
        let shared = Arc::new(Shared::new(self.peer.identity, message_bytes_max, config.lane_bytes_max));
        let heartbeat = config.heartbeat.max(Duration::from_millis(1));
        // Two, or the part of a heartbeat before the first tick could count as silence.
        let silence_ticks =
            config.silence_max.as_nanos().div_ceil(heartbeat.as_nanos()).clamp(2, u32::MAX.into());
        let streams = self.link.sender.streams().clamp(1, Lane::COUNT);
        let outgoing = (0..streams).map(|stream| Outgoing::new(stream, streams)).collect();
        let driver = Driver {
            shared: shared.clone(),
            link: self.link,
            deliver,
            inbox: self.inbox,
            assembly: Assembly::new(message_bytes_max, budget),
            messages: Vec::new(),
            breach: None,
            outgoing,
            has_more: false,
            reading: Half::Open,
            writing: Half::Open,
            tick: Box::pin(tokio::time::sleep(heartbeat)),
            heartbeat,
            silence_ticks: silence_ticks as u32,
            silent_ticks: 0,
            is_alive: true,
            ping: Ping::default(),
            pong: None,
            stats: ConnectionStats::default(),
            looks: Looks::new(config.looks_max),
            is_over: false,
        };
        (Connection { shared }, driver)
    }
}

/// The future that moves everything. Dropping it ends the connection as if it had broken.
pub struct Driver<D> {
    shared: Arc<Shared>,
    link: Link,
    deliver: D,
    inbox: Inbox,
    assembly: Assembly,
    /// Received and not yet delivered; reading waits while there are any.
    messages: Vec<Bytes>,
    /// Why nothing behind `messages` can be believed.
    breach: Option<End>,
    /// What is being written, for each stream of the link.
    outgoing: Box<[Outgoing]>,
    /// More was queued for one of these streams when that was taken out.
    has_more: bool,
    reading: Half,
    writing: Half,
    tick: Pin<Box<Sleep>>,
    heartbeat: Duration,
    silence_ticks: u32,
    silent_ticks: u32,
    /// Something moved since the last tick. A flag instead of a time keeps the clock out of the hot path.
    is_alive: bool,
    ping: Ping,
    /// The peer's last ping that was not answered yet.
    pong: Option<u64>,
    stats: ConnectionStats,
    looks: Looks,
    is_over: bool,
}

/// What one direction did when it was polled.
#[derive(Clone, Copy)]
struct Step {
    has_moved: bool,
    /// It has nothing more to do before it is woken, or before something is queued.
    waits: bool,
}

/// One direction as seen from here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    /// The goodbye passed; the end of the stream is to follow.
    Goodbye,
    Over,
}

#[derive(Default)]
struct Ping {
    number: u64,
    sent_at: Option<Instant>,
    is_due: bool,
}

impl<D: Deliver> Future for Driver<D> {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = self.get_mut();
        match this.turn(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(this.finish(end)),
        }
    }
}

impl<D: Deliver> Driver<D> {
    /// Moves what can be moved; returns when it has to wait and will be woken.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let mut writes = self.shared.wake_up()?;
        self.poll_tick(cx)?;
        writes |= self.ping.is_due || self.writing != Half::Open;
        writes |= !self.outgoing.iter().all(Outgoing::is_idle);
        let (mut has_moved, mut reads) = (false, true);
        for _ in 0..ROUNDS_PER_TURN {
            const NOTHING: Step = Step { has_moved: false, waits: true };
            let wrote = if writes { self.poll_write(cx)? } else { NOTHING };
            let read = if reads { self.poll_read(cx)? } else { NOTHING };
            if self.reading == Half::Over && self.writing == Half::Over {
                return Err(End::Closed);
            }
            has_moved |= wrote.has_moved || read.has_moved;
            // What was read may be answered, which parking looks at; or it was what our end of the stream waits for.
            let may_park = wrote.waits && read.waits && (!read.has_moved || self.writing == Half::Open);
            if may_park && self.park(cx)? {
                self.looks.before_sleep(cx, has_moved);
                return Ok(());
            }
            // Only a long write makes it worth asking again whether something came: the link wakes us if so.
            (writes, reads) = (true, !read.waits || !wrote.waits);
        }
        // Others in this thread want to live too, and the runtime wants to look at the system before it comes back here:
        // woken at once, it would do so after dozens of such turns only, and what has come would wait as long.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
        self.publish().is_woken = true;
        Ok(())
    }

    /// Watches the peer's signs of life and gives our own.
    fn poll_tick(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while self.tick.as_mut().poll(cx).is_ready() {
            let next = Instant::now() + self.heartbeat;
            self.tick.as_mut().reset(next);
            // Who does not read because of its own user cannot blame the peer.
            let is_paused = !self.messages.is_empty();
            if self.is_alive || is_paused {
                self.silent_ticks = 0;
            } else {
                self.silent_ticks += 1;
                if self.silent_ticks >= self.silence_ticks {
                    let silence = self.heartbeat * self.silent_ticks;
                    return Err(End::Silent {
                        silence_ms: silence.as_millis().try_into().unwrap_or(u64::MAX),
                    });
                }
            }
            self.is_alive = false;
            self.shared.state().queues.trim();
            self.ping.is_due = self.writing == Half::Open;
        }
        Ok(())
    }

    /// Writes until nothing waits or the link takes no more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Step, End> {
        let mut step = Step { has_moved: false, waits: true };
        for _ in 0..SEGMENTS_PER_ROUND {
            if self.writing == Half::Over {
                return Ok(step);
            }
            if self.outgoing.iter().any(Outgoing::is_idle) {
                self.fill();
            }
            let mut has_moved = false;
            for stream in 0..self.outgoing.len() {
                has_moved |= self.poll_write_on(cx, stream)?;
            }
            step.has_moved |= has_moved;
            if has_moved {
                // The common case: what comes next is found when the driver parks.
                if !self.has_more && self.writing == Half::Open {
                    return Ok(step);
                }
                continue;
            }
            // The end of the streams tells the peer that everything up to its goodbye was delivered here.
            let owes_delivery = self.reading == Half::Open || !self.messages.is_empty();
            if self.writing == Half::Open || owes_delivery || !self.outgoing.iter().all(Outgoing::is_idle) {
                return Ok(step);
            }
            match self.link.sender.poll_close(cx) {
                Poll::Pending => return Ok(step),
                Poll::Ready(closed) => closed.map_err(End::Link)?,
            }
            self.writing = Half::Over;
            return Ok(Step { has_moved: true, ..step });
        }
        Ok(Step { waits: false, ..step })
    }

    /// Writes what is in hand for one stream; true when all of it went out.
    fn poll_write_on(&mut self, cx: &mut Context<'_>, stream: usize) -> Result<bool, End> {
        let out = &mut self.outgoing[stream];
        if out.is_idle() {
            return Ok(false);
        }
        let (before, frames) = (out.current.bytes(), out.current.frames());
        let sent = self.link.sender.poll_send_on(cx, stream, &mut out.current);
        let moved = before - out.current.bytes();
        out.is_unflushed = sent.is_pending();
        self.stats.bytes_sent += moved as u64;
        self.stats.frames_sent += (frames - out.current.frames()) as u64;
        // After a goodbye the peer is silent or about to be: then it lives while it takes what is left.
        self.is_alive |= moved > 0 && (self.writing, self.reading) != (Half::Open, Half::Open);
        match sent {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(error)) => Err(End::Link(error)),
            Poll::Ready(Ok(())) => {
                self.stats.batches_sent += 1;
                self.stats.messages_sent += std::mem::take(&mut out.messages) as u64;
                Ok(true)
            }
        }
    }

    /// Fills what is empty and can be written.
    fn fill(&mut self) {
        let (relieved, is_last) = {
            let mut state = self.shared.collected();
            self.has_more = false;
            for out in self.outgoing.iter_mut().filter(|out| out.is_idle()) {
                out.messages = state.queues.pop_of(out.lanes.clone(), &mut out.current).unwrap_or(0);
                self.has_more |= !state.queues.is_empty_of(out.lanes.clone());
            }
            self.has_more |= !state.sources.is_empty();
            state.in_hand = in_hand(&self.outgoing);
            // Nothing can be queued behind the goodbye: sends look at the phase under this lock.
            let is_closing = state.phase == Phase::Closing && self.writing == Half::Open;
            let is_empty = state.queues.is_empty() && state.sources.is_empty();
            let is_last = is_closing && is_empty && self.outgoing.iter().all(Outgoing::is_idle);
            (state.queues.take_relieved(), is_last)
        };
        for (room, relieved) in self.shared.room.iter().zip(relieved) {
            if relieved {
                room.notify_waiters();
            }
        }
        if is_last {
            self.writing = Half::Goodbye;
            let streams = self.outgoing.len() as u8;
            self.outgoing.iter_mut().for_each(|out| out.push_control(GOODBYE, &[streams]));
        } else if self.writing == Half::Open
            && let Some(first) = self.outgoing.first_mut().filter(|first| !first.is_unflushed)
        {
            if let Some(number) = self.pong.take() {
                first.push_control(PONG, &number.to_le_bytes());
            }
            if std::mem::take(&mut self.ping.is_due) {
                self.ping.number += 1;
                self.ping.sent_at = Some(Instant::now());
                first.push_control(PING, &self.ping.number.to_le_bytes());
            }
        }
    }

    /// Reads and delivers until nothing comes or the user takes no more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Step, End> {
        let mut step = Step { has_moved: false, waits: true };
        for _ in 0..READS_PER_ROUND {
            self.decode();
            if !self.messages.is_empty() {
                let delivered = self.deliver.poll_deliver(cx, &mut self.messages);
                if delivered.is_ready() {
                    self.messages.clear();
                }
                if delivered.is_pending() {
                    return Ok(step);
                }
                step.has_moved = true;
            }
            if let Some(breach) = self.breach.take() {
                return Err(breach);
            }
            if self.reading == Half::Over {
                return Ok(step);
            }
            match self.link.receiver.poll_receive(cx, &mut self.inbox) {
                Poll::Pending => return Ok(step),
                Poll::Ready(Ok(true)) => {
                    self.stats.batches_received += 1;
                    self.is_alive = true;
                    step.has_moved = true;
                }
                Poll::Ready(Ok(false)) if self.reading == Half::Goodbye => {
                    self.reading = Half::Over;
                    return Ok(Step { has_moved: true, ..step });
                }
                // An end without a goodbye is a break: a process that dies closes its sockets cleanly too.
                Poll::Ready(Ok(false)) => {
                    return Err(End::Link(LinkError::broken(&self.link.peer, ErrorKind::UnexpectedEof)));
                }
                // Frames that came before it, of a medium that carries frames, are in the inbox: take them first.
                Poll::Ready(Err(error)) => {
                    self.decode();
                    self.breach.get_or_insert(End::Link(error));
                }
            }
        }
        Ok(Step { waits: false, ..step })
    }

    /// Takes the frames out of the inbox.
    fn decode(&mut self) {
        if self.breach.is_some() || !self.messages.is_empty() {
            return;
        }
        if let Err(breach) = self.decode_frames() {
            self.breach = Some(breach);
        }
    }

    fn decode_frames(&mut self) -> Result<(), End> {
        let peer = &self.link.peer;
        let frame_error = |source: FrameError| End::Link(LinkError::Frame { peer: peer.clone(), source });
        while let Some(frame) = self.inbox.next_frame().map_err(frame_error)? {
            self.stats.frames_received += 1;
            match self.assembly.take(frame).map_err(End::Protocol)? {
                Received::Message(lane, message) => {
                    let figures = &mut self.stats.lanes[lane as usize];
                    figures.messages_received += 1;
                    figures.bytes_received += message.len() as u64;
                    self.stats.messages_received += 1;
                    self.stats.bytes_received += message.len() as u64;
                    self.messages.push(message);
                }
                Received::Part => {}
                Received::Ping(number) => self.pong = Some(number),
                Received::Pong(number) => {
                    if number == self.ping.number
                        && let Some(sent_at) = self.ping.sent_at.take()
                    {
                        self.stats.round_trip = Some(sent_at.elapsed());
                    }
                }
                Received::Goodbye => {
                    self.reading = Half::Goodbye;
                    // The peer takes what is queued, then wants our goodbye.
                    self.shared.state().begin_closing();
                    self.shared.wake_all_senders();
                }
            }
        }
        Ok(())
    }

    /// Waits for a wake-up unless something came in the meantime; false when there is something to do.
    fn park(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut state = self.publish();
        if state.is_aborted {
            return Err(End::Aborted);
        }
        if !state.sources.is_empty() {
            drop(state);
            self.shared.collect();
            state = self.publish();
            if !state.sources.is_empty() {
                return Ok(false);
            }
        }
        let is_closing = state.phase == Phase::Closing && self.writing == Half::Open;
        let has_pong = self.pong.is_some() && self.writing == Half::Open;
        let mut wants_sends = [false; Lane::COUNT];
        let mut are_all_idle = true;
        for out in &self.outgoing {
            if !out.is_idle() {
                // While the link takes no more, a send needs no wake-up: the link will give one.
                are_all_idle = false;
                continue;
            }
            wants_sends[out.lanes.clone()].fill(true);
            let is_due = has_pong && out.lanes.start == 0;
            if is_due || !state.queues.is_empty_of(out.lanes.clone()) {
                return Ok(false);
            }
        }
        if are_all_idle && is_closing {
            return Ok(false);
        }
        state.wants_sends = wants_sends;
        state.waker = Some(cx.waker().clone());
        Ok(true)
    }

    fn publish(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.state();
        state.stats = self.stats;
        state.in_hand = in_hand(&self.outgoing);
        state
    }

    fn finish(&mut self, end: End) -> Ended {
        drop(self.publish());
        self.is_over = true;
        let left = self.shared.end();
        Ended { end, left, stats: self.shared.state().stats() }
    }
}

impl<D> Drop for Driver<D> {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.end();
        }
    }
}

/// Rounds of writing and reading before the driver lets others run: the user of what came, above all, who has to make
/// room for more before the peer waits for it, and finds it in the processor's cache; and whoever has something urgent to
/// say while a transfer goes on.
const ROUNDS_PER_TURN: usize = 2;
/// Segments written before the driver looks at what came in: 256 KiB.
const SEGMENTS_PER_ROUND: usize = 4;
/// Reads before the driver looks at what is to be written, so that answers leave while requests come.
const READS_PER_ROUND: usize = 2;
