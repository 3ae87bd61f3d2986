//! Between the machine's task and everyone else: who waits for what, and what the resource answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_protocols::commit::{self, Command, Event, Manager, TxnId, Vote};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use super::error::BeginError;
use super::{Left, Outcome, Resource, Stats};
use crate::driver::{Sink, Stopped};

/// A transaction that has a name, and where its outcome will come.
pub(super) type Begun = Result<(TxnId, oneshot::Receiver<Outcome>), BeginError>;

/// What the faces, the machine's task and the resource's tasks share.
#[derive(Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// Makes the driver ask for a command.
    wake: Arc<Notify>,
    /// Something has ended.
    ended: Notify,
}

/// An answer that somebody waits for; dropped, nobody does, and what was begun is cancelled.
pub(super) struct Expected<'a> {
    desk: &'a Desk,
    token: u64,
    receiver: oneshot::Receiver<Begun>,
}

impl Expected<'_> {
    pub(super) fn answer(&mut self) -> &mut oneshot::Receiver<Begun> {
        &mut self.receiver
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        if let Ok(Ok((txn, _))) = self.receiver.try_recv() {
            self.desk.answer(Command::Cancel(txn));
        }
        // Still there when the wish was never handed over, or is not answered yet.
        if self.desk.lock().beginning.remove(&self.token).is_some() {
            self.desk.ended.notify_waiters();
        }
    }
}

#[derive(Default)]
struct State {
    /// What the resource answered: at most one per open transaction.
    answers: VecDeque<Command>,
    beginning: BTreeMap<u64, oneshot::Sender<Begun>>,
    undecided: BTreeMap<TxnId, oneshot::Sender<Outcome>>,
    in_doubt: BTreeSet<TxnId>,
    unapplied: BTreeSet<TxnId>,
    resumed: Vec<TxnId>,
    is_closed: bool,
    stats: Stats,
}

impl Desk {
    pub(super) fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Where the answer to a wish will come; `None` when nothing is begun any more.
    pub(super) fn expect(&self, token: u64) -> Option<Expected<'_>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.beginning.insert(token, sender);
        Some(Expected { desk: self, token, receiver })
    }

    /// What was open when the last life ended.
    pub(super) fn restored(&self, promised: impl Iterator<Item = TxnId>, committed: Vec<TxnId>) {
        let mut state = self.lock();
        state.in_doubt.extend(promised);
        state.resumed = committed;
    }

    pub(super) fn in_doubt(&self) -> Vec<TxnId> {
        self.lock().in_doubt.iter().copied().collect()
    }

    pub(super) fn resumed(&self) -> Vec<TxnId> {
        self.lock().resumed.clone()
    }

    pub(super) fn stats(&self) -> Stats {
        self.lock().stats
    }

    pub(super) fn left(&self) -> Left {
        self.lock().left()
    }

    /// Begins nothing any more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Waits until nothing is undecided, in doubt or unapplied.
    pub(super) async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before the look, so that an end between look and wait is not missed.
            ended.as_mut().enable();
            if self.lock().left().is_nothing() {
                return;
            }
            ended.await;
        }
    }

    fn answer(&self, command: Command) {
        let mut state = self.lock();
        match &command {
            // Unless it was aborted while the resource prepared: then nobody listens to the vote.
            Command::Vote { txn, vote: Vote::Yes } if !state.unapplied.contains(txn) => {
                state.in_doubt.insert(*txn);
            }
            Command::Applied(txn) => {
                state.unapplied.remove(txn);
            }
            _ => {}
        }
        state.answers.push_back(command);
        drop(state);
        self.wake.notify_one();
        self.ended.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn left(&self) -> Left {
        Left {
            undecided: self.undecided.len() + self.beginning.len(),
            in_doubt: self.in_doubt.len(),
            unapplied: self.unapplied.len(),
        }
    }

    /// False when nobody waits for it.
    fn begun(&mut self, token: u64, txn: TxnId) -> bool {
        let (outcome, receiver) = oneshot::channel();
        let told =
            self.beginning.remove(&token).is_some_and(|waiting| waiting.send(Ok((txn, receiver))).is_ok());
        if told {
            self.undecided.insert(txn, outcome);
        }
        told
    }

    fn told(&mut self, txn: TxnId) {
        self.in_doubt.remove(&txn);
        self.unapplied.insert(txn);
    }

    fn decided(&mut self, txn: TxnId, outcome: commit::Outcome) {
        let (outcome, is_committed) = match outcome {
            commit::Outcome::Committed => (Outcome::Committed(txn), true),
            commit::Outcome::Aborted(reason) => (Outcome::Aborted(txn, reason), false),
        };
        match self.undecided.remove(&txn) {
            // Whoever began it may have stopped waiting.
            Some(waiting) => drop(waiting.send(outcome)),
            None if is_committed => {
                if !self.resumed.contains(&txn) {
                    self.resumed.push(txn);
                }
                return;
            }
            None => {}
        }
        if is_committed {
            self.stats.committed += 1;
        } else {
            self.stats.aborted += 1;
        }
    }
}

/// Takes the machine's events, in its task, and has the resource work in tasks of their own.
pub(super) struct Clerk<R> {
    desk: Arc<Desk>,
    resource: Arc<R>,
    /// Calls of the resource; they end with the clerk.
    calls: JoinSet<()>,
    /// One lock per transaction: an end waits until the prepare has returned.
    turns: BTreeMap<TxnId, Arc<tokio::sync::Mutex<()>>>,
}

impl<R: Resource> Clerk<R> {
    pub(super) fn new(desk: Arc<Desk>, resource: R) -> Self {
        Self { desk, resource: Arc::new(resource), calls: JoinSet::new(), turns: BTreeMap::new() }
    }

    fn prepare(&mut self, txn: TxnId, payload: Bytes) {
        let turn = self.turns.entry(txn).or_default().clone();
        // Taken here and not in the task, so that an end that follows at once cannot overtake it.
        let Ok(turn) = turn.try_lock_owned() else {
            // The machine asks once; a second time would mean that the first is still at it and will answer.
            return;
        };
        let (resource, desk) = (self.resource.clone(), self.desk.clone());
        self.calls.spawn(async move {
            // Given up after the answer, which is dropped first: an end must not come between.
            let _turn = turn;
            let mut answer =
                Answer { desk, command: Some(Command::Vote { txn, vote: Vote::No }), is_panic: true };
            let vote = resource.prepare(txn, payload).await;
            tracing::info!(%txn, ?vote, "voted");
            answer.give(Command::Vote { txn, vote });
        });
    }

    fn end(&mut self, txn: TxnId, is_commit: bool) {
        let turn = self.turns.remove(&txn);
        let (resource, desk) = (self.resource.clone(), self.desk.clone());
        self.calls.spawn(async move {
            let _turn = match turn {
                Some(turn) => Some(turn.lock_owned().await),
                None => None,
            };
            let mut answer = Answer { desk, command: None, is_panic: true };
            if is_commit {
                resource.commit(txn).await;
            } else {
                resource.abort(txn).await;
            }
            {
                let stats = &mut answer.desk.lock().stats;
                *(if is_commit { &mut stats.applied } else { &mut stats.undone }) += 1;
            }
            tracing::info!(%txn, is_commit, "ended");
            answer.give(Command::Applied(txn));
        });
    }
}

impl<R: Resource> Sink<Manager> for Clerk<R> {
    fn take(&mut self, event: Event) {
        while self.calls.try_join_next().is_some() {}
        match event {
            Event::Begun { token, txn } => {
                if !self.desk.lock().begun(token, txn) {
                    // Nobody waits any more: as if it had not been asked for.
                    self.desk.answer(Command::Cancel(txn));
                }
            }
            Event::Refused { token, reason } => {
                if let Some(waiting) = self.desk.lock().beginning.remove(&token) {
                    drop(waiting.send(Err(reason.into())));
                }
            }
            Event::Decided { txn, outcome } => {
                tracing::info!(%txn, ?outcome, "decided");
                self.desk.lock().decided(txn, outcome);
            }
            Event::Prepare { txn, payload } => {
                self.desk.lock().stats.prepared += 1;
                self.prepare(txn, payload);
            }
            Event::Commit(txn) => {
                self.desk.lock().told(txn);
                self.end(txn, true);
            }
            Event::Abort(txn) => {
                self.desk.lock().told(txn);
                self.end(txn, false);
            }
            // The resource was told before the machine started.
            Event::InDoubt { txn, .. } => {
                self.desk.lock().in_doubt.insert(txn);
            }
        }
        self.desk.ended.notify_waiters();
    }

    fn command(&mut self) -> Option<Command> {
        let mut state = self.desk.lock();
        let command = state.answers.pop_front();
        // A no leaves nothing to end.
        if let Some(Command::Vote { txn, vote: Vote::No | Vote::ReadOnly }) = &command {
            self.turns.remove(txn);
        }
        command
    }

    fn ended(&mut self, why: &Stopped) {
        if let Stopped::Journal(error) = why {
            tracing::error!(%error, "transactions stop: their records cannot be kept");
        }
        let mut state = self.desk.lock();
        state.is_closed = true;
        // Dropped senders tell the waiting: not begun, or in doubt.
        state.beginning.clear();
        let undecided = std::mem::take(&mut state.undecided);
        for (txn, waiting) in undecided {
            drop(waiting.send(Outcome::InDoubt(txn)));
        }
        drop(state);
        self.desk.ended.notify_waiters();
    }
}

/// Answers for a call of the resource, also when that panics.
struct Answer {
    desk: Arc<Desk>,
    /// What a panic answers.
    command: Option<Command>,
    is_panic: bool,
}

impl Answer {
    fn give(&mut self, command: Command) {
        self.command = Some(command);
        self.is_panic = false;
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Dropped with the whole set of calls, the machine has ended and nobody asks for the answer.
        if self.is_panic && std::thread::panicking() {
            self.desk.lock().stats.panicked += 1;
        } else if self.is_panic {
            return;
        }
        if let Some(command) = self.command.take() {
            self.desk.answer(command);
        }
    }
}
