//! Accepting TLS sessions.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::ahead::Ahead;
use super::{SCHEME, Tls, link};
use crate::address::Address;
use crate::certificates::trust_error;
use crate::error::{LinkError, TransportError};
use crate::gate::Handshakes;
use crate::tcp::{self, TcpListener};
use crate::transport::{Link, Listener};

pub(super) struct TlsListener {
    tls: Tls,
    tcp: TcpListener,
    handshakes: Handshakes,
    /// One task per dialler that has not proved yet who it is, or is told that it may not come in; as many as there are
    /// places.
    running: JoinSet<Option<Link>>,
}

impl TlsListener {
    pub(super) async fn open(tls: &Tls, address: &Address) -> Result<Self, TransportError> {
        Ok(Self {
            tls: tls.clone(),
            tcp: TcpListener::open(&tls.config.tcp, SCHEME, address).await?,
            handshakes: Handshakes::new(tls.config.handshakes_max.max(1)),
            running: JoinSet::new(),
        })
    }

    fn start(&mut self, stream: TcpStream) {
        let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
        let (local, peer) = (tcp::to_address(SCHEME, local), tcp::to_address(SCHEME, peer));
        let mut place = self.handshakes.enter(&peer);
        let limit = Duration::from_millis(self.tls.config.handshake_ms_max);
        let acceptor = TlsAcceptor::from(self.tls.certificates.server());
        let gate = self.tls.gate.clone();
        self.running.spawn(async move {
            let accepting = timeout(limit, acceptor.accept(Ahead::new(stream)).into_fallible());
            match place.hold(accepting).await {
                Some(Ok(Ok(session))) => {
                    gate.let_in();
                    Some(link::link(session.into(), local, peer))
                }
                Some(Ok(Err((error, stream)))) => {
                    gate.turn_away(refusal(&peer, error));
                    // Who does not read it loses its place like every other who is slow.
                    let _ = place.hold(timeout(limit, farewell(stream))).await;
                    None
                }
                Some(Err(_)) => {
                    gate.turn_away(LinkError::broken(&peer, io::ErrorKind::TimedOut));
                    None
                }
                None => {
                    gate.turn_away(LinkError::broken(&peer, io::ErrorKind::ConnectionAborted));
                    None
                }
            }
        });
    }
}

impl Listener for TlsListener {
    fn local_address(&self) -> Address {
        self.tcp.local_address()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        loop {
            while let Poll::Ready(Some(done)) = self.running.poll_join_next(cx) {
                // A task that panicked took its dialler with it.
                if let Ok(Some(link)) = done {
                    return Poll::Ready(Ok(link));
                }
            }
            let stream = ready!(self.tcp.poll_stream(cx))?;
            self.start(stream);
        }
    }
}

fn refusal(peer: &Address, error: io::Error) -> LinkError {
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(cause) => LinkError::Untrusted { peer: peer.clone(), source: trust_error(cause) },
        None => LinkError::Broken { peer: peer.clone(), source: error },
    }
}

/// Lets the dialler read why: closing a socket in which its bytes are unread would take the alert back.
async fn farewell(mut stream: Ahead) {
    let mut left = FAREWELL_BYTES_MAX;
    let mut waste = [0; 4096];
    if stream.shutdown().await.is_err() {
        return;
    }
    while let Ok(count @ 1..) = stream.read(&mut waste).await
        && left > count
    {
        left -= count;
    }
}

/// For how many bytes a dialler that was turned away is listened to.
const FAREWELL_BYTES_MAX: usize = 256 * 1024;
