//! Calls ahead of a result: a reference that a call will return is called before it has come.
//!
//! Guarantee   the calls leave at once and are executed where the reference is made: a chain of them takes one round trip,
//!             however long it is. None is executed when the call that should have made its object fails; its caller is
//!             told which one that was.
//! Method      the caller gives the result a number and addresses its further calls to that number; the server keeps what
//!             it has made under the number (see [`pledges`](super::pledges)) until the caller has the reference itself.
//! Source      Liskov & Shrira 1988 (promises); Miller's E and Cap'n Proto (promise pipelining).
//! Limits      the reference must be to an object of the node that answers: calls of others wait until it has come.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use quorate_protocols::ProcessId;
use quorate_protocols::rpc::Refusal;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::super::call::Call;
use super::super::client::Client;
use super::super::error::{CallError, EarlierFailure, NotSent};
use super::super::generated::Encoded;
use super::super::port;
use super::super::schema::MethodSchema;
use super::{Home, Remote, Stub, Target};
use crate::codec::Codec;

/// The reference that a call will return: it can be called now, and awaited.
///
/// Its methods are those of the reference. What is called ahead travels at once. When the earlier call fails, it fails with
/// [`CallError::EarlierFailed`]. Awaiting gives the reference itself, or what the earlier call failed with. Dropping it
/// cancels the earlier call, unless calls that were made ahead go on: it ends with the last of them.
#[must_use = "dropping it cancels the call"]
pub struct Promised<K, E = CallError> {
    stub: K,
    result: oneshot::Receiver<Result<Remote<K>, E>>,
}

impl<K, E> Promised<K, E> {
    pub(in crate::rpc) const fn new(stub: K, result: oneshot::Receiver<Result<Remote<K>, E>>) -> Self {
        Self { stub, result }
    }
}

impl<K, E> Deref for Promised<K, E> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.stub
    }
}

impl<K, E> Unpin for Promised<K, E> {}

impl<K: Stub, E: From<CallError>> Future for Promised<K, E> {
    type Output = Result<Remote<K>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The task that would tell ends early only with its runtime.
        let gone = || Err(CallError::NodeShutDown.into());
        Pin::new(&mut self.result).poll(cx).map(|result| result.unwrap_or_else(|_| gone()))
    }
}

/// An error of a call that returns a reference, as those see it who called ahead.
pub trait Failed: From<CallError> {
    /// What they are told.
    fn failure(&self) -> EarlierFailure;
}

/// What generated code calls.
#[doc(hidden)]
impl<C: Codec> Client<C> {
    /// Begins a call whose result can be called ahead. `service` is the trait.
    pub fn promise<K: Stub, E: Failed + Send + 'static>(
        &self,
        service: &'static str,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
        read: fn(Bytes) -> Result<Remote<K>, E>,
    ) -> Promised<K, E> {
        let home = Home::of(&self.core.node);
        let server = self.core.lock().machine.bound_to().unwrap_or(self.core.peer());
        let number = home.as_ref().map_or(0, |home| home.number());
        // Its answer comes over this binding, and what is called ahead goes over that of the objects.
        let objects = home.as_ref().and_then(|home| home.core(self.core.server));
        let is_open = objects.is_some();
        let position = self.promised().map_or(1, |parent| parent.position + 1);
        let promise = Promise::new(home, server, number, position);
        let outcome = promise.outcome();
        let request = match is_open {
            true => encoded.and_then(|encoded| self.request_for(method, encoded, Some(number))),
            false => Err(CallError::NotSent(NotSent::NoObjects)),
        };
        let call = request.map(|request| Call::begin(Arc::clone(&self.core), request, None));
        let (tell, result) = oneshot::channel();
        let this = self.clone();
        let task = tokio::spawn(async move {
            let answer = match call {
                Ok(call) => match this.promised() {
                    None => call.await,
                    Some(promise) => promise.settle(call).await,
                },
                Err(error) => Err(error),
            };
            let result = match answer {
                Ok(answer) => port::through(this.core.link(), || read(answer)).0,
                Err(error) => Err(error.into()),
            };
            outcome.tell(match &result {
                Ok(made) => made.client().target().cloned().ok_or(CallError::NodeShutDown),
                Err(error) => Err(match error.failure() {
                    EarlierFailure::Call(error) if matches!(*error, CallError::EarlierFailed { .. }) => {
                        *error
                    }
                    why => CallError::EarlierFailed { service, method: method.name, position, why },
                }),
            });
            // Nobody may wait for it.
            let _ = tell.send(result);
        });
        promise.owns(task.abort_handle());
        let core = objects.unwrap_or_else(|| Arc::clone(&self.core));
        let target = Arc::new(Target::Promise(promise));
        Promised::new(K::by(Client::of_object(core, None, target)), result)
    }
}

/// What is called ahead of the call that makes it.
pub(in crate::rpc) struct Promise {
    /// `None` when the node has not opened its objects: then the call fails.
    pub(super) home: Option<Arc<Home>>,
    /// Who makes it; its incarnation is [`ProcessId::ANY_LIFE`] when that is not known yet.
    pub(super) server: ProcessId,
    pub(super) number: u64,
    /// Its place in a chain of calls that were made ahead of each other, from 1.
    pub(in crate::rpc) position: u32,
    outcome: Arc<Outcome>,
    task: OnceLock<AbortHandle>,
}

impl Promise {
    pub(in crate::rpc) fn new(
        home: Option<Arc<Home>>,
        server: ProcessId,
        number: u64,
        position: u32,
    ) -> Self {
        Self { home, server, number, position, outcome: Arc::default(), task: OnceLock::new() }
    }

    pub(in crate::rpc) fn outcome(&self) -> Arc<Outcome> {
        Arc::clone(&self.outcome)
    }

    /// The task that makes the call ends with this.
    pub(in crate::rpc) fn owns(&self, task: AbortHandle) {
        // Made once.
        let _ = self.task.set(task);
    }

    /// What has become of it: `None` when that is not known yet.
    pub(in crate::rpc) fn known(&self) -> Option<&Result<Arc<Target>, CallError>> {
        self.outcome.known.get()
    }

    /// Waits for the answer of a call that was made ahead, and says which earlier one is to blame.
    pub(in crate::rpc) async fn settle(
        &self,
        call: impl Future<Output = Result<Bytes, CallError>>,
    ) -> Result<Bytes, CallError> {
        let mut call = std::pin::pin!(call);
        let certain = async {
            loop {
                match self.outcome.wait().await {
                    Err(error) if error.is_final_for_others() => return error.clone(),
                    // The server knows better whether it has been made.
                    _ => std::future::pending::<()>().await,
                }
            }
        };
        let answer = tokio::select! {
            biased;
            answer = &mut call => answer,
            error = certain => Err(error),
        };
        match answer {
            Err(CallError::NotExecuted(Refusal::EarlierFailed)) => match self.outcome.wait().await {
                Err(error) => Err(error.clone()),
                Ok(_) => answer,
            },
            answer => answer,
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        if let Some(home) = &self.home {
            home.forget(self.server, self.number);
        }
    }
}

/// What has become of the call that makes the object, for all who called ahead.
#[derive(Default)]
pub(in crate::rpc) struct Outcome {
    known: OnceLock<Result<Arc<Target>, CallError>>,
    told: Notify,
}

impl Outcome {
    pub(in crate::rpc) fn tell(&self, outcome: Result<Arc<Target>, CallError>) {
        // Told once.
        let _ = self.known.set(outcome);
        self.told.notify_waiters();
    }

    async fn wait(&self) -> &Result<Arc<Target>, CallError> {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            if let Some(known) = self.known.get() {
                return known;
            }
            told.await;
        }
    }
}
