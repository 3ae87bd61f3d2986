//! Exactly-once transfer of messages from one process's disk to another's: the channel between two queue managers.
//!
//! Guarantee   every message that a sender offers is stored by the receiver once, in the order of its numbers, whatever is
//!             lost, repeated or overtaken and whoever crashes when; the sender is told that a message may go only when the
//!             receiver has it on its disk. Provided that neither loses what it was told is durable.
//! Method      messages have increasing numbers, with gaps, and each batch names the number before it. The receiver stores
//!             messages and its position in *one* step, and takes a batch only if it follows what it has: what it has is
//!             dropped, what leaves a hole is refused. After every doubt (a start, a silence, a hole) the sender asks for
//!             the receiver's position and goes on from there; the answer comes when all is stored that the receiver has taken,
//!             and from then on it takes nothing of an earlier life. A sender whose disk was replaced has another *birth*, so that
//!             its numbers are not taken for old ones.
//! Restored    a disk that goes back to an earlier state gives numbers again. So each of its lives has a *mark*, which goes
//!             with the numbers and comes back with the receiver's position: a position that another future of the disk has
//!             led to is told from one's own, and the sender goes on with a later birth. What was to be sent when the state
//!             was saved, and was sent in the other future, may then come again; nothing is taken for sent that was not.
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
use receiving::{Batch, Receiving};
use sending::{Opened, Sending};

use crate::machine::{Input, Lane, Machine, Outputs, ProcessId};
use crate::planted::{Plant, Planted};
use crate::time::Time;

/// Both ends of a process's channels.
pub struct Transfer {
    config: Config,
    asked: u64,
    /// Of the disk as single peers know it, where that is not as all others do.
    births: BTreeMap<u64, u64>,
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
    /// The lives of the disk, this one included, in their order. What gave numbers before the first of them is not known.
    pub lives: Vec<Life>,
    /// Bytes of the largest message of this protocol that the process can send, and be sent. Default: as large as you like.
    pub message_bytes_max: usize,
    /// Most bytes that are under way to a peer, its answer still to come. Default 1 MiB.
    pub window_bytes: usize,
    /// Most bytes of one batch on the wire; one message may be larger. Default 64 KiB.
    pub batch_bytes: usize,
    /// How long a peer may be silent, or store nothing, before it is asked again; doubled each time, up to eight times. Default 500 ms.
    pub silence: Duration,
    /// A bug to plant, for tests.
    pub plant: Plant,
}

/// One life of a disk: from an opening to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The first number that it may give.
    pub first: u64,
    /// Tells it from all others, also of the same disk after it was restored from a copy. Not zero.
    pub mark: u64,
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
    /// The life of the peer's disk that gave this number; zero if that is not known.
    pub mark: u64,
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
    /// The answer to [`Event::TooLarge`]: the message is somewhere else, and no longer in the transmission queue; durably.
    SetAside {
        /// The peer.
        to: u64,
        /// The message.
        number: u64,
    },
    /// The answer to [`Event::Forked`]: it is durable that this peer is told this birth from now on.
    Born {
        /// The peer.
        to: u64,
        /// Larger than what was asked to be exceeded.
        birth: u64,
    },
    /// A peer can be reached: what [`Input::Reachable`] says of one that was never heard.
    Met {
        /// The peer.
        peer: u64,
    },
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
    /// A message is larger than what the peer can be sent; those behind it wait. Put it somewhere else, take it out of the
    /// transmission queue, and answer with [`Command::SetAside`].
    TooLarge {
        /// The peer.
        to: u64,
        /// The message.
        number: u64,
        /// What a batch with nothing else takes.
        size: usize,
        /// What it may take.
        limit: usize,
    },
    /// This disk was restored from a copy: the peer has had messages that it does not know of. Choose another birth for
    /// it, make that durable, and answer with [`Command::Born`].
    Forked {
        /// The peer.
        to: u64,
        /// The birth must be larger than this.
        above: u64,
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
            lives: Vec::new(),
            message_bytes_max: usize::MAX,
            window_bytes: 1 << 20,
            batch_bytes: 64 << 10,
            silence: Duration::from_millis(500),
            plant: Plant::NONE,
        }
    }

    /// Whether a peer's position is one that this disk has led to, as far as can be known.
    fn is_ours(&self, stored: u64, mark: u64) -> bool {
        let is_known = [0, mark].contains(&self.mark_of(stored));
        mark == 0 || is_known || self.plant.has(Planted::TransferIgnoresForks)
    }

    /// Which life gave a number; zero if that is not known.
    fn mark_of(&self, number: u64) -> u64 {
        let after = self.lives.partition_point(|life| life.first <= number);
        after.checked_sub(1).and_then(|index| self.lives.get(index)).map_or(0, |life| life.mark)
    }

    /// The last number of a life that is over.
    fn last_of(&self, mark: u64) -> Option<u64> {
        let index = self.lives.iter().position(|life| life.mark == mark)?;
        self.lives.get(index + 1)?.first.checked_sub(1)
    }
}

impl Transfer {
    /// A new life, with the places that the last one had stored, and for each peer that has its own the
    /// [birth](Command::Born).
    pub fn new(
        config: Config,
        places: impl IntoIterator<Item = Place>,
        births: impl IntoIterator<Item = (u64, u64)>,
    ) -> Self {
        let mut receiving = BTreeMap::new();
        if !config.plant.has(Planted::TransferForgetsPlaces) {
            receiving.extend(places.into_iter().map(|place| (place.from, Receiving::at(place))));
        }
        Self { config, asked: 0, births: births.into_iter().collect(), sending: BTreeMap::new(), receiving }
    }

    /// True when nothing is under way to anyone and nothing was offered that was not sent.
    pub fn is_idle(&self) -> bool {
        self.sending.values().all(Sending::is_idle)
    }

    fn sending(&mut self, to: u64) -> Option<&mut Sending> {
        if self.sending.len() >= PEERS_MAX && !self.sending.contains_key(&to) {
            return None;
        }
        let birth = self.births.get(&to).copied().unwrap_or(self.config.birth);
        Some(self.sending.entry(to).or_insert_with(|| Sending::new(birth)))
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
                let config = self.config.clone();
                let Some(receiving) = self.receiving(from) else { return };
                if let Err(known) = receiving.open(birth, question, &config, from, out) {
                    out.event(Event::Outdated { from, birth, known });
                    let answer = Message::Outdated { birth, question, known };
                    out.send(ProcessId::any_life(from), Lane::Ordinary, answer);
                }
            }
            Message::Batch { birth, life, mark, previous, items } => {
                let plant = self.config.plant;
                let Some(receiving) = self.receiving(from) else { return };
                receiving.batch(Batch { from, birth, life, mark, previous, items }, plant, out);
            }
            Message::Opened { birth, question, stored, mark, bytes_max } => {
                if let Some(sending) = self.sending.get_mut(&from).filter(|sending| sending.birth() == birth)
                {
                    let opened = Opened { question, stored, mark, bytes_max };
                    sending.opened(from, opened, &self.config, out);
                    self.pump(now, from, out);
                }
            }
            Message::Outdated { birth, question, known } => {
                if let Some(sending) = self.sending.get_mut(&from).filter(|sending| sending.birth() == birth)
                {
                    sending.outdated(from, question, known, out);
                }
            }
            Message::Stored { birth, stored, mark } => {
                if let Some(sending) = self.sending.get_mut(&from).filter(|sending| sending.birth() == birth)
                {
                    sending.stored(now, from, (stored, mark), &self.config, out);
                    self.pump(now, from, out);
                }
            }
            Message::Behind { birth } => {
                if let Some(sending) = self.sending.get_mut(&from).filter(|sending| sending.birth() == birth)
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
                    receiving.stored(place, &self.config, out);
                }
            }
            Input::Command(Command::SetAside { to, number }) => {
                if let Some(sending) = self.sending.get_mut(&to) {
                    sending.set_aside(number);
                    self.pump(now, to, out);
                }
            }
            Input::Command(Command::Born { to, birth }) => {
                self.births.insert(to, birth);
                if let Some(sending) = self.sending.get_mut(&to) {
                    sending.born(birth);
                    self.pump(now, to, out);
                }
            }
            Input::Command(Command::Met { peer }) | Input::Reachable(ProcessId { node: peer, .. }) => {
                if let Some(sending) = self.sending.get_mut(&peer) {
                    sending.reachable();
                    self.pump(now, peer, out);
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
