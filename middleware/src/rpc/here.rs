//! Calls of a service that the caller's own node serves: no message, no encoding, the caller's own task.
//!
//! Guarantee   the same limits, deadlines, cancellation and outcomes as with messages. A handler runs where its caller
//!             runs and moves on when the caller does; dropping the call drops it.
//! Method      the first poll is the handler's. Only when it has to wait, the deadline and the end of the service are
//!             waited for too, so that a handler that does not wait costs neither a timer nor a look at the clock.
//! Limits      `executing_max` of the service, counted apart from calls that come by messages.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quorate_protocols::rpc::{Doubt, Refusal};
use tokio::sync::Notify;
use tokio::task::coop;

use super::error::CallError;
use super::generated::{AnyService, Boxed};

/// What a service lets callers of the same node see of it.
pub(super) struct Desk {
    name: String,
    executing_max: u32,
    executing: AtomicU32,
    executed: AtomicU64,
    panicked: AtomicU64,
    is_draining: AtomicBool,
    is_over: AtomicBool,
    /// Told when it is over.
    over: Notify,
    /// Told when nothing executes and the desk is draining.
    idle: Notify,
}

impl Desk {
    pub(super) fn new(name: &str, executing_max: u32) -> Self {
        Self {
            name: name.to_owned(),
            executing_max,
            executing: AtomicU32::new(0),
            executed: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            over: Notify::new(),
            idle: Notify::new(),
        }
    }

    /// Lets a call in, or says why not.
    fn admit(self: &Arc<Self>) -> Result<Admitted, Refusal> {
        // Counted first, so that who drains sees everybody who did not see it.
        let admitted = Admitted(Arc::clone(self));
        let before = self.executing.fetch_add(1, Ordering::SeqCst);
        if self.is_draining.load(Ordering::SeqCst) {
            Err(Refusal::ShuttingDown)
        } else if before >= self.executing_max {
            Err(Refusal::Overloaded)
        } else {
            self.executed.fetch_add(1, Ordering::Relaxed);
            Ok(admitted)
        }
    }

    pub(super) fn executing(&self) -> u32 {
        self.executing.load(Ordering::SeqCst)
    }

    pub(super) fn executed(&self) -> u64 {
        self.executed.load(Ordering::Relaxed)
    }

    pub(super) fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::Relaxed)
    }

    /// True when calls may still go this way.
    pub(super) fn is_open(&self) -> bool {
        !self.is_over.load(Ordering::SeqCst)
    }

    /// Takes no more calls.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    /// Waits until nothing executes; only while draining.
    pub(super) async fn wait_idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.executing() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Ends what executes.
    pub(super) fn end(&self) {
        self.drain();
        self.is_over.store(true, Ordering::SeqCst);
        self.over.notify_waiters();
    }

    async fn wait_over(&self) {
        let mut over = std::pin::pin!(self.over.notified());
        over.as_mut().enable();
        if self.is_open() {
            over.await;
        }
    }
}

/// A service as its own node finds it: the desk, and what the generated client takes for the service.
pub(super) struct Local {
    pub(super) desk: Arc<Desk>,
    pub(super) codec: u8,
    pub(super) service: AnyService,
}

/// A place among those who execute.
struct Admitted(Arc<Desk>);

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.0.executing.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.is_draining.load(Ordering::SeqCst) {
            self.0.idle.notify_waiters();
        }
    }
}

/// One call.
pub(super) struct HereCall<T> {
    /// Gone when the call has ended.
    handler: Option<Boxed<T>>,
    method: &'static str,
    deadline: Option<Duration>,
    patience: Option<Boxed<CallError>>,
    admitted: Admitted,
}

impl<T> HereCall<T> {
    /// `deadline` is `None` when nobody waits for the result.
    pub(super) fn begin(
        desk: &Arc<Desk>,
        method: &'static str,
        deadline: Option<Duration>,
        handler: impl FnOnce() -> Boxed<T>,
    ) -> Result<Self, CallError> {
        let admitted = desk.admit().map_err(CallError::NotExecuted)?;
        Ok(Self { handler: Some(handler()), method, deadline, patience: None, admitted })
    }

    fn patience(&self) -> Boxed<CallError> {
        let (desk, deadline) = (Arc::clone(&self.admitted.0), self.deadline);
        Box::pin(async move {
            let passed = async {
                match deadline {
                    Some(deadline) => {
                        tokio::time::sleep(deadline).await;
                        CallError::DeadlinePassed { deadline, sent: true }
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = desk.wait_over() => CallError::MaybeExecuted(Doubt::SessionLost),
                error = passed => error,
            }
        })
    }
}

impl<T> Future for HereCall<T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A caller that calls again and again without ever waiting must let others of its thread live.
        let turn = ready!(coop::poll_proceed(cx));
        let this = &mut *self;
        let Some(handler) = &mut this.handler else { return Poll::Pending };
        // The handler is dropped after a panic and never polled again, as with messages.
        match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(result)) => {
                turn.made_progress();
                this.handler = None;
                return Poll::Ready(Ok(result));
            }
            Err(_) => {
                turn.made_progress();
                this.handler = None;
                let desk = &this.admitted.0;
                desk.panicked.fetch_add(1, Ordering::Relaxed);
                tracing::error!(service = desk.name, method = this.method, "the handler panicked");
                return Poll::Ready(Err(CallError::MaybeExecuted(Doubt::HandlerFailed)));
            }
        }
        let mut patience = this.patience.take().unwrap_or_else(|| this.patience());
        if let Poll::Ready(error) = patience.as_mut().poll(cx) {
            this.handler = None;
            return Poll::Ready(Err(error));
        }
        this.patience = Some(patience);
        Poll::Pending
    }
}
