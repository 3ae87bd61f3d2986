//! What takes part in transactions: the user's state.

use std::future::Future;

use bytes::Bytes;
use quorate_protocols::commit::{TxnId, Vote};

/// The local state that transactions change. Calls for different transactions run concurrently; calls for one run one
/// after another, [`prepare`](Self::prepare) first.
pub trait Resource: Send + Sync + 'static {
    /// Checks and holds what the transaction asks for.
    ///
    /// [`Vote::Yes`] is a promise to be able to commit and to abort, also after a restart: the payload comes back by
    /// [`restore`](Self::restore) then, so holds may live in memory. [`Vote::ReadOnly`] when nothing would change.
    /// A panic counts as [`Vote::No`].
    fn prepare(&self, txn: TxnId, payload: Bytes) -> impl Future<Output = Vote> + Send;

    /// Makes the held change permanent. What this changes must be durable when it returns.
    ///
    /// May be called again for the same transaction after a restart, so it must know what it has applied; the name
    /// is unique for ever. It is not allowed to fail: wait and try again inside.
    fn commit(&self, txn: TxnId) -> impl Future<Output = ()> + Send;

    /// Gives back what was held. May be called again, and for a transaction that holds nothing.
    fn abort(&self, txn: TxnId) -> impl Future<Output = ()> + Send;

    /// After a restart, before anything else: holds again what had been promised. The decision follows.
    fn restore(&self, txn: TxnId, payload: Bytes) -> impl Future<Output = ()> + Send;
}

/// For a process that only coordinates: votes no to everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoResource;

impl Resource for NoResource {
    async fn prepare(&self, _: TxnId, _: Bytes) -> Vote {
        Vote::No
    }

    async fn commit(&self, _: TxnId) {}

    async fn abort(&self, _: TxnId) {}

    async fn restore(&self, _: TxnId, _: Bytes) {}
}
