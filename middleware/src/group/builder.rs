//! How a membership begins.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use quorate_protocols::ProcessId;
use quorate_protocols::group::{Command, Config};
use quorate_protocols::multicast::fragment::MESSAGE_BYTES_MAX;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::events::{Events, GroupSink, Shared};
use super::introduce::Introducer;
use super::{Causal, Detection, Feedback, Fifo, Group, Inner, JoinError, Order, Own, Stack, Total, TotalBy};
use crate::driver::{self, Port, Setup};
use crate::node::{Address, Channel, Node};

/// Says what group to make or join, and how.
#[derive(Debug, Clone)]
pub struct Builder<O> {
    name: String,
    limits: Limits,
    has_state: bool,
    total_by: TotalBy,
    order: PhantomData<O>,
}

/// The limits and times of a membership. All members should use the same.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of one message. Default 1 MiB, at most 1 GiB. A message beyond 256 KiB, or beyond what the node's connections
    /// carry, travels in fragments; each receiver holds one of each sender until it is whole.
    pub payload_bytes_max: usize,
    /// Own messages that may be cast and not yet delivered here. Default 8,192. Fewer limit the rate of one sender by
    /// the round trip, more cost memory.
    pub outstanding_max: usize,
    /// Their bytes. Default 64 MiB. A larger message goes alone.
    pub outstanding_bytes_max: usize,
    /// Unread events beyond which this member makes the others and itself wait. Default 65,536. It may be exceeded by
    /// what is under way then: all senders' windows.
    pub events_waiting_max: usize,
    /// The same for the bytes of unread messages. Default 256 MiB.
    pub events_waiting_bytes_max: usize,
    /// What becomes of a member whose user does not read. Default [`SlowReader::Waits`]. It is this member's own word; the
    /// others wait for it until then.
    pub slow_reader: SlowReader,
    /// How long a silent member is trusted. Default 1 s. Shorter detects crashes sooner and suspects more slow
    /// members wrongly, which expels them. A broken connection is acted on sooner than silence.
    pub suspect_after: Duration,
    /// How members find out that one of them has died. Default: everybody beats, and a silence of
    /// [`suspect_after`](Self::suspect_after) is too long. All members must agree on the manner.
    pub detection: Detection,
    /// How members ask for messages that they miss. Default [`Feedback::Direct`]. All members must agree.
    pub feedback: Feedback,
    /// How long [`Builder::join`] tries. Default 10 s.
    pub join_within: Duration,
}

/// What becomes of a member whose user reads more slowly than the group delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlowReader {
    /// All wait for it: nothing is lost, and the group is as fast as its slowest reader.
    #[default]
    Waits,
    /// It leaves the group once its limits have been reached for so long: the others go on. It ends with
    /// [`Ended::TooSlow`](super::Ended::TooSlow) and may join again. Without a quorum nobody can be let go: then it stays until
    /// there is one, or until its [`Group`](super::Group) is dropped.
    LeavesAfter(Duration),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 1 << 20,
            outstanding_max: 8192,
            outstanding_bytes_max: 64 << 20,
            events_waiting_max: 65_536,
            events_waiting_bytes_max: 256 << 20,
            slow_reader: SlowReader::default(),
            suspect_after: Duration::from_secs(1),
            detection: Detection::default(),
            feedback: Feedback::default(),
            join_within: Duration::from_secs(10),
        }
    }
}

impl Builder<Total> {
    /// A group in uniform total order.
    pub fn total(name: impl Into<String>) -> Self {
        Self::named(name.into())
    }

    /// How the order is found. Default [`TotalBy::Sequencer`]. All members must agree on this.
    pub fn by(mut self, total_by: TotalBy) -> Self {
        self.total_by = total_by;
        self
    }
}

impl Builder<Fifo> {
    /// A group in FIFO order.
    pub fn fifo(name: impl Into<String>) -> Self {
        Self::named(name.into())
    }
}

impl Builder<Causal> {
    /// A group in causal order.
    pub fn causal(name: impl Into<String>) -> Self {
        Self::named(name.into())
    }
}

impl<S: Stack> Builder<Own<S>> {
    /// A group over layers of the user's own choice.
    pub fn own(name: impl Into<String>) -> Self {
        Self::named(name.into())
    }
}

impl<O: Order> Builder<O> {
    fn named(name: String) -> Self {
        Self {
            name,
            limits: Limits::default(),
            has_state: true,
            total_by: TotalBy::default(),
            order: PhantomData,
        }
    }

    /// The application has no state that a joiner needs: no member is asked for it ([`Event::StateWanted`]) and no
    /// joiner is given one ([`Event::State`]). All members must agree on this.
    ///
    /// [`Event::StateWanted`]: super::Event::StateWanted
    /// [`Event::State`]: super::Event::State
    pub fn stateless(mut self) -> Self {
        self.has_state = false;
        self
    }

    /// Other limits than the default ones.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Founds the group, with this node as its only member, and returns when it is in its first view.
    ///
    /// The founder is the first whose application joiners ask for the state: see [`join`](Self::join). Two nodes that
    /// both found a group of one name have two groups.
    ///
    /// # Errors
    /// [`JoinError`].
    /// # Cancel safety
    /// Dropping the future founds nothing.
    pub async fn create(self, node: &Node) -> Result<(Group<O>, Events), JoinError> {
        let (group, events) = self.start(node)?;
        // Unlike any other founding: nodes have ids of their own, and lives that only grow.
        let unique = group.me().incarnation ^ group.me().node.rotate_left(32);
        self.begin(&group, Command::Create { group: unique }).await?;
        group.inner.shared.wait_view().await.map_err(JoinError::ended)?;
        Ok((group, events))
    }

    /// Joins the group through any of `contacts`, of which one must be a member when its turn comes.
    ///
    /// Returns when this process is in a view and the state of the others is here: both wait among the events. The
    /// state is asked of the longest-standing member, as an [`Event::StateWanted`](super::Event::StateWanted) among its
    /// events: *while its application does not answer, nobody can join*. Who has nothing to tell makes the group
    /// [`stateless`](Self::stateless).
    ///
    /// # Errors
    /// [`JoinError`].
    /// # Cancel safety
    /// Dropping the future gives up; if the others had just let this process in, they suspect it after a while.
    pub async fn join(self, node: &Node, contacts: &[Address]) -> Result<(Group<O>, Events), JoinError> {
        if contacts.is_empty() {
            return Err(JoinError::NoContact { name: self.name });
        }
        let Some(deadline) = Instant::now().checked_add(self.limits.join_within) else {
            return Err(JoinError::Limit { name: "join_within", reason: "is beyond what the clock can say" });
        };
        let (group, events) = self.start(node)?;
        match self.enter(node, contacts, &group, deadline).await {
            Ok(()) => Ok((group, events)),
            Err(error) => {
                // The name is free again when this returns.
                group.inner.handle.stop().await;
                Err(error)
            }
        }
    }

    async fn enter(
        self,
        node: &Node,
        contacts: &[Address],
        group: &Group<O>,
        deadline: Instant,
    ) -> Result<(), JoinError> {
        loop {
            let known = reach(node, contacts, deadline).await;
            if !known.is_empty() {
                self.begin(group, Command::Join { contacts: known }).await?;
            }
            // Whoever was not reached, or not a member yet, is asked again with the next round.
            let round = deadline.min(Instant::now() + CONTACT_ROUND);
            match timeout_at(round, group.inner.shared.wait_view()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(why)) => return Err(JoinError::ended(why)),
                Err(_) if Instant::now() >= deadline => {
                    let (name, deadline) = (self.name, self.limits.join_within);
                    return Err(JoinError::Deadline { name, deadline, tried: contacts.to_vec() });
                }
                Err(_) => {}
            }
        }
    }

    async fn begin(&self, group: &Group<O>, command: Command) -> Result<(), JoinError> {
        let given = group.inner.handle.command(command).await;
        given.map_err(|_| JoinError::ended(group.inner.shared.why_ended()))
    }

    fn start(&self, node: &Node) -> Result<(Group<O>, Events), JoinError> {
        if *node.stopping().borrow() {
            return Err(JoinError::ShutDown);
        }
        let limits = &self.limits;
        let positive = [
            ("payload_bytes_max", limits.payload_bytes_max),
            ("outstanding_max", limits.outstanding_max),
            ("outstanding_bytes_max", limits.outstanding_bytes_max),
            ("events_waiting_max", limits.events_waiting_max),
            ("events_waiting_bytes_max", limits.events_waiting_bytes_max),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(JoinError::Limit { name, reason: "must be at least 1" });
        }
        let counted = [
            ("outstanding_max", limits.outstanding_max),
            ("outstanding_bytes_max", limits.outstanding_bytes_max),
        ];
        if let Some((name, _)) = counted.into_iter().find(|(_, value)| *value > Semaphore::MAX_PERMITS) {
            return Err(JoinError::Limit { name, reason: "is beyond what can be counted" });
        }
        if limits.suspect_after < SUSPECT_AFTER_MIN {
            let reason = "below 50 ms the scheduler alone makes members suspects";
            return Err(JoinError::Limit { name: "suspect_after", reason });
        }
        if limits.payload_bytes_max > MESSAGE_BYTES_MAX {
            return Err(JoinError::PayloadLimit {
                asked: limits.payload_bytes_max,
                limit: MESSAGE_BYTES_MAX,
            });
        }
        let room = node.message_bytes_max().saturating_sub(HEADERS_BYTES_MAX);
        if room == 0 {
            let reason = "the node's connections carry too small messages";
            return Err(JoinError::Limit { name: "message_bytes_max", reason });
        }
        let channel = Channel::named("group", &self.name);
        let port = Port::open(node, channel)
            .map_err(|source| JoinError::Taken { name: self.name.clone(), source })?;
        // A node may join, leave and join again: each time it is another process to the group.
        let me = driver::new_life(node);
        let machine = O::machine(me, self.config(room)).map_err(JoinError::Impossible)?;
        let wake = Arc::new(Notify::new());
        let shared = Arc::new(Shared::new(me, wake.clone(), limits));
        let introducer = Introducer::new(node.clone(), channel, me);
        let sink = GroupSink::new(shared.clone(), introducer, self.has_state);
        let setup = Setup { port, me, machine, stable: None, wake };
        let handle = driver::start(node, setup, sink);
        let payload_bytes_max = limits.payload_bytes_max;
        let events = Events::new(shared.clone());
        let inner = Inner { handle, shared, payload_bytes_max };
        Ok((Group { inner: Arc::new(inner) }, events))
    }

    /// The machine's limits, for messages that leave `room` bytes beside their headers.
    fn config(&self, room: usize) -> Config {
        let mut config = Config::default();
        config.heartbeat.timeout = self.limits.suspect_after;
        config.heartbeat.interval = self.limits.suspect_after / 10;
        config.detection = self.limits.detection;
        config.reliable.feedback = self.limits.feedback;
        config.total_by = self.total_by;
        config.reliable.pending_max = config.reliable.pending_max.max(self.limits.outstanding_max * 2);
        // Several small messages travel in one, too.
        config.reliable.batch_bytes = config.reliable.batch_bytes.min(room);
        config.fragment.message_bytes_max = self.limits.payload_bytes_max;
        config.fragment.fragment_bytes = config.fragment.fragment_bytes.min(room);
        config.fragment.waiting_max = config.reliable.pending_max;
        config.state_transfer.chunk_bytes = config.state_transfer.chunk_bytes.min(room);
        config
    }
}

/// Connects to as many contacts as answer; each is addressed in whichever life it is.
async fn reach(node: &Node, contacts: &[Address], deadline: Instant) -> Vec<ProcessId> {
    let mut known = Vec::new();
    for address in contacts {
        let patience = deadline.min(Instant::now() + CONTACT_ROUND);
        if let Ok(Ok(identity)) = timeout_at(patience, node.connect(address)).await
            && identity.node != node.identity().node
        {
            known.push(ProcessId { node: identity.node.0, incarnation: 0 });
        }
    }
    known
}

/// What the headers of a message may take: some hundred bytes, and 8 for each member of the view.
const HEADERS_BYTES_MAX: usize = 4096;

/// How long one contact is tried before the next, and how often all are tried anew.
const CONTACT_ROUND: Duration = Duration::from_millis(500);

const SUSPECT_AFTER_MIN: Duration = Duration::from_millis(50);
