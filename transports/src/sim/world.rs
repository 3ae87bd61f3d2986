//! The state of the simulated network: hosts, ways, connections, mail; one lock around all of it.
//!
//! Guarantee   everything that happens is decided here in the order in which the lock is taken, from one source of
//!             chance, over ordered maps; wakers are woken after the lock is released.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::config::SimConfig;
use super::trace::{SimEvent, SimEventKind, Trace, digest};
use crate::address::Address;
use crate::fault::model::{Clock, Corruption, Network, Rng, StreamFate};
use crate::frame::{FrameError, Inbox, Outbox};

/// The whole state.
pub(super) struct World {
    pub(super) core: Core,
    connections: BTreeMap<u64, Connection>,
    connections_made: u64,
    /// Connections that wait to be accepted, by place.
    pub(super) listeners: BTreeMap<Place, Backlog>,
    pub(super) sockets: BTreeMap<Place, Mailbox>,
}

/// Host and port.
pub(super) type Place = (u32, u16);

/// What connections need besides themselves.
pub(super) struct Core {
    pub(super) config: SimConfig,
    pub(super) network: Network<u32>,
    pub(super) rng: Rng,
    pub(super) trace: Trace,
    /// Copies of datagrams so far, which orders those that arrive at the same time.
    pub(super) datagrams: u64,
    /// To be woken once the lock is released.
    pub(super) woken: Vec<Waker>,
    hosts: Vec<Host>,
    names: BTreeMap<Arc<str>, u32>,
    epoch: Option<Instant>,
}

struct Host {
    name: Arc<str>,
    /// Grows with every crash; sockets of an earlier life are dead.
    life: u64,
    is_up: bool,
    is_paused: bool,
    /// Polls that came during a pause.
    paused: Vec<Waker>,
    port_next: u16,
    clock: Clock,
}

/// A listener's queue.
pub(super) struct Backlog {
    pub(super) life: u64,
    pub(super) waiting: VecDeque<u64>,
    pub(super) waker: Option<Waker>,
}

/// A datagram socket's queue, by arrival and order of sending.
pub(super) struct Mailbox {
    pub(super) life: u64,
    pub(super) queue: BTreeMap<(u64, u64), (Address, Bytes)>,
    pub(super) bytes: usize,
    pub(super) waker: Option<Waker>,
}

/// Two ends and the two directions between them; `pipes[i]` leads away from `ends[i]`.
struct Connection {
    id: u64,
    ends: [End; 2],
    pipes: [Pipe; 2],
}

struct End {
    host: u32,
    life: u64,
    address: Address,
    /// Why it is of no further use.
    broken: Option<ErrorKind>,
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

impl World {
    pub(super) fn new(seed: u64, config: SimConfig) -> Self {
        let core = Core {
            network: Network::new(config.link),
            rng: Rng::new(seed),
            trace: Trace::new(config.trace_events_max),
            datagrams: 0,
            woken: Vec::new(),
            hosts: Vec::new(),
            names: BTreeMap::new(),
            epoch: None,
            config,
        };
        Self {
            core,
            connections: BTreeMap::new(),
            connections_made: 0,
            listeners: BTreeMap::new(),
            sockets: BTreeMap::new(),
        }
    }

    /// Changes the network and lets what waited for that go on.
    pub(super) fn change(&mut self, kind: SimEventKind, change: impl FnOnce(&mut Network<u32>)) {
        change(&mut self.core.network);
        self.core.record(kind, None, None, 0, 0, 0);
        self.resume_streams();
    }

    pub(super) fn crash(&mut self, host: u32, is_kill: bool) {
        let now = self.core.now();
        let kind = if is_kill { SimEventKind::Kill } else { SimEventKind::Crash };
        self.core.record(kind, Some(host), None, 0, 0, 0);
        let dying = self.core.host_mut(host);
        dying.life += 1;
        dying.is_up = is_kill;
        dying.is_paused = false;
        let paused = std::mem::take(&mut dying.paused);
        self.core.woken.extend(paused);
        self.listeners.retain(|place, _| place.0 != host);
        for (place, mailbox) in &mut self.sockets {
            if place.0 == host {
                self.core.woken.extend(mailbox.waker.take());
            }
        }
        self.sockets.retain(|place, _| place.0 != host);
        for connection in self.connections.values_mut() {
            for side in [0, 1] {
                if connection.ends[side].host == host && connection.ends[side].broken.is_none() {
                    connection.die(&mut self.core, now, side, is_kill);
                }
            }
        }
    }

    pub(super) fn restart(&mut self, host: u32) {
        if !self.core.host(host).is_up {
            self.core.host_mut(host).is_up = true;
            self.core.record(SimEventKind::Restart, Some(host), None, 0, 0, 0);
            self.resume_streams();
        }
    }

    pub(super) fn reset_connections(&mut self, a: u32, b: u32) {
        for connection in self.connections.values_mut() {
            let [one, two] = [connection.ends[0].host, connection.ends[1].host];
            if (one, two) == (a, b) || (one, two) == (b, a) {
                self.core.record(SimEventKind::Reset, Some(a), Some(b), connection.id, 0, 0);
                for side in [0, 1] {
                    connection.break_end(&mut self.core, side, ErrorKind::ConnectionReset);
                }
            }
        }
    }

    /// Makes a connection from `(from, life)` to a listener's host and returns its id.
    pub(super) fn connect(&mut self, from: (u32, u64, Address), to: (u32, u64, Address)) -> u64 {
        self.connections_made += 1;
        let id = self.connections_made;
        self.core.record(SimEventKind::Connect, Some(from.0), Some(to.0), id, 0, 0);
        let end = |(host, life, address)| End {
            host,
            life,
            address,
            broken: None,
            has_sender: true,
            has_receiver: true,
        };
        let connection = Connection { id, ends: [end(from), end(to)], pipes: Default::default() };
        self.connections.insert(id, connection);
        id
    }

    /// The addresses of an end: its own and its peer's.
    pub(super) fn addresses(&self, id: u64, side: usize) -> Option<(Address, Address)> {
        let ends = &self.connections.get(&id)?.ends;
        Some((ends[side].address.clone(), ends[1 - side].address.clone()))
    }

    pub(super) fn poll_send(
        &mut self,
        (id, side): (u64, usize),
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
    ) -> Progress<Result<(), SendFailure>> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Ready(Err(SendFailure::Broken(ErrorKind::NotConnected)));
        };
        if self.core.park(connection.ends[side].host, connection.ends[side].life, cx) {
            return Progress::Wait(None);
        }
        let now = self.core.now();
        if connection.pipes[side].is_closed {
            return Progress::Ready(Err(SendFailure::Closed));
        }
        if let Some(kind) = connection.sender_broken(&mut self.core, now, side) {
            return Progress::Ready(Err(SendFailure::Broken(kind)));
        }
        let window = self.core.config.window_bytes.max(1);
        while connection.pipes[side].window_used < window {
            let Some(frame) = outbox.pop_frame() else { break };
            let (from, to) = (connection.ends[side].host, connection.ends[1 - side].host);
            self.core.record(SimEventKind::Send, Some(from), Some(to), id, frame.len(), digest(&frame));
            connection.pipes[side].window_used += cost(&frame);
            connection.transmit(&mut self.core, now, side, Item::Frame(frame, None));
            if let Some(kind) = connection.ends[side].broken {
                return Progress::Ready(Err(SendFailure::Broken(kind)));
            }
        }
        if outbox.is_empty() {
            return Progress::Ready(Ok(()));
        }
        let pipe = &mut connection.pipes[side];
        pipe.sender = Some(cx.waker().clone());
        let unread_at = pipe.unread_at;
        Progress::Wait(earliest(connection.deadline(&self.core, side), unread_at))
    }

    pub(super) fn poll_close(
        &mut self,
        (id, side): (u64, usize),
        cx: &mut Context<'_>,
    ) -> Progress<Result<(), SendFailure>> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Ready(Err(SendFailure::Broken(ErrorKind::NotConnected)));
        };
        if self.core.park(connection.ends[side].host, connection.ends[side].life, cx) {
            return Progress::Wait(None);
        }
        let now = self.core.now();
        if !connection.pipes[side].is_closed {
            if let Some(kind) = connection.sender_broken(&mut self.core, now, side) {
                return Progress::Ready(Err(SendFailure::Broken(kind)));
            }
            connection.pipes[side].is_closed = true;
            connection.transmit(&mut self.core, now, side, Item::End);
        }
        Progress::Ready(Ok(()))
    }

    pub(super) fn poll_receive(
        &mut self,
        (id, side): (u64, usize),
        cx: &mut Context<'_>,
        inbox: &mut Inbox,
    ) -> Progress<Result<bool, ReceiveFailure>> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Ready(Err(ReceiveFailure::Broken(ErrorKind::NotConnected)));
        };
        if self.core.park(connection.ends[side].host, connection.ends[side].life, cx) {
            return Progress::Wait(None);
        }
        let now = self.core.now();
        connection.receive(&mut self.core, now, side, cx, inbox)
    }

    /// A half was dropped.
    pub(super) fn release(&mut self, id: u64, side: usize, half: Half) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let now = self.core.now();
        match half {
            Half::Sender => {
                connection.ends[side].has_sender = false;
                let pipe = &mut connection.pipes[side];
                if !pipe.is_closed && connection.ends[side].broken.is_none() {
                    pipe.is_closed = true;
                    connection.transmit(&mut self.core, now, side, Item::Abort);
                }
            }
            Half::Receiver => {
                connection.ends[side].has_receiver = false;
                connection.unread(&mut self.core, now, side);
            }
        }
        if connection.ends.iter().all(|end| !end.has_sender && !end.has_receiver) {
            self.connections.remove(&id);
        }
    }

    pub(super) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Lets every stream go on that can, after cuts healed or a host came back.
    fn resume_streams(&mut self) {
        let now = self.core.now();
        for connection in self.connections.values_mut() {
            for side in [0, 1] {
                connection.resume(&mut self.core, now, side);
            }
        }
    }
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

    fn receive(
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
    fn die(&mut self, core: &mut Core, now: u64, side: usize, is_kill: bool) {
        self.break_end(core, side, ErrorKind::ConnectionAborted);
        if is_kill {
            self.tell_reset(core, now, side);
        } else if self.pipes[1 - side].window_used > 0 {
            self.unacknowledged(core, now, 1 - side);
        }
    }

    fn break_end(&mut self, core: &mut Core, side: usize, kind: ErrorKind) {
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
    fn resume(&mut self, core: &mut Core, now: u64, side: usize) {
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

impl Core {
    /// The host's number; its first mention makes it.
    pub(super) fn host_id(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.names.get(name) {
            return id;
        }
        let id = self.hosts.len() as u32;
        let name: Arc<str> = name.into();
        self.names.insert(name.clone(), id);
        self.hosts.push(Host {
            name,
            life: 0,
            is_up: true,
            is_paused: false,
            paused: Vec::new(),
            port_next: PORT_FIRST,
            clock: Clock::PERFECT,
        });
        id
    }

    /// Nanoseconds since the first use.
    pub(super) fn now(&mut self) -> u64 {
        let now = Instant::now();
        nanos(now.saturating_duration_since(*self.epoch.get_or_insert(now)))
    }

    pub(super) fn epoch(&mut self) -> Instant {
        *self.epoch.get_or_insert_with(Instant::now)
    }

    /// True while this life of the host lasts.
    pub(super) fn is_alive(&self, host: u32, life: u64) -> bool {
        let host = self.host(host);
        host.is_up && host.life == life
    }

    pub(super) fn is_up(&self, host: u32) -> bool {
        self.host(host).is_up
    }

    pub(super) fn life(&self, host: u32) -> u64 {
        self.host(host).life
    }

    pub(super) fn host_name(&self, host: u32) -> &Arc<str> {
        &self.host(host).name
    }

    /// True when the host is paused; the waker is kept until it resumes.
    pub(super) fn park(&mut self, host: u32, life: u64, cx: &Context<'_>) -> bool {
        let host = self.host_mut(host);
        let is_parked = host.is_paused && host.life == life;
        if is_parked && !host.paused.iter().any(|waker| waker.will_wake(cx.waker())) {
            host.paused.push(cx.waker().clone());
        }
        is_parked
    }

    /// A port that nobody was given lately.
    pub(super) fn fresh_port(&mut self, host: u32) -> u16 {
        let host = self.host_mut(host);
        let port = host.port_next;
        host.port_next = port.checked_add(1).unwrap_or(PORT_FIRST);
        port
    }

    /// When a small notice sent at `now` arrives; `None` when the way is cut or nobody is there.
    pub(super) fn notice(&mut self, now: u64, from: u32, to: u32) -> Option<u64> {
        if !self.host(to).is_up {
            return None;
        }
        match self.network.stream_fate(now, from, to, 0, &mut self.rng) {
            StreamFate::Arrives(delivery) => Some(now.saturating_add(delivery.delay_nanos)),
            StreamFate::Stalls => None,
            // A reset of the notice is a reset all the same.
            StreamFate::Resets => Some(now),
        }
    }

    pub(super) fn record(
        &mut self,
        kind: SimEventKind,
        from: Option<u32>,
        to: Option<u32>,
        connection: u64,
        bytes: usize,
        detail: u64,
    ) {
        let at_nanos = self.now();
        let name =
            |host: Option<u32>| host.map_or_else(|| Arc::from(""), |host| self.host(host).name.clone());
        let (from, to) = (name(from), name(to));
        self.trace.record(SimEvent { at_nanos, kind, from, to, connection, bytes: bytes as u64, detail });
    }

    fn host(&self, host: u32) -> &Host {
        &self.hosts[host as usize]
    }

    fn host_mut(&mut self, host: u32) -> &mut Host {
        &mut self.hosts[host as usize]
    }
}

impl World {
    pub(super) fn set_paused(&mut self, host: u32, is_paused: bool) {
        let kind = if is_paused { SimEventKind::Pause } else { SimEventKind::Resume };
        self.core.record(kind, Some(host), None, 0, 0, 0);
        let host = self.core.host_mut(host);
        host.is_paused = is_paused;
        if !is_paused {
            let paused = std::mem::take(&mut host.paused);
            self.core.woken.extend(paused);
        }
    }

    pub(super) fn set_clock(&mut self, host: u32, clock: Clock) {
        self.core.host_mut(host).clock = clock;
    }

    pub(super) fn clock(&mut self, host: u32) -> Duration {
        let now = self.core.now();
        Duration::from_nanos(self.core.host(host).clock.local_time(now))
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

/// Nanoseconds of a duration; 584 years and more are the end of the clock.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Bytes taken from a link in one poll, as much as a stream transport reads at once.
const RECEIVE_BYTES_MAX: usize = 128 * 1024;
/// The first port given when a caller leaves the choice.
const PORT_FIRST: u16 = 49_152;
