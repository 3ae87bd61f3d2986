//! The calls of one client that have not ended, and the task and the channel that end them.
//!
//! Method      the caller's own task takes the lock of its client, steps the machine and hands the request to the
//!             connection; there is no task and no channel per call. The reader task of the connection steps the
//!             machine with the replies and wakes the callers. One task per client waits for the machine's deadline
//!             and for room on a full connection.
//! Limits      [`ClientOptions::calls_max`] calls, `ONE_WAY_BYTES_MAX` bytes of one-way calls that wait for room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use quorate_protocols::rpc::{
    self, CallId, ClientCommand, ClientConfig, ClientEvent, Message, Outcome, Rejection, Semantics,
};
use quorate_protocols::{Input, Machine, Output, Outputs, Time};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::call::{Request, Started};
use super::client::ClientOptions;
use super::error::{BindError, CallError, NotSent};
use super::here::Local;
use super::port::Streams;
use super::post::{self, Posted, Way};
use super::replies::Replies;
use super::retry::Tank;
use super::trace::Numbers;
use crate::node::{
    Channel, ChannelGuard, ChannelHandler, Identity, Lane, Node, NodeId, identity_of, process_id_of,
};

/// What all clones of a client share.
pub(super) struct Core {
    pub(super) node: Node,
    pub(super) server: NodeId,
    /// The service.
    pub(super) name: Box<str>,
    pub(super) number: u32,
    /// Where the service hears.
    pub(super) channel: Channel,
    pub(super) options: ClientOptions,
    /// The zero of the machine's time.
    epoch: Instant,
    state: Mutex<State>,
    /// Somebody needs the task: an earlier deadline, or a full connection.
    task_wanted: Arc<Notify>,
    task: OnceLock<AbortHandle>,
    pub(super) streams: Streams,
    /// Whether the server is known to live.
    pub(super) reached: watch::Sender<bool>,
    /// What it may add to the calls that it was asked for.
    pub(super) tank: Tank,
    /// Of the spans of its calls.
    pub(super) numbers: Numbers,
    /// Where we hear; closes when the last clone is dropped.
    _replies: ChannelGuard,
}

pub(super) struct State {
    pub(super) machine: rpc::Client,
    outputs: Outputs<rpc::Client>,
    pub(super) way: Way,
    pub(super) head: BytesMut,
    /// Kept for its room.
    pub(super) wakers: Vec<Waker>,
    pub(super) waiters: Vec<Waiter>,
    free: Vec<u32>,
    /// What found the connection full, in order.
    waiting_for_room: VecDeque<Waiting>,
    /// Bytes of the one-way calls in there.
    one_way_bytes: usize,
    /// When the task looks again.
    task_wakes: Option<Time>,
    binding: Binding,
    /// What was told last of whether the server is known to live.
    is_reached: bool,
}

/// What waits for room on the connection.
enum Waiting {
    /// The request of a call, which the machine keeps as long as somebody waits for the call.
    Call(CallId),
    /// One-way calls, of which the machine keeps nothing, and small messages.
    Message(Message),
}

pub(super) enum Waiter {
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
    pub(super) fn open(
        node: &Node,
        name: &str,
        server: Identity,
        codec: u8,
        options: ClientOptions,
    ) -> Result<Arc<Self>, BindError> {
        let number = node.fresh_number();
        let replies = Arc::new(Replies::default());
        let handler: Arc<dyn ChannelHandler> = Arc::clone(&replies) as _;
        let guard = node.open(post::reply_channel(number), handler).map_err(|_| BindError::NodeShutDown)?;
        let seed = post::seed(node.identity(), number);
        let mut config = ClientConfig::new(number, codec, seed);
        config.calls_max = options.calls_max;
        config.retry_min = options.retry_min;
        config.retry_max = options.retry_max;
        config.exactly_once = options.exactly_once;
        let core = Arc::new(Self {
            node: node.clone(),
            server: server.node,
            name: name.into(),
            number,
            channel: post::service_channel(name),
            options,
            epoch: Instant::now(),
            state: Mutex::new(State {
                machine: rpc::Client::new(process_id_of(server), config),
                outputs: Outputs::new(),
                way: Way::default(),
                head: BytesMut::new(),
                wakers: Vec::new(),
                waiters: Vec::new(),
                free: Vec::new(),
                waiting_for_room: VecDeque::new(),
                one_way_bytes: 0,
                task_wakes: None,
                binding: Binding::Asking(None),
                is_reached: false,
            }),
            task_wanted: Arc::new(Notify::new()),
            task: OnceLock::new(),
            streams: Streams::new(true),
            reached: watch::Sender::new(false),
            tank: Tank::new(options.budget),
            numbers: Numbers::new(seed),
            _replies: guard,
        });
        // Nobody else knows the handle yet, so it is empty.
        replies.belong_to(&core);
        let task = tokio::spawn(keep_time(Arc::downgrade(&core), Arc::clone(&core.task_wanted)));
        let _ = core.task.set(task.abort_handle());
        core.step(&mut core.lock(), Input::Tick, &mut Vec::new());
        Ok(core)
    }

    /// The service, when this very node serves it.
    pub(super) fn service_here(&self) -> Option<Local> {
        if self.server != self.node.identity().node {
            return None;
        }
        self.node.local(self.channel)?.downcast::<Local>().ok().map(|local| *local)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held (a failed debug assertion) must not take the other callers down.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Time {
        post::time_since(self.epoch)
    }

    pub(super) async fn bound(&self) -> Result<(), Rejection> {
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
    pub(super) fn start(&self, request: Request, waker: Option<Waker>) -> Result<Started, CallError> {
        let Request { method, semantics, body, signature, deadline, carrier, travelled: _, span: _ } =
            request;
        let method = carrier.unwrap_or(method);
        let mut state = self.lock();
        let token = state.free.pop().unwrap_or_else(|| {
            state.waiters.push(Waiter::Free);
            (state.waiters.len() - 1) as u32
        });
        state.waiters[token as usize] = Waiter::Calling(waker);
        let call = state.machine.upcoming();
        let now = self.now();
        let command = ClientCommand::Call {
            token,
            method: method.id,
            signature,
            semantics,
            deadline: now + deadline,
            body,
        };
        let mut wakers = Vec::new();
        let sent = self.step_at(now, &mut state, Input::Command(command), &mut wakers);
        let ended = match sent {
            Posted::Sent => state.take_outcome(token).map(|outcome| self.read(outcome, deadline)),
            never => {
                // Nobody will wait for it: taken back, if it has not ended with all others.
                if matches!(state.forget(token), Waiter::Calling(_)) {
                    self.step_at(now, &mut state, Input::Command(ClientCommand::Cancel(call)), &mut wakers);
                }
                Some(Err(CallError::NotSent(match never {
                    Posted::TooLarge { size, limit } => NotSent::TooLarge { size, limit },
                    Posted::NoRoom { waiting } => NotSent::NoRoom { waiting, limit: ONE_WAY_BYTES_MAX },
                    Posted::Sent | Posted::ShutDown => NotSent::NodeShutDown,
                })))
            }
        };
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        match ended {
            None => Ok(Started::Going { token, call }),
            // Only what nobody answers ends well at once, and so with nothing.
            Some(result) => result.map(|_| Started::Sent),
        }
    }

    pub(super) fn step(&self, state: &mut State, input: Input<rpc::Client>, wakers: &mut Vec<Waker>) {
        self.step_at(self.now(), state, input, wakers);
    }

    /// Steps the machine and carries out what it says. Wakers are woken by the caller when it has let go of the
    /// lock. Tells when a message can never be sent.
    pub(super) fn step_at(
        &self,
        now: Time,
        state: &mut State,
        input: Input<rpc::Client>,
        wakers: &mut Vec<Waker>,
    ) -> Posted {
        let State {
            machine,
            outputs,
            way,
            head,
            waiters,
            waiting_for_room,
            one_way_bytes,
            task_wakes,
            binding,
            is_reached,
            ..
        } = state;
        machine.handle(now, input, outputs);
        // As long as it is bound, the life of the server is known, and so its connection.
        let server = machine.bound_to().map(identity_of);
        if machine.is_served() != *is_reached {
            *is_reached = machine.is_served();
            self.reached.send_replace(*is_reached);
        }
        let mut posted = Posted::Sent;
        for output in outputs.drain() {
            match output {
                Output::Send { lane, message, .. } => {
                    if waiting_for_room.is_empty() {
                        match way.send(&self.node, self.server, server, lane, self.channel, &message, head) {
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
        let State { machine, waiting_for_room, one_way_bytes, way, head, .. } = state;
        let server = machine.bound_to().map(identity_of);
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
                match way.send(&self.node, self.server, server, ordinary, self.channel, message, head) {
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
        self.streams.break_off(|_, _| true);
    }
}

impl State {
    /// See [`Client::table_bytes`](super::Client::table_bytes).
    pub(super) fn table_bytes(&self) -> usize {
        let waiters = self.waiters.capacity() * size_of::<Waiter>() + self.free.capacity() * size_of::<u32>();
        self.machine.table_bytes() + waiters
    }

    /// Takes what became of a call, if it has ended.
    pub(super) fn take_outcome(&mut self, token: u32) -> Option<Outcome> {
        match std::mem::replace(&mut self.waiters[token as usize], Waiter::Free) {
            Waiter::Ended(outcome) => {
                self.free.push(token);
                Some(outcome)
            }
            other => {
                self.waiters[token as usize] = other;
                None
            }
        }
    }

    /// Nobody waits for the call any more; tells what was known of it.
    pub(super) fn forget(&mut self, token: u32) -> Waiter {
        self.free.push(token);
        std::mem::replace(&mut self.waiters[token as usize], Waiter::Free)
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
