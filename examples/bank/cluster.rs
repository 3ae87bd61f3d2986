//! All processes of the bank, seen from the main process: starting, introducing, killing, auditing.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quorate::node::{Node, NodeId};
use tokio::task::JoinSet;

use super::accounts::BRANCHES;
use super::branch::Audit;
use super::clients::{Chance, Hall};
use super::desk::{DESK, DeskClient};
use super::processes::{Place, Process};

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
                starting.spawn(Process::start(place, directory.of(place)));
            }
        }
        let mut processes = BTreeMap::new();
        while let Some(started) = starting.join_next().await {
            let process = started??;
            processes.insert(process.place, process);
        }
        let mut cluster = Self { node, processes, directory };
        let addresses = cluster.addresses();
        for process in cluster.processes.values_mut() {
            for (place, address) in &addresses {
                process.introduce(*place, address).await?;
            }
            // The first replica of a branch founds its group, the others join it.
            process.tell(if process.place.index == 0 { "found" } else { "join" }).await?;
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

    /// One of the replicas.
    pub fn any_place(&self, chance: &mut Chance) -> Place {
        let places: Vec<Place> = self.processes.keys().copied().collect();
        places[(chance.next() % places.len() as u64) as usize]
    }

    /// Kills a replica and starts it again on its directory; returns when it serves with its group's state.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&mut self, place: Place, hall: &Hall) -> Result<(), Box<dyn Error>> {
        let killed = self.processes.remove(&place).ok_or("no such replica")?;
        killed.kill().await?;
        let mut process = Process::start(place, self.directory.of(place)).await?;
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

    /// The books of all replicas, by branch, when those of each branch are equal and settled, or as they are when they
    /// do not become so in time.
    pub async fn audit(&self, hall: &Hall) -> Vec<(u8, Vec<Audit>)> {
        let began = Instant::now();
        loop {
            let mut books: BTreeMap<u8, Vec<Audit>> =
                (1..=BRANCHES).map(|branch| (branch, Vec::new())).collect();
            let mut is_complete = true;
            for (place, desk) in hall.desks() {
                match desk.audit().await {
                    Ok(audit) => books.entry(place.branch).or_default().push(audit),
                    Err(error) => {
                        is_complete = false;
                        eprintln!("bank: {place} cannot be audited: {error}");
                    }
                }
            }
            let is_settled = |audits: &Vec<Audit>| audits.iter().all(|a| *a == audits[0] && a.open == 0);
            if (is_complete && books.values().all(is_settled)) || began.elapsed() > SETTLE_MAX {
                return books.into_iter().collect();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn addresses(&self) -> Vec<(Place, String)> {
        self.processes.iter().map(|(place, process)| (*place, process.address.clone())).collect()
    }
}

/// Where the replicas keep what must survive a kill; removed with the bank.
struct Directory(PathBuf);

impl Directory {
    fn create() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("quorate-bank-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn of(&self, place: Place) -> PathBuf {
        self.0.join(format!("branch-{}-{}", place.branch, place.index))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A temporary directory that cannot be removed is the system's to clean.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
