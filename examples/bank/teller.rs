//! The desk's work: an order within the branch is one replicated command, an order to another branch a transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use quorate::codec::{Codec as _, Postcard};
use quorate::commit::{self, AbortReason, Resource, Transactions, TxnId, Vote};
use quorate::node::{Node, NodeId};

use super::accounts::{AccountId, BRANCHES};
use super::books::{Books, lock};
use super::branch::{Audit, Branch, Command, Leg, Outcome, Posting, Refusal, Side, TransactionId};
use super::desk::{DESK, Desk, DeskClient, DeskError, PAGE_POSTINGS_MAX};
use super::input::Transfer;
use super::processes::Place;

/// How many reasons of refused legs are kept for coordinators that ask.
const REASONS_MAX: usize = 10_000;

/// The branch as a participant of transactions: each leg is prepared and finished by the whole branch.
#[derive(Clone)]
pub struct Legs {
    books: Arc<Books>,
    reasons: Arc<Mutex<BTreeMap<TransactionId, Refusal>>>,
    /// What earlier lives of this replica had promised, from its journal.
    promised: Arc<Mutex<Vec<TransactionId>>>,
}

impl Legs {
    /// A participant for these books.
    pub fn new(books: Arc<Books>) -> Self {
        Self { books, reasons: Arc::default(), promised: Arc::default() }
    }

    /// Ends what earlier lives had prepared without promising it; for the beginning of a life, after `restore`.
    pub async fn release(&self) {
        let promised = lock(&self.promised).clone();
        self.books.execute(Command::Release(self.books.keeper(), promised)).await;
    }

    fn reason(&self, transaction: TransactionId) -> Option<Refusal> {
        lock(&self.reasons).get(&transaction).cloned()
    }
}

impl Resource for Legs {
    async fn prepare(&self, txn: TxnId, payload: Bytes) -> Vote {
        let transaction = TransactionId::from(txn);
        let Ok(leg) = Postcard::decode::<Leg>(&payload) else { return Vote::No };
        match self.books.execute(Command::Prepare(transaction, leg, self.books.keeper())).await {
            Outcome::Done => Vote::Yes,
            Outcome::Refused(refusal) => {
                let mut reasons = lock(&self.reasons);
                if reasons.len() == REASONS_MAX {
                    reasons.pop_first();
                }
                reasons.insert(transaction, refusal);
                Vote::No
            }
        }
    }

    async fn commit(&self, txn: TxnId) {
        self.books.execute(Command::Finish(txn.into(), true)).await;
    }

    async fn abort(&self, txn: TxnId) {
        self.books.execute(Command::Finish(txn.into(), false)).await;
    }

    /// The hold is in the books of the whole branch, which outlived this process.
    async fn restore(&self, txn: TxnId, _: Bytes) {
        lock(&self.promised).push(txn.into());
    }
}

impl From<TxnId> for TransactionId {
    fn from(txn: TxnId) -> Self {
        Self { node: txn.node, incarnation: txn.incarnation, sequence: txn.sequence }
    }
}

/// Whoever stands at the desk.
pub struct Teller {
    node: Node,
    books: Arc<Books>,
    legs: Legs,
    transactions: Transactions,
}

impl Teller {
    /// A teller with these books.
    pub fn new(node: Node, books: Arc<Books>, legs: Legs, transactions: Transactions) -> Self {
        Self { node, books, legs, transactions }
    }

    /// Moves money to another branch: all or nothing, by two-phase commit between one replica of each.
    async fn transfer_between(&self, order: Transfer) -> Result<(), DeskError> {
        let later = |why: &str| DeskError::Later(why.to_owned());
        let present = self.books.present(order.to.branch);
        // Orders spread over the other branch's replicas; a client that asks again gets another one.
        let turn = self.transactions.stats().prepared as usize;
        let partner =
            *present.get(turn % present.len().max(1)).ok_or_else(|| later("no way to the other branch"))?;
        let me = self.books.place();
        let work = [(me, Side::Pays), (partner, Side::Receives)];
        let work = work.map(|(place, side)| (NodeId(place.node()), payload(&Leg { transfer: order, side })));
        match self.transactions.run(work).await {
            Ok(commit::Outcome::Committed(_)) => Ok(()),
            Ok(commit::Outcome::Aborted(txn, AbortReason::VotedNo(node))) => {
                let reason = if node == me.node() {
                    self.legs.reason(txn.into())
                } else {
                    self.reason_of(partner, txn.into()).await
                };
                match reason {
                    Some(Refusal::AlreadyDone(_)) => Ok(()),
                    Some(refusal) if refusal.is_final() => Err(refusal.into()),
                    Some(refusal) => Err(DeskError::Later(refusal.to_string())),
                    None => Err(later("the other branch gave no reason")),
                }
            }
            Ok(commit::Outcome::Aborted(_, reason)) => Err(DeskError::Later(reason.to_string())),
            Ok(commit::Outcome::InDoubt(_)) => Err(later("not decided yet")),
            Err(error) => Err(DeskError::Later(error.to_string())),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Branch) -> T) -> Result<T, DeskError> {
        let seen = self.books.read(look);
        seen.ok_or_else(|| DeskError::Later("this replica is shut out of its group".to_owned()))
    }

    async fn reason_of(&self, partner: Place, transaction: TransactionId) -> Option<Refusal> {
        let address = self.books.address(partner)?;
        let desk: DeskClient = DeskClient::connect(&self.node, DESK, address).await.ok()?;
        desk.reason(transaction).await.ok()?
    }
}

impl Desk for Teller {
    async fn transfer(&self, order: Transfer) -> Result<(), DeskError> {
        if !(1..=BRANCHES).contains(&order.to.branch) {
            return Err(Refusal::UnknownAccount(order.to).into());
        }
        if order.to.branch != order.from.branch {
            return self.transfer_between(order).await;
        }
        match self.books.execute(Command::Transfer(order)).await {
            Outcome::Done => Ok(()),
            Outcome::Refused(refusal) => Err(refusal.into()),
        }
    }

    async fn reason(&self, transaction: TransactionId) -> Option<Refusal> {
        self.legs.reason(transaction)
    }

    async fn audit(&self) -> Result<Audit, DeskError> {
        self.look(Branch::audit)
    }

    async fn balances(&self) -> Result<Vec<(AccountId, u64)>, DeskError> {
        self.look(Branch::balances)
    }

    async fn ledger(&self, start: u64) -> Result<Vec<Posting>, DeskError> {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        self.look(|branch| branch.ledger(start, PAGE_POSTINGS_MAX).to_vec())
    }
}

fn payload(leg: &Leg) -> Bytes {
    let mut out = BytesMut::new();
    Postcard::encode(leg, &mut out).expect("a leg has an encoding");
    out.freeze()
}
