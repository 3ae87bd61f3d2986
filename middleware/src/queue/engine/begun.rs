//! Calls for a message that were given up: what they have begun is for the next one.
//!
//! Method      an engine's work is not dropped half-way, so a call that is dropped leaves somebody waiting at the engine, before
//!             all who come later. The message that this one gets would come back only to be counted as delivered; so it is
//!             kept for a while, for whoever asks next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{EngineDelivery, EngineError};

/// What comes of a call.
pub(super) type Fetched = Result<Option<EngineDelivery>, EngineError>;

/// What calls that were given up have begun.
#[derive(Default)]
pub(super) struct Begun(Mutex<Fetches>);

#[derive(Default)]
struct Fetches {
    serial: u64,
    waiting: VecDeque<(u64, oneshot::Receiver<Fetched>)>,
}

impl Begun {
    fn lock(&self) -> MutexGuard<'_, Fetches> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self) -> Option<oneshot::Receiver<Fetched>> {
        self.lock().waiting.pop_front().map(|(_, fetch)| fetch)
    }

    /// Keeps it for the next call, for a while.
    fn leave(self: &Arc<Self>, fetch: oneshot::Receiver<Fetched>) {
        // Without a runtime nothing comes any more.
        let Ok(runtime) = Handle::try_current() else { return };
        let serial = {
            let mut fetches = self.lock();
            fetches.serial += 1;
            let serial = fetches.serial;
            fetches.waiting.push_back((serial, fetch));
            serial
        };
        let begun = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(SLICE).await;
            let old = {
                let mut fetches = begun.lock();
                let at = fetches.waiting.iter().position(|(it, _)| *it == serial);
                at.and_then(|at| fetches.waiting.remove(at))
            };
            // What has come goes back as it is dropped.
            drop(old);
        });
    }
}

/// A call that waits for what was begun; dropped, it leaves that to the next one.
pub(super) struct Turn {
    pub(super) begun: Arc<Begun>,
    pub(super) fetch: Option<oneshot::Receiver<Fetched>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(fetch) = self.fetch.take() {
            self.begun.leave(fetch);
        }
    }
}

/// How long an engine waits at a time, and what was given up is kept: who gives up waiting is noticed so late.
pub(super) const SLICE: Duration = Duration::from_secs(1);
