//! Telling when the system has back what it lent.

use tokio::sync::watch;

use crate::transport::BoxFuture;

/// Kept by whoever holds the thing: declare it behind the thing, so that it goes after it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    _sender: watch::Sender<()>,
}

/// Waits for the end of every clone of a [`Held`].
#[derive(Debug, Clone)]
pub(crate) struct Release(watch::Receiver<()>);

pub(crate) fn hold() -> (Held, Release) {
    let (held, release) = watch::channel(());
    (Held { _sender: held }, Release(release))
}

impl Release {
    pub(crate) fn wait(&self) -> BoxFuture<'static, ()> {
        let mut release = self.0.clone();
        Box::pin(async move { while release.changed().await.is_ok() {} })
    }
}
