//! Replication: a deterministic state machine, the same on every member of anything that delivers in total order.
//!
//! Purpose     a service's state survives the death of any minority of its replicas.
//! Guarantee   every replica applies the same commands in the same order to the same state. An [`apply`] that
//!             returned is applied at every replica that goes on, also when the one that was asked dies right after.
//!             [`Replicated::read`] sees the replica's own state, which may lag (sequential consistency);
//!             [`Replicated::read_latest`] sees everything that was acknowledged before it began (linearizable).
//! Method      active replication: commands travel through the total order, results are computed by every replica and
//!             given back where the command came in. A joining replica starts from a snapshot.
//! Source      van Steen & Tanenbaum, replicated-write protocols; Schneider 1990 (state machine approach).
//! End         a replica that ends, because it was dropped, left, cannot restore a snapshot or panicked in `apply`, is
//!             no member of the group any more: it neither votes nor hands its state to joiners.
//! Limits      the state lives in memory: when a quorum of replicas dies at once, it is lost. Commands are bounded by
//!             the group's payload limit, waiting ones by its window. Snapshots are taken while the replica stands
//!             still, and must fit in memory twice.
//!
//! [`apply`]: Replicated::apply

mod error;
pub mod log;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::ProcessId;
use quorate_protocols::stack::View;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{oneshot, watch};

pub use error::{ApplyError, RestoreError};

use crate::codec::{Codec, Postcard, decode_frame};
use crate::group::{Event, Events, LeaveError, TotalOrder};

/// What is replicated. Everything in it must be deterministic: no clock, no chance, no hash-map order in what
/// [`apply`](Self::apply) returns or does, or the replicas drift apart.
pub trait StateMachine: Send + 'static {
    /// What changes the state.
    type Command: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What the one that gave the command gets back.
    type Response: Send + 'static;

    /// Applies one command. A command that cannot be carried out is a response, not a panic: a panic ends the replica,
    /// and as all replicas do the same, every one of them.
    fn apply(&mut self, command: Self::Command) -> Self::Response;

    /// The whole state, for a joiner.
    fn snapshot(&self) -> Bytes;

    /// Replaces the state by another replica's.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are no snapshot; the replica then gives up and leaves the group.
    fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError>;
}

/// One replica. Cheap to clone; all clones are the same replica. Dropping the last one drops the group, which ends the
/// replica; [`leave`](Self::leave) is kinder to the others.
pub struct Replicated<S: StateMachine, G: TotalOrder, C: Codec = Postcard> {
    group: Arc<G>,
    shared: Arc<Shared<S>>,
    codec: PhantomData<fn() -> C>,
}

/// What the handles and the replica's task share. The group is not among it: it shall end with the last handle.
struct Shared<S: StateMachine> {
    me: ProcessId,
    state: Mutex<State<S>>,
    progress: watch::Sender<Progress>,
}

struct State<S: StateMachine> {
    machine: S,
    applied: u64,
    malformed: u64,
    /// Commands of this replica that are under way.
    waiting: BTreeMap<u64, oneshot::Sender<Option<S::Response>>>,
    next: u64,
    over: bool,
}

/// Where a replica stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The members, once there is a view.
    pub view: Option<View>,
    /// True once the replica has the state and serves.
    pub has_state: bool,
    /// False while too few replicas seem alive to go on.
    pub has_quorum: bool,
    /// True when the replica has stopped for good.
    pub is_over: bool,
}

impl<S: StateMachine, G: TotalOrder, C: Codec> Replicated<S, G, C> {
    /// Makes `machine` a replica. Of a group that was just created it is the state to start from; a joiner's is
    /// replaced by the others'. Must be called within a tokio runtime.
    pub fn start(group: G, events: Events, machine: S) -> Self {
        let state =
            State { machine, applied: 0, malformed: 0, waiting: BTreeMap::new(), next: 0, over: false };
        let progress = watch::Sender::new(Progress { has_quorum: true, ..Progress::default() });
        let shared = Arc::new(Shared { me: group.me(), state: Mutex::new(state), progress });
        tokio::spawn(run::<S, C>(events, End(shared.clone())));
        Self { group: Arc::new(group), shared, codec: PhantomData }
    }

    /// Applies a command at all replicas and returns the result that it had.
    ///
    /// Waits while there is no quorum: bound it with a time-out where that matters.
    ///
    /// # Errors
    /// [`ApplyError`]; it says whether the command may have been applied.
    /// # Cancel safety
    /// Dropping the future does not take the command back once it is under way.
    pub async fn apply(&self, command: &S::Command) -> Result<S::Response, ApplyError> {
        let mut envelope = BytesMut::new();
        envelope.put_u8(COMMAND);
        self.order(&mut envelope, |out| C::encode(command, out)).await?.ok_or(ApplyError::Malformed)
    }

    /// Looks at this replica's own state. Quick work only: the replica stands still meanwhile.
    pub fn read<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&self.shared.lock().machine)
    }

    /// Looks at a state that contains everything that any replica acknowledged before this call.
    ///
    /// Costs a round through the total order.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); nothing was changed in any case.
    pub async fn read_latest<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R, ApplyError> {
        let mut envelope = BytesMut::new();
        envelope.put_u8(BARRIER);
        self.order(&mut envelope, |_| Ok(())).await?;
        Ok(self.read(look))
    }

    /// Who this replica is.
    pub fn me(&self) -> ProcessId {
        self.shared.me
    }

    /// Where the replica stands.
    pub fn progress(&self) -> Progress {
        self.shared.progress.borrow().clone()
    }

    /// Follows where the replica stands.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Waits until the replica has the state; false when it has ended before.
    pub async fn wait_state(&self) -> bool {
        let mut progress = self.watch();
        let there = progress.wait_for(|progress| progress.has_state || progress.is_over).await;
        there.is_ok_and(|progress| progress.has_state && !progress.is_over)
    }

    /// Commands applied so far, by whomever.
    pub fn applied(&self) -> u64 {
        self.shared.lock().applied
    }

    /// Leaves the group in good order and stops.
    ///
    /// # Errors
    /// [`LeaveError`]; the replica has stopped all the same.
    pub async fn leave(&self, deadline: Duration) -> Result<(), LeaveError> {
        self.group.leave(deadline).await
    }

    async fn order(
        &self,
        envelope: &mut BytesMut,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), crate::codec::EncodeError>,
    ) -> Result<Option<S::Response>, ApplyError> {
        let (sender, result) = oneshot::channel();
        let waiting = {
            let mut state = self.shared.lock();
            if state.over {
                return Err(ApplyError::Ended);
            }
            let number = state.next;
            state.next += 1;
            state.waiting.insert(number, sender);
            Waiting { shared: &self.shared, number }
        };
        envelope.put_u64_le(waiting.number);
        encode(envelope)?;
        self.group.cast(envelope.split().freeze()).await?;
        // The sender is dropped unanswered when the replica ends.
        result.await.map_err(|_| ApplyError::Unknown)
    }
}

/// Takes the entry out when a caller goes away.
struct Waiting<'a, S: StateMachine> {
    shared: &'a Shared<S>,
    number: u64,
}

impl<S: StateMachine> Drop for Waiting<'_, S> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.number);
    }
}

impl<S: StateMachine> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        // A panic in `apply` ends the replica's task, and with it the replica.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of a replica: applies what is delivered, in order.
///
/// Whatever ends it, also a panic or the runtime, first tells the callers, then leaves the group: parameters are dropped
/// last to first.
async fn run<S: StateMachine, C: Codec>(mut events: Events, end: End<S>) {
    let mut first_view = true;
    while let Some(event) = events.next().await {
        if !end.0.take_run::<C>(event, &mut events, &mut first_view) {
            return;
        }
    }
}

impl<S: StateMachine> Shared<S> {
    /// Takes an event and what waits behind it under one lock; readers get their turn between such runs. False at
    /// the end.
    fn take_run<C: Codec>(&self, event: Event, events: &mut Events, first_view: &mut bool) -> bool {
        let mut state = self.lock();
        let mut next = Some(event);
        let mut taken = 0;
        while let Some(event) = next {
            match event {
                Event::Message { from, payload } => state.deliver::<C>(from == self.me, payload),
                Event::View(view) => {
                    // A founder has the state that it was given; a joiner's comes right after its first view.
                    let founded = std::mem::take(first_view) && view.members.len() == 1;
                    self.progress.send_modify(|progress| {
                        progress.has_state |= founded;
                        progress.view = Some(view);
                    });
                }
                Event::StateWanted(request) => {
                    let mut snapshot = BytesMut::new();
                    snapshot.put_u64_le(state.applied);
                    snapshot.put(state.machine.snapshot());
                    request.answer(snapshot.freeze());
                }
                Event::State(mut snapshot) => {
                    let applied = snapshot.try_get_u64_le().unwrap_or(0);
                    if let Err(error) = state.machine.restore(snapshot) {
                        tracing::error!(me = %self.me, %error, "the group's state cannot be restored");
                        return false;
                    }
                    state.applied = applied;
                    self.progress.send_modify(|progress| progress.has_state = true);
                }
                // Commands come from replicas.
                Event::Outside { .. } => {}
                Event::QuorumLost => self.progress.send_modify(|progress| progress.has_quorum = false),
                Event::QuorumRegained => self.progress.send_modify(|progress| progress.has_quorum = true),
                Event::Ended(_) => return false,
            }
            taken += 1;
            next = if taken < EVENTS_PER_TURN { events.try_next() } else { None };
        }
        true
    }
}

impl<S: StateMachine> State<S> {
    fn deliver<C: Codec>(&mut self, mine: bool, mut payload: Bytes) {
        let kind = payload.try_get_u8().ok();
        let number = payload.try_get_u64_le().ok();
        let response = match kind {
            Some(COMMAND) => match decode_frame::<C, S::Command>(&payload) {
                Ok(command) => {
                    self.applied += 1;
                    Some(self.machine.apply(command))
                }
                // The same bytes everywhere: all replicas refuse them alike.
                Err(error) => {
                    self.malformed += 1;
                    tracing::warn!(%error, "malformed command refused");
                    None
                }
            },
            _ => None,
        };
        if let (true, Some(number)) = (mine, number)
            && let Some(waiting) = self.waiting.remove(&number)
        {
            // The caller may have gone.
            let _ = waiting.send(response);
        }
    }
}

/// Whatever ends the task ends the replica: callers learn that they do not know.
struct End<S: StateMachine>(Arc<Shared<S>>);

impl<S: StateMachine> Drop for End<S> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.over = true;
        state.waiting.clear();
        drop(state);
        self.0.progress.send_modify(|progress| progress.is_over = true);
    }
}

impl<S: StateMachine, G: TotalOrder, C: Codec> Clone for Replicated<S, G, C> {
    fn clone(&self) -> Self {
        Self { group: self.group.clone(), shared: self.shared.clone(), codec: PhantomData }
    }
}

impl<S: StateMachine, G: TotalOrder, C: Codec> fmt::Debug for Replicated<S, G, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicated").field("me", &self.me()).field("progress", &self.progress()).finish()
    }
}

/// Events applied before readers get a turn.
const EVENTS_PER_TURN: usize = 256;

/// An envelope that carries a command.
const COMMAND: u8 = 1;

/// An envelope that only marks a place in the order.
const BARRIER: u8 = 2;
