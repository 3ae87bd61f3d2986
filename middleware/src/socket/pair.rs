//! The pair: two sockets and nobody else.

use std::sync::Arc;

use super::body::Body;
use super::engine::{Owner, Target};
use super::pipeline::open;
use super::reader::Reader;
use super::wire::{Class, Role};
use super::{Batch, BindError, Message, Options, ReceiveError, SendError, socket};
use crate::node::Node;

/// One end of a pair. It has at most one link; a third socket that connects is turned away as long as it stands.
pub struct Pair {
    sender: PairSender,
    receiver: PairReceiver,
}

/// The sending half of a [`Pair`]. The socket lives as long as one half.
#[derive(Clone)]
pub struct PairSender {
    owner: Arc<Owner>,
}

/// The receiving half of a [`Pair`]. The socket lives as long as one half.
pub struct PairReceiver {
    reader: Reader,
}

impl Pair {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let owner = Arc::new(open(node, Role::Pair, name, options)?);
        let receiver = PairReceiver { reader: Reader::new(owner.clone(), None) };
        Ok(Self { sender: PairSender { owner }, receiver })
    }

    fn owner(&self) -> &Owner {
        &self.sender.owner
    }

    /// See [`PairSender::send`].
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    pub async fn send(&self, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.sender.send(body).await
    }

    /// See [`PairReceiver::receive`].
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    pub async fn receive(&mut self) -> Result<Message, ReceiveError> {
        self.receiver.receive().await
    }

    /// The two directions, for two tasks.
    pub fn split(self) -> (PairSender, PairReceiver) {
        (self.sender, self.receiver)
    }
}

socket!(Pair);

impl PairSender {
    /// Sends one message; waits for the link, and for room unless [`Options::when_full`] says otherwise.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    #[inline]
    pub async fn send(&self, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.owner.core.send(Target::Next, Class::Ordinary, &[], &body.into()).await
    }
}

impl PairReceiver {
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
