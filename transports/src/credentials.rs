//! Who is at the other end of a link, as far as the medium itself vouches for it.
//!
//! Guarantee   what stands here was not said by the peer: the system knows the process at the other end of a local
//!             socket, and TLS has proved that the peer holds the key of a certificate which a trusted authority
//!             signed. The node id in a peer's hello is only its word; compare the two where it matters.

use std::fmt;
use std::sync::Arc;

/// What a medium knows of the peer. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// A process of this machine.
    Process(ProcessCredentials),
    /// The holder of a certificate.
    Certificate(Certificate),
}

/// A process of this machine, as the system knew it when the link came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessCredentials {
    /// The number of its user.
    pub user: u32,
    /// The number of its group.
    pub group: u32,
    /// Its own number, where the system tells it. Numbers are used again: the process may have ended.
    pub process: Option<i32>,
}

impl ProcessCredentials {
    /// Puts them together.
    pub fn new(user: u32, group: u32, process: Option<i32>) -> Self {
        Self { user, group, process }
    }
}

/// A certificate that was verified against the trusted authorities, and whose key the peer holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Arc<[u8]>,
    names: Arc<[String]>,
}

impl Certificate {
    /// A certificate by its encoding and the host names that it is made out to.
    pub fn new(der: &[u8], names: Vec<String>) -> Self {
        Self { der: der.into(), names: names.into() }
    }

    /// Its encoding (DER).
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The host names that it is made out to, in its order.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate of {}", self.names.join(", "))
    }
}
