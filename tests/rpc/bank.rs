//! Payments under 30% loss and 30% duplication of every frame, with reordering: at most once, no cent is lost or made;
//! the same payments declared idempotent, which they are not, make cents (catalogue R8).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::node::{Incarnation, Node};
use quorate::rpc::RpcError;
use quorate::service;
use quorate_transports::fault::model::{Chance, LatencyModel, LinkModel, LossModel};
use quorate_transports::fault::{FaultHandle, Manner};
use quorate_transports::mem::Mem;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum BankError {
    NoSuchAccount(u32),
}

#[service]
pub(crate) trait Bank {
    /// Not idempotent, and not said to be.
    async fn pay_in(&self, account: u32, cents: u64) -> Result<u64, BankError>;
    /// Not idempotent either, but said to be: what at-least-once does to a payment.
    #[idempotent]
    async fn pay_in_carelessly(&self, account: u32, cents: u64) -> Result<u64, BankError>;
    #[idempotent]
    async fn balance(&self, account: u32) -> Result<u64, BankError>;
}

struct Vault(Mutex<BTreeMap<u32, u64>>);

impl Vault {
    fn add(&self, account: u32, cents: u64) -> Result<u64, BankError> {
        let mut balances = self.0.lock().unwrap();
        let balance = balances.get_mut(&account).ok_or(BankError::NoSuchAccount(account))?;
        *balance += cents;
        Ok(*balance)
    }

    fn total(&self) -> u64 {
        self.0.lock().unwrap().values().sum()
    }
}

impl Bank for Vault {
    async fn pay_in(&self, account: u32, cents: u64) -> Result<u64, BankError> {
        self.add(account, cents)
    }
    async fn pay_in_carelessly(&self, account: u32, cents: u64) -> Result<u64, BankError> {
        self.add(account, cents)
    }
    async fn balance(&self, account: u32) -> Result<u64, BankError> {
        self.add(account, 0)
    }
}

struct Books {
    /// What the vault holds at the end.
    held: u64,
    /// What the payers paid and were told is in.
    paid: u64,
    retransmissions: u64,
    duplicates: u64,
    dropped: u64,
}

/// `PAYERS` clients pay one cent at a time.
async fn pay(seed: u64, carelessly: bool) -> Books {
    let (faults, world) = (FaultHandle::new(seed), Mem::new());
    let vault = Arc::new(Vault(Mutex::new((0..ACCOUNTS).map(|account| (account, 0)).collect())));
    let builder = |id| Node::builder().id(id).incarnation(Incarnation(1)).seed(seed + id);
    let server =
        builder(1).transport(faults.wrap(1, world.clone())).listen("mem://bank").start().await.unwrap();
    let serving = server.serve("bank", BankServer::shared(Arc::clone(&vault))).unwrap();
    let node = builder(2).transport(faults.wrap(2, world)).start().await.unwrap();
    let bank = BankClient::connect(&node, "bank", "mem://bank").await.unwrap().with_deadline(HOUR);

    faults.set_manner(Manner::Frames);
    faults.change(|network| {
        network.set_default(LinkModel {
            latency: LatencyModel::Uniform { min: Duration::from_millis(1), max: Duration::from_millis(9) },
            loss: LossModel::Independent(Chance::percent(30)),
            duplication: Chance::percent(30),
            reordering: Chance::percent(20),
            reordering_delay: Duration::from_millis(30),
            fifo: false,
            ..LinkModel::PERFECT
        });
    });
    let payers: Vec<_> = (0..PAYERS)
        .map(|payer| {
            let bank = bank.clone();
            tokio::spawn(async move {
                let mut paid = 0;
                for payment in 0..PAYMENTS {
                    // Every tenth goes to an account that does not exist and is refused by the bank itself.
                    let account = if payment % 10 == 9 { ACCOUNTS } else { (payer + payment) % ACCOUNTS };
                    let answer = if carelessly {
                        bank.pay_in_carelessly(account, 1).await
                    } else {
                        bank.pay_in(account, 1).await
                    };
                    match answer {
                        Ok(_) => paid += 1,
                        Err(RpcError::Application(BankError::NoSuchAccount(ACCOUNTS))) => {}
                        Err(error) => panic!("seed {seed}: {error:?}"),
                    }
                }
                paid
            })
        })
        .collect();
    let mut paid = 0;
    for payer in payers {
        paid += payer.await.unwrap();
    }
    let mut told = 0;
    for account in 0..ACCOUNTS {
        told += bank.balance(account).await.unwrap();
    }
    assert_eq!(told, vault.total());
    let stats = serving.stats();
    assert_eq!(stats.executing, 0);
    Books {
        held: vault.total(),
        paid,
        retransmissions: bank.server().stats().retransmissions,
        duplicates: stats.requests.duplicates + stats.requests.stale,
        dropped: faults.stats().lost,
    }
}

#[tokio::test(start_paused = true)]
async fn r08_no_cent_is_lost_or_made_under_loss_and_duplication() {
    for seed in 0..5 {
        let books = pay(seed, false).await;
        assert_eq!(books.held, books.paid, "seed {seed}");
        assert_eq!(books.paid, u64::from(PAYERS * PAYMENTS * 9 / 10), "seed {seed}");
        // The weather was as bad as it was meant to be.
        assert!(books.dropped > 100 && books.retransmissions > 100 && books.duplicates > 100, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn r08_payments_that_are_falsely_declared_idempotent_make_cents() {
    let books = pay(1, true).await;
    assert!(books.held > books.paid, "{} cents held, {} paid", books.held, books.paid);
}

const ACCOUNTS: u32 = 7;
const PAYERS: u32 = 10;
const PAYMENTS: u32 = 50;
const HOUR: Duration = Duration::from_secs(3600);
