//! A TLS session as a link: two halves that share it.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use super::SCHEME;
use super::ahead::Ahead;
use crate::address::Address;
use crate::certificates::certificate;
use crate::credentials::Credentials;
use crate::error::TransportError;
use crate::stream;
use crate::tcp;
use crate::transport::Link;

/// The link of who dialled `peer`.
pub(super) fn dialled(session: TlsStream<Ahead>, peer: &Address) -> Result<Link, TransportError> {
    let local = session.get_ref().0.socket().local_addr().map_err(|error| tcp::io_error(peer, error))?;
    Ok(link(session, tcp::to_address(SCHEME, local), peer.clone()))
}

/// The link between two known places.
pub(super) fn link(session: TlsStream<Ahead>, local: Address, peer: Address) -> Link {
    let known = certificate(session.get_ref().1.peer_certificates());
    let session = Arc::new(Mutex::new(session));
    let link =
        stream::link(Reading { session: session.clone(), failed: None }, Writing(session), local, peer);
    if let Some(certificate) = known {
        // Just made, so it is empty.
        let _ = link.credentials.set(Credentials::Certificate(certificate));
    }
    link
}

/// The receiving half.
struct Reading {
    session: Session,
    /// What came behind bytes that were given out first.
    failed: Option<io::Error>,
}

/// The sending half.
struct Writing(Session);

/// Held for one poll only; the two halves are mostly in one task.
type Session = Arc<Mutex<TlsStream<Ahead>>>;

fn lock(session: &Session) -> MutexGuard<'_, TlsStream<Ahead>> {
    // A panic in the middle of a record leaves a session that fails at its next check.
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { session, failed } = &mut *self;
        if let Some(error) = failed.take() {
            return Poll::Ready(Err(error));
        }
        let mut session = lock(session);
        // One record at a time comes out of it; whoever reads wants all that has come.
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            let filled = buffer.filled().len();
            match Pin::new(&mut *session).poll_read(cx, buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > filled => {}
                nothing if filled == before => return nothing,
                // An end comes again.
                nothing => {
                    if let Poll::Ready(Err(error)) = nothing {
                        *failed = Some(error);
                    }
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writing {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write_vectored(cx, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_shutdown(cx)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Without the word that TLS ends with, unless it was said: the peer finds a truncated stream.
        let _ = SockRef::from(lock(&self.0).get_ref().0.socket()).shutdown(Shutdown::Write);
    }
}
