//! Requests in the service's own code: begun, polled where they arrived, given a task when they wait.
//!
//! Guarantee   a handler that panics or is abandoned gives a typed doubt, never a silence.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quorate_protocols::Time;
use quorate_protocols::rpc::{Doubt, Execution, Refusal, Verdict};
use quorate_transports::Credentials;

use super::context::{Caller, Limit, Within};
use super::envelope::{self, Compression, Opened};
use super::exactly_once::{Ending, Task};
use super::generated::{self, Boxed, Dispatched, Matched};
use super::objects;
use super::port::{self, Link};
use super::post;
use super::schema::Semantics;
use super::server::Core;
use super::trace;
use crate::node;

/// One request that the machine wants executed.
pub(super) struct Order {
    pub(super) execution: Execution,
    pub(super) method: u32,
    pub(super) signature: u32,
    pub(super) deadline: Time,
    pub(super) body: Bytes,
    pub(super) acknowledged: u64,
    pub(super) unless: Option<Refusal>,
}

impl Core {
    /// Begins every order; those that are done at once are answered together, and their records written together. All came
    /// over one connection, for whose other end its medium vouches so.
    pub(super) fn execute(self: &Arc<Self>, orders: &mut Vec<Order>, credentials: Option<&Arc<Credentials>>) {
        let mut done = Vec::with_capacity(orders.len());
        for order in orders.drain(..) {
            let execution = order.execution;
            let deadline = order.deadline;
            let mut handler = match self.begin(order, credentials) {
                Ok(handler) => handler,
                Err(verdict) => {
                    done.push((execution, verdict.into()));
                    continue;
                }
            };
            // Most handlers need not wait: they are done here and never become a task.
            match self.poll(execution, &mut handler, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(ending) => done.push((execution, ending)),
                Poll::Pending => self.spawn(execution, deadline, handler),
            }
        }
        self.end(done);
    }

    fn begin(
        self: &Arc<Self>,
        order: Order,
        credentials: Option<&Arc<Credentials>>,
    ) -> Result<Handler, Verdict> {
        let (request, acknowledged) = (order.execution.request(), order.acknowledged);
        match (self.dispatch(order, credentials), request, &self.keeper) {
            // What this life does not understand may have taken effect in an earlier one, which did.
            (Err(Verdict::Refused(refusal)), Some(request), Some(keeper)) => {
                let refused = Box::pin(std::future::ready(Verdict::Refused(refusal)));
                let task =
                    Task { request: Some(request), acknowledged, unless: Some(refusal), handler: refused };
                let running = Running::Asked(Arc::clone(keeper).execute(task));
                Ok(Handler { method: "refused", compression: Compression::Off, running })
            }
            (begun, ..) => begun,
        }
    }

    fn dispatch(
        self: &Arc<Self>,
        order: Order,
        credentials: Option<&Arc<Credentials>>,
    ) -> Result<Handler, Verdict> {
        let Order { execution, method, signature, deadline, body, acknowledged, unless } = order;
        let opened = envelope::open_request(body, self.node.message_bytes_max());
        let Opened { head, arguments: body, takes_lz4 } = opened.map_err(Verdict::Refused)?;
        let Some(schema) = self.service.schema().method(method) else {
            return Err(Verdict::Refused(Refusal::NoSuchMethod));
        };
        let matched = generated::match_signature(schema, signature, body).map_err(Verdict::Refused)?;
        let Matched { required: body, added, promised } = matched;
        // Users' `Deserialize` and the body of a handler up to its first await run in here.
        let link: Option<Arc<dyn Link>> = schema.has_port().then(|| self.link(execution));
        let dispatch = || match &link {
            Some(link) => port::through(Arc::clone(link), || self.service.dispatch(method, body, added)).0,
            None => self.service.dispatch(method, body, added),
        };
        match catch_unwind(AssertUnwindSafe(dispatch)) {
            Ok(Dispatched::Running(future)) => {
                let is_kept = execution.seat != 0 || schema.semantics == Semantics::ExactlyOnce;
                // The answer is encoded in there, and may hold streams and references.
                let future = match &self.keeper {
                    Some(keeper) if is_kept => {
                        let request = execution.request();
                        let task = Task { request, acknowledged, unless, handler: future };
                        Work::Kept(through(link, Arc::clone(keeper).execute(task)))
                    }
                    _ => {
                        let future = objects::keeping(&self.node, execution.from, promised, future);
                        Work::Plain(through(link, future))
                    }
                };
                let from = node::identity_of(execution.from);
                let limit = match execution.one_way {
                    true => Limit::None,
                    false => Limit::At(post::instant_of(self.epoch, deadline)),
                };
                let theirs = head.trace;
                let caller = Caller::new(from, limit, credentials.cloned(), head);
                let span = trace::serve_span(&self.name, schema.name, from, &caller.trace(), &theirs);
                let compression = if takes_lz4 { self.compression } else { Compression::Off };
                let floor = &self.desk.floor;
                let running = match future {
                    Work::Plain(future) => Running::Plain(floor.arrange(Within::new(caller, span, future))),
                    Work::Kept(future) => Running::Kept(floor.arrange(Within::new(caller, span, future))),
                };
                Ok(Handler { method: schema.name, compression, running })
            }
            Ok(Dispatched::Refused(refusal)) => Err(Verdict::Refused(refusal)),
            Err(_) => Err(self.panicked(execution, schema.name)),
        }
    }

    /// Polls a handler; its panic becomes a verdict.
    fn poll(&self, execution: Execution, handler: &mut Handler, cx: &mut Context<'_>) -> Poll<Ending> {
        // The handler is dropped after a panic and never polled again: nothing half-changed of it is seen. The
        // service itself is shared by design and guards its own state, as with any panic in any task.
        let polled = catch_unwind(AssertUnwindSafe(|| match &mut handler.running {
            Running::Plain(running) => Pin::new(running).poll(cx).map(Ending::from),
            Running::Kept(running) => Pin::new(running).poll(cx),
            Running::Asked(running) => running.as_mut().poll(cx),
        }));
        match polled {
            Ok(Poll::Ready(Ending { verdict: Verdict::Done(answer), stable })) => {
                let verdict = Verdict::Done(envelope::pack_answer(answer, handler.compression));
                Poll::Ready(Ending { verdict, stable })
            }
            Ok(other) => other,
            Err(_) => Poll::Ready(self.panicked(execution, handler.method).into()),
        }
    }

    fn panicked(&self, execution: Execution, method: &'static str) -> Verdict {
        self.lock().totals.panicked += 1;
        tracing::error!(service = self.name, method, peer = %execution.from, "the handler panicked");
        Verdict::Doubtful(Doubt::HandlerFailed)
    }

    fn spawn(self: &Arc<Self>, execution: Execution, deadline: Time, mut handler: Handler) {
        let core = Arc::clone(self);
        let until = post::instant_of(self.epoch, deadline);
        let mut state = self.lock();
        state.totals.spawned += 1;
        if self.desk.is_over() || !state.machine.is_executing(&execution) {
            return; // cancelled, or served no more, while it was polled: dropping the handler is all
        }
        // Under the lock, so that the task cannot end before it is noted.
        let task = tokio::spawn(async move {
            let run = std::future::poll_fn(|cx| core.poll(execution, &mut handler, cx));
            // A one-way request has nobody who gives up on it.
            let ending = if execution.one_way {
                run.await
            } else {
                let ended = tokio::time::timeout_at(until, run).await;
                ended.unwrap_or(Verdict::Doubtful(Doubt::Abandoned).into())
            };
            core.lock().running.remove(&execution);
            core.end([(execution, ending)]);
        });
        state.running.insert(execution, task.abort_handle());
    }
}

/// A request in the service's code.
struct Handler {
    method: &'static str,
    /// Of the answer.
    compression: Compression,
    running: Running,
}

enum Work {
    Plain(Boxed<Verdict>),
    Kept(Boxed<Ending>),
}

enum Running {
    Plain(Within<Verdict>),
    /// With a record of what it did.
    Kept(Within<Ending>),
    /// Refused, unless there is a record of it.
    Asked(Boxed<Ending>),
}

/// Polls a handler where its streams and references find their way, if it can have any.
fn through<T: Send + 'static>(link: Option<Arc<dyn Link>>, mut future: Boxed<T>) -> Boxed<T> {
    let Some(link) = link else { return future };
    Box::pin(std::future::poll_fn(move |cx| port::through(Arc::clone(&link), || future.as_mut().poll(cx)).0))
}
