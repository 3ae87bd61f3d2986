//! Sockets: transient messages between sockets of any nodes, over any transport, in well-known patterns.
//!
//! A socket is bound to a name on its node, or connects to such a name at an address; either side of a pattern may do
//! either, and a socket may have many links. The address alone chooses the transport.
//!
//! | pattern | sockets | a message goes to |
//! | --- | --- | --- |
//! | pair | [`Pair`] | the one other end |
//! | pipeline | [`Push`], [`Pull`] | one of the links, in turn, that has room |
//! | publish/subscribe | [`Publisher`], [`Subscriber`] | every link that wants its topic |
//! | request/reply | [`Requester`], [`Replier`] | one of the links, and an answer back |
//! | asynchronous request/reply | [`Dealer`], [`Router`] | one in turn; a chosen one |
//! | survey | [`Surveyor`], [`Respondent`] | every link, and their answers back until a deadline |
//! | message passing | [`Communicator`] | the member that it names; collective operations, all members |
//! | none | [`Socket`], [`Listener`], [`Connected`] | the other end of one connection, urgent ones before others |
//!
//! Guarantee   messages of one link arrive whole, in order, at most once. Links come back by themselves after a broken
//!             connection or a restart of the other side; what was under way then may be lost and is counted.
//! Room        every link has a high-water mark in messages and in bytes ([`Options::window_messages`],
//!             [`Options::window_bytes`]), granted by its reader. A reader that does not read holds up its own link
//!             and no other, and the connection that many share goes on. What a sender does then is [`WhenFull`].
//! Speed       a send encodes into the connection's lane; messages that are sent faster than they leave travel, and are
//!             received, as few large frames: [`Batch`] gives them borrowed. A lone message leaves at once.
//! Heartbeats  are the connection's: a peer that is silent too long is gone, and its links with it.
//!
//! # Example
//! ```
//! use quorate::Node;
//! use quorate::socket::{Options, Pull, Push};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let here = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let there = Node::builder().start().await?;
//! let mut pull = Pull::bind(&here, "work", Options::default())?;
//! let push = Push::connect(&there, "work", &here.addresses()[0], Options::default()).await?;
//! push.send("dig a hole").await?;
//! println!("{:?}", pull.receive().await?.body);
//! # Ok(()) }
//! ```

mod body;
mod communicator;
mod config;
mod engine;
mod error;
mod flow;
mod link;
mod pair;
mod pipeline;
mod publish;
mod reader;
mod request;
mod router;
mod stream;
mod survey;
mod topics;
mod wire;

use bytes::Bytes;

pub use body::Body;
pub use communicator::{CollectiveError, Communicator, Letter, PassError, Receiving, Sending};
pub use config::{Options, WhenFull};
pub use error::{BindError, ConnectError, ReceiveError, RequestError, SendError, SendManyError};
pub use pair::{Pair, PairReceiver, PairSender};
pub use pipeline::{Pull, Push};
pub use publish::{Published, Publisher, Subscriber};
pub use reader::Batch;
pub use request::{Asked, Replier, RequestOptions, Requester, Serving};
pub use router::{Dealer, DealerReceiver, DealerSender, Router, RouterReceiver, RouterSender};
pub use stream::{
    AnySocket, Bound, ByteStream, Connected, ConnectedReceiver, ConnectedSender, Listener, PrimitiveError,
    Received, Socket, SocketState,
};
pub use survey::{Respondent, Survey, Surveyor};
pub use wire::Rejection;

use crate::node::{Identity, NodeId};

/// The other end of a link, in this life of it: after a break it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    pub(crate) identity: Identity,
    pub(crate) link: u32,
}

impl Remote {
    /// Whose socket it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The node that the socket is on.
    pub fn node(&self) -> NodeId {
        self.identity.node
    }
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub from: Remote,
    /// Its content: a slice of what it came in, not a copy. A small one kept for long keeps up to 16 KiB of its
    /// neighbours.
    pub body: Bytes,
}

/// Totals of a socket since it was opened; they only grow, but for `links`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SocketStats {
    /// Links that stand now.
    pub links: usize,
    /// Links that came to be.
    pub links_made: u64,
    /// Links that ended.
    pub links_lost: u64,
    /// Messages handed to a connection, or to the queue of a link.
    pub sent: u64,
    /// Messages that were taken by a reader or a handler.
    pub received: u64,
    /// Messages dropped for want of room.
    pub dropped: u64,
    /// Messages from others that were lost with a connection, found by their numbers.
    pub lost: u64,
    /// Messages that came after later ones, dropped; they count as lost too.
    pub late: u64,
    /// Frames for links that are over.
    pub stale: u64,
    /// Frames that broke the rules; the link was cut.
    pub malformed: u64,
}

/// How one link is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// The other end.
    pub remote: Remote,
    /// Messages handed to its connection.
    pub sent: u64,
    /// Messages that wait for room.
    pub queued: usize,
    /// Messages for it that were dropped for want of room.
    pub dropped: u64,
    /// Messages from it that were lost with a connection.
    pub lost: u64,
}

/// What closing a socket could not finish, of the links that stood when it began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Left {
    /// Messages that still waited for room.
    pub unsent: usize,
    /// Messages that left, and of which the other side did not say that they arrived.
    pub unconfirmed: u64,
    /// The links whose other side did not say, in time and before it was gone, that everything arrived.
    pub links: Vec<Remote>,
}

impl Left {
    /// True when every message has arrived at the other socket.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, more: Self) {
        self.unsent = self.unsent.saturating_add(more.unsent);
        self.unconfirmed = self.unconfirmed.saturating_add(more.unconfirmed);
        self.links.extend(more.links);
    }
}

/// What all sockets have in common.
macro_rules! socket {
    ($name:ident) => {
        impl $name {
            /// Opens a socket that others can connect to by `name`.
            ///
            /// # Errors
            /// [`BindError`](crate::socket::BindError).
            pub fn bind(
                node: &crate::node::Node,
                name: &str,
                options: crate::socket::Options,
            ) -> Result<Self, crate::socket::BindError> {
                Self::make(node, Some(name), options)
            }

            /// Opens a socket and links it with the socket `name` of the node at `address`; a broken link is made
            /// anew from then on.
            ///
            /// # Errors
            /// [`ConnectError`](crate::socket::ConnectError); at once, or after
            /// [`Options::connect_wait`](crate::socket::Options::connect_wait).
            /// # Cancel safety
            /// Dropping the future leaves nothing behind but a connection that others may use.
            pub async fn connect<A>(
                node: &crate::node::Node,
                name: &str,
                address: A,
                options: crate::socket::Options,
            ) -> Result<Self, crate::socket::ConnectError>
            where
                A: TryInto<crate::node::Address>,
                A::Error: Into<quorate_transports::AddressError>,
            {
                let socket = Self::make(node, None, options)?;
                socket.owner().core.connect(name, address).await?;
                Ok(socket)
            }

            /// Links the socket with one more; linking with the same one again changes nothing.
            ///
            /// # Errors
            /// [`ConnectError`](crate::socket::ConnectError); the socket is as it was.
            /// # Cancel safety
            /// Dropping the future leaves the socket as it was.
            pub async fn link<A>(
                &self,
                name: &str,
                address: A,
            ) -> Result<crate::socket::Remote, crate::socket::ConnectError>
            where
                A: TryInto<crate::node::Address>,
                A::Error: Into<quorate_transports::AddressError>,
            {
                self.owner().core.connect(name, address).await
            }

            /// Waits until at least `links` links stand.
            ///
            /// # Errors
            /// [`SendError::Closed`](crate::socket::SendError::Closed).
            /// # Cancel safety
            /// Dropping the future has no effect.
            pub async fn linked(&self, links: usize) -> Result<(), crate::socket::SendError> {
                self.owner().core.wait_links(|standing| standing >= links).await
            }

            /// Totals.
            pub fn stats(&self) -> crate::socket::SocketStats {
                self.owner().core.stats()
            }

            /// The links that stand, each with its figures.
            pub fn links(&self) -> Vec<crate::socket::LinkStats> {
                self.owner().core.link_stats()
            }

            /// Closes: sends what waits, and waits until every link has said that all of it arrived, at most
            /// `deadline`. What others sent and nobody received here is dropped.
            ///
            /// Merely dropping the socket closes its links too, without waiting for what waits.
            /// # Cancel safety
            /// Dropping the future is as dropping the socket.
            pub async fn close(self, deadline: std::time::Duration) -> crate::socket::Left {
                self.owner().close(deadline).await
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).field("stats", &self.owner().core.stats()).finish()
            }
        }
    };
}
use socket;
