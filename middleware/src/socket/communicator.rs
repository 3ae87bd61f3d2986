//! Message passing within a company of fixed size: every mode of sending with its own moment of return, tags, and
//! operations that all members work out together.
//!
//! | call | returns when |
//! | --- | --- |
//! | [`bsend`](Communicator::bsend) | the message is in a buffer of this side: at submission |
//! | [`send`](Communicator::send) | it was passed to the connection, with room granted by the other side |
//! | [`ssend`](Communicator::ssend) | the other side's receive has taken it |
//! | [`rsend`](Communicator::rsend) | as `ssend`, but it fails unless a receive waits for it already |
//! | [`sendrecv`](Communicator::sendrecv) | the other side has worked on it and replied |
//! | [`isend`](Communicator::isend) | at once, with a handle that waits for the moment of `send` |
//! | [`issend`](Communicator::issend) | at once, with a handle that waits for the moment of `ssend` |
//! | [`recv`](Communicator::recv) | a message that fits has come |
//! | [`irecv`](Communicator::irecv) | at once, with a handle that can be asked and waited for |
//!
//! Guarantee   messages of one member that fit the same receive are received in the order in which they were sent.
//!             Messages under way are lost with a link; collective operations repeat theirs.
//! Source      the modes are those of MPI (as in Tanenbaum & van Steen's table of them), the operations too.
//! Limits      what came and nobody received fills the window of its link ([`Options::window_bytes`]) and then holds its
//!             sender up; the buffer of `bsend` and `isend` is the link's queue ([`Options::queue_bytes`]).

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::collectives::{CollectiveConfig, CollectiveEnd, Collectives, Combine, Operation};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Wire};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use quorate_protocols::collectives::CollectiveError;

use super::body::Body;
use super::engine::{Core, Intake, Make, Owner, Target};
use super::error::{ConnectError, SendError};
use super::wire::{Class, Role};
use super::{Left, Options, Remote, SocketStats};
use crate::node::{Address, Node};

/// One member's end of a company. Members are numbered; a number is a rank.
pub struct Communicator {
    owner: Arc<Owner>,
    mail: Arc<Mailbox>,
    task: AbortHandle,
}

/// A message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The sender's rank.
    pub from: u32,
    /// What it is about.
    pub tag: u32,
    /// Its content: a slice of what it came in, not a copy.
    pub body: Bytes,
    link: u32,
    /// To be answered under this number.
    reply_to: Option<u64>,
}

/// Why a message was not sent, or not as its mode demands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// The company has no such member.
    #[error("no member {rank}")]
    NoMember {
        /// The rank.
        rank: u32,
    },
    /// The link to the member is over; whether the message was received is not known.
    #[error("member {rank} is gone")]
    Gone {
        /// The rank.
        rank: u32,
    },
    /// No receive waited for the message; it was not delivered.
    #[error("member {rank} is not ready")]
    NotReady {
        /// The rank.
        rank: u32,
    },
    /// The letter wants no reply, or has got one.
    #[error("nobody waits for a reply")]
    NoReplyWanted,
    /// It was not sent; the reason says what to do.
    #[error("not sent")]
    NotSent(#[from] SendError),
}

impl Communicator {
    /// Joins the company `name` as member `rank` of `members`, which every member lists in the same order: where each
    /// one's node is. Waits for all of them, at most [`Options::connect_wait`].
    ///
    /// # Errors
    /// [`ConnectError`], of the first member that could not be reached.
    /// # Cancel safety
    /// Dropping the future leaves the company.
    pub async fn join(
        node: &Node,
        name: &str,
        members: &[Address],
        rank: u32,
        options: Options,
    ) -> Result<Self, ConnectError> {
        let company: Arc<[ProcessId]> = (0..members.len() as u64).map(process).collect();
        let machine = Collectives::new(CollectiveConfig::default(), company, rank);
        let machine = machine.ok_or(super::BindError::Option { name: "rank", reason: "no such member" })?;
        let mail = Arc::new(Mailbox {
            rank,
            began: Instant::now(),
            mail: Mutex::new(Mail {
                links: vec![None; members.len()],
                gone: BTreeMap::new(),
                unexpected: VecDeque::new(),
                posted: BTreeMap::new(),
                answers: BTreeMap::new(),
                last: 0,
                machine,
                operations: 0,
                ends: BTreeMap::new(),
                enders: BTreeMap::new(),
            }),
            chores: Notify::new(),
        });
        let intake: Option<Arc<dyn Intake>> = Some(mail.clone());
        let patience = options.connect_wait;
        let own_name = Bytes::copy_from_slice(&rank.to_le_bytes());
        let role = Role::Communicator;
        let owner = Arc::new(Owner::open(Make { node, role, options, name: Some(name), own_name, intake })?);
        let began = Instant::now();
        // Itself too: a message to oneself travels as every other.
        for (other, address) in (0..=rank).zip(members) {
            let remote = owner.core.connect(address, name).await?;
            mail.mail().links[other as usize] = Some(remote.link);
        }
        let all = async {
            loop {
                let mut changed = pin!(owner.core.changed.notified());
                changed.as_mut().enable();
                mail.find_links(&owner.core);
                if mail.mail().missing().is_none() {
                    return;
                }
                changed.await;
            }
        };
        let left = patience.saturating_sub(began.elapsed()) + MEET_MIN;
        if tokio::time::timeout(left, all).await.is_err() {
            let missing = mail.mail().missing().unwrap_or(rank) as usize;
            let (address, name) = (members[missing].clone(), name.to_owned());
            return Err(ConnectError::NoAnswer { address, name, waited: began.elapsed() });
        }
        let (working, core) = (mail.clone(), owner.core.clone());
        let task = node.spawn(async move { working.work(&core).await });
        Ok(Self { owner, mail, task })
    }

    /// This member's rank.
    pub fn rank(&self) -> u32 {
        self.mail.rank
    }

    /// How many members there are.
    pub fn size(&self) -> u32 {
        self.mail.mail().links.len() as u32
    }

    /// Totals.
    pub fn stats(&self) -> SocketStats {
        self.owner.core.stats()
    }

    // Sending.

    /// Buffered: returns when the message is in a buffer here.
    ///
    /// # Errors
    /// [`PassError`]; [`SendError::Full`] when the buffer is.
    pub fn bsend<'a>(&self, to: u32, tag: u32, body: impl Into<Body<'a>>) -> Result<(), PassError> {
        self.queue(to, MESSAGE, tag, 0, &body.into()).map(drop)
    }

    /// Standard: returns when the message was passed to the connection; the other side has room for it.
    ///
    /// # Errors
    /// [`PassError`]; nothing of it left.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn send(&self, to: u32, tag: u32, body: impl Into<Body<'_>>) -> Result<(), PassError> {
        self.pass(to, MESSAGE, tag, 0, &body.into()).await
    }

    /// Synchronous: returns when a receive of the other side has taken the message.
    ///
    /// # Errors
    /// [`PassError`].
    /// # Cancel safety
    /// A future that is dropped may have sent the message.
    pub async fn ssend(&self, to: u32, tag: u32, body: impl Into<Body<'_>>) -> Result<(), PassError> {
        self.ask(to, WANTS_RECEIPT, tag, body.into()).await.map(drop)
    }

    /// Ready: as [`ssend`](Self::ssend), but for a receive that waits already.
    ///
    /// # Errors
    /// [`PassError`]; [`PassError::NotReady`] when no receive waited, and then the message was not delivered.
    /// # Cancel safety
    /// A future that is dropped may have sent the message.
    pub async fn rsend(&self, to: u32, tag: u32, body: impl Into<Body<'_>>) -> Result<(), PassError> {
        self.ask(to, WANTS_READY, tag, body.into()).await.map(drop)
    }

    /// Sends and waits for the reply ([`reply`](Self::reply)): returns when the other side has worked on it.
    ///
    /// # Errors
    /// [`PassError`].
    /// # Cancel safety
    /// A future that is dropped may have sent the message; its reply is then dropped.
    pub async fn sendrecv(&self, to: u32, tag: u32, body: impl Into<Body<'_>>) -> Result<Bytes, PassError> {
        self.ask(to, WANTS_REPLY, tag, body.into()).await
    }

    /// Immediate: passes a reference and returns; [`Sending::wait`] has the moment of [`send`](Self::send).
    ///
    /// # Errors
    /// [`PassError`]; [`SendError::Full`] when too many wait already.
    pub fn isend(&self, to: u32, tag: u32, body: Bytes) -> Result<Sending<'_>, PassError> {
        let (link, messages) = self.queue(to, MESSAGE, tag, 0, &Body::Owned(body))?;
        Ok(Sending { communicator: self, to, link, messages, asking: None })
    }

    /// Immediate and synchronous: passes a reference and returns; [`Sending::wait`] has the moment of
    /// [`ssend`](Self::ssend).
    ///
    /// # Errors
    /// [`PassError`]; [`SendError::Full`] when too many wait already.
    pub fn issend(&self, to: u32, tag: u32, body: Bytes) -> Result<Sending<'_>, PassError> {
        let asking = self.mail.begin_asking();
        let (link, messages) = self.queue(to, WANTS_RECEIPT, tag, asking.id, &Body::Owned(body))?;
        asking.sent_on(link);
        Ok(Sending { communicator: self, to, link, messages, asking: Some(asking) })
    }

    /// Answers a letter that was sent with [`sendrecv`](Self::sendrecv).
    ///
    /// # Errors
    /// [`PassError`].
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn reply(&self, letter: Letter, body: impl Into<Body<'_>>) -> Result<(), PassError> {
        let id = letter.reply_to.ok_or(PassError::NoReplyWanted)?;
        let head = head(REPLY, self.mail.rank, letter.tag, id);
        let sent = self.owner.core.send(Target::One(letter.link), Class::Ordinary, &head, &body.into()).await;
        sent.map(drop).map_err(|error| failed(error, letter.from))
    }

    // Receiving.

    /// The next message of `from` and with `tag`, where `None` fits every one; waits for it.
    ///
    /// # Errors
    /// [`PassError::NoMember`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&self, from: Option<u32>, tag: Option<u32>) -> Result<Letter, PassError> {
        Ok(self.irecv(from, tag)?.wait().await)
    }

    /// Asks for the next message that fits and returns; [`Receiving::test`] and [`Receiving::wait`] get it.
    ///
    /// # Errors
    /// [`PassError::NoMember`].
    pub fn irecv(&self, from: Option<u32>, tag: Option<u32>) -> Result<Receiving<'_>, PassError> {
        if let Some(rank) = from.filter(|rank| *rank >= self.size()) {
            return Err(PassError::NoMember { rank });
        }
        let (id, matched) = {
            let mut mail = self.mail.mail();
            let fits = |letter: &Unexpected| {
                from.is_none_or(|from| from == letter.letter.from)
                    && tag.is_none_or(|tag| tag == letter.letter.tag)
            };
            let at = mail.unexpected.iter().position(fits);
            let matched = at.and_then(|at| mail.unexpected.remove(at));
            mail.last += 1;
            let id = mail.last;
            let got = matched.as_ref().map(|matched| matched.letter.clone());
            mail.posted.insert(id, Posted { from, tag, got, waker: None });
            (id, matched)
        };
        if let Some(matched) = matched {
            self.mail.taken(&self.owner.core, &matched);
        }
        Ok(Receiving { communicator: self, id })
    }

    // What all do together. Every member must call the same operations in the same order.

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

    /// Leaves: sends what waits, and waits until the others have said that all of it arrived, at most `deadline`.
    /// # Cancel safety
    /// Dropping the future is as dropping the communicator.
    pub async fn close(self, deadline: Duration) -> Left {
        self.owner.close(deadline).await
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

    fn link(&self, to: u32) -> Result<u32, PassError> {
        match self.mail.mail().links.get(to as usize) {
            None => Err(PassError::NoMember { rank: to }),
            Some(None) => Err(PassError::Gone { rank: to }),
            Some(Some(link)) => Ok(*link),
        }
    }

    fn queue(&self, to: u32, kind: u8, tag: u32, id: u64, body: &Body<'_>) -> Result<(u32, u64), PassError> {
        let link = self.link(to)?;
        let head = head(kind, self.mail.rank, tag, id);
        let messages = self.owner.core.send_or_queue(link, &head, body).map_err(|error| failed(error, to))?;
        Ok((link, messages))
    }

    async fn pass(&self, to: u32, kind: u8, tag: u32, id: u64, body: &Body<'_>) -> Result<(), PassError> {
        let link = self.link(to)?;
        let head = head(kind, self.mail.rank, tag, id);
        let sent = self.owner.core.send(Target::One(link), Class::Ordinary, &head, body).await;
        sent.map_err(|error| failed(error, to))
    }

    async fn ask(&self, to: u32, kind: u8, tag: u32, body: Body<'_>) -> Result<Bytes, PassError> {
        let asking = self.mail.begin_asking();
        asking.sent_on(self.link(to)?);
        self.pass(to, kind, tag, asking.id, &body).await?;
        asking.answer(to).await
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator").field("rank", &self.rank()).field("size", &self.size()).finish()
    }
}

/// A message on its way; dropping the handle changes nothing for the message.
pub struct Sending<'a> {
    communicator: &'a Communicator,
    to: u32,
    link: u32,
    messages: u64,
    asking: Option<Asking<'a>>,
}

impl Sending<'_> {
    /// Waits for the moment of the mode that it was sent in.
    ///
    /// # Errors
    /// [`PassError`].
    /// # Cancel safety
    /// Dropping the future drops the handle.
    pub async fn wait(self) -> Result<(), PassError> {
        match self.asking {
            Some(asking) => asking.answer(self.to).await.map(drop),
            None => {
                let left = self.communicator.owner.core.wait_sent(self.link, self.messages).await;
                left.map_err(|error| failed(error, self.to))
            }
        }
    }
}

/// A receive that waits for its message; dropping it gives the message, if it has come, to the next receive.
pub struct Receiving<'a> {
    communicator: &'a Communicator,
    id: u64,
}

impl Receiving<'_> {
    /// The message, if it has come; the handle gives it once.
    pub fn test(&mut self) -> Option<Letter> {
        self.communicator.mail.mail().posted.get_mut(&self.id)?.got.take()
    }

    /// Waits for the message.
    /// # Cancel safety
    /// Dropping the future drops the handle.
    pub async fn wait(self) -> Letter {
        poll_fn(|cx| {
            let mut mail = self.communicator.mail.mail();
            if let Some(posted) = mail.posted.get_mut(&self.id) {
                if let Some(letter) = posted.got.take() {
                    return Poll::Ready(letter);
                }
                posted.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let mail = &self.communicator.mail;
        let unread = mail.mail().posted.remove(&self.id).and_then(|posted| posted.got);
        if let Some(letter) = unread {
            // It counts as taken already; the next receive that fits gets it.
            let unread = Unexpected { letter, kind: MESSAGE, id: 0, size: 0 };
            mail.arrive(&self.communicator.owner.core, unread, true);
        }
    }
}

/// What a member keeps of its mail.
struct Mailbox {
    rank: u32,
    began: Instant,
    mail: Mutex<Mail>,
    /// Wakes the communicator's task.
    chores: Notify,
}

struct Mail {
    /// The link to each member.
    links: Vec<Option<u32>>,
    /// Members whose link was lost, and since when.
    gone: BTreeMap<u32, Instant>,
    unexpected: VecDeque<Unexpected>,
    posted: BTreeMap<u64, Posted>,
    answers: BTreeMap<u64, Waiting>,
    last: u64,
    machine: Collectives,
    operations: u64,
    ends: BTreeMap<u64, Result<Vec<Bytes>, CollectiveError>>,
    /// Who waits for which operation.
    enders: BTreeMap<u64, Option<Waker>>,
}

/// A message for which no receive waited.
struct Unexpected {
    letter: Letter,
    kind: u8,
    id: u64,
    /// What it fills of its link's window.
    size: usize,
}

struct Posted {
    from: Option<u32>,
    tag: Option<u32>,
    got: Option<Letter>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Waiting {
    link: Option<u32>,
    answer: Option<Answer>,
    waker: Option<Waker>,
}

enum Answer {
    Yes(Bytes),
    NotReady,
    Gone,
}

/// Waits for a receipt or a reply.
struct Asking<'a> {
    mail: &'a Mailbox,
    id: u64,
}

impl Asking<'_> {
    fn sent_on(&self, link: u32) {
        if let Some(waiting) = self.mail.mail().answers.get_mut(&self.id) {
            waiting.link = Some(link);
        }
    }

    async fn answer(&self, to: u32) -> Result<Bytes, PassError> {
        poll_fn(|cx| {
            let mut mail = self.mail.mail();
            let Some(waiting) = mail.answers.get_mut(&self.id) else {
                return Poll::Ready(Err(PassError::Gone { rank: to }));
            };
            match waiting.answer.take() {
                Some(Answer::Yes(body)) => Poll::Ready(Ok(body)),
                Some(Answer::NotReady) => Poll::Ready(Err(PassError::NotReady { rank: to })),
                Some(Answer::Gone) => Poll::Ready(Err(PassError::Gone { rank: to })),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.mail.mail().answers.remove(&self.id);
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

impl Mail {
    fn missing(&self) -> Option<u32> {
        self.links.iter().position(Option::is_none).map(|rank| rank as u32)
    }

    fn rank_of(&self, link: u32) -> Option<u32> {
        self.links.iter().position(|known| *known == Some(link)).map(|rank| rank as u32)
    }
}

impl Mailbox {
    fn mail(&self) -> MutexGuard<'_, Mail> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_asking(&self) -> Asking<'_> {
        let mut mail = self.mail();
        mail.last += 1;
        let id = mail.last;
        mail.answers.insert(id, Waiting::default());
        Asking { mail: self, id }
    }

    /// Notes the links of members that dialled, and of those that came back.
    fn find_links(&self, core: &Core) {
        let found: Vec<(u32, u32)> = {
            let state = core.state();
            let up = state.links.values().filter(|link| link.is_up());
            up.filter_map(|link| Some((u32::from_le_bytes(link.name[..].try_into().ok()?), link.number)))
                .collect()
        };
        let dialled = core.dialled();
        let mut mail = self.mail();
        for (rank, link) in found {
            if let Some(slot) = mail.links.get_mut(rank as usize) {
                *slot = Some(link);
                mail.gone.remove(&rank);
            }
        }
        // Those that this side dials stand in the order of their ranks.
        for (rank, link) in dialled.into_iter().enumerate() {
            if let (Some(slot), Some(link)) = (mail.links.get_mut(rank), link) {
                *slot = Some(link);
                mail.gone.remove(&(rank as u32));
            }
        }
    }

    /// A receive has taken the message: it makes room, and its sender may want to know.
    fn taken(&self, core: &Core, matched: &Unexpected) {
        if matched.size > 0 {
            core.use_held(matched.letter.link, matched.size);
        }
        if matches!(matched.kind, WANTS_RECEIPT | WANTS_READY) {
            self.post(core, matched.letter.link, RECEIPT, matched.letter.tag, matched.id, Bytes::new());
        }
    }

    fn post(&self, core: &Core, link: u32, kind: u8, tag: u32, id: u64, body: Bytes) {
        let identity = core.node.identity();
        core.reply_now(Remote { identity, link }, &head(kind, self.rank, tag, id), &Body::Owned(body));
    }

    /// A message came, or came back (`is_first`).
    fn arrive(&self, core: &Core, message: Unexpected, is_first: bool) {
        let waker = {
            let mut mail = self.mail();
            let letter = &message.letter;
            let fits = |posted: &&mut Posted| {
                posted.got.is_none()
                    && posted.from.is_none_or(|from| from == letter.from)
                    && posted.tag.is_none_or(|tag| tag == letter.tag)
            };
            match mail.posted.values_mut().find(fits) {
                Some(posted) => {
                    posted.got = Some(message.letter.clone());
                    posted.waker.take()
                }
                None if message.kind == WANTS_READY => {
                    drop(mail);
                    let Unexpected { letter, id, size, .. } = message;
                    core.use_held(letter.link, size);
                    self.post(core, letter.link, NOT_READY, letter.tag, id, Bytes::new());
                    return;
                }
                None => {
                    if is_first {
                        mail.unexpected.push_front(message);
                    } else {
                        mail.unexpected.push_back(message);
                    }
                    return;
                }
            }
        };
        self.taken(core, &message);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let waker = {
            let mut mail = self.mail();
            let Some(waiting) = mail.answers.get_mut(&id) else { return };
            waiting.answer = Some(answer);
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Gives the machine of the operations one input and does what it says.
    fn step(&self, core: &Core, input: Input<Collectives>) {
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
    async fn work(&self, core: &Core) {
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

impl Intake for Mailbox {
    fn take(&self, core: &Core, from: Remote, mut item: Bytes) {
        let size = item.len();
        let Some((kind, rank, tag, id)) = take_head(&mut item) else {
            core.use_held(from.link, size);
            return;
        };
        if matches!(kind, MESSAGE | WANTS_RECEIPT | WANTS_READY | WANTS_REPLY) {
            let reply_to = (kind == WANTS_REPLY).then_some(id);
            let letter = Letter { from: rank, tag, body: item, link: from.link, reply_to };
            self.arrive(core, Unexpected { letter, kind, id, size }, false);
            return;
        }
        core.use_held(from.link, size);
        match kind {
            RECEIPT | REPLY => self.answer(id, Answer::Yes(item)),
            NOT_READY => self.answer(id, Answer::NotReady),
            TOGETHER => {
                if let Ok(message) = Wire::from_bytes(item) {
                    self.step(core, Input::Received { from: process(rank.into()), message });
                }
            }
            _ => {}
        }
    }

    fn on_gone(&self, from: Remote) {
        let mut wakers = Vec::new();
        {
            let mut mail = self.mail();
            if let Some(rank) = mail.rank_of(from.link) {
                mail.links[rank as usize] = None;
                mail.gone.insert(rank, Instant::now());
            }
            for waiting in mail.answers.values_mut().filter(|waiting| waiting.link == Some(from.link)) {
                waiting.answer.get_or_insert(Answer::Gone);
                wakers.extend(waiting.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        self.chores.notify_one();
    }
}

/// What the machine calls a member.
fn process(rank: u64) -> ProcessId {
    ProcessId { node: rank, incarnation: 1 }
}

fn failed(error: SendError, rank: u32) -> PassError {
    if error == SendError::Gone { PassError::Gone { rank } } else { PassError::NotSent(error) }
}

fn first(items: Vec<Bytes>) -> Bytes {
    items.into_iter().next().unwrap_or_default()
}

fn head(kind: u8, rank: u32, tag: u32, id: u64) -> [u8; HEAD_BYTES] {
    let mut out = [0; HEAD_BYTES];
    out[0] = kind;
    out[1..5].copy_from_slice(&rank.to_le_bytes());
    out[5..9].copy_from_slice(&tag.to_le_bytes());
    out[9..].copy_from_slice(&id.to_le_bytes());
    out
}

fn take_head(item: &mut Bytes) -> Option<(u8, u32, u32, u64)> {
    use bytes::Buf;
    Some((
        item.try_get_u8().ok()?,
        item.try_get_u32_le().ok()?,
        item.try_get_u32_le().ok()?,
        item.try_get_u64_le().ok()?,
    ))
}

/// Kind, rank, tag, id.
const HEAD_BYTES: usize = 17;
const MESSAGE: u8 = 1;
const WANTS_RECEIPT: u8 = 2;
const WANTS_READY: u8 = 3;
const WANTS_REPLY: u8 = 4;
const RECEIPT: u8 = 5;
const REPLY: u8 = 6;
const NOT_READY: u8 = 7;
const TOGETHER: u8 = 8;
/// How long a member whose link was lost may take to come back before the operations give it up.
const GRACE: Duration = Duration::from_secs(2);
/// How long members that this one does not dial may take to come, beside the patience of the caller.
const MEET_MIN: Duration = Duration::from_secs(5);
