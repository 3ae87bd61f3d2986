//! The daemon's parts put together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quorate::Node;
use quorate::naming::{Directory, Names, Starter};
use quorate::transports::BoxFuture;
use rustix::process::Signal;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::error::StartError;
use crate::keeper::{Counter, House, Keeper};
use crate::process::Process;
use crate::records::Records;

/// The directory of a host that starts what is looked for.
///
/// Dropping it leaves the processes of its services as they are, as a crash would; [`shutdown`](Self::shutdown) ends
/// them.
pub struct Superserver {
    house: Arc<House>,
    keepers: JoinSet<()>,
}

/// Told by the directory of what is wanted.
struct Counters(BTreeMap<String, Arc<Counter>>);

impl Starter for Counters {
    fn start<'a>(&'a self, name: &'a str) -> BoxFuture<'a, String> {
        Box::pin(async move {
            match self.0.get(name) {
                Some(counter) => counter.want().await,
                // Somebody else may register it.
                None => std::future::pending().await,
            }
        })
    }
}

impl Superserver {
    /// Makes `node` the daemon of its host: where the node listens is where services are looked for
    /// ([`Config::listen`] is for who makes the node). Processes that an earlier life noted are adopted.
    ///
    /// # Errors
    /// [`StartError`]; nothing is started then.
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn start(node: &Node, config: &Config) -> Result<Self, StartError> {
        config.check()?;
        let (records, running) = Records::open(config.state.as_deref())?;
        let counters: BTreeMap<String, Arc<Counter>> =
            config.service.keys().map(|name| (name.clone(), Arc::new(Counter::new()))).collect();
        let starter = Arc::new(Counters(counters.clone()));
        let directory = Directory::found_with(node, starter).await?;
        let names = Names::connect(node, &node.addresses()).await?;
        let house = Arc::new(House {
            node: node.clone(),
            names,
            directory,
            records,
            places: Arc::new(Semaphore::new(config.processes_max.min(Semaphore::MAX_PERMITS))),
            processes_max: config.processes_max,
            stop: watch::Sender::new(false),
        });
        let mut adopted: BTreeMap<String, Process> = BTreeMap::new();
        for (name, record) in running {
            match Process::adopt(&record) {
                Some(process) if config.service.contains_key(&name) => {
                    tracing::info!(service = name, process = process.number(), "adopted");
                    adopted.insert(name, process);
                }
                left => {
                    if let Some(process) = left {
                        tracing::info!(
                            service = name,
                            process = process.number(),
                            "no service of ours any more"
                        );
                        process.signal(Signal::TERM);
                    }
                    house.records.strike(&name);
                }
            }
        }
        let mut keepers = JoinSet::new();
        for (name, counter) in counters {
            let service = config.service[&name].clone();
            let process = adopted.remove(&name);
            let keeper = Keeper { name, service, counter, house: Arc::clone(&house) };
            keepers.spawn(keeper.keep(process));
        }
        Ok(Self { house, keepers })
    }

    /// The directory of the host.
    pub fn directory(&self) -> &Directory {
        &self.house.directory
    }

    /// Stops every process: asks it to go, then by SIGTERM, then by SIGKILL, each within the limits of its service.
    ///
    /// # Cancel safety
    /// Dropping the future leaves processes that have not ended as they are.
    pub async fn shutdown(mut self) {
        self.house.stop.send_replace(true);
        while self.keepers.join_next().await.is_some() {}
        // Nothing of the own is registered through it.
        self.house.names.close(Duration::ZERO).await;
    }
}

impl fmt::Debug for Superserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Superserver").field("directory", &self.house.directory).finish_non_exhaustive()
    }
}
