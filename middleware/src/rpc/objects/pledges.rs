//! What was promised to callers: objects under the numbers that their callers gave them before they were made.
//!
//! Method      whoever comes first, the call that makes the object or one that was made ahead, opens the entry. The object
//!             lives as long as it. The caller says when it has no more use for it; else it goes after a time.
//! Limits      `PLEDGES_MAX` entries; [`ObjectsOptions::transit`](super::ObjectsOptions::transit) after they were opened or
//!             kept, unless somebody waits.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quorate_protocols::ProcessId;
use quorate_protocols::rpc::Verdict;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::generated::Boxed;
use super::super::port;
use super::{Home, Target};
use crate::node::Node;

/// Whose it is, and the number that he gave it.
type Key = (ProcessId, u64);

#[derive(Default)]
pub(super) struct Pledges(Mutex<BTreeMap<Key, (Arc<Pledge>, Instant)>>);

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
    /// The entry, opened if need be; `None` when there are too many.
    pub(super) fn open(&self, key: Key, for_at_most: Duration) -> Option<Arc<Pledge>> {
        let until = Instant::now() + for_at_most;
        let (pledge, swept) = {
            let mut all = self.lock();
            if let Some((pledge, _)) = all.get(&key) {
                return Some(Arc::clone(pledge));
            }
            let swept = if all.len() >= PLEDGES_MAX { sweep(&mut all) } else { Vec::new() };
            if all.len() >= PLEDGES_MAX {
                (None, swept)
            } else {
                let pledge = Arc::<Pledge>::default();
                all.insert(key, (Arc::clone(&pledge), until));
                (Some(pledge), swept)
            }
        };
        // Without the lock: objects of others are let go of.
        drop(swept);
        pledge
    }

    /// It was made, or not.
    fn keep(&self, key: Key, made: Option<Arc<Target>>, for_at_most: Duration) {
        let Some(pledge) = self.open(key, for_at_most) else { return };
        if let Some((_, until)) = self.lock().get_mut(&key) {
            *until = Instant::now() + for_at_most;
        }
        // Once.
        let _ = pledge.made.set(made);
        pledge.told.notify_waiters();
    }

    /// Its caller has no more use for it.
    pub(super) fn forget(&self, key: Key) {
        let gone = self.lock().remove(&key);
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
            let swept = sweep(&mut all);
            (swept, all.values().map(|(_, until)| *until).min())
        };
        drop(swept);
        next
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, (Arc<Pledge>, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sweep(all: &mut BTreeMap<Key, (Arc<Pledge>, Instant)>) -> Vec<Arc<Pledge>> {
    let now = Instant::now();
    let mut swept = Vec::new();
    all.retain(|_, (pledge, until)| {
        if *until <= now && pledge.made.get().is_none() && Arc::strong_count(pledge) > 1 {
            // Somebody waits: at the latest until his deadline.
            *until = now + AGAIN;
        }
        if *until > now {
            return true;
        }
        swept.push(Arc::clone(pledge));
        false
    });
    swept
}

/// Runs a handler whose result was promised under this number to who asked, if it was.
pub(in crate::rpc) fn keeping(
    node: &Node,
    from: ProcessId,
    number: Option<u64>,
    handler: Boxed<Verdict>,
) -> Boxed<Verdict> {
    let pledge = number.and_then(|number| Some((Home::of(node)?, (from, number))));
    match pledge {
        Some(pledge) => Box::pin(Keeping { handler, pledge: Some(pledge) }),
        None => handler,
    }
}

struct Keeping {
    handler: Boxed<Verdict>,
    /// Taken when it is kept, or broken.
    pledge: Option<(Arc<Home>, Key)>,
}

impl Keeping {
    fn keep(&mut self, made: Option<Arc<Target>>) {
        if let Some((home, key)) = self.pledge.take() {
            home.pledges.keep(key, made, home.options.transit);
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
/// Entries of all callers: as many as calls may be executing at a service, several times over.
const PLEDGES_MAX: usize = 16_384;
