//! The operations of all members together: the face of the machine in `quorate_protocols::collectives`, and its clock.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::collectives::{CollectiveEnd, Collectives, Combine, Operation};
use quorate_protocols::{Input, Machine, Output, Outputs, Time, Wire};
use tokio::time::Instant;

use super::mail::{Mailbox, TOGETHER};
use super::{CollectiveError, Communicator};
use crate::socket::engine::Core;

/// What all do together. Every member must call the same operations in the same order.
impl Communicator {
    /// Returns when every member has come here.
    ///
    /// # Errors
    /// [`CollectiveError`], as in every operation: after it all later ones fail too.
    /// # Cancel safety
    /// An operation goes on when its future is dropped; this holds for all of them.
    pub async fn barrier(&self) -> Result<(), CollectiveError> {
        self.together(Operation::Barrier).await.map(drop)
    }

    /// The root's `body` for everybody; what others give is ignored.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn broadcast(&self, root: u32, body: Bytes) -> Result<Bytes, CollectiveError> {
        self.together(Operation::Broadcast { root, body }).await.map(first)
    }

    /// For each member its own of the root's `parts`; what others give is ignored.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn scatter(&self, root: u32, parts: Vec<Bytes>) -> Result<Bytes, CollectiveError> {
        self.together(Operation::Scatter { root, parts }).await.map(first)
    }

    /// Everybody's `body` for the root, in the order of ranks; nothing for others.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn gather(&self, root: u32, body: Bytes) -> Result<Vec<Bytes>, CollectiveError> {
        self.together(Operation::Gather { root, body }).await
    }

    /// Everybody's `body` for everybody, in the order of ranks.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn all_gather(&self, body: Bytes) -> Result<Vec<Bytes>, CollectiveError> {
        self.together(Operation::AllGather { body }).await
    }

    /// Everybody's `body` combined, in the order of ranks, for the root; nothing for others. `combine` must be
    /// associative.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn reduce<F>(
        &self,
        root: u32,
        body: Bytes,
        combine: F,
    ) -> Result<Option<Bytes>, CollectiveError>
    where
        F: Fn(&[u8], &[u8]) -> Bytes + Send + Sync + 'static,
    {
        let combine: Combine = Arc::new(combine);
        Ok(self.together(Operation::Reduce { root, body, combine }).await?.into_iter().next())
    }

    /// Everybody's `body` combined, for everybody.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn all_reduce<F>(&self, body: Bytes, combine: F) -> Result<Bytes, CollectiveError>
    where
        F: Fn(&[u8], &[u8]) -> Bytes + Send + Sync + 'static,
    {
        self.together(Operation::AllReduce { body, combine: Arc::new(combine) }).await.map(first)
    }

    /// The bodies of all members up to this one combined.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn scan<F>(&self, body: Bytes, combine: F) -> Result<Bytes, CollectiveError>
    where
        F: Fn(&[u8], &[u8]) -> Bytes + Send + Sync + 'static,
    {
        self.together(Operation::Scan { body, combine: Arc::new(combine) }).await.map(first)
    }

    /// From every member the part that it has for this one, in the order of ranks.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub async fn all_to_all(&self, parts: Vec<Bytes>) -> Result<Vec<Bytes>, CollectiveError> {
        self.together(Operation::AllToAll { parts }).await
    }

    async fn together(&self, operation: Operation) -> Result<Vec<Bytes>, CollectiveError> {
        let number = {
            let mut mail = self.mail.mail();
            let number = mail.operations;
            mail.operations += 1;
            mail.enders.insert(number, None);
            number
        };
        // Takes the place back when the caller does not wait for the end.
        let _place = Place { mail: &self.mail, number };
        self.mail.step(&self.owner.core, Input::Command(operation));
        poll_fn(|cx| {
            let mut mail = self.mail.mail();
            if let Some(result) = mail.ends.remove(&number) {
                return Poll::Ready(result);
            }
            mail.enders.insert(number, Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

/// The place of a caller among those who wait for operations.
struct Place<'a> {
    mail: &'a Mailbox,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut mail = self.mail.mail();
        mail.enders.remove(&self.number);
        mail.ends.remove(&self.number);
    }
}

impl Mailbox {
    /// Gives the machine of the operations one input and does what it says.
    pub(super) fn step(&self, core: &Core, input: Input<Collectives>) {
        let (sends, wakers) = {
            let mut mail = self.mail();
            let mail = &mut *mail;
            let mut outputs = Outputs::new();
            mail.machine.handle(Time::ZERO + self.began.elapsed(), input, &mut outputs);
            let (mut sends, mut wakers) = (Vec::new(), Vec::new());
            for output in outputs.drain() {
                match output {
                    Output::Send { to, message, .. } => {
                        let body = message.to_bytes();
                        for to in to.as_slice() {
                            let link = mail.links.get(to.node as usize).copied().flatten();
                            sends.extend(link.map(|link| (link, body.clone())));
                        }
                    }
                    Output::Event(CollectiveEnd { number, result }) => {
                        if let Some(waker) = mail.enders.get_mut(&number) {
                            wakers.extend(waker.take());
                            mail.ends.insert(number, result);
                        }
                    }
                    Output::Persist(()) | Output::Barrier => {}
                }
            }
            (sends, wakers)
        };
        for (link, body) in sends {
            self.post(core, link, TOGETHER, 0, 0, body);
        }
        wakers.into_iter().for_each(Waker::wake);
        self.chores.notify_one();
    }

    /// The communicator's task: the clock of the operations, and the members that do not come back.
    pub(super) async fn work(&self, core: &Core) {
        loop {
            let mut changed = pin!(core.changed.notified());
            changed.as_mut().enable();
            self.find_links(core);
            let now = Instant::now();
            let (deadline, given_up) = {
                let mut mail = self.mail();
                let machine = mail.machine.deadline();
                let machine = machine.map(|at| self.began + at.since(Time::ZERO));
                let late = mail.gone.iter().find(|(_, since)| **since + GRACE <= now).map(|(rank, _)| *rank);
                if let Some(rank) = late {
                    mail.gone.remove(&rank);
                }
                let returning = mail.gone.values().map(|since| *since + GRACE).min();
                (machine.into_iter().chain(returning).min(), late)
            };
            if let Some(rank) = given_up {
                self.step(core, Input::Command(Operation::GiveUp { rank }));
                continue;
            }
            let sleeping = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.chores.notified() => {}
                () = changed => {}
                () = sleeping => self.step(core, Input::Tick),
            }
        }
    }
}

fn first(items: Vec<Bytes>) -> Bytes {
    items.into_iter().next().unwrap_or_default()
}

/// How long a member whose link was lost may take to come back before the operations give it up.
const GRACE: Duration = Duration::from_secs(2);
