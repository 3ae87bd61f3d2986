//! How a replica answers those who are no replicas.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::book::{Book, Change, Command, DIGEST_START, Looked, SessionId};
use super::entry::{Kept, Query};
use super::error::NameError;
use super::{Replica, Starter};
use crate::rpc::ServeOptions;
use crate::service;

/// What the service is called on its node.
pub(super) const SERVICE: &str = "quorate.directory";

/// Questions and changes that one replica works on at once; most of them are questions that wait for a change.
pub(super) const EXECUTING_MAX: u32 = 8_192;

/// Questions that wait for a change at one replica. The rest of what it works on is left for who asks or changes
/// something now; who finds all places taken follows at another replica.
pub(super) const WAITING_MAX: usize = 6_144;

/// The longest that a question waits for a change before it is answered all the same: a lost connection, and a caller
/// that went away without a word, are noticed this soon.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// What somebody wants to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) query: Query,
    /// The latest state of the directory that the asker has seen, of which life; it does not want to see older ones.
    pub(super) seen: Seen,
    /// Answer only when the answer differs from the one of this digest.
    pub(super) differs_from: Option<u64>,
    /// How long to wait for that.
    pub(super) patience: Duration,
    /// Everything that any replica has acknowledged before must be in the answer.
    pub(super) is_latest: bool,
    /// Of `find`: wait only where somebody starts what is not there.
    pub(super) is_for_starter: bool,
}

/// A state of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) life: u64,
    pub(super) version: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) seen: Seen,
    pub(super) digest: u64,
    pub(super) found: Vec<Kept>,
}

/// What the replicas offer. A change may be asked for again, under its number in its session, but is not repeated behind
/// its owner's back: an [`Open`](Change::Open) that is executed after its session was closed begins it again.
#[service]
pub(super) trait Desk {
    async fn change(&self, session: SessionId, change: Change) -> Result<Seen, NameError>;
    #[idempotent]
    async fn look(&self, question: Question) -> Result<Answer, NameError>;
    /// As `look` for a name, and waits until something is registered under it. Who can start it is told.
    #[idempotent]
    async fn find(&self, question: Question) -> Result<Answer, NameError>;
}

pub(super) fn options() -> ServeOptions {
    ServeOptions { executing_max: EXECUTING_MAX, ..ServeOptions::default() }
}

/// Answers for one replica.
pub(super) struct Office {
    replica: Replica,
    /// Places of questions that wait.
    waiting: Semaphore,
    /// Who is told of names that are wanted and not there.
    starter: Option<Arc<dyn Starter>>,
}

impl Office {
    pub(super) fn new(replica: Replica, waiting_max: usize, starter: Option<Arc<dyn Starter>>) -> Self {
        Self { replica, waiting: Semaphore::new(waiting_max), starter }
    }

    /// What there is to say, if it is worth saying. What a replica has that has no quorum grows old without a bound.
    fn news(&self, question: &Question) -> Option<Answer> {
        if !self.replica.progress().has_quorum {
            return None;
        }
        self.replica.read(|book| {
            let is_news = Some(book.digest(&question.query)) != question.differs_from;
            is_news.then(|| book.answer(question)).flatten()
        })
    }

    /// Waits until there is something to say; `None` when the replica has ended.
    async fn wait_news(&self, question: &Question) -> Option<Answer> {
        let mut progress = self.replica.watch();
        let mut changes = self.replica.read(Book::watch);
        // A state in which there was no news.
        let mut known: Option<Looked> = None;
        while !progress.borrow_and_update().is_over {
            let (looked, is_worth) = self.replica.read(|book| {
                (book.looked(), known.is_none_or(|known| book.may_differ(known, &question.query)))
            });
            if is_worth {
                if let Some(news) = self.news(question) {
                    return Some(news);
                }
                // One that lags behind, or has no quorum, may have news without another change.
                let is_current =
                    self.replica.progress().has_quorum && !self.replica.read(|book| book.lags(question));
                known = is_current.then_some(looked);
            } else {
                known = Some(looked);
            }
            // The senders live as long as the replica that is held here.
            tokio::select! {
                _ = changes.changed() => {}
                _ = progress.changed() => {}
            }
        }
        None
    }
}

impl Desk for Office {
    async fn change(&self, session: SessionId, change: Change) -> Result<Seen, NameError> {
        let command = Command::Change(session, change);
        let applied = self.replica.apply(&command).await;
        let version = applied.map_err(|error| NameError::Unavailable(error.to_string()))??;
        Ok(Seen { life: self.replica.read(|book| book.life), version })
    }

    async fn look(&self, question: Question) -> Result<Answer, NameError> {
        let unavailable = |reason: &str| Err(NameError::Unavailable(reason.to_owned()));
        if question.is_latest {
            let latest = self.replica.read_latest(|_| ()).await;
            latest.map_err(|error| NameError::Unavailable(error.to_string()))?;
        }
        let mut answer = self.news(&question);
        if answer.is_none() {
            let Ok(_place) = self.waiting.try_acquire() else {
                return unavailable("too many questions wait here for a change");
            };
            let news = self.wait_news(&question);
            answer =
                tokio::time::timeout(question.patience.min(PATIENCE_MAX), news).await.unwrap_or_default();
        }
        let answer = answer.or_else(|| self.replica.read(|book| book.answer(&question)));
        let progress = self.replica.progress();
        if progress.is_over {
            return unavailable("it has ended");
        }
        if !progress.has_quorum {
            return unavailable("it has no quorum");
        }
        answer.map_or_else(|| unavailable("it lags behind what was seen of another one"), Ok)
    }

    async fn find(&self, question: Question) -> Result<Answer, NameError> {
        let name = question.query.name.clone().unwrap_or_default();
        let mut waited = question.patience;
        if question.is_for_starter && self.starter.is_none() {
            waited = Duration::ZERO;
        }
        let refused = async {
            match &self.starter {
                Some(starter) if !waited.is_zero() => starter.start(&name).await,
                _ => pending().await,
            }
        };
        // What is nothing differs from the digest of nothing when it is something.
        let something =
            self.look(Question { differs_from: Some(DIGEST_START), patience: waited, ..question });
        let answer = tokio::select! {
            // What is there needs no starting.
            biased;
            answer = something => answer?,
            reason = refused => return Err(NameError::NotStarted { name, reason }),
        };
        if answer.found.is_empty() { Err(NameError::NotRegistered { name, waited }) } else { Ok(answer) }
    }
}

impl Book {
    /// The asker has seen a later state elsewhere.
    fn lags(&self, question: &Question) -> bool {
        self.life == question.seen.life && self.version < question.seen.version
    }

    /// The answer, unless this replica lags behind what the asker has seen elsewhere.
    fn answer(&self, question: &Question) -> Option<Answer> {
        let query = &question.query;
        let seen = Seen { life: self.life, version: self.version };
        (!self.lags(question)).then(|| Answer { seen, digest: self.digest(query), found: self.found(query) })
    }
}

#[cfg(test)]
mod tests;
