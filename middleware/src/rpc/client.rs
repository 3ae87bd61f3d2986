//! The caller's side: a thin face over the client machine.
//!
//! Method      the caller's own task encodes the arguments, takes the lock of its client, steps the machine and hands
//!             the request to the node's connection; there is no task and no channel per call. The reader task of the
//!             connection steps the machine with the replies and wakes the callers. One task per client waits for
//!             the machine's deadline and for room on a full connection.

use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_protocols::rpc::{
    self, CallId, ClientCommand, ClientConfig, ClientEvent, Message, Outcome, Rejection,
};
use quorate_protocols::{Input, Machine, Output, Outputs, Time, Wire};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::error::{BindError, CallError, NotSent, RpcError};
use super::generated;
use super::post::{self, Posted};
use super::schema::{MethodSchema, Semantics};
use crate::codec::{Codec, decode_frame};
use crate::node::{
    Address, Channel, ChannelGuard, ChannelHandler, Identity, Lane, Node, NodeId, PeerEvent, process_id_of,
};

/// What can be taken for an address: an [`Address`], or its text.
pub trait IntoAddress {
    /// The address.
    ///
    /// # Errors
    /// [`BindError::Address`] when the text is none.
    fn into_address(self) -> Result<Address, BindError>;
}

impl IntoAddress for Address {
    fn into_address(self) -> Result<Address, BindError> {
        Ok(self)
    }
}

impl IntoAddress for &Address {
    fn into_address(self) -> Result<Address, BindError> {
        Ok(self.clone())
    }
}

impl IntoAddress for &str {
    fn into_address(self) -> Result<Address, BindError> {
        self.parse().map_err(BindError::Address)
    }
}

impl IntoAddress for &String {
    fn into_address(self) -> Result<Address, BindError> {
        self.as_str().into_address()
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
        }
    }
}

/// A binding to one service of one node; what a generated client wraps. Cheap to clone; clones share the binding.
///
/// It survives broken connections and restarts of the server without the callers' doing: calls wait, within their
/// deadlines, until the server is back; what was under way in the old life ends with
/// [`CallError::MaybeExecuted`] unless its method is idempotent.
pub struct Client<C> {
    core: Arc<Core>,
    deadline: Option<Duration>,
    codec: PhantomData<fn() -> C>,
}

impl<C: Codec> Client<C> {
    /// Binds to the service called `name` on the node at `address`.
    ///
    /// # Errors
    /// [`BindError`], with what was tried: at once when nothing listens there or the node has no such service, at
    /// the latest after [`ClientOptions::bind_deadline`].
    /// # Cancel safety
    /// Dropping the future leaves nothing behind but a connection that others may use.
    pub async fn connect(
        node: &Node,
        name: &str,
        address: impl IntoAddress,
        options: ClientOptions,
    ) -> Result<Self, BindError> {
        let address = address.into_address()?;
        let asked = Asked { service: name.to_owned(), address };
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
            // A node does not dial itself, but a service is called by its address wherever it is.
            if node.addresses().contains(&asked.address) {
                Ok(node.identity())
            } else {
                node.connect(&asked.address).await
            }
        };
        let identity = match tokio::time::timeout_at(until, connected).await {
            Ok(Ok(identity)) => identity,
            Ok(Err(source)) => return Err(asked.unreachable(source)),
            Err(_) => return Err(asked.no_connection(limit)),
        };
        let core = Core::open::<C>(node, &asked.service, identity, options)?;
        let answer = tokio::time::timeout_at(until, core.bound()).await;
        match answer {
            Ok(Ok(())) => Ok(Self { core, deadline: None, codec: PhantomData }),
            Ok(Err(reason)) => Err(asked.rejected(identity, reason)),
            Err(_) => Err(asked.no_answer(identity, limit)),
        }
    }

    /// The same binding with another deadline for its calls, before what methods declare.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self.clone() }
    }

    /// The node that the client is bound to.
    pub fn node(&self) -> NodeId {
        self.core.server
    }

    /// Calls that have not ended.
    pub fn outstanding(&self) -> u32 {
        self.core.lock().machine.outstanding()
    }

    /// Totals over all clones.
    pub fn stats(&self) -> rpc::ClientStats {
        self.core.lock().machine.stats()
    }

    /// Encodes arguments; used by generated code.
    #[doc(hidden)]
    pub fn encode<A: Serialize>(&self, arguments: &A) -> Result<Bytes, CallError> {
        generated::encode::<C, A>(arguments).map_err(|error| CallError::NotSent(NotSent::Encode(error)))
    }

    /// Calls a method that returns a plain value; used by generated code.
    #[doc(hidden)]
    pub async fn call<R: DeserializeOwned>(
        &self,
        method: &'static MethodSchema,
        request: Result<Bytes, CallError>,
    ) -> Result<R, CallError> {
        let reply = self.exchange(method, request?).await?;
        decode_frame::<C, R>(&reply).map_err(CallError::BadReply)
    }

    /// Calls a method that returns a `Result`; used by generated code.
    #[doc(hidden)]
    pub async fn call_fallible<T: DeserializeOwned, E: DeserializeOwned>(
        &self,
        method: &'static MethodSchema,
        request: Result<Bytes, CallError>,
    ) -> Result<T, RpcError<E>> {
        self.call::<Result<T, E>>(method, request).await?.map_err(RpcError::Application)
    }

    /// Sends a request that has no answer; used by generated code.
    #[doc(hidden)]
    pub async fn call_one_way(
        &self,
        method: &'static MethodSchema,
        request: Result<Bytes, CallError>,
    ) -> Result<(), CallError> {
        self.exchange(method, request?).await.map(drop)
    }

    async fn exchange(&self, method: &'static MethodSchema, request: Bytes) -> Result<Bytes, CallError> {
        let deadline = self.deadline.or(method.deadline).unwrap_or(self.core.options.call_deadline);
        let pending = self.core.start(method, request, deadline)?;
        match pending.await {
            Outcome::Replied(body) => Ok(body),
            Outcome::TooManyCalls { limit } => Err(CallError::NotSent(NotSent::TooManyCalls { limit })),
            Outcome::NotExecuted(refusal) => Err(CallError::NotExecuted(refusal)),
            Outcome::MaybeExecuted(doubt) => Err(CallError::MaybeExecuted(doubt)),
            Outcome::DeadlinePassed { sent } => Err(CallError::DeadlinePassed { deadline, sent }),
            Outcome::Closed { sent: true } => Err(CallError::NodeShutDown),
            Outcome::Closed { sent: false } => Err(CallError::NotSent(NotSent::NodeShutDown)),
        }
    }
}

impl<C> Clone for Client<C> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), deadline: self.deadline, codec: PhantomData }
    }
}

/// What was asked for, for the errors.
struct Asked {
    service: String,
    address: Address,
}

impl Asked {
    fn unreachable(&self, source: crate::node::ConnectError) -> BindError {
        BindError::Unreachable { service: self.service.clone(), address: self.address.to_string(), source }
    }

    fn no_connection(&self, waited: Duration) -> BindError {
        BindError::NoConnection { service: self.service.clone(), address: self.address.to_string(), waited }
    }

    fn rejected(&self, node: Identity, reason: Rejection) -> BindError {
        BindError::Rejected { service: self.service.clone(), address: self.address.to_string(), node, reason }
    }

    fn no_answer(&self, node: Identity, waited: Duration) -> BindError {
        BindError::NoAnswer { service: self.service.clone(), address: self.address.to_string(), node, waited }
    }
}

/// What all clones share.
struct Core {
    node: Node,
    server: NodeId,
    number: u32,
    /// Where the service hears.
    channel: Channel,
    options: ClientOptions,
    /// The zero of the machine's time.
    epoch: Instant,
    state: Mutex<State>,
    /// Somebody needs the task: an earlier deadline, or a full connection.
    task_wanted: Arc<Notify>,
    task: OnceLock<AbortHandle>,
    /// Where we hear; closes when the last clone is dropped.
    _replies: ChannelGuard,
}

struct State {
    machine: rpc::Client,
    outputs: Outputs<rpc::Client>,
    head: BytesMut,
    waiters: Vec<Waiter>,
    free: Vec<u32>,
    /// What found the connection full, in order.
    waiting_for_room: VecDeque<Waiting>,
    /// Bytes of the one-way calls in there.
    one_way_bytes: usize,
    /// When the task looks again.
    task_wakes: Option<Time>,
    binding: Binding,
}

/// What waits for room on the connection.
enum Waiting {
    /// The request of a call, which the machine keeps as long as somebody waits for the call.
    Call(CallId),
    /// One-way calls, of which the machine keeps nothing, and small messages.
    Message(Message),
}

enum Waiter {
    Free,
    /// The call goes on; the waker of who awaits it.
    Calling(Option<Waker>),
    Ended(Outcome),
}

/// Until the first answer of the service.
enum Binding {
    Asking(Option<Waker>),
    Bound,
    Rejected(Rejection),
}

impl Core {
    fn open<C: Codec>(
        node: &Node,
        name: &str,
        server: Identity,
        options: ClientOptions,
    ) -> Result<Arc<Self>, BindError> {
        let number = node.fresh_number();
        let replies = Arc::new(Replies(OnceLock::new()));
        let handler: Arc<dyn ChannelHandler> = Arc::clone(&replies) as _;
        let guard = node.open(post::reply_channel(number), handler).map_err(|_| BindError::NodeShutDown)?;
        let mut config = ClientConfig::new(number, C::ID, post::seed(node.identity(), number));
        config.calls_max = options.calls_max;
        config.retry_min = options.retry_min;
        config.retry_max = options.retry_max;
        let core = Arc::new(Self {
            node: node.clone(),
            server: server.node,
            number,
            channel: post::service_channel(name),
            options,
            epoch: Instant::now(),
            state: Mutex::new(State {
                machine: rpc::Client::new(process_id_of(server), config),
                outputs: Outputs::new(),
                head: BytesMut::new(),
                waiters: Vec::new(),
                free: Vec::new(),
                waiting_for_room: VecDeque::new(),
                one_way_bytes: 0,
                task_wakes: None,
                binding: Binding::Asking(None),
            }),
            task_wanted: Arc::new(Notify::new()),
            task: OnceLock::new(),
            _replies: guard,
        });
        // Nobody else knows the cell or the handle yet, so both are empty.
        let _ = replies.0.set(Arc::downgrade(&core));
        let task = tokio::spawn(keep_time(Arc::downgrade(&core), Arc::clone(&core.task_wanted)));
        let _ = core.task.set(task.abort_handle());
        core.step(&mut core.lock(), Input::Tick, &mut Vec::new());
        Ok(core)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held (a failed debug assertion) must not take the other callers down.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        post::time_since(self.epoch)
    }

    async fn bound(&self) -> Result<(), Rejection> {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            match &mut state.binding {
                Binding::Bound => Poll::Ready(Ok(())),
                Binding::Rejected(reason) => Poll::Ready(Err(*reason)),
                Binding::Asking(waker) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Begins a call; it is on its way when this returns, or waits for the server to come back.
    fn start(
        &self,
        method: &MethodSchema,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Pending<'_>, CallError> {
        let mut state = self.lock();
        let token = state.free.pop().unwrap_or_else(|| {
            state.waiters.push(Waiter::Free);
            (state.waiters.len() - 1) as u32
        });
        state.waiters[token as usize] = Waiter::Calling(None);
        let call = state.machine.upcoming();
        let now = self.now();
        let command = ClientCommand::Call {
            token,
            method: method.id,
            signature: method.signature,
            semantics: method.semantics,
            deadline: now + deadline,
            body,
        };
        let sent = self.step_at(now, &mut state, Input::Command(command), &mut Vec::new());
        drop(state);
        let pending = Pending { core: self, token, call, ended: false };
        // Dropping `pending` takes the call back.
        match sent {
            Posted::Sent => Ok(pending),
            Posted::TooLarge { size, limit } => Err(CallError::NotSent(NotSent::TooLarge { size, limit })),
            Posted::NoRoom { waiting } => {
                Err(CallError::NotSent(NotSent::NoRoom { waiting, limit: ONE_WAY_BYTES_MAX }))
            }
            Posted::ShutDown => Err(CallError::NotSent(NotSent::NodeShutDown)),
        }
    }

    fn step(&self, state: &mut State, input: Input<rpc::Client>, wakers: &mut Vec<Waker>) {
        self.step_at(self.now(), state, input, wakers);
    }

    /// Steps the machine and carries out what it says. Wakers are woken by the caller when it has let go of the
    /// lock. Tells when a message can never be sent.
    fn step_at(
        &self,
        now: Time,
        state: &mut State,
        input: Input<rpc::Client>,
        wakers: &mut Vec<Waker>,
    ) -> Posted {
        let State {
            machine,
            outputs,
            head,
            waiters,
            waiting_for_room,
            one_way_bytes,
            task_wakes,
            binding,
            ..
        } = state;
        machine.handle(now, input, outputs);
        let mut posted = Posted::Sent;
        for output in outputs.drain() {
            match output {
                Output::Send { lane, message, .. } => {
                    if waiting_for_room.is_empty() {
                        match post::send(&self.node, self.server, lane, self.channel, &message, head) {
                            Ok(Posted::Sent) => continue,
                            Ok(never) => {
                                posted = never;
                                continue;
                            }
                            Err(post::Full) => self.task_wanted.notify_one(),
                        }
                    }
                    match message {
                        Message::Request { semantics: Semantics::OneWay, ref body, .. } => {
                            if *one_way_bytes + one_way_cost(body) > ONE_WAY_BYTES_MAX {
                                posted = Posted::NoRoom { waiting: *one_way_bytes };
                                continue;
                            }
                            *one_way_bytes += one_way_cost(body);
                            waiting_for_room.push_back(Waiting::Message(message));
                        }
                        // Every call once, and room for cancellations; repetitions beyond that are as good as lost.
                        _ if waiting_for_room.len() >= 2 * self.options.calls_max as usize => {}
                        Message::Request { call, .. } => waiting_for_room.push_back(Waiting::Call(call)),
                        small => waiting_for_room.push_back(Waiting::Message(small)),
                    }
                }
                Output::Event(ClientEvent::Ended { token, outcome }) => {
                    let before = std::mem::replace(&mut waiters[token as usize], Waiter::Ended(outcome));
                    if let Waiter::Calling(Some(waker)) = before {
                        wakers.push(waker);
                    }
                }
                Output::Event(ClientEvent::Bound(_)) => {
                    if let Binding::Asking(Some(waker)) = std::mem::replace(binding, Binding::Bound) {
                        wakers.push(waker);
                    }
                }
                Output::Event(ClientEvent::Rejected(reason)) => {
                    // Only who binds for the first time is told: later the service may be about to come back.
                    if let Binding::Asking(waker) = binding {
                        wakers.extend(waker.take());
                        *binding = Binding::Rejected(reason);
                    }
                }
                Output::Persist(()) | Output::Barrier => {}
            }
        }
        if let Some(deadline) = machine.deadline()
            && task_wakes.is_none_or(|wakes| deadline < wakes)
        {
            *task_wakes = Some(deadline);
            self.task_wanted.notify_one();
        }
        if posted == Posted::ShutDown && state.machine.outstanding() > 0 {
            // No answer will come: nobody shall wait for one. Closing sends nothing, so this ends here.
            self.step_at(now, state, Input::Command(ClientCommand::Close), wakers);
        }
        posted
    }

    /// Sends what waits for room, until the connection is full again; true when nothing waits any more.
    fn flush(&self, state: &mut State) -> bool {
        let now = self.now();
        let State { machine, waiting_for_room, one_way_bytes, head, .. } = state;
        while let Some(waiting) = waiting_for_room.front() {
            let current;
            let message = match waiting {
                Waiting::Message(message) => Some(message),
                // With the time that is left; nothing when nobody waits for it any more.
                Waiting::Call(call) => {
                    current = machine.request(now, *call);
                    current.as_ref()
                }
            };
            if let Some(message) = message {
                let ordinary = quorate_protocols::Lane::Ordinary;
                match post::send(&self.node, self.server, ordinary, self.channel, message, head) {
                    Ok(_) => {}
                    Err(post::Full) => return false,
                }
            }
            if let Some(Waiting::Message(Message::Request { body, .. })) = waiting_for_room.pop_front() {
                *one_way_bytes -= one_way_cost(&body);
            }
        }
        true
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// One call under way. Dropping it cancels the call, here and on the server.
struct Pending<'a> {
    core: &'a Core,
    token: u32,
    call: CallId,
    ended: bool,
}

impl Future for Pending<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.core.lock();
        let waiter = &mut state.waiters[self.token as usize];
        match std::mem::replace(waiter, Waiter::Free) {
            Waiter::Ended(outcome) => {
                state.free.push(self.token);
                drop(state);
                self.ended = true;
                Poll::Ready(outcome)
            }
            Waiter::Calling(known) => {
                let known = known.filter(|waker| waker.will_wake(cx.waker()));
                *waiter = Waiter::Calling(Some(known.unwrap_or_else(|| cx.waker().clone())));
                Poll::Pending
            }
            // Polled after it was ready: a caller's mistake that must not end in a panic.
            Waiter::Free => Poll::Pending,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.core.lock();
        let before = std::mem::replace(&mut state.waiters[self.token as usize], Waiter::Free);
        state.free.push(self.token);
        if matches!(before, Waiter::Calling(_)) {
            let mut wakers = Vec::new();
            self.core.step(&mut state, Input::Command(ClientCommand::Cancel(self.call)), &mut wakers);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Hears the service. Knows its client weakly, because the client owns the guard of the channel.
struct Replies(OnceLock<Weak<Core>>);

impl ChannelHandler for Replies {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let core = self.0.get().and_then(Weak::upgrade);
        if let Some(core) = core {
            let from = process_id_of(from);
            let mut wakers = Vec::with_capacity(frames.len());
            let mut state = core.lock();
            let now = core.now();
            for frame in frames.drain(..) {
                match Message::from_bytes(frame) {
                    Ok(message) => {
                        core.step_at(now, &mut state, Input::Received { from, message }, &mut wakers);
                    }
                    Err(error) => tracing::warn!(peer = %from, %error, "a damaged rpc message was dropped"),
                }
            }
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
        frames.clear();
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        self.tell(match event {
            PeerEvent::Up(peer) => Input::Reachable(process_id_of(peer)),
            PeerEvent::Down(peer) => Input::Unreachable(process_id_of(peer)),
        });
    }

    fn on_refused(&self, peer: Identity, channel: Channel) {
        let Some(core) = self.0.get().and_then(Weak::upgrade) else { return };
        if channel == core.channel && peer.node == core.server {
            let message = Message::Rejected { client: core.number, reason: Rejection::NoSuchService };
            self.tell(Input::Received { from: process_id_of(peer), message });
        }
    }
}

impl Replies {
    fn tell(&self, input: Input<rpc::Client>) {
        let Some(core) = self.0.get().and_then(Weak::upgrade) else { return };
        let mut wakers = Vec::new();
        core.step(&mut core.lock(), input, &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Gives the machine its ticks and the connection what waited for room. Ends with the client.
async fn keep_time(core: Weak<Core>, wanted: Arc<Notify>) {
    loop {
        let Some(strong) = core.upgrade() else { return };
        let (wakes, blocked) = {
            let mut state = strong.lock();
            let blocked = !strong.flush(&mut state);
            let now = strong.now();
            let mut wakers = Vec::new();
            if state.machine.deadline().is_some_and(|deadline| deadline <= now) {
                strong.step_at(now, &mut state, Input::Tick, &mut wakers);
            }
            let wakes = state.machine.deadline();
            state.task_wakes = wakes;
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
            (wakes.map(|wakes| post::instant_of(strong.epoch, wakes)), blocked)
        };
        let (node, server) = (strong.node.clone(), strong.server);
        // Not held while waiting: the client may be dropped meanwhile.
        drop(strong);
        let sleep = async {
            match wakes {
                Some(moment) => tokio::time::sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        let room = async {
            if blocked {
                // An error ends the waiting too: what cannot be sent is then dropped, and repeated by its timer.
                let _ = node.ready(server, Lane::Ordinary).await;
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = wanted.notified() => {}
            () = room => {}
            () = sleep => {}
        }
    }
}

/// What a one-way call counts while it waits.
fn one_way_cost(body: &Bytes) -> usize {
    body.len() + size_of::<Waiting>()
}

/// Bytes of one-way calls that may wait for room on the connection, beside what the connection itself holds; one that
/// would exceed it is not sent, and its caller told.
const ONE_WAY_BYTES_MAX: usize = 8 << 20;
/// The first pause of who waits until a service is available; doubles up to the longest.
const PATIENCE_PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest pause: a service that comes is found within a second.
const PATIENCE_PAUSE_MAX: Duration = Duration::from_secs(1);
