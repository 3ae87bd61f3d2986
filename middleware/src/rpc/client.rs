//! The caller's side: a binding to one service.
//!
//! Method      calls are made in [`stub`](super::stub).

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use quorate_protocols::rpc::{self, ClientConfig, Rejection};
use tokio::time::Instant;

use super::calls::Core;
use super::envelope::Compression;
use super::error::BindError;
use super::here::Local;
use super::metadata::Metadata;
use super::objects::Target;
use super::place::{IntoPlace, Place};
use super::post;
use super::retry::{Budget, Hedge, Retry, RetryStats};
use super::schema::Semantics;
#[cfg(feature = "tower")]
use super::tower;
use crate::codec::Codec;
use crate::node::{Identity, Node, NodeId};

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
    /// Whether arguments are compressed. Answers are compressed as the service chooses. Default: off.
    pub compression: Compression,
    /// Whether calls that failed are made again, when that cannot execute them twice or may. Deferred calls and streams are
    /// not. Default: no, every failure is told.
    pub retry: Option<Retry>,
    /// Whether idempotent calls that take long are made a second time beside. Default no.
    pub hedge: Option<Hedge>,
    /// What both may add to the calls that are made.
    pub budget: Budget,
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
            compression: Compression::Off,
            retry: None,
            hedge: None,
            budget: Budget::default(),
        }
    }
}

/// A binding to one service of one node; what a generated client wraps. Cheap to clone; clones share the binding.
///
/// It survives broken connections and restarts of the server without the callers' doing: calls wait, within their
/// deadlines, until the server is back; what was under way in the old life ends with
/// [`CallError::MaybeExecuted`](super::CallError::MaybeExecuted) unless its method is idempotent.
pub struct Client<C> {
    pub(super) core: Arc<Core>,
    /// The service, when this very node serves it.
    pub(super) here: Option<Arc<Local>>,
    pub(super) deadline: Option<Duration>,
    pub(super) semantics: Option<Semantics>,
    /// What is called, when it is not a service but an object.
    pub(super) object: Option<Arc<Target>>,
    pub(super) metadata: Option<Arc<Metadata>>,
    #[cfg(feature = "tower")]
    pub(super) layers: Option<tower::Layers>,
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
                Ok(Self::over(core, here))
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

    /// The same binding whose calls carry this beside their arguments, in place of what was said before. Handlers read it
    /// by [`caller`](super::caller). A trace that it names is the calls' own.
    #[must_use]
    pub fn with_metadata(&self, metadata: Metadata) -> Self {
        Self { metadata: Some(Arc::new(metadata)), ..self.clone() }
    }

    /// The same binding whose calls go through a layer of tower; one that is given later stands outside of those that
    /// were given before. All clones share what the layer counts. See [`tower`](crate::rpc::tower).
    #[cfg(feature = "tower")]
    #[must_use]
    pub fn with_layer(&self, layer: &impl tower::ClientLayer) -> Self {
        Self { layers: Some(layer.around(self.calls())), ..self.clone() }
    }

    /// The calls of this binding, through its layers, as a service of tower.
    #[cfg(feature = "tower")]
    pub fn calls(&self) -> tower::Calls {
        tower::Calls::new(Arc::clone(&self.core), self.object.clone(), self.layers.clone())
    }

    /// The node that the client is bound to.
    pub fn node(&self) -> NodeId {
        self.core.server
    }

    /// Calls that have not ended.
    pub fn outstanding(&self) -> u32 {
        self.core.lock().machine.outstanding()
    }

    /// Requests that have left so far, over all clones.
    pub fn requests_sent(&self) -> u64 {
        self.stats().sent
    }

    /// The server lives and takes new calls, as far as anybody knows: calls leave at once.
    pub fn is_reachable(&self) -> bool {
        self.core.lock().machine.is_served()
    }

    /// Waits until the server is not known to live any more.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn wait_unreachable(&self) {
        // An error would mean that the client is gone, and it is held here.
        let _ = self.core.reached.subscribe().wait_for(|is_reached| !*is_reached).await;
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

    /// What [`ClientOptions::retry`] and [`ClientOptions::hedge`] have added, over all clones.
    pub fn retry_stats(&self) -> RetryStats {
        self.core.tank.stats()
    }

    fn over(core: Arc<Core>, here: Option<Arc<Local>>) -> Self {
        Self {
            core,
            here,
            deadline: None,
            semantics: None,
            object: None,
            metadata: None,
            #[cfg(feature = "tower")]
            layers: None,
            codec: PhantomData,
        }
    }

    /// A client that calls an object; `local` is the object, when it is one of this node.
    pub(super) fn of_object(core: Arc<Core>, local: Option<Local>, object: Arc<Target>) -> Self {
        Self { object: Some(object), ..Self::over(core, local.map(Arc::new)) }
    }

    /// The object that it calls.
    pub(super) fn target(&self) -> Option<&Arc<Target>> {
        self.object.as_ref()
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
            metadata: self.metadata.clone(),
            #[cfg(feature = "tower")]
            layers: self.layers.clone(),
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
