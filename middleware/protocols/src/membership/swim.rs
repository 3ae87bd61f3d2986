//! Failure detector in the manner of SWIM: members probe each other in turn, ask others to probe who does not answer, and
//! doubt before they suspect.
//!
//! Guarantee   a member that crashes is suspected by every live one within [`Config::timeout`], while messages arrive and
//!             the others probe in step; when its prober dies with it, or members slept, a period or two later. A suspicion
//!             is never a proof. A lost message or a bad path alone makes no suspect, because others are asked.
//!             [`Config::timeout`]: super::heartbeat::Config::timeout
//! Method      in each period of two intervals a member pings the next one; members begin at different places, so that
//!             each one is probed once in a period as long as they are in step. Without an answer within one interval so many
//!             helpers are asked to
//!             ping it, too; without one from them either it is *doubted*. A doubt is told to all, who ask for themselves;
//!             who is doubted says to all that it lives. Who says nothing is suspected.
//!             Otherwise than in SWIM, doubts go to all at once and not by gossip: a view change wants to know soon, and
//!             groups are small. And a member that is heard through others only is suspected in the end: it lives, but
//!             multicast needs every path.
//! Source      Das, Gupta & Motivala 2002.
//! Limits      n probes a period, instead of n (n - 1) beats an interval; [`RELAYS_MAX`] probes for others under way.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::heartbeat::Config;
use crate::machine::{Lane, ProcessId};
use crate::stack::{Down, Flow, Impossible, Layer, Offer, Up, View, ViewId};
use crate::time::Time;
use crate::wire::{Wire, WireError, take_u8, take_u64};

/// What members send each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// "Do you live? I am in this view."
    Ping {
        /// The sender's view.
        view: ViewId,
        /// To be named in the answer.
        number: u64,
    },
    /// "I live, and am in this view."
    Ack {
        /// The sender's view.
        view: ViewId,
        /// Of the ping.
        number: u64,
    },
    /// "Ping this member for me."
    PingFor {
        /// Who did not answer.
        target: ProcessId,
    },
    /// "It has answered me."
    Lives {
        /// Who was asked about.
        target: ProcessId,
    },
    /// "Nobody whom I asked hears this member."
    Doubt {
        /// Who is doubted.
        about: ProcessId,
    },
}

/// The detector as a layer.
#[derive(Debug)]
pub struct SwimDetector {
    me: ProcessId,
    config: Config,
    helpers: usize,
    view: Option<View>,
    /// The others, in the order in which they are probed: those behind me first.
    others: Vec<ProcessId>,
    period: usize,
    period_at: Time,
    probe: Option<Probe>,
    number: u64,
    watched: BTreeMap<ProcessId, Watch>,
    relays: VecDeque<Relay>,
    /// Others doubt me: when to say again that I live, and until when.
    doubted: Option<(Time, Time)>,
}

#[derive(Debug)]
struct Probe {
    target: ProcessId,
    /// When to ask others; `None` when they have been asked.
    help_at: Option<Time>,
    until: Time,
}

#[derive(Debug)]
struct Watch {
    /// When something came from it, not through others.
    heard_at: Time,
    /// Suspected when nothing comes until then.
    doubted_until: Option<Time>,
    suspected: bool,
}

/// A ping for somebody else.
#[derive(Debug)]
struct Relay {
    number: u64,
    target: ProcessId,
    asker: ProcessId,
}

impl SwimDetector {
    /// A detector for the process `me` that asks so many `helpers`, idle until the first view.
    pub fn new(me: ProcessId, config: Config, helpers: usize) -> Self {
        Self {
            me,
            config,
            helpers,
            view: None,
            others: Vec::new(),
            period: 0,
            period_at: Time::ZERO,
            probe: None,
            number: 0,
            watched: BTreeMap::new(),
            relays: VecDeque::new(),
            doubted: None,
        }
    }

    fn watch(&mut self, now: Time, view: View, flow: &mut Flow<Message>) {
        let behind = view.rank(self.me).map_or(0, |rank| rank + 1);
        let members = view.members.iter().cycle().skip(behind).take(view.members.len());
        self.others = members.copied().filter(|member| *member != self.me).collect();
        let suspected = |member: &&ProcessId| self.watched.get(*member).is_some_and(|watch| watch.suspected);
        self.others.iter().filter(suspected).for_each(|member| flow.up(Up::Trust(*member)));
        // Everyone starts afresh: who was let into the view has answered a moment ago.
        let fresh =
            |member: &ProcessId| (*member, Watch { heard_at: now, doubted_until: None, suspected: false });
        self.watched = self.others.iter().map(fresh).collect();
        (self.probe, self.doubted, self.period) = (None, None, 0);
        self.relays.clear();
        self.period_at = now;
        self.view = Some(view);
    }

    fn ping(&mut self, to: ProcessId, flow: &mut Flow<Message>) {
        let Some(view) = &self.view else { return };
        self.number += 1;
        flow.send(to, Lane::Control, Message::Ping { view: view.id, number: self.number });
    }

    /// Asks the next members in turn to ping `target`.
    fn ask_helpers(&self, target: ProcessId, flow: &mut Flow<Message>) {
        let is_fit = |member: &ProcessId| {
            *member != target && self.watched.get(member).is_some_and(|watch| !watch.suspected)
        };
        let turn = self.others.iter().cycle().skip(self.period).take(self.others.len());
        let helpers: Vec<_> = turn.copied().filter(is_fit).take(self.helpers).collect();
        flow.multicast(helpers.into(), Lane::Control, Message::PingFor { target });
    }

    /// Gives a member a last chance, and asks around; true when it was not doubted yet.
    fn doubt(&mut self, now: Time, about: ProcessId, flow: &mut Flow<Message>) -> bool {
        let until = now + self.config.interval * LAST_CHANCE_INTERVALS;
        let Some(watch) = self.watched.get_mut(&about).filter(|watch| !watch.suspected) else { return false };
        if watch.doubted_until.is_some() {
            return false;
        }
        watch.doubted_until = Some(until);
        self.ping(about, flow);
        self.ask_helpers(about, flow);
        true
    }

    /// Something came from `from` itself.
    fn on_heard(&mut self, now: Time, from: ProcessId, flow: &mut Flow<Message>) {
        let Some(watch) = self.watched.get_mut(&from) else { return };
        (watch.heard_at, watch.doubted_until) = (now, None);
        if std::mem::take(&mut watch.suspected) {
            flow.up(Up::Trust(from));
        }
        self.probe.take_if(|probe| probe.target == from);
    }

    fn on_view_of(&self, peer: ProcessId, view: ViewId, flow: &mut Flow<Message>) {
        if self.view.as_ref().is_none_or(|mine| mine.id != view) {
            flow.up(Up::PeerView { peer, view });
        }
    }

    /// Tells everybody that this member lives.
    fn refute(&mut self, flow: &mut Flow<Message>) {
        let Some(view) = &self.view else { return };
        self.number += 1;
        let ping = Message::Ping { view: view.id, number: self.number };
        flow.multicast(self.others.clone().into(), Lane::Control, ping);
    }

    fn tick_probe(&mut self, now: Time, flow: &mut Flow<Message>) {
        let Some(probe) = &mut self.probe else { return };
        let target = probe.target;
        if probe.until <= now {
            self.probe = None;
            if self.doubt(now, target, flow) {
                let others: Vec<_> = self.others.iter().copied().filter(|other| *other != self.me).collect();
                flow.multicast(others.into(), Lane::Control, Message::Doubt { about: target });
            }
        } else if probe.help_at.take_if(|at| *at <= now).is_some() {
            self.ask_helpers(target, flow);
        }
    }

    /// When the silence of a member that only others hear is too long.
    fn direct_until(&self, watch: &Watch) -> Time {
        watch.heard_at + self.config.timeout * DIRECT_TIMEOUTS
    }
}

impl Layer for SwimDetector {
    type Message = Message;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Message>) {
        match request {
            Down::Install { view, .. } => self.watch(now, view, flow),
            other => flow.down(other),
        }
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Message>) {
        if let Up::Unreachable(peer) = event {
            // A broken connection is evidence, not proof: the peer gets the time to say that it lives.
            self.doubt(now, peer, flow);
            let until = now + self.config.interval * 2;
            let doubted = self.watched.get_mut(&peer).and_then(|watch| watch.doubted_until.as_mut());
            doubted.into_iter().for_each(|at| *at = until.min(*at));
        }
        flow.up(event);
    }

    fn receive(&mut self, now: Time, from: ProcessId, message: Message, flow: &mut Flow<Message>) {
        self.on_heard(now, from, flow);
        match message {
            Message::Ping { view, number } => {
                if let Some(mine) = &self.view {
                    flow.send(from, Lane::Control, Message::Ack { view: mine.id, number });
                }
                self.on_view_of(from, view, flow);
            }
            Message::Ack { view, number } => {
                self.on_view_of(from, view, flow);
                let place =
                    self.relays.iter().position(|relay| (relay.number, relay.target) == (number, from));
                if let Some(relay) = place.and_then(|place| self.relays.remove(place)) {
                    flow.send(relay.asker, Lane::Control, Message::Lives { target: from });
                }
            }
            Message::PingFor { target } => {
                if !self.watched.contains_key(&from) || !self.watched.contains_key(&target) {
                    return;
                }
                if self.relays.len() == RELAYS_MAX {
                    self.relays.pop_front();
                }
                self.relays.push_back(Relay { number: self.number + 1, target, asker: from });
                self.ping(target, flow);
            }
            Message::Lives { target } => {
                if self.watched.contains_key(&from)
                    && let Some(watch) = self.watched.get_mut(&target)
                {
                    watch.doubted_until = None;
                    self.probe.take_if(|probe| probe.target == target);
                }
            }
            Message::Doubt { about } => {
                if !self.watched.contains_key(&from) {
                    return;
                }
                if about == self.me {
                    let until = now + self.config.interval * LAST_CHANCE_INTERVALS;
                    let (at, _) = self.doubted.unwrap_or((now, until));
                    self.doubted = Some((at, until));
                } else {
                    self.doubt(now, about, flow);
                }
            }
        }
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Message>) {
        if self.view.is_none() || self.others.is_empty() {
            return;
        }
        let interval = self.config.interval;
        if self.period_at + interval * 3 < now {
            // I was asleep, or my clock jumped: whose silence it was I cannot tell, so everyone gets fresh time.
            self.probe = None;
            for watch in self.watched.values_mut().filter(|watch| !watch.suspected) {
                (watch.heard_at, watch.doubted_until) = (now, None);
            }
        }
        self.tick_probe(now, flow);
        if self.period_at <= now {
            self.period_at = now + interval * PERIOD_INTERVALS;
            let target = self.others[self.period % self.others.len()];
            self.period = (self.period + 1) % self.others.len();
            let (help_at, until) = (Some(now + interval), self.period_at);
            self.probe = Some(Probe { target, help_at, until });
            self.ping(target, flow);
        }
        if let Some((_, until)) = self.doubted.filter(|(at, _)| *at <= now) {
            self.refute(flow);
            self.doubted = Some((now + interval, until)).filter(|(at, until)| at < until);
        }
        let late: Vec<_> = self
            .watched
            .iter()
            .filter(|(_, watch)| !watch.suspected)
            .filter(|(_, watch)| {
                watch.doubted_until.is_some_and(|at| at <= now) || self.direct_until(watch) <= now
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in late {
            if let Some(watch) = self.watched.get_mut(&peer) {
                watch.suspected = true;
            }
            flow.up(Up::Suspect(peer));
            // Said again: the first word may have been lost.
            flow.multicast(self.others.clone().into(), Lane::Control, Message::Doubt { about: peer });
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.view.as_ref().filter(|_| !self.others.is_empty())?;
        let probe = self.probe.iter().flat_map(|probe| probe.help_at.into_iter().chain([probe.until]));
        let live = self.watched.values().filter(|watch| !watch.suspected);
        let silent = live.flat_map(|watch| watch.doubted_until.into_iter().chain([self.direct_until(watch)]));
        let refute = self.doubted.map(|(at, _)| at);
        probe.chain(silent).chain(refute).chain([self.period_at]).min()
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let below = below.with_none("a failure detector", Offer::SUSPICIONS)?;
        Ok(below.and(Offer::SUSPICIONS))
    }
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Ping { view, number } => {
                out.put_u8(0);
                view.encode(out);
                out.put_u64_le(*number);
            }
            Self::Ack { view, number } => {
                out.put_u8(1);
                view.encode(out);
                out.put_u64_le(*number);
            }
            Self::PingFor { target } => {
                out.put_u8(2);
                target.encode(out);
            }
            Self::Lives { target } => {
                out.put_u8(3);
                target.encode(out);
            }
            Self::Doubt { about } => {
                out.put_u8(4);
                about.encode(out);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "probe")? {
            0 => Ok(Self::Ping { view: ViewId::decode(input)?, number: take_u64(input, "ping number")? }),
            1 => Ok(Self::Ack { view: ViewId::decode(input)?, number: take_u64(input, "ping number")? }),
            2 => Ok(Self::PingFor { target: ProcessId::decode(input)? }),
            3 => Ok(Self::Lives { target: ProcessId::decode(input)? }),
            4 => Ok(Self::Doubt { about: ProcessId::decode(input)? }),
            other => Err(WireError::Invalid { what: "probe", value: u64::from(other) }),
        }
    }
}

/// A period: one interval for the answer, one for those of the helpers.
const PERIOD_INTERVALS: u32 = 2;

/// What a doubted member has to say that it lives. With the periods before it this stays below the ten intervals of a
/// usual time-out.
const LAST_CHANCE_INTERVALS: u32 = 5;

/// Time-outs for which a member is trusted that only others hear.
const DIRECT_TIMEOUTS: u32 = 3;

/// Pings for others that were not answered; the oldest gives way.
pub const RELAYS_MAX: usize = 64;
