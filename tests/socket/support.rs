//! Networks and nodes for the tests of sockets.

use quorate::Node;
use quorate_transports::sim::SimNetwork;
pub(crate) use tests::{everywhere, until, within};

/// A network that a test runs on.
pub(crate) enum Net {
    Real(tests::Net),
    Simulated(SimNetwork),
}

impl Net {
    pub(crate) async fn node(&self, id: u64) -> Node {
        match self {
            Self::Real(net) => net.node(id).await,
            Self::Simulated(network) => simulated(network, id).await,
        }
    }
}

/// A node on a host of its own.
pub(crate) async fn simulated(network: &SimNetwork, id: u64) -> Node {
    let host = format!("host{id}");
    let node = Node::builder().id(id).listen(format!("sim://{host}:1")).transport(network.transport(&host));
    node.start().await.expect("the node starts")
}

/// Every network, the simulated one without faults.
pub(crate) fn nets() -> Vec<Net> {
    let real = tests::nets().into_iter().map(Net::Real);
    real.chain([Net::Simulated(SimNetwork::new(1))]).collect()
}
