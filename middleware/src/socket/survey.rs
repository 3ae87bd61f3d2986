//! The survey: a question to everybody, and the answers that come until a deadline.
//!
//! Method      questions and answers look as those of request/reply.
//! Limits      one answer per link and question, so what waits is bounded by the links.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::body::Body;
use super::engine::{Core, Intake, Make, Owner, WAIT_MAX};
use super::pipeline::open;
use super::reader::Reader;
use super::request::{Asked, REQUEST_HEAD, next_asked};
use super::wire::Role;
use super::{BindError, Message, Options, ReceiveError, Remote, SendError, socket};
use crate::node::Node;

/// The socket that asks everybody.
pub struct Surveyor {
    owner: Owner,
    surveys: Arc<Surveys>,
}

impl Surveyor {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let surveys = Arc::new(Surveys::default());
        let intake: Option<Arc<dyn Intake>> = Some(surveys.clone());
        let own_name = Bytes::new();
        let owner = Owner::open(Make { node, role: Role::Surveyor, options, name, own_name, intake })?;
        Ok(Self { owner, surveys })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Asks every link that stands now and has room; answers count until `deadline` has passed. Several surveys may
    /// run at the same time.
    ///
    /// # Errors
    /// [`SendError::TooLarge`], [`SendError::Closed`].
    pub fn survey<'a>(&self, body: impl Into<Body<'a>>, deadline: Duration) -> Result<Survey<'_>, SendError> {
        let until = Instant::now() + deadline.min(WAIT_MAX);
        let id = self.surveys.begin();
        // Dropped on the way out it takes the survey back.
        let survey = Survey { surveys: &self.surveys, id, until };
        let mut head = [0; REQUEST_HEAD];
        head[..8].copy_from_slice(&id.to_le_bytes());
        self.owner.core.send_all(&head, &body.into())?;
        self.surveys.table().running.entry(id).and_modify(|running| running.is_asked = true);
        Ok(survey)
    }
}

socket!(Surveyor);

/// A survey under way; dropping it ends it.
pub struct Survey<'a> {
    surveys: &'a Surveys,
    id: u64,
    until: Instant,
}

impl Survey<'_> {
    /// The next answer; `None` when everybody who was asked has answered or is gone, or when the deadline has passed.
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Message> {
        let next = poll_fn(|cx| {
            let mut table = self.surveys.table();
            let Some(running) = table.running.get_mut(&self.id) else { return Poll::Ready(None) };
            if let Some((from, body)) = running.replies.pop_front() {
                return Poll::Ready(Some(Message { from, body }));
            }
            if running.is_asked && running.missing.is_empty() {
                return Poll::Ready(None);
            }
            running.waker = Some(cx.waker().clone());
            Poll::Pending
        });
        tokio::time::timeout_at(self.until, next).await.ok().flatten()
    }

    /// The links that were asked and have not answered.
    pub fn missing(&self) -> usize {
        self.surveys.table().running.get(&self.id).map_or(0, |running| running.missing.len())
    }
}

impl Drop for Survey<'_> {
    fn drop(&mut self) {
        self.surveys.table().running.remove(&self.id);
    }
}

impl std::fmt::Debug for Survey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey").field("missing", &self.missing()).finish_non_exhaustive()
    }
}

/// The surveys that run.
#[derive(Default)]
struct Surveys(Mutex<Table>);

#[derive(Default)]
struct Table {
    last: u64,
    running: BTreeMap<u64, Running>,
}

#[derive(Default)]
struct Running {
    /// Everybody has been asked.
    is_asked: bool,
    /// Who was asked and has not answered. Nobody else can.
    missing: BTreeSet<u32>,
    replies: VecDeque<(Remote, Bytes)>,
    waker: Option<Waker>,
}

impl Surveys {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> u64 {
        let mut table = self.table();
        table.last += 1;
        let id = table.last;
        table.running.insert(id, Running::default());
        id
    }
}

impl Intake for Surveys {
    fn take(&self, _: &Core, from: Remote, mut item: Bytes) {
        let Ok(id) = item.try_get_u64_le() else { return };
        let waker = {
            let mut table = self.table();
            // Too late, or for nobody.
            let Some(running) = table.running.get_mut(&id) else { return };
            if !running.missing.remove(&from.link) {
                return;
            }
            running.replies.push_back((from, item));
            running.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn on_sent(&self, to: Remote, head: &[u8]) {
        let Some(id) = head.first_chunk().map(|id| u64::from_le_bytes(*id)) else { return };
        if let Some(running) = self.table().running.get_mut(&id) {
            running.missing.insert(to.link);
        }
    }

    fn on_gone(&self, from: Remote) {
        let mut wakers = Vec::new();
        for running in self.table().running.values_mut() {
            if running.missing.remove(&from.link) {
                wakers.extend(running.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// The socket that is asked.
pub struct Respondent {
    owner: Arc<Owner>,
    reader: Reader,
}

impl Respondent {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let owner = Arc::new(open(node, Role::Respondent, name, options)?);
        Ok(Self { reader: Reader::new(owner.clone(), None), owner })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The next question. [`Asked::reply`] answers; not answering is allowed.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Asked, ReceiveError> {
        next_asked(&self.owner, &mut self.reader).await
    }
}

socket!(Respondent);
