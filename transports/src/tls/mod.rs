//! Frames over TLS 1.3 over TCP, with certificates on both sides.
//!
//! Guarantee   as the contract says, and: nobody without a certificate of a trusted authority gets a link, reads or
//!             changes a byte, or makes this side deliver one ([`Certificates`]). The peer's certificate is in
//!             [`Link::credentials`]; which node it may claim to be is the user's to decide.
//! Names       as TCP's: `tls://host:port`. Who dials checks that the certificate is made out to `host`, or to
//!             [`TlsConfig::expected_name`].
//! Errors      who dials gets [`TransportError::Untrusted`] when it refuses the listener, and
//!             [`LinkError::Untrusted`](crate::LinkError::Untrusted) from its first receive when the listener refuses
//!             it: in TLS 1.3 the dialler is done first. A listener says nothing of diallers that it refused; they are
//!             counted in [`Tls::stats`].
//! Limits      [`TlsConfig`].

mod ahead;
mod config;
mod link;
mod listen;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

pub use config::TlsConfig;

use self::ahead::Ahead;
use crate::address::Address;
use crate::certificates::{Certificates, trust_error};
use crate::error::TransportError;
use crate::gate::{Gate, GateStats};
use crate::tcp;
use crate::transport::{BoxFuture, Link, Listener, Transport};

/// The transport `tls://`. Clones share their counters.
#[derive(Debug, Clone)]
pub struct Tls {
    certificates: Certificates,
    config: TlsConfig,
    gate: Arc<Gate>,
}

impl Tls {
    /// With the defaults.
    pub fn new(certificates: Certificates) -> Self {
        Self::with_config(certificates, TlsConfig::default())
    }

    /// With settings of your own.
    pub fn with_config(certificates: Certificates, config: TlsConfig) -> Self {
        Self { certificates, config, gate: Arc::default() }
    }

    /// What became of those who dialled this transport's listeners.
    pub fn stats(&self) -> GateStats {
        self.gate.stats()
    }

    async fn dial(&self, address: &Address) -> Result<Link, TransportError> {
        let name = server_name(address, self.config.expected_name.as_deref())?;
        let stream = tcp::dial(&self.config.tcp, address).await?;
        match TlsConnector::from(self.certificates.client()).connect(name, Ahead::new(stream)).await {
            Ok(stream) => link::dialled(stream.into(), address),
            Err(error) => Err(match error.get_ref().and_then(|cause| cause.downcast_ref()) {
                Some(cause) => {
                    TransportError::Untrusted { address: address.clone(), source: trust_error(cause) }
                }
                None => tcp::io_error(address, error),
            }),
        }
    }
}

impl Transport for Tls {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = listen::TlsListener::open(self, address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let limit_ms = self.config.tcp.connect_ms_max;
            match timeout(Duration::from_millis(limit_ms), self.dial(address)).await {
                Ok(dialled) => dialled,
                Err(_) => Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
            }
        })
    }
}

/// Whom the certificate of whoever listens at `address` must be made out to.
pub(crate) fn server_name(
    address: &Address,
    expected: Option<&str>,
) -> Result<ServerName<'static>, TransportError> {
    let host = address.rest().rsplit_once(':').map_or(address.rest(), |(host, _)| host);
    let host = expected.unwrap_or(host.trim_start_matches('[').trim_end_matches(']'));
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(ip.into()));
    }
    ServerName::try_from(host.to_owned()).map_err(|_| TransportError::BadAddress {
        address: address.clone(),
        reason: format!("{host:?} is no name that a certificate can have"),
    })
}

const SCHEME: &str = "tls";
