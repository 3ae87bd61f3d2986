//! One process of the simulation: its disk with transmission queues and what has arrived, and the machine.
//!
//! Method      what the async face does with queues and units of work is done here with records; what must not be seen before
//!             they are durable stands behind a barrier.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_protocols::transfer::{self, Item, Message, Place, Transfer};
use quorate_protocols::wire::{put_count, take_count, take_u64};
use quorate_protocols::{Input, Machine, Output, Outputs, Time, Wire, WireError};

/// The last station of the line, where messages stay.
pub(crate) struct Station {
    /// Where its messages go on to; `None` at the end of the way.
    next: Option<u64>,
    config: transfer::Config,
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
        let config = transfer::Config { birth: disk.birth, ..config };
        let transfer = Transfer::new(config.clone(), disk.places.values().copied());
        Self { next, config, transfer, heard: Outputs::new(), disk, storing: VecDeque::new() }
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
                out.barrier();
                self.config.birth = birth;
                self.config.life += LIVES;
                self.transfer = Transfer::new(self.config.clone(), []);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.transfer.deadline()
    }
}

impl Disk {
    fn apply(&mut self, record: &Record, has_next: bool) {
        match record {
            Record::Born { birth } => {
                *self = Self { birth: *birth, number: 1, arrived: self.arrived.clone(), ..Self::default() };
            }
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
            Self::Stored { place, serials } => {
                for number in [3, place.from, place.birth, place.through] {
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
            _ => {
                let (from, birth) = (take_u64(input, "from")?, take_u64(input, "birth")?);
                let place = Place { from, birth, through: take_u64(input, "number")? };
                let count = take_count(input, 8, "serials")?;
                let serials = (0..count).map(|_| take_u64(input, "serial")).collect::<Result<_, _>>()?;
                Self::Stored { place, serials }
            }
        })
    }
}

/// A machine that is made anew has a life of its own.
const LIVES: u64 = 1_000_000;
