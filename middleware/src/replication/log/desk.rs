//! Between the machine's task and everyone else: the state, what is asked, and who waits for which answer.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_protocols::ProcessId;
use quorate_protocols::agreement::{Command, Delivered, Event, Members, Replica};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::error::ApplyError;
use super::{Progress, Stats};
use crate::codec::{Codec, decode_frame};
use crate::driver::{Sink, Stopped};
use crate::node::NodeId;
use crate::replication::StateMachine;

/// What the handles and the machine's task share.
pub(super) struct Desk<S: StateMachine> {
    state: Mutex<State<S>>,
    /// Makes the driver ask for commands.
    wake: Arc<Notify>,
    progress: watch::Sender<Progress>,
    /// As many as may be under way.
    room: Arc<Semaphore>,
}

struct State<S: StateMachine> {
    machine: S,
    /// What the machine is to be told: at most one for each that waits, and a snapshot.
    commands: VecDeque<Command>,
    waiting: Slots<(Waiting<S>, OwnedSemaphorePermit)>,
    is_over: bool,
    stats: Stats,
}

/// Who waits for what. The answer is dropped when nobody does any more.
pub(super) enum Waiting<S: StateMachine> {
    Applied(oneshot::Sender<Result<S::Response, ApplyError>>),
    Done(oneshot::Sender<Result<(), ApplyError>>),
}

impl<S: StateMachine> Waiting<S> {
    fn fail(self, error: ApplyError) {
        match self {
            Self::Applied(sender) => drop(sender.send(Err(error))),
            Self::Done(sender) => drop(sender.send(Err(error))),
        }
    }
}

impl<S: StateMachine> Desk<S> {
    pub(super) fn new(machine: S, room: usize, members: &Members) -> Self {
        let state = State {
            machine,
            commands: VecDeque::new(),
            waiting: Slots { slots: Vec::new(), free: Vec::new() },
            is_over: false,
            stats: Stats::default(),
        };
        let mut progress = Progress::default();
        progress.take(members);
        Self {
            state: Mutex::new(state),
            wake: Arc::default(),
            progress: watch::Sender::new(progress),
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
        }
    }

    pub(super) fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    pub(super) fn progress(&self) -> &watch::Sender<Progress> {
        &self.progress
    }

    pub(super) fn stats(&self) -> Stats {
        self.lock().stats
    }

    pub(super) fn look<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&self.lock().machine)
    }

    /// Gives the machine a command, once there is room; its answer goes to `waiting`.
    pub(super) async fn ask(
        &self,
        waiting: Waiting<S>,
        command: impl FnOnce(u64) -> Command,
    ) -> Result<(), ApplyError> {
        let permit = self.room.clone().acquire_owned().await.map_err(|_| ApplyError::Ended)?;
        let mut state = self.lock();
        if state.is_over {
            return Err(ApplyError::Ended);
        }
        let token = state.waiting.insert((waiting, permit));
        let is_first = state.commands.is_empty();
        state.commands.push_back(command(token));
        drop(state);
        if is_first {
            self.wake.notify_one();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        // A panic in `apply` ends the machine's task, and with it the replica.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn take(&mut self, members: &Members) {
        let nodes =
            |set: &std::collections::BTreeSet<ProcessId>| set.iter().map(|name| NodeId(name.node)).collect();
        (self.voters, self.learners) = (nodes(&members.voters), nodes(&members.learners));
    }
}

/// Takes the machine's events, in its task.
pub(super) struct Clerk<S: StateMachine, C> {
    desk: Arc<Desk<S>>,
    me: ProcessId,
    /// The state cannot be taken over.
    is_lost: bool,
    codec: PhantomData<fn() -> C>,
}

impl<S: StateMachine, C: Codec> Clerk<S, C> {
    pub(super) fn new(desk: Arc<Desk<S>>, me: ProcessId) -> Self {
        Self { desk, me, is_lost: false, codec: PhantomData }
    }

    fn apply(&self, run: Vec<Delivered>) {
        let mut state = self.desk.lock();
        let state = &mut *state;
        for Delivered { token, payload, .. } in run {
            let answer = match decode_frame::<C, S::Command>(&payload) {
                Ok(command) => {
                    state.stats.applied += 1;
                    Ok(state.machine.apply(command))
                }
                // The same bytes everywhere: all replicas refuse them alike.
                Err(error) => {
                    state.stats.malformed += 1;
                    tracing::warn!(%error, "malformed command refused");
                    Err(ApplyError::Malformed)
                }
            };
            if let Some((Waiting::Applied(sender), _permit)) =
                token.and_then(|token| state.waiting.take(token))
            {
                // The caller may have gone.
                drop(sender.send(answer));
            }
        }
    }

    fn answer(&self, token: u64, answer: Result<(), ApplyError>) {
        let waiting = self.desk.lock().waiting.take(token);
        match (waiting, answer) {
            (Some((Waiting::Done(sender), _permit)), answer) => drop(sender.send(answer)),
            (Some((waiting, _permit)), Err(error)) => waiting.fail(error),
            _ => {}
        }
    }

    fn restore(&mut self, index: u64, data: Bytes) {
        let mut state = self.desk.lock();
        state.stats.restored += 1;
        if let Err(error) = state.machine.restore(data) {
            tracing::error!(me = %self.me, index, %error, "the leader's state cannot be taken over");
            self.is_lost = true;
        }
    }
}

impl<S: StateMachine, C: Codec> Sink<Replica> for Clerk<S, C>
where
    Self: Send + 'static,
{
    fn take(&mut self, event: Event) {
        match event {
            Event::Delivered(run) => self.apply(run),
            Event::Readable { token } | Event::Reconfigured { token } => self.answer(token, Ok(())),
            Event::Refused { token, reason } => self.answer(token, Err(reason.into())),
            Event::Missed { token } => self.answer(token, Err(ApplyError::AnswerLost)),
            Event::Restore { index, data } => self.restore(index, data),
            Event::SnapshotWanted { index } => {
                let mut state = self.desk.lock();
                state.stats.snapshots += 1;
                let data = state.machine.snapshot();
                state.commands.push_front(Command::Snapshot { index, data });
                drop(state);
                self.desk.wake.notify_one();
            }
            Event::Leader { term, leader } => {
                tracing::info!(me = %self.me, term, leader = leader.map(|leader| leader.node), "leader");
                self.desk.progress.send_modify(|progress| {
                    (progress.term, progress.leader) = (term, leader.map(|leader| NodeId(leader.node)));
                });
            }
            Event::Members(members) => {
                tracing::info!(me = %self.me, ?members, "members");
                self.desk.progress.send_modify(|progress| progress.take(&members));
            }
        }
    }

    fn command(&mut self) -> Option<Command> {
        self.desk.lock().commands.pop_front()
    }

    fn is_over(&self) -> bool {
        self.is_lost
    }

    fn ended(&mut self, why: &Stopped) {
        if let Stopped::Journal(error) = why {
            tracing::error!(me = %self.me, %error, "the replica stops: its log cannot be kept");
        }
        let mut state = self.desk.lock();
        state.is_over = true;
        state.commands.clear();
        // Dropped senders tell the waiting that nobody knows.
        state.waiting.slots.clear();
        state.waiting.free.clear();
        drop(state);
        self.desk.room.close();
        self.desk.progress.send_modify(|progress| progress.is_over = true);
    }
}

/// Things with short-lived numbers.
struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Slots<T> {
    fn insert(&mut self, thing: T) -> u64 {
        let slot = self.free.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(Some(thing));
        } else {
            self.slots[slot] = Some(thing);
        }
        slot as u64
    }

    fn take(&mut self, number: u64) -> Option<T> {
        let slot = usize::try_from(number).ok()?;
        let thing = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(thing)
    }
}
