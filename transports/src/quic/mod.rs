//! Frames over QUIC (RFC 9000), with certificates on both sides.
//!
//! Guarantee   as [TLS](crate::tls): nobody without a certificate of a trusted authority gets a link, reads or changes a
//!             byte, or makes this side deliver one. A link survives a change of the dialler's address.
//! Layout      one connection per link, one bidirectional stream per connection, opened by the dialler; its first byte
//!             is 0, then both directions carry frames as on every stream.
//! Names       `quic://host:port`, over UDP; `quic://*:port` listens on all interfaces.
//! Errors      as TLS. UDP has no word for "nobody listens here", so that is [`TransportError::TimedOut`].
//! Limits      [`QuicConfig`].

mod config;
mod link;
mod listen;
mod verify;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, ConnectionError, Endpoint, IdleTimeout, ReadError, TransportConfig, VarInt, WriteError,
};
use tokio::time::timeout;

pub use config::QuicConfig;

use crate::address::Address;
use crate::certificates::Certificates;
use crate::error::{TransportError, TrustError};
use crate::gate::{Gate, GateStats};
use crate::tcp;
use crate::transport::{BoxFuture, Link, Listener, Transport};

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

    async fn dial(&self, address: &Address) -> Result<Link, TransportError> {
        let host = address.rest().rsplit_once(':').map_or(address.rest(), |(host, _)| host);
        let name = self.config.expected_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
        let mut last = tcp::no_address(address);
        for place in tcp::resolve(address).await? {
            match self.dial_place(address, place, name).await {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_place(
        &self,
        address: &Address,
        place: SocketAddr,
        name: &str,
    ) -> Result<Link, TransportError> {
        let (crypto, refusal) = verify::client(&self.certificates);
        let bad = |reason: String| TransportError::BadAddress { address: address.clone(), reason };
        let crypto = QuicClientConfig::try_from(crypto).map_err(|error| bad(error.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(self.transport_config()));
        let here: SocketAddr = match place {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = Endpoint::client(here).map_err(|error| tcp::io_error(address, error))?;
        let dialling = endpoint.connect_with(config, place, name).map_err(|error| bad(error.to_string()))?;
        let connected = async {
            let connection = dialling.await?;
            let (mut send, receive) = connection.open_bi().await?;
            // Without a byte the peer would not hear of the stream.
            send.write_all(&PREFACE).await.map_err(io::Error::from)?;
            Ok::<_, link::Failure>(link::link(&connection, send, receive, &endpoint, address.clone()))
        };
        connected.await.map_err(|failure| match failure {
            link::Failure::Connection(error) => match trust_error(&error, refusal.take()) {
                Some(source) => TransportError::Untrusted { address: address.clone(), source },
                None => tcp::io_error(address, error.into()),
            },
            link::Failure::Io(error) => tcp::io_error(address, error),
        })
    }

    fn transport_config(&self) -> TransportConfig {
        let window = VarInt::from_u32(self.config.link_bytes_max.max(1));
        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(window)
            .receive_window(window)
            .send_window(window.into_inner())
            .keep_alive_interval(Some(Duration::from_millis(self.config.keepalive_ms.max(1).into())))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(self.config.silence_ms_max.max(1)))));
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
        Box::pin(async move {
            let limit_ms = self.config.connect_ms_max;
            match timeout(Duration::from_millis(limit_ms), self.dial(address)).await {
                Ok(dialled) => dialled,
                Err(_) => Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
            }
        })
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
/// What the stream begins with: the kind of what follows. There is only one so far.
const PREFACE: [u8; 1] = [0];
