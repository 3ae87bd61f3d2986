//! The one contract of every protocol: input and time in, outputs out.
//!
//! Guarantee   a driver that carries out the outputs in order, and that holds everything behind a
//!             [`Output::Barrier`] until the records before it are durable, never lets a promise leave before it
//!             is kept.
//! Batches     a driver hands over all inputs that it has, then a [`Input::Tick`] when [`Machine::deadline`] has
//!             come. A machine that wants to answer a whole batch at once sets its deadline to `now`.
//! Source      the sans-IO style; the durability barrier follows the lesson that even an empty acknowledgement
//!             must wait for the disk when it implies "I have it".

use std::fmt;
use std::sync::Arc;

use crate::time::Time;
use crate::wire::Wire;

/// A protocol as a value. See the module's page for the contract with the driver.
pub trait Machine {
    /// What the local user asks for.
    type Command;
    /// What the local user is told.
    type Event;
    /// What travels between the machines of two processes.
    type Message: Wire + Clone + fmt::Debug;
    /// What must survive a crash. Fed back, in order, to the machine's own recovery constructor.
    type Record: Wire + Clone + fmt::Debug;

    /// Takes one input and appends what must now happen. Never blocks, never panics on a peer's input.
    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>);

    /// The next moment at which [`Input::Tick`] is wanted; `None` when idle. A moment in the past means "after
    /// the inputs that are already waiting".
    fn deadline(&self) -> Option<Time>;

    /// Checks the machine's own invariants; compiled always, called by the simulator after every step.
    fn check(&self) -> Result<(), Violation> {
        Ok(())
    }
}

/// One input of a machine.
pub enum Input<M: Machine + ?Sized> {
    /// The machine's deadline has come.
    Tick,
    /// A peer's message. `from` was authenticated by the transport as far as the transport can.
    Received {
        /// The sender.
        from: ProcessId,
        /// What it sent, already decoded.
        message: M::Message,
    },
    /// The local user's wish.
    Command(M::Command),
    /// Evidence that a connection to the peer stands. Not a promise.
    Reachable(ProcessId),
    /// Evidence that the peer's connection broke or was refused. Not a proof of death.
    Unreachable(ProcessId),
}

impl<M: Machine + ?Sized> fmt::Debug for Input<M>
where
    M::Command: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => write!(f, "tick"),
            Self::Received { from, message } => write!(f, "from {from}: {message:?}"),
            Self::Command(command) => write!(f, "command {command:?}"),
            Self::Reachable(peer) => write!(f, "reachable {peer}"),
            Self::Unreachable(peer) => write!(f, "unreachable {peer}"),
        }
    }
}

/// One output of a machine.
pub enum Output<M: Machine + ?Sized> {
    /// Send `message` to each of `to`. May be lost, repeated or overtaken; never altered.
    Send {
        /// The receivers; the sender itself is never among them.
        to: Targets,
        /// How urgent it is beside other traffic to the same peer.
        lane: Lane,
        /// What to send.
        message: M::Message,
    },
    /// Tell the local user.
    Event(M::Event),
    /// Append to stable storage.
    Persist(M::Record),
    /// Hold all outputs that follow, of this and of later calls, until every record so far is durable. Only records
    /// may be appended meanwhile, in their order, so that the next sync covers many: a record must never claim
    /// that an output before it has been carried out.
    Barrier,
}

impl<M: Machine + ?Sized> fmt::Debug for Output<M>
where
    M::Event: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send { to, lane, message } => write!(f, "send {to:?} {lane:?}: {message:?}"),
            Self::Event(event) => write!(f, "event {event:?}"),
            Self::Persist(record) => write!(f, "persist {record:?}"),
            Self::Barrier => write!(f, "barrier"),
        }
    }
}

/// The outputs of one or more calls, in causal order.
pub struct Outputs<M: Machine + ?Sized>(Vec<Output<M>>);

impl<M: Machine + ?Sized> Outputs<M> {
    /// No outputs yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Sends to one peer.
    pub fn send(&mut self, to: ProcessId, lane: Lane, message: M::Message) {
        self.0.push(Output::Send { to: Targets::One(to), lane, message });
    }

    /// Sends the same message to several peers, encoded once.
    pub fn multicast(&mut self, to: Arc<[ProcessId]>, lane: Lane, message: M::Message) {
        if !to.is_empty() {
            self.0.push(Output::Send { to: Targets::Many(to), lane, message });
        }
    }

    /// Tells the local user.
    pub fn event(&mut self, event: M::Event) {
        self.0.push(Output::Event(event));
    }

    /// Appends a record to stable storage; add a [`barrier`](Self::barrier) before what depends on it.
    pub fn persist(&mut self, record: M::Record) {
        self.0.push(Output::Persist(record));
    }

    /// Holds all that follows until every record so far is durable.
    pub fn barrier(&mut self) {
        self.0.push(Output::Barrier);
    }

    /// Takes the outputs out, keeping the room.
    pub fn drain(&mut self) -> impl Iterator<Item = Output<M>> + '_ {
        self.0.drain(..)
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<M: Machine + ?Sized> Default for Outputs<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// One life of one process: a restart gives a new incarnation, and a message for an earlier one is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// The process's lasting name.
    pub node: u64,
    /// Which of its lives; later lives have larger numbers.
    pub incarnation: u64,
}

impl ProcessId {
    /// As a receiver's incarnation: whichever life the node is in. No process lives under this number.
    pub const ANY_LIFE: u64 = 0;

    /// Addresses a node in whichever life it is, for protocols whose state outlives a restart.
    pub const fn any_life(node: u64) -> Self {
        Self { node, incarnation: Self::ANY_LIFE }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.incarnation)
    }
}

/// Who receives a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// One peer.
    One(ProcessId),
    /// Several peers, without repetition.
    Many(Arc<[ProcessId]>),
}

impl Targets {
    /// The receivers as a slice.
    pub fn as_slice(&self) -> &[ProcessId] {
        match self {
            Self::One(peer) => std::slice::from_ref(peer),
            Self::Many(peers) => peers,
        }
    }
}

/// How urgent a message is beside other traffic to the same peer; a later lane never holds up an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats, view changes, acknowledgements.
    Control,
    /// Small messages that must not wait behind ordinary ones.
    Urgent,
    /// Everything else.
    Ordinary,
    /// Large transfers.
    Bulk,
}

/// A broken invariant: a bug in the machine, never a peer's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);
