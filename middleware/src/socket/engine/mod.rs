//! The engine under every socket: links, credit, what waits to be read, reconnecting.
//!
//! Guarantee   messages of one class on one link arrive in order, at most once. What a broken connection took with it
//!             is counted ([`SocketStats::lost`]) and not repeated: sockets are transient. A reader that does not read
//!             holds up its own links only: every link has credit of its own, and the connection is never stopped.
//! Method      a link begins with a hello to the bound socket's channel, which names the channel and the number to
//!             answer on. Senders take the socket's lock, choose a link and encode into its connection's lane; the
//!             connection's task puts whole frames of many messages into the link's inbox and wakes the reader, who
//!             counts and grants. One task per socket, asleep unless something went wrong, repeats hellos, grants and
//!             questions for credit.
//!             A socket with one link holds small messages back that follow each other without a pause, until the
//!             connection's task asks for them: so they take one lock each and not two.
//! Locks       the socket's lock is held while a connection's own is taken, never the other way.
//! Limits      [`Options`]; an inbox holds at most a window and one message per link and class. As many links as may
//!             stand may be over and not read out.

mod arriving;
mod links;
mod receiving;
mod sending;

pub(in crate::socket) use links::{ANSWER_MAX, WAIT_MAX};

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::AddressError;
use quorate_transports::connection::Source;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::body::Body;
use super::config::{Options, WhenFull};
use super::error::{BindError, ConnectError, ReceiveError, SendError, SendManyError};
use super::flow::{Amount, Take};
use super::link::{Link, Refused, Stage, link_of};
use super::topics::Topics;
use super::wire::{self, Class, Control, DataHead, Frame, Rejection, Role};
use super::{Left, LinkStats, Remote, SocketStats};
use crate::node::{
    Address, Channel, ChannelGuard, ChannelHandler, Identity, Lane, Node, NodeId, Outlet, PeerEvent,
};

/// What all handles of a socket and the node's connections share.
pub(in crate::socket) struct Core {
    pub(in crate::socket) node: Node,
    pub(in crate::socket) options: Options,
    role: Role,
    channel: Channel,
    /// What the socket calls itself in its hellos.
    own_name: Bytes,
    is_bound: bool,
    intake: Option<Arc<dyn Intake>>,
    /// Itself, for connections to ask.
    me: Weak<dyn Source>,
    state: Mutex<State>,
    /// Told when a send that was refused may succeed.
    pub(in crate::socket) room: Notify,
    /// Told of every change of the links and of every answer.
    pub(in crate::socket) changed: Notify,
    /// Wakes the socket's task.
    chores: Notify,
    /// The last message joined so many that the connection's task should write them before the next one.
    is_crowded: AtomicBool,
}

/// Takes messages in the task of the connection, instead of a reader.
pub(in crate::socket) trait Intake: Send + Sync {
    /// One message. Quick work only; it may send.
    fn take(&self, core: &Core, from: Remote, item: Bytes);

    /// A message that begins with `head` goes to `to`; what answers it is taken later. Called under the socket's
    /// lock: it must not use the socket.
    fn on_sent(&self, to: Remote, head: &[u8]) {
        let _ = (to, head);
    }

    /// A link is over. Called under the socket's lock: it must not use the socket.
    fn on_gone(&self, from: Remote) {
        let _ = from;
    }
}

/// What a core is made of.
pub(in crate::socket) struct Make<'a> {
    pub(in crate::socket) node: &'a Node,
    pub(in crate::socket) role: Role,
    pub(in crate::socket) options: Options,
    /// The name to be found under; without it the socket only connects.
    pub(in crate::socket) name: Option<&'a str>,
    pub(in crate::socket) own_name: Bytes,
    pub(in crate::socket) intake: Option<Arc<dyn Intake>>,
}

/// Keeps a socket open; dropping it closes every link without waiting.
pub(in crate::socket) struct Owner {
    pub(in crate::socket) core: Arc<Core>,
    guard: Mutex<Option<ChannelGuard>>,
    task: AbortHandle,
}

pub(in crate::socket) struct State {
    phase: Phase,
    pub(in crate::socket) links: BTreeMap<u32, Link>,
    /// The links that stand, in the order in which they came.
    up: Vec<u32>,
    /// Where in `up` the next message goes.
    cursor: usize,
    dials: Vec<Dial>,
    /// Links with something to read, the one to be read first in front; by class.
    listed: [VecDeque<u32>; 2],
    reader: Option<Waker>,
    /// Links that came and were not accepted yet, of a socket that accepts.
    pub(in crate::socket) accepting: VecDeque<u32>,
    pub(in crate::socket) acceptor: Option<Waker>,
    /// How many may wait in `accepting`; `None` for sockets that take every link.
    pub(in crate::socket) backlog: Option<usize>,
    /// What subscribers want, of a publisher.
    pub(in crate::socket) topics: Topics,
    /// What this subscriber wants, and the serial number of its last word on it.
    pub(in crate::socket) filters: BTreeMap<Bytes, u64>,
    pub(in crate::socket) last_serial: u64,
    /// What publishers have not answered yet, by serial number and link.
    pub(in crate::socket) unanswered: BTreeMap<(u64, u32), Unanswered>,
    stats: SocketStats,
    /// Of links that were lost while the socket closes.
    left: Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Sends are refused, what waits goes out.
    Closing,
    Closed,
}

/// A wish of a subscriber that a publisher has not confirmed.
pub(in crate::socket) struct Unanswered {
    pub(in crate::socket) prefix: Bytes,
    pub(in crate::socket) is_wanted: bool,
    pub(in crate::socket) asked_at: Instant,
}

/// A socket that this one shall be linked with.
struct Dial {
    node: NodeId,
    channel: Channel,
    link: Option<u32>,
    failures: u32,
    /// When to say hello (again); `None` while that makes no sense.
    due: Option<Instant>,
    /// What came of the last hello.
    answer: Option<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    NoSocket,
    Rejected(Rejection),
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::socket) enum Target {
    /// The next link in turn that has room.
    Next,
    One(u32),
}

/// Why a message was not taken, and what to wait for.
#[derive(Debug)]
pub(in crate::socket) struct NotTaken {
    pub(in crate::socket) error: SendError,
    /// Whose lanes were full, each connection once.
    pub(in crate::socket) outlets: Vec<Outlet>,
}

impl From<SendError> for NotTaken {
    fn from(error: SendError) -> Self {
        Self { error, outlets: Vec::new() }
    }
}

impl Owner {
    pub(in crate::socket) fn open(make: Make<'_>) -> Result<Self, BindError> {
        make.options.check()?;
        let channel = match make.name {
            Some(name) => Channel::named("socket", name),
            None => {
                let spread = u64::from(make.node.fresh_number()).wrapping_mul(SPREAD);
                Channel(Channel::named("socket end", "").0.wrapping_add(spread))
            }
        };
        let state = State {
            phase: Phase::Open,
            links: BTreeMap::new(),
            up: Vec::new(),
            cursor: 0,
            dials: Vec::new(),
            listed: Default::default(),
            reader: None,
            accepting: VecDeque::new(),
            acceptor: None,
            backlog: None,
            topics: Topics::default(),
            filters: BTreeMap::new(),
            last_serial: 0,
            unanswered: BTreeMap::new(),
            stats: SocketStats::default(),
            left: Left::default(),
        };
        let core = Arc::new_cyclic(|me: &Weak<Core>| Core {
            me: me.clone(),
            node: make.node.clone(),
            options: make.options,
            role: make.role,
            channel,
            own_name: make.own_name,
            is_bound: make.name.is_some(),
            intake: make.intake,
            state: Mutex::new(state),
            room: Notify::new(),
            changed: Notify::new(),
            chores: Notify::new(),
            is_crowded: AtomicBool::new(false),
        });
        let guard = make.node.open(channel, core.clone());
        let guard = guard.map_err(|source| BindError::NameTaken {
            name: make.name.unwrap_or_default().to_owned(),
            source,
        })?;
        let working = core.clone();
        let mut stopping = make.node.stopping();
        let task = make.node.spawn(async move {
            tokio::select! {
                () = working.work() => {}
                // Nothing comes or goes any more: who waits is told.
                _ = stopping.wait_for(|is_stopping| *is_stopping) => working.end(),
            }
        });
        Ok(Self { core, guard: Mutex::new(Some(guard)), task })
    }

    /// See [`Core::close`]; afterwards the name is free.
    pub(in crate::socket) async fn close(&self, deadline: Duration) -> Left {
        let left = self.core.close(deadline).await;
        self.end();
        left
    }

    fn end(&self) {
        self.task.abort();
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
        self.core.end();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.end();
    }
}

impl Core {
    #[inline]
    pub(in crate::socket) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses sends, sends what waits, tells every link and waits for their word that all has come; at most
    /// `deadline`.
    async fn close(&self, deadline: Duration) -> Left {
        {
            let mut state = self.state();
            if state.phase == Phase::Open {
                state.phase = Phase::Closing;
            }
            state.dials.clear();
            let waiting: Vec<u32> =
                state.links.values().filter(|link| !link.is_up()).map(|link| link.number).collect();
            waiting.into_iter().for_each(|number| self.lose(&mut state, number, None));
        }
        self.room.notify_waiters();
        self.chores.notify_one();
        let closed = async {
            loop {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.state().up.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        // Out of time is told by what is left.
        let _ = tokio::time::timeout(deadline, closed).await;
        let mut state = self.state();
        let mut left = std::mem::take(&mut state.left);
        state.links.values().filter(|link| link.is_up()).for_each(|link| left.add(link.left()));
        left
    }

    /// Ends every link now.
    fn end(&self) {
        let wakers = {
            let mut state = self.state();
            if state.phase == Phase::Closed {
                return;
            }
            state.phase = Phase::Closed;
            state.dials.clear();
            let numbers: Vec<u32> = state.links.keys().copied().collect();
            for number in numbers {
                if let Some(link) =
                    state.links.get(&number).filter(|link| link.is_up() && !link.is_close_sent)
                {
                    send_close(link, self.options.lane);
                }
                self.lose(&mut state, number, None);
            }
            [state.reader.take(), state.acceptor.take()]
        };
        self.changed.notify_waiters();
        self.room.notify_waiters();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    pub(in crate::socket) fn stats(&self) -> SocketStats {
        let state = self.state();
        SocketStats { links: state.up.len(), ..state.stats }
    }

    pub(in crate::socket) fn link_stats(&self) -> Vec<LinkStats> {
        let state = self.state();
        let links = state.links.values().filter(|link| link.is_up());
        links
            .map(|link| LinkStats {
                remote: link.remote(),
                sent: link.out.iter().map(|flow| flow.sent.messages).sum(),
                queued: link.queue.len(),
                dropped: link.dropped,
                lost: link.into.iter().map(|flow| flow.lost).sum(),
            })
            .collect()
    }
}

impl Source for Core {
    fn hand_over(&self, stamp: u64) {
        // A link that is gone has handed over what it had.
        if let Some(link) = self.state().links.get_mut(&link_of(stamp)) {
            link.hand_over();
        }
    }
}

impl State {
    /// True when there is one link. With several, whose connections may be driven by several threads, these would meet at
    /// the socket's lock.
    fn is_alone(&self) -> bool {
        self.up.len() == 1
    }

    pub(in crate::socket) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The link whose turn it is, of an open socket; and what `cursor` becomes when it does.
    #[inline]
    fn turn(&mut self, target: Target) -> Option<(&mut Self, u32, usize)> {
        if self.phase != Phase::Open {
            return None;
        }
        let (number, cursor) = match target {
            Target::One(number) => (number, self.cursor),
            Target::Next => {
                let next = if self.cursor + 1 < self.up.len() { self.cursor + 1 } else { 0 };
                (*self.up.get(next)?, next)
            }
        };
        Some((self, number, cursor))
    }

    /// Links that are over, of which something is to be read still.
    fn gone(&self) -> usize {
        self.links.values().filter(|link| link.stage == Stage::Gone).count()
    }
}

/// A frame that a reader has taken; its items are whole.
pub(in crate::socket) struct Taken {
    pub(in crate::socket) from: Remote,
    pub(in crate::socket) class: Class,
    pub(in crate::socket) items: Bytes,
}

/// Sends a control frame; false when there was no room or no connection.
fn send_control(link: &Link, lane: Lane, control: &Control) -> bool {
    let Some(outlet) = &link.outlet else { return false };
    outlet.send(lane, link.channel, &[&control.encode()], Bytes::new()).is_ok()
}

/// Tells the other side that nothing follows; false when there was no room or no connection. It says how much there is
/// to wait for, so it may overtake that.
fn send_close(link: &Link, lane: Lane) -> bool {
    let sent = [&link.out[0], &link.out[1]].map(|flow| flow.sent.messages);
    let close = Control::Close { to: link.theirs, sent };
    send_control(link, lane, &close) || send_control(link, Lane::Urgent, &close)
}

/// Tells a publisher; it is repeated until there is an answer.
pub(in crate::socket) fn send_wish(link: &Link, lane: Lane, serial: u64, wish: &Unanswered) {
    let Unanswered { prefix, is_wanted, .. } = wish;
    let prefix = prefix.clone();
    send_control(link, lane, &Control::Filter { to: link.theirs, serial, is_wanted: *is_wanted, prefix });
}

/// Spreads consecutive numbers over all channels.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
