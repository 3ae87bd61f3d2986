//! Deferred synchronous calls: the request leaves now, the result is collected later or given to a callback.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::call::Call;
use super::calls::Core;
use super::error::CallError;
use super::here::Task;
use super::port;

/// A call whose request has left: a future of its result. What a generated client's `x_start` methods return.
///
/// Dropping it cancels the call, here and on the server; the deadline runs from the start. A call that could not be
/// begun tells why when it is awaited.
#[must_use = "dropping it cancels the call"]
pub struct Deferred<T, E = CallError>(Way<T, E>);

type Read<T, E> = fn(Bytes) -> Result<T, E>;

enum Way<T, E> {
    Messages {
        call: Box<Call<Arc<Core>>>,
        read: Read<T, E>,
    },
    /// A service of the same node, in a task of its own.
    Here {
        task: Task<Result<T, E>>,
    },
    Ended(Option<Result<T, E>>),
}

impl<T, E: From<CallError>> Deferred<T, E> {
    pub(super) fn by_messages(call: Call<Arc<Core>>, read: Read<T, E>) -> Self {
        Self(Way::Messages { call: Box::new(call), read })
    }

    pub(super) fn failed(error: CallError) -> Self {
        Self(Way::Ended(Some(Err(error.into()))))
    }

    pub(super) fn here(call: impl Future<Output = Result<T, E>> + Send + 'static) -> Self
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        // Most handlers need not wait: then there is nothing to defer.
        let mut call = Box::pin(call);
        match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Self(Way::Ended(Some(result))),
            Poll::Pending => Self(Way::Here { task: Task(tokio::spawn(call)) }),
        }
    }

    /// Gives the result to `callback` when it comes, in a task of its own. The call can no longer be cancelled, and ends
    /// at its deadline at the latest.
    ///
    /// Must be called within a tokio runtime.
    pub fn then(self, callback: impl FnOnce(Result<T, E>) + Send + 'static)
    where
        T: Send + Unpin + 'static,
        E: Send + Unpin + 'static,
    {
        tokio::spawn(async move { callback(self.await) });
    }
}

impl<T: Unpin, E: From<CallError> + Unpin> Future for Deferred<T, E> {
    type Output = Result<T, E>;

    /// # Panics
    /// Never; polled again after the result it waits for ever.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Way::Messages { call, read } => {
                let Poll::Ready(reply) = Pin::new(&mut *call).poll(cx) else { return Poll::Pending };
                let reply = reply?;
                Poll::Ready(if call.method.has_port() {
                    port::through(call.core.link(), || read(reply)).0
                } else {
                    read(reply)
                })
            }
            Way::Here { task } => Pin::new(&mut task.0).poll(cx).map(|ended| {
                // It is aborted only by the end of the runtime; a panic of the handler is caught before.
                ended.unwrap_or_else(|_| Err(CallError::NodeShutDown.into()))
            }),
            Way::Ended(result) => result.take().map_or(Poll::Pending, Poll::Ready),
        }
    }
}
