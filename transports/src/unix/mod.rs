//! Frames over Unix domain sockets, between processes of one machine.
//!
//! Guarantee   as the contract says. The file's permissions decide who may connect ([`UnixConfig::mode`]); the system
//!             tells who did ([`Credentials::Process`]). Nothing hides the bytes from the machine's administrator.
//! Names       `unix:///path/of/a/socket`; a `*` at the end of the path is replaced by a name that nobody has. A path
//!             has at most about 100 bytes and no spaces, as addresses have none.
//! Stale files a listener holds a lock on `path.lock` and removes both files when it goes. What a killed process
//!             left behind is recognised by the lock being free, and replaced. A file at the path that is no socket is
//!             never touched.
//! Limits      frames as the [`Inbox`](crate::Inbox) says, connecting within [`UnixConfig::connect_ms_max`].

mod config;
mod link;
mod listen;

use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

pub use config::UnixConfig;

use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{BoxFuture, Link, Listener, Transport};

#[cfg(doc)]
use crate::credentials::Credentials;

/// The transport `unix://`.
#[derive(Debug, Clone, Default)]
pub struct Unix {
    config: UnixConfig,
}

impl Unix {
    /// With the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// With settings of your own.
    pub fn with_config(config: UnixConfig) -> Self {
        Self { config }
    }
}

impl Transport for Unix {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = listen::UnixListener::open(&self.config, address)?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let path = path_of(address)?;
            let limit_ms = self.config.connect_ms_max;
            let dialled = match timeout(Duration::from_millis(limit_ms), dial(path)).await {
                Ok(dialled) => dialled,
                Err(_) => return Err(TransportError::TimedOut { address: address.clone(), limit_ms }),
            };
            dialled
                .and_then(|stream| link::dialled(stream, address))
                .map_err(|error| io_error(address, error))
        })
    }
}

async fn dial(path: &str) -> io::Result<UnixStream> {
    let mut pause = BACKLOG_PAUSE_MIN;
    loop {
        match UnixStream::connect(path).await {
            // The backlog is full, and the system has no way of telling when it is not.
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(pause).await,
            dialled => return dialled,
        }
        pause = (pause * 2).min(BACKLOG_PAUSE_MAX);
    }
}

fn path_of(address: &Address) -> Result<&str, TransportError> {
    let path = address.rest();
    if address.scheme() != SCHEME || !path.starts_with('/') {
        let reason = format!("expected {SCHEME}:///an/absolute/path");
        return Err(TransportError::BadAddress { address: address.clone(), reason });
    }
    Ok(path)
}

fn io_error(address: &Address, source: io::Error) -> TransportError {
    let address = address.clone();
    match source.kind() {
        ErrorKind::AddrInUse => TransportError::InUse { address },
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => TransportError::Refused { address },
        // Such as a path that is too long.
        ErrorKind::InvalidInput => TransportError::BadAddress { address, reason: source.to_string() },
        _ => TransportError::Io { address, source },
    }
}

const SCHEME: &str = "unix";
const BACKLOG_PAUSE_MIN: Duration = Duration::from_millis(1);
const BACKLOG_PAUSE_MAX: Duration = Duration::from_millis(50);
