//! A branch's vault in bad weather: what it changes is durable together with what it answers.
//!
//! Guarantee   a slip that is handed in exactly once changes the accounts once, however often its message arrives and the
//!             vault is killed. Nothing in here looks whether a slip was seen before: that is what the calls promise.

use std::collections::BTreeMap;
use std::error::Error;

use quorate::node::Node;
use quorate::rpc::{Durable, DurableConfig, NotDurable, ServeOptions, State, Transaction};
use quorate::service;
use serde::{Deserialize, Serialize};

use super::accounts::AccountId;
use super::arguments;
use super::branch::{accounts_of, opening_cents};
use super::processes::{lines_told, say};
use super::storm;

/// The service's name on every vault.
pub const VAULT: &str = "vault";

/// A branch's vault.
#[service]
pub trait Vault {
    /// Takes money out of an account.
    #[exactly_once]
    async fn withdraw(&self, slip: Slip) -> Result<(), VaultError>;

    /// Puts money into an account.
    #[exactly_once]
    async fn deposit(&self, slip: Slip) -> Result<(), VaultError>;

    /// The number of the last slip of this writer that changed an account here: what a customer who died asks in his
    /// next life about the call that he had under way.
    #[idempotent]
    async fn last(&self, writer: u32) -> Result<u64, VaultError>;

    /// What an auditor writes down.
    #[idempotent]
    async fn totals(&self) -> Result<Totals, VaultError>;
}

/// One movement of money, in or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slip {
    /// Who writes slips, one at a time.
    pub writer: u32,
    /// The writer's number for it.
    pub number: u64,
    /// Whose balance it changes.
    pub account: AccountId,
    /// By how much.
    pub cents: u64,
}

/// Why a vault changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum VaultError {
    /// The account holds less.
    #[error("account {0} holds less")]
    Overdraft(AccountId),
    /// There is no such account here.
    #[error("account {0} does not exist here")]
    UnknownAccount(AccountId),
    /// The vault cannot write down what it does.
    #[error("the vault's journal: {0}")]
    Journal(String),
}

impl From<NotDurable> for VaultError {
    fn from(error: NotDurable) -> Self {
        Self::Journal(error.to_string())
    }
}

/// How often something was done, and with how much money in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How often.
    pub times: u64,
    /// The sum.
    pub cents: u64,
}

impl Count {
    /// Once more.
    pub fn add(&mut self, cents: u64) {
        self.times += 1;
        self.cents += cents;
    }
}

/// What a vault holds and has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The sum over all accounts.
    pub cents: u64,
    /// Withdrawals that changed an account.
    pub withdrawn: Count,
    /// Deposits that did.
    pub deposited: Count,
}

/// The accounts, and what was done to them.
#[derive(Serialize, Deserialize)]
struct Money {
    accounts: BTreeMap<AccountId, u64>,
    last: BTreeMap<u32, u64>,
    withdrawn: Count,
    deposited: Count,
}

#[derive(Serialize, Deserialize)]
enum Change {
    Withdrawn(Slip),
    Deposited(Slip),
}

impl Money {
    fn open(branch: u8) -> Self {
        let accounts = accounts_of(branch).map(|account| (account, opening_cents(account))).collect();
        Self { accounts, last: BTreeMap::new(), withdrawn: Count::default(), deposited: Count::default() }
    }
}

impl State for Money {
    type Change = Change;

    fn apply(&mut self, change: &Change) {
        let (Change::Withdrawn(slip) | Change::Deposited(slip)) = change;
        // The account exists and holds enough: it was looked at in the same transaction.
        let Some(balance) = self.accounts.get_mut(&slip.account) else { return };
        match change {
            Change::Withdrawn(_) => {
                *balance = balance.saturating_sub(slip.cents);
                self.withdrawn.add(slip.cents);
            }
            Change::Deposited(_) => {
                *balance = balance.saturating_add(slip.cents);
                self.deposited.add(slip.cents);
            }
        }
        self.last.insert(slip.writer, slip.number);
    }
}

struct Keeper(Durable<Money>);

impl Keeper {
    /// A turn, and what the account holds.
    async fn begin(&self, slip: &Slip) -> Result<(Transaction<Money>, u64), VaultError> {
        let turn = self.0.begin().await;
        let balance = turn.see(|money| money.accounts.get(&slip.account).copied());
        Ok((turn, balance.ok_or(VaultError::UnknownAccount(slip.account))?))
    }
}

impl Vault for Keeper {
    async fn withdraw(&self, slip: Slip) -> Result<(), VaultError> {
        let (mut turn, balance) = self.begin(&slip).await?;
        if balance < slip.cents {
            return Err(VaultError::Overdraft(slip.account));
        }
        turn.change(Change::Withdrawn(slip));
        // Exactly once, it takes effect with the answer and there is nothing to wait for; at least once, it is durable
        // before it is answered.
        Ok(turn.commit().stable().await?)
    }

    async fn deposit(&self, slip: Slip) -> Result<(), VaultError> {
        let (mut turn, _) = self.begin(&slip).await?;
        turn.change(Change::Deposited(slip));
        Ok(turn.commit().stable().await?)
    }

    async fn last(&self, writer: u32) -> Result<u64, VaultError> {
        Ok(self.0.read(|money| money.last.get(&writer).copied().unwrap_or(0)).await?)
    }

    async fn totals(&self) -> Result<Totals, VaultError> {
        let look = |money: &Money| Totals {
            cents: money.accounts.values().sum(),
            withdrawn: money.withdrawn,
            deposited: money.deposited,
        };
        Ok(self.0.read(look).await?)
    }
}

/// Runs a vault until its standard input ends.
///
/// # Errors
/// When it cannot start.
pub async fn run(vault: &arguments::Vault) -> Result<(), Box<dyn Error>> {
    let mut told = lines_told();
    let node = Node::builder()
        .id(storm::vault_node(vault.branch))
        .directory(&vault.directory)
        .transport(storm::bad_network(vault.seed))
        .listen(vault.listen.as_str())
        .start()
        .await?;
    let money = Durable::on(&node, "money", Money::open(vault.branch), DurableConfig::default()).await?;
    let service = VaultServer::new(Keeper(money.clone()));
    let _serving = node.serve_durable(VAULT, service, ServeOptions::default(), &money)?;
    let address = node.addresses().into_iter().next().ok_or("it listens nowhere")?;
    say(&format!("ready {address}"))?;
    while told.recv().await.is_some() {}
    Ok(())
}
