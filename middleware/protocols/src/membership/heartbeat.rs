//! Failure detector: every member says at intervals that it lives; who is silent for too long is suspected.
//!
//! Guarantee   completeness: a crashed member is suspected by every live one within [`Config::timeout`]. Accuracy
//!             only while the network and the scheduler are quicker than the time-out: a suspicion is a reason to
//!             act, never a proof, and no layer above may rest its safety on it.
//!             A process that finds itself late blames its own sleep, not the others.
//! Method      heartbeats carry the sender's view, so that a member which missed a view change is found too.
//! Source      van Steen & Tanenbaum, failure detection; Chandra & Toueg 1996 (eventually perfect).
//! Limits      n (n - 1) messages an interval; meant for groups of some ten members.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::machine::{Lane, ProcessId};
use crate::stack::{Down, Flow, Layer, Up, View, ViewId};
use crate::time::Time;
use crate::wire::{Wire, WireError};

/// How eager the detector is.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Time between two heartbeats. Default 100 ms. Shorter costs traffic, longer delays detection.
    pub interval: Duration,
    /// Silence after which a member is suspected. Default 1 s. Below some five intervals a busy machine makes
    /// live members suspects; detection takes this long at worst.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { interval: Duration::from_millis(100), timeout: Duration::from_secs(1) }
    }
}

/// "I live, and this is the view I am in."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat(ViewId);

/// The detector as a layer.
#[derive(Debug)]
pub struct HeartbeatDetector {
    me: ProcessId,
    config: Config,
    view: Option<View>,
    beat_at: Time,
    watched: BTreeMap<ProcessId, Watch>,
}

#[derive(Debug, Clone, Copy)]
struct Watch {
    /// Suspected when nothing comes until then.
    until: Time,
    suspected: bool,
}

impl HeartbeatDetector {
    /// A detector for the process `me`, idle until the first view.
    pub fn new(me: ProcessId, config: Config) -> Self {
        Self { me, config, view: None, beat_at: Time::ZERO, watched: BTreeMap::new() }
    }

    fn watch(&mut self, now: Time, view: View) {
        // Everyone starts afresh: who was let into the view has answered a moment ago.
        let fresh = Watch { until: now + self.config.timeout, suspected: false };
        let members = view.members.iter().filter(|member| **member != self.me);
        self.watched = members.map(|member| (*member, fresh)).collect();
        self.view = Some(view);
        self.beat_at = now;
    }
}

impl Layer for HeartbeatDetector {
    type Message = Heartbeat;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Heartbeat>) {
        match request {
            Down::Install { view, .. } => self.watch(now, view),
            other => flow.down(other),
        }
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Heartbeat>) {
        if let Up::Unreachable(peer) = event
            && let Some(watch) = self.watched.get_mut(&peer)
        {
            // A broken connection is evidence, not proof: the peer gets the time to say that it lives.
            watch.until = watch.until.min(now + self.config.interval * 2);
        }
        flow.up(event);
    }

    fn receive(&mut self, now: Time, from: ProcessId, message: Heartbeat, flow: &mut Flow<Heartbeat>) {
        if let Some(watch) = self.watched.get_mut(&from) {
            watch.until = now + self.config.timeout;
            if std::mem::take(&mut watch.suspected) {
                flow.up(Up::Trust(from));
            }
        }
        if self.view.as_ref().is_none_or(|view| view.id != message.0) {
            flow.up(Up::PeerView { peer: from, view: message.0 });
        }
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Heartbeat>) {
        let Some(view) = &self.view else { return };
        if self.beat_at + self.config.interval * 3 < now {
            // I was asleep, or my clock jumped: whose silence it was I cannot tell, so everyone gets fresh time.
            for watch in self.watched.values_mut().filter(|watch| !watch.suspected) {
                watch.until = now + self.config.timeout;
            }
        }
        if self.beat_at <= now {
            self.beat_at = now + self.config.interval;
            flow.multicast(view.others(self.me), Lane::Control, Heartbeat(view.id));
        }
        for (peer, watch) in &mut self.watched {
            if !watch.suspected && watch.until <= now {
                watch.suspected = true;
                flow.up(Up::Suspect(*peer));
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.view.as_ref().filter(|_| !self.watched.is_empty())?;
        let silent = self.watched.values().filter(|watch| !watch.suspected).map(|watch| watch.until);
        silent.chain([self.beat_at]).min()
    }
}

impl Wire for Heartbeat {
    fn encode(&self, out: &mut BytesMut) {
        self.0.encode(out);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        ViewId::decode(input).map(Self)
    }
}
