//! The broker over the queues: takes, has decided, stores.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::format::Formats;
use super::machine::{Code, Machine};
use super::rejected::Rejected;
use super::rules::{RuleBase, RulesError};
use super::task::run;
use crate::queue::config::QueueConfig;
use crate::queue::error::{DeclareError, QueueError, WorkError};
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

pub(super) struct Inner {
    pub(super) queues: Queues,
    pub(super) input: Queue,
    pub(super) rejected: Queue,
    /// Of what is taken.
    pub(super) lease: Duration,
    pub(super) manager: Option<QueueManager>,
    /// Held from a decision until it is stored, and by edits.
    pub(super) current: tokio::sync::Mutex<Current>,
    stats: Mutex<BrokerStats>,
    pub(super) stopping: Notify,
}

pub(super) struct Current {
    pub(super) machine: Machine,
    pub(super) last: Option<MessageId>,
    pub(super) queues: BTreeMap<String, Queue>,
    pub(super) remotes: BTreeMap<(u64, String), RemoteQueue>,
    /// Messages that are done one by one, because several together failed.
    pub(super) alone: usize,
    /// What is to be rejected, because its results cannot be put, and whether that could not be put either.
    pub(super) refused: Option<(MessageId, String, bool)>,
}

/// Where a message goes from here.
pub(super) enum Aim {
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
    /// stored and counts. What was stored before was decided by the old rules, what is stored from then on is by the new ones,
    /// also what waits for room meanwhile, and no message by some of both.
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
        let any_size = QueueConfig::new().deliveries_max(None).message_bytes_max(REJECTED_BYTES_MAX);
        let rejected = open(&queues, &rejected, any_size).await?;
        let lease = queues.room.lock().books.desk(input.number).config.lease;
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
            lease,
            manager,
            current: tokio::sync::Mutex::new(current),
            stats: Mutex::default(),
            stopping: Notify::new(),
        });
        let task = tokio::spawn(run(inner.clone()));
        Ok(Broker { inner, task: Mutex::new(Some(task)) })
    }
}

impl Inner {
    pub(super) fn stats(&self) -> MutexGuard<'_, BrokerStats> {
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
}

/// A queue with the settings that somebody has given it in this life, or with these.
async fn open(queues: &Queues, name: &str, config: QueueConfig) -> Result<Queue, DeclareError> {
    let opened = queues.existing(name);
    let is_opened = |queue: &Queue| queues.room.lock().books.desk(queue.number).is_opened;
    match opened.filter(is_opened) {
        Some(queue) => Ok(queue),
        None => queues.queue_with(name, config).await,
    }
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
/// What is rejected is larger than it was, up to six times; it must fit into a segment as ever.
const REJECTED_BYTES_MAX: usize = 64 << 20;
