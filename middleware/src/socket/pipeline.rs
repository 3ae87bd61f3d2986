//! The pipeline: work is pushed to whoever has room, and pulled in turn from whoever has some.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::body::Body;
use super::engine::{Make, Owner, Target};
use super::reader::Reader;
use super::wire::{Class, Role};
use super::{Batch, BindError, Message, Options, ReceiveError, SendError, SendManyError, socket};
use crate::node::Node;

/// The socket that hands out work: each message goes to the next link in turn that has room.
pub struct Push {
    owner: Owner,
}

impl Push {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        Ok(Self { owner: open(node, Role::Push, name, options)? })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Sends one message to the next link in turn that has room. Without a link it waits for one; without room it
    /// does as [`Options::when_full`] says, which is to wait unless told otherwise.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    #[inline]
    pub fn send<'b>(
        &'b self,
        body: impl Into<Body<'b>>,
    ) -> impl Future<Output = Result<(), SendError>> + Send {
        // Not an `async fn`, which would move the body once more.
        let body = body.into();
        async move {
            let core = &self.owner.core;
            if core.send_now(Target::Next, Class::Ordinary, &[], &body) {
                return Ok(());
            }
            core.send(Target::Next, Class::Ordinary, &[], &body).await
        }
    }

    /// Sends messages in order, as [`send`](Self::send) would, but as many as there is room for to one link in its
    /// turn, at most 64: the fastest way to send many small ones.
    ///
    /// # Errors
    /// [`SendManyError`]: why one was not sent, and how many were before it; nothing of the others left.
    /// # Cancel safety
    /// A future that is dropped before it is ready may have sent some of them, the first ones.
    pub async fn send_many<'b, B: Into<Body<'b>>>(
        &self,
        bodies: impl IntoIterator<Item = B>,
    ) -> Result<(), SendManyError> {
        self.owner.core.send_many(Target::Next, bodies.into_iter().map(Into::into)).await
    }

    /// Sends one message if there is a link with room now.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    #[inline]
    pub fn try_send<'a>(&self, body: impl Into<Body<'a>>) -> Result<(), SendError> {
        let sent = self.owner.core.try_send(Target::Next, Class::Ordinary, &[], &body.into());
        sent.map(drop).map_err(|refused| refused.error)
    }
}

socket!(Push);

/// The socket that takes work: from all links in turn, a batch of each.
pub struct Pull {
    owner: Arc<Owner>,
    reader: Reader,
}

impl Pull {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let owner = Arc::new(open(node, Role::Pull, name, options)?);
        Ok(Self { reader: Reader::new(owner.clone(), None), owner })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The next message.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    #[inline]
    pub async fn receive(&mut self) -> Result<Message, ReceiveError> {
        self.reader.message().await
    }

    /// The next message, if it has come.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn try_receive(&mut self) -> Result<Message, ReceiveError> {
        let (from, _, body) = self.reader.try_next()?;
        Ok(Message { from, body })
    }

    /// As [`receive`](Self::receive), for whoever polls.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, ReceiveError>> {
        self.reader.poll_next(cx).map_ok(|(from, _, body)| Message { from, body })
    }

    /// The next messages that came together, borrowed. All of them count as received.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing; dropping the batch loses what was not taken out of it.
    pub async fn receive_batch(&mut self) -> Result<Batch<'_>, ReceiveError> {
        self.reader.batch().await
    }
}

socket!(Pull);

/// A socket without specialities.
pub(super) fn open(
    node: &Node,
    role: Role,
    name: Option<&str>,
    options: Options,
) -> Result<Owner, BindError> {
    Owner::open(Make { node, role, options, name, own_name: bytes::Bytes::new(), intake: None })
}
