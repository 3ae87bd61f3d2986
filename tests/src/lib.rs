//! The cluster harness and what the test areas share: networks of every medium, and other processes.

#[path = "../../transports/tests/authority/mod.rs"]
mod authority;
#[cfg(target_os = "linux")]
mod namespace;
mod net;
pub mod oracle;
pub mod registers;
mod worker;

use std::time::Duration;

#[cfg(target_os = "linux")]
pub use namespace::{in_namespace, ip, try_ip};
pub use net::{Net, memory, nets, nets_between_processes, tcp};
pub use worker::{Orders, Worker};

/// Certificates of one authority, which trust each other; each made out to `127.0.0.1` and a name.
pub fn certificates_for(names: &[&str]) -> Vec<quorate_transports::Certificates> {
    let authority = authority::Authority::new();
    names.iter().map(|name| authority.certificates(&["127.0.0.1", name])).collect()
}

/// The result of `future`, which must come before a test may be said to hang.
///
/// # Panics
/// After a minute.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("done within a minute")
}

/// The same story on every network, at the same time: for stories that mostly wait.
///
/// # Panics
/// When one of them does.
pub async fn everywhere<N, F>(nets: impl IntoIterator<Item = N>, story: fn(N) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut stories: tokio::task::JoinSet<()> = nets.into_iter().map(story).collect();
    while let Some(told) = stories.join_next().await {
        told.expect("the story ends well");
    }
}

/// Looks again and again until it is so.
///
/// # Panics
/// After a minute.
pub async fn until(mut is_so: impl FnMut() -> bool) {
    within(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
