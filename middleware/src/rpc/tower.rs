//! `tower` on both ends: layers around the calls of a client and around the handlers of a service. Feature `tower`.
//!
//! Purpose     what the tower ecosystem has (time-outs, limits, load shedding, one's own authentication) works on calls
//!             without knowing of them, and a client is a `tower::Service` for whoever wants one.
//! Guarantee   an error of a layer ends a call with what is known of it: it did not get through to the service
//!             ([`LayerError::is_sent`], [`Refusal::Denied`]), or it is in doubt. A layer that fails
//!             with a [`CallError`] or a [`Refusal`] says so itself.
//! Method      each call takes a clone of the layered service, waits until that is ready and calls it; so layers must be
//!             `Clone` and share what they count, as those of tower do.
//! Limits      a service that has layers, or a client that has, uses messages within one node too. What waits in the layers
//!             of a service counts among its executing requests. A copy of the arguments is made for a client's layers.
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::rpc::tower::{Incoming, layered};
//! use quorate::rpc::{Key, Metadata, Refusal, caller};
//! use quorate::{Node, service};
//! use tower::ServiceBuilder;
//!
//! #[service]
//! pub trait Greeter {
//!     async fn greet(&self, name: String) -> String;
//! }
//!
//! struct Polite;
//!
//! impl Greeter for Polite {
//!     async fn greet(&self, name: String) -> String {
//!         format!("hello {name}")
//!     }
//! }
//!
//! const TOKEN: Key<String> = Key::new("token");
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let admitted = |request: Incoming| {
//!     let token = caller().and_then(|caller| caller.metadata().value(&TOKEN).ok().flatten());
//!     if token.as_deref() == Some("let me in") { Ok(request) } else { Err(Refusal::Denied) }
//! };
//! let layers = ServiceBuilder::new().concurrency_limit(10).filter(admitted).timeout(Duration::from_secs(5));
//! let server = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let _serving = server.serve("greeter", layered(GreeterServer::new(Polite), &layers))?;
//!
//! let node = Node::builder().start().await?;
//! let greeter = GreeterClient::connect(&node, "greeter", &server.addresses()[0]).await?;
//! let greeter = greeter.with_layer(&ServiceBuilder::new().concurrency_limit(3).timeout(Duration::from_secs(1)));
//! assert!(greeter.greet("ann".into()).await.is_err());
//! let greeter = greeter.with_metadata(Metadata::new().with(&TOKEN, "let me in")?);
//! assert_eq!(greeter.greet("ann".into()).await?, "hello ann");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_protocols::rpc::{Doubt, Refusal, Verdict};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_layer::Layer;
use tower_service::Service as TowerService;

use super::call::{self, Call};
use super::calls::Core;
use super::envelope::Head;
use super::error::CallError;
use super::generated::{self, Boxed, Dispatched, Encoded};
use super::metadata::Metadata;
use super::objects::Target;
use super::port::Travelled;
use super::retry;
use super::schema::{MethodSchema, Schema, Semantics};
use super::server::Service;
use super::stub::Wanted;
use super::trace::{Seen, TraceContext};
use crate::codec::{Codec, DecodeError, EncodeError, decode_frame};

/// What the errors of layers must turn into.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A call on its way out, as a client's layers see it.
#[derive(Clone)]
pub struct Request {
    method: &'static MethodSchema,
    semantics: Semantics,
    metadata: Metadata,
    arguments: Bytes,
    has_added: bool,
    /// What goes along with the first that is sent: of clones, too.
    luggage: Option<Arc<Luggage>>,
    deadline: Option<Duration>,
    trace: TraceContext,
    span: Seen,
    is_sent: Arc<AtomicBool>,
}

impl Request {
    /// A call of `method` with its arguments as one tuple: for who uses [`Calls`] without the generated client.
    ///
    /// # Errors
    /// [`EncodeError`] when the arguments have no representation in the codec.
    pub fn new<C: Codec, A: Serialize>(
        method: &'static MethodSchema,
        arguments: &A,
    ) -> Result<Self, EncodeError> {
        let (arguments, _) = generated::encode_behind::<C, A>(|_| {}, arguments)?;
        let encoded = Encoded {
            body: arguments,
            arguments_at: 0,
            head: Head { trace: TraceContext::root(), metadata: None },
            has_added: false,
            travelled: None,
        };
        Ok(Self::of(None, method, method.semantics, encoded, None, Seen::default()))
    }

    /// `core` is where what goes along comes from.
    pub(super) fn of(
        core: Option<&Arc<Core>>,
        method: &'static MethodSchema,
        semantics: Semantics,
        encoded: Encoded,
        deadline: Option<Duration>,
        span: Seen,
    ) -> Self {
        let Encoded { body, arguments_at, head, has_added, travelled } = encoded;
        let luggage = core.zip(travelled).map(|(core, travelled)| {
            Arc::new(Luggage { core: Arc::clone(core), travelled: Mutex::new(Some(travelled)) })
        });
        Self {
            method,
            semantics,
            metadata: head.metadata.map_or_else(Metadata::new, |metadata| (*metadata).clone()),
            arguments: body.slice(arguments_at..),
            has_added,
            luggage,
            deadline,
            trace: head.trace,
            span,
            is_sent: Arc::default(),
        }
    }

    /// What is called.
    pub const fn method(&self) -> &'static MethodSchema {
        self.method
    }

    /// What the caller says beside the arguments.
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The same call with other metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// The same call with another deadline.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The call's span.
    pub const fn trace(&self) -> TraceContext {
        self.trace
    }

    /// The encoded arguments.
    pub const fn arguments(&self) -> &Bytes {
        &self.arguments
    }

    fn closed(self, core: &Core, object: Option<&Arc<Target>>) -> Result<call::Request, CallError> {
        let metadata = (!self.metadata.is_empty()).then(|| Arc::new(self.metadata));
        let mut body = BytesMut::with_capacity(HEAD_BYTES + self.arguments.len());
        let head = Head { trace: self.trace, metadata };
        head.put(&mut body);
        let arguments_at = body.len();
        body.put_slice(&self.arguments);
        let travelled = self.luggage.as_ref().and_then(|luggage| luggage.take());
        let encoded =
            Encoded { body: body.freeze(), arguments_at, head, has_added: self.has_added, travelled };
        let deadline = self.deadline.unwrap_or(core.options.call_deadline);
        let Self { method, semantics, span, .. } = self;
        Wanted { method, semantics, deadline, span }.request(core, object, encoded, None)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, metadata, arguments, .. } = self;
        write!(f, "call of {} with {} bytes and {metadata:?}", method.name, arguments.len())
    }
}

/// What goes along with a request that is in the hands of layers, which may drop it.
struct Luggage {
    core: Arc<Core>,
    travelled: Mutex<Option<Box<Travelled>>>,
}

impl Luggage {
    fn take(&self) -> Option<Box<Travelled>> {
        self.travelled.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Luggage {
    /// It was never sent: its references are not on their way, and nobody hears its streams.
    fn drop(&mut self) {
        if let Some(mut travelled) = self.take() {
            travelled.recall(&self.core.node);
            self.core.streams.break_off(|_, stream| travelled.streams.contains(&stream));
        }
    }
}

/// An answer, as a client's layers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    answer: Bytes,
}

impl Response {
    /// The result as the method's server wrote it.
    ///
    /// # Errors
    /// [`DecodeError`] when it is of another type.
    pub fn decode<C: Codec, R: DeserializeOwned>(&self) -> Result<R, DecodeError> {
        decode_frame::<C, R>(&self.answer)
    }
}

/// The calls of one binding as a service: innermost in the layers of a client. Always ready; a client that has as many
/// calls as it may says so in the answer.
#[derive(Clone)]
pub struct Calls {
    core: Arc<Core>,
    /// What is called, when it is not a service but an object.
    object: Option<Arc<Target>>,
    /// Layers that were given before.
    within: Option<Layers>,
}

impl Calls {
    pub(super) const fn new(core: Arc<Core>, object: Option<Arc<Target>>, within: Option<Layers>) -> Self {
        Self { core, object, within }
    }
}

impl TowerService<Request> for Calls {
    type Response = Response;
    type Error = CallError;
    type Future = Boxed<Result<Response, CallError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if let Some(within) = &self.within {
            return within.0.send(request);
        }
        let (core, object) = (Arc::clone(&self.core), self.object.clone());
        Box::pin(async move {
            request.is_sent.store(true, Ordering::Relaxed);
            let request = request.closed(&core, object.as_ref())?;
            let answer = match retry::concerns(&core, &request) {
                true => retry::insist(core, request).await,
                false => Call::begin(core, request, None).await,
            };
            answer.map(|answer| Response { answer })
        })
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "calls of {:?} on {}", self.core.name, self.core.server)
    }
}

/// The layers of a client.
trait Outgoing: Send + Sync {
    fn send(&self, request: Request) -> Boxed<Result<Response, CallError>>;
}

/// Waits until a service is ready, and calls it.
async fn pass<S, R>(service: &mut S, request: R) -> Result<S::Response, BoxError>
where
    S: TowerService<R, Error: Into<BoxError>>,
{
    // Turned before it is waited again: the errors of services need not be `Send`.
    poll_fn(|cx| service.poll_ready(cx).map_err(Into::into)).await?;
    service.call(request).await.map_err(Into::into)
}

/// The layers of a client, of any type.
#[derive(Clone)]
pub struct Layers(Arc<dyn Outgoing>);

impl Layers {
    pub(super) async fn send(&self, request: Request) -> Result<Bytes, CallError> {
        self.0.send(request).await.map(|response| response.answer)
    }
}

/// What can stand around the calls of a client: every `tower::Layer` that makes a service of requests and responses that
/// can be cloned and sent.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no layer for the calls of a client",
    note = "its service takes and gives what it got (`Request`, `Response`), is `Clone + Send`, and so is its future `Send`"
)]
pub trait ClientLayer {
    /// Puts it around.
    fn around(&self, calls: Calls) -> Layers;
}

impl<L> ClientLayer for L
where
    L: Layer<Calls>,
    L::Service: TowerService<Request, Response = Response, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    fn around(&self, calls: Calls) -> Layers {
        Layers(Arc::new(Stack(Mutex::new(self.layer(calls)))))
    }
}

/// A layered service of any type.
struct Stack<S>(Mutex<S>);

impl<S: Clone> Stack<S> {
    fn take(&self) -> S {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S> Outgoing for Stack<S>
where
    S: TowerService<Request, Response = Response, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    fn send(&self, request: Request) -> Boxed<Result<Response, CallError>> {
        let mut service = self.take();
        let is_sent = Arc::clone(&request.is_sent);
        Box::pin(async move {
            pass(&mut service, request).await.map_err(|error| match error.downcast::<CallError>() {
                Ok(error) => *error,
                Err(error) => {
                    let is_sent = is_sent.load(Ordering::Relaxed);
                    CallError::Layer(LayerError { error: Arc::from(error), is_sent })
                }
            })
        })
    }
}

/// A layer of the client ended the call.
#[derive(Debug, Clone)]
pub struct LayerError {
    error: Arc<dyn std::error::Error + Send + Sync>,
    is_sent: bool,
}

impl LayerError {
    /// What the layer said.
    pub fn get(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.error
    }

    /// The request had got through the layers: it may have been executed, or may yet be.
    pub const fn is_sent(&self) -> bool {
        self.is_sent
    }
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = if self.is_sent { "it may have been executed" } else { "it was not sent" };
        write!(f, "{} ({known})", self.error)
    }
}

impl PartialEq for LayerError {
    /// Of the same failure.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.error, &other.error)
    }
}

impl Eq for LayerError {}

/// A request on its way in, as a service's layers see it. Who calls, and with what metadata, [`caller`](super::caller)
/// tells.
#[derive(Debug)]
pub struct Incoming {
    method: &'static MethodSchema,
    arguments: Bytes,
    added: Bytes,
    is_begun: Arc<AtomicBool>,
}

impl Incoming {
    /// What is called.
    pub const fn method(&self) -> &'static MethodSchema {
        self.method
    }

    /// The encoded arguments.
    pub const fn arguments(&self) -> &Bytes {
        &self.arguments
    }
}

/// What a handler answered, as a service's layers see it.
#[derive(Debug)]
pub struct Answer(Verdict);

/// The handlers of a service: innermost in its layers. Always ready.
#[derive(Clone)]
pub struct Handlers(Arc<dyn Service>);

impl TowerService<Incoming> for Handlers {
    type Response = Answer;
    type Error = Refusal;
    type Future = Boxed<Result<Answer, Refusal>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Incoming) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move {
            let Incoming { method, arguments, added, is_begun } = request;
            match service.dispatch(method.id, arguments, added) {
                Dispatched::Refused(refusal) => Err(refusal),
                Dispatched::Running(handler) => {
                    is_begun.store(true, Ordering::Relaxed);
                    Ok(Answer(handler.await))
                }
            }
        })
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handlers of {}", self.0.schema().service)
    }
}

/// `service` with `layer` around its handlers, to be given to [`Node::serve`](crate::node::Node::serve).
///
/// An error of a layer becomes what the caller is told: a [`Refusal`] itself when the handler was not begun; any other
/// error [`Refusal::Denied`] then, and [`Doubt::Abandoned`] when the handler was begun.
pub fn layered<L>(service: impl Service, layer: &L) -> impl Service
where
    L: Layer<Handlers>,
    L::Service: TowerService<Incoming, Response = Answer, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let service: Arc<dyn Service> = Arc::new(service);
    let stack = Stack(Mutex::new(layer.layer(Handlers(Arc::clone(&service)))));
    Layered { service, stack }
}

struct Layered<S> {
    service: Arc<dyn Service>,
    stack: Stack<S>,
}

impl<S> Service for Layered<S>
where
    S: TowerService<Incoming, Response = Answer, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    fn schema(&self) -> &'static Schema {
        self.service.schema()
    }

    fn codec(&self) -> u8 {
        self.service.codec()
    }

    // Not what the service offers to its own node: that would go past the layers.

    fn dispatch(&self, method: u32, request: Bytes, added: Bytes) -> Dispatched {
        let Some(method) = self.schema().method(method) else { return generated::no_such_method() };
        let is_begun = Arc::new(AtomicBool::new(false));
        let incoming = Incoming { method, arguments: request, added, is_begun: Arc::clone(&is_begun) };
        let mut service = self.stack.take();
        Dispatched::Running(Box::pin(async move {
            let error = match pass(&mut service, incoming).await {
                Ok(Answer(verdict)) => return verdict,
                Err(error) => error,
            };
            if is_begun.load(Ordering::Relaxed) {
                return Verdict::Doubtful(Doubt::Abandoned);
            }
            Verdict::Refused(error.downcast::<Refusal>().map_or(Refusal::Denied, |refusal| *refusal))
        }))
    }
}

/// Room for what stands before the arguments.
const HEAD_BYTES: usize = 64;
