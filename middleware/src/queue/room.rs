//! The driver of the books: the journal that they are stored in, the clock, and those who wait.
//!
//! Method      one lock over the books. Whatever changes a message's fate is planned and appended under that lock, so the
//!             journal has the order in which it was decided; it is done in the completion that the journal calls, in the
//!             journal's order, once it is durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use quorate_journal::{AppendError, Appended, Journal, Position};
use quorate_protocols::Time;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::bells::{Bells, RoomBell};
use super::books::{Books, Desk, Effect, Unit};
use super::delivery::Delivery;
use super::error::{DeclareError, PutError, QueueError, WorkError};
use super::face::{Queue, Receipt, Settled};
use super::message::{Durability, MessageId};
use super::plan::{Plan, Planned, Refusal, Wish};
use super::record::{Step, encode_names};
use super::shelf::Lease;
use super::upkeep::LogSize;

/// What became of a wish that was stored.
pub(super) struct Stored {
    /// For each of its puts.
    pub(super) receipts: Vec<Receipt>,
    /// For the first of them, if it is watched.
    pub(super) settled: Option<oneshot::Receiver<Settled>>,
}

/// Where a wish stands.
pub(super) enum Attempt {
    /// It is on its way.
    Begun(oneshot::Receiver<Result<Stored, WorkError>>),
    /// A queue has no room: try again when this rings, or when something in it is due.
    Full(Arc<RoomBell>, Option<Instant>),
    /// Something must be stored first: try again when that is known.
    After(oneshot::Receiver<()>),
}

pub(super) struct Room {
    pub(super) journal: Journal,
    /// The beginning of this life, on the clock that is told to the books...
    wall: Time,
    /// ...and on the one that never jumps.
    epoch: Instant,
    /// So many bytes that nobody needs make it worth while to look at the journal's length.
    idle_bytes_min: u64,
    /// So many bytes in the journal make a checkpoint worth while.
    checkpoint_bytes_min: u64,
    /// One new name at a time.
    declaring: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) books: Books,
    bells: BTreeMap<u32, Bells>,
    /// On their way to the disk.
    under_way: BTreeMap<u64, Unit>,
    begun: u64,
    /// Whose putters wait until they are settled.
    watched: BTreeMap<MessageId, Vec<oneshot::Sender<Settled>>>,
    /// Why nothing works any more.
    failure: Option<AppendError>,
}

impl Room {
    pub(super) fn new(journal: Journal, wall: Time, books: Books) -> Self {
        let state = State {
            books,
            bells: BTreeMap::new(),
            under_way: BTreeMap::new(),
            begun: 0,
            watched: BTreeMap::new(),
            failure: None,
        };
        let declaring = tokio::sync::Mutex::new(());
        let segment_bytes = journal.stats().segment_bytes;
        Self {
            journal,
            wall,
            epoch: Instant::now(),
            idle_bytes_min: segment_bytes / 4,
            checkpoint_bytes_min: CHECKPOINT_SEGMENTS * segment_bytes,
            declaring,
            state: Mutex::new(state),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's clock as it was at the beginning, and what has passed since.
    pub(super) fn now(&self) -> Time {
        self.wall + Instant::now().saturating_duration_since(self.epoch)
    }

    fn instant(&self, time: Time) -> Instant {
        self.epoch + time.since(self.wall)
    }

    /// The number of the queue called `name`, which is durable.
    pub(super) async fn declare(&self, name: &str) -> Result<u32, DeclareError> {
        let _turn = self.declaring.lock().await;
        let (number, names) = {
            let state = self.lock();
            if let Some((number, _)) = state.books.names.iter().find(|(_, known)| *known == name) {
                return Ok(*number);
            }
            if state.books.names.len() >= QUEUES_MAX {
                return Err(DeclareError::TooMany { limit: QUEUES_MAX });
            }
            let number = state.books.names.last_key_value().map_or(0, |(last, _)| last + 1);
            let mut names = state.books.names.clone();
            names.insert(number, name.to_owned());
            (number, names)
        };
        // The journal must know the name before it has a record of the queue.
        let blob = encode_names(&names);
        self.journal.save_snapshot(NAMES, Position::ZERO, blob).await.map_err(DeclareError::Journal)?;
        let books = &mut self.lock().books;
        books.names = names;
        books.desks.entry(number).or_insert_with(Desk::unopened);
        Ok(number)
    }

    /// Hands a wish to the journal, if it can be done now.
    pub(super) fn attempt(self: &Arc<Self>, wish: &Wish, is_watched: bool) -> Result<Attempt, WorkError> {
        let now = self.now();
        let mut state = self.lock();
        if let Some(error) = &state.failure {
            return Err(WorkError::Put(PutError::Journal(error.clone())));
        }
        let Plan { unit, puts } = match state.books.plan(now, wish) {
            Ok(plan) => plan,
            Err(Refusal::Wait(queue)) => {
                // What has expired makes room, also when nobody gets.
                state.books.look(now, queue);
                self.bury(&mut state, queue, now);
                let due = state.books.desk(queue).shelf.deadline().map(|due| self.instant(due));
                return Ok(Attempt::Full(state.bells(queue).room, due));
            }
            Err(Refusal::Coming) => return self.after_all(),
            Err(Refusal::LeaseLost) => return Err(WorkError::LeaseLost),
            Err(Refusal::State { size, limit }) => return Err(WorkError::State { size, limit }),
            Err(Refusal::Put(error)) => return Err(WorkError::Put(error)),
        };
        let settled = is_watched.then(|| state.watch(&wish.puts, &puts)).flatten();
        // What is told to have been put before must be stored, too.
        let is_barrier = unit.class() < Durability::Synced && puts.iter().any(|put| put.is_repeated);
        let (send, receive) = oneshot::channel();
        let told = move |outcome: Result<Option<Appended>, AppendError>| {
            let outcome = outcome.map(|appended| Stored {
                receipts: puts.iter().map(|put| put.receipt(appended)).collect(),
                settled,
            });
            // Nobody may be waiting any more; it is done all the same.
            let _ = send.send(outcome.map_err(|error| WorkError::Put(PutError::Journal(error))));
        };
        self.store(&mut state, unit, is_barrier, told)
            .map_err(|error| WorkError::Put(PutError::Journal(error)))?;
        Ok(Attempt::Begun(receive))
    }

    /// Rings when what is under way now is known.
    fn after_all(&self) -> Result<Attempt, WorkError> {
        let (send, receive) = oneshot::channel();
        let then = move |_| {
            // Whoever waited may have gone.
            let _ = send.send(());
        };
        self.journal
            .append_then(Vec::new(), then)
            .map_err(|error| WorkError::Put(PutError::Journal(error)))?;
        Ok(Attempt::After(receive))
    }

    /// Stores a unit that was planned, and does it when it is durable; `told` hears where its records are.
    fn store(
        self: &Arc<Self>,
        state: &mut State,
        unit: Unit,
        is_barrier: bool,
        told: impl FnOnce(Result<Option<Appended>, AppendError>) + Send + 'static,
    ) -> Result<(), AppendError> {
        let records = unit.records();
        if records.is_empty() && !is_barrier {
            self.commit(state, unit, None);
            told(Ok(None));
            return Ok(());
        }
        let class = match unit.class() {
            Durability::Written if !is_barrier => quorate_journal::Durability::Written,
            _ => quorate_journal::Durability::Synced,
        };
        let number = state.begun;
        state.begun += 1;
        state.under_way.insert(number, unit);
        let room = self.clone();
        let then = move |outcome: Result<Appended, AppendError>| {
            let mut state = room.lock();
            if let Some(unit) = state.under_way.remove(&number) {
                match &outcome {
                    Ok(appended) => room.commit(&mut state, unit, Some(appended.first.as_u64())),
                    Err(error) => room.abandon(&mut state, &unit, error),
                }
            }
            drop(state);
            told(outcome.map(Some));
        };
        let outcome = self.journal.append_then_as(class, records, then);
        if let Err(error) = &outcome
            && let Some(unit) = state.under_way.remove(&number)
        {
            self.abandon(state, &unit, error);
        }
        outcome
    }

    /// Stores a unit that nobody waits for.
    fn store_aside(self: &Arc<Self>, state: &mut State, unit: Unit) -> bool {
        self.store(state, unit, false, |_| {}).is_ok()
    }

    fn commit(self: &Arc<Self>, state: &mut State, unit: Unit, first: Option<u64>) {
        let now = self.now();
        let mut effects = Vec::new();
        let queues = state.books.keeping(&unit);
        state.books.commit(now, unit, first, &mut effects);
        state.ring(effects);
        for queue in queues {
            if let Some(trim) = state.books.plan_trim(now, queue) {
                self.store_aside(state, trim);
            }
        }
        self.tidy(state);
    }

    fn abandon(&self, state: &mut State, unit: &Unit, error: &AppendError) {
        let mut effects = Vec::new();
        state.books.abandon(self.now(), unit, &mut effects);
        state.ring(effects);
        for step in &unit.steps {
            if let Step::Put(put) = step {
                state.watched.remove(&put.id);
            }
        }
        state.note(error);
    }

    fn tidy(self: &Arc<Self>, state: &mut State) {
        if let Some((place, blob)) = state.books.checkpoint_if_due(self.checkpoint_bytes_min) {
            // It only saves time when these queues are opened again. A failure shows in the next append.
            let _ = self.journal.save_snapshot_soon(CHECKPOINT, Position::from_u64(place), blob);
        }
        if state.books.idle_bytes < self.idle_bytes_min {
            return;
        }
        let stats = self.journal.stats();
        let log = LogSize {
            first: self.journal.first().as_u64(),
            segments: stats.segments as u64,
            segment_bytes: stats.segment_bytes,
        };
        let upkeep = state.books.upkeep(log);
        if let Some((floor, cut)) = upkeep.floor.zip(upkeep.cut) {
            let room = self.clone();
            let told = move |outcome: Result<Option<Appended>, AppendError>| {
                // Without the floor, nothing might be left that says which ids were given out.
                if outcome.is_ok() {
                    // A failure shows in the next append.
                    let _ = room.journal.truncate_soon(Position::from_u64(cut));
                }
            };
            // The next time is soon.
            let _ = self.store(state, floor, false, told);
        }
        if let Some(moves) = upkeep.moves {
            // Too large for one segment is a matter of odd settings, and only costs space.
            self.store_aside(state, moves);
        }
    }

    /// The next messages, at most so many, or when it is worth while to look again.
    pub(super) fn try_take(
        self: &Arc<Self>,
        queue: &Queue,
        most: usize,
    ) -> Result<(Vec<Delivery>, Option<Instant>), QueueError> {
        let now = self.now();
        let mut state = self.lock();
        state.check_open()?;
        state.books.look(now, queue.number);
        self.bury(&mut state, queue.number, now);
        let mut deliveries = Vec::new();
        let mut records = Vec::new();
        while deliveries.len() < most {
            match state.books.bring_near(now, queue.number) {
                Err(error) if deliveries.is_empty() => return Err(QueueError::Read(Arc::new(error))),
                Err(_) => break,
                Ok(()) => {}
            }
            self.bury(&mut state, queue.number, now);
            let Some((taken, step)) = state.books.take(now, queue.number) else { break };
            records.extend(step.map(|step| step.encode()));
            deliveries.extend(Delivery::new(queue.clone(), &taken, &state.books));
            state.books.handed_out(queue.number, taken.id);
        }
        if !records.is_empty() {
            // Only counts: a crash that forgets a delivery forgets its lease, too. Not worth a sync or waiting for, and
            // left out when the journal is busy.
            drop(self.journal.submit_as(quorate_journal::Durability::Written, records));
            self.tidy(&mut state);
        }
        let due = state.books.desk(queue.number).shelf.deadline();
        Ok((deliveries, due.map(|due| self.instant(due))))
    }

    pub(super) fn renew(
        &self,
        number: u32,
        id: MessageId,
        lease: Lease,
        duration: Duration,
    ) -> Result<(), QueueError> {
        let now = self.now();
        let mut state = self.lock();
        state.check_open()?;
        if !state.books.desk(number).shelf.renew(now, id, lease, duration) {
            return Err(QueueError::LeaseLost);
        }
        // The new end may be earlier than the one that a waiting consumer knows.
        state.bells(number).arrivals.notify_one();
        Ok(())
    }

    pub(super) fn give_back(
        self: &Arc<Self>,
        number: u32,
        id: MessageId,
        lease: Lease,
        delay: Duration,
    ) -> Result<(), QueueError> {
        let now = self.now();
        let mut state = self.lock();
        state.check_open()?;
        let desk = state.books.desk(number);
        let deliveries_max = desk.deliveries_max();
        if !desk.shelf.give_back(now, id, lease, delay, deliveries_max) {
            return Err(QueueError::LeaseLost);
        }
        // Also after a delay: whoever waits must learn the new due time.
        state.bells(number).arrivals.notify_one();
        self.bury(&mut state, number, now);
        Ok(())
    }

    /// Takes out of a queue what was given up or has expired.
    pub(super) fn bury(self: &Arc<Self>, state: &mut State, number: u32, now: Time) {
        while let Some(unit) = state.books.next_burial(now, number) {
            if !self.store_aside(state, unit) {
                return;
            }
        }
    }

    /// Stores a change of a whole queue.
    pub(super) fn sweep(
        self: &Arc<Self>,
        plan: impl FnOnce(&mut Books) -> Unit,
    ) -> Result<oneshot::Receiver<Result<(), QueueError>>, QueueError> {
        let mut state = self.lock();
        state.check_open()?;
        let unit = plan(&mut state.books);
        let (send, receive) = oneshot::channel();
        let told = move |outcome: Result<Option<Appended>, AppendError>| {
            let _ = send.send(outcome.map(drop).map_err(QueueError::Journal));
        };
        self.store(&mut state, unit, false, told).map_err(QueueError::Journal)?;
        Ok(receive)
    }
}

impl State {
    pub(super) fn bells(&mut self, queue: u32) -> Bells {
        self.bells.entry(queue).or_default().clone()
    }

    pub(super) fn check_open(&self) -> Result<(), QueueError> {
        match &self.failure {
            None => Ok(()),
            Some(AppendError::Closed) => Err(QueueError::Closed),
            Some(error) => Err(QueueError::Journal(error.clone())),
        }
    }

    fn ring(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Ready(queue) => self.bells(queue).arrivals.notify_one(),
                Effect::Room(queue) => self.bells(queue).room.ring(),
                Effect::Left(id, how) => self.tell(id, how),
                Effect::Swept(below, how) => {
                    let old = self.watched.range(..below).map(|(id, _)| *id);
                    let gone: Vec<_> = old.filter(|id| !self.books.has_message(*id)).collect();
                    gone.into_iter().for_each(|id| self.tell(id, how));
                }
            }
        }
    }

    fn tell(&mut self, id: MessageId, how: Settled) {
        for watcher in self.watched.remove(&id).unwrap_or_default() {
            // Whoever waited may have gone.
            let _ = watcher.send(how);
        }
    }

    /// Waits for the end of the first message that was put, unless it has come.
    fn watch(
        &mut self,
        puts: &[(u32, super::message::Message)],
        planned: &[Planned],
    ) -> Option<oneshot::Receiver<Settled>> {
        let (queue, id, is_repeated) = (puts.first()?.0, planned.first()?.id, planned.first()?.is_repeated);
        let (send, receive) = oneshot::channel();
        if is_repeated && !self.books.desk(queue).has(id) {
            let _ = send.send(Settled::Unknown);
        } else {
            let watchers = self.watched.entry(id).or_default();
            // Who asks again and again, and gives up each time, leaves nothing behind.
            watchers.retain(|watcher| !watcher.is_closed());
            watchers.push(send);
        }
        Some(receive)
    }

    /// Looks whether an error is the end.
    fn note(&mut self, error: &AppendError) {
        if matches!(error, AppendError::Poisoned(_) | AppendError::Closed) {
            self.fail(error.clone());
        }
    }

    /// Nothing works from now on: nobody may wait for what cannot come.
    pub(super) fn fail(&mut self, error: AppendError) {
        if self.failure.is_none() {
            self.failure = Some(error);
            self.watched.clear();
            // Or the directory stays locked for as long as a handle lives.
            self.books.bodies.close();
            for bells in self.bells.values() {
                bells.arrivals.notify_waiters();
                bells.room.ring_all();
            }
        }
    }
}

/// The machine's clock.
pub(super) fn wall_now() -> Time {
    time_of(SystemTime::now())
}

/// A moment of the machine's clock as the books have it: since 1970.
pub(super) fn time_of(moment: SystemTime) -> Time {
    Time::ZERO + moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The other way round.
pub(super) fn moment_of(time: Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(time.as_nanos())
}

/// The snapshot with the books.
pub(super) const CHECKPOINT: &str = "books";
/// Opening reads so many segments beside the checkpoint; fewer would cost the syncs of a checkpoint more often.
const CHECKPOINT_SEGMENTS: u64 = 4;
/// The snapshot with the queues' names, and the queues' directory in a node's.
pub(super) const NAMES: &str = "queues";
/// Each new name writes all of them again; beyond this many a service should shard.
const QUEUES_MAX: usize = 4096;
