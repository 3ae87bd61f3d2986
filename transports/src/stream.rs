//! A link over any stream of bytes: coalesced vectored writes out, many frames per read in.
//!
//! Purpose     what every transport over a stream (TCP, Unix domain, TLS), or over several that do not wait for each
//!             other (QUIC), has in common stands here once, and serves transports of a user's own.
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

/// Makes a link of several pairs of halves, as [`link`] does of one: streams that do not wait for each other, the one to be
/// preferred first. The streams of both ends must correspond in their order. At least one.
pub fn bundle<R, W>(streams: impl IntoIterator<Item = (R, W)>, local: Address, peer: Address) -> Link
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for (read, write) in streams {
        senders.push(StreamSender { stream: write, is_closed: false, peer: peer.clone() });
        let receiver = StreamReceiver { stream: read, peer: peer.clone() };
        receivers.push(Strand { receiver, inbox: Inbox::new(0), is_over: false });
    }
    debug_assert!(!senders.is_empty(), "a link has a stream");
    Link {
        sender: Box::new(BundleSender { streams: senders }),
        receiver: Box::new(BundleReceiver { streams: receivers, peer: peer.clone() }),
        local,
        peer,
        credentials: Default::default(),
    }
}

struct BundleSender<W> {
    streams: Vec<StreamSender<W>>,
}

impl<W: AsyncWrite + Send + Unpin + 'static> FrameSender for BundleSender<W> {
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>> {
        self.poll_send_on(cx, 0, outbox)
    }

    fn streams(&self) -> usize {
        self.streams.len()
    }

    fn poll_send_on(
        &mut self,
        cx: &mut Context<'_>,
        stream: usize,
        outbox: &mut Outbox,
    ) -> Poll<Result<(), LinkError>> {
        self.streams[stream].poll_send(cx, outbox)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let mut closed = Poll::Ready(Ok(()));
        for stream in &mut self.streams {
            match stream.poll_close(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => closed = Poll::Pending,
            }
        }
        closed
    }
}

struct BundleReceiver<R> {
    streams: Vec<Strand<R>>,
    peer: Address,
}

/// One of several incoming streams.
struct Strand<R> {
    receiver: StreamReceiver<R>,
    /// A frame of which a part has come.
    inbox: Inbox,
    is_over: bool,
}

impl<R: AsyncRead + Send + Unpin + 'static> FrameReceiver for BundleReceiver<R> {
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>> {
        let bad = |source| LinkError::Frame { peer: self.peer.clone(), source };
        let mut something_came = false;
        for strand in self.streams.iter_mut().filter(|strand| !strand.is_over) {
            strand.inbox.set_frame_bytes_max(inbox.frame_bytes_max());
            match strand.receiver.poll_receive(cx, &mut strand.inbox) {
                Poll::Pending => {}
                Poll::Ready(Ok(true)) => {
                    something_came = true;
                    while let Some(frame) = strand.inbox.next_frame().map_err(bad)? {
                        inbox.push_frame(frame).map_err(bad)?;
                    }
                }
                Poll::Ready(Ok(false)) => strand.is_over = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        if something_came {
            Poll::Ready(Ok(true))
        } else if self.streams.iter().all(|strand| strand.is_over) {
            Poll::Ready(Ok(false))
        } else {
            Poll::Pending
        }
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
