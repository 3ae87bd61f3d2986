//! A customer in bad weather: a process that moves money between vaults, is killed, and goes on where it was.
//!
//! Method      a transfer is a withdrawal and then a deposit. Each step is written down before it is begun and after it is
//!             done, in a journal of the customer's own. A customer that died between the two asks the vault what became
//!             of its last slip; only then it does not call again what it had called.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate::node::Node;
use quorate::rpc::{BindError, ClientOptions, Durable, DurableConfig, Patience, RpcError, Semantics, State};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::accounts::{ACCOUNTS_PER_BRANCH, AccountId, BRANCHES};
use super::arguments;
use super::clients::Chance;
use super::processes::{lines_told, say};
use super::storm;
use super::vault::{Count, Slip, VAULT, VaultClient, VaultError};

/// How many transfers a customer has under way.
pub const PENS: u32 = 8;

/// How long one call is insisted on: longer than a killed vault needs to come back.
const INSIST_MAX: Duration = Duration::from_secs(120);

/// The largest transfer.
const CENTS_MAX: u64 = 2_000;

/// What a customer remembers over its deaths: what each of its pens is at, and what it has done.
#[derive(Default, Serialize, Deserialize)]
struct Notebook {
    pens: BTreeMap<u32, Page>,
    done: Count,
    refused: u64,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Page {
    /// Transfers begun.
    number: u64,
    open: Option<Step>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Step {
    Paying(Order),
    Depositing(Order),
}

/// A transfer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Order {
    number: u64,
    from: AccountId,
    to: AccountId,
    cents: u64,
}

#[derive(Serialize, Deserialize)]
enum Change {
    Begun(u32, Order),
    Paid(u32),
    Refused(u32),
    Done(u32),
}

impl State for Notebook {
    type Change = Change;

    fn apply(&mut self, change: &Change) {
        let (Change::Begun(pen, _) | Change::Paid(pen) | Change::Refused(pen) | Change::Done(pen)) = change;
        let page = self.pens.entry(*pen).or_default();
        match (change, page.open) {
            (Change::Refused(_), _) => self.refused += 1,
            (Change::Done(_), Some(Step::Depositing(order))) => self.done.add(order.cents),
            _ => {}
        }
        page.apply(change);
    }
}

impl Page {
    fn apply(&mut self, change: &Change) {
        self.open = match (change, self.open) {
            (Change::Begun(_, order), _) => {
                self.number = order.number;
                Some(Step::Paying(*order))
            }
            (Change::Paid(_), Some(Step::Paying(order))) => Some(Step::Depositing(order)),
            (Change::Paid(_) | Change::Refused(_) | Change::Done(_), _) => None,
        };
    }
}

impl Step {
    /// What is handed in, and at which branch.
    fn slip(self, writer: u32) -> Slip {
        let (order, account, half) = match self {
            Self::Paying(order) => (order, order.from, 0),
            Self::Depositing(order) => (order, order.to, 1),
        };
        Slip { writer, number: order.number * 2 + half, account, cents: order.cents }
    }
}

/// One transfer after the other.
struct Pen {
    writer: u32,
    /// As it stands in the notebook.
    page: Page,
    notebook: Durable<Notebook>,
    vaults: BTreeMap<u8, VaultClient>,
    chance: Chance,
    is_over: Arc<AtomicBool>,
}

/// What ends a customer for good.
#[derive(Debug, thiserror::Error)]
enum Ruin {
    #[error("the notebook cannot be written")]
    Notebook(#[from] quorate::rpc::NotDurable),
    #[error("a vault refuses")]
    Vault(#[from] RpcError<VaultError>),
}

impl Pen {
    async fn run(mut self) -> Result<(), Ruin> {
        if let Some(step) = self.page.open {
            self.find_out(step).await?;
        }
        loop {
            match self.page.open {
                None if self.is_over.load(Ordering::SeqCst) => return Ok(()),
                None => {
                    let order = self.draw();
                    self.note(Change::Begun(self.writer, order)).await?;
                }
                Some(step @ Step::Paying(_)) => match self.vault(step).withdraw(step.slip(self.writer)).await
                {
                    Ok(()) => self.note(Change::Paid(self.writer)).await?,
                    Err(RpcError::Application(VaultError::Overdraft(_))) => {
                        self.note(Change::Refused(self.writer)).await?;
                    }
                    Err(error) => return Err(error.into()),
                },
                Some(step @ Step::Depositing(_)) => {
                    self.vault(step).deposit(step.slip(self.writer)).await?;
                    self.note(Change::Done(self.writer)).await?;
                }
            }
        }
    }

    /// An earlier life had this under way: it happened once or not at all. The vault has heard of this life, so that
    /// nothing of an earlier one can happen any more.
    async fn find_out(&mut self, step: Step) -> Result<(), Ruin> {
        let slip = step.slip(self.writer);
        if self.vault(step).last(self.writer).await? != slip.number {
            return Ok(());
        }
        self.note(match step {
            Step::Paying(_) => Change::Paid(self.writer),
            Step::Depositing(_) => Change::Done(self.writer),
        })
        .await
    }

    async fn note(&mut self, change: Change) -> Result<(), Ruin> {
        self.page.apply(&change);
        let mut turn = self.notebook.begin().await;
        turn.change(change);
        Ok(turn.commit().stable().await?)
    }

    fn draw(&mut self) -> Order {
        let mut account = || {
            let number = self.chance.next() % u64::from(ACCOUNTS_PER_BRANCH);
            let branch = 1 + self.chance.next() % u64::from(BRANCHES);
            AccountId { branch: branch as u8, number: number as u16 }
        };
        let (from, to) = (account(), account());
        let cents = 1 + self.chance.next() % CENTS_MAX;
        Order { number: self.page.number + 1, from, to, cents }
    }

    fn vault(&self, step: Step) -> &VaultClient {
        &self.vaults[&step.slip(self.writer).account.branch]
    }
}

/// Runs a customer: until it is told to stop, with what it has begun ended; then until its standard input ends.
///
/// # Errors
/// When it cannot start, or a vault fails it.
pub async fn run(customer: &arguments::Customer) -> Result<(), Box<dyn Error>> {
    let mut told = lines_told();
    let node = Node::builder()
        .id(storm::customer_node(customer.number))
        .directory(&customer.directory)
        .transport(storm::bad_network(customer.seed))
        .start()
        .await?;
    let notebook = Durable::on(&node, "notebook", Notebook::default(), DurableConfig::default()).await?;
    say("ready")?;
    let mut vaults = BTreeMap::new();
    for (branch, address) in (1..=BRANCHES).zip(&customer.vaults) {
        let vault = connect(&node, address).await?.with_deadline(INSIST_MAX);
        let vault = if customer.at_least_once { vault.with_semantics(Semantics::Idempotent) } else { vault };
        vaults.insert(branch, vault);
    }

    let is_over = Arc::new(AtomicBool::new(false));
    let mut pens = JoinSet::new();
    let mut chance = Chance(customer.seed);
    for pen in 0..PENS {
        let writer = u32::from(customer.number) * PENS + pen;
        let page = notebook.read(|notebook| notebook.pens.get(&writer).copied()).await?;
        let pen = Pen {
            writer,
            page: page.unwrap_or_default(),
            notebook: notebook.clone(),
            vaults: vaults.clone(),
            chance: Chance(chance.next()),
            is_over: Arc::clone(&is_over),
        };
        pens.spawn(pen.run());
    }
    loop {
        tokio::select! {
            line = told.recv() => match line.as_deref() {
                None => return Ok(()),
                Some("stop") => is_over.store(true, Ordering::SeqCst),
                Some(other) => return Err(format!("told {other:?}").into()),
            },
            ended = pens.join_next() => match ended {
                Some(ended) => ended??,
                None => break,
            },
        }
    }
    let (done, refused) = notebook.read(|notebook| (notebook.done, notebook.refused)).await?;
    say(&format!("done {} {} {refused}", done.times, done.cents))?;
    while told.recv().await.is_some() {}
    Ok(())
}

/// Binds to a vault, which may be down just now.
async fn connect(node: &Node, address: &str) -> Result<VaultClient, BindError> {
    let mut options = ClientOptions::default();
    options.patience = Patience::WaitUntilAvailable;
    options.bind_deadline = INSIST_MAX;
    // A third of all messages is lost: waiting for long would be all that a customer does.
    (options.retry_min, options.retry_max) = (Duration::from_millis(30), Duration::from_millis(300));
    VaultClient::connect_with(node, VAULT, address, options).await
}
