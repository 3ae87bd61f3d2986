//! A TCP connection as a link.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::config::TcpConfig;
use super::{SCHEME, to_address};
use crate::stream;
use crate::transport::Link;

/// The link that frames travel on as they are.
pub(super) fn link(stream: TcpStream) -> io::Result<Link> {
    let local = to_address(SCHEME, stream.local_addr()?);
    let peer = to_address(SCHEME, stream.peer_addr()?);
    // Dropping the writing half ends its direction, so that the peer does not wait for what will not come.
    let (read, write) = stream.into_split();
    Ok(stream::link(read, write, local, peer))
}

/// Sets the options of a fresh connection.
pub(super) fn prepare(config: &TcpConfig, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(config.keepalive_idle_s.max(1)))
        .with_interval(Duration::from_secs(config.keepalive_interval_s.max(1)));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    // What the system has taken, no lane overtakes any more: without this it takes megabytes from a reader that is slow.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    SockRef::from(stream).set_tcp_notsent_lowat(config.unsent_bytes_max.max(1))?;
    Ok(())
}
