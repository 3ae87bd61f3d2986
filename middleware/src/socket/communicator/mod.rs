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

mod handles;
mod mail;
mod together;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::ProcessId;
use quorate_protocols::collectives::{CollectiveConfig, Collectives};
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use handles::{Receiving, Sending};
pub use quorate_protocols::collectives::CollectiveError;

use super::body::Body;
use super::engine::{Intake, Make, Owner, Target};
use super::error::{ConnectError, SendError};
use super::wire::{Class, Role};
use super::{Left, Options, SocketStats};
use crate::node::{Address, Node};
use mail::{
    MESSAGE, Mailbox, Posted, REPLY, Unexpected, WANTS_READY, WANTS_RECEIPT, WANTS_REPLY, head, process,
};

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
        let mail = Arc::new(Mailbox::new(rank, members.len(), machine));
        let intake: Option<Arc<dyn Intake>> = Some(mail.clone());
        let patience = options.connect_wait;
        let own_name = Bytes::copy_from_slice(&rank.to_le_bytes());
        let role = Role::Communicator;
        let owner = Arc::new(Owner::open(Make { node, role, options, name: Some(name), own_name, intake })?);
        let began = Instant::now();
        // Itself too: a message to oneself travels as every other.
        for (other, address) in (0..=rank).zip(members) {
            let remote = owner.core.connect(name, address).await?;
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

    /// Leaves: sends what waits, and waits until the others have said that all of it arrived, at most `deadline`.
    /// # Cancel safety
    /// Dropping the future is as dropping the communicator.
    pub async fn close(self, deadline: Duration) -> Left {
        self.owner.close(deadline).await
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

fn failed(error: SendError, rank: u32) -> PassError {
    if error == SendError::Gone { PassError::Gone { rank } } else { PassError::NotSent(error) }
}

/// How long members that this one does not dial may take to come, beside the patience of the caller.
const MEET_MIN: Duration = Duration::from_secs(5);
