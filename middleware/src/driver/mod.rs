//! The one loop that runs a machine over real time, a node's channel and, where it keeps records, a journal.
//!
//! Purpose     every protocol of quorate runs in this loop and in the simulator, unchanged.
//! Guarantee   outputs are carried out in order; what stands behind a [`Output::Barrier`] waits until the journal has
//!             synced every record before it. A failed journal ends the machine: no promise is made that was not kept.
//!             However a machine ends, also with its runtime or by a panic, its channel is free first, then its sink is
//!             told, once.
//! Method      one task owns one machine. A turn takes all inputs that wait, up to a bound, then ticks, then carries
//!             out. A message is encoded once, however many receive it. One append is under way at a time, and what
//!             comes meanwhile is the next one: so after one that failed, none can succeed and leave a hole.
//! Frames      `to incarnation u64, from incarnation u64, message`, little-endian; an incarnation of zero addresses
//!             whichever life the receiver is in. Another life's message, and bytes that are no message, are counted
//!             and dropped.
//! Limits      [`INPUTS_PER_TURN`], [`INBOX_BYTES_MAX`] beyond which the node stops reading from the peer,
//!             [`COMMANDS_MAX`] waiting commands.

mod inbox;
mod records;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_journal::{AppendError, Journal, Pending, Position, Record};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Wire};
use quorate_transports::{Credentials, Identity, NodeId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::node::{CHANNEL_BYTES, Channel, ChannelGuard, ChannelTaken, Node, PeerEvent, lane_of};
use inbox::{Arrival, Inbox};
pub(crate) use records::{RecordsError, encode_records, read_records, save_records};

/// Where a machine's events go. Called in the machine's task: quick work only.
pub(crate) trait Sink<M: Machine>: Send + 'static {
    /// Takes one event.
    fn take(&mut self, event: M::Event);

    /// Takes a frame that is not the machine's but its face's own; see [`send_aside`].
    fn take_aside(&mut self, from: NodeId, frame: Bytes) {
        let _ = (from, frame);
    }

    /// A node can be reached from which the machine has heard nothing yet: what it is to be told of that.
    fn met(&mut self, node: NodeId) -> Option<M::Command> {
        let _ = node;
        None
    }

    /// A command that the sink itself wants to give, for example because it is full. Asked until there is none, each
    /// turn and whenever [`Setup::wake`] was notified.
    fn command(&mut self) -> Option<M::Command> {
        None
    }

    /// The machine has nothing more to do: the driver ends.
    fn is_over(&self) -> bool {
        false
    }

    /// The machine has ended, for whatever reason, and its channel is free; nothing follows.
    fn ended(&mut self, why: &Stopped) {
        let _ = why;
    }
}

/// What a machine needs to run.
pub(crate) struct Setup<M> {
    /// The channel that its messages use; the same on all processes.
    pub(crate) port: Port,
    /// Who it is: its node's id, and the incarnation it was made for.
    pub(crate) me: ProcessId,
    /// The machine.
    pub(crate) machine: M,
    /// Where its records go; `None` for a machine without records.
    pub(crate) stable: Option<Stable<M>>,
    /// Notified, it makes the driver ask its sink for a command.
    pub(crate) wake: Arc<Notify>,
}

/// A channel taken for a machine that is still to be made; what arrives meanwhile waits for it.
pub(crate) struct Port {
    channel: Channel,
    inbox: Arc<Inbox>,
    counts: Arc<Counts>,
    guard: ChannelGuard,
}

/// Whom a machine hears: a node, and what the medium of the connection vouches for.
pub(crate) type Admit = Arc<dyn Fn(NodeId, Option<&Credentials>) -> bool + Send + Sync>;

impl Port {
    /// Takes the channel. Who restores a machine from a journal takes it before: then no earlier machine of that name
    /// writes there any more.
    ///
    /// # Errors
    /// [`ChannelTaken`].
    pub(crate) fn open(node: &Node, channel: Channel) -> Result<Self, ChannelTaken> {
        Self::open_to(node, channel, None)
    }

    /// As [`open`](Self::open), for those who are admitted.
    ///
    /// # Errors
    /// [`ChannelTaken`].
    pub(crate) fn open_to(node: &Node, channel: Channel, admit: Option<Admit>) -> Result<Self, ChannelTaken> {
        let counts = Arc::new(Counts::default());
        let inbox = Arc::new(Inbox::new(channel, INBOX_BYTES_MAX, admit, counts.clone()));
        let guard = node.open(channel, inbox.clone())?;
        Ok(Self { channel, inbox, counts, guard })
    }
}

/// Where a machine's records go: a journal of its own, which is kept short.
pub(crate) struct Stable<M> {
    /// The journal.
    pub(crate) journal: Journal,
    /// The kind of the machine's records.
    pub(crate) kind: u16,
    /// The name of the snapshot that stands for all records before it.
    pub(crate) snapshot_name: String,
    /// Bytes that stand for all records that the machine has emitted so far.
    pub(crate) snapshot: fn(&M) -> Bytes,
}

/// A running machine, as its face sees it. Dropping the handle stops the machine; where no journal is involved, its
/// channel is free at once.
pub(crate) struct Handle<M: Machine> {
    commands: mpsc::Sender<M::Command>,
    stopped: watch::Receiver<Option<Stopped>>,
    stop: watch::Sender<bool>,
    counts: Arc<Counts>,
    /// `None` for a machine with a journal: who opens the same name next must find all records of this one in it.
    closes: Option<Arc<Opened>>,
}

impl<M: Machine> Drop for Handle<M> {
    fn drop(&mut self) {
        if let Some(opened) = &self.closes {
            opened.close();
        }
    }
}

/// The channel of a machine, until the machine has ended or is not wanted any more.
struct Opened(Mutex<Option<ChannelGuard>>);

impl Opened {
    fn close(&self) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
    }
}

/// Why a machine runs no longer.
#[derive(Debug, Clone)]
pub(crate) enum Stopped {
    /// It was asked to stop, it is over, nobody holds it any more, or its node or runtime was shut down.
    Asked,
    /// Its records cannot be kept.
    Journal(AppendError),
}

/// What a driver has met, in totals.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Frames that were no message of the protocol.
    pub(crate) malformed: AtomicU64,
    /// Frames of peers that are not admitted.
    pub(crate) refused: AtomicU64,
    /// Messages for another life of this process.
    pub(crate) stale: AtomicU64,
    /// Messages that the node did not take; protocols repeat what matters.
    pub(crate) unsent: AtomicU64,
}

impl<M: Machine> Handle<M> {
    /// The same handle, for whom it does not matter what stands around the machine that takes these commands.
    #[cfg(feature = "secrets")]
    pub(crate) fn into_inner<N: Machine<Command = M::Command>>(mut self) -> Handle<N> {
        Handle {
            commands: self.commands.clone(),
            stopped: self.stopped.clone(),
            stop: self.stop.clone(),
            counts: self.counts.clone(),
            closes: self.closes.take(),
        }
    }

    /// Gives a command, waiting for room. `Err` gives it back when the machine has stopped.
    pub(crate) async fn command(&self, command: M::Command) -> Result<(), M::Command> {
        self.commands.send(command).await.map_err(|error| error.0)
    }

    /// What the driver has met.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Stops the machine and waits until it has stopped.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        self.stopped().await;
    }

    /// Waits until the machine has stopped, for whatever reason.
    pub(crate) async fn stopped(&self) -> Stopped {
        let mut stopped = self.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Stopped::Asked),
            // The task is gone with its runtime.
            Err(_) => Stopped::Asked,
        }
    }
}

/// A process that there has not been before: machines that one node runs one after the other under one name are not to
/// be mistaken for each other, nor their numbers be given twice.
pub(crate) fn new_life(node: &Node) -> ProcessId {
    let identity = node.identity();
    let first = identity.incarnation.0.wrapping_mul(MACHINES_A_LIFE);
    ProcessId { node: identity.node.0, incarnation: first.wrapping_add(node.next_machine()) }
}

/// Bytes of the largest message that a machine on this node can send, to peers with the same limit.
pub(crate) fn message_bytes_max(node: &Node) -> usize {
    node.message_bytes_max().saturating_sub(CHANNEL_BYTES + HEADER_BYTES)
}

/// Starts the machine on the node. Must be called within a tokio runtime.
pub(crate) fn start<M, S>(node: &Node, setup: Setup<M>, sink: S) -> Handle<M>
where
    M: Machine<Command: Send, Event: Send, Message: Send, Record: Send> + Send + 'static,
    S: Sink<M>,
{
    let Port { channel, inbox, counts, guard } = setup.port;
    let opened = Arc::new(Opened(Mutex::new(Some(guard))));
    let closes = setup.stable.is_none().then(|| opened.clone());
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (stopped_sender, stopped) = watch::channel(None);
    let (stop, stop_wish) = watch::channel(false);
    let mut driver = Driver {
        node: node.clone(),
        node_stop: node.stopping(),
        opened,
        why: Stopped::Asked,
        me: setup.me,
        channel,
        machine: setup.machine,
        stable: setup.stable,
        logged: 0,
        logged_bytes: 0,
        log_end: Position::ZERO,
        emitted: 0,
        durable: 0,
        barrier: 0,
        compaction: None,
        sink,
        epoch: Instant::now(),
        inbox,
        command_queue,
        wake: setup.wake,
        stop_wish,
        counts: counts.clone(),
        outputs: Outputs::new(),
        records: Vec::new(),
        syncing: None,
        held: VecDeque::new(),
        lives: BTreeMap::new(),
    };
    tokio::spawn(async move {
        driver.run().await;
        let why = driver.why.clone();
        drop(driver);
        stopped_sender.send_replace(Some(why));
    });
    Handle { commands, stopped, stop, counts, closes }
}

/// Sends a frame of the face's own beside the machine's messages, for example an introduction. May be lost.
pub(crate) fn send_aside(node: &Node, channel: Channel, to: NodeId, frame: &[u8]) {
    let _ = node.send(to, crate::node::Lane::Control, channel, &[&ASIDE_HEADER, frame], Bytes::new());
}

/// Before a frame of a face's own: it is told from a message by the sender's incarnation, which is never zero.
pub(crate) const ASIDE_HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

struct Driver<M: Machine, S: Sink<M>> {
    node: Node,
    node_stop: watch::Receiver<bool>,
    opened: Arc<Opened>,
    /// Why it ends, once it does.
    why: Stopped,
    me: ProcessId,
    channel: Channel,
    machine: M,
    stable: Option<Stable<M>>,
    /// Records since the last snapshot, and their bytes.
    logged: u64,
    logged_bytes: usize,
    /// The position after the last record handed to the journal.
    log_end: Position,
    /// The snapshot that is being written.
    compaction: Option<JoinHandle<()>>,
    sink: S,
    epoch: Instant,
    inbox: Arc<Inbox>,
    command_queue: mpsc::Receiver<M::Command>,
    wake: Arc<Notify>,
    stop_wish: watch::Receiver<bool>,
    counts: Arc<Counts>,
    outputs: Outputs<M>,
    /// How many records the machine has emitted, and how many of them are durable.
    emitted: u64,
    durable: u64,
    /// How many records must be durable before what comes now is carried out.
    barrier: u64,
    /// Records that are not yet handed to the journal: those after the ones that are being synced.
    records: Vec<Record>,
    syncing: Option<Pending>,
    /// Outputs behind a barrier, each with the records that it waits for.
    held: VecDeque<(u64, Output<M>)>,
    /// The life in which each node was last heard, to tell the machine of connections.
    lives: BTreeMap<NodeId, Life>,
}

/// What is known of a node that was heard.
struct Life {
    incarnation: u64,
    /// Its connection was lost since.
    is_gone: bool,
}

impl<M: Machine, S: Sink<M>> Drop for Driver<M, S> {
    fn drop(&mut self) {
        // Whoever learns of the end may use the name again.
        self.opened.close();
        self.sink.ended(&self.why);
    }
}

impl<M: Machine, S: Sink<M>> Driver<M, S> {
    async fn run(&mut self) {
        loop {
            let goes_on = match self.turn() {
                Ok(()) if self.sink.is_over() => Ok(false),
                Ok(()) => self.rest().await,
                Err(failure) => Err(failure),
            };
            match goes_on {
                Ok(true) => {}
                Ok(false) => return self.hand_over_rest().await,
                Err(failure) => {
                    self.why = Stopped::Journal(failure);
                    return;
                }
            }
        }
    }

    /// A successor finds all records, also those that came while an append was under way.
    async fn hand_over_rest(&mut self) {
        while !self.records.is_empty() {
            // Whatever fails here, no promise depends on it any more.
            if self.syncing.is_some() && synced(&mut self.syncing).await.is_err() {
                return;
            }
            self.syncing = None;
            if self.submit().is_err() {
                return;
            }
        }
    }

    /// Everything that can be done now.
    fn turn(&mut self) -> Result<(), AppendError> {
        if self.held.len() >= HELD_MAX {
            return Ok(()); // the disk is behind: nothing new until it has caught up
        }
        let mut is_exhausted = false;
        for _ in 0..INPUTS_PER_TURN {
            let Some(command) = self.sink.command() else {
                is_exhausted = true;
                break;
            };
            self.feed(Input::Command(command))?;
        }
        if !is_exhausted {
            self.wake.notify_one(); // the rest has its turn next
        }
        for _ in 0..INPUTS_PER_TURN {
            let Some(arrival) = self.inbox.pop() else { break };
            self.on_arrival(arrival)?;
        }
        for _ in 0..INPUTS_PER_TURN {
            let Ok(command) = self.command_queue.try_recv() else { break };
            self.feed(Input::Command(command))?;
        }
        // A tick may make the next one due, but never for ever: the rest waits for the next turn.
        for _ in 0..TICKS_PER_TURN {
            let now = self.now();
            if self.machine.deadline().is_none_or(|at| at > now) {
                break;
            }
            self.feed(Input::Tick)?;
        }
        self.submit()?;
        self.compact();
        Ok(())
    }

    /// Waits until something can be done; false when the machine shall stop.
    async fn rest(&mut self) -> Result<bool, AppendError> {
        let unwanted = *self.stop_wish.borrow() || *self.node_stop.borrow();
        if unwanted || (self.command_queue.is_closed() && self.command_queue.is_empty()) {
            return Ok(false);
        }
        let behind = self.held.len() >= HELD_MAX;
        if !behind && (!self.inbox.is_empty() || !self.command_queue.is_empty()) {
            // Let the others on this thread run between two full turns; promises are not kept back by busy peers.
            tokio::select! {
                biased;
                synced = synced(&mut self.syncing) => self.on_synced(synced)?,
                () = tokio::task::yield_now() => {}
            }
            return Ok(true);
        }
        let deadline = self.machine.deadline().map(|at| self.epoch + Duration::from_nanos(at.as_nanos()));
        let mut first = None;
        tokio::select! {
            biased;
            _ = self.stop_wish.changed() => return Ok(!*self.stop_wish.borrow()),
            _ = self.node_stop.changed() => return Ok(false),
            synced = synced(&mut self.syncing) => self.on_synced(synced)?,
            () = self.inbox.filled(), if !behind => {}
            command = self.command_queue.recv(), if !behind => match command {
                Some(command) => first = Some(command),
                None => return Ok(false),
            },
            () = self.wake.notified(), if !behind => {}
            () = until(deadline), if !behind => {}
        }
        if let Some(command) = first {
            self.feed(Input::Command(command))?;
        }
        Ok(true)
    }

    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn on_arrival(&mut self, arrival: Arrival) -> Result<(), AppendError> {
        match arrival {
            Arrival::Frame(from, mut frame) => {
                if frame.len() < HEADER_BYTES {
                    self.counts.malformed.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                let (to, life) = (frame.get_u64_le(), frame.get_u64_le());
                if life == 0 {
                    self.sink.take_aside(from.node, frame);
                    return Ok(());
                }
                if to != 0 && to != self.me.incarnation {
                    self.counts.stale.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                match M::Message::from_bytes(frame) {
                    Ok(message) => {
                        self.note_life(from.node, life);
                        let from = ProcessId { node: from.node.0, incarnation: life };
                        self.feed(Input::Received { from, message })
                    }
                    Err(error) => {
                        self.counts.malformed.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(channel = %self.channel, peer = %from, %error, "malformed message dropped");
                        Ok(())
                    }
                }
            }
            Arrival::Peer(PeerEvent::Up(peer)) => match self.last_life(peer.node) {
                Some(peer) => self.feed(Input::Reachable(peer)),
                None => match self.sink.met(peer.node) {
                    Some(command) => self.feed(Input::Command(command)),
                    None => Ok(()),
                },
            },
            Arrival::Peer(PeerEvent::Down(Identity { node, .. })) | Arrival::Refused(node) => {
                if let Some(life) = self.lives.get_mut(&node) {
                    life.is_gone = true;
                }
                match self.last_life(node) {
                    Some(peer) => self.feed(Input::Unreachable(peer)),
                    None => Ok(()),
                }
            }
        }
    }

    /// Those that are connected are bounded by the node; of the others, who may be anybody under any name, not more than so
    /// many are remembered.
    fn note_life(&mut self, node: NodeId, incarnation: u64) {
        if self.lives.len() >= LIVES_MAX && !self.lives.contains_key(&node) {
            self.lives.retain(|_, life| !life.is_gone);
        }
        self.lives.insert(node, Life { incarnation, is_gone: false });
    }

    /// The process that was heard last from a node.
    fn last_life(&self, node: NodeId) -> Option<ProcessId> {
        self.lives.get(&node).map(|life| ProcessId { node: node.0, incarnation: life.incarnation })
    }

    fn feed(&mut self, input: Input<M>) -> Result<(), AppendError> {
        let now = self.now();
        let mut outputs = std::mem::take(&mut self.outputs);
        self.machine.handle(now, input, &mut outputs);
        for output in outputs.drain() {
            self.carry_out(output)?;
        }
        self.outputs = outputs;
        Ok(())
    }

    fn carry_out(&mut self, output: Output<M>) -> Result<(), AppendError> {
        match output {
            // Not held: the next sync then covers the records of many promises. Their order stays.
            Output::Persist(record) => {
                if let Some(stable) = &self.stable {
                    let bytes = record.to_bytes();
                    self.logged_bytes += bytes.len();
                    self.records.push(Record::new(stable.kind, bytes));
                    self.emitted += 1;
                }
            }
            Output::Barrier => {
                self.barrier = self.emitted;
                self.submit()?;
            }
            output if self.barrier > self.durable => self.held.push_back((self.barrier, output)),
            output => self.deliver(output),
        }
        Ok(())
    }

    /// Does what is behind no barrier any more.
    fn deliver(&mut self, output: Output<M>) {
        match output {
            Output::Send { to, lane, message } => self.send(to.as_slice(), lane_of(lane), &message),
            Output::Event(event) => self.sink.take(event),
            Output::Persist(_) | Output::Barrier => {}
        }
    }

    /// Hands the records so far to the journal, as one append, unless one is under way.
    fn submit(&mut self) -> Result<(), AppendError> {
        if let (Some(stable), false, None) = (&self.stable, self.records.is_empty(), &self.syncing) {
            let records = std::mem::take(&mut self.records);
            let count = records.len() as u64;
            let pending = stable.journal.submit(records)?;
            self.log_end = pending.first().plus(count);
            self.logged += count;
            self.syncing = Some(pending);
        }
        Ok(())
    }

    /// An append is durable: carries out what it held up, and hands over what came meanwhile.
    fn on_synced(&mut self, synced: Result<(), AppendError>) -> Result<(), AppendError> {
        synced?;
        self.syncing = None;
        self.durable = self.emitted - self.records.len() as u64;
        self.submit()?;
        while let Some((_, output)) = self.held.pop_front_if(|(barrier, _)| *barrier <= self.durable) {
            self.deliver(output);
        }
        self.compact();
        Ok(())
    }

    /// Replaces the journal's records by a snapshot when there are many. Only when all are handed over: then they say
    /// what the machine's state is.
    fn compact(&mut self) {
        let Some(stable) = &self.stable else { return };
        let is_writing = self.compaction.as_ref().is_some_and(|writing| !writing.is_finished());
        let is_long = self.logged >= COMPACT_RECORDS || self.logged_bytes >= COMPACT_BYTES;
        if !is_long || is_writing || !self.records.is_empty() {
            return;
        }
        (self.logged, self.logged_bytes) = (0, 0);
        let (blob, end) = ((stable.snapshot)(&self.machine), self.log_end);
        let (journal, name) = (stable.journal.clone(), stable.snapshot_name.clone());
        self.compaction = Some(tokio::spawn(async move {
            // A journal that fails here fails the next append as well, which is where it is reported.
            if journal.save_snapshot(&name, end, blob).await.is_ok() {
                let _ = journal.truncate_before(end).await;
            }
        }));
    }

    fn send(&mut self, to: &[ProcessId], lane: crate::node::Lane, message: &M::Message) {
        let mut body = BytesMut::new();
        message.encode(&mut body);
        let body = body.freeze();
        for peer in to {
            let mut header = [0; HEADER_BYTES];
            (&mut header[..]).put_u64_le(peer.incarnation);
            (&mut header[8..]).put_u64_le(self.me.incarnation);
            let sent = self.node.send(NodeId(peer.node), lane, self.channel, &[&header], body.clone());
            if let Err(error) = sent {
                self.counts.unsent.fetch_add(1, Ordering::Relaxed);
                tracing::trace!(channel = %self.channel, %peer, %error, "message not sent");
            }
        }
    }
}

/// Resolves when the sync is done; never without one.
async fn synced(pending: &mut Option<Pending>) -> Result<(), AppendError> {
    match pending {
        Some(pending) => pending.await.map(drop),
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Inputs of one kind that are taken before the machine ticks: large enough that batches form under load, small
/// enough that a tick is never delayed by more than some hundred microseconds.
const INPUTS_PER_TURN: usize = 512;

/// A machine that is due again after so many ticks gets its next chance after the next look at the inputs.
const TICKS_PER_TURN: usize = 16;

/// Bytes that may wait for the machine from all peers together; beyond it the node stops reading.
const INBOX_BYTES_MAX: usize = 32 << 20;

/// Nodes remembered beyond those that are connected.
const LIVES_MAX: usize = 4096;

/// Commands that may wait.
const COMMANDS_MAX: usize = 1024;

/// Records after which a snapshot replaces what came before: some megabytes, read in well under a second at the next
/// start, and few enough snapshots that writing them does not show.
const COMPACT_RECORDS: u64 = 16_384;

/// Bytes of records after which a snapshot replaces them, if they are large.
const COMPACT_BYTES: usize = 256 << 20;

/// Outputs that may wait behind a barrier before inputs wait, too.
const HELD_MAX: usize = 65_536;

/// Room for the numbers of machines between two lives of a node. A life with more runs into the numbers of the next one
/// only where lives are counted, not taken from the clock.
const MACHINES_A_LIFE: u64 = 4096;

/// Both incarnations.
const HEADER_BYTES: usize = 16;
