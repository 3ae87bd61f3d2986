//! The contract of every transport (catalogue T1).
//!
//! Guarantee   a link delivers frames whole, in order, once, unaltered, until it breaks. It does not say what
//!             arrived when it breaks, and it does not authenticate unless its transport says so.
//! Hot path    polls that move whole batches; no allocation, no boxed future, no task per frame. Setting up is the
//!             cold path and uses boxed futures so that everything here can stand behind `dyn`.
//! Cancel      every poll may simply not be called again; a partial write stays recorded in the [`Outbox`], a
//!             partial frame in the [`Inbox`], and the next poll continues there.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::address::Address;
use crate::credentials::Credentials;
use crate::error::{LinkError, TransportError};
use crate::frame::{Inbox, Outbox};

/// A boxed future, for the cold paths only.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One way to move frames, chosen by the scheme of an address.
pub trait Transport: Send + Sync + 'static {
    /// The scheme that it serves, lower case, such as `tcp`.
    fn scheme(&self) -> &'static str;

    /// Starts listening. An address may leave the choice of the place to the transport (`tcp://127.0.0.1:0`,
    /// `mem://`); [`Listener::local_address`] tells the outcome.
    ///
    /// # Errors
    /// [`TransportError::BadAddress`], [`TransportError::InUse`], [`TransportError::Io`].
    /// # Cancel safety
    /// Dropping the future leaves no listener behind.
    fn listen<'a>(&'a self, address: &'a Address)
    -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>>;

    /// Connects, within a time limit of the transport.
    ///
    /// # Errors
    /// [`TransportError::BadAddress`], [`TransportError::Refused`], [`TransportError::TimedOut`],
    /// [`TransportError::Io`].
    /// # Cancel safety
    /// Dropping the future drops the attempt; the peer may have accepted a link that breaks at once.
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>>;

    /// Opens a socket for datagrams.
    ///
    /// # Errors
    /// [`TransportError::Unsupported`] unless the transport has datagrams; else as [`listen`](Self::listen).
    fn bind<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn DatagramSocket>, TransportError>> {
        let scheme = self.scheme();
        let _ = address;
        Box::pin(async move { Err(TransportError::Unsupported { scheme, what: "datagrams" }) })
    }
}

/// Accepts links. Dropping it stops listening and frees the address; accepted links live on.
pub trait Listener: Send + 'static {
    /// Where it stands, with every choice that was left to the transport made.
    fn local_address(&self) -> Address;

    /// Takes the next link.
    ///
    /// # Errors
    /// [`TransportError`] concerns one attempt or a passing lack of resources: pause, then poll again.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>>;

    /// Waits until the place is free again, to be awaited when the listener and all links that it accepted were dropped:
    /// where a socket outlives them for a while, to say goodbye and to answer what was under way, until that is gone; where
    /// dropping them is enough, which is what it means unless overridden, not at all.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    fn released(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// An established link: two independent directions.
///
/// Dropping a half without closing it aborts its direction: the peer finds an error or the end of the stream.
pub struct Link {
    /// Outgoing frames.
    pub sender: Box<dyn FrameSender>,
    /// Incoming frames.
    pub receiver: Box<dyn FrameReceiver>,
    /// This end.
    pub local: Address,
    /// The other end; on the accepting side often not an address that can be dialled.
    pub peer: Address,
    /// Who that is, as far as the medium vouches for it: empty when it does not, or does not know yet. Whatever it
    /// comes to know is there before the first frame of the peer is.
    pub credentials: Arc<OnceLock<Credentials>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link {} -> {}", self.local, self.peer)
    }
}

/// The outgoing half of a link.
pub trait FrameSender: Send + 'static {
    /// Moves frames from `outbox` to the medium until the outbox is empty (`Ready`) or the medium takes no more
    /// (`Pending`, woken when it does). Many frames go in one system call. Backpressure is that `Pending` lasts.
    ///
    /// `Ready` means handed to the medium, not received by the peer. `Pending` with an empty outbox means that the
    /// medium has taken everything and not passed all of it on: poll again when woken.
    ///
    /// # Errors
    /// [`LinkError`]; the sender is of no further use.
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>>;

    /// How many streams the medium has within the link; 1 unless it overrides this. Frames of one stream arrive in order.
    /// Streams do not wait for each other: what one has lost or cannot pass on holds up no other, and so frames of
    /// different streams may arrive in any order. A medium that is short of room prefers earlier streams.
    fn streams(&self) -> usize {
        1
    }

    /// As [`poll_send`](Self::poll_send), which means stream 0, for a stream below [`streams`](Self::streams), with an
    /// outbox of its own. `Pending` on one says nothing about the others.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    fn poll_send_on(
        &mut self,
        cx: &mut Context<'_>,
        stream: usize,
        outbox: &mut Outbox,
    ) -> Poll<Result<(), LinkError>> {
        debug_assert_eq!(stream, 0, "there is one stream");
        self.poll_send(cx, outbox)
    }

    /// Flushes what was handed over, then ends this direction: the peer reads everything and then a clean end. The
    /// other direction stays open. Call it when every stream was ready; once it was ready itself,
    /// calling it again changes nothing.
    ///
    /// # Errors
    /// [`LinkError`] when the flush failed.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>>;
}

/// The incoming half of a link.
pub trait FrameReceiver: Send + 'static {
    /// Moves what has arrived into `inbox`: `true` when something came (perhaps only a part of a frame, perhaps
    /// many frames), `false` when the peer ended its direction at a frame boundary. Of several streams all frames come
    /// here, each stream's in order. Take all whole frames out
    /// before polling again: that is what bounds the inbox.
    ///
    /// # Errors
    /// [`LinkError::Broken`]; [`LinkError::Frame`] when the stream ended inside a frame.
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>>;
}

/// Datagrams: each arrives whole or not at all, perhaps repeated, in any order.
pub trait DatagramSocket: Send + 'static {
    /// Where it stands.
    fn local_address(&self) -> Address;

    /// The largest datagram in bytes.
    fn datagram_bytes_max(&self) -> usize;

    /// Sends one datagram, or drops it silently when nobody is there or the medium is full, as datagrams do.
    ///
    /// # Errors
    /// [`LinkError::Frame`] when it is larger than [`datagram_bytes_max`](Self::datagram_bytes_max).
    fn poll_send_to(
        &mut self,
        cx: &mut Context<'_>,
        to: &Address,
        datagram: &[u8],
    ) -> Poll<Result<(), LinkError>>;

    /// Receives one datagram and its sender.
    ///
    /// # Errors
    /// [`LinkError::Broken`] when the socket is of no further use.
    fn poll_receive_from(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Address, Bytes), LinkError>>;
}
