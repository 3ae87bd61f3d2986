//! The broker over the queues: takes, has decided, stores.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_transports::NodeId;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::format::Formats;
use super::machine::{Code, Decision, Incoming, Machine, Outgoing, Reason};
use super::rejected::Rejected;
use super::rules::{RuleBase, RulesError};
use crate::queue::config::QueueConfig;
use crate::queue::delivery::Delivery;
use crate::queue::error::{DeclareError, PutError, QueueError, WorkError};
use crate::queue::face::{Queue, Queues};
use crate::queue::manager::{QueueManager, RemoteQueue};
use crate::queue::message::{Message, MessageId};
use crate::queue::work::OWN_STATE;

/// A broker that runs. It ends with the handle; [`stop`](Self::stop) lets it finish what it has begun.
///
/// One broker for a queue: two would share its messages, and not know of each other's edits.
pub struct Broker {
    inner: Arc<Inner>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What a broker is made of.
#[must_use = "nothing runs before it is started"]
pub struct BrokerBuilder {
    queues: Queues,
    input: String,
    formats: Formats,
    code: BTreeMap<String, Code>,
    manager: Option<QueueManager>,
}

/// Why a broker could not be started.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// One of its queues cannot be opened.
    #[error("cannot open a queue of the broker")]
    Declare(#[from] DeclareError),
    /// The rules that are stored do not fit: a format or code that they speak of was not given, or they are damaged.
    #[error("the stored rules cannot be used")]
    Rules(#[from] RulesError),
}

/// Why an edit was not made; the rules are as they were.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// Somebody else has edited them since. Look at them again, and then edit that revision.
    #[error("the rules are at revision {current} by now")]
    Stale {
        /// Which one they are at.
        current: u64,
    },
    /// They are not rules.
    #[error("the rules are wrong")]
    Rules(#[from] RulesError),
    /// They cannot be stored. After a journal that is poisoned they may or may not be found when the queues are opened again.
    #[error("cannot store the rules")]
    Store(#[from] WorkError),
    /// The runtime has ended.
    #[error("the broker has ended")]
    Ended,
}

/// Why rejected messages were not all put again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// One of them cannot be taken.
    #[error("cannot take a rejected message")]
    Take(#[from] QueueError),
    /// One of them cannot be put; it is rejected as before.
    #[error("cannot put a rejected message again")]
    Work(#[from] WorkError),
}

/// What an edit gives: the moment from which it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Edited {
    /// The revision from now on.
    pub revision: u64,
    /// The last message that was decided by the rules before, in this life of the broker; the next one is the first of the new
    /// rules.
    pub after: Option<MessageId>,
}

/// What a broker has done since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerStats {
    /// Messages that it took, once for each that left its queue.
    pub taken: u64,
    /// Messages that it made of them.
    pub sent: u64,
    /// Messages that it rejected.
    pub rejected: u64,
    /// How often it had to begin again, because a queue was full, a lease ran out or a result could not be put.
    pub repeated: u64,
}

struct Inner {
    queues: Queues,
    input: Queue,
    rejected: Queue,
    manager: Option<QueueManager>,
    /// Held from a decision until it is stored, and by edits.
    current: tokio::sync::Mutex<Current>,
    stats: Mutex<BrokerStats>,
    stopping: Notify,
}

struct Current {
    machine: Machine,
    last: Option<MessageId>,
    queues: BTreeMap<String, Queue>,
    remotes: BTreeMap<(u64, String), RemoteQueue>,
    /// Messages that are done one by one, because several together failed.
    alone: usize,
    /// What is to be rejected when it comes again, because its results cannot be put.
    refused: Option<(MessageId, String)>,
}

/// Where a message goes from here.
enum Aim {
    Here(Queue),
    There(RemoteQueue),
}

impl Broker {
    /// A broker that takes from the queue called `input`, which is created if there is none. Its rules are those that an
    /// earlier broker of this queue had, or none: then everything is rejected.
    pub fn on(queues: &Queues, input: impl Into<String>) -> BrokerBuilder {
        BrokerBuilder {
            queues: queues.clone(),
            input: input.into(),
            formats: Formats::new(),
            code: BTreeMap::new(),
            manager: None,
        }
    }

    /// The rules as they are now.
    pub async fn rules(&self) -> Arc<RuleBase> {
        self.inner.current.lock().await.machine.base().clone()
    }

    /// Puts `base` in the place of the rules of revision `revision`: 0 is that of the first, empty ones. Returns when it is
    /// stored and counts. What was taken before is decided by the old rules, what is taken from then on by the new ones, and
    /// no message by some of both.
    ///
    /// # Errors
    /// See [`EditError`].
    /// # Cancel safety
    /// Dropping the future after its first poll leaves the edit under way.
    pub async fn edit(&self, revision: u64, base: RuleBase) -> Result<Edited, EditError> {
        let inner = self.inner.clone();
        let editing = tokio::spawn(async move { inner.edit(revision, base).await });
        editing.await.unwrap_or(Err(EditError::Ended))
    }

    /// Puts up to `most` rejected messages into the broker's queue again, behind what waits there; gives how many. For after an
    /// edit.
    ///
    /// # Errors
    /// [`RetryError`]; those before were put.
    pub async fn retry_rejected(&self, most: usize) -> Result<usize, RetryError> {
        // What is rejected again meanwhile waits for the next time.
        let most = most.min(self.inner.rejected.stats().ready);
        let mut others = Vec::new();
        let mut count = 0;
        while count + others.len() < most
            && let Some(delivery) = self.inner.rejected.poll()?
        {
            let Some(rejected) = Rejected::read(delivery.payload()) else {
                // Somebody else put it there. It goes back when all were looked at.
                others.push(delivery);
                continue;
            };
            let message = Message { payload: rejected.payload, name: None, ..delivery.to_message() };
            let mut work = self.inner.queues.work();
            work.put(&self.inner.input, message).ack(delivery);
            work.commit().await?;
            count += 1;
        }
        Ok(count)
    }

    /// The queue of what was rejected; see [`Rejected`].
    pub fn rejected(&self) -> &Queue {
        &self.inner.rejected
    }

    /// What it has done.
    pub fn stats(&self) -> BrokerStats {
        *self.inner.stats()
    }

    /// Takes no more messages, and returns when what was taken is stored.
    pub async fn stop(&self) {
        self.inner.stopping.notify_one();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // It has not panicked: nothing in it does.
            let _ = task.await;
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl BrokerBuilder {
    /// Other formats than those of [`Formats::new`].
    pub fn formats(mut self, formats: Formats) -> Self {
        self.formats = formats;
        self
    }

    /// Code for [`Change::Call`](super::Change::Call): changes content, or says why it cannot. It must not wait for anything:
    /// the broker waits with it.
    pub fn code(
        mut self,
        name: impl Into<String>,
        code: impl Fn(&mut Value) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.code.insert(name.into(), Arc::new(code));
        self
    }

    /// By whom messages go to queues of other nodes. Without one, they are rejected.
    pub fn manager(mut self, manager: &QueueManager) -> Self {
        self.manager = Some(manager.clone());
        self
    }

    /// Starts it. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`BrokerError`].
    /// # Cancel safety
    /// Dropping the future may leave its queues created.
    pub async fn start(self) -> Result<Broker, BrokerError> {
        let Self { queues, input, formats, code, manager } = self;
        let base = match queues.state(key(&input)) {
            Some(stored) => serde_json::from_slice(&stored)
                .map_err(|error| RulesError::Unreadable { reason: error.to_string() })?,
            None => RuleBase::default(),
        };
        let machine = Machine::with_code(base, &input, formats, code)?;
        let rejected = format!("{input}{REJECTED}");
        let input = open(&queues, &input, QueueConfig::new()).await?;
        let rejected = open(&queues, &rejected, QueueConfig::new().deliveries_max(None)).await?;
        let current = Current {
            machine,
            last: None,
            queues: BTreeMap::new(),
            remotes: BTreeMap::new(),
            alone: 0,
            refused: None,
        };
        let inner = Arc::new(Inner {
            queues,
            input,
            rejected,
            manager,
            current: tokio::sync::Mutex::new(current),
            stats: Mutex::default(),
            stopping: Notify::new(),
        });
        let task = tokio::spawn(run(inner.clone()));
        Ok(Broker { inner, task: Mutex::new(Some(task)) })
    }
}

async fn run(inner: Arc<Inner>) {
    loop {
        let most = if inner.current.lock().await.alone > 0 { 1 } else { BATCH };
        let taken = tokio::select! {
            biased;
            () = inner.stopping.notified() => return,
            taken = inner.input.get_many(most, Duration::MAX) => taken,
        };
        let done = match taken {
            Ok(deliveries) => inner.carry_out(deliveries).await,
            Err(error) => Err(Some(error.to_string())),
        };
        match done {
            Ok(()) => {}
            // A queue is full, or the disk is: soon it may not be.
            Err(None) => tokio::time::sleep(TRY_AGAIN).await,
            Err(Some(error)) => {
                tracing::debug!(queue = inner.input.name(), error, "the broker ends");
                return;
            }
        }
    }
}

impl Inner {
    fn stats(&self) -> MutexGuard<'_, BrokerStats> {
        // Nothing panics while it is held.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn edit(&self, revision: u64, mut base: RuleBase) -> Result<Edited, EditError> {
        let mut current = self.current.lock().await;
        let now = current.machine.base().revision;
        if revision != now {
            return Err(EditError::Stale { current: now });
        }
        base.revision = now + 1;
        let machine = current.machine.with_rules(base, self.input.name())?;
        let mut work = self.queues.own_work();
        work.set(key(self.input.name()), machine.base().to_json());
        work.commit().await?;
        current.machine = machine;
        // Names that are no longer spoken of need not be remembered.
        current.queues.clear();
        current.remotes.clear();
        tracing::info!(queue = self.input.name(), revision = now + 1, "rules edited");
        Ok(Edited { revision: now + 1, after: current.last })
    }

    /// Decides and stores, all of it in one unit of work. Fails without an error when it is to be tried again, and with one when
    /// it is over.
    async fn carry_out(&self, deliveries: Vec<Delivery>) -> Result<(), Option<String>> {
        let mut current = self.current.lock().await;
        let mut done = BrokerStats { taken: deliveries.len() as u64, ..BrokerStats::default() };
        let (count, last) = (deliveries.len(), deliveries.last().map(Delivery::id));
        current.alone = current.alone.saturating_sub(count);
        let mut work = self.queues.work();
        for delivery in deliveries {
            let refused = current.refused.take_if(|(id, _)| *id == delivery.id());
            let decision = match refused {
                Some((_, reason)) => Decision::Reject(Reason::Put { reason }),
                None => current.machine.decide(&incoming(&self.input, &delivery)),
            };
            let like = delivery.to_message();
            let outcome = match decision {
                Decision::Send(results) => {
                    self.aim(&mut current, results).await.map_err(|e| Some(e.to_string()))?
                }
                Decision::Reject(reason) => Err(reason),
            };
            match outcome {
                Ok(results) => {
                    done.sent += results.len() as u64;
                    for (aim, payload) in results {
                        let message = Message { payload, name: None, ..like.clone() };
                        match aim {
                            Aim::Here(queue) => work.put(&queue, message),
                            Aim::There(queue) => work.send(&queue, message),
                        };
                    }
                }
                Err(reason) => {
                    tracing::warn!(queue = self.input.name(), id = %delivery.id(), %reason, "rejected");
                    done.rejected += 1;
                    let revision = current.machine.base().revision;
                    let payload = like.payload.clone();
                    let rejected = Rejected { reason: reason.to_string(), revision, payload }.write();
                    // Its time does not run out there.
                    let message = Message { payload: rejected, name: None, expires_after: None, ..like };
                    work.put(&self.rejected, message);
                }
            }
            work.ack(delivery);
        }
        let error = match work.commit().await {
            Ok(_) => {
                current.last = last;
                let mut stats = self.stats();
                stats.taken += done.taken;
                stats.sent += done.sent;
                stats.rejected += done.rejected;
                return Ok(());
            }
            Err(error) => error,
        };
        self.stats().repeated += 1;
        match error {
            // All went back, and come again.
            WorkError::LeaseLost => Ok(()),
            WorkError::Put(error) if is_over(&error) => Err(Some(error.to_string())),
            WorkError::Put(error) if error.is_retryable() => Err(None),
            error if count == 1 => {
                current.refused = last.map(|id| (id, told(&error)));
                Ok(())
            }
            _ => {
                current.alone = count;
                Ok(())
            }
        }
    }

    /// Finds the queues of results; where one of them is not to be had, there is a reason to reject the message.
    async fn aim(
        &self,
        current: &mut Current,
        results: Vec<Outgoing>,
    ) -> Result<Result<Vec<(Aim, bytes::Bytes)>, Reason>, DeclareError> {
        let mut aimed = Vec::with_capacity(results.len());
        for result in results {
            let put = |reason: String| Reason::Put { reason };
            let aim = match result.node {
                None => self.here(current, &result).await.map(|found| found.map(Aim::Here)),
                Some(node) => self.there(current, node, &result).await.map(|found| found.map(Aim::There)),
            };
            match aim {
                Ok(Some(aim)) => aimed.push((aim, result.payload)),
                Ok(None) if result.node.is_some() => {
                    return Ok(Err(put("the broker has no queue manager".to_owned())));
                }
                Ok(None) => return Ok(Err(put(format!("there is no queue {:?}", result.queue)))),
                Err(error @ DeclareError::Journal(_)) => return Err(error),
                Err(error) => return Ok(Err(put(error.to_string()))),
            }
        }
        Ok(Ok(aimed))
    }

    async fn here(&self, current: &mut Current, to: &Outgoing) -> Result<Option<Queue>, DeclareError> {
        if let Some(queue) = current.queues.get(&to.queue) {
            return Ok(Some(queue.clone()));
        }
        let queue = match self.queues.existing(&to.queue) {
            Some(queue) => queue,
            // Content makes no queues: it would make any number.
            None if to.is_named_by_content => return Ok(None),
            None => self.queues.queue(&to.queue).await?,
        };
        if current.queues.len() >= QUEUES_MAX {
            current.queues.clear();
        }
        current.queues.insert(to.queue.clone(), queue.clone());
        Ok(Some(queue))
    }

    async fn there(
        &self,
        current: &mut Current,
        node: u64,
        to: &Outgoing,
    ) -> Result<Option<RemoteQueue>, DeclareError> {
        let Some(manager) = &self.manager else { return Ok(None) };
        let key = (node, to.queue.clone());
        if let Some(queue) = current.remotes.get(&key) {
            return Ok(Some(queue.clone()));
        }
        let queue = manager.remote(NodeId(node), &to.queue).await?;
        current.remotes.insert(key, queue.clone());
        Ok(Some(queue))
    }
}

fn incoming<'a>(input: &'a Queue, delivery: &'a Delivery) -> Incoming<'a> {
    Incoming {
        queue: input.name(),
        key: delivery.key().map(|key| &key[..]),
        name: delivery.name().map(|name| &name[..]),
        priority: delivery.priority(),
        deliveries: delivery.deliveries(),
        payload: delivery.payload(),
    }
}

/// A queue with the settings that it has, or with these if there is none.
async fn open(queues: &Queues, name: &str, config: QueueConfig) -> Result<Queue, DeclareError> {
    match queues.existing(name) {
        Some(queue) => Ok(queue),
        None => queues.queue_with(name, config).await,
    }
}

fn is_over(error: &PutError) -> bool {
    use quorate_journal::AppendError::{Closed, Poisoned};
    matches!(error, PutError::Journal(Closed | Poisoned(_)))
}

/// An error with what is behind it, for people.
fn told(error: &WorkError) -> String {
    let mut text = error.to_string();
    let mut behind = std::error::Error::source(error);
    while let Some(error) = behind {
        text = format!("{text}: {error}");
        behind = error.source();
    }
    text
}

/// Where the rules of a broker are among the queues' own entries.
fn key(input: &str) -> String {
    format!("{OWN_STATE}broker.{input}")
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("queue", &self.inner.input.name()).finish_non_exhaustive()
    }
}

impl fmt::Debug for BrokerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerBuilder").field("queue", &self.input).finish_non_exhaustive()
    }
}

/// Behind the name of the queue.
const REJECTED: &str = ".rejected";
/// Messages that are stored together: one sync for all of them.
const BATCH: usize = 64;
/// Queues that are remembered; content may name any that is there.
const QUEUES_MAX: usize = 4096;
/// How long a full queue is left alone.
const TRY_AGAIN: Duration = Duration::from_millis(200);
