//! A queue that moves at random between nodes that put into it and take from it, with news that are late, or never come.

use std::collections::{BTreeMap, VecDeque};

use super::{Dispatch, Held, Home, Note, Outcome, Relocation, Spot};

/// A message, or a note among them: of which node and its how-many-th.
#[derive(Debug, Clone, Copy)]
enum Item {
    Message(u64, u64),
    Note(Note),
}

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// Producers change their way without a marker.
    NoMarker,
    /// A node that gets the queue back does not hold those who do not know.
    NoStale,
    /// Markers pass the messages of a queue that is leaving.
    MarkersOvertake,
    /// A home that leaves forwards at once what comes, before what is in the queue.
    ForwardsAtOnce,
    /// Held messages are passed by new ones.
    HeldAreOvertaken,
}

#[derive(Clone)]
struct Node {
    machine: Relocation,
    queue: VecDeque<(u64, u64)>,
    held: BTreeMap<Held, VecDeque<Item>>,
    last: Vec<Item>,
    put: u64,
}

struct World {
    nodes: Vec<Node>,
    /// Between each two: what was sent, and the move that the sender knew of.
    lines: BTreeMap<(u64, u64), VecDeque<(u64, Item)>>,
    /// Where the queue was announced, and by which move.
    news: Vec<(u64, u64)>,
    taken: Vec<(u64, u64)>,
    bug: Bug,
    random: u64,
}

impl World {
    fn new(count: u64, seed: u64, bug: Bug) -> Self {
        let node = |me| Node {
            machine: if me == 0 { Relocation::here(me) } else { Relocation::unknown(me) },
            queue: VecDeque::new(),
            held: BTreeMap::new(),
            last: Vec::new(),
            put: 0,
        };
        let nodes = (0..count).map(node).collect();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { nodes, lines: BTreeMap::new(), news: vec![(0, 1)], taken: Vec::new(), bug, random }
    }

    fn draw(&mut self, below: u64) -> u64 {
        // xorshift: any will do, if it repeats.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    fn send(&mut self, from: u64, send: Option<Dispatch>) {
        if let Some(Dispatch { to, epoch, note }) = send {
            self.lines.entry((from, to)).or_default().push_back((epoch, Item::Note(note)));
        }
    }

    /// Puts an item where the machine says; whether that was possible.
    fn place(&mut self, at: u64, spot: Spot, item: Item) -> bool {
        let node = &mut self.nodes[at as usize];
        match (spot, item) {
            (Spot::Queue, Item::Message(from, number)) => node.queue.push_back((from, number)),
            (Spot::Queue, Item::Note(Note::Marker { origin, number })) => {
                let send = node.machine.arrived(origin, number);
                self.send(at, send);
            }
            (Spot::Queue, Item::Note(note)) => panic!("{note:?} is not for queues"),
            (Spot::Line { to, epoch }, item) => {
                self.lines.entry((at, to)).or_default().push_back((epoch, item));
            }
            (Spot::Held(held), item) => node.held.entry(held).or_default().push_back(item),
            (Spot::Unknown, _) => return false,
        }
        true
    }

    fn put(&mut self, at: u64) {
        let node = &self.nodes[at as usize];
        let item = Item::Message(at, node.put + 1);
        let mut spot = node.machine.own();
        if self.bug == Bug::HeldAreOvertaken
            && let Some(follow) = node.machine.following(Held::Own)
        {
            spot = follow;
        }
        if self.place(at, spot, item) {
            self.nodes[at as usize].put += 1;
        }
    }

    fn deliver(&mut self, from: u64, to: u64) {
        let Some((epoch, item)) = self.lines.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return;
        };
        let bug = self.bug;
        let node = &mut self.nodes[to as usize];
        let outcome = match item {
            Item::Message(..) => Outcome::Like(match node.machine.leaving() {
                Some(spot) if bug == Bug::ForwardsAtOnce => spot,
                _ => node.machine.passing(epoch),
            }),
            Item::Note(note) => node.machine.noted(epoch, note),
        };
        if bug == Bug::NoStale && node.machine.home == Home::Here {
            node.machine.stale = super::Door::Open;
        }
        match outcome {
            Outcome::Done(one, two) => {
                self.send(to, one);
                self.send(to, two);
                if let Item::Note(Note::Adopt { epoch }) = item {
                    self.news.push((to, epoch));
                }
            }
            Outcome::Like(spot) => {
                assert!(self.place(to, spot, item), "{item:?} came to {to}, who does not know")
            }
            Outcome::Last if bug == Bug::MarkersOvertake => {
                if let (Some(spot), node) = (self.nodes[to as usize].machine.leaving(), to) {
                    self.place(node, spot, item);
                }
            }
            Outcome::Last => self.nodes[to as usize].last.push(item),
        }
    }

    fn follow(&mut self, at: u64, held: Held) {
        let node = &mut self.nodes[at as usize];
        let Some(spot) = node.machine.following(held) else { return };
        match node.held.entry(held).or_default().pop_front() {
            Some(item) => assert!(self.place(at, spot, item)),
            None => {
                let send = node.machine.drained(held);
                self.send(at, send);
            }
        }
    }

    fn leave_on(&mut self, at: u64) {
        let node = &mut self.nodes[at as usize];
        let Some(spot) = node.machine.leaving() else { return };
        match node.queue.pop_front() {
            Some((from, number)) => assert!(self.place(at, spot, Item::Message(from, number))),
            None => {
                let all = node.machine.left();
                self.send(at, all);
                let node = &mut self.nodes[at as usize];
                for item in std::mem::take(&mut node.last) {
                    self.place(at, spot, item);
                }
            }
        }
    }

    fn hear(&mut self, at: u64, news: (u64, u64)) {
        let machine = &mut self.nodes[at as usize].machine;
        let send = machine.heard(news.0, news.1);
        if self.bug == Bug::NoMarker && send.is_some() {
            machine.own = super::Door::Open;
            return;
        }
        self.send(at, send);
    }

    fn step(&mut self, puts: bool) {
        let count = self.nodes.len() as u64;
        let (one, other) = (self.draw(count), self.draw(count));
        match self.draw(if puts { 16 } else { 11 }) {
            0..4 => self.deliver(one, other),
            4 => self.follow(one, Held::Own),
            5 => self.follow(one, Held::Stale),
            6 | 7 => self.leave_on(one),
            8 => {
                let which = self.draw(self.news.len() as u64);
                self.hear(one, self.news[which as usize]);
            }
            9 | 10 => {
                // Consumers that go on while a queue leaves overtake what is on its way.
                let node = &mut self.nodes[one as usize];
                let taken = if node.machine.home == Home::Here { node.queue.pop_front() } else { None };
                self.taken.extend(taken);
            }
            11..15 => self.put(one),
            _ => {
                let send = self.nodes[one as usize].machine.leave(other);
                self.send(one, send);
            }
        }
    }
}

/// Runs a world, and says what is wrong at its end.
fn run(count: u64, seed: u64, bug: Bug) -> Result<usize, String> {
    let mut world = World::new(count, seed, bug);
    for _ in 0..400 {
        world.step(true);
    }
    // Everything that is on its way arrives, and the queue stays.
    for _ in 0..40_000 {
        world.step(false);
    }
    let put: u64 = world.nodes.iter().map(|node| node.put).sum();
    let mut next = vec![1; world.nodes.len()];
    for (from, number) in &world.taken {
        let next = &mut next[*from as usize];
        if number != next {
            return Err(format!("seed {seed}: message {number} of {from} came instead of {next}"));
        }
        *next += 1;
    }
    if world.taken.len() as u64 != put {
        return Err(format!("seed {seed}: {} of {put} messages came", world.taken.len()));
    }
    Ok(world.news.len() - 1)
}

#[test]
fn q06_a_queue_that_moves_while_all_put_loses_nothing_doubles_nothing_and_keeps_each_ones_order() {
    let mut moves = 0;
    for seed in 0..300 {
        moves += run(2 + seed % 4, seed, Bug::None).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    assert!(moves > 300, "only {moves} moves");
}

#[test]
fn q06_every_planted_bug_of_moving_is_found() {
    for bug in [Bug::NoMarker, Bug::NoStale, Bug::MarkersOvertake, Bug::ForwardsAtOnce, Bug::HeldAreOvertaken]
    {
        let is_found = (0..2000).any(|seed| run(2 + seed % 4, seed, bug).is_err());
        assert!(is_found, "{bug:?} was not found");
    }
}
