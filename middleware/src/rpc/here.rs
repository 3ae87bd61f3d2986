//! Calls of a service that the caller's own node serves: no message, no encoding, the caller's own task.
//!
//! Guarantee   the same limits, deadlines, cancellation and outcomes as with messages. A handler runs where its caller
//!             runs and moves on when the caller does; dropping the call drops it. Calls may stand within calls as deep
//!             as `executing_max` lets them: every `DEPTH_MAX`th gets a task of its own.
//! Method      the first poll is the handler's. Only when it has to wait, the deadline and the end of the service are
//!             waited for too, so that a handler that does not wait costs neither a timer nor a look at the clock.
//! End         when the service is served no more, or its node stops, calls go by messages, which know what to do then.
//! Limits      `executing_max` of the service, counted apart from calls that come by messages.

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quorate_protocols::rpc::{Doubt, Refusal};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, coop};

use super::context::{Caller, Limit, Within};
use super::envelope::Head;
use super::error::CallError;
use super::generated::{AnyService, Boxed};
use super::manner::Floor;
use super::server::ServeOptions;
use super::trace::{self, Seen};
use crate::node::Identity;

/// What a service lets callers of the same node see of it.
pub(super) struct Desk {
    name: String,
    /// Where the handlers run, also of calls that come by messages.
    pub(super) floor: Floor,
    executing_max: u32,
    executing: AtomicU32,
    executed: AtomicU64,
    panicked: AtomicU64,
    is_draining: AtomicBool,
    is_over: AtomicBool,
    /// Told when it is over.
    over: Notify,
    /// Changes when the node begins to stop.
    stopping: watch::Receiver<bool>,
    /// Told when nothing executes and the desk is draining.
    idle: Notify,
}

impl Desk {
    pub(super) fn new(name: &str, options: &ServeOptions, stopping: watch::Receiver<bool>) -> Self {
        let is_over = *stopping.borrow();
        Self {
            name: name.to_owned(),
            floor: Floor::new(options.manner),
            executing_max: options.executing_max,
            executing: AtomicU32::new(0),
            executed: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            is_over: AtomicBool::new(is_over),
            over: Notify::new(),
            stopping,
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
        // Whether it has changed is known without a lock; what to is known anyway.
        !self.is_over() && matches!(self.stopping.has_changed(), Ok(false))
    }

    /// True when the service is served no more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
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

    /// Waits for the end of the service or of its node; tells what that makes of a call.
    async fn wait_over(&self) -> CallError {
        let mut over = std::pin::pin!(self.over.notified());
        over.as_mut().enable();
        let mut stopping = self.stopping.clone();
        if !self.is_over() {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|is_stopping| *is_stopping) => return CallError::NodeShutDown,
                () = over => {}
            }
        }
        CallError::MaybeExecuted(Doubt::SessionLost)
    }
}

/// A service as its own node finds it: the desk, and what the generated client takes for the service. Knows the service
/// weakly: a client must not keep alive what is served no more.
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
    handler: Option<Within<T>>,
    is_begun: bool,
    method: &'static str,
    deadline: Option<Duration>,
    patience: Option<Boxed<CallError>>,
    admitted: Admitted,
    /// The caller's own; the handler has one within it.
    span: Seen,
}

impl<T: Send + 'static> HereCall<T> {
    /// `deadline` is `None` when nobody waits for the result; `handler` gives `None` when the service has just gone.
    pub(super) fn begin(
        desk: &Arc<Desk>,
        node: Identity,
        method: &'static str,
        deadline: Option<Duration>,
        head: Head,
        handler: impl FnOnce() -> Option<Boxed<T>>,
    ) -> Result<Self, CallError> {
        let admitted = desk.admit().map_err(CallError::NotExecuted)?;
        let handler = handler().ok_or(CallError::NotExecuted(Refusal::ShuttingDown))?;
        let (theirs, span) = (head.trace, trace::call_span(&desk.name, method, node.node, &head.trace));
        // The caller is this process: no medium vouches for it.
        let caller = Caller::new(node, deadline.map_or(Limit::None, Limit::In), None, head);
        let serving = {
            let _in_span = span.enter();
            trace::serve_span(&desk.name, method, node, &caller.trace(), &theirs)
        };
        let handler = Some(desk.floor.arrange(Within::new(caller, serving, handler)));
        Ok(Self { handler, is_begun: false, method, deadline, patience: None, admitted, span })
    }

    fn failed(&self, error: CallError) -> Result<T, CallError> {
        self.span.failed(&error);
        Err(error)
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
                error = desk.wait_over() => error,
                error = passed => error,
            }
        })
    }
}

impl<T: Send + 'static> Future for HereCall<T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A caller that calls again and again without ever waiting must let others of its thread live.
        let turn = ready!(coop::poll_proceed(cx));
        let this = &mut *self;
        let Some(handler) = &mut this.handler else { return Poll::Pending };
        let depth = Depth::enter();
        if !std::mem::replace(&mut this.is_begun, true) && depth.0 >= DEPTH_MAX {
            let mut inner = std::mem::replace(handler, Within::nobody(Box::pin(std::future::pending())));
            inner.settle();
            *handler = Within::nobody(in_task(inner));
        }
        // The handler is dropped after a panic and never polled again, as with messages.
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut *handler).poll(cx))) {
            Ok(Poll::Pending) => handler.settle(),
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
                return Poll::Ready(this.failed(CallError::MaybeExecuted(Doubt::HandlerFailed)));
            }
        }
        drop(depth);
        let mut patience = this.patience.take().unwrap_or_else(|| this.patience());
        if let Poll::Ready(error) = patience.as_mut().poll(cx) {
            this.handler = None;
            return Poll::Ready(this.failed(error));
        }
        this.patience = Some(patience);
        Poll::Pending
    }
}

/// Lets a handler run in a task of its own; its panic and its end are the same as without.
fn in_task<T: Send + 'static>(handler: Within<T>) -> Boxed<T> {
    let mut task = Task(tokio::spawn(handler));
    Box::pin(async move {
        match (&mut task.0).await {
            Ok(result) => result,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime ends, and whoever waits here with it.
                Err(_) => std::future::pending().await,
            },
        }
    })
}

/// A task that ends with its handle.
pub(super) struct Task<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How many calls of this thread are being polled within one another, this one not counted.
struct Depth(u32);

impl Depth {
    fn enter() -> Self {
        Self(DEPTH.replace(DEPTH.get() + 1))
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        DEPTH.set(self.0);
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Calls that are polled within one another before one gets a task of its own. A level takes some KiB of a stack of
/// 2 MiB in a debug build, beside what the handlers need, and one of the 128 turns that tokio gives a task at each poll:
/// who needs more to get to the bottom never gets there.
const DEPTH_MAX: u32 = 32;
