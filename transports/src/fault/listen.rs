//! Listeners with faults.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Registered, Shared, link};
use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{BoxFuture, Link, Listener};

pub(super) fn wrap(shared: &Arc<Shared>, site: u64, inner: Box<dyn Listener>) -> Box<dyn Listener> {
    let registered = shared.register(inner.local_address(), site);
    Box::new(FaultyListener { inner, site, registered })
}

struct FaultyListener {
    // Dropped first: once the inner listener is gone, the address may be somebody else's.
    registered: Registered,
    inner: Box<dyn Listener>,
    site: u64,
}

impl Listener for FaultyListener {
    fn local_address(&self) -> Address {
        self.inner.local_address()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        let accepted = self.inner.poll_accept(cx);
        accepted.map_ok(|accepted| link::wrap(&self.registered.shared, self.site, None, accepted))
    }

    fn released(&self) -> BoxFuture<'static, ()> {
        self.inner.released()
    }
}
