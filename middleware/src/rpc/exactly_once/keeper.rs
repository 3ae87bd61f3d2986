//! What the serving of calls asks of a durable state, whatever its type.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use quorate_protocols::ProcessId;
use quorate_protocols::rpc::{Begun, Doubt, Refusal, Request, Verdict};

use super::State;
use super::store::Store;
use super::transaction::{self, Call};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One request that is to take effect with a record.
pub(in crate::rpc) struct Task {
    /// `None` for a caller that wants no more than at most once: its changes are durable, its answer is not kept.
    pub(in crate::rpc) request: Option<Request>,
    pub(in crate::rpc) acknowledged: u64,
    pub(in crate::rpc) unless: Option<Refusal>,
    /// The service's own code.
    pub(in crate::rpc) handler: Boxed<Verdict>,
}

/// How a request ended.
pub(in crate::rpc) struct Ending {
    pub(in crate::rpc) verdict: Verdict,
    /// Records that must be durable before the verdict may be told; 0: it may be now.
    pub(in crate::rpc) stable: u64,
}

impl From<Verdict> for Ending {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, stable: 0 }
    }
}

/// A durable state of any type.
pub(in crate::rpc) trait Keeper: Send + Sync {
    /// The seat of a client, once it is durable.
    fn seat(self: Arc<Self>, from: ProcessId, client: u32) -> Boxed<Option<u64>>;

    /// Executes a request unless it took effect before. What that made is on its way to the disk after the next
    /// [`flush`](Self::flush).
    fn execute(self: Arc<Self>, task: Task) -> Boxed<Ending>;

    /// Sends records on their way, those of many calls together.
    fn flush(self: Arc<Self>);

    /// Returns when so many records are durable, and tells how many are by then; `None` when they may be lost.
    fn durable(self: Arc<Self>, count: u64) -> Boxed<Option<u64>>;
}

impl<S: State> Keeper for Store<S> {
    fn seat(self: Arc<Self>, from: ProcessId, client: u32) -> Boxed<Option<u64>> {
        Box::pin(async move {
            let (seat, stable) = self.take_seat(from, client)?;
            self.stable(stable).await.ok().map(|_| seat)
        })
    }

    fn execute(self: Arc<Self>, task: Task) -> Boxed<Ending> {
        Box::pin(async move {
            let Task { request, acknowledged, unless, handler } = task;
            let attempt = match request {
                Some(request) => match self.first(request, acknowledged, unless).await {
                    Ok(attempt) => Some(attempt),
                    Err(ending) => return ending,
                },
                None => None,
            };
            let call = Call::new(&self);
            let verdict = transaction::within(Arc::clone(&call), handler).await;
            let Verdict::Done(reply) = verdict else {
                return verdict.into(); // nothing took effect: what was committed in the call is dropped with it
            };
            match self.finish(attempt, &reply, call.take()) {
                Ok(stable) => Ending { verdict: Verdict::Done(reply), stable },
                Err(verdict) => verdict.into(),
            }
        })
    }

    fn flush(self: Arc<Self>) {
        self.pump(&mut self.lock());
    }

    fn durable(self: Arc<Self>, count: u64) -> Boxed<Option<u64>> {
        Box::pin(async move { self.stable(count).await.ok() })
    }
}

impl<S: State> Store<S> {
    /// Waits until it is known what is to be done with a request; `Err` with how it ends if not executed.
    async fn first(
        self: &Arc<Self>,
        request: Request,
        acknowledged: u64,
        unless: Option<Refusal>,
    ) -> Result<Attempt<S>, Ending> {
        loop {
            if let Some(decided) = self.decide(request, acknowledged, unless) {
                return decided;
            }
            // A copy that came in another session while the first one executes.
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            // Once more, so that an end between the look and this is not missed.
            if let Some(decided) = self.decide(request, acknowledged, unless) {
                return decided;
            }
            ended.await;
        }
    }

    /// `None` while it executes already.
    fn decide(
        self: &Arc<Self>,
        request: Request,
        acknowledged: u64,
        unless: Option<Refusal>,
    ) -> Option<Result<Attempt<S>, Ending>> {
        Some(Err(match self.look_up(request, acknowledged, unless) {
            Begun::Execute => return Some(Ok(Attempt { store: Arc::clone(self), request, open: true })),
            Begun::Running => return None,
            Begun::Recorded { reply, stable } => Ending { verdict: Verdict::Done(reply), stable },
            Begun::Refused(refusal) => Verdict::Refused(refusal).into(),
            Begun::Forgotten => Verdict::Doubtful(Doubt::RecordForgotten).into(),
            Begun::Stale => Verdict::Doubtful(Doubt::Abandoned).into(),
        }))
    }
}

/// A request that executes. Dropped before its end, nothing came of it, and a copy may be executed.
pub(super) struct Attempt<S: State> {
    store: Arc<Store<S>>,
    request: Request,
    open: bool,
}

impl<S: State> Attempt<S> {
    /// It has taken effect, or cannot.
    pub(super) fn close(mut self) -> Request {
        self.open = false;
        self.request
    }
}

impl<S: State> Drop for Attempt<S> {
    fn drop(&mut self) {
        if self.open {
            self.store.abandon(self.request);
        }
    }
}
