//! The part of a superserver that lives in the service's process.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::control::{Control, ControlServer, SERVICE, Staying, Ticket};
use super::{HostError, names};
use crate::naming::{Entry, Names, Registration};
use crate::node::Node;
use crate::rpc::Serving;

/// Something that a process offers at the directory of its host, whoever has started the process.
///
/// A superserver that has started it may tell it to go: [`retired`](Self::retired) returns when it has. Dropping the
/// handle withdraws what is offered and stops serving it at once.
pub struct Tenant {
    retired: watch::Receiver<bool>,
    task: AbortHandle,
    _control: Option<Serving>,
}

impl Tenant {
    /// Offers what is served under `name`, at the [directory of this host](super::names) and with the addresses of
    /// `node`. Returns when it is registered: from then on clients come.
    ///
    /// # Errors
    /// [`HostError`]; nothing is offered then, and `serving` has ended.
    /// # Cancel safety
    /// Dropping the future offers nothing, and ends `serving`.
    pub async fn offer(node: &Node, name: &str, serving: Serving) -> Result<Self, HostError> {
        Self::offer_at(node, &names(node).await?, name, serving).await
    }

    /// As [`offer`](Self::offer), at a directory of the caller's choice.
    ///
    /// # Errors
    /// [`HostError`]; nothing is offered then, and `serving` has ended.
    /// # Cancel safety
    /// Dropping the future offers nothing, and ends `serving`.
    pub async fn offer_at(
        node: &Node,
        names: &Names,
        name: &str,
        serving: Serving,
    ) -> Result<Self, HostError> {
        let serving = Arc::new(serving);
        let mut entry = Entry::at(&node.addresses());
        let (wanted, mut wants) = watch::channel(false);
        let ticket = Ticket::of_this_process()?;
        let control = match ticket {
            Some(ticket) => {
                let (key, value) = ticket.attribute();
                entry = entry.with(key, value);
                let landlord = Landlord { ticket, serving: Arc::clone(&serving), wanted };
                Some(node.serve(SERVICE, ControlServer::new(landlord))?)
            }
            None => None,
        };
        let registration = names.register(name, entry).await?;
        let (done, retired) = watch::channel(false);
        let task = node.spawn(async move {
            if wants.wait_for(|wanted| *wanted).await.is_err() {
                // Nobody can ever want it: it goes on until the handle is dropped.
                pending::<()>().await;
            }
            retire(registration, &serving).await;
            done.send_replace(true);
            // What still comes is refused until the process ends.
            pending::<()>().await;
        });
        Ok(Self { retired, task, _control: control })
    }

    /// Returns when the superserver wanted this process to go, and all that was called has been answered: it is time to
    /// shut the node down and to end. Never returns when no superserver has started the process.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn retired(&self) {
        // The task lives as long as the handle, or as the node's runtime.
        if self.retired.clone().wait_for(|retired| *retired).await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // It holds the registration and the service.
        self.task.abort();
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("is_retired", &*self.retired.borrow()).finish_non_exhaustive()
    }
}

/// Obeys the superserver.
struct Landlord {
    ticket: Ticket,
    serving: Arc<Serving>,
    wanted: watch::Sender<bool>,
}

impl Control for Landlord {
    async fn retire(&self, secret: u64, unless_active_since: Option<u64>) -> Result<(), Staying> {
        if !self.ticket.admits(secret) {
            return Err(Staying::Stranger);
        }
        let stats = self.serving.stats();
        let activity = stats.requests.executed + stats.executed_here;
        let is_idle = stats.executing == 0 && unless_active_since == Some(activity);
        if !*self.wanted.borrow() && unless_active_since.is_some() && !is_idle {
            return Err(Staying::Active { activity });
        }
        // What is called between the look and this is executed like any other call: going begins with waiting for it.
        self.wanted.send_replace(true);
        Ok(())
    }
}

/// Goes without losing anything.
async fn retire(registration: Registration, serving: &Serving) {
    // First nobody new is sent here; who comes meanwhile is served. Without an answer of the directory the lease ends it.
    if let Err(error) = registration.withdraw().await {
        tracing::info!(%error, "the directory does not withdraw what is offered");
    }
    // Then whoever comes is refused and asks the directory again. The superserver's patience is the limit.
    serving.drain(DRAIN_MAX).await;
    // Requests that were on their way are refused too, as long as any come.
    let until = Instant::now() + LINGER_MAX;
    let refused = || serving.stats().requests.refused;
    let mut before = refused();
    loop {
        tokio::time::sleep(LINGER).await;
        let now = refused();
        if now == before || Instant::now() >= until {
            return;
        }
        before = now;
    }
}

/// How long what executes may take to end. A superserver is less patient.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

/// So long nobody must have come before the process goes: many times what a request takes on its way.
const LINGER: Duration = Duration::from_millis(500);

/// Who comes again and again does not ask the directory, and is no reason to stay.
const LINGER_MAX: Duration = Duration::from_secs(5);
