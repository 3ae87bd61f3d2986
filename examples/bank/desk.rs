//! What a replica of a branch answers to clients and auditors: the bank's interface, as a trait.

use quorate::service;
use serde::{Deserialize, Serialize};

use super::accounts::AccountId;
use super::branch::{Audit, Posting, Refusal, TransactionId};
use super::input::Transfer;

/// The service's name on every replica.
pub const DESK: &str = "desk";

/// A branch's desk. Any replica of the paying account's branch takes an order.
#[service]
pub trait Desk {
    /// Carries out an order, once, however often it is asked under the same number. Returns when the money is moved.
    #[deadline = "10s"]
    async fn transfer(&self, order: Transfer) -> Result<(), DeskError>;

    /// Why this branch voted against a transaction, if it did so here and lately.
    #[idempotent]
    #[deadline = "2s"]
    async fn reason(&self, transaction: TransactionId) -> Option<Refusal>;

    /// What this replica has in its books.
    #[idempotent]
    #[deadline = "5s"]
    async fn audit(&self) -> Result<Audit, DeskError>;

    /// All balances of this replica.
    #[idempotent]
    #[deadline = "5s"]
    async fn balances(&self) -> Result<Vec<(AccountId, u64)>, DeskError>;

    /// This replica's ledger from the `start`-th posting on, at most [`PAGE_POSTINGS_MAX`] of them; empty at its end.
    #[idempotent]
    #[deadline = "5s"]
    async fn ledger(&self, start: u64) -> Result<Vec<Posting>, DeskError>;
}

/// Postings on one page of a ledger: some 100 KB.
pub const PAGE_POSTINGS_MAX: usize = 5_000;

/// Why a desk did not carry out an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DeskError {
    /// The order is refused, now and later.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The branch cannot decide now; ask again, under the same number.
    #[error("ask again: {0}")]
    Later(String),
}
