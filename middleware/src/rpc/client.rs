//! The caller's side: a binding to one service, and how calls are made of it.
//!
//! Method      the caller's own task encodes the arguments and begins the call; see [`calls`](super::calls).

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::rpc::{self, ClientConfig, Rejection};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::call::{Call, Request};
use super::calls::Core;
use super::context;
use super::deferred::Deferred;
use super::error::{BindError, CallError, NotSent};
use super::generated::{self, Boxed, Encoded};
use super::here::{Desk, HereCall, Local};
use super::objects::{self, Promise, Target, Wrapped};
use super::schema::{MethodSchema, Semantics};
use super::{port, post};
use crate::codec::{Codec, decode_frame};
use crate::node::{Address, Identity, Node, NodeId};

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the node at this address, which may be the caller's own.
    Address(Address),
    /// On the caller's own node.
    Here,
}

/// The caller's own node, as a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here;

/// What can be taken for a place: an [`Address`], its text, or [`Here`].
pub trait IntoPlace {
    /// The place.
    ///
    /// # Errors
    /// [`BindError::Address`] when the text is no address.
    fn into_place(self) -> Result<Place, BindError>;
}

impl IntoPlace for Place {
    fn into_place(self) -> Result<Place, BindError> {
        Ok(self)
    }
}

impl IntoPlace for Here {
    fn into_place(self) -> Result<Place, BindError> {
        Ok(Place::Here)
    }
}

impl IntoPlace for Address {
    fn into_place(self) -> Result<Place, BindError> {
        Ok(Place::Address(self))
    }
}

impl IntoPlace for &Address {
    fn into_place(self) -> Result<Place, BindError> {
        self.clone().into_place()
    }
}

impl IntoPlace for &str {
    fn into_place(self) -> Result<Place, BindError> {
        self.parse().map(Place::Address).map_err(BindError::Address)
    }
}

impl IntoPlace for &String {
    fn into_place(self) -> Result<Place, BindError> {
        self.as_str().into_place()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Here => f.write_str("the caller's own node"),
        }
    }
}

/// What a client does about a service that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Patience {
    /// Tell the caller at once, with what was tried.
    #[default]
    FailAtOnce,
    /// Ask again, ever more rarely, until [`ClientOptions::bind_deadline`].
    WaitUntilAvailable,
}

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientOptions {
    /// What to do when nothing listens at the address, or the node there has no such service (yet). Default: fail.
    pub patience: Patience,
    /// How long binding may take in all. Default 5 s. Shorter fails on a busy server, longer is noticed by people.
    pub bind_deadline: Duration,
    /// How long a call may take when neither its method nor `with_deadline` says. Default 30 s. The error of a call
    /// that takes longer names this value.
    pub call_deadline: Duration,
    /// Outstanding calls of one client, at most. Default 16,384; one more is refused at once.
    pub calls_max: u32,
    /// The first wait before a request is sent again; doubles up to `retry_max`. Default 200 ms.
    pub retry_min: Duration,
    /// The longest wait before a request is sent again. Default 5 s.
    pub retry_max: Duration,
    /// Whether calls will be made exactly once: the service then remembers this client. A generated client sets it when
    /// a method of its trait says so. Default no.
    pub exactly_once: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        let machine = ClientConfig::new(0, 0, 0);
        Self {
            patience: Patience::FailAtOnce,
            bind_deadline: Duration::from_secs(5),
            call_deadline: Duration::from_secs(30),
            calls_max: machine.calls_max,
            retry_min: machine.retry_min,
            retry_max: machine.retry_max,
            exactly_once: false,
        }
    }
}

/// A binding to one service of one node; what a generated client wraps. Cheap to clone; clones share the binding.
///
/// It survives broken connections and restarts of the server without the callers' doing: calls wait, within their
/// deadlines, until the server is back; what was under way in the old life ends with
/// [`CallError::MaybeExecuted`] unless its method is idempotent.
pub struct Client<C> {
    pub(super) core: Arc<Core>,
    /// The service, when this very node serves it.
    here: Option<Arc<Local>>,
    deadline: Option<Duration>,
    semantics: Option<Semantics>,
    /// What is called, when it is not a service but an object.
    object: Option<Arc<Target>>,
    codec: PhantomData<fn() -> C>,
}

impl<C: Codec> Client<C> {
    /// Binds to the service called `name` at `place`.
    ///
    /// # Errors
    /// [`BindError`], with what was tried: at once when nothing listens there or the node has no such service, at
    /// the latest after [`ClientOptions::bind_deadline`].
    /// # Cancel safety
    /// Dropping the future leaves nothing behind but a connection that others may use.
    pub async fn connect(
        node: &Node,
        name: &str,
        place: impl IntoPlace,
        options: ClientOptions,
    ) -> Result<Self, BindError> {
        let place = place.into_place()?;
        let asked = Asked { service: name.to_owned(), place };
        let limit = options.bind_deadline;
        // "For ever" must not overflow the clock.
        let until = Instant::now() + limit.min(post::FAR);
        let mut pause = PATIENCE_PAUSE_MIN;
        loop {
            let error = match Self::bind(node, &asked, options, until).await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            let is_patient = options.patience == Patience::WaitUntilAvailable && error.is_retryable();
            if !is_patient || Instant::now() + pause >= until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PATIENCE_PAUSE_MAX);
        }
    }

    /// One attempt to bind.
    async fn bind(
        node: &Node,
        asked: &Asked,
        options: ClientOptions,
        until: Instant,
    ) -> Result<Self, BindError> {
        let limit = options.bind_deadline;
        let connected = async {
            match &asked.place {
                // A node does not dial itself, but a service is called by its address wherever it is.
                Place::Address(address) if !node.addresses().contains(address) => node.connect(address).await,
                Place::Address(_) | Place::Here => Ok(node.identity()),
            }
        };
        let identity = match tokio::time::timeout_at(until, connected).await {
            Ok(Ok(identity)) => identity,
            Ok(Err(source)) => return Err(asked.unreachable(source)),
            Err(_) => return Err(asked.no_connection(limit)),
        };
        let core = Core::open(node, &asked.service, identity, C::ID, options)?;
        let answer = tokio::time::timeout_at(until, core.bound()).await;
        match answer {
            Ok(Ok(())) => {
                let here = core.service_here().filter(|local| local.codec == C::ID);
                let here = here.map(Arc::new);
                Ok(Self { core, here, deadline: None, semantics: None, object: None, codec: PhantomData })
            }
            Ok(Err(reason)) => Err(asked.rejected(identity, reason)),
            Err(_) => Err(asked.no_answer(identity, limit)),
        }
    }

    /// The same binding with another deadline for its calls, before what methods declare.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self.clone() }
    }

    /// The same binding with other semantics for its calls than their methods declare. A one-way method stays one, and no
    /// other becomes one. Calls within a node are made without messages and need none of this.
    ///
    /// It is the caller's responsibility that the service bears it: an at-most-once method that is called as
    /// [`Idempotent`](Semantics::Idempotent) may be executed several times. [`ExactlyOnce`](Semantics::ExactlyOnce)
    /// needs [`ClientOptions::exactly_once`] and a service with a durable state.
    #[must_use]
    pub fn with_semantics(&self, semantics: Semantics) -> Self {
        Self { semantics: Some(semantics), ..self.clone() }
    }

    /// The node that the client is bound to.
    pub fn node(&self) -> NodeId {
        self.core.server
    }

    /// Calls that have not ended.
    pub fn outstanding(&self) -> u32 {
        self.core.lock().machine.outstanding()
    }

    /// The server lives and takes new calls, as far as anybody knows: calls leave at once.
    pub fn is_reachable(&self) -> bool {
        self.core.lock().machine.is_served()
    }

    /// Bytes that this process keeps for the calls of this client, without their arguments: grown for the most calls
    /// that were outstanding at once.
    pub fn table_bytes(&self) -> usize {
        self.core.lock().table_bytes()
    }

    /// Totals over all clones.
    pub fn stats(&self) -> rpc::ClientStats {
        self.core.lock().machine.stats()
    }

    fn deadline(&self, method: &MethodSchema) -> Duration {
        // A stream may go on for as long as it likes.
        let usual = if method.is_streaming { post::FAR } else { self.core.options.call_deadline };
        let own = self.deadline.or(method.deadline).unwrap_or(usual);
        context::time_left().map_or(own, |left| own.min(left))
    }

    /// A client that calls an object; `local` is the object, when it is one of this node.
    pub(super) fn of_object(core: Arc<Core>, local: Option<Local>, object: Arc<Target>) -> Self {
        let (here, object) = (local.map(Arc::new), Some(object));
        Self { core, here, deadline: None, semantics: None, object, codec: PhantomData }
    }

    /// The object that it calls.
    pub(super) fn target(&self) -> Option<&Arc<Target>> {
        self.object.as_ref()
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
        let Encoded { body, has_added, mut travelled } = encoded;
        let semantics = match (method.semantics, self.semantics) {
            // A stream cannot be read twice.
            (declared, _) if method.is_streaming => declared,
            (Semantics::OneWay, _) | (_, None | Some(Semantics::OneWay)) => method.semantics,
            (_, Some(chosen)) => chosen,
        };
        let deadline = self.deadline(method);
        let mut signature = if has_added { method.signature ^ generated::ADDED } else { method.signature };
        if promised.is_some() {
            signature ^= generated::PROMISED;
        }
        let Some(object) = &self.object else {
            let body = match promised {
                Some(number) => [&number.to_le_bytes()[..], &body[..]].concat().into(),
                None => body,
            };
            return Ok(Request { method, semantics, body, signature, travelled, deadline, carrier: None });
        };
        match objects::wrap(object, method, signature, promised, (&body, 0)) {
            Ok(Wrapped { carrier, body }) => {
                travelled.get_or_insert_default().object = Some(Arc::clone(object));
                let (carrier, signature) = (Some(carrier), carrier.signature);
                Ok(Request { method, semantics, body, signature, travelled, deadline, carrier })
            }
            Err(error) => {
                if let Some(travelled) = &mut travelled {
                    travelled.recall(&self.core.node);
                }
                Err(error)
            }
        }
    }

    /// What it calls ahead, when it is not there yet.
    pub(super) fn promised(&self) -> Option<&Promise> {
        match self.object.as_deref()? {
            Target::Promise(promise) => Some(promise),
            Target::Object(_) => None,
        }
    }
}

/// What generated code calls.
#[doc(hidden)]
impl<C: Codec> Client<C> {
    /// Encodes arguments.
    pub fn encode<A: Serialize>(&self, arguments: &A) -> Result<Encoded, CallError> {
        let body = generated::encode::<C, A>(arguments)
            .map_err(|error| CallError::NotSent(NotSent::Encode(error)))?;
        Ok(Encoded { body, has_added: false, travelled: None })
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
    pub async fn call<R: DeserializeOwned>(
        &self,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
    ) -> Result<R, CallError> {
        let call = Call::new(&*self.core, self.request(method, encoded?)?);
        let reply = match self.promised() {
            None => call.await?,
            // Not a part of every call's future: it is large.
            Some(promise) => Box::pin(promise.settle(call)).await?,
        };
        let decode = || decode_frame::<C, R>(&reply).map_err(CallError::BadReply);
        if method.has_port() { port::through(self.core.link(), decode).0 } else { decode() }
    }

    /// Begins a call.
    pub fn start<T, E: From<CallError>>(
        &self,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
        read: fn(Bytes) -> Result<T, E>,
    ) -> Deferred<T, E> {
        match encoded.and_then(|encoded| self.request(method, encoded)) {
            Ok(request) => Deferred::by_messages(Call::new(Arc::clone(&self.core), request), read),
            Err(error) => Deferred::failed(error),
        }
    }

    /// Sends a request that has no answer.
    pub async fn call_one_way(
        &self,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
    ) -> Result<(), CallError> {
        Call::new(&*self.core, self.request(method, encoded?)?).await.map(drop)
    }

    /// The service itself, when this very node serves one of the type `T`.
    pub fn service_here<T: Clone + 'static>(&self) -> Option<T> {
        self.here.as_ref()?.service.downcast_ref::<T>().cloned()
    }

    /// The same, as long as it is served: whoever serves it later is found by messages.
    pub fn open_here<'a, T: ?Sized>(&self, service: &'a Option<Arc<T>>) -> Option<&'a T> {
        service.as_deref().filter(|_| self.here.as_ref().is_some_and(|local| local.desk.is_open()))
    }

    /// Makes a call of a service of this node.
    pub async fn call_here<T: Send + 'static>(
        &self,
        method: &'static MethodSchema,
        handler: impl FnOnce() -> Option<Boxed<T>>,
    ) -> Result<T, CallError> {
        HereCall::begin(self.desk()?, method.name, Some(self.deadline(method)), handler)?.await
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
        match self.desk().and_then(|desk| HereCall::begin(desk, method.name, deadline, handler)) {
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
        let call = HereCall::begin(self.desk()?, method.name, None, handler)?;
        tokio::spawn(call);
        Ok(())
    }

    fn desk(&self) -> Result<&Arc<Desk>, CallError> {
        self.here.as_ref().map(|local| &local.desk).ok_or(CallError::NodeShutDown)
    }
}

impl<C> Clone for Client<C> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
            here: self.here.clone(),
            deadline: self.deadline,
            semantics: self.semantics,
            object: self.object.clone(),
            codec: PhantomData,
        }
    }
}

/// What was asked for, for the errors.
struct Asked {
    service: String,
    place: Place,
}

impl Asked {
    fn unreachable(&self, source: crate::node::ConnectError) -> BindError {
        BindError::Unreachable { service: self.service.clone(), address: self.place.to_string(), source }
    }

    fn no_connection(&self, waited: Duration) -> BindError {
        BindError::NoConnection { service: self.service.clone(), address: self.place.to_string(), waited }
    }

    fn rejected(&self, node: Identity, reason: Rejection) -> BindError {
        BindError::Rejected { service: self.service.clone(), address: self.place.to_string(), node, reason }
    }

    fn no_answer(&self, node: Identity, waited: Duration) -> BindError {
        BindError::NoAnswer { service: self.service.clone(), address: self.place.to_string(), node, waited }
    }
}

/// The first pause of who waits until a service is available; doubles up to the longest.
const PATIENCE_PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest pause: a service that comes is found within a second.
const PATIENCE_PAUSE_MAX: Duration = Duration::from_secs(1);
