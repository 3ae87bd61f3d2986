//! The cluster harness and what the test areas share.

use std::fmt;
use std::time::Duration;

use quorate::node::{Node, NodeBuilder};
use quorate_transports::mem::Mem;

/// A network that a test runs on.
#[derive(Clone)]
pub struct Net {
    mem: Mem,
    listen: &'static str,
}

impl Net {
    /// A node that listens on this network.
    pub async fn node(&self, id: u64) -> Node {
        self.builder(id).start().await.expect("the node starts")
    }

    /// A node on this network that is still to be given its limits.
    pub fn builder(&self, id: u64) -> NodeBuilder {
        Node::builder().id(id).listen(self.listen).transport(self.mem.clone())
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.listen)
    }
}

/// Every network that carries whole nodes in one process.
pub fn nets() -> [Net; 3] {
    ["mem://", "tcp://127.0.0.1:0", "udp://127.0.0.1:0"].map(|listen| Net { mem: Mem::new(), listen })
}

/// The result of `future`, which must come before a test may be said to hang.
///
/// # Panics
/// After a minute.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("done within a minute")
}
