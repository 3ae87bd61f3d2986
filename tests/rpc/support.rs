//! Nodes over every transport that carries calls.

use std::time::Duration;

use quorate::node::{Incarnation, Node, NodeBuilder};
use quorate_transports::mem::Mem;
use tests::Net;

/// What the nodes of a test meet over.
#[derive(Clone)]
pub(crate) enum Over {
    /// For a story in which time stands still.
    Mem(Mem),
    /// For a story in which nothing depends on the medium.
    Tcp,
    /// One of those that every story is told on.
    Net(Net),
}

impl Over {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        tests::nets().into_iter().map(Self::Net)
    }

    /// Where a node may listen that takes any free place.
    pub(crate) fn anywhere(&self) -> &str {
        match self {
            Self::Mem(_) => "mem://",
            Self::Tcp => "tcp://127.0.0.1:0",
            Self::Net(net) => net.listen(),
        }
    }

    /// Where nobody listens.
    pub(crate) fn nobody(&self) -> String {
        match self {
            Self::Mem(_) => "mem://nobody".to_owned(),
            Self::Tcp => "tcp://127.0.0.1:1".to_owned(),
            Self::Net(net) => net.nobody(),
        }
    }

    fn builder(&self, id: u64) -> NodeBuilder {
        let builder = match self {
            Self::Mem(world) => Node::builder().id(id).transport(world.clone()),
            Self::Tcp => Node::builder().id(id),
            Self::Net(net) => net.dialler(id),
        };
        builder.seed(id)
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
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} takes for ever"),
    }
}
