//! Failure detector by gossip: members pass on how often each of them was heard of, and whose number stands still is
//! suspected.
//!
//! Guarantee   a member that crashes is suspected by every live one within [`Config::timeout`] and as many intervals as a word
//!             takes to reach all, which is some logarithm of the members. A suspicion is never a proof. A lost message or a bad
//!             path alone makes no suspect: the next word comes another way.
//!             [`Config::timeout`]: super::heartbeat::Config::timeout
//! Method      each member counts its intervals, and sends at each the largest count that it knows of everybody to one other:
//!             in turn the next one, the one after that, the fourth, the eighth and so on, so that after one such turn
//!             everybody has heard of everybody. Chance would do as well, and a machine has none.
//!             Multicast needs every path, and gossip finds another one: so who was not heard itself for twice the
//!             time-out is asked to answer, and who does not in the end is suspected although others hear it.
//! Source      van Renesse, Minsky & Hayden 1998; the turns: Ranganathan, George, Todd & Chidester 2001.
//! Limits      n messages an interval, of 8 bytes for each member.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::heartbeat::Config;
use crate::machine::{Lane, ProcessId};
use crate::multicast::reliable::{put_counts, take_counts};
use crate::stack::{Down, Flow, Impossible, Layer, MEMBERS_MAX, Offer, Up, View, ViewId};
use crate::time::Time;
use crate::wire::{Wire, WireError, take_u8};

/// "I am in this view, and so often has each of its members been heard of."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The sender's view.
    view: ViewId,
    /// By rank in that view.
    counts: Vec<u64>,
    /// Whoever gets it shall answer.
    asks: bool,
}

/// The detector as a layer.
#[derive(Debug)]
pub struct GossipDetector {
    me: ProcessId,
    config: Config,
    view: Option<View>,
    rank: usize,
    counts: Vec<u64>,
    turn: u32,
    beat_at: Time,
    watched: BTreeMap<ProcessId, Watch>,
}

#[derive(Debug)]
struct Watch {
    rank: usize,
    /// When its count grew here.
    fresh_at: Time,
    /// When something came from it, not through others.
    heard_at: Time,
    /// Suspected when nothing comes from it until then.
    evidence_until: Option<Time>,
    suspected: bool,
}

impl GossipDetector {
    /// A detector for the process `me`, idle until the first view.
    pub fn new(me: ProcessId, config: Config) -> Self {
        let (counts, watched) = (Vec::new(), BTreeMap::new());
        Self { me, config, view: None, rank: 0, counts, turn: 0, beat_at: Time::ZERO, watched }
    }

    fn watch(&mut self, now: Time, view: View, flow: &mut Flow<Message>) {
        let suspected = |member: &ProcessId| self.watched.get(member).is_some_and(|watch| watch.suspected);
        view.members.iter().filter(|member| suspected(member)).for_each(|member| flow.up(Up::Trust(*member)));
        // Everyone starts afresh: who was let into the view has answered a moment ago.
        let fresh = |(rank, member): (usize, &ProcessId)| {
            let watch = Watch { rank, fresh_at: now, heard_at: now, evidence_until: None, suspected: false };
            (*member, watch)
        };
        self.watched = view.members.iter().enumerate().map(fresh).collect();
        self.watched.remove(&self.me);
        self.rank = view.rank(self.me).unwrap_or(0);
        (self.counts, self.turn, self.beat_at) = (vec![0; view.members.len()], 0, now);
        self.view = Some(view);
    }

    fn word(&self, view: ViewId, asks: bool) -> Message {
        Message { view, counts: self.counts.clone(), asks }
    }

    /// Who gets the word in this turn: another power of two further round the circle each time.
    fn next(&mut self) -> Option<ProcessId> {
        let members = &self.view.as_ref()?.members;
        let turns = usize::BITS - (members.len().checked_sub(1)?).leading_zeros();
        let step = 1 << (self.turn % turns.max(1));
        self.turn = (self.turn + 1) % turns.max(1);
        members.get((self.rank + step) % members.len()).copied()
    }

    /// When the silence of this member is too long.
    fn until(&self, watch: &Watch) -> Time {
        let fresh = watch.fresh_at + self.config.timeout;
        let direct = watch.heard_at + self.config.timeout * DIRECT_TIMEOUTS;
        watch.evidence_until.into_iter().fold(fresh.min(direct), Time::min)
    }

    /// True for those who are to say themselves that they live.
    fn is_asked(&self, now: Time, watch: &Watch) -> bool {
        watch.suspected
            || watch.evidence_until.is_some()
            || watch.heard_at + self.config.timeout * ASKED_TIMEOUTS <= now
    }
}

impl Layer for GossipDetector {
    type Message = Message;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Message>) {
        match request {
            Down::Install { view, .. } => self.watch(now, view, flow),
            other => flow.down(other),
        }
    }

    fn up(&mut self, now: Time, event: Up, flow: &mut Flow<Message>) {
        if let (Up::Unreachable(peer), Some(view)) = (&event, self.view.as_ref().map(|view| view.id)) {
            let word = self.word(view, true);
            if let Some(watch) = self.watched.get_mut(peer).filter(|watch| !watch.suspected) {
                // A broken connection is evidence, not proof: the peer gets the time to say that it lives.
                watch.evidence_until = watch.evidence_until.or(Some(now + self.config.interval * 2));
                flow.send(*peer, Lane::Control, word);
            }
        }
        flow.up(event);
    }

    fn receive(&mut self, now: Time, from: ProcessId, message: Message, flow: &mut Flow<Message>) {
        if let Some(watch) = self.watched.get_mut(&from) {
            (watch.heard_at, watch.fresh_at, watch.evidence_until) = (now, now, None);
            if std::mem::take(&mut watch.suspected) {
                flow.up(Up::Trust(from));
            }
        }
        let Some(view) = self.view.as_ref().map(|view| view.id) else { return };
        if message.asks {
            flow.send(from, Lane::Control, self.word(view, false));
        }
        if message.view != view {
            return flow.up(Up::PeerView { peer: from, view: message.view });
        }
        // Only members know the numbers of a view, and each has one for each.
        if message.counts.len() != self.counts.len() || !self.watched.contains_key(&from) {
            return;
        }
        for watch in self.watched.values_mut().filter(|watch| !watch.suspected) {
            let (here, there) = (&mut self.counts[watch.rank], message.counts[watch.rank]);
            if there > *here {
                *here = there;
                watch.fresh_at = now;
            }
        }
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Message>) {
        let Some(view) = self.view.as_ref().map(|view| view.id) else { return };
        if self.watched.is_empty() {
            return;
        }
        if self.beat_at + self.config.interval * 3 < now {
            // I was asleep, or my clock jumped: whose silence it was I cannot tell, so everyone gets fresh time.
            for watch in self.watched.values_mut().filter(|watch| !watch.suspected) {
                (watch.fresh_at, watch.heard_at, watch.evidence_until) = (now, now, None);
            }
        }
        if self.beat_at <= now {
            self.beat_at = now + self.config.interval;
            if let Some(count) = self.counts.get_mut(self.rank) {
                *count += 1;
            }
            if let Some(to) = self.next() {
                flow.send(to, Lane::Control, self.word(view, false));
            }
            let asked = self.watched.iter().filter(|(_, watch)| self.is_asked(now, watch));
            let asked: Vec<_> = asked.map(|(peer, _)| *peer).collect();
            flow.multicast(asked.into(), Lane::Control, self.word(view, true));
        }
        let is_late = |watch: &Watch| !watch.suspected && self.until(watch) <= now;
        let late = self.watched.iter().filter(|(_, watch)| is_late(watch));
        let late: Vec<_> = late.map(|(peer, _)| *peer).collect();
        for peer in late {
            if let Some(watch) = self.watched.get_mut(&peer) {
                watch.suspected = true;
            }
            flow.up(Up::Suspect(peer));
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.view.as_ref().filter(|_| !self.watched.is_empty())?;
        let silent = self.watched.values().filter(|watch| !watch.suspected).map(|watch| self.until(watch));
        silent.chain([self.beat_at]).min()
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let below = below.with_none("a failure detector", Offer::SUSPICIONS)?;
        Ok(below.and(Offer::SUSPICIONS))
    }
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.asks));
        self.view.encode(out);
        put_counts(out, &self.counts);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let asks = match take_u8(input, "gossip")? {
            0 => false,
            1 => true,
            other => return Err(WireError::Invalid { what: "gossip", value: u64::from(other) }),
        };
        let view = ViewId::decode(input)?;
        let counts = take_counts(input)?;
        if counts.len() > MEMBERS_MAX {
            return Err(WireError::Invalid { what: "gossip counts", value: counts.len() as u64 });
        }
        Ok(Self { view, counts, asks })
    }
}

/// Time-outs after which a member that only others were heard of is asked itself.
const ASKED_TIMEOUTS: u32 = 2;

/// Time-outs for which a member is trusted that only others hear.
const DIRECT_TIMEOUTS: u32 = 3;
