//! Networks and nodes for the tests of sockets.

use quorate::Node;
use quorate_transports::sim::SimNetwork;
pub(crate) use tests::{Net, everywhere, nets, until, within};

/// A node on a host of its own.
pub(crate) async fn simulated(network: &SimNetwork, id: u64) -> Node {
    let host = format!("host{id}");
    let node = Node::builder().id(id).listen(format!("sim://{host}:1")).transport(network.transport(&host));
    node.start().await.expect("the node starts")
}
