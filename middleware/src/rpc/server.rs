//! The service's side: a thin face over the server machine.
//!
//! Method      the reader task of a connection steps the machine with a batch of requests, polls each handler once,
//!             right there, and answers all that are ready with one more step. Only a handler that has to wait gets
//!             a task of its own; see [`executing`](super::executing).
//! Limits      [`ServeOptions`].

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_protocols::rpc::{self, Execution, Orphans, ServerCommand, ServerConfig, ServerEvent};
use quorate_protocols::{Input, Machine, Output, Outputs, Targets, Time};
use quorate_transports::Credentials;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::answers::{BLOCKED_BYTES_MAX, Blocked};
use super::endings::Unstable;
use super::envelope::Compression;
use super::error::ServeError;
use super::exactly_once::{Durable, Keeper, State as DurableState};
use super::executing::Order;
use super::generated::{AnyService, Dispatched};
use super::here::{Desk, Local};
use super::manner::Manner;
use super::orphans;
use super::port::Streams;
use super::post::{self, Way};
use super::schema::{MethodSchema, Schema, Semantics};
use crate::node::{ChannelGuard, ChannelHandler, Identity, Node, NodeId, PeerEvent, process_id_of};

/// Something that other processes can call; `#[service]` makes it of a trait.
pub trait Service: Send + Sync + 'static {
    /// What it offers.
    fn schema(&self) -> &'static Schema;

    /// The id of the codec that it uses.
    fn codec(&self) -> u8;

    /// Decodes a request for the method with this id and begins to execute it; `added` holds the arguments that were
    /// added to the method later. Must not block.
    fn dispatch(&self, method: u32, request: Bytes, added: Bytes) -> Dispatched;

    /// What a generated client of the same process calls without messages.
    #[doc(hidden)]
    fn here(&self) -> AnyService {
        Box::new(())
    }
}

/// How a service is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Requests executing at once; one more is refused as overloaded. Default 1,024. Small values refuse bursts,
    /// large ones let memory grow with slow handlers. What has executed exactly once and waits for the journal has left
    /// its place.
    pub executing_max: u32,
    /// Outstanding calls of one client, at most, whatever the client itself allows. Default 16,384.
    pub calls_max: u32,
    /// Clients known at once; the one that has been silent longest makes room. Default 1,024.
    pub clients_max: usize,
    /// Bytes of replies kept for one client until it acknowledges them. Default 1 MiB.
    pub reply_bytes_max: usize,
    /// What is done about executions whose caller may be gone. Default: a new life of its process ends them.
    pub orphans: Orphans,
    /// How it works on its requests. Default: many at a time.
    pub manner: Manner,
    /// Whether answers are compressed for clients that can read them so. Default: off.
    pub compression: Compression,
}

impl Default for ServeOptions {
    fn default() -> Self {
        let machine = ServerConfig::new(0, 0);
        Self {
            executing_max: machine.executing_max,
            calls_max: machine.slots_max,
            clients_max: machine.clients_max,
            reply_bytes_max: machine.reply_bytes_max,
            orphans: machine.orphans,
            manner: Manner::Concurrent,
            compression: Compression::Off,
        }
    }
}

impl Node {
    /// Serves `service` under `name` until the returned handle is dropped or shut down.
    ///
    /// # Errors
    /// [`ServeError::NameTaken`].
    ///
    /// Must be called within a tokio runtime: handlers that wait run there.
    pub fn serve(&self, name: &str, service: impl Service) -> Result<Serving, ServeError> {
        self.serve_with(name, service, ServeOptions::default())
    }

    /// As [`serve`](Self::serve), with limits of the caller's choice.
    ///
    /// # Errors
    /// [`ServeError::NameTaken`].
    pub fn serve_with(
        &self,
        name: &str,
        service: impl Service,
        options: ServeOptions,
    ) -> Result<Serving, ServeError> {
        let once = |method: &&MethodSchema| method.semantics == Semantics::ExactlyOnce;
        if let Some(method) = service.schema().methods.iter().find(once) {
            return Err(ServeError::NeedsDurable { name: name.to_owned(), method: method.name });
        }
        self.serve_kept(name, service, options, None)
    }

    /// Serves a service whose exactly-once methods keep their effects in `durable`; the service itself holds a clone
    /// of it. Callers of the same node use messages, too: their answers are recorded like all others.
    ///
    /// # Errors
    /// [`ServeError::NameTaken`].
    pub fn serve_durable<S: DurableState>(
        &self,
        name: &str,
        service: impl Service,
        options: ServeOptions,
        durable: &Durable<S>,
    ) -> Result<Serving, ServeError> {
        self.serve_kept(name, service, options, Some(durable.keeper()))
    }

    fn serve_kept(
        &self,
        name: &str,
        service: impl Service,
        options: ServeOptions,
        keeper: Option<Arc<dyn Keeper>>,
    ) -> Result<Serving, ServeError> {
        let mut config = ServerConfig::new(service.codec(), post::seed(self.identity(), self.fresh_number()));
        config.executing_max = options.executing_max;
        config.slots_max = options.calls_max;
        config.clients_max = options.clients_max;
        config.reply_bytes_max = options.reply_bytes_max;
        config.exactly_once = keeper.is_some();
        config.orphans = options.orphans;
        let core = Arc::new(Core {
            node: self.clone(),
            desk: Arc::new(Desk::new(name, &options, self.stopping())),
            name: name.to_owned(),
            service: Box::new(service),
            compression: options.compression,
            keeper,
            epoch: Instant::now(),
            state: Mutex::new(State {
                machine: rpc::Server::new(config),
                outputs: Outputs::new(),
                way: Way::default(),
                head: BytesMut::new(),
                running: BTreeMap::new(),
                blocked: BTreeMap::new(),
                unstable: Unstable::default(),
                totals: Totals::default(),
            }),
            streams: Streams::new(false),
            idle: Notify::new(),
        });
        let guard = self
            .open(post::service_channel(name), Arc::new(Requests(Arc::clone(&core))))
            .map_err(|_| ServeError::NameTaken { name: name.to_owned() })?;
        if let Some(period) = orphans::period(options.orphans) {
            tokio::spawn(tick(Arc::downgrade(&core), period));
        }
        Ok(Serving { core, guard: Some(guard) })
    }
}

/// A service that is being served. Dropping it stops at once: handlers are dropped, clients see the service gone.
pub struct Serving {
    core: Arc<Core>,
    guard: Option<ChannelGuard>,
}

impl Serving {
    /// What is offered.
    pub fn schema(&self) -> &'static Schema {
        self.core.service.schema()
    }

    /// Totals and present state.
    pub fn stats(&self) -> ServeStats {
        let state = self.core.lock();
        ServeStats {
            requests: state.machine.stats(),
            executing: state.machine.executing() + self.core.desk.executing(),
            executed_here: self.core.desk.executed(),
            clients: state.machine.clients(),
            kept_bytes: state.machine.kept_bytes(),
            spawned: state.totals.spawned,
            panicked: state.totals.panicked + self.core.desk.panicked(),
            malformed: state.totals.malformed,
            shed: state.totals.shed,
        }
    }

    /// Takes no new requests, lets those that execute finish and answers them, at most until `deadline`; then stops.
    /// Tells how many were left without their answer.
    ///
    /// # Cancel safety
    /// Dropping the future stops at once.
    pub async fn shutdown(mut self, deadline: Duration) -> usize {
        let left = self.drain(deadline).await;
        self.guard.take();
        left
    }

    /// As [`shutdown`](Self::shutdown), but goes on refusing for as long as the handle lives, so that who still comes is
    /// told at once that nothing was executed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the service refusing; call again to wait.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.core.step(&mut self.core.lock(), Input::Command(ServerCommand::Drain));
        self.core.desk.drain();
        let idle = async {
            loop {
                let notified = self.core.idle.notified();
                {
                    let state = self.core.lock();
                    if state.is_idle() {
                        break;
                    }
                }
                notified.await;
            }
        };
        let both = async {
            idle.await;
            self.core.desk.wait_idle().await;
        };
        let _ = tokio::time::timeout(deadline, both).await;
        let state = self.core.lock();
        state.machine.executing() as usize + state.unstable.len() + self.core.desk.executing() as usize
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.guard.take();
        self.core.desk.end();
        self.core.streams.break_off(|_, _| true);
        let mut state = self.core.lock();
        state.unstable.abandon();
        for (_, task) in std::mem::take(&mut state.running) {
            task.abort();
        }
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serving {:?}", self.core.name)
    }
}

/// What a service has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeStats {
    /// What became of the requests.
    pub requests: rpc::ServerStats,
    /// Requests that execute now.
    pub executing: u32,
    /// Requests of callers of the same node, which need no message.
    pub executed_here: u64,
    /// Clients known now.
    pub clients: usize,
    /// Bytes of replies kept now.
    pub kept_bytes: usize,
    /// Handlers that had to wait and got a task of their own.
    pub spawned: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Frames that were no message.
    pub malformed: u64,
    /// Requests and questions dropped because too many answers wait for their sender to read; they come again.
    pub shed: u64,
}

pub(super) struct Core {
    pub(super) node: Node,
    /// Where callers of this very node are served.
    pub(super) desk: Arc<Desk>,
    pub(super) name: String,
    pub(super) service: Box<dyn Service>,
    pub(super) compression: Compression,
    /// Keeps the effects of exactly-once calls.
    pub(super) keeper: Option<Arc<dyn Keeper>>,
    /// The zero of the machine's time.
    pub(super) epoch: Instant,
    state: Mutex<State>,
    pub(super) streams: Streams,
    /// Told whenever nothing executes and nothing waits to be sent.
    pub(super) idle: Notify,
}

pub(super) struct State {
    pub(super) machine: rpc::Server,
    outputs: Outputs<rpc::Server>,
    /// To whom was answered last: answers come in runs.
    pub(super) way: Way,
    pub(super) head: BytesMut,
    /// The tasks of handlers that have to wait.
    pub(super) running: BTreeMap<Execution, AbortHandle>,
    /// Answers that found a connection full.
    pub(super) blocked: BTreeMap<NodeId, Blocked>,
    /// Answers that are not durable yet.
    pub(super) unstable: Unstable,
    pub(super) totals: Totals,
}

impl State {
    /// Nothing executes, and nothing waits to be answered.
    pub(super) fn is_idle(&self) -> bool {
        self.machine.executing() == 0 && self.unstable.len() == 0 && self.blocked.is_empty()
    }
}

#[derive(Default)]
pub(super) struct Totals {
    pub(super) spawned: u64,
    pub(super) panicked: u64,
    malformed: u64,
    shed: u64,
}

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock (a failed debug assertion) must not silence the service.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps the machine with something that asks for no execution.
    pub(super) fn step(self: &Arc<Self>, state: &mut State, input: Input<rpc::Server>) {
        self.step_at(post::time_since(self.epoch), state, input, &mut Vec::new());
    }

    /// Steps the machine, answers, and collects what is to be executed when the lock is let go.
    pub(super) fn step_at(
        self: &Arc<Self>,
        now: Time,
        state: &mut State,
        input: Input<rpc::Server>,
        orders: &mut Vec<Order>,
    ) {
        let mut outputs = std::mem::take(&mut state.outputs);
        state.machine.handle(now, input, &mut outputs);
        for output in outputs.drain() {
            match output {
                Output::Send { to: Targets::One(to), lane, message } => self.answer(state, to, lane, message),
                Output::Send { to: Targets::Many(to), lane, message } => {
                    for to in &*to {
                        self.answer(state, *to, lane, message.clone());
                    }
                }
                Output::Event(ServerEvent::Execute {
                    execution,
                    method,
                    signature,
                    deadline,
                    body,
                    acknowledged,
                    unless,
                }) => {
                    orders.push(Order { execution, method, signature, deadline, body, acknowledged, unless });
                }
                Output::Event(ServerEvent::SeatWanted { from, client }) => {
                    if let Some(keeper) = &self.keeper {
                        let seat = Arc::clone(keeper).seat(from, client);
                        let core = Arc::clone(self);
                        tokio::spawn(async move {
                            let command = ServerCommand::Seated { from, client, seat: seat.await };
                            core.step(&mut core.lock(), Input::Command(command));
                        });
                    }
                }
                Output::Event(ServerEvent::Abort(execution)) => {
                    if let Some(task) = state.running.remove(&execution) {
                        task.abort();
                    }
                }
                Output::Persist(()) | Output::Barrier => {}
            }
        }
        state.outputs = outputs;
        if state.is_idle() {
            self.idle.notify_waiters();
        }
    }
}

/// Hears the clients.
struct Requests(Arc<Core>);

impl ChannelHandler for Requests {
    fn local(&self) -> Option<Box<dyn Any + Send>> {
        if self.0.keeper.is_some() {
            return None;
        }
        let service = self.0.service.here();
        let local = Local { desk: Arc::clone(&self.0.desk), codec: self.0.service.codec(), service };
        Some(Box::new(local))
    }

    fn on_peer(&self, event: PeerEvent) {
        let input = match event {
            PeerEvent::Up(peer) => Input::Reachable(process_id_of(peer)),
            PeerEvent::Down(peer) => {
                let gone = process_id_of(peer);
                self.0.streams.break_off(|peer, _| peer == gone);
                Input::Unreachable(gone)
            }
        };
        self.0.step(&mut self.0.lock(), input);
    }

    fn poll_deliver(&self, cx: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        self.poll_deliver_vouched(cx, from, None, frames)
    }

    fn poll_deliver_vouched(
        &self,
        _: &mut Context<'_>,
        from: Identity,
        credentials: Option<&Credentials>,
        frames: &mut Vec<Bytes>,
    ) -> Poll<()> {
        let core = &self.0;
        let credentials = credentials.map(|vouched| Arc::new(vouched.clone()));
        let mut state = core.lock();
        // Not reading at all would be simpler, but two nodes that call each other would both wait for the other to
        // read. A dropped request is sent again by its client, later and later; what nobody answers nobody repeats.
        let sheds = state.blocked.get(&from.node).is_some_and(|blocked| blocked.bytes > BLOCKED_BYTES_MAX);
        let now = post::time_since(core.epoch);
        let from = process_id_of(from);
        let mut orders = Vec::with_capacity(ORDERS_PER_TURN);
        let mut words = Vec::new();
        for frame in frames.drain(..) {
            let read = post::each_message(frame, &mut words, |message| {
                if sheds && message.is_answered() {
                    state.totals.shed += 1;
                    return;
                }
                core.step_at(now, &mut state, Input::Received { from, message }, &mut orders);
            });
            if let Err(error) = read {
                state.totals.malformed += 1;
                tracing::warn!(service = core.name, peer = %from, %error, "a damaged rpc message was dropped");
            }
            if orders.len() >= ORDERS_PER_TURN {
                drop(state);
                core.execute(&mut orders, credentials.as_ref());
                state = core.lock();
            }
        }
        drop(state);
        core.execute(&mut orders, credentials.as_ref());
        for spoken in words {
            if let Some(answer) = core.streams.hear(from, spoken) {
                // Should it not leave, the other half asks again.
                let _ = core.say(from, &answer);
            }
        }
        Poll::Ready(())
    }
}

/// Lets the machine look after orphans. Ends with the service.
async fn tick(core: Weak<Core>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(core) = core.upgrade() else { return };
        core.step(&mut core.lock(), Input::Tick);
    }
}

/// Requests that are begun before the first of them is answered: enough to share the locks, few enough to stay in a
/// core's nearest memory on their way through it.
const ORDERS_PER_TURN: usize = 64;
