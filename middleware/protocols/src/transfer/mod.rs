//! Exactly-once transfer of messages from one process's disk to another's: the channel between two queue managers.
//!
//! Guarantee   every message that a sender offers is stored by the receiver once, in the order of its numbers, whatever is
//!             lost, repeated or overtaken and whoever crashes when; the sender is told that a message may go only when the
//!             receiver has it on its disk. Provided that neither loses what it was told is durable.
//! Method      messages have increasing numbers, with gaps, and each batch names the number before it. The receiver stores
//!             messages and its position in *one* step, and takes a batch only if it follows what it has: what it has is
//!             dropped, what leaves a hole is refused. After every doubt (a start, a silence, a hole) the sender asks for
//!             the receiver's position and goes on from there. A sender whose disk was replaced has another *birth*, so that
//!             its numbers are not taken for old ones.
//! Sans-IO     reading the transmission queue ([`Event::Fetch`]), dropping from it ([`Event::Settled`]) and storing at the
//!             other end ([`Event::Store`]) are asked for and answered by commands; both ends of any number of channels are
//!             one machine.
//! Source      store-and-forward by message channel agents in queue managers, Tanenbaum & van Steen, "Distributed Systems"
//!             (message-oriented persistent communication); sliding window, go-back-n.
//! Limits      [`Config::window_bytes`] under way to a peer, [`STORING_MAX`] batches being stored from one, [`PEERS_MAX`].

mod message;
mod receiving;
mod sending;

use std::collections::BTreeMap;
use std::time::Duration;

pub use message::{BATCH_BYTES, ITEM_BYTES, Item, Message};
use receiving::Receiving;
use sending::Sending;

use crate::machine::{Input, Lane, Machine, Outputs, ProcessId};
use crate::planted::{Plant, Planted};
use crate::time::Time;

/// Both ends of a process's channels.
pub struct Transfer {
    config: Config,
    asked: u64,
    sending: BTreeMap<u64, Sending>,
    receiving: BTreeMap<u64, Receiving>,
}

/// What a process's channels are made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// When the disk with this process's transmission queues came to be: of two disks of one process, the later one has the
    /// larger number. Not zero.
    pub birth: u64,
    /// A number that no earlier life of this process had: it tells answers to this life's questions from old ones.
    pub life: u64,
    /// Most bytes that are under way to a peer, its answer still to come. Default 1 MiB.
    pub window_bytes: usize,
    /// Most bytes of one batch on the wire; one message may be larger. Default 64 KiB.
    pub batch_bytes: usize,
    /// How long a peer may be silent before it is asked again; doubled with each silence, up to eight times. Default 500 ms.
    pub silence: Duration,
    /// A bug to plant, for tests.
    pub plant: Plant,
}

/// Up to where messages of a peer are stored: durable together with them, and given back to the next life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The peer.
    pub from: u64,
    /// The birth of its disk.
    pub birth: u64,
    /// The number of the last message that is stored.
    pub through: u64,
}

/// What the user of the machine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// There are messages for a peer in its transmission queue, or more of them.
    Offer {
        /// The peer.
        to: u64,
    },
    /// The answer to [`Event::Fetch`].
    Fetched {
        /// The peer.
        to: u64,
        /// As was asked.
        after: u64,
        /// The next messages behind `after`, in the order of their numbers; empty when there are none now.
        items: Vec<Item>,
    },
    /// The answer to [`Event::Store`]: the messages are durable, and so is the place.
    Stored(Place),
}

/// What the user of the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Read the transmission queue for a peer behind `after`, about `bytes_max` of it, and answer with
    /// [`Command::Fetched`]; at once, or once.
    Fetch {
        /// The peer.
        to: u64,
        /// The last number that was read.
        after: u64,
        /// How much to read; one message at least.
        bytes_max: usize,
    },
    /// The peer has everything up to this number on its disk: it may be dropped here.
    Settled {
        /// The peer.
        to: u64,
        /// The last number.
        through: u64,
    },
    /// Store these messages and `place`, in one step that a crash leaves whole, and answer with [`Command::Stored`]. Those
    /// of one peer in the order in which they are told.
    Store {
        /// Where the peer's messages are then stored up to.
        place: Place,
        /// The messages.
        items: Vec<Item>,
    },
    /// The peer has less than it has told before: its disk was replaced. What lies between is lost.
    Gap {
        /// The peer.
        to: u64,
        /// What it has.
        stored: u64,
        /// What it had.
        settled: u64,
    },
    /// A peer sends from a disk that is older than one that it has sent from: nothing of that is taken.
    Outdated {
        /// The peer.
        from: u64,
        /// The birth of its disk.
        birth: u64,
        /// The birth of the later one.
        known: u64,
    },
}

impl Config {
    /// The defaults.
    pub fn new(birth: u64, life: u64) -> Self {
        Self {
            birth,
            life,
            window_bytes: 1 << 20,
            batch_bytes: 64 << 10,
            silence: Duration::from_millis(500),
            plant: Plant::NONE,
        }
    }
}

impl Transfer {
    /// A new life, with the places that the last one had stored.
    pub fn new(config: Config, places: impl IntoIterator<Item = Place>) -> Self {
        let mut receiving = BTreeMap::new();
        if !config.plant.has(Planted::TransferForgetsPlaces) {
            receiving.extend(places.into_iter().map(|place| (place.from, Receiving::at(place))));
        }
        Self { config, asked: 0, sending: BTreeMap::new(), receiving }
    }

    /// True when nothing is under way to anyone and nothing was offered that was not sent.
    pub fn is_idle(&self) -> bool {
        self.sending.values().all(Sending::is_idle)
    }

    fn sending(&mut self, to: u64) -> Option<&mut Sending> {
        if self.sending.len() >= PEERS_MAX && !self.sending.contains_key(&to) {
            return None;
        }
        Some(self.sending.entry(to).or_default())
    }

    /// A question that was never asked before.
    fn ask(&mut self) -> Question {
        self.asked += 1;
        Question { life: self.config.life, number: self.asked }
    }

    /// Does what there is to do for a peer.
    fn pump(&mut self, now: Time, to: u64, out: &mut Outputs<Self>) {
        let question = self.ask();
        if let Some(sending) = self.sending.get_mut(&to) {
            sending.pump(now, to, &self.config, question, out);
        }
    }

    fn received(&mut self, now: Time, from: u64, message: Message, out: &mut Outputs<Self>) {
        match message {
            Message::Open { birth, question } => {
                let plant = self.config.plant;
                let Some(receiving) = self.receiving(from) else { return };
                match receiving.open(birth, plant) {
                    Ok(stored) => {
                        let answer = Message::Opened { birth, question, stored };
                        out.send(ProcessId::any_life(from), Lane::Ordinary, answer);
                    }
                    Err(known) => out.event(Event::Outdated { from, birth, known }),
                }
            }
            Message::Batch { birth, previous, items } => {
                let plant = self.config.plant;
                let Some(receiving) = self.receiving(from) else { return };
                receiving.batch(from, birth, previous, items, plant, out);
            }
            Message::Opened { birth, question, stored } => {
                if birth == self.config.birth
                    && let Some(sending) = self.sending.get_mut(&from)
                {
                    sending.opened(from, question, stored, out);
                    self.pump(now, from, out);
                }
            }
            Message::Stored { birth, stored } => {
                if birth == self.config.birth
                    && let Some(sending) = self.sending.get_mut(&from)
                {
                    sending.stored(now, from, stored, &self.config, out);
                    self.pump(now, from, out);
                }
            }
            Message::Behind { birth } => {
                if birth == self.config.birth
                    && let Some(sending) = self.sending.get_mut(&from)
                {
                    sending.doubt();
                    self.pump(now, from, out);
                }
            }
        }
    }

    fn receiving(&mut self, from: u64) -> Option<&mut Receiving> {
        if self.receiving.len() >= PEERS_MAX && !self.receiving.contains_key(&from) {
            return None;
        }
        Some(self.receiving.entry(from).or_insert_with(Receiving::nothing))
    }
}

/// Tells the answers to one question from those to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The life of the process that asks.
    pub life: u64,
    /// Which of its questions.
    pub number: u64,
}

impl Machine for Transfer {
    type Command = Command;
    type Event = Event;
    type Message = Message;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Tick => {
                let due = |sending: &Sending| sending.wake().is_some_and(|wake| wake <= now);
                let due: Vec<u64> =
                    self.sending.iter().filter(|(_, sending)| due(sending)).map(|(to, _)| *to).collect();
                for to in due {
                    if let Some(sending) = self.sending.get_mut(&to) {
                        sending.silence();
                    }
                    self.pump(now, to, out);
                }
            }
            Input::Received { from, message } => self.received(now, from.node, message, out),
            Input::Command(Command::Offer { to }) => {
                if let Some(sending) = self.sending(to) {
                    sending.offer();
                    self.pump(now, to, out);
                }
            }
            Input::Command(Command::Fetched { to, after, items }) => {
                if let Some(sending) = self.sending.get_mut(&to) {
                    sending.fetched(after, items);
                    self.pump(now, to, out);
                }
            }
            Input::Command(Command::Stored(place)) => {
                if let Some(receiving) = self.receiving.get_mut(&place.from) {
                    receiving.stored(place, out);
                }
            }
            Input::Reachable(peer) => {
                if let Some(sending) = self.sending.get_mut(&peer.node) {
                    sending.doubt();
                    self.pump(now, peer.node, out);
                }
            }
            // What was under way may be lost; the silence will tell.
            Input::Unreachable(_) => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.sending.values().filter_map(Sending::wake).min()
    }
}

/// Batches of one peer that are being stored at a time; more of them are not taken, and come again.
pub const STORING_MAX: usize = 64;
/// Peers in each direction; what goes to or comes from others is not served.
pub const PEERS_MAX: usize = 4096;
