//! The cluster harness and what the test areas share.

use std::fmt;
use std::time::Duration;

use quorate::node::Node;
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
        let node = Node::builder().id(id).listen(self.listen).transport(self.mem.clone());
        node.start().await.expect("the node starts")
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.listen)
    }
}

/// Every network that carries whole nodes in one process.
pub fn nets() -> [Net; 2] {
    [Net { mem: Mem::new(), listen: "mem://" }, Net { mem: Mem::new(), listen: "tcp://127.0.0.1:0" }]
}

/// The result of `future`, which must come before a test may be said to hang.
///
/// # Panics
/// After a minute.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("done within a minute")
}
