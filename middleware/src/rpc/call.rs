//! One call, as a future.
//!
//! Guarantee   the request leaves once, when the call is begun; the call ends once; dropping it before that cancels it.
//! Method      what only some calls need stands apart: thousands of them may wait, and what is small stays in the nearest
//!             memory.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::Input;
use quorate_protocols::rpc::{CallId, ClientCommand, Outcome, Refusal};

use super::calls::{Core, Waiter};
use super::envelope;
use super::error::{CallError, NotSent};
use super::objects::Target;
use super::port::Travelled;
use super::schema::{MethodSchema, Semantics};
use super::trace::Seen;
use crate::codec::DecodeError;

/// A call that is to be made.
pub(super) struct Request {
    pub(super) method: &'static MethodSchema,
    pub(super) semantics: Semantics,
    pub(super) body: Bytes,
    /// Of the method, with the marks of what its arguments are.
    pub(super) signature: u32,
    /// What goes along with it.
    pub(super) travelled: Option<Box<Travelled>>,
    pub(super) deadline: Duration,
    /// The method that carries it, when it is for an object.
    pub(super) carrier: Option<&'static MethodSchema>,
    /// From the making of the call to its end, repetitions included.
    pub(super) span: Seen,
}

impl Request {
    /// The same once more, of a request that nothing goes along with.
    pub(super) fn again(&self, deadline: Duration) -> Self {
        Self { body: self.body.clone(), travelled: None, deadline, span: self.span.clone(), ..*self }
    }
}

/// One call that has begun; dropping it cancels it, here and on the server.
pub(super) struct Call<K: Deref<Target = Core>> {
    pub(super) core: K,
    pub(super) method: &'static MethodSchema,
    deadline: Duration,
    /// Streams end with the call, unless it succeeds; references stay when it may have arrived.
    travelled: Option<Box<Travelled>>,
    progress: Progress,
    span: Seen,
}

enum Progress {
    Going {
        token: u32,
        call: CallId,
    },
    /// Ended before anybody asked: nothing is waited for, or why it could not begin.
    Ended(Result<(), Box<CallError>>),
    Over,
}

pub(super) enum Started {
    Going {
        token: u32,
        call: CallId,
    },
    /// It is one-way.
    Sent,
}

impl<K: Deref<Target = Core>> Call<K> {
    /// Sends the request without waiting for anything. Whoever polls soon need not leave a waker.
    pub(super) fn begin(core: K, mut request: Request, waker: Option<Waker>) -> Self {
        let (method, deadline) = (request.method, request.deadline);
        let travelled = request.travelled.take();
        let span = std::mem::take(&mut request.span);
        let progress = match core.start(request, waker) {
            Ok(Started::Going { token, call }) => Progress::Going { token, call },
            Ok(Started::Sent) => Progress::Ended(Ok(())),
            Err(error) => Progress::Ended(Err(Box::new(error))),
        };
        Self { core, method, deadline, travelled, progress, span }
    }

    /// Whether an answer is waited for.
    pub(super) const fn is_going(&self) -> bool {
        matches!(self.progress, Progress::Going { .. })
    }

    fn ended(&mut self, result: Result<Bytes, CallError>) -> Result<Bytes, CallError> {
        match &result {
            Ok(_) => self.travelled = None,
            Err(error) => {
                self.span.failed(error);
                if error.is_not_executed() {
                    self.recall();
                }
            }
        }
        if matches!(result, Err(CallError::NotExecuted(Refusal::EarlierFailed)))
            && let Some(Target::Promise(promise)) = self.object()
            && let Some(Err(error)) = promise.known()
        {
            return Err(error.clone());
        }
        result
    }

    fn object(&self) -> Option<&Target> {
        self.travelled.as_ref()?.object.as_deref()
    }

    /// The references of a request that has not been read are not on their way any more.
    fn recall(&mut self) {
        if let Some(travelled) = &mut self.travelled {
            travelled.recall(&self.core.node);
        }
    }
}

impl<K: Deref<Target = Core> + Unpin> Future for Call<K> {
    type Output = Result<Bytes, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.progress, Progress::Over) {
            Progress::Going { token, call } => {
                let mut state = self.core.lock();
                if let Some(outcome) = state.take_outcome(token) {
                    drop(state);
                    let result = self.core.read(outcome, self.deadline);
                    return Poll::Ready(self.ended(result));
                }
                if let Waiter::Calling(known) = &mut state.waiters[token as usize] {
                    match known {
                        Some(known) => known.clone_from(cx.waker()),
                        None => *known = Some(cx.waker().clone()),
                    }
                }
                drop(state);
                self.progress = Progress::Going { token, call };
                Poll::Pending
            }
            Progress::Ended(result) => {
                Poll::Ready(self.ended(result.map(|()| Bytes::new()).map_err(|error| *error)))
            }
            // Polled after it was ready: a caller's mistake that must not end in a panic.
            Progress::Over => Poll::Pending,
        }
    }
}

impl<K: Deref<Target = Core>> Drop for Call<K> {
    fn drop(&mut self) {
        if let Some(streams) = self.travelled.take().map(|travelled| travelled.streams)
            && !streams.is_empty()
        {
            self.core.streams.break_off(|_, stream| streams.contains(&stream));
        }
        let Progress::Going { token, call } = self.progress else { return };
        let mut state = self.core.lock();
        if matches!(state.forget(token), Waiter::Calling(_)) {
            let mut wakers = Vec::new();
            self.core.step(&mut state, Input::Command(ClientCommand::Cancel(call)), &mut wakers);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Core {
    /// What the caller is told of an outcome.
    pub(super) fn read(&self, outcome: Outcome, deadline: Duration) -> Result<Bytes, CallError> {
        match outcome {
            Outcome::Replied(answer) => {
                let opened = envelope::open_answer(answer, self.node.message_bytes_max());
                opened.map_err(|reason| CallError::BadReply(DecodeError::of_answer(reason)))
            }
            Outcome::TooManyCalls { limit } => Err(CallError::NotSent(NotSent::TooManyCalls { limit })),
            Outcome::NotExecuted(refusal) => Err(CallError::NotExecuted(refusal)),
            Outcome::MaybeExecuted(doubt) => Err(CallError::MaybeExecuted(doubt)),
            Outcome::DeadlinePassed { sent } => Err(CallError::DeadlinePassed { deadline, sent }),
            Outcome::Closed { sent: true } => Err(CallError::NodeShutDown),
            Outcome::Closed { sent: false } => Err(CallError::NotSent(NotSent::NodeShutDown)),
        }
    }
}
