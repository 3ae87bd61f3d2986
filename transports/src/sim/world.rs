//! The state of the simulated network; one lock around all of it.
//!
//! Guarantee   everything that happens is decided here in the order in which the lock is taken; wakers are woken after
//!             the lock is released.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::config::SimConfig;
use super::connection::{Connection, Half, Progress, ReceiveFailure, SendFailure};
use super::core::Core;
use super::trace::SimEventKind;
use crate::address::Address;
use crate::fault::model::{Clock, Network};
use crate::frame::{Inbox, Outbox};

/// The whole state.
pub(super) struct World {
    pub(super) core: Core,
    connections: BTreeMap<u64, Connection>,
    connections_made: u64,
    /// Connections that wait to be accepted, by place.
    pub(super) listeners: BTreeMap<Place, Backlog>,
    pub(super) sockets: BTreeMap<Place, Mailbox>,
}

/// Host and port.
pub(super) type Place = (u32, u16);

/// A listener's queue.
pub(super) struct Backlog {
    pub(super) life: u64,
    pub(super) waiting: VecDeque<u64>,
    pub(super) waker: Option<Waker>,
}

/// A datagram socket's queue, by arrival and order of sending.
pub(super) struct Mailbox {
    pub(super) life: u64,
    pub(super) queue: BTreeMap<(u64, u64), (Address, Bytes)>,
    pub(super) bytes: usize,
    pub(super) waker: Option<Waker>,
}

impl World {
    pub(super) fn new(seed: u64, config: SimConfig) -> Self {
        Self {
            core: Core::new(seed, config),
            connections: BTreeMap::new(),
            connections_made: 0,
            listeners: BTreeMap::new(),
            sockets: BTreeMap::new(),
        }
    }

    /// Changes the network and lets what waited for that go on.
    pub(super) fn change(&mut self, kind: SimEventKind, change: impl FnOnce(&mut Network<u32>)) {
        change(&mut self.core.network);
        self.core.record(kind, None, None, 0, 0, 0);
        self.resume_streams();
    }

    pub(super) fn crash(&mut self, host: u32, is_kill: bool) {
        let now = self.core.now();
        let kind = if is_kill { SimEventKind::Kill } else { SimEventKind::Crash };
        self.core.record(kind, Some(host), None, 0, 0, 0);
        let dying = self.core.host_mut(host);
        dying.life += 1;
        dying.is_up = is_kill;
        dying.is_paused = false;
        let paused = std::mem::take(&mut dying.paused);
        self.core.woken.extend(paused);
        let mut unaccepted = Vec::new();
        self.listeners.retain(|place, backlog| {
            let is_dying = place.0 == host;
            if is_dying {
                unaccepted.extend(backlog.waiting.drain(..));
            }
            !is_dying
        });
        for (place, mailbox) in &mut self.sockets {
            if place.0 == host {
                self.core.woken.extend(mailbox.waker.take());
            }
        }
        self.sockets.retain(|place, _| place.0 != host);
        for connection in self.connections.values_mut() {
            for side in [0, 1] {
                if connection.ends[side].host == host && connection.ends[side].broken.is_none() {
                    connection.die(&mut self.core, now, side, is_kill);
                }
            }
        }
        // Nobody holds the ends that were never accepted.
        for id in unaccepted {
            self.release(id, 1, Half::Sender);
            self.release(id, 1, Half::Receiver);
        }
    }

    pub(super) fn restart(&mut self, host: u32) {
        if !self.core.host(host).is_up {
            self.core.host_mut(host).is_up = true;
            self.core.record(SimEventKind::Restart, Some(host), None, 0, 0, 0);
            self.resume_streams();
        }
    }

    pub(super) fn reset_connections(&mut self, a: u32, b: u32) {
        for connection in self.connections.values_mut() {
            let [one, two] = [connection.ends[0].host, connection.ends[1].host];
            if (one, two) == (a, b) || (one, two) == (b, a) {
                self.core.record(SimEventKind::Reset, Some(a), Some(b), connection.id, 0, 0);
                for side in [0, 1] {
                    connection.break_end(&mut self.core, side, ErrorKind::ConnectionReset);
                }
            }
        }
    }

    /// Makes a connection from `(from, life)` to a listener's host and returns its id.
    pub(super) fn connect(&mut self, from: (u32, u64, Address), to: (u32, u64, Address)) -> u64 {
        self.connections_made += 1;
        let id = self.connections_made;
        self.core.record(SimEventKind::Connect, Some(from.0), Some(to.0), id, 0, 0);
        self.connections.insert(id, Connection::new(id, from, to));
        id
    }

    /// The addresses of an end: its own and its peer's.
    pub(super) fn addresses(&self, id: u64, side: usize) -> Option<(Address, Address)> {
        let ends = &self.connections.get(&id)?.ends;
        Some((ends[side].address.clone(), ends[1 - side].address.clone()))
    }

    pub(super) fn poll_send(
        &mut self,
        (id, side): (u64, usize),
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
    ) -> Progress<Result<(), SendFailure>> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Ready(Err(SendFailure::Broken(ErrorKind::NotConnected)));
        };
        if self.core.park(connection.ends[side].host, connection.ends[side].life, cx) {
            return Progress::Wait(None);
        }
        let now = self.core.now();
        connection.poll_send(&mut self.core, now, side, cx, outbox)
    }

    pub(super) fn poll_close(
        &mut self,
        (id, side): (u64, usize),
        cx: &mut Context<'_>,
    ) -> Progress<Result<(), SendFailure>> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Ready(Err(SendFailure::Broken(ErrorKind::NotConnected)));
        };
        if self.core.park(connection.ends[side].host, connection.ends[side].life, cx) {
            return Progress::Wait(None);
        }
        let now = self.core.now();
        connection.poll_close(&mut self.core, now, side)
    }

    pub(super) fn poll_receive(
        &mut self,
        (id, side): (u64, usize),
        cx: &mut Context<'_>,
        inbox: &mut Inbox,
    ) -> Progress<Result<bool, ReceiveFailure>> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Progress::Ready(Err(ReceiveFailure::Broken(ErrorKind::NotConnected)));
        };
        if self.core.park(connection.ends[side].host, connection.ends[side].life, cx) {
            return Progress::Wait(None);
        }
        let now = self.core.now();
        connection.poll_receive(&mut self.core, now, side, cx, inbox)
    }

    /// A half was dropped.
    pub(super) fn release(&mut self, id: u64, side: usize, half: Half) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let now = self.core.now();
        connection.release(&mut self.core, now, side, half);
        if connection.is_unheld() {
            self.connections.remove(&id);
        }
    }

    pub(super) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Lets every stream go on that can, after cuts healed or a host came back.
    fn resume_streams(&mut self) {
        let now = self.core.now();
        for connection in self.connections.values_mut() {
            for side in [0, 1] {
                connection.resume(&mut self.core, now, side);
            }
        }
    }
}

impl World {
    pub(super) fn set_paused(&mut self, host: u32, is_paused: bool) {
        let kind = if is_paused { SimEventKind::Pause } else { SimEventKind::Resume };
        self.core.record(kind, Some(host), None, 0, 0, 0);
        let host = self.core.host_mut(host);
        host.is_paused = is_paused;
        if !is_paused {
            let paused = std::mem::take(&mut host.paused);
            self.core.woken.extend(paused);
        }
    }

    pub(super) fn set_clock(&mut self, host: u32, clock: Clock) {
        self.core.host_mut(host).clock = clock;
    }

    pub(super) fn clock(&mut self, host: u32) -> Duration {
        let now = self.core.now();
        Duration::from_nanos(self.core.host(host).clock.local_time(now))
    }

    /// True time that is left until the host's clock shows `local`.
    pub(super) fn until_clock(&mut self, host: u32, local: Duration) -> Duration {
        let now = self.core.now();
        let local = u64::try_from(local.as_nanos()).unwrap_or(u64::MAX);
        let clock = &self.core.host(host).clock;
        if clock.local_time(now) >= local {
            return Duration::ZERO;
        }
        Duration::from_nanos(clock.true_time(local).saturating_sub(now))
    }
}
