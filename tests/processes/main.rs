//! What one process can see of others: sockets that meet between processes, strangers that talk nonsense, files that others
//! have left behind.

mod clocks;
mod disks;
mod faults;
mod handshakes;
mod lanes;
mod sockets;
mod strangers;

use tests::Orders;

/// Runs a worker's program; does nothing in a process that is no worker.
fn work<F: Future<Output = ()>>(program: impl FnOnce(Orders) -> F) {
    let Some(orders) = Orders::of_this_process() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(program(orders));
}

/// An error with all its sources, as a user sees it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
