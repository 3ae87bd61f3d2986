//! This crate's own queues as an engine: in memory, or in a directory.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

#[cfg(unix)]
use quorate_journal::FileStorage;
use quorate_journal::{AppendError, Config, MemoryStorage};

use super::super::config::QueueConfig;
use super::super::delivery::Delivery;
use super::super::error::{PutError, QueueError, QueuesOpenError};
use super::super::face::{Queue, Queues};
use super::super::message::{Durability, Message};
use super::{Abilities, Doing, Engine, EngineConfig, EngineError, EngineReceipt, Held, Letter, Taken};

pub(super) struct Embedded {
    queues: Queues,
    durability: Durability,
    open: Mutex<BTreeMap<String, (Queue, Duration)>>,
}

impl Embedded {
    pub(super) fn memory() -> Result<Self, EngineError> {
        let queues = Queues::open(MemoryStorage::new(), Config::new(OWNER)).map_err(refused)?;
        // Nothing outlives the process, whatever is asked for.
        Ok(Self { queues, durability: Durability::Memory, open: Mutex::default() })
    }

    #[cfg(unix)]
    pub(super) async fn journal(url: &str) -> Result<Self, EngineError> {
        let wrong = |reason| EngineError::Url { reason };
        let path = url.strip_prefix("journal://").ok_or(wrong("of a journal begins with `journal://`"))?;
        let (path, owner) = match path.split_once("?node=") {
            Some((path, owner)) => (path, owner.parse().map_err(|_| wrong("has no number behind `node=`"))?),
            None => (path, OWNER),
        };
        if !path.starts_with('/') {
            return Err(wrong("of a journal has an absolute path: `journal:///directory`"));
        }
        let path = std::path::PathBuf::from(path);
        let opened = tokio::task::spawn_blocking(move || {
            let storage = FileStorage::open(path).map_err(QueuesOpenError::Journal)?;
            Queues::open(storage, Config::new(owner))
        });
        let queues = opened.await.map_err(|_| EngineError::Closed)?.map_err(refused)?;
        Ok(Self { queues, durability: Durability::Synced, open: Mutex::default() })
    }

    fn queue(&self, name: &str) -> Result<(Queue, Duration), EngineError> {
        // Nothing panics while it is held.
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(name).cloned().ok_or(EngineError::Closed)
    }
}

impl Engine for Embedded {
    fn abilities(&self) -> Abilities {
        Abilities::all(self.durability)
    }

    fn declare<'a>(&'a self, queue: &'a str, config: &'a EngineConfig) -> Doing<'a, ()> {
        Box::pin(async move {
            let settings = QueueConfig::new()
                .lease(config.lease)
                .deliveries_max(config.deliveries_max)
                .message_bytes_max(config.message_bytes_max);
            let opened = self.queues.queue_with(queue, settings).await?;
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.insert(queue.to_owned(), (opened, config.lease));
            Ok(())
        })
    }

    fn put<'a>(&'a self, queue: &'a str, letter: Letter) -> Doing<'a, EngineReceipt> {
        Box::pin(async move {
            let Letter { payload, key, name, priority, delay, expires_after, durability } = letter;
            let message = Message { payload, key, priority, delay, expires_after, name, durability };
            let receipt = self.queue(queue)?.0.put(message).await.map_err(put_error)?;
            Ok(EngineReceipt {
                durability: receipt.durability.min(self.durability),
                id: Some(receipt.id.as_u64()),
                is_repeated: receipt.is_repeated,
            })
        })
    }

    fn take<'a>(&'a self, queue: &'a str, within: Duration) -> Doing<'a, Option<Taken>> {
        Box::pin(async move {
            let (queue, lease) = self.queue(queue)?;
            let delivery = queue.get(within).await.map_err(queue_error)?;
            Ok(delivery.map(|delivery| Taken {
                payload: delivery.payload().clone(),
                key: delivery.key().cloned(),
                deliveries: delivery.deliveries(),
                id: Some(delivery.id().as_u64()),
                held: Box::new(InHand { delivery, lease }),
            }))
        })
    }

    fn close(&self) -> Doing<'_, ()> {
        Box::pin(async move {
            let left = self.queues.close().await;
            match left.failure {
                Some(failure) => Err(EngineError::Refused(failure.into())),
                None => Ok(()),
            }
        })
    }
}

struct InHand {
    delivery: Delivery,
    lease: Duration,
}

impl Held for InHand {
    fn ack(self: Box<Self>) -> Doing<'static, ()> {
        Box::pin(async move { self.delivery.ack().await.map_err(queue_error) })
    }

    fn nack(self: Box<Self>, delay: Duration) -> Doing<'static, ()> {
        Box::pin(async move { self.delivery.nack(delay).map_err(queue_error) })
    }

    fn renew(&self) -> Doing<'_, ()> {
        Box::pin(async move { self.delivery.renew(self.lease).map_err(queue_error) })
    }
}

fn refused(error: QueuesOpenError) -> EngineError {
    EngineError::Refused(Box::new(error))
}

fn put_error(error: PutError) -> EngineError {
    match error {
        PutError::Journal(AppendError::Closed) => EngineError::Closed,
        PutError::Journal(AppendError::Poisoned(_)) => EngineError::Unknown(Box::new(error)),
        PutError::TooLarge { size, limit } => EngineError::TooLarge { size, limit },
        error if error.is_retryable() => EngineError::Unreachable(Box::new(error)),
        error => EngineError::Refused(Box::new(error)),
    }
}

fn queue_error(error: QueueError) -> EngineError {
    match error {
        QueueError::LeaseLost => EngineError::LeaseLost,
        QueueError::Closed => EngineError::Closed,
        QueueError::Journal(AppendError::Poisoned(_)) => EngineError::Unknown(Box::new(error)),
        QueueError::Journal(ref told) if told.is_retryable() => EngineError::Unreachable(Box::new(error)),
        error => EngineError::Refused(Box::new(error)),
    }
}

/// Who a directory belongs to where the URL does not say.
const OWNER: u64 = 1;
