//! The broker's task: takes, has decided, stores; and holds what cannot be stored now.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quorate_transports::NodeId;

use super::face::{Aim, BrokerStats, Current, Inner};
use super::machine::{Decision, Incoming, Outgoing, Reason};
use super::rejected::Rejected;
use crate::queue::config::WhenFull;
use crate::queue::delivery::Delivery;
use crate::queue::error::{DeclareError, PutError, QueueError, WorkError};
use crate::queue::face::Queue;
use crate::queue::manager::RemoteQueue;
use crate::queue::message::Message;

/// Why nothing was done.
pub(super) enum Trouble {
    /// A queue is full, or the disk is: soon it may not be.
    Later(String),
    /// The queues are closed, or their journal has failed.
    Over(String),
}

/// What is to be stored of one message.
struct Decided {
    results: Vec<(Aim, Message)>,
    is_rejected: bool,
}

pub(super) async fn run(inner: Arc<Inner>) {
    // Taken and not yet stored. It stays taken while there is no room for what it becomes: giving it back would count as a
    // delivery that failed.
    let mut held: VecDeque<Delivery> = VecDeque::new();
    loop {
        if held.is_empty() {
            let taken = tokio::select! {
                biased;
                () = inner.stopping.notified() => return,
                taken = inner.input.get_many(BATCH, Duration::MAX) => taken,
            };
            match taken {
                Ok(deliveries) => held = deliveries.into(),
                Err(error) if is_closed(&error) => {
                    tracing::debug!(queue = inner.input.name(), %error, "the broker ends");
                    return;
                }
                Err(error) => {
                    tracing::warn!(queue = inner.input.name(), %error, "the broker pauses");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
            continue;
        }
        match inner.carry_out(&mut held).await {
            Ok(()) => {}
            Err(Trouble::Later(error)) => {
                tracing::debug!(queue = inner.input.name(), error, "the broker waits");
                tokio::select! {
                    biased;
                    () = inner.stopping.notified() => return,
                    () = tokio::time::sleep(TRY_AGAIN) => {}
                }
                held.retain(|delivery| delivery.renew(inner.lease).is_ok());
            }
            Err(Trouble::Over(error)) => {
                tracing::debug!(queue = inner.input.name(), error, "the broker ends");
                return;
            }
        }
    }
}

impl Inner {
    /// Decides and stores the first of what is held, in one unit of work; what is stored is held no more.
    async fn carry_out(&self, held: &mut VecDeque<Delivery>) -> Result<(), Trouble> {
        let mut current = self.current.lock().await;
        let most = if current.alone > 0 { 1 } else { held.len() };
        let mut done = BrokerStats::default();
        let mut work = self.queues.work();
        work.when_full(WhenFull::Reject);
        let (mut count, mut bytes) = (0_usize, 0);
        for delivery in held.iter().take(most) {
            let Decided { results, is_rejected } = self.decide(&mut current, delivery).await?;
            bytes += results.iter().map(|(_, message)| message.payload.len()).sum::<usize>();
            if count > 0 && bytes > BATCH_BYTES_MAX {
                break;
            }
            count += 1;
            (done.taken, done.rejected) = (done.taken + 1, done.rejected + u64::from(is_rejected));
            done.sent += if is_rejected { 0 } else { results.len() as u64 };
            for (aim, message) in results {
                match aim {
                    Aim::Here(queue) => work.put(&queue, message),
                    Aim::There(queue) => work.send(&queue, message),
                };
            }
        }
        let last = held.get(count.saturating_sub(1)).map(Delivery::id);
        for delivery in held.drain(..count) {
            work.ack(delivery);
        }
        let error = match work.commit_or_back().await {
            Ok(_) => {
                current.last = last;
                current.refused = None;
                current.alone = current.alone.saturating_sub(count);
                let mut stats = self.stats();
                stats.taken += done.taken;
                stats.sent += done.sent;
                stats.rejected += done.rejected;
                return Ok(());
            }
            Err((error, back)) => {
                back.into_iter().rev().for_each(|delivery| held.push_front(delivery));
                error
            }
        };
        self.stats().repeated += 1;
        match error {
            // One of them is somebody else's by now.
            WorkError::LeaseLost => {
                held.retain(|delivery| delivery.renew(self.lease).is_ok());
                Ok(())
            }
            WorkError::Put(PutError::Journal(error)) if !error.is_retryable() && is_end(&error) => {
                Err(Trouble::Over(error.to_string()))
            }
            // What there is no room for together may find some one by one.
            WorkError::Put(error) if error.is_retryable() => {
                current.alone = current.alone.max(if count > 1 { count } else { 0 });
                Err(Trouble::Later(error.to_string()))
            }
            error if count == 1 => {
                let before = current.refused.take().filter(|(id, ..)| Some(*id) == last);
                // A rejection that cannot be put either is put as it came.
                current.refused = last.map(|id| (id, told(&error), before.is_some()));
                Ok(())
            }
            _ => {
                current.alone = count;
                Ok(())
            }
        }
    }

    async fn decide(&self, current: &mut Current, delivery: &Delivery) -> Result<Decided, Trouble> {
        let refused = current.refused.as_ref().filter(|(id, ..)| *id == delivery.id());
        let is_bare = refused.is_some_and(|(.., is_twice)| *is_twice);
        let decision = match refused {
            Some((_, reason, _)) => Decision::Reject(Reason::Put { reason: reason.clone() }),
            None => current.machine.decide(&incoming(&self.input, delivery)),
        };
        let like = delivery.to_message();
        let outcome = match decision {
            Decision::Send(results) => self.aim(current, results).await.map_err(Trouble::of)?,
            Decision::Reject(reason) => Err(reason),
        };
        match outcome {
            Ok(results) => {
                let message = |payload| Message { payload, name: None, ..like.clone() };
                let results = results.into_iter().map(|(aim, payload)| (aim, message(payload))).collect();
                Ok(Decided { results, is_rejected: false })
            }
            Err(reason) => {
                tracing::warn!(queue = self.input.name(), id = %delivery.id(), %reason, "rejected");
                let revision = current.machine.base().revision;
                let mut reason = reason.to_string();
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                let rejected = Rejected { reason, revision, payload: like.payload.clone() };
                let payload = if is_bare { like.payload.clone() } else { rejected.write() };
                // Its time does not run out there.
                let message = Message { payload, name: None, expires_after: None, ..like };
                Ok(Decided { results: vec![(Aim::Here(self.rejected.clone()), message)], is_rejected: true })
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

impl Trouble {
    fn of(error: DeclareError) -> Self {
        match &error {
            DeclareError::Journal(journal) if is_end(journal) => Self::Over(error.to_string()),
            _ => Self::Later(error.to_string()),
        }
    }
}

fn is_end(error: &quorate_journal::AppendError) -> bool {
    use quorate_journal::AppendError::{Closed, Poisoned};
    matches!(error, Closed | Poisoned(_))
}

fn is_closed(error: &QueueError) -> bool {
    match error {
        QueueError::Closed => true,
        QueueError::Journal(error) => is_end(error),
        _ => false,
    }
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

/// Messages that are stored together: one sync for all of them.
const BATCH: usize = 64;
/// Results beyond which no further message is stored together with those before it.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// A reason may speak of what is in the message, which is beside it.
const REASON_BYTES_MAX: usize = 1024;
/// Queues that are remembered; content may name any that is there.
const QUEUES_MAX: usize = 4096;
/// How long a full queue is left alone.
const TRY_AGAIN: Duration = Duration::from_millis(20);
