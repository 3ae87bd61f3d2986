//! The sending side of a channel: the transmission queue as the machine wants it, read, dropped from, and rid of what cannot go.

use std::sync::Arc;

use quorate_journal::AppendError;
use quorate_protocols::transfer::{Command, Item, Transfer};

use super::super::books::Unit;
use super::super::error::QueueError;
use super::super::face::{Queue, Queues};
use super::super::message::{DeadReason, MessageId};
use super::super::room::wall_now;
use super::super::view::{Standing, Start};
use super::super::work::OWN_STATE;
use super::BORN;
use super::channels::{Desk, Outcome, STORE_AGAIN, unwrapped};
use super::envelope::Envelope;
use crate::driver::Handle;

/// A transmission queue and who serves it.
pub(super) struct Line {
    pub(super) to: u64,
    pub(super) queue: Queue,
    pub(super) queues: Queues,
    pub(super) undelivered: u32,
    pub(super) handle: Arc<Handle<Transfer>>,
    pub(super) desk: Arc<Desk>,
}

/// Reads a transmission queue for the machine, and drops what has arrived, until the queues are closed.
pub(super) async fn forward(line: Line) {
    let Line { to, queue, handle, desk, .. } = &line;
    let to = *to;
    let (reading, settling) = {
        let mut state = desk.lock();
        let outgoing = state.outgoing.entry(to).or_default();
        (outgoing.reading.clone(), outgoing.settling.clone())
    };
    let reads = async {
        loop {
            if handle.command(Command::Offer { to }).await.is_err() {
                return;
            }
            loop {
                let wish = desk.lock().outgoing.entry(to).or_default().fetch.take();
                if let Some((after, bytes_max)) = wish {
                    let items = loop {
                        match read(queue, after, bytes_max) {
                            Ok(items) => break items,
                            Err(error) if is_over(&error) => return,
                            Err(error) => later(to, &error).await,
                        }
                    };
                    if handle.command(Command::Fetched { to, after, items }).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = reading.notified() => {}
                    () = queue.arrivals() => break,
                }
            }
        }
    };
    let drops = async {
        loop {
            settling.notified().await;
            let (settled, large, fork) = {
                let mut state = desk.lock();
                let outgoing = state.outgoing.entry(to).or_default();
                (outgoing.settled.take(), outgoing.large.take(), outgoing.fork.take())
            };
            if let Some(through) = settled {
                let next = MessageId::from_u64(through.saturating_add(1));
                while let Err(error) = queue.seek(Start::At(next)).await {
                    if is_over(&error) {
                        return;
                    }
                    later(to, &error).await;
                }
            }
            let answers = [
                match large {
                    Some(number) => line.set_aside(number).await.map(Some),
                    None => Ok(None),
                },
                match fork {
                    Some(above) => line.bear(above).await.map(Some),
                    None => Ok(None),
                },
            ];
            for answer in answers {
                let Ok(answer) = answer else { return };
                if let Some(command) = answer
                    && handle.command(command).await.is_err()
                {
                    return;
                }
            }
        }
    };
    tokio::join!(reads, drops);
}

/// The queues are closed, or cannot be used any more: the next life goes on.
struct Over;

impl Line {
    /// A message that the peer cannot take goes to the undelivered ones here.
    async fn set_aside(&self, number: u64) -> Result<Command, Over> {
        let id = MessageId::from_u64(number);
        loop {
            let views = match self.queue.browse(Start::At(id), 1) {
                Ok(views) => views,
                Err(error) if is_over(&error) => return Err(Over),
                Err(error) => {
                    later(self.to, &error).await;
                    continue;
                }
            };
            let there = views.into_iter().find(|view| view.id == id && view.standing != Standing::Kept);
            // Nothing is there any more when this was asked for twice.
            let Some(view) = there else { break };
            let message = match Envelope::decode(view.payload.clone()) {
                Ok(envelope) => unwrapped(&envelope.payload),
                Err(_) => unwrapped(&view.payload),
            };
            let now = self.queue.room.now();
            let (from, dead) = ((self.queue.number, id), (self.undelivered, &message));
            let mut is_full = false;
            let stored = self.queue.room.sweep(|books| {
                let unit = books.plan_aside(now, from, dead, DeadReason::TooLarge);
                unit.unwrap_or_else(|_| {
                    is_full = true;
                    Unit::of(Vec::new())
                })
            });
            let stored = match stored {
                Ok(stored) => stored.await.unwrap_or(Err(QueueError::Closed)),
                Err(error) => Err(error),
            };
            match stored {
                Ok(()) if !is_full => break,
                // Until somebody has made room there.
                Ok(()) => tokio::time::sleep(STORE_AGAIN).await,
                Err(error) if is_over(&error) => return Err(Over),
                Err(error) => later(self.to, &error).await,
            }
        }
        Ok(Command::SetAside { to: self.to, number })
    }

    /// The peer is told another birth from now on.
    async fn bear(&self, above: u64) -> Result<Command, Over> {
        let birth = wall_now().as_nanos().max(above.saturating_add(1));
        loop {
            let mut work = self.queues.own_work();
            work.set(format!("{OWN_STATE}{BORN}{}", self.to), birth.to_le_bytes().to_vec());
            match work.commit().await.map_err(Outcome::of) {
                Ok(_) => return Ok(Command::Born { to: self.to, birth }),
                Err(Outcome::Never(_)) => return Err(Over),
                Err(_) => tokio::time::sleep(STORE_AGAIN).await,
            }
        }
    }
}

/// The queues are closed, or their journal has failed.
fn is_over(error: &QueueError) -> bool {
    use AppendError::{Closed, Poisoned};
    matches!(error, QueueError::Closed | QueueError::Journal(Closed | Poisoned(_)))
}

/// The disk is full, for one: it may not be soon.
async fn later(to: u64, error: &QueueError) {
    tracing::warn!(peer = to, %error, "the messages for a peer cannot be seen to now");
    tokio::time::sleep(STORE_AGAIN).await;
}

/// The messages behind a number, about so many bytes.
fn read(queue: &Queue, after: u64, bytes_max: usize) -> Result<Vec<Item>, QueueError> {
    let mut items: Vec<Item> = Vec::new();
    let (mut after, mut bytes) = (after, 0);
    while bytes < bytes_max {
        let views = queue.browse(Start::At(MessageId::from_u64(after.saturating_add(1))), READ_AT_ONCE)?;
        let Some(last) = views.last() else { break };
        after = last.id.as_u64();
        for view in views.into_iter().filter(|view| view.standing != Standing::Kept) {
            bytes += view.payload.len();
            items.push(Item { number: view.id.as_u64(), body: view.payload });
            if bytes >= bytes_max {
                break;
            }
        }
    }
    Ok(items)
}

/// Messages that are read under one lock.
const READ_AT_ONCE: usize = 64;
