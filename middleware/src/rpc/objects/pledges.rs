//! What was promised to callers: objects under the numbers that their callers gave them before they were made.
//!
//! Method      whoever comes first, the call that makes the object or one that was made ahead, opens the entry. The object
//!             lives as long as it. The caller says when it has no more use for it; else it goes after a time. What is kept
//!             for nobody, because the entry has gone meanwhile, is not kept.
//! Limits      [`PLEDGES_MAX`] entries, [`CALLERS_MAX`] of one caller;
//!             [`ObjectsOptions::transit`](super::ObjectsOptions::transit) after the object was made, [`EMPTY_FOR`] without
//!             one, unless somebody waits or makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quorate_protocols::ProcessId;
use quorate_protocols::rpc::{Refusal, Verdict};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::generated::Boxed;
use super::super::port;
use super::{Home, Target};
use crate::node::Node;

/// Whose it is, and the number that he gave it.
type Key = (ProcessId, u64);

pub(super) struct Pledges {
    all: Mutex<All>,
    /// Told when something ends earlier than before.
    wanted: Arc<Notify>,
}

#[derive(Default)]
struct All {
    entries: BTreeMap<ProcessId, BTreeMap<u64, Entry>>,
    /// All of them, in the order in which they end.
    ends: BTreeSet<(Instant, Key)>,
    /// When the next tick comes by itself.
    wakes: Option<Instant>,
}

struct Entry {
    pledge: Arc<Pledge>,
    until: Instant,
}

/// One object that is to be made.
#[derive(Default)]
pub(super) struct Pledge {
    /// `None` when it was not made.
    made: OnceLock<Option<Arc<Target>>>,
    told: Notify,
}

impl Pledge {
    pub(super) fn made(&self) -> Option<Option<Arc<Target>>> {
        self.made.get().cloned()
    }

    pub(super) async fn wait(&self) -> Option<Arc<Target>> {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            if let Some(made) = self.made() {
                return made;
            }
            told.await;
        }
    }
}

impl Pledges {
    pub(super) fn new(wanted: Arc<Notify>) -> Self {
        Self { all: Mutex::default(), wanted }
    }

    /// The entry, opened if need be; `None` when there are too many. It stays as long as the pledge is held.
    pub(super) fn open(&self, key: Key) -> Option<Arc<Pledge>> {
        let now = Instant::now();
        let (pledge, swept, is_sooner) = {
            let mut all = self.lock();
            if let Some(entry) = all.get(key) {
                return Some(Arc::clone(&entry.pledge));
            }
            let swept = if all.is_full(key.0) { all.sweep(now) } else { Vec::new() };
            let pledge = (!all.is_full(key.0)).then(|| all.insert(key, now + EMPTY_FOR));
            (pledge, swept, all.wakes_sooner())
        };
        if is_sooner {
            self.wanted.notify_one();
        }
        // Without the lock: objects of others are let go of.
        drop(swept);
        pledge
    }

    /// It was made, or not. Nothing is kept when its caller has said meanwhile that he has no use for it.
    fn keep(&self, key: Key, pledge: &Pledge, made: Option<Arc<Target>>, for_at_most: Duration) {
        let for_at_most = if made.is_some() { for_at_most } else { for_at_most.min(EMPTY_FOR) };
        let until = Instant::now() + for_at_most;
        let is_sooner = {
            let mut all = self.lock();
            if all.get(key).is_some_and(|entry| std::ptr::eq(&*entry.pledge, pledge)) {
                all.put_off(key, until);
            }
            all.wakes_sooner()
        };
        if is_sooner {
            self.wanted.notify_one();
        }
        // Once. Whoever waits is told even so.
        let _ = pledge.made.set(made);
        pledge.told.notify_waiters();
    }

    /// Its caller has no more use for it.
    pub(super) fn forget(&self, key: Key) {
        let gone = self.lock().remove(key);
        drop(gone);
    }

    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// Drops what is over; gives the next moment at which something is.
    pub(super) fn tick(&self) -> Option<Instant> {
        let (swept, next) = {
            let mut all = self.lock();
            let swept = all.sweep(Instant::now());
            all.wakes = all.ends.first().map(|(until, _)| *until);
            (swept, all.wakes)
        };
        drop(swept);
        next
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn get(&self, (caller, number): Key) -> Option<&Entry> {
        self.entries.get(&caller)?.get(&number)
    }

    /// Neither he nor anybody gets more than his part.
    fn is_full(&self, caller: ProcessId) -> bool {
        self.ends.len() >= PLEDGES_MAX
            || self.entries.get(&caller).is_some_and(|entries| entries.len() >= CALLERS_MAX)
    }

    /// True when something ends before the next tick, which must come then.
    fn wakes_sooner(&mut self) -> bool {
        let Some((first, _)) = self.ends.first().copied() else { return false };
        let is_sooner = self.wakes.is_none_or(|wakes| first < wakes);
        if is_sooner {
            self.wakes = Some(first);
        }
        is_sooner
    }

    fn insert(&mut self, key: Key, until: Instant) -> Arc<Pledge> {
        let pledge = Arc::<Pledge>::default();
        let entry = Entry { pledge: Arc::clone(&pledge), until };
        self.entries.entry(key.0).or_default().insert(key.1, entry);
        self.ends.insert((until, key));
        pledge
    }

    fn put_off(&mut self, key: Key, until: Instant) {
        if let Some(entry) = self.entries.get_mut(&key.0).and_then(|entries| entries.get_mut(&key.1)) {
            self.ends.remove(&(entry.until, key));
            entry.until = until;
            self.ends.insert((until, key));
        }
    }

    fn remove(&mut self, key: Key) -> Option<Arc<Pledge>> {
        let entries = self.entries.get_mut(&key.0)?;
        let Entry { pledge, until } = entries.remove(&key.1)?;
        if entries.is_empty() {
            self.entries.remove(&key.0);
        }
        self.ends.remove(&(until, key));
        Some(pledge)
    }

    fn sweep(&mut self, now: Instant) -> Vec<Arc<Pledge>> {
        let mut swept = Vec::new();
        while let Some((_, key)) = self.ends.first().copied().filter(|(until, _)| *until <= now) {
            let is_awaited = self.get(key).is_some_and(|Entry { pledge, .. }| {
                pledge.made.get().is_none() && Arc::strong_count(pledge) > 1
            });
            if is_awaited {
                // At the latest until the deadline of whoever waits for it or makes it.
                self.put_off(key, now + AGAIN);
            } else {
                swept.extend(self.remove(key));
            }
        }
        swept
    }
}

/// Runs a handler whose result was promised under this number to who asked, if it was.
pub(in crate::rpc) fn keeping(
    node: &Node,
    from: ProcessId,
    number: Option<u64>,
    handler: Boxed<Verdict>,
) -> Boxed<Verdict> {
    let Some((home, key)) = number.and_then(|number| Some((Home::of(node)?, (from, number)))) else {
        return handler;
    };
    match home.pledges.open(key) {
        Some(pledge) => Box::pin(Keeping { handler, pledge: Some((home, key, pledge)) }),
        // What is called ahead of it could not be answered.
        None => Box::pin(std::future::ready(Verdict::Refused(Refusal::Overloaded))),
    }
}

struct Keeping {
    handler: Boxed<Verdict>,
    /// Taken when it is kept, or broken.
    pledge: Option<(Arc<Home>, Key, Arc<Pledge>)>,
}

impl Keeping {
    fn keep(&mut self, made: Option<Arc<Target>>) {
        if let Some((home, key, pledge)) = self.pledge.take() {
            home.pledges.keep(key, &pledge, made, home.options.transit);
        }
    }
}

impl Future for Keeping {
    type Output = Verdict;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Verdict> {
        let verdict = std::task::ready!(self.handler.as_mut().poll(cx));
        // The result has just been encoded here, and noted the reference in it.
        let made = if matches!(verdict, Verdict::Done(_)) { port::departed() } else { None };
        self.keep(made);
        Poll::Ready(verdict)
    }
}

impl Drop for Keeping {
    /// A handler that was dropped makes nothing.
    fn drop(&mut self) {
        self.keep(None);
    }
}

/// When an entry that somebody waits for is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long an entry without an object is kept for calls that were made ahead and are still on their way: those overtake
/// or are overtaken by no more than a full lane.
const EMPTY_FOR: Duration = Duration::from_secs(10);
/// Entries of all callers: as many as calls may be executing at a service, several times over.
const PLEDGES_MAX: usize = 16_384;
/// Of one caller: several must conspire to leave no room for the others.
const CALLERS_MAX: usize = PLEDGES_MAX / 4;

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: ProcessId = ProcessId { node: 1, incarnation: 1 };
    const BOB: ProcessId = ProcessId { node: 2, incarnation: 1 };
    const TRANSIT: Duration = Duration::from_secs(60);

    fn pledges() -> Pledges {
        Pledges::new(Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_forgotten_before_it_was_made_is_not_kept() {
        let pledges = pledges();
        for number in 0..3 * PLEDGES_MAX as u64 {
            let pledge = pledges.open((ANN, number)).expect("what is cancelled leaves nothing");
            pledges.forget((ANN, number));
            pledges.keep((ANN, number), &pledge, None, TRANSIT);
            assert!(pledge.made().is_some(), "whoever waits is told");
        }
        assert_eq!(pledges.tick(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_asks_ahead_of_nothing_costs_the_others_nothing() {
        let pledges = pledges();
        let waiting: Vec<_> = (0..).map_while(|number| pledges.open((ANN, number))).collect();
        assert_eq!(waiting.len(), CALLERS_MAX);
        assert!(pledges.open((BOB, 1)).is_some());
        assert!(pledges.open((ANN, 7)).is_some(), "an entry that is there is no further one");
        // As long as somebody waits they stay, and then not for long.
        tokio::time::sleep(EMPTY_FOR * 2).await;
        assert!(pledges.tick().is_some());
        assert!(pledges.open((ANN, u64::MAX)).is_none());
        drop(waiting);
        tokio::time::sleep(AGAIN).await;
        assert!(pledges.open((ANN, u64::MAX)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_what_failed_is_told_and_comes_soon() {
        let pledges = pledges();
        let left = |pledges: &Pledges| pledges.tick().map(|until| until - Instant::now());
        let pledge = pledges.open((ANN, 1)).unwrap();
        tokio::time::timeout(TRANSIT, pledges.wanted.notified()).await.expect("it is told");
        assert_eq!(left(&pledges), Some(EMPTY_FOR));
        tokio::time::sleep(EMPTY_FOR / 2).await;
        pledges.keep((ANN, 1), &pledge, None, TRANSIT);
        assert_eq!(left(&pledges), Some(EMPTY_FOR));
        // A call that was made ahead and comes late is told.
        assert!(pledges.open((ANN, 1)).and_then(|late| late.made()).is_some());
        tokio::time::sleep(EMPTY_FOR).await;
        assert_eq!(pledges.tick(), None);
    }
}
