//! Bad weather: every process is killed again and again, a third of all messages is lost and as many come twice.
//!
//! Guarantee   the books balance when the branches together hold what they held at opening, and have executed every
//!             withdrawal and every deposit that the customers completed, and no other.
//! Method      customers count what they were answered, vaults count what they changed: neither knows the other's count.
//!             The main process hears both when the customers have ended what they had begun.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use quorate::node::Node;
use quorate::rpc::ClientOptions;
use quorate::transports::fault::model::{self, LatencyModel, LinkModel, LossModel};
use quorate::transports::fault::{FaultConfig, FaultHandle, Faulty, Manner};
use quorate::transports::tcp::Tcp;

use super::accounts::BRANCHES;
use super::branch::opening_total_cents;
use super::clients::Chance;
use super::cluster::Directory;
use super::customer::PENS;
use super::processes::{Process, ProcessError};
use super::proof::money;
use super::vault::{Count, Totals, VAULT, VaultClient};

/// How many customers there are.
const CUSTOMERS: u8 = 4;

/// So many messages of a hundred are lost, and so many come twice.
const PERCENT: u32 = 30;

/// The time between two kills, at most.
const CALM_MAX: Duration = Duration::from_millis(600);

/// A vault's node id.
pub fn vault_node(branch: u8) -> u64 {
    u64::from(branch)
}

/// A customer's node id.
pub fn customer_node(number: u8) -> u64 {
    1_000 + u64::from(number)
}

/// TCP over which [`PERCENT`] of what arrives is lost, as much arrives twice, and nothing in order. Both sides of every
/// connection use it, so that requests and replies suffer alike.
pub fn bad_network(seed: u64) -> Faulty<Tcp> {
    let mut config = FaultConfig::default();
    // The two hellos of a connection: they are not sent again, and connections would take seconds.
    config.frames_spared = 1;
    let faults = FaultHandle::with_config(seed, config);
    faults.set_manner(Manner::Frames);
    faults.change(|network| {
        network.set_default(LinkModel {
            latency: LatencyModel::Uniform { min: Duration::from_micros(100), max: Duration::from_millis(4) },
            loss: LossModel::Independent(model::Chance::percent(PERCENT)),
            duplication: model::Chance::percent(PERCENT),
            ..LinkModel::PERFECT
        });
    });
    faults.wrap(0, Tcp::new())
}

/// Runs the storm and shows what it left; true when the books balance.
///
/// # Errors
/// When a process does not come up or does not do its work.
pub async fn run(seconds: u64, seed: u64, at_least_once: bool) -> Result<bool, Box<dyn Error>> {
    let mut town = Town::start(Chance(seed), at_least_once).await?;
    eprintln!(
        "bank: {BRANCHES} branches and {CUSTOMERS} customers with {PENS} transfers at a time each, for {seconds} s"
    );
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(CALM_MAX.mul_f64((town.chance.next() % 1_000) as f64 / 1_000.0)).await;
        town.kill_some().await?;
    }
    let took = began.elapsed();
    let outcome = town.audit(took).await?;
    print!("{outcome}");
    Ok(outcome.is_balanced())
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Vault(u8),
    Customer(u8),
}

impl Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault(branch) => write!(f, "branch {branch}"),
            Self::Customer(number) => write!(f, "customer {number}"),
        }
    }
}

/// All processes.
struct Town {
    processes: BTreeMap<Who, Process>,
    /// Where the vaults listen, in all their lives.
    vaults: BTreeMap<u8, String>,
    directory: Directory,
    chance: Chance,
    at_least_once: bool,
    killed_vaults: u64,
    killed_customers: u64,
}

impl Town {
    async fn start(chance: Chance, at_least_once: bool) -> Result<Self, Box<dyn Error>> {
        let mut town = Self {
            processes: BTreeMap::new(),
            vaults: BTreeMap::new(),
            directory: Directory::create()?,
            chance,
            at_least_once,
            killed_vaults: 0,
            killed_customers: 0,
        };
        for branch in 1..=BRANCHES {
            town.enter(Who::Vault(branch)).await?;
            let address = town.processes[&Who::Vault(branch)].address.clone();
            town.vaults.insert(branch, address);
        }
        for number in 0..CUSTOMERS {
            town.enter(Who::Customer(number)).await?;
        }
        Ok(town)
    }

    /// Starts a process on its directory.
    async fn enter(&mut self, who: Who) -> Result<(), ProcessError> {
        let directory = self.directory.part(&who.to_string().replace(' ', "-"));
        let mut arguments = match who {
            Who::Vault(branch) => {
                let listen = self.vaults.get(&branch).map_or("tcp://127.0.0.1:0", String::as_str);
                let branch = branch.to_string();
                ["vault", "--branch", &branch, "--listen", listen].map(str::to_owned).to_vec()
            }
            Who::Customer(number) => {
                let mut arguments = ["customer", "--number", &number.to_string()].map(str::to_owned).to_vec();
                for address in self.vaults.values() {
                    arguments.extend(["--vault".to_owned(), address.clone()]);
                }
                arguments.extend(self.at_least_once.then(|| "--at-least-once".to_owned()));
                arguments
            }
        };
        arguments.extend(["--seed".to_owned(), self.chance.next().to_string(), "--directory".to_owned()]);
        let arguments = arguments.into_iter().map(Into::into).chain([directory.into_os_string()]);
        let process = Process::spawn(who.to_string(), arguments).await?;
        self.processes.insert(who, process);
        Ok(())
    }

    /// Kills one or two processes at the same time, and starts them again.
    async fn kill_some(&mut self) -> Result<(), ProcessError> {
        let all: Vec<Who> = self.processes.keys().copied().collect();
        let mut victims = Vec::new();
        for _ in 0..1 + self.chance.next() % 2 {
            let who = all[self.chance.next() as usize % all.len()];
            if let Some(process) = self.processes.remove(&who) {
                process.kill().await?;
                victims.push(who);
            }
        }
        for who in victims {
            match who {
                Who::Vault(_) => self.killed_vaults += 1,
                Who::Customer(_) => self.killed_customers += 1,
            }
            self.enter(who).await?;
        }
        Ok(())
    }

    /// Lets the customers end what they have begun, and asks everybody.
    async fn audit(mut self, took: Duration) -> Result<Outcome, Box<dyn Error>> {
        for (who, process) in &mut self.processes {
            if matches!(who, Who::Customer(_)) {
                process.tell("stop").await?;
            }
        }
        let (mut completed, mut refused) = (Count::default(), 0);
        for (who, process) in &mut self.processes {
            if matches!(who, Who::Customer(_)) {
                let done = process.expect("done").await?;
                let numbers: Vec<u64> = done.split(' ').map(str::parse).collect::<Result<_, _>>()?;
                let [times, cents, theirs] = numbers[..] else { return Err(done.into()) };
                completed = Count { times: completed.times + times, cents: completed.cents + cents };
                refused += theirs;
            }
        }
        let node = Node::builder().start().await?;
        let mut held = Totals::default();
        for address in self.vaults.values() {
            let mut options = ClientOptions::default();
            (options.retry_max, options.bind_deadline) =
                (Duration::from_millis(300), Duration::from_secs(60));
            let vault: VaultClient = VaultClient::connect_with(&node, VAULT, address, options).await?;
            let totals = vault.totals().await?;
            held.cents += totals.cents;
            for (sum, more) in
                [(&mut held.withdrawn, totals.withdrawn), (&mut held.deposited, totals.deposited)]
            {
                *sum = Count { times: sum.times + more.times, cents: sum.cents + more.cents };
            }
        }
        let at_least_once = self.at_least_once;
        let (killed_vaults, killed_customers) = (self.killed_vaults, self.killed_customers);
        for process in self.processes.into_values() {
            process.kill().await?;
        }
        Ok(Outcome { took, at_least_once, killed_vaults, killed_customers, completed, refused, held })
    }
}

/// What the storm left.
struct Outcome {
    took: Duration,
    at_least_once: bool,
    killed_vaults: u64,
    killed_customers: u64,
    /// What the customers were answered.
    completed: Count,
    refused: u64,
    /// What the vaults hold and have done.
    held: Totals,
}

impl Outcome {
    fn is_balanced(&self) -> bool {
        self.held.cents == opening_total_cents()
            && (self.held.withdrawn, self.held.deposited) == (self.completed, self.completed)
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { completed, refused, held, killed_vaults, killed_customers, .. } = self;
        writeln!(
            f,
            "storm        {:.1} s; {PERCENT} % of all messages lost, {PERCENT} % doubled",
            self.took.as_secs_f64()
        )?;
        writeln!(f, "kill         {killed_vaults} times a branch, {killed_customers} times a customer")?;
        let how = if self.at_least_once { "at least once" } else { "exactly once" };
        writeln!(f, "transfers    {} completed, {refused} refused; each call {how}", completed.times)?;
        for (what, done) in [("withdrawals", held.withdrawn), ("deposits   ", held.deposited)] {
            writeln!(
                f,
                "{what}  {} of {} were asked for, {} of {} were executed",
                completed.times,
                money(completed.cents),
                done.times,
                money(done.cents)
            )?;
        }
        let opening = opening_total_cents();
        writeln!(f, "money        {} now, {} at opening", money(held.cents), money(opening))?;
        if self.is_balanced() {
            return writeln!(
                f,
                "books        balance: every withdrawal and every deposit took effect once, and no cent was lost or made"
            );
        }
        let difference = held.cents.abs_diff(opening);
        let what = if held.cents < opening { "lost" } else { "made" };
        writeln!(
            f,
            "books        DO NOT BALANCE: {} withdrawals and {} deposits too many; {} {what}",
            surplus(held.withdrawn, *completed),
            surplus(held.deposited, *completed),
            money(difference)
        )
    }
}

/// How many more were executed than completed; negative when some are missing.
fn surplus(executed: Count, completed: Count) -> i128 {
    i128::from(executed.times) - i128::from(completed.times)
}
