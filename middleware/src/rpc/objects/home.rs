//! The face of the machine of references: one for each node that has its objects open.
//!
//! Method      whoever uses or drops a reference steps the machine in its own task, under one lock; one task gives it its
//!             ticks, so that what is said to one owner at about the same time leaves as one message. Nothing of the
//!             user's is dropped, and nothing is sent, under the lock.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use quorate_protocols::objects::{
    Objects as Machine, ObjectsCommand, ObjectsConfig, ObjectsEvent, ObjectsMessage, ObjectsStats, Reference,
    Standing,
};
use quorate_protocols::{Input, Lane, Machine as _, Output, Outputs, ProcessId, Wire};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::super::calls::Core;
use super::super::here::{Desk, Local};
use super::super::post;
use super::super::server::Service;
use super::counter;
use super::pledges::Pledges;
use super::{ExportError, ObjectsOptions};
use crate::node::{
    Channel, ChannelGuard, ChannelHandler, ChannelTaken, Identity, Incarnation, Node, NodeId, PeerEvent,
    identity_of, lane_of, process_id_of,
};

pub(in crate::rpc) struct Home {
    pub(super) node: Node,
    pub(super) options: ObjectsOptions,
    /// The zero of the machine's time.
    epoch: Instant,
    state: Mutex<State>,
    exports: Mutex<BTreeMap<u64, Arc<Export>>>,
    pub(super) pledges: Pledges,
    /// The bindings to other nodes' objects. They outlive their references: to bind again takes a round trip.
    cores: Mutex<BTreeMap<NodeId, Arc<Core>>>,
    /// Numbers of objects and of references on their way; never given twice in one life of the node.
    numbers: AtomicU64,
    is_closed: AtomicBool,
    /// An earlier deadline.
    wanted: Arc<Notify>,
    task: OnceLock<AbortHandle>,
    guard: Mutex<Option<ChannelGuard>>,
}

struct State {
    machine: Machine,
    outputs: Outputs<Machine>,
}

/// An object of this node.
pub(super) struct Export {
    pub(super) service: Box<dyn Service>,
    /// Where callers of this very node are served.
    desk: Arc<Desk>,
}

impl Drop for Export {
    fn drop(&mut self) {
        self.desk.end();
    }
}

/// What a step leaves to be done without the lock.
#[derive(Default)]
struct After {
    messages: Vec<(ProcessId, Lane, ObjectsMessage)>,
    collected: Vec<u64>,
}

impl Home {
    pub(super) fn open(node: &Node, options: ObjectsOptions) -> Result<Arc<Self>, ChannelTaken> {
        let config = ObjectsConfig {
            lease: options.lease,
            transit: options.transit,
            exported_max: options.exported_max,
            holder_max: options.peer_max,
            held_max: options.held_max,
            ..ObjectsConfig::default()
        };
        // Whoever opened them before in this life of the node has used smaller numbers.
        let first = node.next_machine() << NUMBER_BITS;
        let words = Arc::new(Words(OnceLock::new()));
        let wanted = Arc::<Notify>::default();
        let home = Arc::new(Self {
            node: node.clone(),
            options,
            epoch: Instant::now(),
            state: Mutex::new(State {
                machine: Machine::new(process_id_of(node.identity()), first, config),
                outputs: Outputs::new(),
            }),
            exports: Mutex::default(),
            pledges: Pledges::new(Arc::clone(&wanted)),
            cores: Mutex::default(),
            numbers: AtomicU64::new(first + 1),
            is_closed: AtomicBool::new(false),
            wanted,
            task: OnceLock::new(),
            guard: Mutex::default(),
        });
        let _ = words.0.set(Arc::downgrade(&home));
        *home.guard() = Some(node.open(CHANNEL, words)?);
        let task = tokio::spawn(keep_time(Arc::downgrade(&home), Arc::clone(&home.wanted)));
        let _ = home.task.set(task.abort_handle());
        Ok(home)
    }

    /// That of a node that has its objects open.
    pub(in crate::rpc) fn of(node: &Node) -> Option<Arc<Self>> {
        node.local(CHANNEL)?.downcast::<Weak<Self>>().ok()?.upgrade()
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.step(Input::Command(ObjectsCommand::Close));
        let exports = std::mem::take(&mut *self.exports());
        drop(exports);
        self.pledges.clear();
        let cores = std::mem::take(&mut *self.cores());
        drop(cores);
        if let Some(task) = self.task.get() {
            task.abort();
        }
        let guard = self.guard().take();
        drop(guard);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    pub(super) fn stats(&self) -> ObjectsStats {
        self.lock().machine.stats()
    }

    pub(super) fn me(&self) -> ProcessId {
        process_id_of(self.node.identity())
    }

    pub(super) fn standing(&self, reference: Reference) -> Standing {
        let now = post::time_since(self.epoch);
        self.lock().machine.standing(now, reference)
    }

    /// Somebody would use a reference whose owner is silent.
    pub(super) fn want(&self, reference: Reference) {
        self.step(Input::Command(ObjectsCommand::Want(reference)));
    }

    pub(super) fn export(&self, service: Box<dyn Service>) -> Result<Reference, ExportError> {
        let number = self.number();
        let name = service.schema().service;
        let desk = Arc::new(Desk::new(name, &self.options.serve, self.node.stopping()));
        let mut exports = self.exports();
        if self.is_closed() {
            return Err(ExportError::Closed);
        }
        let limit = self.options.exported_max;
        if exports.len() >= limit {
            return Err(ExportError::TooMany { limit });
        }
        exports.insert(number, Arc::new(Export { service, desk }));
        drop(exports);
        self.step(Input::Command(ObjectsCommand::Export { number }));
        Ok(Reference { owner: self.me(), number })
    }

    pub(super) fn withdraw(&self, reference: Reference) -> bool {
        let is_there = reference.owner == self.me() && self.exported(reference.number).is_some();
        if is_there {
            self.step(Input::Command(ObjectsCommand::Withdraw { number: reference.number }));
        }
        is_there
    }

    pub(super) fn exported(&self, number: u64) -> Option<Arc<Export>> {
        self.exports().get(&number).cloned()
    }

    /// An object of this node, for whoever calls it from there.
    pub(super) fn local(&self, number: u64) -> Option<Local> {
        let export = self.exported(number)?;
        let service = export.service.here();
        Some(Local { desk: Arc::clone(&export.desk), codec: export.service.codec(), service })
    }

    pub(super) fn release(&self, reference: Reference) {
        self.step(Input::Command(ObjectsCommand::Release(reference)));
    }

    /// Keeps what is passed on to `to`; gives the pin that travels with it. `None` when that one, or this node, has too
    /// many.
    pub(super) fn depart(&self, reference: Reference, to: ProcessId) -> Option<u64> {
        if self.is_closed() || (reference.owner == self.me() && !self.lock().machine.may_give(to)) {
            return None;
        }
        let pin = self.number();
        self.step(Input::Command(ObjectsCommand::Depart { reference, to, pin }));
        Some(pin)
    }

    /// What was passed on has never left.
    pub(in crate::rpc) fn recall(&self, pin: u64) {
        self.step(Input::Command(ObjectsCommand::Recall { pin }));
    }

    /// Takes a reference that has come; a use of it begins. False when too many are held.
    pub(super) fn arrive(&self, reference: Reference, from: ProcessId, pin: u64) -> bool {
        let me = self.me();
        if self.is_closed() || !self.lock().machine.may_take(reference, from) {
            return false;
        }
        self.step(Input::Command(ObjectsCommand::Arrive { reference, from, pin }));
        let known = match reference.owner.node == me.node {
            true => Some(me),
            false => {
                let peers = self.node.peers().into_iter().map(process_id_of);
                peers.into_iter().find(|peer| peer.node == reference.owner.node)
            }
        };
        // It may have been on its way when its owner began another life.
        if known.is_some_and(|known| known.incarnation > reference.owner.incarnation) {
            self.step(Input::Command(ObjectsCommand::Ended(reference.owner)));
        }
        true
    }

    /// Tells a server that nobody will call ahead what was promised under this number any more.
    pub(super) fn forget(&self, server: ProcessId, number: u64) {
        let mut word = [FORGET; 1 + size_of::<u64>()];
        word[1..].copy_from_slice(&number.to_le_bytes());
        let (to, lane) = (identity_of(server), lane_of(Lane::Control));
        // Lost, it is forgotten after a while.
        let _ = match server.incarnation {
            ProcessId::ANY_LIFE => self.node.send(to.node, lane, CHANNEL, &[&word], Bytes::new()),
            _ => self.node.send_to_life(to, lane, CHANNEL, &[&word], Bytes::new()),
        };
    }

    /// The binding to the objects of a node.
    pub(in crate::rpc) fn core(&self, owner: NodeId) -> Option<Arc<Core>> {
        let mut cores = self.cores();
        if let Some(core) = cores.get(&owner) {
            return Some(Arc::clone(core));
        }
        if cores.len() >= CORES_KEPT {
            cores.retain(|_, core| Arc::strong_count(core) > 1);
        }
        // In whichever life: what a reference says of that is somebody's word. Each request says for which one it is.
        let whoever = Identity::new(owner, Incarnation(ProcessId::ANY_LIFE));
        let core =
            Core::open(&self.node, counter::SERVICE, whoever, counter::CODEC, self.options.calls).ok()?;
        cores.insert(owner, Arc::clone(&core));
        Some(core)
    }

    pub(in crate::rpc) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn step(&self, input: Input<Machine>) {
        let now = post::time_since(self.epoch);
        let mut after = After::default();
        let is_due = {
            let mut state = self.lock();
            let State { machine, outputs } = &mut *state;
            let before = machine.deadline();
            machine.handle(now, input, outputs);
            for output in outputs.drain() {
                match output {
                    Output::Send { to, lane, message } => {
                        after.messages.extend(to.as_slice().iter().map(|to| (*to, lane, message.clone())));
                    }
                    Output::Event(ObjectsEvent::Collected { number }) => after.collected.push(number),
                    Output::Event(ObjectsEvent::Dangling(reference)) => {
                        tracing::debug!(%reference, "a reference has lost its object");
                    }
                    Output::Persist(()) | Output::Barrier => {}
                }
            }
            machine.deadline().is_some_and(|deadline| before.is_none_or(|before| deadline < before))
        };
        if is_due {
            self.wanted.notify_one();
        }
        for (to, lane, message) in after.messages {
            // Lost, it is repeated.
            let bytes = message.to_bytes();
            let _ = self.node.send_to_life(identity_of(to), lane_of(lane), CHANNEL, &[&bytes], Bytes::new());
        }
        if !after.collected.is_empty() {
            let mut exports = self.exports();
            let garbage: Vec<_> =
                after.collected.iter().filter_map(|number| exports.remove(number)).collect();
            drop(exports);
            // What the user does when an object is dropped must neither hold up nor end what stands here.
            self.node.spawn(async move { drop(garbage) });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exports(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Export>>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cores(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Core>>> {
        self.cores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guard(&self) -> MutexGuard<'_, Option<ChannelGuard>> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears the other nodes. Knows its home weakly, which owns the guard of the channel.
struct Words(OnceLock<Weak<Home>>);

impl Words {
    fn tell(&self, input: Input<Machine>) {
        if let Some(home) = self.0.get().and_then(Weak::upgrade) {
            home.step(input);
        }
    }
}

impl ChannelHandler for Words {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let from = process_id_of(from);
        for frame in frames.drain(..) {
            if let (Some(&FORGET), Some(number)) =
                (frame.first(), frame.get(1..).and_then(<[u8]>::first_chunk))
            {
                if let Some(home) = self.0.get().and_then(Weak::upgrade) {
                    home.pledges.forget((from, u64::from_le_bytes(*number)));
                }
                continue;
            }
            match ObjectsMessage::from_bytes(frame) {
                Ok(message) => self.tell(Input::Received { from, message }),
                Err(error) => {
                    tracing::warn!(peer = %from, %error, "a damaged word about references was dropped")
                }
            }
        }
        Poll::Ready(())
    }

    fn local(&self) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(self.0.get()?.clone()))
    }

    fn on_peer(&self, event: PeerEvent) {
        self.tell(match event {
            PeerEvent::Up(peer) => Input::Reachable(process_id_of(peer)),
            PeerEvent::Down(peer) => Input::Unreachable(process_id_of(peer)),
        });
    }
}

/// Gives the machine its ticks. Ends with its home.
async fn keep_time(home: Weak<Home>, wanted: Arc<Notify>) {
    loop {
        let Some(strong) = home.upgrade() else { return };
        let now = post::time_since(strong.epoch);
        if strong.lock().machine.deadline().is_some_and(|deadline| deadline <= now) {
            strong.step(Input::Tick);
        }
        let wakes = strong.lock().machine.deadline().map(|at| post::instant_of(strong.epoch, at));
        let wakes = [wakes, strong.pledges.tick()].into_iter().flatten().min();
        drop(strong);
        let sleep = async {
            match wakes {
                Some(moment) => tokio::time::sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = wanted.notified() => {}
            () = sleep => {}
        }
    }
}

/// Where nodes tell each other what they hold.
const CHANNEL: Channel = Channel::named("rpc references", "");
/// Bindings that are kept although nothing of their node is held: some KiB each.
const CORES_KEPT: usize = 256;
/// Beside the kinds of the machine's messages: a pledge, by its number.
const FORGET: u8 = 64;
/// Objects and references of one opening of a node's objects: more than it can make in its life.
const NUMBER_BITS: u32 = 40;
