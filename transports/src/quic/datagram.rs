//! Datagrams over QUIC (RFC 9221): a connection with each peer, made when there is something to send.
//!
//! Guarantee   as the contract of [`DatagramSocket`] says, and: none comes from, or goes to, somebody without a
//!             certificate of a trusted authority.
//! Method      one endpoint that dials and is dialled. One task accepts, one per peer dials or reads; all of them end
//!             with the socket.
//! Limits      [`QuicConfig::datagram_peers_max`](super::QuicConfig), [`QuicConfig::datagrams_max`](super::QuicConfig),
//!             [`WAITING_MAX`] datagrams for a peer that is being dialled.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, VarInt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::listen::{admit, bind};
use super::{Quic, SCHEME, Use};
use crate::address::Address;
use crate::error::{LinkError, TransportError};
use crate::frame::FrameError;
use crate::gate::Handshakes;
use crate::tcp;
use crate::transport::DatagramSocket;

pub(super) struct QuicDatagrams {
    shared: Arc<Shared>,
    address: Address,
    incoming: mpsc::Receiver<(Address, Bytes)>,
}

/// What the socket and its tasks share.
struct Shared {
    quic: Quic,
    endpoint: Endpoint,
    is_v6: bool,
    arrived: mpsc::Sender<(Address, Bytes)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: BTreeMap<SocketAddr, Peer>,
    tasks: JoinSet<()>,
    is_closed: bool,
}

enum Peer {
    /// It is being dialled; these go when it has answered.
    Dialled(Vec<Bytes>),
    Connected(Connection),
}

impl QuicDatagrams {
    pub(super) async fn open(quic: &Quic, address: &Address) -> Result<Self, TransportError> {
        let mut last = tcp::no_address(address);
        for place in tcp::places(address).await? {
            match bind(quic, Use::Datagrams, address, place).await {
                Ok((endpoint, _)) => {
                    let local = endpoint.local_addr().map_err(|error| tcp::io_error(address, error))?;
                    let (arrived, incoming) = mpsc::channel(quic.config.datagrams_max.max(1));
                    let shared = Arc::new(Shared {
                        quic: quic.clone(),
                        endpoint,
                        is_v6: local.is_ipv6(),
                        arrived,
                        state: Mutex::default(),
                    });
                    shared.spawn(shared.clone().accept());
                    return Ok(Self { shared, address: tcp::to_address(SCHEME, local), incoming });
                }
                Err(error @ TransportError::InUse { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl DatagramSocket for QuicDatagrams {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn datagram_bytes_max(&self) -> usize {
        DATAGRAM_BYTES_MAX
    }

    fn poll_send_to(
        &mut self,
        _: &mut Context<'_>,
        to: &Address,
        datagram: &[u8],
    ) -> Poll<Result<(), LinkError>> {
        let limit = DATAGRAM_BYTES_MAX;
        if datagram.len() > limit {
            let source = FrameError::TooLarge { size: datagram.len(), limit };
            return Poll::Ready(Err(LinkError::Frame { peer: to.clone(), source }));
        }
        // Names are not resolved here: that takes a thread, and a datagram that cannot be sent is a lost one.
        if let Some(place) = to.rest().parse().ok().filter(|_| to.scheme() == SCHEME) {
            Shared::send(&self.shared, to, place, Bytes::copy_from_slice(datagram));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive_from(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Address, Bytes), LinkError>> {
        self.incoming.poll_recv(cx).map(|datagram| datagram.ok_or(LinkError::Closed))
    }
}

impl Drop for QuicDatagrams {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        // What was sent leaves with the last packets; the tasks hold connections, and the connections the socket.
        state.is_closed = true;
        state.peers.clear();
        state.tasks.abort_all();
        drop(state);
        self.shared.endpoint.close(VarInt::from_u32(0), b"");
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.state();
        if !state.is_closed {
            while state.tasks.try_join_next().is_some() {}
            state.tasks.spawn(task);
        }
    }

    fn send(this: &Arc<Self>, to: &Address, place: SocketAddr, datagram: Bytes) {
        let mut state = this.state();
        let has_room = state.peers.len() < this.quic.config.datagram_peers_max;
        match state.peers.get_mut(&place) {
            Some(Peer::Connected(connection)) => {
                // A way that carries less, or that broke just now: it is lost, as datagrams are.
                let _ = connection.send_datagram(datagram);
            }
            Some(Peer::Dialled(waiting)) if waiting.len() < WAITING_MAX => waiting.push(datagram),
            Some(Peer::Dialled(_)) => {}
            None if has_room => {
                state.peers.insert(place, Peer::Dialled(vec![datagram]));
                drop(state);
                this.spawn(this.clone().dial(to.clone(), place));
            }
            None => {}
        }
    }

    async fn dial(self: Arc<Self>, address: Address, place: SocketAddr) {
        let at = match place.ip() {
            // A dual-stack socket speaks IPv6 only.
            IpAddr::V4(ip) if self.is_v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), place.port()),
            _ => place,
        };
        let limit = Duration::from_millis(self.quic.config.connect_ms_max);
        let dialling = self
            .quic
            .connect_from(&self.endpoint, Use::Datagrams, &address, at, |connection| ready(Ok(connection)));
        match timeout(limit, dialling).await {
            Ok(Ok(connection)) => self.serve(place, connection).await,
            outcome => {
                tracing::debug!(%address, ?outcome, "datagrams are lost: nobody to be trusted is there");
                let mut state = self.state();
                if let Some(Peer::Dialled(_)) = state.peers.get(&place) {
                    state.peers.remove(&place);
                }
            }
        }
    }

    async fn accept(self: Arc<Self>) {
        let handshakes = Handshakes::new(self.quic.config.handshakes_max);
        while let Some(incoming) = self.endpoint.accept().await {
            let seen = incoming.remote_address();
            let place = SocketAddr::new(seen.ip().to_canonical(), seen.port());
            let begin = |connection| ready(Ok(connection));
            let Some(admission) = admit(&self.quic, Use::Datagrams, &handshakes, incoming, begin) else {
                continue;
            };
            let shared = self.clone();
            self.spawn(async move {
                if let Some(connection) = admission.await {
                    shared.serve(place, connection).await;
                }
            });
        }
    }

    /// Makes a connection the one with its peer, and takes what comes over it until it ends.
    async fn serve(&self, place: SocketAddr, connection: Connection) {
        {
            let mut state = self.state();
            let peers_max = self.quic.config.datagram_peers_max;
            if state.peers.len() >= peers_max && !state.peers.contains_key(&place) {
                return;
            }
            // Two that dialled each other have two connections and take what comes over either.
            if let Some(Peer::Dialled(waiting)) =
                state.peers.insert(place, Peer::Connected(connection.clone()))
            {
                waiting.into_iter().for_each(|datagram| drop(connection.send_datagram(datagram)));
            }
        }
        let from = tcp::to_address(SCHEME, place);
        while let Ok(datagram) = connection.read_datagram().await {
            // A full receiver loses it, as a socket does.
            let _ = self.arrived.try_send((from.clone(), datagram));
        }
        let mut state = self.state();
        if let Some(Peer::Connected(current)) = state.peers.get(&place)
            && current.stable_id() == connection.stable_id()
        {
            state.peers.remove(&place);
        }
    }
}

/// The largest datagram in bytes: what fits into one packet on every way that QUIC works on.
pub const DATAGRAM_BYTES_MAX: usize = 1_100;
/// Datagrams that wait until a peer was dialled.
pub const WAITING_MAX: usize = 16;
