//! Accepting QUIC connections.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, Incoming, ServerConfig};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Quic, SCHEME, Use, link, socket, trust_error, verify};
use crate::address::Address;
use crate::error::{LinkError, TransportError};
use crate::gate::{Gate, Handshakes};
use crate::release::Release;
use crate::tcp;
use crate::transport::{BoxFuture, Link, Listener};

pub(super) struct QuicListener {
    quic: Quic,
    endpoint: Endpoint,
    release: Release,
    address: Address,
    incoming: BoxFuture<'static, Option<Incoming>>,
    handshakes: Handshakes,
    /// One task per dialler that has not proved yet who it is; as many as there are places.
    running: JoinSet<Option<Link>>,
}

impl QuicListener {
    pub(super) async fn open(quic: &Quic, address: &Address) -> Result<Self, TransportError> {
        let mut last = tcp::no_address(address);
        for place in tcp::places(address).await? {
            match bind(quic, Use::Links, address, place).await {
                Ok((endpoint, release)) => {
                    let local = endpoint.local_addr().map_err(|error| tcp::io_error(address, error))?;
                    return Ok(Self {
                        quic: quic.clone(),
                        incoming: next(&endpoint),
                        endpoint,
                        release,
                        address: tcp::to_address(SCHEME, local),
                        handshakes: Handshakes::new(quic.config.handshakes_max),
                        running: JoinSet::new(),
                    });
                }
                Err(error @ TransportError::InUse { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn start(&mut self, incoming: Incoming) {
        let endpoint = self.endpoint.clone();
        let peer = tcp::to_address(SCHEME, incoming.remote_address());
        let begin = |connection: Connection| async move {
            let streams = link::take(&connection).await?;
            Ok(link::link(&connection, streams, &endpoint, peer))
        };
        let admission = admit(&self.quic, Use::Links, &self.handshakes, incoming, begin);
        if let Some(admission) = admission {
            self.running.spawn(admission);
        }
    }
}

/// Gives a newcomer a place in which it may prove who it is; `None` when it must first show where it is.
pub(super) fn admit<T, B, F>(
    quic: &Quic,
    usage: Use,
    handshakes: &Handshakes,
    incoming: Incoming,
    begin: B,
) -> Option<impl Future<Output = Option<T>> + use<T, B, F>>
where
    B: FnOnce(Connection) -> F,
    F: Future<Output = Result<T, link::Failure>>,
{
    // Anybody can write any sender on a packet: when places become scarce, only who answers from there gets one.
    if handshakes.is_busy() && !incoming.remote_address_validated() {
        // Who could not be told tries again by itself.
        let _ = incoming.retry();
        return None;
    }
    let peer = tcp::to_address(SCHEME, incoming.remote_address());
    let mut place = handshakes.enter(&peer);
    let limit = Duration::from_millis(quic.config.handshake_ms_max);
    let quic = quic.clone();
    Some(async move {
        let accepting = accept(&quic, usage, incoming, &peer, begin);
        let outcome = match place.hold(timeout(limit, accepting)).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(LinkError::broken(&peer, ErrorKind::TimedOut)),
            None => Err(LinkError::broken(&peer, ErrorKind::ConnectionAborted)),
        };
        let gate: &Gate = &quic.gate;
        match outcome {
            Ok(begun) => {
                gate.let_in();
                Some(begun)
            }
            Err(error) => {
                gate.turn_away(error);
                None
            }
        }
    })
}

impl Listener for QuicListener {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        loop {
            while let Poll::Ready(Some(done)) = self.running.poll_join_next(cx) {
                // A task that panicked took its dialler with it.
                if let Ok(Some(link)) = done {
                    return Poll::Ready(Ok(link));
                }
            }
            let Some(incoming) = ready!(self.incoming.as_mut().poll(cx)) else {
                let source = ErrorKind::NotConnected.into();
                return Poll::Ready(Err(TransportError::Io { address: self.address.clone(), source }));
            };
            self.incoming = next(&self.endpoint);
            self.start(incoming);
        }
    }

    fn released(&self) -> BoxFuture<'static, ()> {
        self.release.wait()
    }
}

impl Drop for QuicListener {
    fn drop(&mut self) {
        // Links live on, on the same socket; newcomers are refused.
        self.endpoint.set_server_config(None);
    }
}

fn next(endpoint: &Endpoint) -> BoxFuture<'static, Option<Incoming>> {
    let endpoint = endpoint.clone();
    Box::pin(async move { endpoint.accept().await })
}

/// An endpoint that can be dialled, and dial, and what tells when the system has its place back.
pub(super) async fn bind(
    quic: &Quic,
    usage: Use,
    address: &Address,
    place: SocketAddr,
) -> Result<(Endpoint, Release), TransportError> {
    let (config, _) = server_config(quic, usage, address)?;
    let mut tries = 0;
    loop {
        match socket::server(config.clone(), place) {
            // Of a listener that was dropped just now, when nobody waited for the release of its place.
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries < RELEASE_TRIES => {
                tries += 1;
                sleep(RELEASE_PAUSE).await;
            }
            bound => return bound.map_err(|error| tcp::io_error(address, error)),
        }
    }
}

fn server_config(
    quic: &Quic,
    usage: Use,
    address: &Address,
) -> Result<(ServerConfig, verify::Refusal), TransportError> {
    let bad = |reason: String| TransportError::BadAddress { address: address.clone(), reason };
    let (mut crypto, refusal) = verify::server(&quic.certificates).map_err(|error| bad(error.to_string()))?;
    crypto.alpn_protocols = vec![usage.protocol().to_vec()];
    let crypto = QuicServerConfig::try_from(crypto).map_err(|error| bad(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(quic.transport_config(usage)))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX * 16);
    Ok((config, refusal))
}

/// Lets a dialler prove who it is, and does what begins with that.
async fn accept<T, F>(
    quic: &Quic,
    usage: Use,
    incoming: Incoming,
    peer: &Address,
    begin: impl FnOnce(Connection) -> F,
) -> Result<T, LinkError>
where
    F: Future<Output = Result<T, link::Failure>>,
{
    let broken = |error: std::io::Error| LinkError::Broken { peer: peer.clone(), source: error };
    // A configuration of its own tells why this very dialler was refused.
    let (config, refusal) =
        server_config(quic, usage, peer).map_err(|error| broken(std::io::Error::other(error)))?;
    let accepted = async { begin(incoming.accept_with(Arc::new(config))?.await?).await };
    accepted.await.map_err(|failure| match failure {
        link::Failure::Connection(error) => match trust_error(&error, refusal.take()) {
            Some(source) => LinkError::Untrusted { peer: peer.clone(), source },
            None => broken(error.into()),
        },
        link::Failure::Io(error) => broken(error),
    })
}

/// Newcomers that wait to be looked at; beyond them packets of further ones are dropped.
const INCOMING_MAX: usize = 1024;
/// Bytes that one of them may send meanwhile; all together sixteen times that.
const INCOMING_BYTES_MAX: u64 = 64 * 1024;
/// How long to wait for an address that may be about to be free.
const RELEASE_TRIES: u32 = 20;
const RELEASE_PAUSE: Duration = Duration::from_millis(5);
