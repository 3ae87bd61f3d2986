//! The socket of an endpoint that is listened at, which tells when it is gone: connections keep it for a while after
//! their end, in which they answer what was under way.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, ServerConfig, UdpPoller, default_runtime};

use crate::release::{Held, Release, hold};

/// An endpoint that can be dialled, and what tells when the system has its place back.
pub(super) fn server(config: ServerConfig, place: SocketAddr) -> io::Result<(Endpoint, Release)> {
    let runtime = default_runtime().ok_or_else(|| io::Error::other("no async runtime found"))?;
    let inner = runtime.wrap_udp_socket(UdpSocket::bind(place)?)?;
    let (held, release) = hold();
    let socket = Arc::new(HeldSocket { inner, held });
    let config = Some(config);
    let endpoint = Endpoint::new_with_abstract_socket(EndpointConfig::default(), config, socket, runtime)?;
    Ok((endpoint, release))
}

#[derive(Debug)]
struct HeldSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    held: Held,
}

#[derive(Debug)]
struct HeldPoller {
    inner: Pin<Box<dyn UdpPoller>>,
    _held: Held,
}

impl AsyncUdpSocket for HeldSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        // It holds the socket as well.
        Box::pin(HeldPoller { inner: self.inner.clone().create_io_poller(), _held: self.held.clone() })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl UdpPoller for HeldPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_writable(cx)
    }
}
