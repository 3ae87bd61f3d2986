//! Datagrams with faults.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::link::{Held, Payload};
use super::{Registered, Shared};
use crate::address::Address;
use crate::error::LinkError;
use crate::timer::{Timer, instant_at};
use crate::transport::DatagramSocket;

pub(super) fn wrap(
    shared: &Arc<Shared>,
    site: u64,
    inner: Box<dyn DatagramSocket>,
) -> Box<dyn DatagramSocket> {
    let registered = shared.register(inner.local_address(), site);
    Box::new(FaultySocket { inner, site, registered, held: Held::default(), timer: Timer::default() })
}

struct FaultySocket {
    // Dropped first: once the inner socket is gone, the address may be somebody else's.
    registered: Registered,
    inner: Box<dyn DatagramSocket>,
    site: u64,
    held: Held<(Address, Bytes)>,
    timer: Timer,
}

impl Payload for (Address, Bytes) {
    fn payload(&self) -> &Bytes {
        &self.1
    }

    fn replace(&mut self, payload: Bytes) {
        self.1 = payload;
    }
}

impl DatagramSocket for FaultySocket {
    fn local_address(&self) -> Address {
        self.inner.local_address()
    }

    fn datagram_bytes_max(&self) -> usize {
        self.inner.datagram_bytes_max()
    }

    fn poll_send_to(
        &mut self,
        cx: &mut Context<'_>,
        to: &Address,
        datagram: &[u8],
    ) -> Poll<Result<(), LinkError>> {
        {
            let mut state = self.registered.shared.state();
            let there = state.site_of(to);
            if !state.network.reaches(self.site, there) && datagram.len() <= self.inner.datagram_bytes_max() {
                state.stats.frames += 1;
                state.stats.cut += 1;
                return Poll::Ready(Ok(()));
            }
        }
        self.inner.poll_send_to(cx, to, datagram)
    }

    fn poll_receive_from(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Address, Bytes), LinkError>> {
        loop {
            let shared = &self.registered.shared;
            if self.held.bytes() < shared.config.held_bytes_max.max(1)
                && let Poll::Ready(received) = self.inner.poll_receive_from(cx)
            {
                let received = received?;
                let mut state = shared.state();
                let (now, from) = (state.now(), state.site_of(&received.0));
                self.held.judge(&mut state, now, (from, self.site), received);
                continue;
            }
            let (now, epoch) = {
                let mut state = shared.state();
                (state.now(), state.epoch())
            };
            if let Some(received) = self.held.pop_due(now) {
                return Poll::Ready(Ok(received));
            }
            let Some(due) = self.held.next_due() else { return Poll::Pending };
            ready!(self.timer.poll_until(cx, instant_at(epoch, due)));
        }
    }
}
