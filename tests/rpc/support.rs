//! Nodes over every transport that carries calls.

use std::time::Duration;

use quorate::node::{Incarnation, Node, NodeBuilder};
use quorate_transports::mem::Mem;

/// The transports that the tests of this area run over.
#[derive(Clone)]
pub(crate) enum Over {
    Mem(Mem),
    Tcp,
    Udp,
}

impl Over {
    pub(crate) fn all() -> [Self; 3] {
        [Self::Mem(Mem::new()), Self::Tcp, Self::Udp]
    }

    /// Where a node may listen that takes any free place.
    pub(crate) fn anywhere(&self) -> &'static str {
        match self {
            Self::Mem(_) => "mem://",
            Self::Tcp => "tcp://127.0.0.1:0",
            Self::Udp => "udp://127.0.0.1:0",
        }
    }

    fn builder(&self, id: u64) -> NodeBuilder {
        let builder = Node::builder().id(id).seed(id);
        match self {
            Self::Mem(world) => builder.transport(world.clone()),
            // In every node's registry.
            Self::Tcp | Self::Udp => builder,
        }
    }

    /// A node that others can dial.
    pub(crate) async fn server(&self, id: u64) -> (Node, String) {
        self.server_at(id, 1, self.anywhere()).await
    }

    /// One life of a node at a given address.
    pub(crate) async fn server_at(&self, id: u64, life: u64, address: &str) -> (Node, String) {
        let node = self.builder(id).incarnation(Incarnation(life)).listen(address).start().await.unwrap();
        let address = node.addresses()[0].to_string();
        (node, address)
    }

    /// A node that only dials.
    pub(crate) async fn client(&self, id: u64) -> Node {
        self.builder(id).start().await.unwrap()
    }
}

/// Longer than any of these tests takes: a hang becomes a failure.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} takes for ever"),
    }
}
