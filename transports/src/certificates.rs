//! Who this process is, and whom it trusts: for every transport that uses TLS.
//!
//! Guarantee   TLS 1.3 only, and always in both directions: each side proves that it holds the key of a certificate
//!             that an authority of the other side's choice has signed and that is valid now. Who dials also checks that
//!             the certificate is made out to the host that it dialled.
//! Revocation  whoever is on one of the [lists](Certificates::revoke) in use is refused, and with lists in use so is
//!             everybody whose authority has none among them that is still current. What counts are the lists at the moment
//!             at which somebody proves who it is.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme, version,
};
use webpki::EndEntityCert;

use crate::credentials::Certificate;
use crate::error::TrustError;

/// The certificate and key of this process, and the authorities that it trusts. Cheap to clone; shared by transports.
#[derive(Clone)]
pub struct Certificates {
    shared: Arc<Shared>,
}

struct Shared {
    roots: Arc<RootCertStore>,
    judges: Arc<Judges>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Judges certificates by the lists that are in use when they are shown.
#[derive(Debug)]
struct Judges {
    current: RwLock<Current>,
    /// Names of the trusted authorities.
    hints: Vec<DistinguishedName>,
}

/// What follows from the lists in use.
#[derive(Debug, Clone)]
struct Current {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Certificates {
    /// From texts in PEM: the authorities' certificates, the own chain (own certificate first), the own private key
    /// (PKCS#8, PKCS#1 or SEC1).
    ///
    /// # Errors
    /// [`CertificatesError`].
    pub fn from_pem(authorities: &str, chain: &str, key: &str) -> Result<Self, CertificatesError> {
        let authorities = list::<CertificateDer<'static>>("authorities", authorities)?;
        let chain = list::<CertificateDer<'static>>("chain", chain)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
        let key = key.map_err(|error| CertificatesError { what: "key", source: error.into() })?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            let added = roots.add(authority);
            added.map_err(|error| CertificatesError { what: "authorities", source: error.into() })?;
        }
        let roots = Arc::new(roots);
        let current = Current::new(&roots, Vec::new())?;
        let hints = current.clients.root_hint_subjects().to_vec();
        let judges = Arc::new(Judges { current: RwLock::new(current), hints });
        let (client, server) = configs(&judges, &chain, &key)?;
        Ok(Self { shared: Arc::new(Shared { roots, judges, client, server }) })
    }

    /// Uses these lists of revoked certificates (CRLs in PEM, RFC 5280) from now on, in the place of those before, in every
    /// clone and so in every transport that was given one, also for those who are about to prove who they are. Call it again
    /// when an authority publishes a new list.
    ///
    /// Every authority that signs peers, also an intermediate one, then needs a list here, which is not past its own
    /// date: whether a certificate of another authority was revoked cannot be told, and what cannot be told is refused
    /// ([`TrustError::RevocationUnknown`]). Links that stand are not broken: end them by the peer's certificate in
    /// [`Link::credentials`](crate::Link::credentials).
    ///
    /// # Errors
    /// [`CertificatesError`] with `lists` in its `what`; what was in use stays.
    pub fn revoke(&self, lists: &str) -> Result<(), CertificatesError> {
        let lists = list::<CertificateRevocationListDer<'static>>("lists", lists)?;
        let next = Current::new(&self.shared.roots, lists)?;
        *self.shared.judges.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.shared.client.clone()
    }

    #[cfg(feature = "tls")]
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.shared.server.clone()
    }

    /// As [`server`](Self::server), with a verifier of one's own.
    #[cfg(feature = "quic")]
    pub(crate) fn server_with(&self, verifier: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, Error> {
        let usual = &self.shared.server;
        let mut server = ServerConfig::builder_with_provider(usual.crypto_provider().clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(usual.cert_resolver.clone());
        server.alpn_protocols = usual.alpn_protocols.clone();
        server.send_tls13_tickets = 0;
        Ok(server)
    }

    /// Who verifies listeners and diallers.
    #[cfg(feature = "quic")]
    pub(crate) fn verifiers(&self) -> (Arc<dyn ServerCertVerifier>, Arc<dyn ClientCertVerifier>) {
        (self.shared.judges.clone(), self.shared.judges.clone())
    }
}

impl Current {
    fn new(
        roots: &Arc<RootCertStore>,
        lists: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, CertificatesError> {
        let provider = Arc::new(ring::default_provider());
        // Lists are the only thing that can be wrong with it later.
        let what = if lists.is_empty() { "authorities" } else { "lists" };
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists.iter().cloned())
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| CertificatesError { what, source: error.into() })?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists)
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| CertificatesError { what, source: error.into() })?;
        Ok(Self { servers, clients })
    }
}

/// What both sides of a handshake go by.
fn configs(
    judges: &Arc<Judges>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), CertificatesError> {
    let failed = |what| move |error: Error| CertificatesError { what, source: error.into() };
    let provider = Arc::new(ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(failed("protocol"))?
        .with_client_cert_verifier(judges.clone())
        .with_single_cert(chain.to_vec(), key.clone_key())
        .map_err(failed("chain and key"))?;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(failed("protocol"))?
        .dangerous()
        .with_custom_certificate_verifier(judges.clone())
        .with_client_auth_cert(chain.to_vec(), key.clone_key())
        .map_err(failed("chain and key"))?;
    // Tells other protocols with the same authority apart.
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    // A resumed session would be believed although its certificate has expired since.
    server.send_tls13_tickets = 0;
    client.resumption = rustls::client::Resumption::disabled();
    Ok((Arc::new(client), Arc::new(server)))
}

impl Judges {
    fn current(&self) -> Current {
        // It is replaced as a whole, so a poisoned lock is a sound one.
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Judges {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let servers = self.current().servers;
        servers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().servers.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().servers.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Judges {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.current().clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current().clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().clients.supported_verify_schemes()
    }
}

/// The items of a text in PEM, at least one.
fn list<T: PemObject>(what: &'static str, text: &str) -> Result<Vec<T>, CertificatesError> {
    let all: Result<Vec<_>, _> = T::pem_slice_iter(text.as_bytes()).collect();
    match all {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(CertificatesError { what, source: "nothing of the kind in it".into() }),
        Err(error) => Err(CertificatesError { what, source: error.into() }),
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
    /// Which part: `authorities`, `chain`, `key`, `lists`, `chain and key` when they do not belong together.
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
pub(crate) fn trust_error(error: &Error) -> TrustError {
    match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TrustError::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TrustError::NotValidYet
            }
            CertificateError::UnknownIssuer => TrustError::UnknownAuthority,
            CertificateError::Revoked => TrustError::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => TrustError::RevocationUnknown,
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
