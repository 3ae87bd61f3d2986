//! Request/reply: a request goes to one of the links, its reply comes back.
//!
//! Method      a request is its id `u64`, the number of the try `u8` and the body; a reply is the id and the body.
//!             Requests wait in a table of slots with a waker each; there is no task and no channel per request.
//! Limits      [`RequestOptions::pending_max`] requests at the same time.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::body::Body;
use super::engine::{Core, Intake, Make, Owner, Target};
use super::error::{RequestError, SendError};
use super::pipeline::open;
use super::reader::Reader;
use super::wire::{Class, Role};
use super::{BindError, Options, ReceiveError, Remote, socket};
use crate::node::Node;

/// How requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestOptions {
    /// How long each try waits for its reply. Default 5 s.
    pub reply_wait: Duration,
    /// How often a request is sent, each time to the next link: when no reply came in time, or at once when its link
    /// ended. Default 1: at most once. More means that several repliers, or one of them several times, may work on
    /// it; the replier sees the number of the try.
    pub tries_max: u32,
    /// Requests that may wait for their replies at the same time. Default 16,384.
    pub pending_max: usize,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { reply_wait: Duration::from_secs(5), tries_max: 1, pending_max: 16_384 }
    }
}

/// The socket that asks. Any number of requests may be under way.
pub struct Requester {
    owner: Owner,
    slots: Arc<Slots>,
    options: RequestOptions,
}

impl Requester {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let slots = Arc::new(Slots::default());
        let intake: Option<Arc<dyn Intake>> = Some(slots.clone());
        let own_name = Bytes::new();
        let owner = Owner::open(Make { node, role: Role::Requester, options, name, own_name, intake })?;
        Ok(Self { owner, slots, options: RequestOptions::default() })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Changes how requests are made from now on.
    #[must_use]
    pub fn with(mut self, options: RequestOptions) -> Self {
        self.options = options;
        self
    }

    /// Asks one of the links, in turn, and waits for the reply. Waits for a link, and for room, without counting that
    /// as a try.
    ///
    /// # Errors
    /// [`RequestError`].
    /// # Cancel safety
    /// A future that is dropped may leave the request sent; its reply is then dropped.
    pub async fn request(&self, body: impl Into<Body<'_>>) -> Result<Bytes, RequestError> {
        let RequestOptions { reply_wait, tries_max, pending_max } = self.options;
        let slot = self.slots.begin(pending_max).ok_or(RequestError::TooMany { limit: pending_max })?;
        let body = body.into();
        for number in 0..tries_max.max(1) {
            let mut head = [0; REQUEST_HEAD];
            head[..8].copy_from_slice(&slot.id.to_le_bytes());
            head[8] = number.try_into().unwrap_or(u8::MAX);
            self.owner.core.send(Target::Next, Class::Ordinary, &head, &body).await?;
            if let Ok(Some(reply)) = tokio::time::timeout(reply_wait, slot.reply()).await {
                return Ok(reply);
            }
        }
        Err(RequestError::NoReply { tries: tries_max.max(1), waited: reply_wait })
    }
}

socket!(Requester);

/// The requests that wait.
#[derive(Default)]
struct Slots(Mutex<Table>);

#[derive(Default)]
struct Table {
    slots: Vec<Entry>,
    free: Vec<u32>,
}

struct Entry {
    /// Tells one use of the slot from the next.
    turn: u32,
    /// The links that it was sent on, the last one last: nobody else can answer it.
    asked: Vec<u32>,
    waiting: Waiting,
}

enum Waiting {
    Free,
    For {
        waker: Option<Waker>,
    },
    Done(Bytes),
    /// The link that it was sent on last is over.
    Orphaned,
}

impl Slots {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, pending_max: usize) -> Option<Slot<'_>> {
        let mut table = self.table();
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.slots.len() < pending_max => {
                table.slots.push(Entry { turn: 0, asked: Vec::new(), waiting: Waiting::Free });
                u32::try_from(table.slots.len() - 1).ok()?
            }
            None => return None,
        };
        let entry = &mut table.slots[index as usize];
        entry.turn = entry.turn.wrapping_add(1);
        entry.asked.clear();
        entry.waiting = Waiting::For { waker: None };
        Some(Slot { slots: self, id: u64::from(entry.turn) << 32 | u64::from(index) })
    }
}

impl Table {
    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        let entry = self.slots.get_mut((id & u64::from(u32::MAX)) as usize)?;
        (u64::from(entry.turn) == id >> 32).then_some(entry)
    }
}

impl Intake for Slots {
    fn take(&self, _: &Core, from: Remote, mut item: Bytes) {
        let Ok(id) = item.try_get_u64_le() else { return };
        let waker = {
            let mut table = self.table();
            // The first reply counts; what comes after a later try, or twice, is dropped.
            let Some(entry) = table.entry(id).filter(|entry| entry.asked.contains(&from.link)) else {
                return;
            };
            match std::mem::replace(&mut entry.waiting, Waiting::Done(item)) {
                Waiting::For { waker } => waker,
                Waiting::Orphaned => None,
                other => {
                    entry.waiting = other;
                    None
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn on_sent(&self, to: Remote, head: &[u8]) {
        let Some(id) = head.first_chunk().map(|id| u64::from_le_bytes(*id)) else { return };
        let mut table = self.table();
        let Some(entry) = table.entry(id) else { return };
        entry.asked.retain(|link| *link != to.link);
        entry.asked.push(to.link);
        if matches!(entry.waiting, Waiting::Orphaned) {
            entry.waiting = Waiting::For { waker: None };
        }
    }

    fn on_gone(&self, from: Remote) {
        let mut wakers = Vec::new();
        for entry in &mut self.table().slots {
            if let Waiting::For { waker } = &mut entry.waiting
                && entry.asked.last() == Some(&from.link)
            {
                wakers.extend(waker.take());
                entry.waiting = Waiting::Orphaned;
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One request that waits; dropping it frees the slot.
struct Slot<'a> {
    slots: &'a Slots,
    id: u64,
}

impl Slot<'_> {
    /// The reply; `None` when the link that it should come on is over.
    async fn reply(&self) -> Option<Bytes> {
        poll_fn(|cx| {
            let mut table = self.slots.table();
            let Some(entry) = table.entry(self.id) else { return Poll::Ready(None) };
            match &mut entry.waiting {
                Waiting::Done(reply) => Poll::Ready(Some(std::mem::take(reply))),
                Waiting::For { waker } => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                Waiting::Orphaned | Waiting::Free => Poll::Ready(None),
            }
        })
        .await
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        if let Some(entry) = table.entry(self.id) {
            entry.waiting = Waiting::Free;
            table.free.push((self.id & u64::from(u32::MAX)) as u32);
        }
    }
}

/// The socket that answers.
pub struct Replier {
    owner: Arc<Owner>,
    reader: Reader,
}

impl Replier {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let owner = Arc::new(open(node, Role::Replier, name, options)?);
        Ok(Self { reader: Reader::new(owner.clone(), None), owner })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The next request, of all links in turn.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Asked, ReceiveError> {
        next_asked(&self.owner, &mut self.reader).await
    }

    /// Answers every request by `handler`, in the task of the connection that it came on: the shortest way there is.
    /// So `handler` must be quick; others on the connection wait for it. It lasts until the result is dropped.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn serve<F>(node: &Node, name: &str, options: Options, handler: F) -> Result<Serving, BindError>
    where
        F: Fn(&[u8]) -> Bytes + Send + Sync + 'static,
    {
        let intake: Option<Arc<dyn Intake>> = Some(Arc::new(Inline(handler)));
        let own_name = Bytes::new();
        let role = Role::Replier;
        let owner = Owner::open(Make { node, role, options, name: Some(name), own_name, intake })?;
        Ok(Serving { owner })
    }
}

socket!(Replier);

pub(super) async fn next_asked(owner: &Arc<Owner>, reader: &mut Reader) -> Result<Asked, ReceiveError> {
    loop {
        let (from, _, mut item) = reader.next().await?;
        // Whoever sends something else gets no answer.
        if let (Ok(id), Ok(number)) = (item.try_get_u64_le(), item.try_get_u8()) {
            return Ok(Asked { owner: owner.clone(), from, id, number, body: item });
        }
    }
}

/// A request. Dropping it without a reply leaves the other side without one.
pub struct Asked {
    owner: Arc<Owner>,
    from: Remote,
    id: u64,
    number: u8,
    body: Bytes,
}

impl Asked {
    /// Who asks.
    pub fn from(&self) -> Remote {
        self.from
    }

    /// What is asked.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// How often it was sent before, as far as the asking side knows: then somebody may have worked on it.
    pub fn tries_before(&self) -> u8 {
        self.number
    }

    /// Answers. Waits for room unless [`Options::when_full`] says otherwise.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::Gone`] when the link is over.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing, and the request is gone.
    pub async fn reply(self, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        let head = self.id.to_le_bytes();
        let to = Target::One(self.from.link);
        self.owner.core.send(to, Class::Ordinary, &head, &body.into()).await
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("from", &self.from).field("body", &self.body).finish_non_exhaustive()
    }
}

/// Keeps a handler answering; see [`Replier::serve`].
pub struct Serving {
    owner: Owner,
}

impl Serving {
    /// Totals.
    pub fn stats(&self) -> super::SocketStats {
        self.owner.core.stats()
    }

    /// As a socket's own `close`.
    pub async fn close(self, deadline: Duration) -> super::Left {
        self.owner.close(deadline).await
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("stats", &self.stats()).finish()
    }
}

/// Answers in the task of the connection.
struct Inline<F>(F);

impl<F: Fn(&[u8]) -> Bytes + Send + Sync> Intake for Inline<F> {
    fn take(&self, core: &Core, from: Remote, item: Bytes) {
        let Some((id, rest)) = item.split_first_chunk::<8>() else { return };
        let Some((_, body)) = rest.split_first() else { return };
        core.reply_now(from, id, &Body::Owned((self.0)(body)));
    }
}

/// The id and the number of the try.
pub(super) const REQUEST_HEAD: usize = 9;
