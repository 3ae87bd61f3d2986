//! Taking messages for those who wait, and who may give up waiting at any moment.
//!
//! Guarantee   the engine's work is never dropped half-way, and a message that came for somebody who has gone is handed to the
//!             next who asks, as if it came for him: it goes back, which counts as a delivery, only when nobody asked for
//!             [`KEPT`] (or half of its lease). So a `get` that is given up again and again wears no message out.
//! Method      each `get` has a task that asks the engine, a slice at a time, until its `get` is answered. What a task takes goes
//!             to its own `get`, else to another that waits, else it lies here. Whoever asks looks here first.
//! Limits      tasks of those who gave up live one [`SLICE`] longer.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::super::message::Message;
use super::handle::{EngineDelivery, EngineQueue};
use super::{EngineError, Letter};

pub(super) type Fetched = Result<Option<EngineDelivery>, EngineError>;

/// What lies between the takers of a queue and those they take for.
#[derive(Default)]
pub(super) struct Counter {
    inner: Mutex<Inner>,
    /// Rung when somebody was answered.
    bell: Notify,
}

#[derive(Default)]
struct Inner {
    /// Those who wait, in the order in which they came, and what they are told.
    asking: BTreeMap<u64, Option<Fetched>>,
    /// What nobody waits for, and until when it is kept.
    there: VecDeque<(Instant, EngineDelivery)>,
    asked: u64,
    /// True while a task gives back what was kept for too long.
    is_swept: bool,
}

impl Counter {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_asking(&self, id: u64) -> bool {
        matches!(self.lock().asking.get(&id), Some(None))
    }

    /// Tells the one who asks as `id`; a delivery that he does not need is for the others.
    fn tell(self: &Arc<Self>, id: u64, outcome: Fetched) {
        let mut inner = self.lock();
        if let Some(answer @ None) = inner.asking.get_mut(&id) {
            *answer = Some(outcome);
        } else if let Ok(Some(delivery)) = outcome {
            match inner.asking.values_mut().find(|answer| answer.is_none()) {
                Some(answer) => *answer = Some(Ok(Some(delivery))),
                None => self.keep(&mut inner, delivery),
            }
        }
        drop(inner);
        self.bell.notify_waiters();
    }

    fn keep(self: &Arc<Self>, inner: &mut Inner, delivery: EngineDelivery) {
        // Without a runtime nobody can give it back in time: its lease runs out.
        let Ok(runtime) = Handle::try_current() else { return };
        inner.there.push_back((Instant::now() + KEPT.min(delivery.lease() / 2), delivery));
        if !mem::replace(&mut inner.is_swept, true) {
            let counter = self.clone();
            runtime.spawn(async move { counter.sweep().await });
        }
    }

    async fn sweep(&self) {
        loop {
            let end = {
                let mut inner = self.lock();
                let Some((end, _)) = inner.there.front() else {
                    inner.is_swept = false;
                    return;
                };
                *end
            };
            sleep_until(end).await;
            let mut late = Vec::new();
            {
                let mut inner = self.lock();
                while inner.there.front().is_some_and(|(end, _)| *end <= Instant::now()) {
                    late.extend(inner.there.pop_front());
                }
            }
            // It goes back as it is dropped.
            drop(late);
        }
    }
}

/// Somebody who waits. Dropped, he has gone.
struct Asking<'a> {
    counter: &'a Arc<Counter>,
    id: u64,
}

impl Asking<'_> {
    async fn answer(&self) -> Fetched {
        loop {
            let rung = self.counter.bell.notified();
            tokio::pin!(rung);
            // Before the look, so that no answer is missed.
            rung.as_mut().enable();
            let answer = self.counter.lock().asking.get_mut(&self.id).and_then(Option::take);
            match answer {
                Some(answer) => return answer,
                None => rung.await,
            }
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let answer = self.counter.lock().asking.remove(&self.id);
        // What came while he went.
        if let Some(Some(answer)) = answer {
            self.counter.tell(self.id, answer);
        }
    }
}

/// Tells who asks that nothing comes any more, when his task ends without a word: with its runtime, or in a panic.
struct Last<'a> {
    counter: &'a Arc<Counter>,
    id: u64,
}

impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.counter.tell(self.id, Err(EngineError::Closed));
    }
}

impl EngineQueue {
    pub(super) async fn fetched(&self, within: Duration) -> Fetched {
        let id = {
            let mut inner = self.counter.lock();
            if let Some((_, delivery)) = inner.there.pop_front() {
                return Ok(Some(delivery));
            }
            inner.asked += 1;
            let id = inner.asked;
            inner.asking.insert(id, None);
            id
        };
        let asking = Asking { counter: &self.counter, id };
        tokio::spawn(self.clone().fetch(id, Instant::now().checked_add(within)));
        asking.answer().await
    }

    async fn fetch(self, id: u64, until: Option<Instant>) {
        let last = Last { counter: &self.counter, id };
        loop {
            let left = until.map_or(SLICE, |until| until.saturating_duration_since(Instant::now()));
            let outcome = self.take(left.min(SLICE)).await;
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if !matches!(outcome, Ok(None)) || is_over {
                self.counter.tell(id, outcome);
            }
            // What came may have been for another, whose task serves this one when it has something.
            if !self.counter.is_asking(id) {
                drop(last);
                return;
            }
        }
    }

    async fn take(&self, within: Duration) -> Fetched {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(taken) = self.engine.take(&self.name, left).await? else { return Ok(None) };
            let is_spent = self.config.deliveries_max.is_some_and(|max| taken.deliveries > max);
            let Some(dead) = self.dead.as_ref().filter(|_| is_spent) else {
                return Ok(Some(EngineDelivery::new(self, taken)));
            };
            tracing::warn!(queue = %self.name, deliveries = taken.deliveries, "a dead letter");
            let mut letter = Letter::from(Message::new(taken.payload));
            let can = self.engine.abilities();
            letter.key = taken.key.filter(|_| can.keys);
            // So that burying it again after a crash stores nothing.
            letter.name = taken.id.filter(|_| can.names).map(|id| format!("{}.{id}", self.name).into());
            if let Err(error) = self.engine.put(dead, letter).await {
                // Whatever comes of it, it is tried again.
                drop(taken.held.nack(BURY_AGAIN).await);
                return Err(error);
            }
            match taken.held.ack().await {
                // It comes once more, and is buried once more.
                Ok(()) | Err(EngineError::LeaseLost) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// How long an engine waits at a time: who gives up waiting is noticed so late.
const SLICE: Duration = Duration::from_secs(1);
/// How long a message that came for somebody who has gone is kept for the next who asks.
const KEPT: Duration = SLICE;
/// How long a dead letter that could not be buried is left where it is.
const BURY_AGAIN: Duration = Duration::from_secs(1);
