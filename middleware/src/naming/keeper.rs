//! Keeps registered in the directory what its owner wants registered.
//!
//! Method      the owner's wishes are state, not messages: the keeper compares them with what it knows the directory to
//!             have and makes one change at a time, each numbered within the session, until nothing differs. When the
//!             session is lost nothing is known to be there, and the same comparison registers everything again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::book::{Change, SESSION_ENTRIES_MAX, SessionId};
use super::entry::Entry;
use super::error::{NameError, NamesError};
use super::line::Line;
use super::names::Status;
use super::service::DeskClient;

/// How long the directory is asked to forget the session of a handle that goes; the lease does it otherwise. Long enough
/// for two replicas that do not answer.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

pub(super) struct Keeper {
    pub(super) line: Line,
    lease: Duration,
    wishes: Mutex<Wishes>,
    wake: Notify,
    /// Set when the keeper has gone: whether the directory knows that nothing is to be registered any more.
    gone: watch::Sender<Option<bool>>,
}

#[derive(Default)]
struct Wishes {
    items: BTreeMap<u64, Item>,
    next: u64,
    is_closed: bool,
}

struct Item {
    name: String,
    wish: Wish,
    revision: u64,
    /// What the directory has, as far as is known.
    kept: Option<Kept>,
    /// Whether the directory ever had it.
    was_kept: bool,
    status: watch::Sender<Status>,
}

/// What is to become of an item.
enum Wish {
    /// To be registered, and to stay so.
    Keep(Entry),
    /// The directory has refused it; until it is replaced it is to be out.
    Refused,
    /// To be out, and forgotten.
    Forget,
}

#[derive(Clone, Copy)]
struct Kept {
    revision: u64,
    version: u64,
}

/// The lease that the directory gave.
struct Session {
    id: SessionId,
    /// The number of the last change.
    sequence: u64,
    /// When the last request left that the directory took as a renewal: the lease runs at least from then.
    renewed: Instant,
}

/// What is to be done next.
enum Step {
    Open,
    Put {
        number: u64,
        name: String,
        entry: Entry,
        revision: u64,
    },
    Remove {
        number: u64,
    },
    /// Ends the session; perhaps with something that is still registered in it.
    Close {
        is_empty: bool,
    },
    Rest,
    End,
}

impl Keeper {
    pub(super) fn new(line: Line, lease: Duration) -> Self {
        Self { line, lease, wishes: Mutex::default(), wake: Notify::new(), gone: watch::Sender::new(None) }
    }

    /// Wants `entry` registered.
    pub(super) fn add(
        &self,
        name: String,
        entry: Entry,
    ) -> Result<(u64, watch::Receiver<Status>), NamesError> {
        let mut wishes = self.lock();
        if wishes.is_closed {
            return Err(NamesError::Closed);
        }
        if wishes.items.len() >= SESSION_ENTRIES_MAX {
            return Err(NamesError::Refused(NameError::TooManyOfOne));
        }
        let (status, receiver) = watch::channel(Status::Pending);
        let number = wishes.next;
        wishes.next += 1;
        wishes.items.insert(
            number,
            Item { name, wish: Wish::Keep(entry), revision: 0, kept: None, was_kept: false, status },
        );
        drop(wishes);
        self.wake.notify_one();
        Ok((number, receiver))
    }

    /// Wants another entry registered in its place.
    pub(super) fn replace(&self, number: u64, entry: Entry) -> Result<(), NamesError> {
        let mut wishes = self.lock();
        let item = wishes.items.get_mut(&number).ok_or(NamesError::Closed)?;
        entry.check(&item.name).map_err(NamesError::Refused)?;
        item.wish = Wish::Keep(entry);
        item.revision += 1;
        item.status.send_replace(Status::Pending);
        drop(wishes);
        self.wake.notify_one();
        Ok(())
    }

    /// Wants it registered no more. The status ends when it is out.
    pub(super) fn remove(&self, number: u64) {
        if let Some(item) = self.lock().items.get_mut(&number) {
            item.wish = Wish::Forget;
        }
        self.wake.notify_one();
    }

    /// Wants nothing any more.
    pub(super) fn close(&self) {
        let mut wishes = self.lock();
        wishes.is_closed = true;
        wishes.items.clear();
        drop(wishes);
        self.wake.notify_one();
    }

    /// Tells whether the directory took what was withdrawn: of a keeper that was closed when it has gone, of another one
    /// at once.
    pub(super) async fn wait_clean(&self) -> bool {
        let mut gone = self.gone.subscribe();
        if !self.lock().is_closed {
            return true;
        }
        gone.wait_for(Option::is_some).await.is_ok_and(|is_clean| *is_clean == Some(true))
    }

    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keeper's task; ends some time after [`close`](Self::close), or with the node.
    pub(super) async fn run(self: Arc<Self>) {
        let is_clean = self.keep().await;
        self.gone.send_replace(Some(is_clean));
    }

    /// Keeps until there is nothing to be kept any more. Tells whether nothing is left in the directory.
    async fn keep(&self) -> bool {
        let mut session = None;
        let mut is_clean = true;
        loop {
            let step = self.lock().step(session.is_some());
            let done = match (step, &mut session) {
                (Step::End, _) => return is_clean,
                (Step::Rest, None) => {
                    self.wake.notified().await;
                    Ok(())
                }
                (Step::Rest, Some(session)) => self.rest(session).await,
                (Step::Close { is_empty }, _) => {
                    if let Some(Session { id, .. }) = session.take() {
                        // Whether it succeeds or not: the lease ends it too.
                        let closed = self.change(id, Change::Close, FAREWELL_MAX).await;
                        let ended =
                            matches!(closed, Ok(_) | Err(NamesError::Refused(NameError::SessionEnded)));
                        is_clean = is_empty || ended;
                    }
                    Ok(())
                }
                (Step::Open, _) => self.open().await.map(|opened| session = Some(opened)),
                (Step::Put { number, name, entry, revision }, Some(session)) => {
                    self.put(session, number, name, entry, revision).await
                }
                (Step::Remove { number }, Some(session)) => self.take_out(session, number).await,
                (Step::Put { .. } | Step::Remove { .. }, None) => Ok(()),
            };
            match done {
                Ok(()) => {}
                Err(NamesError::Refused(NameError::SessionEnded)) => {
                    tracing::info!("the lease in the directory has run out; everything is registered again");
                    session = None;
                    self.lock().all_is_lost();
                }
                Err(NamesError::Closed | NamesError::NoAddress) => {
                    self.close();
                    return session.is_none();
                }
                Err(error) => {
                    tracing::debug!(%error, "the directory does not take what is to be registered");
                    if let NamesError::Refused(_) = &error {
                        // It answers at once; there may be room later.
                        let _ = tokio::time::timeout(self.pace(), self.wake.notified()).await;
                    }
                    if session.as_ref().is_some_and(|session| session.renewed.elapsed() >= self.lease) {
                        self.lock().is_uncertain();
                    }
                }
            }
        }
    }

    async fn open(&self) -> Result<Session, NamesError> {
        let (node, lease) = (self.line.node(), self.lease);
        let identity = node.identity();
        let request = |client: DeskClient| {
            // Another one for every attempt: one that comes very late must not bring back a session that was closed,
            // and with it the changes that were numbered in it.
            let id = SessionId {
                node: identity.node.0,
                incarnation: identity.incarnation.0,
                number: node.fresh_number(),
            };
            async move { client.change(id, Change::Open { lease }).await.map(|seen| (id, seen)) }
        };
        let renewed = Instant::now();
        match self.line.ask(self.pace(), Duration::ZERO, request).await {
            Ok((id, seen)) => {
                self.line.saw(seen);
                Ok(Session { id, sequence: 0, renewed })
            }
            Err(error) => {
                if let NamesError::Refused(error) = &error {
                    self.lock().refuse_new(error);
                }
                Err(error)
            }
        }
    }

    async fn put(
        &self,
        session: &mut Session,
        number: u64,
        name: String,
        entry: Entry,
        revision: u64,
    ) -> Result<(), NamesError> {
        session.sequence += 1;
        let sent = Instant::now();
        let change = Change::Put { sequence: session.sequence, number, name, entry };
        match self.change(session.id, change, self.pace()).await {
            Ok(version) => {
                session.renewed = sent;
                self.lock().is_kept(number, revision, version);
                Ok(())
            }
            Err(NamesError::Refused(error)) if error != NameError::SessionEnded => {
                self.lock().refuse(number, error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn take_out(&self, session: &mut Session, number: u64) -> Result<(), NamesError> {
        session.sequence += 1;
        let sent = Instant::now();
        let change = Change::Remove { sequence: session.sequence, number };
        self.change(session.id, change, self.pace()).await?;
        session.renewed = sent;
        self.lock().is_out(number);
        Ok(())
    }

    /// Waits for a wish or for the time to renew, and renews.
    async fn rest(&self, session: &mut Session) -> Result<(), NamesError> {
        tokio::select! {
            () = self.wake.notified() => return Ok(()),
            () = tokio::time::sleep_until(session.renewed + self.pace()) => {}
        }
        let sent = Instant::now();
        let version = self.change(session.id, Change::Renew, self.pace()).await;
        if version.is_ok() {
            session.renewed = sent;
            self.lock().is_certain();
        }
        version.map(|_| ())
    }

    async fn change(&self, session: SessionId, change: Change, limit: Duration) -> Result<u64, NamesError> {
        let request = |client: DeskClient| {
            let change = change.clone();
            async move { client.change(session, change).await }
        };
        let seen = self.line.ask(limit, Duration::ZERO, request).await?;
        self.line.saw(seen);
        Ok(seen.version)
    }

    /// Three renewals a lease: two may be lost.
    fn pace(&self) -> Duration {
        self.lease / 3
    }
}

impl Wishes {
    fn step(&mut self, has_session: bool) -> Step {
        if !has_session {
            // What was never registered need not be taken out.
            self.items.retain(|_, item| !matches!(item.wish, Wish::Forget));
        }
        let is_refused = |item: &Item| item.kept.is_none() && matches!(item.wish, Wish::Refused);
        if self.items.values().all(is_refused) {
            return match (has_session, self.is_closed) {
                (true, is_closed) => Step::Close { is_empty: !is_closed },
                (false, true) => Step::End,
                (false, false) => Step::Rest,
            };
        }
        if !has_session {
            return Step::Open;
        }
        let step = self.items.iter().find_map(|(&number, item)| match &item.wish {
            Wish::Refused if item.kept.is_none() => None,
            Wish::Refused | Wish::Forget => Some(Step::Remove { number }),
            Wish::Keep(_) if item.is_kept() => None,
            Wish::Keep(entry) => {
                let (name, entry) = (item.name.clone(), entry.clone());
                Some(Step::Put { number, name, entry, revision: item.revision })
            }
        });
        step.unwrap_or(Step::Rest)
    }

    fn is_kept(&mut self, number: u64, revision: u64, version: u64) {
        if let Some(item) = self.items.get_mut(&number) {
            item.kept = Some(Kept { revision, version });
            item.was_kept = true;
        }
        self.is_certain();
    }

    /// The lease runs: what is kept is registered.
    fn is_certain(&mut self) {
        for item in self.items.values_mut() {
            if let Some(kept) = item.kept.filter(|_| item.is_kept()) {
                item.tell(Status::Registered { version: kept.version });
            }
        }
    }

    /// The lease may have run out.
    fn is_uncertain(&mut self) {
        for item in self.items.values_mut().filter(|item| !matches!(item.wish, Wish::Refused)) {
            item.tell(Status::Pending);
        }
    }

    /// The lease has run out.
    fn all_is_lost(&mut self) {
        for item in self.items.values_mut() {
            item.kept = None;
        }
        self.is_uncertain();
    }

    /// What it was to replace goes with it.
    fn refuse(&mut self, number: u64, error: NameError) {
        let Some(item) = self.items.get_mut(&number) else { return };
        item.wish = Wish::Refused;
        item.tell(Status::Refused(error));
    }

    /// There is no lease to be had. What was registered once is seen to all the same: its owner believes that it is, and
    /// may not look again.
    fn refuse_new(&mut self, error: &NameError) {
        for item in self.items.values_mut() {
            if matches!(item.wish, Wish::Keep(_)) && !item.was_kept {
                item.wish = Wish::Refused;
                item.tell(Status::Refused(error.clone()));
            }
        }
    }

    /// The directory has it no more.
    fn is_out(&mut self, number: u64) {
        match self.items.get_mut(&number) {
            Some(Item { wish: Wish::Forget, .. }) => drop(self.items.remove(&number)),
            Some(item) => item.kept = None,
            None => {}
        }
    }
}

impl Item {
    fn is_kept(&self) -> bool {
        self.kept.is_some_and(|kept| kept.revision == self.revision)
    }

    fn tell(&self, status: Status) {
        self.status.send_if_modified(|told| {
            let is_news = *told != status;
            *told = status;
            is_news
        });
    }
}

#[cfg(test)]
mod tests;
