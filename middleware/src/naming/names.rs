//! What a process holds to register and to look up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::book::{LEASE_MAX, LEASE_MIN};
use super::entry::{Entry, Found, Query};
use super::error::{NameError, NamesError};
use super::keeper::Keeper;
use super::line::Line;
use super::service::{PATIENCE_MAX, Question, Seen};
use crate::node::{Address, Node};

/// How long one question of a [`Watch`] waits for news before it is asked again: so late a replica that went without a
/// word is noticed.
const WATCH_PATIENCE: Duration = Duration::from_secs(5);

/// How long a replica that lags behind may take to catch up before another one is asked.
const LAG_PATIENCE: Duration = Duration::from_secs(1);

/// How a handle behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamesOptions {
    /// How long what is registered outlives its owner. Renewed three times as often. Default 10 s; 1 s to 1 h. Shorter
    /// finds the dead sooner, and loses names to pauses of a process or of its network.
    pub lease: Duration,
    /// How long a request tries one replica after the other before it fails. Default 10 s.
    pub deadline: Duration,
}

impl Default for NamesOptions {
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), deadline: Duration::from_secs(10) }
    }
}

/// A handle to a directory. Cheap to clone; clones share one lease. When the last of them and of its registrations and
/// watches is dropped, what is registered is withdrawn in the background; [`close`](Self::close) waits for that.
#[derive(Clone)]
pub struct Names {
    owner: Arc<Owner>,
}

/// Ends the keeper with the last handle.
struct Owner {
    keeper: Arc<Keeper>,
    options: NamesOptions,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.keeper.close();
    }
}

impl Names {
    /// A handle to the directory whose replicas the nodes at `servers` serve, with default options. It asks the first
    /// one that answers, and goes on to the next when it does not answer any more. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`NamesError::Unreachable`] when none of them answers, [`NamesError::NoAddress`] when there is none.
    pub async fn connect(node: &Node, servers: &[Address]) -> Result<Self, NamesError> {
        Self::connect_with(node, servers, NamesOptions::default()).await
    }

    /// As [`connect`](Self::connect), with options of the caller's choice.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and [`NameError::Lease`] when no directory grants such a lease.
    pub async fn connect_with(
        node: &Node,
        servers: &[Address],
        options: NamesOptions,
    ) -> Result<Self, NamesError> {
        let lease = options.lease;
        if !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
            return Err(NamesError::Refused(NameError::Lease { lease, min: LEASE_MIN, max: LEASE_MAX }));
        }
        let keeper = Arc::new(Keeper::new(Line::new(node, servers), lease));
        tokio::spawn(Arc::clone(&keeper).run());
        let names = Self { owner: Arc::new(Owner { keeper, options }) };
        // Nothing has an empty name: the answer is short.
        names.lookup(&Query::named("")).await?;
        Ok(names)
    }

    /// Registers `entry` under `name`, beside what others registered there, and keeps it registered until the returned
    /// handle is dropped. Returns when it is in the directory, at all its replicas that go on.
    ///
    /// # Errors
    /// [`NamesError`]; nothing stays registered then.
    /// # Cancel safety
    /// Dropping the future withdraws what it may have registered.
    pub async fn register(&self, name: impl Into<String>, entry: Entry) -> Result<Registration, NamesError> {
        let name = name.into();
        entry.check(&name).map_err(NamesError::Refused)?;
        let (number, status) = self.owner.keeper.add(name, entry)?;
        let mut registration = Registration { owner: Arc::clone(&self.owner), number, status };
        registration.settled().await?;
        Ok(registration)
    }

    /// What `query` finds, at most 256 registrations. Never older than what this handle has seen before; what others
    /// registered a moment ago may be missing.
    ///
    /// # Errors
    /// [`NamesError`].
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn lookup(&self, query: &Query) -> Result<Vec<Found>, NamesError> {
        self.look(query, None, LAG_PATIENCE, false).await.map(|(found, _)| found)
    }

    /// As [`lookup`](Self::lookup), of a state that has everything that the directory acknowledged to anybody before
    /// the call (linearizable). Costs a round among the replicas, and waits while they have no quorum.
    ///
    /// # Errors
    /// [`NamesError`].
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn lookup_latest(&self, query: &Query) -> Result<Vec<Found>, NamesError> {
        self.look(query, None, LAG_PATIENCE, true).await.map(|(found, _)| found)
    }

    /// What is registered under `name`, waiting at most `patience` (and at most 30 s) until something is. The directory
    /// of a superserver starts what is to be there; no time to wait starts nothing.
    ///
    /// # Errors
    /// [`NamesError`]; [`NameError::NotRegistered`] when nobody has registered it in time, and
    /// [`NameError::NotStarted`] when it is known that nobody will.
    /// # Cancel safety
    /// Dropping the future changes nothing; what is being started goes on to be.
    pub async fn find(&self, name: &str, patience: Duration) -> Result<Vec<Found>, NamesError> {
        self.find_or(name, patience, false).await
    }

    /// As [`find`](Self::find), and waits only for what the directory of a superserver starts; any other one says at once
    /// what is there.
    pub(super) async fn start(&self, name: &str, patience: Duration) -> Result<Vec<Found>, NamesError> {
        self.find_or(name, patience, true).await
    }

    async fn find_or(
        &self,
        name: &str,
        patience: Duration,
        is_for_starter: bool,
    ) -> Result<Vec<Found>, NamesError> {
        let line = &self.owner.keeper.line;
        let seen = line.seen();
        let patience = patience.min(PATIENCE_MAX);
        let query = Query::named(name);
        let question =
            Question { query, seen, differs_from: None, patience, is_latest: false, is_for_starter };
        let answer = line.find(question, self.owner.options.deadline).await?;
        Ok(answer.found.into_iter().map(Found::from).collect())
    }

    /// Follows what `query` finds.
    pub fn watch(&self, query: Query) -> Watch {
        Watch { names: self.clone(), query, digest: None }
    }

    /// Withdraws everything that is registered through this handle and its clones, and ends the lease. Tells whether
    /// the directory took it before `deadline`, or had nothing to take; otherwise the lease ends it. The handle
    /// registers nothing any more in any case; it can still look.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn close(&self, deadline: Duration) -> bool {
        self.owner.keeper.close();
        tokio::time::timeout(deadline, self.owner.keeper.wait_clean()).await.unwrap_or(false)
    }

    pub(super) fn node(&self) -> &Node {
        self.owner.keeper.line.node()
    }

    async fn look(
        &self,
        query: &Query,
        differs_from: Option<u64>,
        patience: Duration,
        is_latest: bool,
    ) -> Result<(Vec<Found>, u64), NamesError> {
        let line = &self.owner.keeper.line;
        let seen = line.seen();
        let query = query.clone();
        let question = Question { query, seen, differs_from, patience, is_latest, is_for_starter: false };
        let answer = line.look(question, self.owner.options.deadline).await?;
        Ok((answer.found.into_iter().map(Found::from).collect(), answer.digest))
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { life, version } = self.owner.keeper.line.seen();
        f.debug_struct("Names").field("life", &life).field("version", &version).finish_non_exhaustive()
    }
}

/// How it stands with a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Not in the directory yet, or, when the directory could not be reached for as long as the lease is, perhaps no
    /// more. It is being seen to.
    Pending,
    /// In the directory.
    Registered {
        /// As [`Found::version`].
        version: u64,
    },
    /// The directory refused it; it is not registered until it is [replaced](Registration::update).
    Refused(NameError),
}

/// Something that is registered. Dropping it withdraws it in the background.
pub struct Registration {
    owner: Arc<Owner>,
    number: u64,
    status: watch::Receiver<Status>,
}

impl Registration {
    /// How it stands now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until it stands otherwise than when this was last called, or the registration was made.
    ///
    /// # Errors
    /// [`NamesError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Result<Status, NamesError> {
        self.status.changed().await.map_err(|_| NamesError::Closed)?;
        Ok(self.status.borrow_and_update().clone())
    }

    /// Replaces what is registered, or tries again what was refused. Returns when the directory has it.
    ///
    /// # Errors
    /// [`NamesError`]. After [`NamesError::Unreachable`] it is still being seen to.
    /// # Cancel safety
    /// Dropping the future does not take the wish back.
    pub async fn update(&mut self, entry: Entry) -> Result<(), NamesError> {
        self.owner.keeper.replace(self.number, entry)?;
        self.settled().await
    }

    /// Takes it out of the directory. Returns when it is out.
    ///
    /// # Errors
    /// [`NamesError::Unreachable`], and [`NamesError::Closed`] when the handle or the node ended without the directory
    /// taking notice: it may have it until the lease ends.
    /// # Cancel safety
    /// Dropping the future leaves the rest to the background.
    pub async fn withdraw(mut self) -> Result<(), NamesError> {
        self.owner.keeper.remove(self.number);
        let is_out = async {
            while self.status.changed().await.is_ok() {}
            self.owner.keeper.wait_clean().await
        };
        let deadline = self.owner.options.deadline;
        match tokio::time::timeout(deadline, is_out).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NamesError::Closed),
            Err(_) => Err(self.owner.keeper.line.unreachable(deadline)),
        }
    }

    /// Waits until the directory has said yes or no.
    async fn settled(&mut self) -> Result<(), NamesError> {
        let deadline = self.owner.options.deadline;
        let settled = self.status.wait_for(|status| *status != Status::Pending);
        let status = match tokio::time::timeout(deadline, settled).await {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => return Err(NamesError::Closed),
            Err(_) => return Err(self.owner.keeper.line.unreachable(deadline)),
        };
        match status {
            Status::Refused(error) => Err(NamesError::Refused(error)),
            Status::Pending | Status::Registered { .. } => Ok(()),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.owner.keeper.remove(self.number);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// Follows what a query finds.
#[derive(Debug)]
pub struct Watch {
    names: Names,
    query: Query,
    digest: Option<u64>,
}

impl Watch {
    /// What the query finds: at once the first time, later when it differs from what was returned last. States in
    /// between may be skipped, the last one is not.
    ///
    /// # Errors
    /// [`NamesError`]. After [`NamesError::Unreachable`] it may be called again.
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call returns what this one would have.
    pub async fn next(&mut self) -> Result<Vec<Found>, NamesError> {
        loop {
            let (found, digest) = self.names.look(&self.query, self.digest, WATCH_PATIENCE, false).await?;
            if self.digest != Some(digest) {
                self.digest = Some(digest);
                return Ok(found);
            }
        }
    }
}
