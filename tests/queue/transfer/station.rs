//! One process of the simulation: its disk with transmission queues and what has arrived, and the machine.
//!
//! Method      what the async face does with queues and units of work is done here with records; what must not be seen before
//!             they are durable stands behind a barrier.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_protocols::transfer::{self, Item, Life, Message, Place, Transfer};
use quorate_protocols::wire::{put_count, take_count, take_u64};
use quorate_protocols::{Input, Machine, Output, Outputs, Time, Wire, WireError};

/// The last station of the line, where messages stay.
pub(crate) struct Station {
    /// Where its messages go on to; `None` at the end of the way.
    next: Option<u64>,
    config: transfer::Config,
    /// The life of the disk is on the disk.
    is_noted: bool,
    transfer: Transfer,
    heard: Outputs<Transfer>,
    disk: Disk,
    /// To be stored, in this order.
    storing: VecDeque<(Place, Vec<Item>)>,
}

/// What the records say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    birth: u64,
    /// And those that single peers are told.
    births: BTreeMap<u64, u64>,
    lives: Vec<Life>,
    /// A copy of all this.
    saved: Option<Box<Disk>>,
    /// The next number.
    number: u64,
    /// On their way to the next station.
    outgoing: BTreeMap<u64, u64>,
    places: BTreeMap<u64, Place>,
    /// At the end of the way: what has arrived, in this order.
    pub(crate) arrived: Vec<u64>,
}

#[derive(Debug, Clone)]
pub(crate) enum Record {
    /// The disk is new, or was replaced by an empty one.
    Born {
        birth: u64,
    },
    Put {
        serial: u64,
    },
    Settled {
        through: u64,
    },
    /// A life of the disk begins.
    Life {
        mark: u64,
    },
    /// The disk is copied.
    Saved,
    /// It is again as it was when it was copied.
    Restored,
    /// A peer is told another birth.
    Reborn {
        to: u64,
        birth: u64,
    },
    Stored {
        place: Place,
        serials: Vec<u64>,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    /// A message for the end of the way.
    Put(u64),
    /// The oldest thing to be stored is stored.
    Store,
    /// The disk is replaced by an empty one; only where nothing is on its way.
    Replace(u64),
    /// The disk is copied.
    Save,
    /// It is again as it was when it was copied.
    Restore,
}

#[derive(Debug)]
pub(crate) enum Event {
    /// The put is durable.
    Put(u64),
    /// Something is to be stored: answer with [`Command::Store`].
    Store,
    /// This is durable at the end of the way.
    Arrived,
    /// The peer has lost its disk, it seems.
    Gap,
}

impl Station {
    pub(crate) fn new(config: transfer::Config, birth: u64, next: Option<u64>, records: &[Record]) -> Self {
        let mut disk = Disk { birth, number: 1, ..Disk::default() };
        for record in records {
            disk.apply(record, next.is_some());
        }
        disk.begin_life(config.life);
        let transfer = disk.transfer(&config);
        let (heard, storing) = (Outputs::new(), VecDeque::new());
        Self { next, config, is_noted: false, transfer, heard, disk, storing }
    }

    /// The machine is made anew, as by a start on what the disk has now.
    fn begin_again(&mut self, out: &mut Outputs<Self>) {
        self.config.life += LIVES;
        self.persist(Record::Life { mark: self.config.life }, out);
        out.barrier();
        self.transfer = self.disk.transfer(&self.config);
        self.storing.clear();
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn waiting(&self) -> usize {
        self.disk.outgoing.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.disk.outgoing.is_empty() && self.storing.is_empty()
    }

    fn persist(&mut self, record: Record, out: &mut Outputs<Self>) {
        self.disk.apply(&record, self.next.is_some());
        out.persist(record);
    }

    fn step(&mut self, now: Time, input: Input<Transfer>, out: &mut Outputs<Self>) {
        let mut heard = std::mem::take(&mut self.heard);
        self.transfer.handle(now, input, &mut heard);
        for output in heard.drain() {
            match output {
                Output::Send { to, lane, message } => {
                    for to in to.as_slice() {
                        out.send(*to, lane, message.clone());
                    }
                }
                Output::Event(transfer::Event::Fetch { to, after, .. }) => {
                    let behind = self.disk.outgoing.range(after + 1..).take(3);
                    let body = |serial: &u64| Bytes::copy_from_slice(&serial.to_le_bytes());
                    let items = behind.map(|(number, serial)| Item { number: *number, body: body(serial) });
                    let items = items.collect();
                    let fetched = transfer::Command::Fetched { to, after, items };
                    // What was read is sent: it must be durable here first.
                    out.barrier();
                    self.step(now, Input::Command(fetched), out);
                }
                Output::Event(transfer::Event::Settled { through, .. }) => {
                    self.persist(Record::Settled { through }, out);
                }
                Output::Event(transfer::Event::Store { place, items }) => {
                    self.storing.push_back((place, items));
                    out.event(Event::Store);
                }
                Output::Event(transfer::Event::Forked { to, above }) => {
                    let birth = above + 1;
                    self.persist(Record::Reborn { to, birth }, out);
                    out.barrier();
                    self.step(now, Input::Command(transfer::Command::Born { to, birth }), out);
                }
                // Peers take all there is here.
                Output::Event(transfer::Event::TooLarge { .. }) => {}
                Output::Event(transfer::Event::Gap { .. }) => out.event(Event::Gap),
                // An old question that was late.
                Output::Event(transfer::Event::Outdated { .. }) => {}
                Output::Persist(()) | Output::Barrier => {}
            }
        }
        self.heard = heard;
    }

    fn offer(&mut self, now: Time, out: &mut Outputs<Self>) {
        if let Some(to) = self.next {
            self.step(now, Input::Command(transfer::Command::Offer { to }), out);
        }
    }
}

impl Machine for Station {
    type Command = Command;
    type Event = Event;
    type Message = Message;
    type Record = Record;

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        if !std::mem::replace(&mut self.is_noted, true) {
            out.persist(Record::Life { mark: self.config.life });
            out.barrier();
        }
        match input {
            Input::Tick => self.step(now, Input::Tick, out),
            Input::Received { from, message } => self.step(now, Input::Received { from, message }, out),
            Input::Reachable(peer) => {
                self.step(now, Input::Reachable(peer), out);
                // Also what an earlier life has left.
                self.offer(now, out);
            }
            Input::Unreachable(peer) => self.step(now, Input::Unreachable(peer), out),
            Input::Command(Command::Put(serial)) => {
                self.persist(Record::Put { serial }, out);
                out.barrier();
                out.event(Event::Put(serial));
                self.offer(now, out);
            }
            Input::Command(Command::Store) => {
                let Some((place, items)) = self.storing.pop_front() else { return };
                let serial =
                    |item: &Item| item.body.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                let serials: Vec<u64> = items.iter().map(serial).collect();
                self.persist(Record::Stored { place, serials }, out);
                out.barrier();
                if self.next.is_none() {
                    out.event(Event::Arrived);
                }
                self.step(now, Input::Command(transfer::Command::Stored(place)), out);
                self.offer(now, out);
            }
            Input::Command(Command::Replace(birth)) => {
                self.persist(Record::Born { birth }, out);
                self.begin_again(out);
            }
            Input::Command(Command::Save) => self.persist(Record::Saved, out),
            Input::Command(Command::Restore) => {
                self.persist(Record::Restored, out);
                self.begin_again(out);
                self.offer(now, out);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.transfer.deadline()
    }
}

impl Disk {
    pub(crate) fn is_waiting(&self, serial: u64) -> bool {
        self.outgoing.values().any(|waiting| *waiting == serial)
    }

    /// What waited when it was copied; none without a copy.
    pub(crate) fn saved(&self) -> Option<impl Iterator<Item = u64>> {
        self.saved.as_ref().map(|saved| saved.outgoing.values().copied())
    }

    /// What waits now.
    pub(crate) fn outgoing(&self) -> impl Iterator<Item = u64> {
        self.outgoing.values().copied()
    }

    fn transfer(&self, config: &transfer::Config) -> Transfer {
        let config = transfer::Config { birth: self.birth, lives: self.lives.clone(), ..config.clone() };
        Transfer::new(config, self.places.values().copied(), self.births.clone())
    }

    fn begin_life(&mut self, mark: u64) {
        self.lives.retain(|life| life.first < self.number && life.mark != mark);
        self.lives.push(Life { first: self.number, mark });
    }

    fn apply(&mut self, record: &Record, has_next: bool) {
        match record {
            Record::Born { birth } => {
                *self = Self { birth: *birth, number: 1, arrived: self.arrived.clone(), ..Self::default() };
            }
            Record::Life { mark } => self.begin_life(*mark),
            Record::Saved => self.saved = Some(Box::new(Self { saved: None, ..self.clone() })),
            Record::Restored => {
                if let Some(saved) = self.saved.take() {
                    *self = *saved;
                }
            }
            Record::Reborn { to, birth } => drop(self.births.insert(*to, *birth)),
            Record::Put { serial } => self.send(*serial),
            Record::Settled { through } => self.outgoing = self.outgoing.split_off(&(through + 1)),
            Record::Stored { place, serials } => {
                self.places.insert(place.from, *place);
                for serial in serials {
                    if has_next {
                        self.send(*serial);
                    } else {
                        self.arrived.push(*serial);
                    }
                }
            }
        }
    }

    fn send(&mut self, serial: u64) {
        self.outgoing.insert(self.number, serial);
        // Numbers have gaps: others are given to other messages.
        self.number += 1 + serial % 3;
    }
}

impl Wire for Record {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Born { birth } => {
                out.put_u64_le(0);
                out.put_u64_le(*birth);
            }
            Self::Put { serial } => {
                out.put_u64_le(1);
                out.put_u64_le(*serial);
            }
            Self::Settled { through } => {
                out.put_u64_le(2);
                out.put_u64_le(*through);
            }
            Self::Life { mark } => [4, *mark].iter().for_each(|number| out.put_u64_le(*number)),
            Self::Saved => out.put_u64_le(5),
            Self::Restored => out.put_u64_le(6),
            Self::Reborn { to, birth } => [7, *to, *birth].iter().for_each(|number| out.put_u64_le(*number)),
            Self::Stored { place, serials } => {
                for number in [3, place.from, place.birth, place.through, place.mark] {
                    out.put_u64_le(number);
                }
                put_count(out, serials.len());
                serials.iter().for_each(|serial| out.put_u64_le(*serial));
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(match take_u64(input, "kind")? {
            0 => Self::Born { birth: take_u64(input, "birth")? },
            1 => Self::Put { serial: take_u64(input, "serial")? },
            2 => Self::Settled { through: take_u64(input, "number")? },
            4 => Self::Life { mark: take_u64(input, "mark")? },
            5 => Self::Saved,
            6 => Self::Restored,
            7 => Self::Reborn { to: take_u64(input, "peer")?, birth: take_u64(input, "birth")? },
            _ => {
                let (from, birth) = (take_u64(input, "from")?, take_u64(input, "birth")?);
                let (through, mark) = (take_u64(input, "number")?, take_u64(input, "mark")?);
                let place = Place { from, birth, through, mark };
                let count = take_count(input, 8, "serials")?;
                let serials = (0..count).map(|_| take_u64(input, "serial")).collect::<Result<_, _>>()?;
                Self::Stored { place, serials }
            }
        })
    }
}

/// A machine that is made anew has a life of its own.
const LIVES: u64 = 1_000_000;
