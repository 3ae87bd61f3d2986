//! A guard before a machine: what it says is sealed for each receiver, and what strangers say is not heard.
//!
//! Guarantee   the machine gets only messages that a process which has the group's secret sealed for this very process: each
//!             at most once, unchanged, and from the process that is named. Nobody else can read them, also nobody who has
//!             the secret, unless it stood between the two when they met; and nobody who learns the secret later.
//!             Whoever has left is sent nothing more, so it reads nothing more; whoever joins was sent nothing before.
//! Method      each pair of processes agrees on keys of its own: both make a pair of keys for this meeting alone, and tell the
//!             public one with a proof that they have the secret (*hello*). Lives end with their processes, so a pair meets
//!             once, and a hello that comes again changes nothing. What is said to whichever life a node is in waits until
//!             that life has said who it is (*knock*). A sealed message has a number of its lane, which is used once and
//!             taken once; a lane may be overtaken by as much as a window.
//!             A key of the whole group would be sealed with once for all; but it would have to be given to all at each
//!             view, and who has it could speak in everybody's name. Messages travel once to each receiver in any case.
//! Source      Diffie & Hellman 1976; the window of RFC 4303; the separation of directions and of purposes in TLS 1.3.
//! Limits      [`PAIRS_MAX`] processes known; of those without keys, or else of all, the one unheard for longest goes, and a
//!             process that lives on and had keys is then not understood until its next life. [`HELD_MAX`] messages to each wait
//!             for keys. That and how much is said to whom is not hidden. Who can cut or flood the network can keep members
//!             apart; so can, over a transport that vouches for nobody, whoever can dial a member in another one's name.

mod message;
mod pair;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

pub use message::Message;

use crate::machine::{Input, Lane, Machine, Output, Outputs, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::time::Time;
use crate::wire::Wire;
use pair::Pair;

/// The mathematics that a guard needs, and the group's secret.
pub trait Crypto {
    /// The private half of a pair of keys, used once.
    type Private;
    /// What messages are sealed with, in one direction of one pair of processes.
    type Key;

    /// A fresh pair of keys. `None` when there is no randomness.
    fn fresh(&mut self) -> Option<(Self::Private, PublicKey)>;

    /// The keys that follow from the two pairs of keys and from the secret, one for each purpose. `None` when the other
    /// one's key is none.
    fn agree(
        &mut self,
        own: Self::Private,
        other: &PublicKey,
        purposes: [&[u8]; 2],
    ) -> Option<[Self::Key; 2]>;

    /// Proves that whoever makes this statement has the secret.
    fn vouch(&self, statement: &[u8]) -> Proof;

    /// True when whoever made this statement had the secret.
    fn believes(&self, statement: &[u8], proof: &Proof) -> bool;

    /// Seals a message in its place, and lengthens it by what tells changes. A number is never used twice with a key.
    fn seal(&self, key: &Self::Key, number: Number, body: &mut BytesMut);

    /// The message, when it is what was sealed with this key and number.
    fn open(&self, key: &Self::Key, number: Number, sealed: BytesMut) -> Option<Bytes>;
}

/// The public half of a pair of keys.
pub type PublicKey = [u8; 32];

/// That somebody has the secret.
pub type Proof = [u8; 32];

/// Tells the messages apart that are sealed with one key: the lane, then a count.
pub type Number = [u8; 12];

/// A machine that hears and is heard by those who have the secret.
pub struct Guard<M: Machine, C: Crypto> {
    me: ProcessId,
    inner: M,
    crypto: C,
    plant: Plant,
    pairs: BTreeMap<ProcessId, Pair<C>>,
    /// What waits for whichever life a node is in, and when it was asked.
    knocks: BTreeMap<u64, (Time, VecDeque<(Lane, Bytes)>)>,
    outputs: Outputs<M>,
}

impl<M: Machine, C: Crypto> Guard<M, C> {
    /// Guards the machine of process `me`.
    pub fn new(me: ProcessId, inner: M, crypto: C, plant: Plant) -> Self {
        let (pairs, knocks) = (BTreeMap::new(), BTreeMap::new());
        Self { me, inner, crypto, plant, pairs, knocks, outputs: Outputs::new() }
    }

    /// The guarded machine.
    pub fn inner(&self) -> &M {
        &self.inner
    }

    fn carry_out(&mut self, now: Time, out: &mut Outputs<Self>) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain() {
            match output {
                Output::Send { to, lane, message } => {
                    let plain = message.to_bytes();
                    for peer in to.as_slice() {
                        self.say(now, *peer, lane, plain.clone(), out);
                    }
                }
                Output::Event(event) => out.event(event),
                Output::Persist(record) => out.persist(record),
                Output::Barrier => out.barrier(),
            }
        }
        self.outputs = outputs;
    }

    fn say(&mut self, now: Time, to: ProcessId, lane: Lane, plain: Bytes, out: &mut Outputs<Self>) {
        if to.incarnation == ProcessId::ANY_LIFE {
            if self.knocks.len() >= PAIRS_MAX {
                self.knocks.pop_first();
            }
            let (_, held) = self.knocks.entry(to.node).or_insert_with(|| (now, VecDeque::new()));
            hold(held, lane, plain);
            let proof = self.crypto.vouch(&statement(KNOCK, self.me, to, None));
            return out.send(to, Lane::Control, Message::Knock { proof });
        }
        let Some(pair) = self.pair(now, to) else { return };
        if pair.keys.is_some() {
            return self.seal(to, lane, &plain, out);
        }
        hold(&mut pair.held, lane, plain);
        self.hello(now, to, out);
    }

    fn seal(&mut self, to: ProcessId, lane: Lane, plain: &[u8], out: &mut Outputs<Self>) {
        let reuses = self.plant.has(Planted::GuardReusesNumbers);
        let Some(pair) = self.pairs.get_mut(&to) else { return };
        let Some([key, _]) = &pair.keys else { return };
        let count = pair.sent[lane as usize];
        pair.sent[lane as usize] += u64::from(!reuses);
        let mut body = BytesMut::with_capacity(plain.len() + SEAL_BYTES);
        body.extend_from_slice(plain);
        self.crypto.seal(key, number(lane, count), &mut body);
        out.send(to, lane, Message::Sealed { lane, count, body: body.freeze() });
    }

    /// Says who this process is, unless it has just done so.
    fn hello(&mut self, now: Time, to: ProcessId, out: &mut Outputs<Self>) {
        let Some(pair) = self.pairs.get_mut(&to) else { return };
        if pair.hello_at > now {
            return;
        }
        pair.hello_at = now + RETRY;
        let (public, is_answer) = (pair.public, pair.keys.is_some());
        let proof = self.crypto.vouch(&statement(HELLO, self.me, to, Some((&public, is_answer))));
        out.send(to, Lane::Control, Message::Hello { public, is_answer, proof });
    }

    /// What is known of a process, from now on.
    fn pair(&mut self, now: Time, peer: ProcessId) -> Option<&mut Pair<C>> {
        if !self.pairs.contains_key(&peer) {
            if self.pairs.len() >= PAIRS_MAX {
                let worth = |pair: &Pair<C>| (pair.keys.is_some(), pair.heard_at);
                let oldest = self.pairs.iter().min_by_key(|(_, pair)| worth(pair)).map(|(peer, _)| *peer);
                oldest.map(|oldest| self.pairs.remove(&oldest));
            }
            let (private, public) = self.crypto.fresh()?;
            self.pairs.insert(peer, Pair::new(now, private, public));
        }
        self.pairs.get_mut(&peer)
    }

    fn on_hello(
        &mut self,
        now: Time,
        from: ProcessId,
        (public, is_answer, proof): (PublicKey, bool, Proof),
        out: &mut Outputs<Self>,
    ) {
        let said = statement(HELLO, from, self.me, Some((&public, is_answer)));
        if !self.crypto.believes(&said, &proof) && !self.plant.has(Planted::GuardBelievesStrangers) {
            return;
        }
        // Keys are for two lives; an earlier one of that node is over.
        let is_former = |other: &ProcessId| other.node == from.node && other.incarnation < from.incarnation;
        self.pairs.retain(|other, _| !is_former(other));
        if self.pair(now, from).is_none() {
            return;
        }
        let Some(pair) = self.pairs.get_mut(&from) else { return };
        pair.heard_at = now;
        if let Some(private) = pair.private.take() {
            let own = pair.public;
            let there = purpose((self.me, &own), (from, &public));
            let back = purpose((from, &public), (self.me, &own));
            pair.keys = self.crypto.agree(private, &public, [&there, &back]);
        }
        if !is_answer {
            pair.hello_at = now;
            self.hello(now, from, out);
        }
        let Some(pair) = self.pairs.get_mut(&from).filter(|pair| pair.keys.is_some()) else { return };
        let mut held = std::mem::take(&mut pair.held);
        held.extend(self.knocks.remove(&from.node).into_iter().flat_map(|(_, held)| held));
        for (lane, plain) in held {
            self.seal(from, lane, &plain, out);
        }
    }

    /// Somebody who has the secret asks who lives here.
    fn on_knock(&mut self, now: Time, from: ProcessId, proof: Proof, out: &mut Outputs<Self>) {
        let said = statement(KNOCK, from, ProcessId::any_life(self.me.node), None);
        if self.crypto.believes(&said, &proof) && self.pair(now, from).is_some() {
            self.hello(now, from, out);
        }
    }

    fn on_sealed(
        &mut self,
        now: Time,
        from: ProcessId,
        (lane, count, body): (Lane, u64, Bytes),
        out: &mut Outputs<Self>,
    ) {
        let Some(pair) = self.pairs.get_mut(&from) else { return };
        let Some([_, key]) = &pair.keys else {
            // It has heard my hello, and I have not heard its answer.
            return self.hello(now, from, out);
        };
        let plants_replay = self.plant.has(Planted::GuardTakesReplays);
        if !pair.windows[lane as usize].is_new(count) && !plants_replay {
            return;
        }
        let Some(plain) = self.crypto.open(key, number(lane, count), BytesMut::from(body)) else { return };
        // Only what was opened counts: a forged number must not close the window.
        pair.windows[lane as usize].take(count);
        pair.heard_at = now;
        let Ok(message) = M::Message::from_bytes(plain) else { return };
        self.inner.handle(now, Input::Received { from, message }, &mut self.outputs);
        self.carry_out(now, out);
    }

    /// Says hello again to those for whom something waits, and gives up what has waited for long.
    fn tick(&mut self, now: Time, out: &mut Outputs<Self>) {
        let waits = |pair: &Pair<C>| pair.keys.is_none() && !pair.held.is_empty() && pair.hello_at <= now;
        let due: Vec<_> = self.pairs.iter().filter(|(_, pair)| waits(pair)).map(|(peer, _)| *peer).collect();
        for peer in due {
            self.hello(now, peer, out);
        }
        for pair in
            self.pairs.values_mut().filter(|pair| pair.keys.is_none() && pair.heard_at + PATIENCE <= now)
        {
            pair.held.clear();
        }
        self.knocks.retain(|_, (since, _)| now < *since + PATIENCE);
    }
}

impl<M: Machine, C: Crypto> Machine for Guard<M, C> {
    type Command = M::Command;
    type Event = M::Event;
    type Message = Message;
    type Record = M::Record;

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        let input = match input {
            Input::Received { from, message } => {
                return match message {
                    Message::Knock { proof } => self.on_knock(now, from, proof, out),
                    Message::Hello { public, is_answer, proof } => {
                        self.on_hello(now, from, (public, is_answer, proof), out);
                    }
                    Message::Sealed { lane, count, body } => {
                        self.on_sealed(now, from, (lane, count, body), out)
                    }
                };
            }
            Input::Tick => {
                self.tick(now, out);
                if self.inner.deadline().is_none_or(|at| at > now) {
                    return;
                }
                Input::Tick
            }
            Input::Command(command) => Input::Command(command),
            Input::Reachable(peer) => Input::Reachable(peer),
            Input::Unreachable(peer) => Input::Unreachable(peer),
        };
        self.inner.handle(now, input, &mut self.outputs);
        self.carry_out(now, out);
    }

    fn deadline(&self) -> Option<Time> {
        let waits = self.pairs.values().filter(|pair| pair.keys.is_none() && !pair.held.is_empty());
        let knocks = self.knocks.values().map(|(since, _)| *since + PATIENCE);
        waits.map(|pair| pair.hello_at).chain(knocks).chain(self.inner.deadline()).min()
    }

    fn check(&self) -> Result<(), Violation> {
        self.inner.check()
    }
}

fn hold(held: &mut VecDeque<(Lane, Bytes)>, lane: Lane, plain: Bytes) {
    // The machine repeats what matters; what it said last is the most likely to matter still.
    if held.len() >= HELD_MAX {
        held.pop_front();
    }
    held.push_back((lane, plain));
}

/// What a process says of itself, so that it can be meant for nobody else and nothing else.
fn statement(kind: u8, from: ProcessId, to: ProcessId, hello: Option<(&PublicKey, bool)>) -> Bytes {
    let mut out = BytesMut::from(&[kind][..]);
    from.encode(&mut out);
    to.encode(&mut out);
    if let Some((public, is_answer)) = hello {
        out.extend_from_slice(public);
        out.extend_from_slice(&[u8::from(is_answer)]);
    }
    out.freeze()
}

/// What the key for one direction is for.
fn purpose(from: (ProcessId, &PublicKey), to: (ProcessId, &PublicKey)) -> Bytes {
    let mut out = BytesMut::from(&[SEALING][..]);
    for (process, public) in [from, to] {
        process.encode(&mut out);
        out.extend_from_slice(public);
    }
    out.freeze()
}

fn number(lane: Lane, count: u64) -> Number {
    let mut number = [0; 12];
    number[0] = lane as u8;
    number[4..].copy_from_slice(&count.to_le_bytes());
    number
}

/// Processes of which a guard knows the keys: four times as many as a group has members.
pub const PAIRS_MAX: usize = 1024;

/// Messages to one process that wait for its keys.
pub const HELD_MAX: usize = 64;

/// Before a hello is said again.
const RETRY: Duration = Duration::from_millis(50);

/// How long something waits for a node that does not say who it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// What sealing adds, about.
const SEAL_BYTES: usize = 16;

// What a statement or a key is for.
const KNOCK: u8 = 0;
const HELLO: u8 = 1;
const SEALING: u8 = 2;
