//! Keeps one service: starts its process when somebody asks for it, sees it end, starts it again.
//!
//! Guarantee   one process at a time: the same task starts it and waits for its end. What is asked for while a process
//!             starts is answered by that process; while it stops, by the next one.
//! Method      those who ask raise a count and wait for the directory, or for a failure to be told; this task looks at the
//!             count only between two processes.

use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use quorate::codec::Postcard;
use quorate::host::{self, ControlClient, Staying, Ticket};
use quorate::naming::{Directory, Found, Names, Query, Watch};
use quorate::rpc::{ClientOptions, RpcError};
use quorate::{Address, Node};
use rustix::process::Signal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::Service;
use crate::process::Process;
use crate::records::Records;

/// Where those who ask for a service meet who keeps it.
pub(crate) struct Counter {
    wanted: watch::Sender<u64>,
    /// How many starts have failed, and why the last one did.
    failed: watch::Sender<(u64, String)>,
}

impl Counter {
    pub(crate) fn new() -> Self {
        Self { wanted: watch::Sender::new(0), failed: watch::Sender::new((0, String::new())) }
    }

    /// Wants the service to be there; returns only when a start has failed since, with the reason.
    pub(crate) async fn want(&self) -> String {
        let mut failed = self.failed.subscribe();
        // Before the wish: a start that fails because of it is not missed.
        let before = failed.borrow_and_update().0;
        self.wanted.send_modify(|wanted| *wanted = wanted.wrapping_add(1));
        let failure = failed.wait_for(|(count, _)| *count != before).await;
        let reason = failure.map(|failure| failure.1.clone());
        match reason {
            Ok(reason) => reason,
            Err(_) => pending().await,
        }
    }

    fn fail(&self, reason: String) {
        self.failed.send_modify(|failed| *failed = (failed.0.wrapping_add(1), reason));
    }
}

/// What all keepers of a daemon share.
pub(crate) struct House {
    pub(crate) node: Node,
    pub(crate) names: Names,
    pub(crate) directory: Directory,
    pub(crate) records: Records,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) processes_max: usize,
    /// Becomes true when all processes are to be stopped.
    pub(crate) stop: watch::Sender<bool>,
}

pub(crate) struct Keeper {
    pub(crate) name: String,
    pub(crate) service: Service,
    pub(crate) counter: Arc<Counter>,
    pub(crate) house: Arc<House>,
}

/// How a process came to its end.
enum End {
    /// It was not needed any more, or has ended by itself without an error.
    Unneeded,
    /// The daemon ends.
    Stopped,
    /// It was not started: there are as many as there may be.
    Full,
    /// It was never of use.
    NeverReady(String),
    /// It served, and ended in another way than it was to.
    Crashed(String),
}

impl Keeper {
    /// Until the daemon ends. `adopted` is what an earlier life of the daemon has started.
    pub(crate) async fn keep(self, mut adopted: Option<Process>) {
        let mut wanted = self.counter.wanted.subscribe();
        let mut stop = self.house.stop.subscribe();
        let mut crashes = 0;
        // Started again although nobody asks: whoever used it will.
        let mut is_due = false;
        loop {
            let process = match adopted.take() {
                Some(process) => Ok((process, self.place())),
                None => {
                    let turn = async {
                        if crashes > 0 {
                            sleep(self.service.pause(crashes)).await;
                        }
                        // The sender lives as long as the counter.
                        if !is_due && wanted.changed().await.is_err() {
                            pending::<()>().await;
                        }
                    };
                    tokio::select! {
                        () = turn => {}
                        () = told(&mut stop) => return,
                    }
                    self.start()
                }
            };
            let began = Instant::now();
            let end = match process {
                Err(end) => end,
                Ok((mut process, _place)) => {
                    self.house.records.note(&self.name, process.record());
                    let end = self.attend(&mut process, &mut wanted, &mut stop).await;
                    self.clear(&process).await;
                    end
                }
            };
            is_due = false;
            match end {
                End::Stopped => return,
                End::Unneeded => crashes = 0,
                End::Full => {
                    wanted.mark_unchanged();
                    self.counter.fail(format!("{} processes run already", self.house.processes_max));
                }
                End::NeverReady(reason) => {
                    crashes += 1;
                    tracing::warn!(service = self.name, reason, "not started");
                    // Whoever asked until now is answered by this.
                    wanted.mark_unchanged();
                    self.counter.fail(reason);
                }
                End::Crashed(how) => {
                    crashes = if began.elapsed() > self.service.pause_max() { 1 } else { crashes + 1 };
                    is_due = crashes <= self.service.crashes_max;
                    tracing::warn!(service = self.name, how, crashes, again = is_due, "crashed");
                }
            }
        }
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.house.places).try_acquire_owned().ok()
    }

    fn start(&self) -> Result<(Process, Option<OwnedSemaphorePermit>), End> {
        let place = self.place().ok_or(End::Full)?;
        let random = |what: &str| RandomState::new().hash_one(what);
        let ticket = Ticket::new(random("number"), random("secret"));
        let directory: Vec<_> = self.house.node.addresses().iter().map(Address::to_string).collect();
        let process = Process::start(&self.service, ticket, &directory.join(" "))
            .map_err(|error| End::NeverReady(format!("{:?}: {error}", self.service.command[0])))?;
        tracing::info!(service = self.name, process = process.number(), "started");
        Ok((process, Some(place)))
    }

    /// What the process registers.
    fn query(&self, process: &Process) -> Query {
        let (key, value) = process.ticket.attribute();
        Query::named(&*self.name).with(key, value)
    }

    /// Sees a process through its life.
    async fn attend(
        &self,
        process: &mut Process,
        wanted: &mut watch::Receiver<u64>,
        stop: &mut watch::Receiver<bool>,
    ) -> End {
        let mut watch = self.house.names.watch(self.query(process));
        let late = sleep(self.service.ready_max());
        let mut addresses = tokio::select! {
            (how, _) = process.ended() => {
                return End::NeverReady(format!("the process ended before it had registered: {how}"));
            }
            addresses = registered(&mut watch) => addresses,
            () = late => {
                self.stop(process, &[]).await;
                let limit = self.service.ready_max();
                return End::NeverReady(format!("the process did not register within {limit:?}"));
            }
            () = told(stop) => {
                self.stop(process, &[]).await;
                return End::Stopped;
            }
        };
        // Whoever asked until now finds it.
        wanted.mark_unchanged();
        tracing::info!(service = self.name, process = process.number(), "serves");
        let mut activity = None;
        let mut look = self.service.idle().map(|idle| Instant::now() + idle);
        loop {
            tokio::select! {
                (how, is_clean) = process.ended() => {
                    return if is_clean { End::Unneeded } else { End::Crashed(how) };
                }
                found = next(&mut watch) => {
                    if found.is_empty() {
                        // It hangs, or ends by itself: either way nobody finds it any more.
                        self.stop(process, &addresses).await;
                        return End::Crashed("it was registered no more".to_owned());
                    }
                    addresses = places(&found);
                }
                () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                    // Nothing is known of its activity at first, so that the first time it always stays.
                    match self.ask(process, &addresses, Some(activity.unwrap_or(u64::MAX))).await {
                        Some(Ok(())) => {
                            self.see_end(process).await;
                            return End::Unneeded;
                        }
                        Some(Err(Staying::Active { activity: now })) => activity = Some(now),
                        Some(Err(_)) | None => {
                            tracing::warn!(service = self.name, process = process.number(), "does not say whether it is idle");
                        }
                    }
                    look = self.service.idle().map(|idle| Instant::now() + idle);
                }
                () = told(stop) => {
                    self.stop(process, &addresses).await;
                    return End::Stopped;
                }
            }
        }
    }

    /// Asks the process to go. `None` when it does not answer.
    async fn ask(
        &self,
        process: &Process,
        addresses: &[Address],
        unless_active_since: Option<u64>,
    ) -> Option<Result<(), Staying>> {
        let mut options = ClientOptions::default();
        options.bind_deadline = ASK_MAX;
        for address in addresses {
            let client =
                ControlClient::<Postcard>::connect_with(&self.house.node, host::SERVICE, address, options);
            let Ok(client) = client.await else { continue };
            let client = client.with_deadline(ASK_MAX);
            match client.retire(process.ticket.secret(), unless_active_since).await {
                Ok(()) => return Some(Ok(())),
                Err(RpcError::Application(staying)) => return Some(Err(staying)),
                Err(RpcError::Call(error)) => {
                    tracing::debug!(service = self.name, %error, "the process does not answer");
                }
            }
        }
        None
    }

    /// Ends the process: asks it where it is registered, then by SIGTERM, then by SIGKILL.
    async fn stop(&self, process: &mut Process, addresses: &[Address]) {
        if let Some(Ok(())) = self.ask(process, addresses, None).await {
            self.see_end(process).await;
        } else {
            self.end(process).await;
        }
    }

    /// Waits for the end of a process that goes.
    async fn see_end(&self, process: &mut Process) {
        if timeout(self.service.stop_max(), process.ended()).await.is_err() {
            tracing::warn!(service = self.name, process = process.number(), "does not end");
            self.end(process).await;
        }
    }

    /// Ends the process by signals.
    async fn end(&self, process: &mut Process) {
        process.signal(Signal::TERM);
        if timeout(self.service.stop_max(), process.ended()).await.is_err() {
            tracing::warn!(service = self.name, process = process.number(), "is killed");
            process.signal(Signal::KILL);
            process.ended().await;
        }
    }

    /// Removes what an ended process has left: what it had started, and what it had registered.
    async fn clear(&self, process: &Process) {
        process.signal(Signal::KILL);
        self.house.directory.expel(&self.query(process)).await;
        self.house.records.strike(&self.name);
        tracing::info!(service = self.name, process = process.number(), "ended");
    }
}

/// Returns when all is to be stopped.
async fn told(stop: &mut watch::Receiver<bool>) {
    // A daemon that is dropped stops its keepers, not their processes.
    if stop.wait_for(|stop| *stop).await.is_err() {
        pending::<()>().await;
    }
}

/// Waits until something is found; tells where it is.
async fn registered(watch: &mut Watch) -> Vec<Address> {
    loop {
        let found = next(watch).await;
        if !found.is_empty() {
            return places(&found);
        }
    }
}

/// The next thing that is found.
async fn next(watch: &mut Watch) -> Vec<Found> {
    loop {
        match watch.next().await {
            Ok(found) => return found,
            Err(error) => {
                tracing::debug!(%error, "the own directory does not answer");
                sleep(WATCH_PAUSE).await;
            }
        }
    }
}

fn places(found: &[Found]) -> Vec<Address> {
    found.iter().flat_map(|found| found.addresses.iter().cloned()).collect()
}

/// How long a process may take to answer. It is of the same host.
const ASK_MAX: Duration = Duration::from_secs(5);

/// The pause before the own directory is asked again.
const WATCH_PAUSE: Duration = Duration::from_millis(100);
