//! How a client makes calls: what generated code calls, which is not for people.
//!
//! Method      the caller's own task encodes the arguments and begins the call; see [`calls`](super::calls). A service of
//!             the same node is called without messages; see [`here`](super::here).

use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{Call, Request};
use super::calling::{Calling, Sending};
use super::calls::Core;
use super::client::Client;
use super::context;
use super::deferred::Deferred;
use super::envelope::{self, Head};
use super::error::{CallError, NotSent};
use super::generated::{self, Boxed, Encoded};
use super::here::HereCall;
use super::objects::{self, Promise, Target, Wrapped};
use super::retry;
use super::schema::{MethodSchema, Semantics};
#[cfg(feature = "tower")]
use super::tower;
use super::trace::{self, Seen};
use super::{port, post};
use crate::codec::Codec;

/// What generated code calls.
#[doc(hidden)]
impl<C: Codec> Client<C> {
    /// Encodes arguments.
    pub fn encode<A: Serialize>(&self, arguments: &A) -> Result<Encoded, CallError> {
        let head = self.head()?;
        let (body, arguments_at) = generated::encode_behind::<C, A>(|out| head.put(out), arguments)
            .map_err(|error| CallError::NotSent(NotSent::Encode(error)))?;
        Ok(Encoded { body, arguments_at, head, has_added: false, travelled: None })
    }

    /// Encodes arguments that may be streams or references.
    pub fn encode_streaming<A: Serialize>(&self, arguments: &A) -> Result<Encoded, CallError> {
        let (encoded, mut travelled) = port::through(self.core.link(), || self.encode(arguments));
        match encoded {
            Ok(encoded) => Ok(Encoded { travelled: Some(Box::new(travelled)), ..encoded }),
            Err(error) => {
                travelled.recall(&self.core.node);
                Err(error)
            }
        }
    }

    /// Makes a call.
    pub const fn call<R: DeserializeOwned>(
        &self,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
    ) -> Calling<'_, C, R> {
        Calling::of(self.send(method, encoded))
    }

    const fn send(
        &self,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
    ) -> Sending<'_, C> {
        Sending::new(self, method, encoded)
    }

    /// Begins a call for who waits with `waker`.
    pub(super) fn begin(
        &self,
        method: &'static MethodSchema,
        encoded: Encoded,
        waker: &Waker,
    ) -> Result<Begun<'_>, CallError> {
        #[cfg(feature = "tower")]
        if let Some(layers) = &self.layers {
            let call = layers.send(self.layered(method, encoded));
            return Ok(Begun::Aside(match self.promised() {
                None => Box::pin(call),
                Some(promise) => Box::pin(promise.settle(call)),
            }));
        }
        let request = self.request(method, encoded)?;
        if retry::concerns(&self.core, &request) {
            return Ok(Begun::Aside(Box::pin(retry::insist(&*self.core, request))));
        }
        let call = Call::begin(&*self.core, request, Some(waker.clone()));
        Ok(match self.promised() {
            None => Begun::Call(call),
            Some(promise) => Begun::Aside(Box::pin(promise.settle(call))),
        })
    }

    /// Begins a call.
    pub fn start<T, E>(
        &self,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
        read: fn(Bytes) -> Result<T, E>,
    ) -> Deferred<T, E>
    where
        T: Send + 'static,
        E: From<CallError> + Send + 'static,
    {
        match encoded {
            #[cfg(feature = "tower")]
            Ok(encoded) if self.layers.is_some() => {
                let (client, link) = (self.clone(), self.core.link());
                Deferred::here(async move {
                    let reply = client.send(method, Ok(encoded)).await?;
                    if method.has_port() { port::through(link, || read(reply)).0 } else { read(reply) }
                })
            }
            Ok(encoded) => match self.request(method, encoded) {
                Ok(request) => {
                    Deferred::by_messages(Call::begin(Arc::clone(&self.core), request, None), read)
                }
                Err(error) => Deferred::failed(error),
            },
            Err(error) => Deferred::failed(error),
        }
    }

    /// Sends a request that has no answer.
    pub async fn call_one_way(
        &self,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
    ) -> Result<(), CallError> {
        self.send(method, encoded).await.map(drop)
    }

    /// The service itself, when this very node serves one of the type `T`.
    pub fn service_here<T: Clone + 'static>(&self) -> Option<T> {
        self.here.as_ref()?.service.downcast_ref::<T>().cloned()
    }

    /// The same, as long as it is served: whoever serves it later is found by messages.
    pub fn open_here<'a, T: ?Sized>(&self, service: &'a Option<Arc<T>>) -> Option<&'a T> {
        #[cfg(feature = "tower")]
        if self.layers.is_some() {
            return None;
        }
        service.as_deref().filter(|_| self.here.as_ref().is_some_and(|local| local.desk.is_open()))
    }

    /// Makes a call of a service of this node.
    pub async fn call_here<T: Send + 'static>(
        &self,
        method: &'static MethodSchema,
        handler: impl FnOnce() -> Option<Boxed<T>>,
    ) -> Result<T, CallError> {
        self.begin_here(method, Some(self.deadline(method)), handler)?.await
    }

    /// Begins a call of a service of this node.
    pub fn start_here<T, U, E>(
        &self,
        method: &'static MethodSchema,
        handler: impl FnOnce() -> Option<Boxed<T>>,
        read: fn(Result<T, CallError>) -> Result<U, E>,
    ) -> Deferred<U, E>
    where
        T: Send + 'static,
        U: Send + 'static,
        E: From<CallError> + Send + 'static,
    {
        let deadline = Some(self.deadline(method));
        match self.begin_here(method, deadline, handler) {
            Ok(call) => Deferred::here(async move { read(call.await) }),
            Err(error) => Deferred::failed(error),
        }
    }

    /// Gives a service of this node something to do that nobody waits for.
    pub fn tell_here(
        &self,
        method: &'static MethodSchema,
        handler: impl FnOnce() -> Option<Boxed<()>>,
    ) -> Result<(), CallError> {
        tokio::spawn(self.begin_here(method, None, handler)?);
        Ok(())
    }

    fn begin_here<T: Send + 'static>(
        &self,
        method: &'static MethodSchema,
        deadline: Option<Duration>,
        handler: impl FnOnce() -> Option<Boxed<T>>,
    ) -> Result<HereCall<T>, CallError> {
        let desk = self.here.as_ref().map(|local| &local.desk).ok_or(CallError::NodeShutDown)?;
        HereCall::begin(desk, self.core.node.identity(), method.name, deadline, self.head()?, handler)
    }

    fn head(&self) -> Result<Head, CallError> {
        context::head(self.metadata.as_ref(), &self.core.numbers)
            .map_err(|error| CallError::NotSent(NotSent::Metadata(error)))
    }
}

impl<C: Codec> Client<C> {
    fn deadline(&self, method: &MethodSchema) -> Duration {
        // A stream may go on for as long as it likes.
        let usual = if method.is_streaming { post::FAR } else { self.core.options.call_deadline };
        let own = self.deadline.or(method.deadline).unwrap_or(usual);
        context::time_left().map_or(own, |left| own.min(left))
    }

    fn semantics(&self, method: &MethodSchema) -> Semantics {
        match (method.semantics, self.semantics) {
            // A stream cannot be read twice.
            (declared, _) if method.is_streaming => declared,
            (Semantics::OneWay, _) | (_, None | Some(Semantics::OneWay)) => method.semantics,
            (_, Some(chosen)) => chosen,
        }
    }

    #[cfg(feature = "tower")]
    fn layered(&self, method: &'static MethodSchema, encoded: Encoded) -> tower::Request {
        let span = self.span(method, &encoded.head);
        let (semantics, deadline) = (self.semantics(method), self.deadline(method));
        tower::Request::of(Some(&self.core), method, semantics, encoded, Some(deadline), span)
    }

    fn span(&self, method: &MethodSchema, head: &Head) -> Seen {
        trace::call_span(&self.core.name, method.name, self.core.server, &head.trace)
    }

    fn request(&self, method: &'static MethodSchema, encoded: Encoded) -> Result<Request, CallError> {
        self.request_for(method, encoded, None)
    }

    /// `promised` is the number under which the result is called ahead.
    pub(super) fn request_for(
        &self,
        method: &'static MethodSchema,
        encoded: Encoded,
        promised: Option<u64>,
    ) -> Result<Request, CallError> {
        let wanted = Wanted {
            method,
            semantics: self.semantics(method),
            deadline: self.deadline(method),
            span: self.span(method, &encoded.head),
        };
        wanted.request(&self.core, self.object.as_ref(), encoded, promised)
    }

    /// What it calls ahead, when it is not there yet.
    pub(super) fn promised(&self) -> Option<&Promise> {
        match self.object.as_deref()? {
            Target::Promise(promise) => Some(promise),
            Target::Object(_) => None,
        }
    }
}

/// A call under way.
pub(super) enum Begun<'a> {
    Call(Call<&'a Core>),
    /// Through layers, more than once, or ahead of another call: rare, and too large to be a part of every call.
    Aside(Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>>),
}

/// A call before it is known where it goes.
pub(super) struct Wanted {
    pub(super) method: &'static MethodSchema,
    pub(super) semantics: Semantics,
    pub(super) deadline: Duration,
    pub(super) span: Seen,
}

impl Wanted {
    /// The request, for a service or an object.
    ///
    /// # Errors
    /// Why it cannot succeed.
    pub(super) fn request(
        self,
        core: &Core,
        object: Option<&Arc<Target>>,
        encoded: Encoded,
        promised: Option<u64>,
    ) -> Result<Request, CallError> {
        let Self { method, semantics, deadline, span } = self;
        let Encoded { body, arguments_at: at, has_added, mut travelled, .. } = encoded;
        let mut signature = if has_added { method.signature ^ generated::ADDED } else { method.signature };
        if promised.is_some() {
            signature ^= generated::PROMISED;
        }
        let wrapped = object.map(|object| objects::wrap(object, method, signature, promised, (&body, at)));
        let (carrier, signature, body) = match wrapped {
            None => {
                let body = match promised {
                    Some(number) => {
                        let (before, arguments) = body.split_at(at);
                        [before, &number.to_le_bytes()[..], arguments].concat().into()
                    }
                    None => body,
                };
                (None, signature, body)
            }
            Some(Ok(Wrapped { carrier, body })) => {
                travelled.get_or_insert_default().object = object.cloned();
                (Some(carrier), carrier.signature, body)
            }
            Some(Err(error)) => {
                if let Some(travelled) = &mut travelled {
                    travelled.recall(&core.node);
                }
                return Err(error);
            }
        };
        let body = envelope::pack_request(body, at, core.options.compression);
        Ok(Request { method, semantics, body, signature, travelled, deadline, carrier, span })
    }
}
