//! A UDP socket.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::ReadBuf;

use super::config::UdpConfig;
use super::{BYTES_MAX, SCHEME};
use crate::address::Address;
use crate::error::{LinkError, TransportError};
use crate::frame::FrameError;
use crate::tcp::{io_error, no_address, places, to_address};
use crate::transport::DatagramSocket;

pub(super) struct UdpSocket {
    socket: tokio::net::UdpSocket,
    address: Address,
    /// One datagram, the largest there may be.
    buffer: Box<[u8]>,
    is_v6: bool,
}

impl UdpSocket {
    pub(super) async fn open(config: &UdpConfig, address: &Address) -> Result<Self, TransportError> {
        let mut last = no_address(address);
        for place in places(address).await? {
            match bind(config, place).and_then(|socket| Ok((socket.local_addr()?, socket))) {
                Ok((local, socket)) => {
                    let buffer = vec![0; BYTES_MAX].into_boxed_slice();
                    let address = to_address(SCHEME, local);
                    return Ok(Self { socket, address, buffer, is_v6: local.is_ipv6() });
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(io_error(address, error)),
                Err(error) => last = io_error(address, error),
            }
        }
        Err(last)
    }
}

impl DatagramSocket for UdpSocket {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn datagram_bytes_max(&self) -> usize {
        BYTES_MAX
    }

    fn poll_send_to(
        &mut self,
        cx: &mut Context<'_>,
        to: &Address,
        datagram: &[u8],
    ) -> Poll<Result<(), LinkError>> {
        if datagram.len() > BYTES_MAX {
            let source = FrameError::TooLarge { size: datagram.len(), limit: BYTES_MAX };
            return Poll::Ready(Err(LinkError::Frame { peer: to.clone(), source }));
        }
        // Names are not resolved here: that takes a thread, and a datagram that cannot be sent is a lost one.
        let Some(to) = to.rest().parse::<SocketAddr>().ok().filter(|_| to.scheme() == SCHEME) else {
            return Poll::Ready(Ok(()));
        };
        let to = match to.ip() {
            // A dual-stack socket speaks IPv6 only.
            IpAddr::V4(ip) if self.is_v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        // Whatever the system says of this one, it is lost and the socket goes on.
        let _ = ready!(self.socket.poll_send_to(cx, datagram, to));
        Poll::Ready(Ok(()))
    }

    fn poll_receive_from(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Address, Bytes), LinkError>> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match ready!(self.socket.poll_recv_from(cx, &mut buffer)) {
                Ok(from) => {
                    let datagram = Bytes::copy_from_slice(buffer.filled());
                    return Poll::Ready(Ok((to_address(SCHEME, from), datagram)));
                }
                // News of a datagram that was sent to nobody.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => {}
                Err(source) => {
                    return Poll::Ready(Err(LinkError::Broken { peer: self.address.clone(), source }));
                }
            }
        }
    }
}

fn bind(config: &UdpConfig, place: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(place), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    let _ = socket.set_recv_buffer_size(config.receive_bytes_max.max(1));
    match place.ip() {
        IpAddr::V4(_) => {
            socket.set_multicast_ttl_v4(config.multicast_hops_max)?;
            socket.set_multicast_loop_v4(config.multicast_loops)?;
        }
        IpAddr::V6(_) => {
            socket.set_only_v6(false)?;
            socket.set_multicast_hops_v6(config.multicast_hops_max)?;
            socket.set_multicast_loop_v6(config.multicast_loops)?;
        }
    }
    if place.ip().is_multicast() {
        // All members of the machine get every datagram of the group.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&place.into())?;
    match place.ip() {
        IpAddr::V4(group) if group.is_multicast() => {
            socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?
        }
        IpAddr::V6(group) if group.is_multicast() => socket.join_multicast_v6(&group, 0)?,
        _ => {}
    }
    tokio::net::UdpSocket::from_std(socket.into())
}
