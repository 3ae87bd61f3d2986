//! Between the machine's task and the queues: what it asks for, and the tasks that do it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::transfer::{Command, Event, Item, Place, Transfer};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::super::error::{DeclareError, PutError, QueueError, WorkError};
use super::super::face::Queue;
use super::super::message::{Message, MessageId};
use super::super::plan::Wish;
use super::super::room::wall_now;
use super::super::view::{Standing, Start};
use super::super::work::OWN_STATE;
use super::envelope::Envelope;
use super::{HOPS_MAX, Inner, OUTGOING, PLACES, QueueManager};
use crate::driver::{Handle, Sink};

/// What the machine has asked for. Bounded by the machine: one reading and one number per peer that we send to, and so many
/// batches of a peer that sends to us as it takes at a time.
#[derive(Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// Rung when something is to be stored.
    arrivals: Notify,
}

#[derive(Default)]
struct State {
    outgoing: BTreeMap<u64, Outgoing>,
    storing: BTreeMap<u64, Storing>,
}

#[derive(Default)]
struct Outgoing {
    fetch: Option<(u64, usize)>,
    settled: Option<u64>,
    reading: Arc<Notify>,
    settling: Arc<Notify>,
}

#[derive(Default)]
struct Storing {
    batches: VecDeque<(Place, Vec<Item>)>,
    bell: Arc<Notify>,
    is_served: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
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
            Event::Gap { to, stored, settled } => {
                tracing::warn!(peer = to, stored, settled, "a peer has less than it told: it lost its disk");
            }
        }
    }
}

/// Reads a transmission queue for the machine, and drops what has arrived, until the queues are closed.
pub(super) async fn forward(to: u64, queue: Queue, handle: Arc<Handle<Transfer>>, desk: Arc<Desk>) {
    let (reading, settling) = {
        let mut state = desk.lock();
        let outgoing = state.outgoing.entry(to).or_default();
        (outgoing.reading.clone(), outgoing.settling.clone())
    };
    let reads = async {
        loop {
            if handle.command(Command::Offer { to }).await.is_err() {
                return;
            }
            loop {
                let wish = desk.lock().outgoing.entry(to).or_default().fetch.take();
                if let Some((after, bytes_max)) = wish {
                    let Ok(items) = read(&queue, after, bytes_max) else { return };
                    if handle.command(Command::Fetched { to, after, items }).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = reading.notified() => {}
                    () = queue.arrivals() => break,
                }
            }
        }
    };
    let drops = async {
        loop {
            settling.notified().await;
            let settled = desk.lock().outgoing.entry(to).or_default().settled.take();
            if let Some(through) = settled {
                let next = MessageId::from_u64(through.saturating_add(1));
                if queue.seek(Start::At(next)).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::join!(reads, drops);
}

/// The messages behind a number, about so many bytes.
fn read(queue: &Queue, after: u64, bytes_max: usize) -> Result<Vec<Item>, QueueError> {
    let mut items: Vec<Item> = Vec::new();
    let (mut after, mut bytes) = (after, 0);
    while bytes < bytes_max {
        let views = queue.browse(Start::At(MessageId::from_u64(after.saturating_add(1))), READ_AT_ONCE)?;
        let Some(last) = views.last() else { break };
        after = last.id.as_u64();
        for view in views.into_iter().filter(|view| view.standing != Standing::Kept) {
            bytes += view.payload.len();
            items.push(Item { number: view.id.as_u64(), body: view.payload });
            if bytes >= bytes_max {
                break;
            }
        }
    }
    Ok(items)
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

/// Stores what comes from one peer, batch by batch; what waits meanwhile is stored with one sync.
async fn store(from: u64, inner: Weak<Inner>, desk: Arc<Desk>) {
    loop {
        let (batches, bell) = {
            let mut state = desk.lock();
            let storing = state.storing.entry(from).or_default();
            (std::mem::take(&mut storing.batches), storing.bell.clone())
        };
        if batches.is_empty() {
            bell.notified().await;
            continue;
        }
        let Some(inner) = inner.upgrade() else { return };
        let manager = QueueManager { inner };
        let places: Vec<Place> = batches.iter().map(|(place, _)| *place).collect();
        let items: Vec<Item> = batches.into_iter().flat_map(|(_, items)| items).collect();
        let Some(place) = places.last() else { continue };
        while let Err(error) = manager.store(*place, &items).await {
            if matches!(&error, WorkError::Put(error) if error.is_retryable()) {
                tracing::warn!(peer = from, %error, "messages of a peer cannot be stored now");
                tokio::time::sleep(STORE_AGAIN).await;
                continue;
            }
            // Nothing was told to the peer, which keeps its messages; the next life goes on with them.
            tracing::error!(peer = from, %error, "messages of a peer cannot be stored any more");
            return;
        }
        for place in places {
            if manager.inner.handle.command(Command::Stored(place)).await.is_err() {
                return;
            }
        }
    }
}

impl QueueManager {
    /// Stores messages and the place that they lead to; in one unit of work, if the queues let them.
    async fn store(&self, place: Place, items: &[Item]) -> Result<(), WorkError> {
        let room = &self.inner.queues.room;
        let mut wish = Wish { cells: vec![cell(place)], ..Wish::default() };
        for item in items {
            wish.puts.push(self.sort(item).await?);
        }
        match room.carry_out(&wish, false).await {
            Ok(_) => return Ok(()),
            Err(error @ WorkError::Put(PutError::Journal(_))) => return Err(error),
            // One of them is not taken, or not so many at once: each for itself.
            Err(_) => {}
        }
        for (item, put) in items.iter().zip(wish.puts) {
            let through = Place { through: item.number, ..place };
            let single = |put| Wish { puts: vec![put], cells: vec![cell(through)], ..Wish::default() };
            let outcome = room.carry_out(&single(put.clone()), false).await;
            if let Err(error @ WorkError::Put(PutError::Journal(_))) = outcome {
                return Err(error);
            }
            if let Err(error) = outcome {
                tracing::warn!(peer = place.from, number = item.number, %error, "undelivered");
                let put = (self.inner.undelivered.number, put.1);
                room.carry_out(&single(put), false).await?;
            }
        }
        Ok(())
    }

    /// Where a message goes from here.
    async fn sort(&self, item: &Item) -> Result<(u32, Message), WorkError> {
        let undelivered = |why: &'static str, payload: Bytes| {
            tracing::warn!(number = item.number, why, "undelivered");
            (self.inner.undelivered.number, Message::new(payload))
        };
        let Ok(mut envelope) = Envelope::decode(item.body.clone()) else {
            return Ok(undelivered("not a message of queues", Bytes::copy_from_slice(&item.body)));
        };
        if envelope.node == self.inner.me {
            let message = envelope.open(wall_now());
            let name = std::str::from_utf8(&envelope.queue).unwrap_or_default();
            let queue = self.inner.queues.number(name).filter(|_| !name.starts_with(OUTGOING));
            return Ok(match queue.filter(|_| message.check().is_ok()) {
                Some(queue) => (queue, message),
                None => undelivered("there is no such queue", message.payload),
            });
        }
        if envelope.hops >= HOPS_MAX {
            return Ok(undelivered("it went too far", Bytes::copy_from_slice(&envelope.payload)));
        }
        envelope.hops += 1;
        let line = match self.line(self.next_hop(envelope.node)).await {
            Ok(line) => line,
            Err(DeclareError::Journal(error)) => return Err(WorkError::Put(PutError::Journal(error))),
            Err(_) => {
                return Ok(undelivered("no queue towards it", Bytes::copy_from_slice(&envelope.payload)));
            }
        };
        Ok((line.number, Message::new(envelope.encode())))
    }
}

/// How far it has come with a peer's messages, as it is stored with them.
fn cell(place: Place) -> (Bytes, Option<Bytes>) {
    let mut value = Vec::with_capacity(16);
    value.extend_from_slice(&place.birth.to_le_bytes());
    value.extend_from_slice(&place.through.to_le_bytes());
    (format!("{OWN_STATE}{PLACES}{}", place.from).into(), Some(value.into()))
}

/// How long a full disk is left alone.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Messages that are read under one lock.
const READ_AT_ONCE: usize = 64;
