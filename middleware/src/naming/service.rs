//! How a replica answers those who are no replicas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Replica;
use super::book::{Book, Change, Command, SessionId};
use super::entry::{Kept, Query};
use super::error::NameError;
use crate::rpc::ServeOptions;
use crate::service;

/// What the service is called on its node.
pub(super) const SERVICE: &str = "quorate.directory";

/// Questions and changes that one replica works on at once; most of them are questions that wait for a change.
pub(super) const EXECUTING_MAX: u32 = 8_192;

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

/// What the replicas offer. All of it may be repeated: changes carry their place in their session.
#[service]
pub(super) trait Desk {
    #[idempotent]
    async fn change(&self, session: SessionId, change: Change) -> Result<Seen, NameError>;
    #[idempotent]
    async fn look(&self, question: Question) -> Result<Answer, NameError>;
}

pub(super) fn options() -> ServeOptions {
    ServeOptions { executing_max: EXECUTING_MAX, ..ServeOptions::default() }
}

impl Desk for Replica {
    async fn change(&self, session: SessionId, change: Change) -> Result<Seen, NameError> {
        let command = Command::Change(session, change);
        let version =
            self.apply(&command).await.map_err(|error| NameError::Unavailable(error.to_string()))??;
        Ok(Seen { life: self.read(|book| book.life), version })
    }

    async fn look(&self, question: Question) -> Result<Answer, NameError> {
        if question.is_latest {
            self.read_latest(|_| ()).await.map_err(|error| NameError::Unavailable(error.to_string()))?;
        }
        let mut changes = self.read(Book::watch);
        let news = async {
            loop {
                let is_news = |book: &Book| Some(book.digest(&question.query)) != question.differs_from;
                let news = self.read(|book| is_news(book).then(|| book.answer(&question)).flatten());
                if let Some(news) = news {
                    return news;
                }
                // The sender lives in the book that this replica holds.
                let _ = changes.changed().await;
            }
        };
        let answer = tokio::time::timeout(question.patience.min(PATIENCE_MAX), news).await;
        let answer = answer.ok().or_else(|| self.read(|book| book.answer(&question)));
        if self.progress().is_over {
            return Err(NameError::Unavailable("it has ended".into()));
        }
        answer.ok_or_else(|| NameError::Unavailable("it lags behind what was seen of another one".into()))
    }
}

impl Book {
    /// The answer, unless this replica lags behind what the asker has seen elsewhere.
    fn answer(&self, question: &Question) -> Option<Answer> {
        let Question { query, seen, .. } = question;
        let is_behind = self.life == seen.life && self.version < seen.version;
        let seen = Seen { life: self.life, version: self.version };
        (!is_behind).then(|| Answer { seen, digest: self.digest(query), found: self.found(query) })
    }
}
