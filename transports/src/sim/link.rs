//! Connections of the simulated network, as the contract wants them.

use std::io::ErrorKind;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::{Half, Progress, ReceiveFailure, SendFailure};
use super::world::World;
use super::{SCHEME, Shared, SimEventKind, parse};
use crate::address::Address;
use crate::error::{LinkError, TransportError};
use crate::fault::model::StreamFate;
use crate::frame::{Inbox, Outbox};
use crate::timer::{Timer, instant_at};
use crate::transport::{FrameReceiver, FrameSender, Link};

/// Both halves of one end.
pub(super) fn link(shared: &Arc<Shared>, id: u64, side: usize, local: Address, peer: Address) -> Link {
    let half = |half| HalfLink {
        shared: shared.clone(),
        id: (id, side),
        half,
        peer: peer.clone(),
        timer: Timer::default(),
    };
    Link {
        sender: Box::new(SimSender(half(Half::Sender))),
        receiver: Box::new(SimReceiver(half(Half::Receiver))),
        local,
        peer: peer.clone(),
        credentials: Default::default(),
    }
}

/// Connects: a request there, an answer back, repeated with doubling pauses while either is lost.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    host: u32,
    life: u64,
    address: &Address,
) -> Result<Link, TransportError> {
    let (name, port) = parse(address)?;
    let (to, limit) = {
        let mut world = shared.world();
        (world.core.host_id(name), world.core.config.connect_timeout)
    };
    let deadline = Instant::now() + limit;
    let mut pause = RETRY_FIRST;
    loop {
        match attempt(shared, (host, life), (to, port), address, deadline).await? {
            Attempt::Linked(link) => return Ok(link),
            Attempt::Lost => {}
        }
        let now = Instant::now();
        if now >= deadline {
            let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            return Err(TransportError::TimedOut { address: address.clone(), limit_ms });
        }
        tokio::time::sleep_until(deadline.min(now + pause)).await;
        pause *= 2;
    }
}

enum Attempt {
    Linked(Link),
    Lost,
}

async fn attempt(
    shared: &Arc<Shared>,
    (from, life): (u32, u64),
    (to, port): (u32, u16),
    address: &Address,
    deadline: Instant,
) -> Result<Attempt, TransportError> {
    let dead = || TransportError::Io { address: address.clone(), source: ErrorKind::NetworkDown.into() };
    let there = {
        let mut world = shared.world();
        if !world.core.is_alive(from, life) {
            return Err(dead());
        }
        world.travel(from, to)
    };
    let Some(there) = there else { return Ok(Attempt::Lost) };
    if !sleep(there, deadline).await {
        return Ok(Attempt::Lost);
    }
    let (found, back) = {
        let mut world = shared.world();
        let found = world.admit((from, life), (to, port), address);
        (found, world.travel(to, from))
    };
    let link = match found {
        Admission::Full => return Ok(Attempt::Lost),
        Admission::Nobody => None,
        // From here on the link's own drop cleans up.
        Admission::Connection { id, local } => Some(link(shared, id, 0, local, address.clone())),
    };
    let Some(back) = back else { return Ok(Attempt::Lost) };
    if !sleep(back, deadline).await {
        return Ok(Attempt::Lost);
    }
    if !shared.world().core.is_alive(from, life) {
        return Err(dead());
    }
    link.map(Attempt::Linked).ok_or_else(|| TransportError::Refused { address: address.clone() })
}

/// Sleeps unless that would pass the deadline; false then, at the deadline.
async fn sleep(nanos: u64, deadline: Instant) -> bool {
    if nanos == 0 {
        return true;
    }
    let remaining = deadline.saturating_duration_since(Instant::now());
    let wanted = Duration::from_nanos(nanos);
    tokio::time::sleep(wanted.min(remaining)).await;
    wanted <= remaining
}

enum Admission {
    Nobody,
    Full,
    Connection { id: u64, local: Address },
}

impl World {
    /// How long a packet takes now; `None` when it is lost.
    fn travel(&mut self, from: u32, to: u32) -> Option<u64> {
        if !self.core.is_up(to) {
            return None;
        }
        let now = self.core.now();
        match self.core.network.stream_fate(now, from, to, 0, &mut self.core.rng) {
            StreamFate::Arrives(delivery) => Some(delivery.delay_nanos),
            StreamFate::Stalls | StreamFate::Resets => None,
        }
    }

    /// A request to connect has arrived.
    fn admit(&mut self, from: (u32, u64), place: (u32, u16), address: &Address) -> Admission {
        let (to, _) = place;
        if !self.core.is_up(to) || !self.core.is_alive(from.0, from.1) {
            return Admission::Full;
        }
        let backlog_max = self.core.config.backlog.max(1);
        match self.listeners.get(&place) {
            None => {
                self.core.record(SimEventKind::Refuse, Some(from.0), Some(to), 0, 0, u64::from(place.1));
                return Admission::Nobody;
            }
            Some(backlog) if backlog.waiting.len() >= backlog_max => return Admission::Full,
            Some(_) => {}
        }
        let port = self.core.fresh_port(from.0);
        let Ok(local) = Address::new(SCHEME, &format!("{}:{port}", self.core.host_name(from.0))) else {
            return Admission::Nobody;
        };
        let life = self.core.life(to);
        let id = self.connect((from.0, from.1, local.clone()), (to, life, address.clone()));
        if let Some(backlog) = self.listeners.get_mut(&place) {
            backlog.waiting.push_back(id);
            self.core.woken.extend(backlog.waker.take());
        }
        Admission::Connection { id, local }
    }
}

struct HalfLink {
    shared: Arc<Shared>,
    id: (u64, usize),
    half: Half,
    peer: Address,
    timer: Timer,
}

impl HalfLink {
    /// Polls the world until it is ready or there is really something to wait for.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut World, (u64, usize), &mut Context<'_>) -> Progress<T>,
    ) -> Poll<T> {
        loop {
            let mut world = self.shared.world();
            match poll(&mut world, self.id, cx) {
                Progress::Ready(result) => return Poll::Ready(result),
                Progress::Wait(None) => return Poll::Pending,
                Progress::Wait(Some(at)) => {
                    let at = instant_at(world.core.epoch(), at);
                    drop(world);
                    if self.timer.poll_until(cx, at).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn send_error(&self, failure: SendFailure) -> LinkError {
        match failure {
            SendFailure::Closed => LinkError::Closed,
            SendFailure::Broken(kind) => LinkError::broken(&self.peer, kind),
        }
    }
}

impl Drop for HalfLink {
    fn drop(&mut self) {
        self.shared.world().release(self.id.0, self.id.1, self.half);
    }
}

struct SimSender(HalfLink);

impl FrameSender for SimSender {
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>> {
        let result = self.0.poll(cx, |world, id, cx| world.poll_send(id, cx, outbox));
        result.map_err(|failure| self.0.send_error(failure))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let result = self.0.poll(cx, |world, id, cx| world.poll_close(id, cx));
        result.map_err(|failure| self.0.send_error(failure))
    }
}

struct SimReceiver(HalfLink);

impl FrameReceiver for SimReceiver {
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>> {
        let result = self.0.poll(cx, |world, id, cx| world.poll_receive(id, cx, inbox));
        result.map_err(|failure| match failure {
            ReceiveFailure::Broken(kind) => LinkError::broken(&self.0.peer, kind),
            ReceiveFailure::Frame(source) => LinkError::Frame { peer: self.0.peer.clone(), source },
        })
    }
}

/// First pause before a lost request to connect is repeated, as TCP's.
const RETRY_FIRST: Duration = Duration::from_secs(1);
