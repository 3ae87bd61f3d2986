//! Whether anybody listens at a UDP port, as far as the network tells.
//!
//! Method      a socket that is connected hears of the ICMP message "port unreachable" that an empty datagram brings back
//!             (RFC 1122, section 4.1.3.3). The sockets of links are not connected, so that they survive a change of
//!             address, and hear of none.
//! Limits      a host that does not exist, a firewall that swallows, and a system that does not pass the message on say
//!             nothing: then the time limit of whoever dials holds. Who can see the datagram can forge the message, and so
//!             prevent a connection; so it can by other means.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

/// Ready when the network says that nobody listens at `place`; else it waits for ever.
///
/// # Cancel safety
/// Dropping the future ends the question.
pub(crate) async fn refused(place: SocketAddr) -> io::Error {
    match ask(place).await {
        // The second is Windows' word for it.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => {
            ErrorKind::ConnectionRefused.into()
        }
        // That the question fails for another reason says nothing about the answer.
        _ => std::future::pending().await,
    }
}

async fn ask(place: SocketAddr) -> io::Result<()> {
    let here: IpAddr = match place {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((here, 0)).await?;
    socket.connect(place).await?;
    socket.send(&[]).await?;
    // Nobody answers to nothing: what comes, if anything, is the message.
    socket.recv(&mut [0]).await?;
    Ok(())
}
