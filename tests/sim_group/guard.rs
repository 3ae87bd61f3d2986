//! Guards under a network that belongs to an enemy: it reads, keeps, repeats, redirects, changes and invents what it likes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate::sim::Rng;
use quorate_protocols::guard::{Crypto, Guard, Message, Number, Proof, PublicKey};
use quorate_protocols::planted::{Plant, Planted};
use quorate_protocols::wire::{Wire, WireError, take_u64};
use quorate_protocols::{Input, Lane, Machine, Output, Outputs, ProcessId, Time};

#[test]
fn g11_a_stranger_neither_speaks_nor_repeats_and_those_with_the_secret_always_meet() {
    for seed in 0..SEEDS {
        if let Err(breach) = run(seed, Plant::NONE) {
            panic!("seed {seed}: {breach}");
        }
    }
}

#[test]
fn g11_every_planted_bug_of_guards_is_found() {
    for bug in [Planted::GuardTakesReplays, Planted::GuardBelievesStrangers, Planted::GuardReusesNumbers] {
        let found = (0..SEEDS).find_map(|seed| Some((seed, run(seed, Plant::of(bug)).err()?)));
        let (seed, breach) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
        println!("{bug:?}: seed {seed} ({breach})");
    }
}

/// Says what it is told to, and tells what it hears.
struct Parrot;

#[derive(Debug, Clone)]
struct Word(u64);

impl Wire for Word {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.0);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self(take_u64(input, "word")?))
    }
}

impl Machine for Parrot {
    type Command = (ProcessId, Lane, u64);
    type Event = (ProcessId, u64);
    type Message = Word;
    type Record = ();

    fn handle(&mut self, _: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Command((to, lane, word)) => out.send(to, lane, Word(word)),
            Input::Received { from, message } => out.event((from, message.0)),
            _ => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        None
    }
}

/// Mathematics that a test can afford: it shows who knows what, and would not hold anybody up.
struct Toy {
    secret: u64,
    rng: Rng,
    /// Keys and numbers that were sealed with, of all.
    sealed: Rc<RefCell<BTreeSet<(u64, Number)>>>,
    is_careless: Rc<RefCell<bool>>,
}

const PRIME: u128 = (1 << 61) - 1;

fn power(base: u64, mut exponent: u64) -> u64 {
    let (mut result, mut base) = (1, u128::from(base) % PRIME);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * base % PRIME;
        }
        (base, exponent) = (base * base % PRIME, exponent >> 1);
    }
    result as u64
}

fn digest(seed: u64, bytes: &[u8]) -> u64 {
    let step =
        |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    bytes.iter().fold(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xcbf2_9ce4_8422_2325, step)
}

fn pad(key: u64, number: Number, body: &mut [u8]) {
    for (at, byte) in body.iter_mut().enumerate() {
        *byte ^= digest(key ^ at as u64, &number) as u8;
    }
}

impl Crypto for Toy {
    type Private = u64;
    type Key = u64;

    fn fresh(&mut self) -> Option<(u64, PublicKey)> {
        let private = 1 + self.rng.below(1 << 60);
        let mut public = [0; 32];
        public[..8].copy_from_slice(&power(3, private).to_le_bytes());
        Some((private, public))
    }

    fn agree(&mut self, own: u64, other: &PublicKey, purposes: [&[u8]; 2]) -> Option<[u64; 2]> {
        let shared = power(u64::from_le_bytes(*other.first_chunk()?), own);
        Some(purposes.map(|purpose| digest(shared ^ self.secret, purpose)))
    }

    fn vouch(&self, statement: &[u8]) -> Proof {
        let mut proof = [0; 32];
        proof[..8].copy_from_slice(&digest(self.secret, statement).to_le_bytes());
        proof
    }

    fn believes(&self, statement: &[u8], proof: &Proof) -> bool {
        self.vouch(statement) == *proof
    }

    fn seal(&self, key: &u64, number: Number, body: &mut BytesMut) {
        *self.is_careless.borrow_mut() |= !self.sealed.borrow_mut().insert((*key, number));
        let tag = digest(*key ^ digest(7, &number), body);
        pad(*key, number, body);
        body.put_u64_le(tag);
    }

    fn open(&self, key: &u64, number: Number, mut sealed: BytesMut) -> Option<Bytes> {
        let tag = sealed.split_off(sealed.len().checked_sub(8)?);
        pad(*key, number, &mut sealed);
        (digest(*key ^ digest(7, &number), &sealed).to_le_bytes() == tag[..]).then(|| sealed.freeze())
    }
}

type Guarded = Guard<Parrot, Toy>;
type Frame = (ProcessId, ProcessId, Bytes);

struct World {
    rng: Rng,
    plant: Plant,
    now: Time,
    lives: Vec<ProcessId>,
    guards: BTreeMap<ProcessId, Guarded>,
    /// On the way, and seen by the enemy.
    mail: VecDeque<Frame>,
    seen: Vec<Frame>,
    words: u64,
    /// Each word: by whom, and to which node.
    said: BTreeMap<u64, (ProcessId, u64)>,
    heard: BTreeSet<u64>,
    sealed: Rc<RefCell<BTreeSet<(u64, Number)>>>,
    is_careless: Rc<RefCell<bool>>,
}

fn run(seed: u64, plant: Plant) -> Result<(), String> {
    let mut world = World {
        rng: Rng::new(seed),
        plant,
        now: Time::from_nanos(1),
        lives: Vec::new(),
        guards: BTreeMap::new(),
        mail: VecDeque::new(),
        seen: Vec::new(),
        words: 0,
        said: BTreeMap::new(),
        heard: BTreeSet::new(),
        sealed: Rc::default(),
        is_careless: Rc::default(),
    };
    for node in 0..=STRANGER {
        world.lives.push(ProcessId { node, incarnation: 0 });
        world.restart(node as usize);
    }
    for _ in 0..STEPS {
        world.step()?;
    }
    world.calm()
}

impl World {
    fn restart(&mut self, node: usize) {
        let life = &mut self.lives[node];
        self.guards.remove(life);
        life.incarnation += 1;
        let secret = if life.node == STRANGER { 666 } else { 42 };
        let toy = Toy {
            secret,
            rng: self.rng.fork(),
            sealed: self.sealed.clone(),
            is_careless: self.is_careless.clone(),
        };
        self.guards.insert(*life, Guard::new(*life, Parrot, toy, self.plant));
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.below(bound as u64) as usize
    }

    fn input(&mut self, who: ProcessId, input: Input<Guarded>) -> Result<(), String> {
        let mut out = Outputs::new();
        let Some(guard) = self.guards.get_mut(&who) else { return Ok(()) };
        guard.handle(self.now, input, &mut out);
        for output in out.drain() {
            match output {
                Output::Send { to, message, .. } => {
                    for to in to.as_slice() {
                        let frame = (who, *to, message.to_bytes());
                        self.seen.push(frame.clone());
                        self.mail.push_back(frame);
                    }
                }
                Output::Event((from, word)) => {
                    let said = self.said.get(&word);
                    if said != Some(&(from, who.node)) {
                        return Err(format!("{who} hears {word} from {from}; who said it: {said:?}"));
                    }
                    if !self.heard.insert(word) {
                        return Err(format!("{who} hears {word} again"));
                    }
                }
                Output::Persist(()) | Output::Barrier => {}
            }
        }
        if self.is_careless.replace(false) { Err(format!("{who} used a number twice")) } else { Ok(()) }
    }

    fn say(&mut self, from: usize, to: ProcessId) -> Result<u64, String> {
        self.words += 1;
        let (from, word) = (self.lives[from], self.words);
        let lane = [Lane::Control, Lane::Urgent, Lane::Ordinary, Lane::Bulk][self.below(4)];
        if from.node != STRANGER {
            self.said.insert(word, (from, to.node));
        }
        self.input(from, Input::Command((to, lane, word)))?;
        Ok(word)
    }

    /// A frame reaches the life it is for, said to come from `from`.
    fn arrive(&mut self, (from, to, bytes): Frame) -> Result<(), String> {
        let who = self.lives[to.node as usize];
        if to.incarnation != ProcessId::ANY_LIFE && to != who {
            return Ok(());
        }
        match Message::from_bytes(bytes) {
            Ok(message) => self.input(who, Input::Received { from, message }),
            Err(_) => Ok(()),
        }
    }

    fn pass(&mut self, by: u64) -> Result<(), String> {
        self.now = Time::from_nanos(self.now.as_nanos() + by);
        for who in self.lives.clone() {
            if self.guards.get(&who).and_then(Machine::deadline).is_some_and(|at| at <= self.now) {
                self.input(who, Input::Tick)?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.below(40) {
            0..8 => {
                let (from, to) = (self.below(self.lives.len()), self.below(self.lives.len()));
                let to = self.lives[to];
                let to = if self.below(4) == 0 { ProcessId::any_life(to.node) } else { to };
                if to.node != self.lives[from].node {
                    self.say(from, to)?;
                }
                Ok(())
            }
            8..24 => {
                let at = self.below(self.mail.len().min(6));
                match self.mail.remove(at) {
                    Some(frame) if self.below(8) != 0 => self.arrive(frame),
                    _ => Ok(()),
                }
            }
            24..36 => {
                if self.seen.is_empty() {
                    return Ok(());
                }
                let at = self.below(self.seen.len());
                let (mut from, mut to, bytes) = self.seen[at].clone();
                let mut bytes = BytesMut::from(bytes);
                let other = self.below(self.lives.len());
                match self.below(4) {
                    0 => {}
                    1 => from = self.lives[other],
                    2 => to = self.lives[other],
                    _ => {
                        let place = self.below(bytes.len());
                        bytes[place] ^= 1 << (other + place % 5);
                    }
                }
                self.arrive((from, to, bytes.freeze()))
            }
            36..39 => {
                let by = self.rng.below(80_000_000);
                self.pass(by)
            }
            _ => {
                let node = self.below(self.lives.len());
                if self.below(4) == 0 {
                    self.restart(node);
                }
                Ok(())
            }
        }
    }

    /// The enemy is tired: what is said now is heard, when it is said often enough.
    fn calm(&mut self) -> Result<(), String> {
        let members = self.lives.len() - 1;
        for (from, to) in (0..members).flat_map(|from| (0..members).map(move |to| (from, to))) {
            if from == to {
                continue;
            }
            let mut is_heard = false;
            for _ in 0..5 {
                let word = self.say(from, self.lives[to])?;
                self.pass(60_000_000)?;
                while let Some(frame) = self.mail.pop_front() {
                    self.arrive(frame)?;
                }
                is_heard |= self.heard.contains(&word);
            }
            if !is_heard {
                return Err(format!("in the end {} does not hear {}", self.lives[to], self.lives[from]));
            }
        }
        Ok(())
    }
}

/// The node without the secret; those before have it.
const STRANGER: u64 = 3;
const STEPS: usize = 600;
const SEEDS: u64 = 300;
