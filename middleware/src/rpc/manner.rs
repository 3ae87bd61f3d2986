//! How a service works on its requests: one after the other, many at a time, or on threads of their own.
//!
//! Guarantee   requests that wait for their turn begin in the order in which they came, and one that nobody waits for any
//!             more gives its place in the queue up. Callers of the same node stand in the same queue.
//! Method      a fair semaphore before the handler's first step; for blocking code the handler is then driven by a thread
//!             of tokio's blocking pool.
//! Source      van Steen & Tanenbaum, "Distributed Systems", servers: iterative and concurrent servers.
//! Limits      what waits counts among the executing requests (`ServeOptions::executing_max`).

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::context::Within;

/// How a service works on its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Manner {
    /// Many at a time, as tasks of the runtime: one that waits delays nobody. Handlers must not block their thread. The
    /// default.
    #[default]
    Concurrent,
    /// One after the other, in the order of their arrival: the next begins when the last has ended. A handler that calls its
    /// own service waits for itself, until its deadline.
    Iterative,
    /// On threads, for handlers that block: that compute for long, or wait for a disk, a lock or a database that knows no
    /// `async`. A handler that nobody waits for any more ends at its next `.await`; what blocks until then keeps its
    /// thread. The end of the runtime waits for it too.
    Blocking {
        /// So many at a time, at least 1; further ones wait. They are of tokio's blocking pool, which has 512 for all
        /// unless told otherwise.
        threads: usize,
    },
}

/// Where the handlers of one service run.
pub(super) enum Floor {
    Open,
    OneByOne(Arc<Semaphore>),
    Threads(Arc<Semaphore>, Handle),
}

impl Floor {
    /// Must be called within a tokio runtime.
    pub(super) fn new(manner: Manner) -> Self {
        match manner {
            Manner::Concurrent => Self::Open,
            Manner::Iterative => Self::OneByOne(Arc::new(Semaphore::new(1))),
            Manner::Blocking { threads } => {
                let threads = threads.clamp(1, Semaphore::MAX_PERMITS);
                Self::Threads(Arc::new(Semaphore::new(threads)), Handle::current())
            }
        }
    }

    /// The handler as it is to be polled.
    pub(super) fn arrange<T: Send + 'static>(&self, mut handler: Within<T>) -> Within<T> {
        let (places, threads) = match self {
            Self::Open => return handler,
            Self::OneByOne(places) => (Arc::clone(places), None),
            Self::Threads(places, threads) => (Arc::clone(places), Some(threads.clone())),
        };
        // The time in the queue is the caller's time, too.
        handler.settle();
        Within::nobody(Box::pin(async move {
            let place = place_of(places).await;
            match threads {
                Some(threads) => on_thread(threads, handler, place).await,
                None => {
                    let result = handler.await;
                    drop(place);
                    result
                }
            }
        }))
    }
}

async fn place_of(places: Arc<Semaphore>) -> OwnedSemaphorePermit {
    match places.acquire_owned().await {
        Ok(place) => place,
        // Nobody closes it.
        Err(_) => std::future::pending().await,
    }
}

async fn on_thread<T: Send + 'static>(threads: Handle, handler: Within<T>, place: OwnedSemaphorePermit) -> T {
    // Dropped with this future: then the handler is dropped, too, as soon as it lets its thread go.
    let (_wanted, unwanted) = oneshot::channel::<()>();
    let driver = threads.clone();
    let run = threads.spawn_blocking(move || {
        let result = driver.block_on(async {
            tokio::select! {
                biased;
                _ = unwanted => None,
                result = handler => Some(result),
            }
        });
        drop(place);
        result
    });
    match run.await {
        Ok(Some(result)) => result,
        Err(ended) if ended.is_panic() => resume_unwind(ended.into_panic()),
        // Nobody waits any more, or the runtime ends and whoever waits here with it.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}
