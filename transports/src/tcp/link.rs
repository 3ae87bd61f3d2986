//! A TCP connection as a link: coalesced `writev` out, many frames per read in.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::config::TcpConfig;
use super::to_address;
use crate::address::Address;
use crate::error::LinkError;
use crate::frame::{Inbox, Outbox};
use crate::transport::{FrameReceiver, FrameSender, Link};

/// Sets the options of a fresh connection.
pub(super) fn link(config: &TcpConfig, stream: TcpStream) -> io::Result<Link> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(config.keepalive_idle_s.max(1)))
        .with_interval(Duration::from_secs(config.keepalive_interval_s.max(1)));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    // What the system has taken, no lane overtakes any more: without this it takes megabytes from a reader that is slow.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    SockRef::from(&stream).set_tcp_notsent_lowat(config.unsent_bytes_max.max(1))?;
    let local = to_address(stream.local_addr()?);
    let peer = to_address(stream.peer_addr()?);
    let (read, write) = stream.into_split();
    Ok(Link {
        sender: Box::new(TcpSender { stream: write, is_closed: false, peer: peer.clone() }),
        receiver: Box::new(TcpReceiver { stream: read, peer: peer.clone() }),
        local,
        peer,
    })
}

struct TcpSender {
    /// Its drop ends the direction, so that the peer does not wait for what will not come.
    stream: OwnedWriteHalf,
    is_closed: bool,
    peer: Address,
}

impl TcpSender {
    fn broken(&self, source: io::Error) -> LinkError {
        LinkError::Broken { peer: self.peer.clone(), source }
    }
}

impl FrameSender for TcpSender {
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
        Poll::Ready(Ok(()))
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

struct TcpReceiver {
    stream: OwnedReadHalf,
    peer: Address,
}

impl FrameReceiver for TcpReceiver {
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
            Err(source) => Err(LinkError::Broken { peer: self.peer.clone(), source }),
        })
    }
}

/// Slices per `writev`. Each large body takes two; beyond 64 the saved system calls no longer show.
const SLICES_MAX: usize = 64;
