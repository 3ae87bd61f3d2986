//! Frames over QUIC (RFC 9000), with certificates on both sides.
//!
//! Guarantee   as [TLS](crate::tls): nobody without a certificate of a trusted authority gets a link, reads or changes a
//!             byte, or makes this side deliver one. A link survives a change of the dialler's address.
//! Lanes       each lane of a link is a stream: what one has lost on the way holds up no other. Control and urgent ones
//!             go before the rest, in this order, and share with it from time to time, so that nothing starves; ordinary and
//!             bulk ones share what is left.
//! Datagrams   a datagram socket keeps a connection with each peer that it sends to or hears of, as long as something
//!             travels. Who sends first waits for that with its first [`WAITING_MAX`] datagrams; more are dropped.
//! Layout      one connection per link, four bidirectional streams per connection, opened by the dialler; the first
//!             byte of each is its number, then both directions carry frames as on every stream.
//! Names       `quic://host:port`, over UDP; `quic://*:port` listens on all interfaces. Of a host with several addresses
//!             the first that answers is taken, as with TCP.
//! Errors      as TLS. That nobody listens is told by the network, if at all: [`TransportError::Refused`] where the host says
//!             so, [`TransportError::TimedOut`] where nobody says anything.
//! Limits      [`QuicConfig`].

mod config;
mod datagram;
mod link;
mod listen;
mod socket;
mod verify;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, IdleTimeout, ReadError, TransportConfig, VarInt,
    WriteError,
};
use tokio::time::timeout;

pub use config::QuicConfig;
pub use datagram::{DATAGRAM_BYTES_MAX, WAITING_MAX};

use crate::address::Address;
use crate::certificates::{Certificates, PROTOCOL};
use crate::error::{TransportError, TrustError};
use crate::gate::{Gate, GateStats};
use crate::probe::refused;
use crate::tcp;
use crate::transport::{BoxFuture, DatagramSocket, Link, Listener, Transport};

/// The transport `quic://`. Clones share their counters.
#[derive(Debug, Clone)]
pub struct Quic {
    certificates: Certificates,
    config: QuicConfig,
    gate: Arc<Gate>,
}

impl Quic {
    /// With the defaults.
    pub fn new(certificates: Certificates) -> Self {
        Self::with_config(certificates, QuicConfig::default())
    }

    /// With settings of your own.
    pub fn with_config(certificates: Certificates, config: QuicConfig) -> Self {
        Self { certificates, config, gate: Arc::default() }
    }

    /// What became of those who dialled this transport's listeners.
    pub fn stats(&self) -> GateStats {
        self.gate.stats()
    }

    /// Dials the places of an address, all of them within the limit.
    async fn dial(
        &self,
        address: &Address,
        places: impl Future<Output = Result<Vec<SocketAddr>, TransportError>>,
    ) -> Result<Link, TransportError> {
        let limit_ms = self.config.connect_ms_max;
        // A place that says nothing must not hide that another one said no.
        let refusal = Arc::new(Mutex::new(None));
        let dialling = async {
            let attempt = |place| {
                let (quic, address, refusal) = (self.clone(), address.clone(), refusal.clone());
                async move {
                    quic.dial_place(&address, place).await.map_err(|error| {
                        refusal.lock().unwrap_or_else(PoisonError::into_inner).replace(error);
                    })
                }
            };
            match tcp::dial_any(places.await?, attempt).await {
                Ok(link) => Ok(Some(link)),
                Err(_) => Ok(None),
            }
        };
        let dialled = timeout(Duration::from_millis(limit_ms), dialling).await;
        let refusal = refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (dialled, refusal) {
            (Ok(Err(error)), _) => Err(error),
            (Ok(Ok(Some(link))), _) => Ok(link),
            (_, Some(error)) => Err(error),
            (Ok(Ok(None)), None) => Err(tcp::no_address(address)),
            (Err(_), None) => Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
        }
    }

    async fn dial_place(&self, address: &Address, place: SocketAddr) -> Result<Link, TransportError> {
        let here: SocketAddr = match place {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = Endpoint::client(here).map_err(|error| tcp::io_error(address, error))?;
        let endpoint = &endpoint;
        let begin = |connection: Connection| async move {
            let streams = link::open(&connection).await?;
            Ok(link::link(&connection, streams, endpoint, address.clone()))
        };
        tokio::select! {
            connected = self.connect_from(endpoint, Use::Links, address, place, begin) => connected,
            error = refused(place) => Err(tcp::io_error(address, error)),
        }
    }

    /// Connects, and does what begins with that, of which an error may say more about the peer's trust.
    async fn connect_from<T, F>(
        &self,
        endpoint: &Endpoint,
        usage: Use,
        address: &Address,
        place: SocketAddr,
        begin: impl FnOnce(Connection) -> F,
    ) -> Result<T, TransportError>
    where
        F: Future<Output = Result<T, link::Failure>>,
    {
        let host = address.rest().rsplit_once(':').map_or(address.rest(), |(host, _)| host);
        let name = self.config.expected_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
        let (mut crypto, refusal) = verify::client(&self.certificates);
        crypto.alpn_protocols = vec![usage.protocol().to_vec()];
        let bad = |reason: String| TransportError::BadAddress { address: address.clone(), reason };
        let crypto = QuicClientConfig::try_from(crypto).map_err(|error| bad(error.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(self.transport_config(usage)));
        let dialling = endpoint.connect_with(config, place, name).map_err(|error| bad(error.to_string()))?;
        let connected = async { begin(dialling.await?).await };
        connected.await.map_err(|failure| match failure {
            link::Failure::Connection(error) => match trust_error(&error, refusal.take()) {
                Some(source) => TransportError::Untrusted { address: address.clone(), source },
                None => tcp::io_error(address, error.into()),
            },
            link::Failure::Io(error) => tcp::io_error(address, error),
        })
    }

    fn transport_config(&self, usage: Use) -> TransportConfig {
        let window = self.config.lane_bytes_max.clamp(1, u32::MAX / u32::from(link::STREAMS));
        let windows = VarInt::from_u32(window * u32::from(link::STREAMS));
        let keepalive = Duration::from_millis(self.config.keepalive_ms.max(1).into());
        let mut config = TransportConfig::default();
        config
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(window))
            // A lane that is held up must not take the others' room.
            .receive_window(windows)
            .send_window(windows.into_inner())
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(self.config.silence_ms_max.max(1)))));
        match usage {
            Use::Links => config
                .max_concurrent_bidi_streams(VarInt::from_u32(link::STREAMS.into()))
                .datagram_receive_buffer_size(None)
                .keep_alive_interval(Some(keepalive)),
            Use::Datagrams => config
                .max_concurrent_bidi_streams(VarInt::from_u32(0))
                .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
                .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES),
        };
        config
    }
}

impl Transport for Quic {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = listen::QuicListener::open(self, address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(self.dial(address, tcp::resolve(address)))
    }

    fn bind<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn DatagramSocket>, TransportError>> {
        Box::pin(async move {
            let socket = datagram::QuicDatagrams::open(self, address).await?;
            Ok(Box::new(socket) as Box<dyn DatagramSocket>)
        })
    }
}

/// What a connection is for; the two sides must mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Links,
    Datagrams,
}

impl Use {
    /// Its name in the handshake (ALPN).
    fn protocol(self) -> &'static [u8] {
        match self {
            Self::Links => PROTOCOL,
            Self::Datagrams => b"quorate-datagrams",
        }
    }
}

/// What the end of a connection says about trust, if it does. `refusal` is what this side found.
fn trust_error(error: &ConnectionError, refusal: Option<TrustError>) -> Option<TrustError> {
    if refusal.is_some() {
        return refusal;
    }
    match error {
        // An alert of TLS, as the peer sent it.
        ConnectionError::ConnectionClosed(close) if is_alert(close.error_code) => {
            Some(TrustError::Refused { reason: close.error_code.to_string() })
        }
        ConnectionError::TransportError(error) if is_alert(error.code) => {
            Some(TrustError::Protocol { reason: error.reason.clone() })
        }
        _ => None,
    }
}

/// What an error of a stream says about trust, if it does.
pub(crate) fn trust_error_of(error: &io::Error) -> Option<TrustError> {
    let cause = error.get_ref()?;
    let lost = match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(ReadError::ConnectionLost(lost)), _) | (_, Some(WriteError::ConnectionLost(lost))) => lost,
        _ => return None,
    };
    trust_error(lost, None)
}

/// RFC 9001, section 4.8.
fn is_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

const SCHEME: &str = "quic";
/// Datagrams of one connection that wait to leave, and that wait to be taken, in bytes; the oldest are dropped beyond it.
const DATAGRAM_BUFFER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::future::{poll_fn, ready};
    use std::net::UdpSocket;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    /// Of a member whose authority nobody else knows.
    fn certificates() -> Certificates {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let chain = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let chain = chain.signed_by(&key, &authority).unwrap();
        Certificates::from_pem(&authority.pem(), &chain.pem(), &key.serialize_pem()).unwrap()
    }

    #[tokio::test]
    async fn t04_an_address_that_swallows_everything_does_not_hold_up_the_next_one_nor_hide_its_no() {
        let hole = UdpSocket::bind("127.0.0.1:0").unwrap();
        let quic = Quic::new(certificates());
        let mut listener = quic.listen(&"quic://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let target = listener.local_address();
        let accepting = tokio::spawn(async move { poll_fn(|cx| listener.poll_accept(cx)).await });
        let places = [hole.local_addr().unwrap(), target.rest().parse().unwrap()];
        let dialled = quic.dial(&target, ready(Ok(places.to_vec()))).await;
        assert_eq!(dialled.unwrap().peer, target);
        accepting.await.unwrap().unwrap();

        let mut listener = quic.listen(&"quic://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let target = listener.local_address();
        let accepting = tokio::spawn(async move { poll_fn(|cx| listener.poll_accept(cx)).await });
        let config = QuicConfig { connect_ms_max: 1_000, ..QuicConfig::default() };
        let stranger = Quic::with_config(certificates(), config);
        let places = [target.rest().parse().unwrap(), hole.local_addr().unwrap()];
        let error = stranger.dial(&target, ready(Ok(places.to_vec()))).await.unwrap_err();
        assert!(matches!(error, TransportError::Untrusted { .. }), "{error:?}");
        accepting.abort();
    }
}
