//! The socket under links: many packets per system call where the system can.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::config::UdpConfig;
use super::machine::{Place, Transmit};
use crate::release::{Held, Release, hold};

/// Where a packet came from or goes to. Two are equal when the other end is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) remote: SocketAddr,
    /// The address of this machine that the peer uses: answers come from there.
    pub(super) local: Option<IpAddr>,
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.remote == other.remote
    }
}

impl Eq for Path {}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        self.remote.cmp(&other.remote)
    }
}

impl Place for Path {
    fn bytes(&self) -> [u8; 18] {
        let ip = match self.remote.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = [0; 18];
        bytes[..16].copy_from_slice(&ip.octets());
        bytes[16..].copy_from_slice(&self.remote.port().to_le_bytes());
        bytes
    }
}

/// A UDP socket that moves batches.
pub(super) struct BatchSocket {
    socket: tokio::net::UdpSocket,
    state: UdpSocketState,
    _held: Held,
    release: Release,
}

impl BatchSocket {
    pub(super) fn bind(config: &UdpConfig, place: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(place), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        // What the system refuses is only slower.
        let _ = socket.set_recv_buffer_size(config.receive_bytes_max.max(1));
        let _ = socket.set_send_buffer_size(config.receive_bytes_max.max(1));
        if place.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&place.into())?;
        let socket = tokio::net::UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let (held, release) = hold();
        Ok(Self { socket, state, _held: held, release })
    }

    /// What tells when it is gone.
    pub(super) fn release(&self) -> Release {
        self.release.clone()
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How many packets of this size go in one call; 1 from the moment on at which the system refused more.
    pub(super) fn segments_max(&self, packet_bytes: usize) -> usize {
        self.state.max_gso_segments().min(SEND_BYTES_MAX / packet_bytes.max(1)).max(1)
    }

    /// Sends one run of packets; false when the socket takes no more now. What cannot be sent otherwise is lost.
    pub(super) fn try_send(&self, transmit: &Transmit<Path>, contents: &[u8]) -> bool {
        let segment_size = (contents.len() > transmit.segment_bytes).then_some(transmit.segment_bytes);
        let packets = quinn_udp::Transmit {
            destination: transmit.to.remote,
            ecn: None,
            contents,
            segment_size,
            src_ip: transmit.to.local,
        };
        let sent = self
            .socket
            .try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.socket), &packets));
        !matches!(sent, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Ready when the socket may take more.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error shows when something is sent.
        let _ = ready!(self.socket.poll_send_ready(cx));
        Poll::Ready(())
    }

    /// Gives a batch of datagrams to `take`, at most [`BATCH`] runs of them.
    pub(super) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Path, &[u8]),
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_recv_ready(cx))?;
            let received: io::Result<()> = RECEIVE_BUFFER.with_borrow_mut(|buffer| {
                buffer.resize(BATCH * RECEIVE_BYTES_MAX, 0);
                let mut slices = buffer.chunks_exact_mut(RECEIVE_BYTES_MAX).map(IoSliceMut::new);
                let mut slices: [IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
                let mut metas = [RecvMeta::default(); BATCH];
                let count = self.socket.try_io(Interest::READABLE, || {
                    self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas)
                })?;
                // Nobody can answer to port 0, and who tries is told the same as when the system cannot batch.
                let answerable =
                    metas.iter().zip(&slices).take(count).filter(|(meta, _)| meta.addr.port() != 0);
                for (meta, bytes) in answerable {
                    let from = Path { remote: plain(meta.addr), local: meta.dst_ip };
                    let bytes = &bytes[..meta.len.min(bytes.len())];
                    bytes.chunks(meta.stride.max(1)).for_each(|datagram| take(from, datagram));
                }
                Ok(())
            });
            match received {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // News of a packet that was sent to nobody.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => {}
                other => return Poll::Ready(other),
            }
        }
    }
}

/// Without what says nothing about the place.
fn plain(place: SocketAddr) -> SocketAddr {
    match place {
        SocketAddr::V6(mut place) => {
            place.set_flowinfo(0);
            place.into()
        }
        v4 => v4,
    }
}

thread_local! {
    /// One per thread, not one per socket: what is received is taken before anything else is.
    static RECEIVE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs of datagrams per system call.
const BATCH: usize = 8;
/// A run that the system has put together, or the largest datagram.
const RECEIVE_BYTES_MAX: usize = 65_536;
/// Bytes of a run that the system cuts into packets: with headers less than 64 KiB.
const SEND_BYTES_MAX: usize = 65_000;
