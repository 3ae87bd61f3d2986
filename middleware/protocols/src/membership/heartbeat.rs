//! Failure detector: every member says at intervals that it lives; who is silent for too long is suspected.
//!
//! Guarantee   completeness: a crashed member is suspected by every live one within [`Config::timeout`]. Accuracy
//!             only while the network and the scheduler are quicker than the time-out: a suspicion is a reason to
//!             act, never a proof, and no layer above may rest its safety on it.
//!             A process that finds itself late blames its own sleep, not the others.
//!             With [`Judge::Phi`] the time-out is the longest patience, and a member that beats regularly gets less.
//! Method      heartbeats carry the sender's view, so that a member which missed a view change is found too.
//! Source      van Steen & Tanenbaum, failure detection; Chandra & Toueg 1996 (eventually perfect).
//! Limits      n (n - 1) messages an interval; meant for groups of some ten members.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::phi::Rhythm;
use crate::machine::{Lane, ProcessId};
use crate::stack::{Down, Flow, Impossible, Layer, Offer, Up, View, ViewId};
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

/// When silence is too long.
#[derive(Debug, Clone, Copy, Default)]
pub enum Judge {
    /// After [`Config::timeout`].
    #[default]
    Timeout,
    /// When it is so unlikely, given how the member beat before: one in ten to the power of this. 8 is usual; 3 is eager,
    /// 12 patient. Never sooner than four intervals, nor later than [`Config::timeout`].
    Phi(f64),
}

/// "I live, and this is the view I am in."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat(ViewId);

/// The detector as a layer.
#[derive(Debug)]
pub struct HeartbeatDetector {
    me: ProcessId,
    config: Config,
    judge: Judge,
    view: Option<View>,
    beat_at: Time,
    watched: BTreeMap<ProcessId, Watch>,
}

#[derive(Debug)]
struct Watch {
    /// Suspected when nothing comes until then.
    until: Time,
    suspected: bool,
    /// When it beat last, unless I was asleep since.
    beat_at: Option<Time>,
    rhythm: Rhythm,
}

impl HeartbeatDetector {
    /// A detector for the process `me`, idle until the first view.
    pub fn new(me: ProcessId, config: Config, judge: Judge) -> Self {
        Self { me, config, judge, view: None, beat_at: Time::ZERO, watched: BTreeMap::new() }
    }

    fn watch(&mut self, now: Time, view: View, flow: &mut Flow<Heartbeat>) {
        // Everyone starts afresh: who was let into the view has answered a moment ago.
        let mut before = std::mem::take(&mut self.watched);
        let members = view.members.iter().filter(|member| **member != self.me);
        let fresh = |member: &ProcessId| {
            // Who is in the next view has answered.
            if before.get(member).is_some_and(|watch| watch.suspected) {
                flow.up(Up::Trust(*member));
            }
            let rhythm = before.remove(member).map(|watch| watch.rhythm).unwrap_or_default();
            let until = now + self.config.timeout;
            (*member, Watch { until, suspected: false, beat_at: None, rhythm })
        };
        self.watched = members.map(fresh).collect();
        self.view = Some(view);
        self.beat_at = now;
    }
}

impl Layer for HeartbeatDetector {
    type Message = Heartbeat;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Heartbeat>) {
        match request {
            Down::Install { view, .. } => self.watch(now, view, flow),
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
            let mut patience = self.config.timeout;
            if let Judge::Phi(phi) = self.judge {
                if let Some(beat_at) = watch.beat_at.replace(now) {
                    watch.rhythm.note(now.since(beat_at));
                }
                let shortest = (self.config.interval * BEATS_MIN).min(patience);
                patience = watch.rhythm.patience(phi).unwrap_or(patience).clamp(shortest, patience);
            }
            watch.until = now + patience;
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
                watch.beat_at = None;
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

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let below = below.with_none("a failure detector", Offer::SUSPICIONS)?;
        Ok(below.and(Offer::SUSPICIONS))
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

/// However regular a member is, so many beats may be lost.
const BEATS_MIN: u32 = 4;
