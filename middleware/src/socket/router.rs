//! Asynchronous request/reply: a dealer talks to whoever has room, a router answers whom it chooses.

use std::sync::Arc;

use super::body::Body;
use super::engine::{Owner, Target};
use super::pipeline::open;
use super::reader::Reader;
use super::wire::{Class, Role};
use super::{Batch, BindError, Message, Options, ReceiveError, Remote, SendError, socket};
use crate::node::Node;

/// Sends to its links in turn and receives from all of them, without any lock-step.
pub struct Dealer {
    sender: DealerSender,
    receiver: DealerReceiver,
}

/// The sending half of a [`Dealer`]. The socket lives as long as one half.
#[derive(Clone)]
pub struct DealerSender {
    owner: Arc<Owner>,
}

/// The receiving half of a [`Dealer`]. The socket lives as long as one half.
pub struct DealerReceiver {
    reader: Reader,
}

impl Dealer {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let owner = Arc::new(open(node, Role::Dealer, name, options)?);
        let receiver = DealerReceiver { reader: Reader::new(owner.clone(), None) };
        Ok(Self { sender: DealerSender { owner }, receiver })
    }

    fn owner(&self) -> &Owner {
        &self.sender.owner
    }

    /// See [`DealerSender::send`].
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    pub async fn send(&self, body: impl Into<Body<'_>>) -> Result<Remote, SendError> {
        self.sender.send(body).await
    }

    /// See [`DealerReceiver::receive`].
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    pub async fn receive(&mut self) -> Result<Message, ReceiveError> {
        self.receiver.receive().await
    }

    /// The two directions, for two tasks.
    pub fn split(self) -> (DealerSender, DealerReceiver) {
        (self.sender, self.receiver)
    }
}

socket!(Dealer);

impl DealerSender {
    /// Sends one message to the next link in turn that has room, and tells which. Waits for a link, and for room
    /// unless [`Options::when_full`] says otherwise.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    #[inline]
    pub async fn send(&self, body: impl Into<Body<'_>>) -> Result<Remote, SendError> {
        self.owner.core.send_slowly(Target::Next, Class::Ordinary, &[], &body.into()).await
    }
}

impl DealerReceiver {
    /// The next message of any link.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    #[inline]
    pub async fn receive(&mut self) -> Result<Message, ReceiveError> {
        self.reader.message().await
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

/// Knows its links apart: says who sent a message, and sends to whom it is told.
pub struct Router {
    sender: RouterSender,
    receiver: RouterReceiver,
}

/// The sending half of a [`Router`]. The socket lives as long as one half.
#[derive(Clone)]
pub struct RouterSender {
    owner: Arc<Owner>,
}

/// The receiving half of a [`Router`]. The socket lives as long as one half.
pub struct RouterReceiver {
    reader: Reader,
}

impl Router {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let owner = Arc::new(open(node, Role::Router, name, options)?);
        let receiver = RouterReceiver { reader: Reader::new(owner.clone(), None) };
        Ok(Self { sender: RouterSender { owner }, receiver })
    }

    fn owner(&self) -> &Owner {
        &self.sender.owner
    }

    /// See [`RouterSender::send_to`].
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    pub async fn send_to(&self, to: Remote, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.sender.send_to(to, body).await
    }

    /// See [`RouterReceiver::receive`].
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    pub async fn receive(&mut self) -> Result<Message, ReceiveError> {
        self.receiver.receive().await
    }

    /// The two directions, for two tasks.
    pub fn split(self) -> (RouterSender, RouterReceiver) {
        (self.sender, self.receiver)
    }
}

socket!(Router);

impl RouterSender {
    /// Sends one message on the link `to`, waiting for room unless [`Options::when_full`] says otherwise.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left. [`SendError::Gone`] when the link is over: who connects again is another
    /// one.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    #[inline]
    pub async fn send_to(&self, to: Remote, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.owner.core.send(Target::One(to.link), Class::Ordinary, &[], &body.into()).await
    }

    /// Sends one message on the link `to` if it has room now.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    pub fn try_send_to<'a>(&self, to: Remote, body: impl Into<Body<'a>>) -> Result<(), SendError> {
        let sent = self.owner.core.try_send(Target::One(to.link), Class::Ordinary, &[], &body.into());
        sent.map(drop).map_err(|refused| refused.error)
    }
}

impl RouterReceiver {
    /// The next message, with the link that it came on.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    #[inline]
    pub async fn receive(&mut self) -> Result<Message, ReceiveError> {
        self.reader.message().await
    }

    /// The next messages that came together from one link, borrowed. All of them count as received.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing; dropping the batch loses what was not taken out of it.
    pub async fn receive_batch(&mut self) -> Result<Batch<'_>, ReceiveError> {
        self.reader.batch().await
    }
}
