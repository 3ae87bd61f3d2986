//! Which transport serves which scheme.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{DatagramSocket, Link, Listener, Transport};

/// The transports that a node may use, by scheme. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registry {
    transports: BTreeMap<&'static str, Arc<dyn Transport>>,
}

impl Registry {
    /// No transports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a transport.
    ///
    /// # Errors
    /// [`TransportError::SchemeTaken`]: the registry is unchanged.
    pub fn add(&mut self, transport: impl Transport) -> Result<(), TransportError> {
        self.add_shared(Arc::new(transport))
    }

    /// Adds a transport that others hold as well.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_shared(&mut self, transport: Arc<dyn Transport>) -> Result<(), TransportError> {
        let scheme = transport.scheme();
        if self.transports.contains_key(scheme) {
            return Err(TransportError::SchemeTaken { scheme });
        }
        self.transports.insert(scheme, transport);
        Ok(())
    }

    /// Adds a transport unless its scheme has one already.
    pub fn add_missing(&mut self, transport: impl Transport) {
        self.transports.entry(transport.scheme()).or_insert_with(|| Arc::new(transport));
    }

    /// The schemes, in alphabetical order.
    pub fn schemes(&self) -> Vec<&'static str> {
        self.transports.keys().copied().collect()
    }

    /// The transport for an address.
    ///
    /// # Errors
    /// [`TransportError::UnknownScheme`] naming the address and the schemes there are.
    pub fn transport(&self, address: &Address) -> Result<&Arc<dyn Transport>, TransportError> {
        self.transports
            .get(address.scheme())
            .ok_or_else(|| TransportError::UnknownScheme { address: address.clone(), known: self.schemes() })
    }

    /// Starts listening on an address of any known scheme.
    ///
    /// # Errors
    /// [`TransportError::UnknownScheme`], or as [`Transport::listen`].
    pub async fn listen(&self, address: &Address) -> Result<Box<dyn Listener>, TransportError> {
        self.transport(address)?.listen(address).await
    }

    /// Connects to an address of any known scheme.
    ///
    /// # Errors
    /// [`TransportError::UnknownScheme`], or as [`Transport::connect`].
    pub async fn connect(&self, address: &Address) -> Result<Link, TransportError> {
        self.transport(address)?.connect(address).await
    }

    /// Opens a datagram socket on an address of any known scheme.
    ///
    /// # Errors
    /// [`TransportError::UnknownScheme`], or as [`Transport::bind`].
    pub async fn bind(&self, address: &Address) -> Result<Box<dyn DatagramSocket>, TransportError> {
        self.transport(address)?.bind(address).await
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.transports.keys()).finish()
    }
}
