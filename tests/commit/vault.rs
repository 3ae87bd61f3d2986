//! A resource worth testing: one account whose balance must never fall below zero, kept in a journal of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate::commit::{Resource, TxnId, Vote};
use quorate_journal::{Config, FileStorage, Journal, Record};
use quorate_protocols::Wire;

/// Money per vault before the first transfer.
pub(crate) const START: i64 = 1_000;

/// An account; clones are the same one.
#[derive(Clone)]
pub(crate) struct Vault {
    journal: Journal,
    state: Arc<Mutex<State>>,
}

struct State {
    balance: i64,
    applied: BTreeMap<TxnId, i64>,
    held: BTreeMap<TxnId, i64>,
    restored: BTreeSet<TxnId>,
}

impl Vault {
    /// Opens the account in `directory`, with everything that was applied before.
    pub(crate) fn open(directory: &Path, owner: u64) -> Self {
        let storage = FileStorage::open(directory.join("vault")).unwrap();
        let (journal, _) = Journal::open(storage, Config::new(owner)).unwrap();
        let mut applied = BTreeMap::new();
        for entry in journal.read(journal.first()) {
            let mut payload = entry.unwrap().payload;
            let txn = TxnId::decode(&mut payload).unwrap();
            let before = applied.insert(txn, amount(&payload));
            assert_eq!(before, None, "{txn} is in the books twice");
        }
        let balance = START + applied.values().sum::<i64>();
        let state = State { balance, applied, held: BTreeMap::new(), restored: BTreeSet::new() };
        Self { journal, state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn balance(&self) -> i64 {
        self.lock().balance
    }

    /// What was applied, by transaction.
    pub(crate) fn applied(&self) -> BTreeMap<TxnId, i64> {
        self.lock().applied.clone()
    }

    /// How many promises it holds.
    pub(crate) fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Which promises came back after a restart.
    pub(crate) fn restored(&self) -> BTreeSet<TxnId> {
        self.lock().restored.clone()
    }

    pub(crate) async fn close(&self) {
        self.journal.close().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resource for Vault {
    async fn prepare(&self, txn: TxnId, payload: Bytes) -> Vote {
        let amount = amount(&payload);
        let mut state = self.lock();
        // Every promise to pay is kept even if no promised payment comes in.
        let owed: i64 = state.held.values().filter(|held| **held < 0).sum();
        if state.balance + owed + amount.min(0) < 0 {
            return Vote::No;
        }
        assert!(!state.applied.contains_key(&txn), "{txn} is prepared again after its end");
        state.held.insert(txn, amount);
        Vote::Yes
    }

    async fn commit(&self, txn: TxnId) {
        let amount = {
            let state = self.lock();
            if state.applied.contains_key(&txn) {
                return;
            }
            *state.held.get(&txn).expect("what is committed was held")
        };
        let mut payload = txn.to_bytes().to_vec();
        payload.extend_from_slice(&amount.to_le_bytes());
        self.journal.append(vec![Record::new(1, payload)]).await.unwrap();
        let mut state = self.lock();
        state.held.remove(&txn);
        state.applied.insert(txn, amount);
        state.balance += amount;
        assert!(state.balance >= 0, "the vault is overdrawn");
    }

    async fn abort(&self, txn: TxnId) {
        let mut state = self.lock();
        assert!(!state.applied.contains_key(&txn), "{txn} is aborted after its commit");
        state.held.remove(&txn);
    }

    async fn restore(&self, txn: TxnId, payload: Bytes) {
        let mut state = self.lock();
        state.restored.insert(txn);
        if !state.applied.contains_key(&txn) {
            state.held.insert(txn, amount(&payload));
        }
    }
}

/// What a payload asks for.
pub(crate) fn pay(amount: i64) -> Bytes {
    Bytes::copy_from_slice(&amount.to_le_bytes())
}

fn amount(payload: &[u8]) -> i64 {
    i64::from_le_bytes(payload.try_into().expect("eight bytes"))
}
