//! Who this process is, and whom it trusts: for every transport that uses TLS.
//!
//! Guarantee   TLS 1.3 only, and always in both directions: each side proves that it holds the key of a certificate
//!             that an authority of the other side's choice has signed and that is valid now. Who dials also checks that
//!             the certificate is made out to the host that it dialled.
//! Limits      revocation is not checked: give certificates short lives.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig, version};
#[cfg(feature = "quic")]
use rustls::{
    client::WebPkiServerVerifier, client::danger::ServerCertVerifier, server::danger::ClientCertVerifier,
};
use webpki::EndEntityCert;

use crate::credentials::Certificate;
use crate::error::TrustError;

/// The certificate and key of this process, and the authorities that it trusts. Cheap to clone; shared by transports.
#[derive(Clone)]
pub struct Certificates {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// What a listener is asked by, and a dialler, when somebody wants to know the answers too.
    #[cfg(feature = "quic")]
    verifiers: (Arc<dyn ServerCertVerifier>, Arc<dyn ClientCertVerifier>),
}

impl Certificates {
    /// From texts in PEM: the authorities' certificates, the own chain (own certificate first), the own private key
    /// (PKCS#8, PKCS#1 or SEC1).
    ///
    /// # Errors
    /// [`CertificatesError`].
    pub fn from_pem(authorities: &str, chain: &str, key: &str) -> Result<Self, CertificatesError> {
        let list = |what, text: &str| {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            match all {
                Ok(list) if !list.is_empty() => Ok(list),
                Ok(_) => Err(CertificatesError { what, source: "no certificate in it".into() }),
                Err(error) => Err(CertificatesError { what, source: error.into() }),
            }
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
        let key = key.map_err(|error| CertificatesError { what: "key", source: error.into() })?;
        Self::new(list("authorities", authorities)?, list("chain", chain)?, key)
    }

    fn new(
        authorities: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificatesError> {
        let failed = |what| move |error: rustls::Error| CertificatesError { what, source: error.into() };
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(failed("authorities"))?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| CertificatesError { what: "authorities", source: error.into() })?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(failed("protocol"))?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(failed("chain and key"))?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(failed("protocol"))?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain, key)
            .map_err(failed("chain and key"))?;
        // Tells other protocols with the same authority apart.
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A resumed session would be believed although its certificate has expired since.
        server.send_tls13_tickets = 0;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            #[cfg(feature = "quic")]
            verifiers: {
                let servers = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                (
                    servers
                        .map_err(|error| CertificatesError { what: "authorities", source: error.into() })?,
                    verifier,
                )
            },
        })
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    #[cfg(feature = "tls")]
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// As [`server`](Self::server), with a verifier of one's own.
    #[cfg(feature = "quic")]
    pub(crate) fn server_with(
        &self,
        verifier: Arc<dyn ClientCertVerifier>,
    ) -> Result<ServerConfig, rustls::Error> {
        let mut server = ServerConfig::builder_with_provider(self.server.crypto_provider().clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.server.cert_resolver.clone());
        server.alpn_protocols = self.server.alpn_protocols.clone();
        server.send_tls13_tickets = 0;
        Ok(server)
    }

    /// Who verifies listeners and diallers.
    #[cfg(feature = "quic")]
    pub(crate) fn verifiers(&self) -> (Arc<dyn ServerCertVerifier>, Arc<dyn ClientCertVerifier>) {
        self.verifiers.clone()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.write_str("Certificates")
    }
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("unusable {what}")]
pub struct CertificatesError {
    /// Which part: `authorities`, `chain`, `key`, `chain and key` when they do not belong together.
    pub what: &'static str,
    /// What is wrong with it.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What a peer has proved, from its chain.
pub(crate) fn certificate(chain: Option<&[CertificateDer<'_>]>) -> Option<Certificate> {
    let der = chain?.first()?;
    let names = match EndEntityCert::try_from(der) {
        Ok(parsed) => parsed.valid_dns_names().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    };
    Some(Certificate::new(der, names))
}

/// What a failure of TLS means for who wants to talk to the peer.
pub(crate) fn trust_error(error: &rustls::Error) -> TrustError {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TrustError::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TrustError::NotValidYet
            }
            CertificateError::UnknownIssuer => TrustError::UnknownAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TrustError::WrongName
            }
            error => TrustError::BadCertificate { reason: error.to_string() },
        },
        Error::NoCertificatesPresented => TrustError::NoCertificate,
        Error::AlertReceived(alert) => TrustError::Refused { reason: format!("{alert:?}") },
        error => TrustError::Protocol { reason: error.to_string() },
    }
}

/// What links call themselves in the handshake (ALPN).
pub(crate) const PROTOCOL: &[u8] = b"quorate";
