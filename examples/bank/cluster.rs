//! All processes of the bank, seen from the main process: starting, introducing, killing, auditing.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate::node::{Node, NodeId};
use quorate::rpc::RpcError;
use tokio::task::JoinSet;

use super::accounts::BRANCHES;
use super::branch::{Audit, POSTINGS_MAX};
use super::clients::{Chance, Hall};
use super::desk::{DESK, DeskClient, DeskError};
use super::processes::{Place, Process, ProcessError};
use super::proof::{Books, Statement};

/// How long the replicas may take to settle after the last answer.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// The main process's own node id; replicas have 100 and more.
const MAIN_NODE: u64 = 1;

/// The running bank.
pub struct Cluster {
    node: Node,
    processes: BTreeMap<Place, Process>,
    directory: Directory,
}

impl Cluster {
    /// Starts all replicas, introduces them to each other, and waits until all serve.
    ///
    /// # Errors
    /// When one does not come up; those that did are killed.
    pub async fn start(replicas: u8) -> Result<Self, Box<dyn Error>> {
        let node = Node::builder().id(NodeId(MAIN_NODE)).start().await?;
        let directory = Directory::create()?;
        let mut starting = JoinSet::new();
        for branch in 1..=BRANCHES {
            for index in 0..replicas {
                let place = Place { branch, index };
                let at = directory.of(place);
                starting.spawn(async move { (place, Process::start(place, &at).await) });
            }
        }
        let mut processes = BTreeMap::new();
        while let Some(started) = starting.join_next().await {
            let (place, process) = started?;
            processes.insert(place, process?);
        }
        let mut cluster = Self { node, processes, directory };
        let addresses = cluster.addresses();
        for (me, process) in &mut cluster.processes {
            for (place, address) in &addresses {
                process.introduce(*place, address).await?;
            }
            // The first replica of a branch founds its group, the others join it.
            process.tell(if me.index == 0 { "found" } else { "join" }).await?;
        }
        for process in cluster.processes.values_mut() {
            process.serving().await?;
        }
        Ok(cluster)
    }

    /// Opens a desk for each replica.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn open_desks(&self, hall: &Hall) -> Result<(), Box<dyn Error>> {
        for (place, address) in self.addresses() {
            hall.open_desk(place, DeskClient::connect(&self.node, DESK, address.as_str()).await?);
        }
        Ok(())
    }

    /// All replicas, in a random order.
    pub fn places(&self, chance: &mut Chance) -> Vec<Place> {
        let mut places: Vec<(u64, Place)> =
            self.processes.keys().map(|place| (chance.next(), *place)).collect();
        places.sort_unstable();
        places.into_iter().map(|(_, place)| place).collect()
    }

    /// Kills a replica and starts it again on its directory; returns when it serves with its group's state.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&mut self, place: Place, hall: &Hall) -> Result<(), Box<dyn Error>> {
        let killed = self.processes.remove(&place).ok_or("no such replica")?;
        killed.kill().await?;
        let mut process = Process::start(place, &self.directory.of(place)).await?;
        // It listens somewhere else now: both sides have to hear of it.
        let addresses = self.addresses();
        for other in self.processes.values_mut() {
            other.introduce(place, &process.address).await?;
        }
        for (other, address) in &addresses {
            process.introduce(*other, address).await?;
        }
        process.tell("join").await?;
        process.serving().await?;
        hall.open_desk(place, DeskClient::connect(&self.node, DESK, process.address.as_str()).await?);
        self.processes.insert(place, process);
        Ok(())
    }

    /// The books of all replicas, when those of each branch are equal and settled, or as they are when they do not
    /// become so in time.
    pub async fn audit(&self, hall: &Hall) -> Books {
        let began = Instant::now();
        while !self.is_settled(hall).await && began.elapsed() < SETTLE_MAX {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut books = BTreeMap::new();
        for (place, desk) in hall.desks() {
            books.insert(place, statement(&desk).await.map_err(|error| error.to_string()));
        }
        Books(books)
    }

    async fn is_settled(&self, hall: &Hall) -> bool {
        let mut seen: BTreeMap<u8, Audit> = BTreeMap::new();
        for (place, desk) in hall.desks() {
            let Ok(audit) = desk.audit().await else { return false };
            if audit.open > 0 || *seen.entry(place.branch).or_insert(audit) != audit {
                return false;
            }
        }
        true
    }

    /// Ends all processes and waits until they have ended.
    ///
    /// # Errors
    /// When the system does not let one be killed.
    pub async fn close(self) -> Result<(), ProcessError> {
        for process in self.processes.into_values() {
            process.kill().await?;
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<(Place, String)> {
        self.processes.iter().map(|(place, process)| (*place, process.address.clone())).collect()
    }
}

/// Reads all that a replica has in its books.
async fn statement(desk: &DeskClient) -> Result<Statement, RpcError<DeskError>> {
    let (audit, balances) = (desk.audit().await?, desk.balances().await?);
    let mut ledger = Vec::new();
    while ledger.len() < POSTINGS_MAX {
        let page = desk.ledger(ledger.len() as u64).await?;
        if page.is_empty() {
            break;
        }
        ledger.extend(page);
    }
    Ok(Statement { audit, balances, ledger })
}

/// Where processes keep what must survive a kill; removed with the bank.
pub struct Directory(PathBuf);

impl Directory {
    /// A fresh one.
    ///
    /// # Errors
    /// When the system does not let it be made.
    pub fn create() -> Result<Self, String> {
        // A bank that was itself killed leaves its directory: the same process id must not find it.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let path = std::env::temp_dir().join(format!("quorate-bank-{}-{now}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(error) => Err(format!("cannot create {}: {error}", path.display())),
        }
    }

    fn of(&self, place: Place) -> PathBuf {
        self.part(&format!("branch-{}-{}", place.branch, place.index))
    }

    /// The place of one process in it.
    pub fn part(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A temporary directory that cannot be removed is the system's to clean.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
