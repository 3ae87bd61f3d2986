//! For whom a handler runs, how long it is waited for, and what its own calls inherit.
//!
//! Method      a thread-local place that is filled while a handler is polled. Calls that the handler makes look there:
//!             their deadlines never exceed what is left of its own, they belong to its trace, and what is said to
//!             propagate goes on with them.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quorate_transports::Credentials;
use tokio::time::Instant;

use super::envelope::Head;
use super::generated::Boxed;
use super::metadata::{Metadata, MetadataError};
use super::post;
use super::trace::{Numbers, Seen, TraceContext};
use crate::node::Identity;

/// For whom a handler runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The node that called, in its life. Anybody can claim to be any node; see [`credentials`](Self::credentials).
    pub node: Identity,
    deadline: Limit,
    /// Shared: the whole is moved with every call, and few media vouch for anybody.
    credentials: Option<Arc<Credentials>>,
    metadata: Option<Arc<Metadata>>,
    trace: TraceContext,
}

/// How long the caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// It does not wait at all.
    None,
    At(Instant),
    /// So long from the first look on: a handler that never looks costs no look at the clock.
    In(Duration),
}

impl Caller {
    /// `head` is what the caller said; the handler's span becomes a child of the caller's.
    pub(super) fn new(
        node: Identity,
        deadline: Limit,
        credentials: Option<Arc<Credentials>>,
        head: Head,
    ) -> Self {
        let Head { trace, metadata } = head;
        Self { node, deadline, credentials, metadata, trace: trace.served() }
    }

    /// When the caller gives up; `None` when it does not wait, as with one-way methods.
    pub fn deadline(&self) -> Option<Instant> {
        match self.deadline {
            Limit::None => None,
            Limit::At(moment) => Some(moment),
            Limit::In(left) => Some(Instant::now() + left.min(post::FAR)),
        }
    }

    /// What the medium of the very connection that the request came over vouches for: the process on a local socket, the
    /// certificate of TLS and QUIC. `None` when it vouches for nothing, and for calls within one node: the caller is this
    /// process then.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_deref()
    }

    /// What the caller says of the call.
    pub fn metadata(&self) -> &Metadata {
        static NONE: Metadata = Metadata::new();
        self.metadata.as_deref().unwrap_or(&NONE)
    }

    /// The handler's own span: a child of the caller's, and the parent of the calls that the handler makes.
    pub const fn trace(&self) -> TraceContext {
        self.trace
    }

    /// From now on the deadline is a moment.
    pub(super) fn settle(&mut self) {
        if let (Limit::In(_), Some(deadline)) = (self.deadline, self.deadline()) {
            self.deadline = Limit::At(deadline);
        }
    }
}

/// For whom the handler runs that asks; `None` outside of a handler. A task that the handler spawns is outside.
///
/// Calls that a handler makes need not look: a call's deadline is never later than that of the handler that makes it.
pub fn caller() -> Option<Caller> {
    CALLER.with_borrow_mut(|caller| {
        let caller = caller.as_mut()?;
        caller.settle();
        Some(caller.clone())
    })
}

/// A handler, together with whom it runs for, wherever it is polled.
pub(super) struct Within<T> {
    caller: Option<Caller>,
    span: Seen,
    handler: Boxed<T>,
}

impl<T> Within<T> {
    pub(super) const fn new(caller: Caller, span: Seen, handler: Boxed<T>) -> Self {
        Self { caller: Some(caller), span, handler }
    }

    /// What runs for nobody in particular.
    pub(super) fn nobody(handler: Boxed<T>) -> Self {
        Self { caller: None, span: Seen::default(), handler }
    }

    /// It will be polled more than once: its deadline must not move any more.
    pub(super) fn settle(&mut self) {
        self.caller.iter_mut().for_each(Caller::settle);
    }
}

impl<T> Future for Within<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Self { caller, span, handler } = &mut *self;
        let _in_span = span.enter();
        during(caller, || handler.as_mut().poll(cx))
    }
}

/// Runs `poll` for this caller.
fn during<R>(caller: &mut Option<Caller>, poll: impl FnOnce() -> R) -> R {
    /// Puts back what was there, also when a handler panics.
    struct Restore<'a>(&'a mut Option<Caller>);
    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            exchange(self.0);
        }
    }
    exchange(caller);
    let _restore = Restore(caller);
    poll()
}

fn exchange(caller: &mut Option<Caller>) {
    CALLER.with_borrow_mut(|place| std::mem::swap(place, caller));
}

/// What a handler leaves to the calls that it makes.
pub(super) fn time_left() -> Option<Duration> {
    CALLER.with_borrow_mut(|caller| {
        let caller = caller.as_mut()?;
        caller.settle();
        caller.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    })
}

/// What a call says beside its arguments: what its maker says, and what the handler that makes it was told to pass on.
///
/// # Errors
/// [`MetadataError`] when both together are too much.
pub(super) fn head(own: Option<&Arc<Metadata>>, numbers: &Numbers) -> Result<Head, MetadataError> {
    CALLER.with_borrow(|caller| {
        let inherited = caller.as_ref().and_then(|caller| caller.metadata.as_ref()?.propagating());
        let metadata = match (own, inherited) {
            (own, None) => own.cloned(),
            (None, Some(inherited)) => Some(Arc::new(inherited)),
            (Some(own), Some(inherited)) => Some(Arc::new(own.over(inherited)?)),
        };
        let parent = own.and_then(|own| own.trace()).or_else(|| caller.as_ref().map(Caller::trace));
        let trace = numbers.span(parent);
        // Only a trace was said: nothing travels beside it.
        Ok(Head { trace, metadata: metadata.filter(|metadata| !metadata.is_empty()) })
    })
}

thread_local! {
    static CALLER: RefCell<Option<Caller>> = const { RefCell::new(None) };
}
