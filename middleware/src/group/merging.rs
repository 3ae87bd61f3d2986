//! Groups that rather go on apart than wait: a side that is cut off becomes a group of its own, and comes back.
//!
//! Purpose     the other choice beside the primary partition, for what can be joined later: what users have written in a room,
//!             what is in a basket, who was seen where.
//! Guarantee   each side is a group with all that groups promise. Once the network is whole for long enough, all members are
//!             on one side again, and what any member that lives on had in its state has been offered to all as a
//!             [`Told::Merge`], at one place of their order where the group is [`Total`](super::Total).
//! Needs       a way to make one of two states that takes them in either order, in any groups, and again: the union of two
//!             sets, the later one of two writings. Each member that comes over brings what its side has done, so the same
//!             comes several times. What cannot be joined so, such as a sum, needs the primary partition.
//! Method      a [`Reunion`] decides; each side is a membership of its own, made by the [`Builder`] that was given. What was
//!             cast and not delivered when a side is left has an unknown outcome, as at the end of any membership.
//! Source      van Steen & Tanenbaum, virtual synchrony and partitions; see `quorate_protocols::membership::reunion`.
//! Limits      those of the group: a state that is offered is one message, of at most [`Limits::payload_bytes_max`]
//!             ([`Told::Unmerged`]). Members meet again that knew each other before: who was never with any of the others stays
//!             outside.
//!
//! [`Limits::payload_bytes_max`]: super::Limits::payload_bytes_max

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::ProcessId;
use quorate_protocols::membership::reunion::{Act, Config, Reunion, side};
use quorate_protocols::planted::Plant;
use quorate_protocols::stack::{Ended, View};
use quorate_protocols::time::Time;
use quorate_transports::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::introduce::Sides;
use super::{Builder, CastError, Event, Events, Group, JoinError, LeaveError, Order};
use crate::node::{Address, Node};

/// A member of a group that goes on apart. Cheap to clone. Somebody must read the [`Tidings`] meanwhile.
pub struct Merging<O: Order> {
    side: watch::Receiver<Option<Group<O>>>,
    stop: watch::Sender<bool>,
    stateless: bool,
}

/// What a member of a group that goes on apart is told: to be read at all times, as [`Events`] are. Dropping it leaves the group.
#[derive(Debug)]
pub struct Tidings {
    told: mpsc::Receiver<Told>,
}

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Told {
    /// As in any group. [`Event::QuorumLost`] is the beginning of a time without deliveries, which ends with
    /// [`Event::QuorumRegained`], or with another side: its [`Event::View`] has another group number. [`Event::Ended`] comes
    /// once, at the end of all.
    Event(Event),
    /// From here on this side goes on by itself, with the state as it is.
    Parted,
    /// This member goes over to another side, whose state it will be given in place of its own: answer with the state as of now,
    /// and it will be offered there.
    Offer(OfferRequest),
    /// What another side did: join `state` to this one.
    Merge {
        /// Who brings it.
        from: ProcessId,
        /// As it was answered to [`Told::Offer`].
        state: Bytes,
    },
    /// The state that was answered is larger than a message of the group, and the others will not get it.
    Unmerged(Bytes),
}

/// Asks for the state that is to be offered. Dropped unanswered, nothing is.
#[must_use = "what this side has done is forgotten without an answer"]
#[derive(Debug)]
pub struct OfferRequest(oneshot::Sender<Bytes>);

impl OfferRequest {
    /// Answers with the state as of now, in the application's own encoding.
    pub fn answer(self, state: Bytes) {
        // Whoever asked may have been shut down.
        let _ = self.0.send(state);
    }
}

impl Tidings {
    /// What happens next; `None` after [`Event::Ended`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }
}

impl<O: Order> Merging<O> {
    /// Founds a group, as [`Builder::create`]. All its members must be merging ones: messages have a byte more.
    ///
    /// # Errors
    /// As [`Builder::create`].
    /// # Cancel safety
    /// Dropping the future founds nothing.
    pub async fn create(builder: Builder<O>, node: &Node) -> Result<(Self, Tidings), JoinError> {
        let (builder, line) = listen(builder);
        let first = builder.clone().create_as(node, |me| numbered(0, me)).await?;
        Ok(Self::over(builder, node, line, first))
    }

    /// Joins a group, as [`Builder::join`].
    ///
    /// # Errors
    /// As [`Builder::join`].
    /// # Cancel safety
    /// As [`Builder::join`].
    pub async fn join(
        builder: Builder<O>,
        node: &Node,
        contacts: &[Address],
    ) -> Result<(Self, Tidings), JoinError> {
        let (builder, line) = listen(builder);
        let first = builder.clone().join(node, contacts).await?;
        Ok(Self::over(builder, node, line, first))
    }

    fn over(builder: Builder<O>, node: &Node, line: Line, first: (Group<O>, Events)) -> (Self, Tidings) {
        let patience = builder.suspect_after();
        let config = Config { part_after: patience * 2, step: patience, tell_every: patience };
        let (side, current) = watch::channel(Some(first.0.clone()));
        let (stop, stop_wish) = watch::channel(false);
        let (out, told) = mpsc::channel(1);
        let stateless = builder.is_stateless();
        let member = Member {
            sides: builder.sides(node),
            builder,
            node: node.clone(),
            reunion: Reunion::new(node.identity().node.0, config, Plant::NONE),
            epoch: Instant::now(),
            patience,
            line,
            side,
            out,
            stop: stop_wish,
            offer: None,
        };
        tokio::spawn(member.live(first));
        (Self { side: current, stop, stateless }, Tidings { told })
    }

    /// Multicasts on the side that this member is on, or, between two, on the next one. Otherwise as [`Group::cast`].
    ///
    /// # Errors
    /// As [`Group::cast`]; [`CastError::Ended`] at the end of all.
    /// # Cancel safety
    /// As [`Group::cast`].
    pub async fn cast(&self, payload: &[u8]) -> Result<(), CastError> {
        let message = Bytes::from([&[PLAIN], payload].concat());
        let mut side = self.side.clone();
        loop {
            let group = side.wait_for(Option::is_some).await.map_err(|_| CastError::Ended(None))?.clone();
            let Some(group) = group else { continue };
            match group.cast(message.clone()).await {
                // Nothing was sent: the next side takes it.
                Err(CastError::Ended(why)) => side.changed().await.map_err(|_| CastError::Ended(why))?,
                other => return other,
            }
        }
    }

    /// The view that this member is in; `None` between two sides.
    pub fn view(&self) -> Option<View> {
        self.side.borrow().as_ref().and_then(Group::view)
    }

    /// True when no state is given to joiners, nor offered.
    pub const fn is_stateless(&self) -> bool {
        self.stateless
    }

    /// Leaves in good order, as [`Group::leave`].
    ///
    /// # Errors
    /// As [`Group::leave`].
    /// # Cancel safety
    /// Dropping the future leaves the wish standing.
    pub async fn leave(&self, deadline: Duration) -> Result<(), LeaveError> {
        self.stop.send_replace(true);
        let mut side = self.side.clone();
        let ended = async { while side.changed().await.is_ok() {} };
        tokio::time::timeout(deadline, ended).await.map_err(|_| LeaveError::Deadline { deadline })
    }
}

/// What other members say about their sides.
type Line = mpsc::Receiver<(NodeId, u64)>;

fn listen<O: Order>(builder: Builder<O>) -> (Builder<O>, Line) {
    let (sender, line) = mpsc::channel(WORDS_MAX);
    (builder.hearing_sides(sender), line)
}

/// One member through all its memberships.
struct Member<O: Order> {
    builder: Builder<O>,
    node: Node,
    sides: Sides,
    reunion: Reunion,
    epoch: Instant,
    /// How long a silent member is trusted, which is the measure of all waiting here.
    patience: Duration,
    line: Line,
    side: watch::Sender<Option<Group<O>>>,
    out: mpsc::Sender<Told>,
    stop: watch::Receiver<bool>,
    /// What this member brings to the side it has come to, until it was delivered there.
    offer: Option<Bytes>,
}

/// How a membership ends.
enum Next {
    /// A side of this generation.
    Found(u16),
    /// To the side of this node, or of any that is known.
    Move(Option<u64>),
    End(Option<Ended>),
}

impl<O: Order> Member<O> {
    async fn live(mut self, first: (Group<O>, Events)) {
        let mut present = Some(first);
        let mut next = Next::End(None);
        loop {
            if let Some((group, events)) = present.take() {
                self.side.send_replace(Some(group.clone()));
                next = self.stay(group, events).await;
            }
            next = match next {
                Next::End(why) => {
                    let _ = self.out.send(Told::Event(Event::Ended(why))).await;
                    return;
                }
                Next::Found(generation) => {
                    // The state is as it was, so there is nothing that would have to be brought along.
                    let _ = self.out.send(Told::Parted).await;
                    match self.builder.clone().create_as(&self.node, |me| numbered(generation, me)).await {
                        Ok(founded) => {
                            present = Some(founded);
                            Next::End(None)
                        }
                        Err(error) => Next::End(why_of(&error)),
                    }
                }
                Next::Move(to) => {
                    self.pack().await;
                    match self.enter(to).await {
                        Ok(entered) => {
                            present = Some(entered);
                            Next::End(None)
                        }
                        Err(error)
                            if !error.is_retryable() && !matches!(error, JoinError::NoContact { .. }) =>
                        {
                            Next::End(why_of(&error))
                        }
                        Err(_) => {
                            // Nobody took the state from the application, so nothing has to be brought back.
                            self.offer = None;
                            match self.reunion.on_outside() {
                                Act::Found { generation } => Next::Found(generation),
                                Act::Move { to } => Next::Move(Some(to)),
                                Act::Tell { .. } => Next::End(None),
                            }
                        }
                    }
                }
            };
        }
    }

    /// One membership, until it is over and all its events are told.
    async fn stay(&mut self, group: Group<O>, mut events: Events) -> Next {
        let next = self.attend(&group, &mut events).await;
        self.side.send_replace(None);
        let next = match next {
            Some(next) => next,
            None => return Next::End(group.inner.shared.why_ended()),
        };
        match next {
            Next::Found(_) => group.inner.handle.stop().await,
            Next::Move(_) | Next::End(_) => {
                // The others wait for what this one has not read, so both go on at once.
                let leaving = group.leave(self.patience * 2);
                tokio::pin!(leaving);
                loop {
                    tokio::select! {
                        biased;
                        _ = &mut leaving => break,
                        event = events.next() => match event {
                            Some(event) => self.tell(event).await,
                            None => break,
                        },
                    }
                }
                group.inner.handle.stop().await;
            }
        }
        while let Some(event) = events.next().await {
            self.tell(event).await;
        }
        next
    }

    /// Reads what comes and does what is due; `None` when the membership has ended for good.
    async fn attend(&mut self, group: &Group<O>, events: &mut Events) -> Option<Next> {
        if let Some(state) = &self.offer {
            let offer = [&[MERGE], &state[..]].concat();
            if let Err(CastError::TooLarge { .. }) = group.cast(offer.into()).await
                && let Some(state) = self.offer.take()
            {
                let _ = self.out.send(Told::Unmerged(state)).await;
            }
        }
        loop {
            let due = self.reunion.deadline().map(|at| self.epoch + Duration::from_nanos(at.as_nanos()));
            let act = tokio::select! {
                biased;
                () = wished(&mut self.stop) => return Some(Next::End(Some(Ended::Left))),
                // Nobody reads any more: as with any group, that is a wish to leave.
                () = self.out.closed() => return Some(Next::End(Some(Ended::Left))),
                Some((from, number)) = self.line.recv() => self.reunion.on_told(self.now(), from.0, number),
                () = until(due) => self.reunion.on_tick(self.now()),
                event = events.next() => match event? {
                    Event::Ended(Some(Ended::Expelled)) => return Some(Next::Move(None)),
                    Event::Ended(_) => return None,
                    event => {
                        self.tell(event).await;
                        None
                    }
                },
            };
            match act {
                Some(Act::Found { generation }) => return Some(Next::Found(generation)),
                Some(Act::Move { to }) => return Some(Next::Move(Some(to))),
                Some(Act::Tell { to, group }) => self.sides.tell(&to, group),
                None => {}
            }
        }
    }

    /// Tells the user, and the one who decides about sides.
    async fn tell(&mut self, event: Event) {
        let now = self.now();
        let told = match event {
            Event::Ended(_) => return,
            Event::Message { from, payload } => match payload.first() {
                Some(&PLAIN) => Told::Event(Event::Message { from, payload: payload.slice(1..) }),
                Some(&MERGE) => {
                    let own = self.side.borrow().as_ref().is_some_and(|group| group.me() == from);
                    if own {
                        self.offer = None;
                    }
                    Told::Merge { from, state: payload.slice(1..) }
                }
                _ => return,
            },
            Event::View(view) => {
                let members: Vec<u64> = view.members.iter().map(|member| member.node).collect();
                self.reunion.on_view(now, view.id.group, &members);
                Told::Event(Event::View(view))
            }
            Event::QuorumLost => {
                self.reunion.on_quorum(now, true);
                Told::Event(Event::QuorumLost)
            }
            Event::QuorumRegained => {
                self.reunion.on_quorum(now, false);
                Told::Event(Event::QuorumRegained)
            }
            other => Told::Event(other),
        };
        let _ = self.out.send(told).await;
    }

    /// Asks for what this side has done.
    async fn pack(&mut self) {
        if self.builder.is_stateless() {
            return;
        }
        if let Some(state) = self.offer.take() {
            // What was brought here and is not in the state yet.
            let from = ProcessId { node: self.node.identity().node.0, incarnation: 0 };
            let _ = self.out.send(Told::Merge { from, state }).await;
        }
        // Also of a side that goes on without this member: what it had delivered is not promised to be known there in every
        // order, and what is known there already changes nothing.
        let (answer, answered) = oneshot::channel();
        let _ = self.out.send(Told::Offer(OfferRequest(answer))).await;
        self.offer = answered.await.ok();
    }

    async fn enter(&self, to: Option<u64>) -> Result<(Group<O>, Events), JoinError> {
        // The one that spoke is asked first; should it have gone on, any of the others may know.
        let known = to.into_iter().chain(self.reunion.known());
        let contacts: Vec<Address> = known.flat_map(|node| self.node.addresses_of(NodeId(node))).collect();
        self.builder.clone().join(&self.node, &contacts).await
    }

    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The number of a side that this process founds.
fn numbered(generation: u16, me: ProcessId) -> u64 {
    side(generation, me.incarnation ^ me.node.rotate_left(32))
}

fn why_of(error: &JoinError) -> Option<Ended> {
    match error {
        JoinError::Ended(why) => Some(*why),
        _ => None,
    }
}

async fn wished(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // The handle is gone, and the tidings alone are enough to be a member.
        std::future::pending::<()>().await;
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl<O: Order> Clone for Merging<O> {
    fn clone(&self) -> Self {
        Self { side: self.side.clone(), stop: self.stop.clone(), stateless: self.stateless }
    }
}

impl<O: Order> fmt::Debug for Merging<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merging").field("view", &self.view()).finish_non_exhaustive()
    }
}

/// Words about sides that wait; what comes beyond it will be said again.
const WORDS_MAX: usize = 64;

/// What a message is, by its first byte.
const PLAIN: u8 = 0;
const MERGE: u8 = 1;
