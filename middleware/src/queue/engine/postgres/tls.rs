//! TLS under the connection to PostgreSQL.
//!
//! Guarantee   with `sslmode=require` in the URL nothing is said to a server whose certificate is not for the host of the URL, or
//!             was not issued by one of the roots: those of `sslrootcert=FILE` (PEM), else those of the system.
//! Source      rustls, with ring.
//! Limits      no certificates of the client; no channel binding, so the server's `SCRAM-SHA-256` and not `-PLUS`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use super::super::EngineError;

/// What makes connections secure.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

/// A connection to a host of that name.
pub(super) struct Named {
    config: Arc<ClientConfig>,
    host: ServerName<'static>,
}

/// A secured connection.
pub(super) struct Stream(tokio_rustls::client::TlsStream<Socket>);

impl Tls {
    /// # Errors
    /// There are no roots, or they cannot be read.
    pub(super) fn new(roots: Option<&str>) -> Result<Self, EngineError> {
        let wrong = |reason| EngineError::Url { reason };
        let certificates: Vec<CertificateDer<'static>> = match roots {
            Some(file) => CertificateDer::pem_file_iter(file)
                .and_then(Iterator::collect)
                .map_err(|_| wrong("has an `sslrootcert` that cannot be read"))?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut store = RootCertStore::empty();
        // What the system has and nobody understands is no root.
        let (added, _) = store.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(wrong("needs root certificates, and there are none"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| EngineError::Refused(Box::new(error)))?;
        Ok(Self(Arc::new(config.with_root_certificates(store).with_no_client_auth())))
    }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Stream;
    type TlsConnect = Named;
    type Error = InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Named, InvalidDnsNameError> {
        let host = ServerName::try_from(domain.to_owned())?;
        Ok(Named { config: self.0.clone(), host })
    }
}

impl TlsConnect<Socket> for Named {
    type Stream = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move { TlsConnector::from(self.config).connect(self.host, stream).await.map(Stream) })
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
