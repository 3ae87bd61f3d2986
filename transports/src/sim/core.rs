//! What every part of the simulated network needs: hosts, ways, chance, time, the trace.
//!
//! Guarantee   one source of chance, ordered maps, tokio's time and no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::config::SimConfig;
use super::trace::{SimEvent, SimEventKind, Trace};
use crate::fault::model::{Clock, Network, Rng, StreamFate};

/// What connections need besides themselves.
pub(super) struct Core {
    pub(super) config: SimConfig,
    pub(super) network: Network<u32>,
    pub(super) rng: Rng,
    pub(super) trace: Trace,
    /// Copies of datagrams so far, which orders those that arrive at the same time.
    pub(super) datagrams: u64,
    /// To be woken once the lock is released.
    pub(super) woken: Vec<Waker>,
    hosts: Vec<Host>,
    names: BTreeMap<Arc<str>, u32>,
    epoch: Option<Instant>,
}

pub(super) struct Host {
    pub(super) name: Arc<str>,
    /// Grows with every crash; sockets of an earlier life are dead.
    pub(super) life: u64,
    pub(super) is_up: bool,
    pub(super) is_paused: bool,
    /// Polls that came during a pause.
    pub(super) paused: Vec<Waker>,
    port_next: u16,
    pub(super) clock: Clock,
}

impl Core {
    pub(super) fn new(seed: u64, config: SimConfig) -> Self {
        Self {
            network: Network::new(config.link),
            rng: Rng::new(seed),
            trace: Trace::new(config.trace_events_max),
            datagrams: 0,
            woken: Vec::new(),
            hosts: Vec::new(),
            names: BTreeMap::new(),
            epoch: None,
            config,
        }
    }

    /// The host's number; its first mention makes it.
    pub(super) fn host_id(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.names.get(name) {
            return id;
        }
        let id = self.hosts.len() as u32;
        let name: Arc<str> = name.into();
        self.names.insert(name.clone(), id);
        self.hosts.push(Host {
            name,
            life: 0,
            is_up: true,
            is_paused: false,
            paused: Vec::new(),
            port_next: PORT_FIRST,
            clock: Clock::PERFECT,
        });
        id
    }

    /// Nanoseconds since the first use.
    pub(super) fn now(&mut self) -> u64 {
        let now = Instant::now();
        nanos(now.saturating_duration_since(*self.epoch.get_or_insert(now)))
    }

    pub(super) fn epoch(&mut self) -> Instant {
        *self.epoch.get_or_insert_with(Instant::now)
    }

    /// True while this life of the host lasts.
    pub(super) fn is_alive(&self, host: u32, life: u64) -> bool {
        let host = self.host(host);
        host.is_up && host.life == life
    }

    pub(super) fn is_up(&self, host: u32) -> bool {
        self.host(host).is_up
    }

    pub(super) fn life(&self, host: u32) -> u64 {
        self.host(host).life
    }

    pub(super) fn host_name(&self, host: u32) -> &Arc<str> {
        &self.host(host).name
    }

    /// True when the host is paused; the waker is kept until it resumes.
    pub(super) fn park(&mut self, host: u32, life: u64, cx: &Context<'_>) -> bool {
        let host = self.host_mut(host);
        let is_parked = host.is_paused && host.life == life;
        if is_parked && !host.paused.iter().any(|waker| waker.will_wake(cx.waker())) {
            host.paused.push(cx.waker().clone());
        }
        is_parked
    }

    /// A port that nobody was given lately.
    pub(super) fn fresh_port(&mut self, host: u32) -> u16 {
        let host = self.host_mut(host);
        let port = host.port_next;
        host.port_next = port.checked_add(1).unwrap_or(PORT_FIRST);
        port
    }

    /// When a small notice sent at `now` arrives; `None` when the way is cut or nobody is there.
    pub(super) fn notice(&mut self, now: u64, from: u32, to: u32) -> Option<u64> {
        if !self.host(to).is_up {
            return None;
        }
        match self.network.stream_fate(now, from, to, 0, &mut self.rng) {
            StreamFate::Arrives(delivery) => Some(now.saturating_add(delivery.delay_nanos)),
            StreamFate::Stalls => None,
            // A reset of the notice is a reset all the same.
            StreamFate::Resets => Some(now),
        }
    }

    pub(super) fn record(
        &mut self,
        kind: SimEventKind,
        from: Option<u32>,
        to: Option<u32>,
        connection: u64,
        bytes: usize,
        detail: u64,
    ) {
        let at_nanos = self.now();
        let name =
            |host: Option<u32>| host.map_or_else(|| Arc::from(""), |host| self.host(host).name.clone());
        let (from, to) = (name(from), name(to));
        self.trace.record(SimEvent { at_nanos, kind, from, to, connection, bytes: bytes as u64, detail });
    }

    pub(super) fn host(&self, host: u32) -> &Host {
        &self.hosts[host as usize]
    }

    pub(super) fn host_mut(&mut self, host: u32) -> &mut Host {
        &mut self.hosts[host as usize]
    }
}

/// Nanoseconds of a duration; 584 years and more are the end of the clock.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The first port given when a caller leaves the choice.
const PORT_FIRST: u16 = 49_152;
