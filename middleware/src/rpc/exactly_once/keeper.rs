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

/// A durable state of any type.
pub(in crate::rpc) trait Keeper: Send + Sync {
    /// The seat of a client, once it is durable.
    fn seat(self: Arc<Self>, from: ProcessId, client: u32) -> Boxed<Option<u64>>;

    /// Executes a request unless it took effect before; answers when the answer is durable.
    fn execute(self: Arc<Self>, task: Task) -> Boxed<Verdict>;
}

impl<S: State> Keeper for Store<S> {
    fn seat(self: Arc<Self>, from: ProcessId, client: u32) -> Boxed<Option<u64>> {
        Box::pin(async move {
            let (seat, stable) = self.take_seat(from, client)?;
            self.stable(stable).await.ok().map(|()| seat)
        })
    }

    fn execute(self: Arc<Self>, task: Task) -> Boxed<Verdict> {
        Box::pin(async move {
            let Task { request, acknowledged, unless, handler } = task;
            let attempt = match request {
                Some(request) => match self.first(request, acknowledged, unless).await {
                    Ok(attempt) => Some(attempt),
                    Err(verdict) => return verdict,
                },
                None => None,
            };
            let call = Call::new(&self);
            let verdict = transaction::within(Arc::clone(&call), handler).await;
            let Verdict::Done(reply) = verdict else {
                return verdict; // nothing took effect: what was committed in the call is dropped with it
            };
            match self.finish(attempt, &reply, call.take()) {
                Ok(stable) => self.answer(Verdict::Done(reply), stable).await,
                Err(verdict) => verdict,
            }
        })
    }
}

impl<S: State> Store<S> {
    /// Waits until it is known what is to be done with a request; `Err` with what it is answered if not executed.
    async fn first(
        self: &Arc<Self>,
        request: Request,
        acknowledged: u64,
        unless: Option<Refusal>,
    ) -> Result<Attempt<S>, Verdict> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before the look, so that an end between look and wait is not missed.
            ended.as_mut().enable();
            match self.look_up(request, acknowledged, unless) {
                Begun::Execute => return Ok(Attempt { store: Arc::clone(self), request, open: true }),
                // A copy that came in another session while the first one executes.
                Begun::Running => ended.await,
                Begun::Recorded { reply, stable } => {
                    return Err(self.answer(Verdict::Done(reply), stable).await);
                }
                Begun::Refused(refusal) => return Err(Verdict::Refused(refusal)),
                Begun::Forgotten => return Err(Verdict::Doubtful(Doubt::RecordForgotten)),
                Begun::Stale => return Err(Verdict::Doubtful(Doubt::Abandoned)),
            }
        }
    }

    /// The answer, when it is durable.
    async fn answer(&self, verdict: Verdict, stable: u64) -> Verdict {
        match self.stable(stable).await {
            Ok(()) => verdict,
            Err(_) => Verdict::Doubtful(Doubt::JournalFailed),
        }
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
