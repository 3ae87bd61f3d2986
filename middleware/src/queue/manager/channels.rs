//! Between the machine's task and the queues: what it asks for, and the tasks that do it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use quorate_journal::AppendError;
use quorate_protocols::transfer::{Command, Event, Item, Place, Transfer};
use quorate_transports::NodeId;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::super::config::WhenFull;
use super::super::error::{DeclareError, PutError, WorkError};
use super::super::message::Message;
use super::super::plan::Wish;
use super::super::room::{Room, wall_now};
use super::super::work::OWN_STATE;
use super::envelope::Envelope;
use super::{HOPS_MAX, Inner, OUTGOING, PLACES, QueueManager};
use crate::driver::Sink;

/// What the machine has asked for. Bounded by the machine: one reading and one number per peer that we send to, and so many
/// batches of a peer that sends to us as it takes at a time.
#[derive(Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// Rung when something is to be stored.
    arrivals: Notify,
    /// Messages that no queue here takes.
    pub(super) dropped: AtomicU64,
    /// Peers that had more from this directory than it knows of.
    pub(super) forks: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) outgoing: BTreeMap<u64, Outgoing>,
    storing: BTreeMap<u64, Storing>,
}

#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) fetch: Option<(u64, usize)>,
    pub(super) settled: Option<u64>,
    /// The number of a message that is too large for the peer.
    pub(super) large: Option<u64>,
    /// The birth that another one must exceed.
    pub(super) fork: Option<u64>,
    pub(super) reading: Arc<Notify>,
    pub(super) settling: Arc<Notify>,
}

#[derive(Default)]
struct Storing {
    batches: VecDeque<(Place, Vec<Item>)>,
    bell: Arc<Notify>,
    is_served: bool,
}

impl Desk {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machine's events, as they come.
pub(super) struct Feed {
    desk: Arc<Desk>,
}

impl Feed {
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        Self { desk }
    }
}

impl Sink<Transfer> for Feed {
    fn met(&mut self, node: NodeId) -> Option<Command> {
        Some(Command::Met { peer: node.0 })
    }

    fn take(&mut self, event: Event) {
        let mut state = self.desk.lock();
        match event {
            Event::Fetch { to, after, bytes_max } => {
                let outgoing = state.outgoing.entry(to).or_default();
                outgoing.fetch = Some((after, bytes_max));
                outgoing.reading.notify_one();
            }
            Event::Settled { to, through } => {
                let outgoing = state.outgoing.entry(to).or_default();
                outgoing.settled = outgoing.settled.max(Some(through));
                outgoing.settling.notify_one();
            }
            Event::Store { place, items } => {
                let storing = state.storing.entry(place.from).or_default();
                storing.batches.push_back((place, items));
                storing.bell.notify_one();
                if !storing.is_served {
                    self.desk.arrivals.notify_one();
                }
            }
            Event::TooLarge { to, number, size, limit } => {
                let why = "a message is too large for the next node: it is undelivered";
                tracing::warn!(peer = to, number, size, limit, "{why}");
                let outgoing = state.outgoing.entry(to).or_default();
                outgoing.large = Some(number);
                outgoing.settling.notify_one();
            }
            Event::Forked { to, above } => {
                let why = "a peer had more from this directory than it knows of: it was restored from a copy, and what waited \
                           then may arrive there again";
                tracing::error!(peer = to, "{why}");
                self.desk.forks.fetch_add(1, Ordering::Relaxed);
                let outgoing = state.outgoing.entry(to).or_default();
                outgoing.fork = Some(above);
                outgoing.settling.notify_one();
            }
            Event::Gap { to, stored, settled } => {
                tracing::warn!(peer = to, stored, settled, "a peer has less than it told: it lost its disk");
            }
            Event::Outdated { from, birth, known } => {
                let why = "a peer's disk is older than one that it had: nothing is taken from it";
                tracing::error!(peer = from, birth, known, "{why}");
            }
        }
    }
}

impl QueueManager {
    /// Starts what stores the messages of others.
    pub(super) async fn serve(&self) {
        let (inner, desk) = (Arc::downgrade(&self.inner), self.inner.desk.clone());
        let mut lines = self.inner.lines.lock().await;
        lines.tasks.spawn(async move {
            let mut peers = JoinSet::new();
            loop {
                let new: Vec<u64> = {
                    let mut state = desk.lock();
                    let new = state.storing.iter_mut().filter(|(_, storing)| !storing.is_served);
                    new.map(|(from, storing)| {
                        storing.is_served = true;
                        *from
                    })
                    .collect()
                };
                for from in new {
                    peers.spawn(store(from, inner.clone(), desk.clone()));
                }
                desk.arrivals.notified().await;
            }
        });
    }
}

/// One message of a peer, and the place that storing it leads to.
struct Arrived {
    place: Place,
    item: Item,
    /// The machine is told when its batch is stored.
    ends_batch: bool,
}

/// What may be done with some messages, the best first.
struct Ways {
    wishes: Vec<Wish>,
    /// Those that have no better place, and why.
    undelivered: Vec<(u64, &'static str)>,
}

pub(super) enum Outcome {
    /// In this one of the ways.
    Stored(usize),
    /// Not so, not even later.
    Refused(WorkError),
    /// Not now.
    Later(WorkError),
    /// Not before the queues are opened again.
    Never(WorkError),
}

/// Stores what comes from one peer, in its order: all that waits with one sync, and what the queues do not take as one in
/// smaller parts, down to a single message. A part that is stored waits no more, so nothing is stored twice.
async fn store(from: u64, inner: Weak<Inner>, desk: Arc<Desk>) {
    let mut waiting: VecDeque<Arrived> = VecDeque::new();
    let mut most = usize::MAX;
    loop {
        let bell = {
            let mut state = desk.lock();
            let storing = state.storing.entry(from).or_default();
            for (place, items) in std::mem::take(&mut storing.batches) {
                let last = items.len().saturating_sub(1);
                waiting.extend(items.into_iter().enumerate().map(|(index, item)| Arrived {
                    place: Place { through: item.number, ..place },
                    item,
                    ends_batch: index == last,
                }));
            }
            storing.bell.clone()
        };
        if waiting.is_empty() {
            bell.notified().await;
            continue;
        }
        let Some(inner) = inner.upgrade() else { return };
        let (handle, room) = (inner.handle.clone(), inner.queues.room.clone());
        let manager = QueueManager { inner };
        let count = most.min(waiting.len());
        let sorted = manager.ways(waiting.range(..count)).await;
        // What waits for room does not keep the manager.
        drop(manager);
        let outcome = match &sorted {
            Ok(ways) => carry_out(&room, &ways.wishes).await,
            Err(error) => Outcome::of(error.clone()),
        };
        match outcome {
            Outcome::Stored(way) => {
                for (number, why) in sorted.iter().flat_map(|ways| &ways.undelivered) {
                    tracing::warn!(peer = from, number, why, "undelivered");
                }
                desk.dropped.fetch_add(u64::from(way == WAY_OUT), Ordering::Relaxed);
                most = most.saturating_mul(2);
                for stored in waiting.drain(..count).filter(|arrived| arrived.ends_batch) {
                    if handle.command(Command::Stored(stored.place)).await.is_err() {
                        return;
                    }
                }
            }
            // One of them is not taken, or not so many at once, or one of their queues is full.
            Outcome::Refused(_) | Outcome::Later(_) if count > 1 => most = count / 2,
            Outcome::Refused(error) | Outcome::Later(error) => {
                tracing::warn!(peer = from, %error, "a message of a peer cannot be stored now");
                tokio::time::sleep(STORE_AGAIN).await;
            }
            Outcome::Never(error) => {
                // Nothing was told to the peer, which keeps its messages; the next life goes on with them.
                tracing::error!(peer = from, %error, "messages of a peer cannot be stored any more");
                return;
            }
        }
    }
}

/// Goes the first of the ways that the queues do not refuse.
async fn carry_out(room: &Arc<Room>, wishes: &[Wish]) -> Outcome {
    let mut outcome = Outcome::Refused(WorkError::LeaseLost);
    for (way, wish) in wishes.iter().enumerate() {
        outcome = match room.carry_out(wish, false).await {
            Ok(_) => Outcome::Stored(way),
            Err(error) => Outcome::of(error),
        };
        match &outcome {
            Outcome::Refused(error) if wishes.len() > 1 => {
                tracing::warn!(way, %error, "a message for a queue is not taken");
            }
            _ => break,
        }
    }
    outcome
}

impl Outcome {
    pub(super) fn of(error: WorkError) -> Self {
        match &error {
            WorkError::Put(PutError::Journal(AppendError::Poisoned(_) | AppendError::Closed)) => {
                Self::Never(error)
            }
            // A name that somebody here has put in memory only must not hold up a peer.
            WorkError::Put(PutError::InMemory { .. }) => Self::Refused(error),
            WorkError::Put(put) if put.is_retryable() => Self::Later(error),
            _ => Self::Refused(error),
        }
    }
}

/// Where a message goes from here.
struct Sorted {
    queue: u32,
    message: Message,
    /// As it was put.
    payload: Bytes,
    /// Why it has no better place.
    undelivered: Option<&'static str>,
}

impl QueueManager {
    /// What may be done with these messages. For several it must be what was asked for; a single one may become undelivered,
    /// and be dropped when it cannot even be that, so that it does not hold up all behind it for ever.
    async fn ways(&self, part: impl Iterator<Item = &Arrived>) -> Result<Ways, WorkError> {
        let mut ways = Ways { wishes: Vec::new(), undelivered: Vec::new() };
        let mut wish = Wish::default();
        let mut last_payload = Bytes::new();
        for Arrived { place, item, .. } in part {
            let Sorted { queue, message, payload, undelivered } = self.sort(item).await?;
            last_payload = payload;
            ways.undelivered.extend(undelivered.map(|why| (item.number, why)));
            wish.puts.push((queue, message));
            wish.cells = vec![cell(*place)];
        }
        // Several must not wait for room that only one of them needs; one waits, whatever the policy for others is.
        let is_single = wish.puts.len() == 1;
        wish.when_full = Some(if is_single { WhenFull::Wait } else { WhenFull::Reject });
        if is_single {
            // There it waits for whoever looks into it.
            let puts = vec![(self.inner.undelivered.number, unwrapped(&last_payload))];
            let second = Wish { puts, ..wish.clone() };
            let last = Wish { cells: wish.cells.clone(), ..Wish::default() };
            ways.wishes = vec![wish, second, last];
        } else {
            ways.wishes = vec![wish];
        }
        Ok(ways)
    }

    async fn sort(&self, item: &Item) -> Result<Sorted, WorkError> {
        let undelivered = |why: &'static str, payload: &Bytes| {
            let (queue, message) = (self.inner.undelivered.number, unwrapped(payload));
            Sorted { queue, message, payload: payload.clone(), undelivered: Some(why) }
        };
        let Ok(mut envelope) = Envelope::decode(item.body.clone()) else {
            return Ok(undelivered("not a message of queues", &item.body));
        };
        if envelope.node == self.inner.me {
            let message = envelope.open(wall_now());
            let name = std::str::from_utf8(&envelope.queue).unwrap_or_default();
            let queue = self.inner.queues.number(name).filter(|_| !name.starts_with(OUTGOING));
            return Ok(match queue.filter(|_| message.check().is_ok()) {
                Some(queue) => Sorted { queue, message, payload: envelope.payload, undelivered: None },
                None => undelivered("there is no such queue", &envelope.payload),
            });
        }
        if envelope.hops >= HOPS_MAX {
            return Ok(undelivered("it went too far", &envelope.payload));
        }
        envelope.hops += 1;
        match self.line_for_others(envelope.node).await {
            Ok(Some(line)) => {
                let message = Message::new(envelope.encode());
                Ok(Sorted { queue: line.number, message, payload: envelope.payload, undelivered: None })
            }
            Ok(None) => Ok(undelivered("nobody here knows that node", &envelope.payload)),
            Err(DeclareError::Journal(error)) => Err(WorkError::Put(PutError::Journal(error))),
            Err(_) => Ok(undelivered("no queue towards it", &envelope.payload)),
        }
    }
}

/// What is put where nobody asks for more than its bytes.
pub(super) fn unwrapped(payload: &Bytes) -> Message {
    // What was read shares a large buffer with its neighbours.
    Message::new(Bytes::copy_from_slice(payload))
}

/// How far it has come with a peer's messages, as it is stored with them.
fn cell(place: Place) -> (Bytes, Option<Bytes>) {
    let mut value = Vec::with_capacity(24);
    value.extend_from_slice(&place.birth.to_le_bytes());
    value.extend_from_slice(&place.through.to_le_bytes());
    value.extend_from_slice(&place.mark.to_le_bytes());
    (format!("{OWN_STATE}{PLACES}{}", place.from).into(), Some(value.into()))
}

/// The last of a single message's [`Ways`]: only its place is stored.
const WAY_OUT: usize = 2;
/// How long a full disk is left alone.
pub(super) const STORE_AGAIN: Duration = Duration::from_secs(1);
