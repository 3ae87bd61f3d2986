//! Finding members that nobody has named: by seeds, by a beacon on the local network, or by what a user brings.
//!
//! Method      [`Builder::join_found`](super::Builder::join_found) asks a [`Discover`] again with each round, until one of the
//!             addresses leads to a member. A list of addresses is one; [`naming::Names`](crate::naming::Names) is one, for
//!             groups whose members register their group's name; [`Beacon`] asks the local network by UDP multicast.
//! Trust       whoever answers is believed to be worth asking, and nothing more: who may be a member is decided by
//!             [`NodeBuilder::admit`](crate::node::NodeBuilder::admit) and by certificates.
//! Format      a question: `QGRP`, 1, 0, the group's channel `u64`. An answer: `QGRP`, 1, 1, the channel, then the addresses as
//!             in an introduction; little-endian.

use quorate_transports::{Address, BoxFuture};

/// Finds where members of a group may be.
pub trait Discover: Send + Sync {
    /// Addresses of nodes that may be members of `group` now. None is a good answer, too: it is asked again. Takes some
    /// hundred milliseconds at most.
    fn find<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Vec<Address>>;
}

/// The seeds: always the same addresses.
impl Discover for Vec<Address> {
    fn find<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Vec<Address>> {
        Box::pin(async { self.clone() })
    }
}

#[cfg(feature = "udp")]
pub use beacon::{Answering, Beacon};

#[cfg(feature = "udp")]
mod beacon {
    use std::fmt;
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::{Buf, BufMut, Bytes, BytesMut};
    use quorate_transports::udp::Udp;
    use quorate_transports::{Address, BoxFuture, DatagramSocket, NodeId, Transport, TransportError};
    use tokio::task::AbortHandle;
    use tokio::time::{Instant, timeout_at};

    use super::super::introduce;
    use super::Discover;
    use crate::node::{Channel, Node};

    /// A place on the local network where members answer who looks for them: a multicast address such as
    /// `udp://239.1.2.3:7400`.
    ///
    /// Questions and answers are datagrams that anybody on the network may send: see the module's page for what they are
    /// worth. They stay in the own network, as far as [`UdpConfig`](quorate_transports::udp::UdpConfig) says.
    #[derive(Clone)]
    pub struct Beacon {
        transport: Arc<dyn Transport>,
        place: Address,
    }

    impl Beacon {
        /// The beacon at this address.
        pub fn at(place: Address) -> Self {
            Self::over(Udp::new(), place)
        }

        /// As [`at`](Self::at), with datagrams of a transport with other settings.
        pub fn over(transport: impl Transport, place: Address) -> Self {
            Self { transport: Arc::new(transport), place }
        }

        /// Answers who looks for members of `group` with this node's addresses, as long as the answer is kept.
        ///
        /// # Errors
        /// [`TransportError`]: no datagrams can be received at the place.
        /// # Cancel safety
        /// Dropping the future answers nobody.
        pub async fn answer(&self, node: &Node, group: &str) -> Result<Answering, TransportError> {
            let mut socket = self.transport.bind(&self.place).await?;
            let (node_id, channel) = (node.identity().node, Channel::named("group", group));
            let known: Vec<_> = node.addresses().into_iter().map(|address| (node_id, address)).collect();
            let mut answer = head(ANSWER, channel);
            answer.put_slice(&introduce::encode(&known));
            let task = node.spawn(async move {
                // A socket that is of no further use ends this; members are then found by the others' answers.
                while let Ok((from, question)) = poll_fn(|cx| socket.poll_receive_from(cx)).await {
                    if body(question, QUESTION, channel).is_some() {
                        let _ = poll_fn(|cx| socket.poll_send_to(cx, &from, &answer)).await;
                    }
                }
            });
            Ok(Answering(task))
        }

        async fn ask(&self, group: &str) -> Result<Vec<Address>, TransportError> {
            let wildcard =
                if self.place.rest().starts_with('[') { "udp://[::]:0" } else { "udp://0.0.0.0:0" };
            let Ok(wildcard) = wildcard.parse::<Address>() else { return Ok(Vec::new()) };
            let mut socket = self.transport.bind(&wildcard).await?;
            let channel = Channel::named("group", group);
            let question = head(QUESTION, channel);
            let _ = poll_fn(|cx| socket.poll_send_to(cx, &self.place, &question)).await;
            let until = Instant::now() + PATIENCE;
            let mut found = Vec::new();
            while let Ok(Ok((_, answer))) = timeout_at(until, receive(&mut socket)).await {
                let known: Option<Vec<(NodeId, Address)>> =
                    body(answer, ANSWER, channel).and_then(introduce::decode);
                for (_, address) in known.into_iter().flatten() {
                    if !found.contains(&address) && found.len() < FOUND_MAX {
                        found.push(address);
                    }
                }
            }
            Ok(found)
        }
    }

    impl Discover for Beacon {
        fn find<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Vec<Address>> {
            Box::pin(async move {
                match self.ask(group).await {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(place = %self.place, %error, "nobody can be asked");
                        Vec::new()
                    }
                }
            })
        }
    }

    impl fmt::Debug for Beacon {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Beacon({})", self.place)
        }
    }

    /// A member answers at a beacon until this is dropped.
    #[derive(Debug)]
    #[must_use = "dropped, it answers nobody"]
    pub struct Answering(AbortHandle);

    impl Drop for Answering {
        fn drop(&mut self) {
            self.0.abort();
        }
    }

    async fn receive(
        socket: &mut Box<dyn DatagramSocket>,
    ) -> Result<(Address, Bytes), quorate_transports::LinkError> {
        poll_fn(|cx| socket.poll_receive_from(cx)).await
    }

    fn head(kind: u8, channel: Channel) -> BytesMut {
        let mut head = BytesMut::from(MAGIC);
        head.put_u8(kind);
        head.put_u64_le(channel.0);
        head
    }

    /// What stands behind the head of a datagram of this kind about this group.
    fn body(mut datagram: Bytes, kind: u8, channel: Channel) -> Option<Bytes> {
        if !datagram.starts_with(MAGIC) {
            return None;
        }
        datagram.advance(MAGIC.len());
        let is_it = datagram.try_get_u8() == Ok(kind) && datagram.try_get_u64_le() == Ok(channel.0);
        is_it.then_some(datagram)
    }

    const MAGIC: &[u8] = b"QGRP\x01";
    const QUESTION: u8 = 0;
    const ANSWER: u8 = 1;

    /// How long answers are waited for; on a local network they take less than a millisecond.
    const PATIENCE: Duration = Duration::from_millis(200);

    /// Addresses that one question finds at most.
    const FOUND_MAX: usize = 64;
}
