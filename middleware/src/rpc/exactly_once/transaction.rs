//! A transaction on a durable state: look, stage changes, commit; and the call that it belongs to.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::State;
use super::error::NotDurable;
use super::store::Store;

/// One call's turn on a [`Durable`](super::Durable) state: nobody else changes it until this is committed or dropped.
///
/// Dropped without [`commit`](Self::commit), nothing of it was changed; what the same call has committed before stays. A
/// call begins its transactions one after the other: a second one that is begun beside the first waits for it.
pub struct Transaction<S: State> {
    store: Arc<Store<S>>,
    /// The exactly-once call that it belongs to.
    call: Option<Arc<Call>>,
    /// `None` when the call has the turn, because it has committed before.
    turn: Option<Turn>,
    changes: Vec<S::Change>,
}

impl<S: State> Transaction<S> {
    pub(super) async fn begin(store: Arc<Store<S>>) -> Self {
        let call = CALL.try_with(Arc::clone).ok().filter(|call| call.is_on(&store));
        let turn = match &call {
            Some(call) if call.has_committed() => None,
            _ => Some(store.turn().await),
        };
        Self { store, call, turn, changes: Vec::new() }
    }

    /// Looks at the state as it is without this transaction's own changes. Quick work only: all calls wait.
    pub fn see<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        self.store.see(look)
    }

    /// Stages a change: it is applied when the transaction takes effect, in the order of staging.
    pub fn change(&mut self, change: S::Change) {
        self.changes.push(change);
    }

    /// Commits. In an exactly-once method the changes take effect with its answer: they are one record, and nothing
    /// is changed if the method panics, its caller gives up, or its result cannot be encoded. Elsewhere they take effect
    /// at once, and are durable when [`Committed::stable`] returns.
    pub fn commit(self) -> Committed<S> {
        let Self { store, call, turn, changes } = self;
        let staged = Staged { turn, changes };
        let stable = match call {
            Some(call) => {
                call.stage(staged);
                None
            }
            None => Some(store.commit(staged)),
        };
        Committed { store, stable }
    }
}

impl<S: State> fmt::Debug for Transaction<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("staged", &self.changes.len()).finish_non_exhaustive()
    }
}

/// A transaction that was committed.
pub struct Committed<S: State> {
    store: Arc<Store<S>>,
    /// `None` in an exactly-once call.
    stable: Option<Result<u64, NotDurable>>,
}

impl<S: State> Committed<S> {
    /// Returns when the changes are durable. In an exactly-once method there is nothing to wait for, as the answer
    /// leaves only then.
    ///
    /// # Errors
    /// [`NotDurable`].
    /// # Cancel safety
    /// The transaction is committed in any case.
    pub async fn stable(self) -> Result<(), NotDurable> {
        match self.stable {
            Some(stable) => self.store.stable(stable?).await.map(drop),
            None => Ok(()),
        }
    }
}

impl<S: State> fmt::Debug for Committed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committed").field("stable", &self.stable).finish_non_exhaustive()
    }
}

/// Changes that wait for their record, and the turn that keeps others from changing what they build on.
pub(super) struct Staged<S: State> {
    pub(super) turn: Option<Turn>,
    pub(super) changes: Vec<S::Change>,
}

/// What lets one change the state.
pub(super) type Turn = OwnedMutexGuard<()>;

/// A call under way, as the transactions in it find it.
pub(super) struct Call {
    /// Whose transactions belong to it; only compared.
    store: usize,
    /// A `Staged` of that store's type.
    staged: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Call {
    pub(super) fn new<S: State>(store: &Arc<Store<S>>) -> Arc<Self> {
        Arc::new(Self { store: Arc::as_ptr(store).addr(), staged: Mutex::new(None) })
    }

    /// What was committed in it.
    pub(super) fn take<S: State>(&self) -> Option<Staged<S>> {
        let staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        staged.downcast().ok().map(|staged| *staged)
    }

    /// Behind what was committed in it before.
    fn stage<S: State>(&self, mut staged: Staged<S>) {
        let mut before = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        match before.as_mut().and_then(|before| before.downcast_mut::<Staged<S>>()) {
            Some(before) => before.changes.append(&mut staged.changes),
            None => *before = Some(Box::new(staged)),
        }
    }

    fn has_committed(&self) -> bool {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn is_on<S: State>(&self, store: &Arc<Store<S>>) -> bool {
        self.store == Arc::as_ptr(store).addr()
    }
}

/// Runs the service's own code so that its transactions belong to `call`.
pub(super) fn within<F: Future>(call: Arc<Call>, handler: F) -> impl Future<Output = F::Output> {
    CALL.scope(call, handler)
}

tokio::task_local! {
    static CALL: Arc<Call>;
}
