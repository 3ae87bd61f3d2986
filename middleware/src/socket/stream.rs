//! The socket primitives: socket, bind, listen, accept, connect, send, receive, close, over any transport.
//!
//! Guarantee   each primitive exists only in the state in which it makes sense: [`Socket`], [`Bound`], [`Listener`],
//!             [`Connected`] are types, and a step consumes the one before. [`AnySocket`] has all primitives in one
//!             type; there a call out of order is a typed error that names the state.
//!             A connected socket carries messages, or as [`ByteStream`] bytes without borders; an urgent message
//!             overtakes what was sent before it, on the way and at the reader, after at most one chunk of 64 KiB.
//! Limits      a connected socket ends with its connection: it is not made anew. Urgent messages: 64 and 64 KiB may wait.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes};
use quorate_transports::AddressError;

use super::body::Body;
use super::engine::{Owner, Target};
use super::error::{BindError, ConnectError, ReceiveError, SendError};
use super::pipeline::open;
use super::reader::Reader;
use super::wire::{Class, Role};
use super::{Left, Options, Remote};
use crate::node::{Address, Node};

/// A socket that is neither bound nor connected.
///
/// ```
/// use quorate::Node;
/// use quorate::socket::{Options, Socket};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let here = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
/// let there = Node::builder().start().await?;
/// let mut listener = Socket::new(&here, Options::default()).bind("door")?.listen(16);
/// let caller = Socket::new(&there, Options::default()).connect("door", &here.addresses()[0]).await?;
/// let mut called = listener.accept().await?;
/// caller.send("knock").await?;
/// println!("{:?}", called.receive().await?.body);
/// # Ok(()) }
/// ```
///
/// What is not bound cannot listen, and what is not connected cannot send:
///
/// ```compile_fail
/// # use quorate::socket::Socket;
/// fn out_of_order(socket: Socket) {
///     socket.listen(16);
/// }
/// ```
#[derive(Debug)]
pub struct Socket {
    node: Node,
    options: Options,
}

impl Socket {
    /// A socket of `node`.
    pub fn new(node: &Node, options: Options) -> Self {
        Self { node: node.clone(), options }
    }

    /// Takes a name on the node. Who connects to it is turned away until it listens.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(self, name: &str) -> Result<Bound, BindError> {
        let owner = open(&self.node, Role::Stream, Some(name), self.options)?;
        owner.core.state().backlog = Some(0);
        Ok(Bound { owner })
    }

    /// Connects to the listener `name` of the node at `address`. The connection stands when it returns; it may wait
    /// in the listener's backlog for long.
    ///
    /// # Errors
    /// [`ConnectError`].
    /// # Cancel safety
    /// Dropping the future drops the attempt.
    pub async fn connect<A>(self, name: &str, address: A) -> Result<Connected, ConnectError>
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        let owner = open(&self.node, Role::Stream, None, self.options)?;
        let remote = owner.core.connect(name, address).await?;
        owner.core.stop_dialling();
        Ok(Connected::new(Arc::new(owner), remote))
    }
}

/// A socket with a name.
pub struct Bound {
    owner: Owner,
}

impl Bound {
    /// Lets others connect; at most `backlog` of them wait to be accepted, one more is turned away as busy.
    pub fn listen(self, backlog: usize) -> Listener {
        self.owner.core.state().backlog = Some(backlog);
        Listener { owner: Arc::new(self.owner) }
    }
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").finish_non_exhaustive()
    }
}

/// A socket that accepts. Dropping it turns away who comes; what was accepted lives on, and keeps the name.
pub struct Listener {
    owner: Arc<Owner>,
}

impl Listener {
    /// The next connection.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn accept(&mut self) -> Result<Connected, ReceiveError> {
        let remote = poll_fn(|cx| {
            let mut state = self.owner.core.state();
            if let Some(number) = state.accepting.pop_front()
                && let Some(link) = state.links.get(&number)
            {
                return Poll::Ready(Ok(link.remote()));
            }
            if !state.is_open() {
                return Poll::Ready(Err(ReceiveError::Closed));
            }
            state.acceptor = Some(cx.waker().clone());
            Poll::Pending
        });
        Ok(Connected::new(self.owner.clone(), remote.await?))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.owner.core.state();
            state.backlog = Some(0);
            std::mem::take(&mut state.accepting)
        };
        waiting.into_iter().for_each(|link| self.owner.core.release(link));
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("waiting", &self.owner.core.state().accepting.len()).finish()
    }
}

/// One end of a connection. Dropping it ends the connection; the other side reads what was sent, and then the end.
pub struct Connected {
    end: End,
    reader: Reader,
}

/// The sending half of a [`Connected`]; the connection ends with both halves. Cheap to clone.
#[derive(Clone)]
pub struct ConnectedSender {
    end: End,
}

/// The receiving half of a [`Connected`].
pub struct ConnectedReceiver {
    end: End,
    reader: Reader,
}

/// What came over a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// It was sent as urgent.
    pub is_urgent: bool,
    /// Its content: a slice of what it came in, not a copy.
    pub body: Bytes,
}

#[derive(Clone)]
struct End {
    owner: Arc<Owner>,
    remote: Remote,
    /// Releases the link with the last half.
    _held: Arc<Held>,
}

struct Held {
    owner: Arc<Owner>,
    link: u32,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.owner.core.release(self.link);
    }
}

impl Connected {
    fn new(owner: Arc<Owner>, remote: Remote) -> Self {
        let held = Arc::new(Held { owner: owner.clone(), link: remote.link });
        let reader = Reader::new(owner.clone(), Some(remote.link));
        Self { end: End { owner, remote, _held: held }, reader }
    }

    /// The other end.
    pub fn remote(&self) -> Remote {
        self.end.remote
    }

    /// See [`ConnectedSender::send`].
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    pub async fn send(&self, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.end.send(Class::Ordinary, &body.into()).await
    }

    /// See [`ConnectedSender::send_urgent`].
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    pub async fn send_urgent(&self, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.end.send(Class::Urgent, &body.into()).await
    }

    /// See [`ConnectedReceiver::receive`].
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&mut self) -> Result<Received, ReceiveError> {
        receive(&mut self.reader).await
    }

    /// See [`ConnectedReceiver::is_urgent_waiting`].
    pub fn is_urgent_waiting(&self) -> bool {
        self.end.is_urgent_waiting()
    }

    /// The two directions, for two tasks.
    pub fn split(self) -> (ConnectedSender, ConnectedReceiver) {
        let Self { end, reader } = self;
        (ConnectedSender { end: end.clone() }, ConnectedReceiver { end, reader })
    }

    /// The same connection as a stream of bytes; both ends must agree on that.
    pub fn into_bytes(self) -> ByteStream {
        ByteStream { connected: self, rest: Bytes::new() }
    }

    /// Closes and waits until the other side has said that everything arrived, at most `deadline`.
    /// # Cancel safety
    /// Dropping the future is as dropping the socket.
    pub async fn close(self, deadline: Duration) -> Left {
        self.end.owner.core.close_link(self.end.remote.link, deadline).await
    }
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").field("remote", &self.end.remote).finish_non_exhaustive()
    }
}

impl ConnectedSender {
    /// Sends one message, waiting for room.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left. [`SendError::Gone`] when the connection is over.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn send(&self, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.end.send(Class::Ordinary, &body.into()).await
    }

    /// Sends one message out of band: it overtakes ordinary ones that were sent before it, but for at most one chunk
    /// of 64 KiB. Ordinary ones stay in order among themselves, and so do urgent ones.
    ///
    /// # Errors
    /// [`SendError`]; nothing of it left.
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn send_urgent(&self, body: impl Into<Body<'_>>) -> Result<(), SendError> {
        self.end.send(Class::Urgent, &body.into()).await
    }
}

impl ConnectedReceiver {
    /// The next message; urgent ones that have come go first.
    ///
    /// # Errors
    /// When everything that came was received: [`ReceiveError::Closed`] when one side has ended the connection,
    /// [`ReceiveError::Broken`] when it broke, and something that was sent may be missing.
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Received, ReceiveError> {
        receive(&mut self.reader).await
    }

    /// True when an urgent message has come and was not received.
    pub fn is_urgent_waiting(&self) -> bool {
        self.end.is_urgent_waiting()
    }
}

impl End {
    async fn send(&self, class: Class, body: &Body<'_>) -> Result<(), SendError> {
        self.owner.core.send(Target::One(self.remote.link), class, &[], body).await
    }

    fn is_urgent_waiting(&self) -> bool {
        let state = self.owner.core.state();
        state.links.get(&self.remote.link).is_some_and(|link| !link.inbox[Class::Urgent as usize].is_empty())
    }
}

async fn receive(reader: &mut Reader) -> Result<Received, ReceiveError> {
    let (_, class, body) = reader.next().await?;
    Ok(Received { is_urgent: class == Class::Urgent, body })
}

/// A connection that carries bytes: what is written in some pieces may be read in others.
#[derive(Debug)]
pub struct ByteStream {
    connected: Connected,
    rest: Bytes,
}

impl ByteStream {
    /// Writes all of `bytes`, waiting for room.
    ///
    /// # Errors
    /// [`SendError`]; a part of them may have left.
    /// # Cancel safety
    /// A future that is dropped may have written a part.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), SendError> {
        for piece in bytes.chunks(PIECE_BYTES_MAX) {
            self.connected.send(piece).await?;
        }
        Ok(())
    }

    /// Reads what has come, at most as much as fits into `buffer`; 0 at the end of the stream, which is where the other
    /// side closed or dropped it: nothing that it wrote before is missing.
    ///
    /// # Errors
    /// [`ReceiveError::Broken`] when the connection broke: what was read is a part of what was written.
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReceiveError> {
        while self.rest.is_empty() && !buffer.is_empty() {
            match self.connected.receive().await {
                Ok(received) => self.rest = received.body,
                Err(ReceiveError::Closed) => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }

    /// See [`Connected::close`].
    pub async fn close(self, deadline: Duration) -> Left {
        self.connected.close(deadline).await
    }
}

/// A socket in any of its states, with every primitive, as it is known from operating systems.
#[derive(Debug)]
pub struct AnySocket(Inner);

#[derive(Debug)]
enum Inner {
    Unbound(Socket),
    Bound(Bound),
    Listening(Listener),
    Connected(Connected),
    Closed,
}

/// The states of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    /// Neither bound nor connected.
    Unbound,
    /// It has a name.
    Bound,
    /// Others can connect.
    Listening,
    /// It can send and receive.
    Connected,
    /// It can do nothing any more.
    Closed,
}

impl std::fmt::Display for SocketState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unbound => "unbound",
            Self::Bound => "bound",
            Self::Listening => "listening",
            Self::Connected => "connected",
            Self::Closed => "closed",
        })
    }
}

/// Why a primitive failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrimitiveError {
    /// The socket is in a state in which the call makes no sense; it is as it was.
    #[error("cannot {call} a socket that is {state}")]
    OutOfOrder {
        /// The primitive.
        call: &'static str,
        /// The socket's state.
        state: SocketState,
    },
    /// Binding failed; the socket is closed.
    #[error("bind failed")]
    Bind(#[from] BindError),
    /// Connecting failed; the socket is closed.
    #[error("connect failed")]
    Connect(#[from] ConnectError),
    /// Sending failed.
    #[error("send failed")]
    Send(#[from] SendError),
    /// Receiving or accepting failed.
    #[error("receive failed")]
    Receive(#[from] ReceiveError),
}

impl AnySocket {
    /// A socket of `node`.
    pub fn new(node: &Node, options: Options) -> Self {
        Self(Inner::Unbound(Socket::new(node, options)))
    }

    /// Its state.
    pub fn state(&self) -> SocketState {
        match &self.0 {
            Inner::Unbound(_) => SocketState::Unbound,
            Inner::Bound(_) => SocketState::Bound,
            Inner::Listening(_) => SocketState::Listening,
            Inner::Connected(_) => SocketState::Connected,
            Inner::Closed => SocketState::Closed,
        }
    }

    /// Takes a name; from unbound to bound.
    ///
    /// # Errors
    /// [`PrimitiveError`].
    pub fn bind(&mut self, name: &str) -> Result<(), PrimitiveError> {
        match std::mem::replace(&mut self.0, Inner::Closed) {
            Inner::Unbound(socket) => self.0 = Inner::Bound(socket.bind(name)?),
            other => return Err(self.out_of_order("bind", other)),
        }
        Ok(())
    }

    /// Lets others connect; from bound to listening.
    ///
    /// # Errors
    /// [`PrimitiveError::OutOfOrder`].
    pub fn listen(&mut self, backlog: usize) -> Result<(), PrimitiveError> {
        match std::mem::replace(&mut self.0, Inner::Closed) {
            Inner::Bound(bound) => self.0 = Inner::Listening(bound.listen(backlog)),
            other => return Err(self.out_of_order("listen on", other)),
        }
        Ok(())
    }

    /// The next connection, a connected socket; only while listening.
    ///
    /// # Errors
    /// [`PrimitiveError`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn accept(&mut self) -> Result<Self, PrimitiveError> {
        match &mut self.0 {
            Inner::Listening(listener) => Ok(Self(Inner::Connected(listener.accept().await?))),
            _ => Err(PrimitiveError::OutOfOrder { call: "accept from", state: self.state() }),
        }
    }

    /// Connects; from unbound to connected.
    ///
    /// # Errors
    /// [`PrimitiveError`].
    /// # Cancel safety
    /// Dropping the future leaves the socket closed.
    pub async fn connect<A>(&mut self, name: &str, address: A) -> Result<(), PrimitiveError>
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        match std::mem::replace(&mut self.0, Inner::Closed) {
            Inner::Unbound(socket) => self.0 = Inner::Connected(socket.connect(name, address).await?),
            other => return Err(self.out_of_order("connect", other)),
        }
        Ok(())
    }

    /// Sends one message; only while connected.
    ///
    /// # Errors
    /// [`PrimitiveError`].
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn send(&self, body: impl Into<Body<'_>>) -> Result<(), PrimitiveError> {
        match &self.0 {
            Inner::Connected(connected) => Ok(connected.send(body).await?),
            _ => Err(PrimitiveError::OutOfOrder { call: "send on", state: self.state() }),
        }
    }

    /// The next message; only while connected.
    ///
    /// # Errors
    /// [`PrimitiveError`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Received, PrimitiveError> {
        match &mut self.0 {
            Inner::Connected(connected) => Ok(connected.receive().await?),
            _ => Err(PrimitiveError::OutOfOrder { call: "receive on", state: self.state() }),
        }
    }

    /// Closes; from any state but closed. A connected socket waits until everything arrived, at most `deadline`.
    ///
    /// # Errors
    /// [`PrimitiveError::OutOfOrder`].
    /// # Cancel safety
    /// Dropping the future leaves the socket closed.
    pub async fn close(&mut self, deadline: Duration) -> Result<Left, PrimitiveError> {
        match std::mem::replace(&mut self.0, Inner::Closed) {
            Inner::Connected(connected) => Ok(connected.close(deadline).await),
            Inner::Closed => Err(self.out_of_order("close", Inner::Closed)),
            _ => Ok(Left::default()),
        }
    }

    fn out_of_order(&mut self, call: &'static str, inner: Inner) -> PrimitiveError {
        self.0 = inner;
        PrimitiveError::OutOfOrder { call, state: self.state() }
    }
}

/// Bytes of a stream that travel as one message.
const PIECE_BYTES_MAX: usize = 64 * 1024;
