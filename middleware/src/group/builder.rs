//! How a membership begins.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use quorate_protocols::ProcessId;
use quorate_protocols::group::{Command, Config, OUTSIDER_BYTES};
use quorate_protocols::multicast::fragment::MESSAGE_BYTES_MAX;
use quorate_protocols::stack::MEMBERS_MAX;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::events::{Events, GroupSink, Shared};
use super::introduce::{Introducer, Sides};
use super::outside::Desk;
#[cfg(feature = "secrets")]
use super::secret::{Seals, Secret};
use super::{
    Causal, Detection, Discover, Feedback, Fifo, Group, Inner, JoinError, Order, Own, Stack, Total, TotalBy,
};
use crate::driver::{self, Admit, Port, Setup};
use crate::node::{Address, Channel, Credentials, Node, NodeId};
#[cfg(feature = "secrets")]
use quorate_protocols::guard::Guard;
#[cfg(feature = "secrets")]
use quorate_protocols::planted::Plant;

/// Says what group to make or join, and how.
#[derive(Debug)]
pub struct Builder<O> {
    name: String,
    limits: Limits,
    has_state: bool,
    is_open: bool,
    total_by: TotalBy,
    quorum_min: u16,
    admit: Option<Admission>,
    /// Where words about sides go, in a group whose sides go on apart.
    line: Option<mpsc::Sender<(NodeId, u64)>>,
    #[cfg(feature = "secrets")]
    secret: Option<Secret>,
    order: PhantomData<O>,
}

/// Whom a member hears.
#[derive(Clone)]
struct Admission(Admit);

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admission(..)")
    }
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
    /// members wrongly, which expels them. A broken connection is acted on sooner than silence. From 50 ms to a day.
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

// Not derived: an order is a name only, and need not be one that can be cloned.
impl<O> Clone for Builder<O> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            limits: self.limits.clone(),
            admit: self.admit.clone(),
            line: self.line.clone(),
            #[cfg(feature = "secrets")]
            secret: self.secret.clone(),
            ..*self
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
            is_open: false,
            total_by: TotalBy::default(),
            quorum_min: 1,
            admit: None,
            line: None,
            #[cfg(feature = "secrets")]
            secret: None,
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

    /// An open group: who is no member may send to it through this member, see [`Visitor`](super::Visitor); such messages come
    /// as [`Event::Outside`](super::Event::Outside). Without it the group is closed. Members may differ in this.
    pub fn open(mut self) -> Self {
        self.is_open = true;
        self
    }

    /// Hears only nodes of which `decide` says yes, by what the medium of the very connection vouches for: the certificate of
    /// TLS or QUIC, the user of a local socket. Whoever is not heard can neither join nor send, and what it says is counted
    /// in [`GroupStats::refused`](super::GroupStats::refused). All members should decide alike: who is a member is agreed,
    /// who is heard is not.
    ///
    /// The claimed node id is part of the decision, and must be: members are known by it. That nobody else *takes* what is
    /// said to a node is the connection's matter, see [`NodeBuilder::admit`](crate::node::NodeBuilder::admit).
    pub fn admit(
        mut self,
        decide: impl Fn(NodeId, Option<&Credentials>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.admit = Some(Admission(Arc::new(decide)));
        self
    }

    /// Members have a secret, without which nobody joins, speaks or reads, over whatever transport: see
    /// [`Guard`](quorate_protocols::guard::Guard) for what is promised and what not. All members must have the same. Such a
    /// group cannot be [open](Self::open).
    ///
    /// Over transports that vouch for nobody a stranger who can dial a member can still take another one's connection, and so
    /// keep members apart, though it reads and says nothing: see
    /// [`NodeBuilder::admit`](crate::node::NodeBuilder::admit).
    #[cfg(feature = "secrets")]
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// The configured quorum: fewer than `members` members of a view that has so many never go on without the others, though
    /// they may be a majority. With 3, each message of a [`Total`] order is held by three members before it is delivered,
    /// and a group of five that loses two goes on and does not outlive a third. Members that leave in good order may leave
    /// fewer behind. Default 1, nothing but the majority; what the founder says counts, for the group's whole life.
    ///
    /// Who is left with too few is told so by [`Event::QuorumLost`](super::Event::QuorumLost).
    pub fn quorum(mut self, members: u16) -> Self {
        self.quorum_min = members;
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
        self.create_as(node, |me| me.incarnation ^ me.node.rotate_left(32)).await
    }

    /// As [`create`](Self::create), with the number that `number` says for the founder. It must be unlike that of any other
    /// founding: nodes have ids of their own, and lives that only grow.
    pub(super) async fn create_as(
        self,
        node: &Node,
        number: impl FnOnce(ProcessId) -> u64,
    ) -> Result<(Group<O>, Events), JoinError> {
        let (group, events) = self.start(node)?;
        self.begin(&group, Command::Create { group: number(group.me()) }).await?;
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
        self.join_found(node, &contacts.to_vec()).await
    }

    /// As [`join`](Self::join), through members that `discover` finds: see [`Discover`].
    ///
    /// # Errors
    /// [`JoinError`].
    /// # Cancel safety
    /// As [`join`](Self::join).
    pub async fn join_found(
        self,
        node: &Node,
        discover: &(impl Discover + ?Sized),
    ) -> Result<(Group<O>, Events), JoinError> {
        let Some(deadline) = Instant::now().checked_add(self.limits.join_within) else {
            return Err(JoinError::Limit { name: "join_within", reason: "is beyond what the clock can say" });
        };
        let (group, events) = self.start(node)?;
        match self.enter(node, discover, &group, deadline).await {
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
        discover: &(impl Discover + ?Sized),
        group: &Group<O>,
        deadline: Instant,
    ) -> Result<(), JoinError> {
        let mut dials = Dials::default();
        let mut known = Vec::new();
        loop {
            let found = timeout_at(deadline, discover.find(&self.name)).await;
            let contacts = found.unwrap_or_default();
            dials.begin(node, &contacts);
            if !known.is_empty() {
                self.begin(group, Command::Join { contacts: known.clone() }).await?;
            }
            // Whoever was not reached, or not a member yet, is asked again with the next round.
            let round = deadline.min(Instant::now() + CONTACT_ROUND);
            loop {
                tokio::select! {
                    view = timeout_at(round, group.inner.shared.wait_view()) => match view {
                        Ok(Ok(_)) => return Ok(()),
                        Ok(Err(why)) => return Err(JoinError::ended(why)),
                        Err(_) if Instant::now() >= deadline => {
                            let (name, deadline) = (self.name, self.limits.join_within);
                            return Err(JoinError::Deadline { name, deadline, tried: contacts });
                        }
                        Err(_) => break,
                    },
                    Some(reached) = dials.next() => {
                        // Addressed in whichever life it is.
                        let contact = ProcessId::any_life(reached.0);
                        if reached != node.identity().node && !known.contains(&contact) {
                            known.push(contact);
                            self.begin(group, Command::Join { contacts: known.clone() }).await?;
                        }
                    }
                }
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
        if limits.suspect_after > SUSPECT_AFTER_MAX {
            let reason = "a group that waits for more than a day for who has crashed waits for ever";
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
        if usize::from(self.quorum_min) > MEMBERS_MAX {
            return Err(JoinError::Limit { name: "quorum", reason: "is beyond the members of any group" });
        }
        #[cfg(feature = "secrets")]
        if self.is_open && self.secret.is_some() {
            return Err(JoinError::Limit { name: "open", reason: "who has not the secret is not heard" });
        }
        let channel = self.channel();
        let admit = self.admit.as_ref().map(|admission| admission.0.clone());
        let port = Port::open_to(node, channel, admit)
            .map_err(|source| JoinError::Taken { name: self.name.clone(), source })?;
        // A node may join, leave and join again: each time it is another process to the group.
        let me = driver::new_life(node);
        let machine = O::machine(me, self.config(room)).map_err(JoinError::Impossible)?;
        let wake = Arc::new(Notify::new());
        let shared = Arc::new(Shared::new(me, wake.clone(), limits));
        let introducer = Introducer::new(node.clone(), channel, me).hearing_sides(self.line.clone());
        #[cfg(feature = "secrets")]
        let seals = self.secret.as_ref().map(|secret| Seals::new(secret, channel));
        #[cfg(feature = "secrets")]
        let introducer = introducer.sealed(seals.clone());
        let desk = Desk::new(node.clone(), channel, self.is_open, limits.payload_bytes_max);
        let sink = GroupSink::new(shared.clone(), introducer, desk, self.has_state);
        #[cfg(feature = "secrets")]
        let handle = match seals {
            Some(seals) => {
                let machine = Guard::new(me, machine, seals, Plant::NONE);
                driver::start(node, Setup { port, me, machine, stable: None, wake }, sink).into_inner()
            }
            None => driver::start(node, Setup { port, me, machine, stable: None, wake }, sink),
        };
        #[cfg(not(feature = "secrets"))]
        let handle = driver::start(node, Setup { port, me, machine, stable: None, wake }, sink);
        let payload_bytes_max = limits.payload_bytes_max;
        let events = Events::new(shared.clone());
        let inner = Inner { handle, shared, payload_bytes_max };
        Ok((Group { inner: Arc::new(inner) }, events))
    }

    pub(super) fn hearing_sides(mut self, line: mpsc::Sender<(NodeId, u64)>) -> Self {
        self.line = Some(line);
        self
    }

    pub(super) fn sides(&self, node: &Node) -> Sides {
        let channel = self.channel();
        Sides {
            node: node.clone(),
            channel,
            #[cfg(feature = "secrets")]
            seals: self.secret.as_ref().map(|secret| Seals::new(secret, channel)),
        }
    }

    pub(super) const fn is_stateless(&self) -> bool {
        !self.has_state
    }

    pub(super) const fn suspect_after(&self) -> Duration {
        self.limits.suspect_after
    }

    fn channel(&self) -> Channel {
        Channel::named("group", &self.name)
    }

    /// The machine's limits, for messages that leave `room` bytes beside their headers.
    fn config(&self, room: usize) -> Config {
        let mut config = Config::default();
        config.heartbeat.timeout = self.limits.suspect_after;
        config.heartbeat.interval = self.limits.suspect_after / 10;
        config.detection = self.limits.detection;
        config.reliable.feedback = self.limits.feedback;
        config.total_by = self.total_by;
        config.view_sync.quorum_min = self.quorum_min;
        config.reliable.pending_max = config.reliable.pending_max.max(self.limits.outstanding_max * 2);
        // Several small messages travel in one, too.
        config.reliable.batch_bytes = config.reliable.batch_bytes.min(room);
        // One from outside says also from whom.
        config.fragment.message_bytes_max = self.limits.payload_bytes_max.saturating_add(OUTSIDER_BYTES);
        config.fragment.fragment_bytes = config.fragment.fragment_bytes.min(room);
        config.fragment.waiting_max = config.reliable.pending_max;
        config.state_transfer.chunk_bytes = config.state_transfer.chunk_bytes.min(room);
        config
    }
}

/// Contacts that are dialled, each for longer than a round: on a slow path no round would be long enough for a handshake that
/// begins anew with each.
#[derive(Default)]
struct Dials {
    under_way: JoinSet<(Address, Option<NodeId>)>,
    addresses: BTreeSet<Address>,
}

impl Dials {
    /// Dials those that are not being dialled already.
    fn begin(&mut self, node: &Node, contacts: &[Address]) {
        for address in contacts {
            if self.addresses.len() < DIALS_MAX && self.addresses.insert(address.clone()) {
                let (node, address) = (node.clone(), address.clone());
                self.under_way.spawn(async move {
                    let reached = tokio::time::timeout(DIAL_MAX, node.connect(&address)).await;
                    (address, reached.ok().and_then(Result::ok).map(|identity| identity.node))
                });
            }
        }
    }

    /// The next one that is reached; `None` when nobody is dialled.
    async fn next(&mut self) -> Option<NodeId> {
        loop {
            // A dial does not panic; were it to, its address would not be dialled again.
            if let Ok((address, reached)) = self.under_way.join_next().await? {
                self.addresses.remove(&address);
                if reached.is_some() {
                    return reached;
                }
            }
        }
    }
}

/// What the headers of a message may take: some hundred bytes, and 8 for each member of the view.
const HEADERS_BYTES_MAX: usize = 4096;

/// Contacts that are dialled at the same time.
const DIALS_MAX: usize = 64;

/// How long one dial may take, on the slowest of paths; then it begins anew.
const DIAL_MAX: Duration = Duration::from_secs(20);

/// How often all are tried anew.
const CONTACT_ROUND: Duration = Duration::from_millis(500);

const SUSPECT_AFTER_MIN: Duration = Duration::from_millis(50);

/// Far below what the clocks of machines can count in multiples.
const SUSPECT_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
