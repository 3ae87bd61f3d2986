//! A link over any stream of bytes: coalesced vectored writes out, many frames per read in.
//!
//! Purpose     what every transport over a stream (TCP, Unix domain, TLS, QUIC) has in common stands here once,
//!             and serves transports of a user's own.
//! Guarantee   as the contract says, when dropping the writing half ends the stream's direction and its `poll_shutdown`
//!             flushes first.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::address::Address;
use crate::error::LinkError;
use crate::frame::{Inbox, Outbox};
use crate::transport::{FrameReceiver, FrameSender, Link};

/// Makes a link of the two halves of a stream, for a transport of your own over anything that carries bytes in order.
///
/// Dropping `write` must end its direction, so that the peer does not wait for what will not come; its `poll_shutdown`
/// must flush. The credentials of the link are empty: set them if the medium vouches for the peer.
pub fn link<R, W>(read: R, write: W, local: Address, peer: Address) -> Link
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    Link {
        sender: Box::new(StreamSender { stream: write, is_closed: false, peer: peer.clone() }),
        receiver: Box::new(StreamReceiver { stream: read, peer: peer.clone() }),
        local,
        peer,
        credentials: Default::default(),
    }
}

struct StreamSender<W> {
    stream: W,
    is_closed: bool,
    peer: Address,
}

impl<W> StreamSender<W> {
    fn broken(&self, source: io::Error) -> LinkError {
        broken(&self.peer, source)
    }
}

impl<W: AsyncWrite + Send + Unpin + 'static> FrameSender for StreamSender<W> {
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>> {
        if self.is_closed {
            return Poll::Ready(Err(LinkError::Closed));
        }
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = outbox.slices(&mut slices);
            let mut stream = Pin::new(&mut self.stream);
            let written = match &slices[..filled] {
                [one] => ready!(stream.as_mut().poll_write(cx, one)),
                many => ready!(stream.as_mut().poll_write_vectored(cx, many)),
            };
            match written {
                Ok(0) => return Poll::Ready(Err(self.broken(ErrorKind::WriteZero.into()))),
                Ok(written) => outbox.advance(written),
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
        // Nothing to do for sockets; what encrypts has a buffer of its own.
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| self.broken(error)))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.is_closed = true;
        match ready!(Pin::new(&mut self.stream).poll_shutdown(cx)) {
            // The peer is gone: what the link could deliver it has delivered.
            Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(self.broken(error))),
            _ => Poll::Ready(Ok(())),
        }
    }
}

struct StreamReceiver<R> {
    stream: R,
    peer: Address,
}

impl<R: AsyncRead + Send + Unpin + 'static> FrameReceiver for StreamReceiver<R> {
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>> {
        // The future is dropped without having taken anything unless it is ready.
        let read = ready!(pin!(self.stream.read_buf(inbox.room())).poll(cx));
        Poll::Ready(match read {
            Ok(0) => match inbox.check_end() {
                Ok(()) => Ok(false),
                Err(source) => Err(LinkError::Frame { peer: self.peer.clone(), source }),
            },
            Ok(count) => {
                inbox.filled(count);
                Ok(true)
            }
            Err(source) => Err(broken(&self.peer, source)),
        })
    }
}

/// What an error of the stream means for the link.
fn broken(peer: &Address, source: io::Error) -> LinkError {
    // A peer that refuses a certificate says so after the handshake.
    #[cfg(feature = "tls")]
    if let Some(cause) = source.get_ref().and_then(|cause| cause.downcast_ref()) {
        let source = crate::certificates::trust_error(cause);
        return LinkError::Untrusted { peer: peer.clone(), source };
    }
    #[cfg(feature = "quic")]
    if let Some(source) = crate::quic::trust_error_of(&source) {
        return LinkError::Untrusted { peer: peer.clone(), source };
    }
    LinkError::Broken { peer: peer.clone(), source }
}

/// Slices per `writev`. Each large body takes two; beyond 64 the saved system calls no longer show.
const SLICES_MAX: usize = 64;
