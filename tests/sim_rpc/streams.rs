//! Streams between two nodes, under everything that networks and processes do.
//!
//! Oracle      a reader takes the items in order, each once and none that was not written; it is told that this was all
//!             only when it was, and that the writer gave up only when that did. Whatever happens, both halves come to
//!             an end; in calm weather, and with both sides alive, to the right one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use quorate::sim::{Boot, Chance, Config, Observed, Rng, Scenario, World};
use quorate_protocols::planted::Plant;
use quorate_protocols::rpc::{MayWrite, ReadingHalf, Spoken, Taken, Word, WritingHalf};
use quorate_protocols::{Input, Lane, Machine, Output, Outputs, ProcessId, Time, Violation};

/// A node with halves of streams, driven as the async face does it: who waits for long asks.
#[derive(Default)]
pub(crate) struct Node {
    peer: u64,
    writers: BTreeMap<u64, Writer>,
    readers: BTreeMap<u64, Reader>,
}

struct Writer {
    half: WritingHalf,
    items: VecDeque<Bytes>,
    is_whole: bool,
    asks_at: Option<Time>,
}

struct Reader {
    half: ReadingHalf,
    /// Somebody waits for an item, and asks then.
    asks_at: Option<Time>,
}

#[derive(Debug, Clone)]
pub(crate) enum Command {
    Write {
        stream: u64,
        items: VecDeque<Bytes>,
        is_whole: bool,
        window: Option<u32>,
    },
    Read {
        stream: u64,
        window: u32,
        tells: bool,
        plant: Plant,
    },
    Take {
        stream: u64,
    },
    /// Nobody reads any more.
    Drop {
        stream: u64,
    },
}

#[derive(Debug)]
pub(crate) enum Event {
    Took {
        stream: u64,
        number: u32,
    },
    /// The reader is told how it ends.
    Ended {
        stream: u64,
        how: Taken,
    },
    /// The writer has nothing more to do.
    Left,
}

impl Node {
    fn say(&self, stream: u64, word: Word, out: &mut Outputs<Self>) {
        let lane = if word.is_writers() { Lane::Bulk } else { Lane::Urgent };
        out.send(ProcessId::any_life(self.peer), lane, Spoken { client: 1, stream, word });
    }

    /// Writes what may be written.
    fn write(&mut self, now: Time, stream: u64, out: &mut Outputs<Self>) {
        let Some(mut writer) = self.writers.remove(&stream) else { return };
        loop {
            let may = match writer.items.is_empty() {
                true => None,
                false => Some(writer.half.may_write()),
            };
            match may {
                Some(MayWrite::Now) => {
                    let Some(body) = writer.items.pop_front() else { return };
                    let size = body.len();
                    self.say(stream, writer.half.item(body), out);
                    writer.half.written(size);
                    writer.asks_at = None;
                }
                Some(MayWrite::Later) => {
                    writer.asks_at.get_or_insert(now + PATIENCE);
                    self.writers.insert(stream, writer);
                    return;
                }
                Some(MayWrite::Stopped | MayWrite::Broken) => return out.event(Event::Left),
                None => {
                    self.say(stream, writer.half.end(writer.is_whole), out);
                    return out.event(Event::Left);
                }
            }
        }
    }

    /// Takes an item, if somebody waits for one.
    fn take(&mut self, now: Time, stream: u64, out: &mut Outputs<Self>) {
        let Some(reader) = self.readers.get_mut(&stream).filter(|reader| reader.asks_at.is_some()) else {
            return;
        };
        match reader.half.take() {
            Taken::Item(body, grant) => {
                reader.asks_at = None;
                let number = body[..4].try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
                if let Some(word) = grant {
                    self.say(stream, word, out);
                }
                out.event(Event::Took { stream, number });
            }
            Taken::Nothing => reader.asks_at = Some(now + PATIENCE),
            how => {
                self.readers.remove(&stream);
                out.event(Event::Ended { stream, how });
            }
        }
    }
}

impl Machine for Node {
    type Command = Command;
    type Event = Event;
    type Message = Spoken;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Received { message: Spoken { stream, word, .. }, .. } => {
                let answer = if let Some(reader) = self.readers.get_mut(&stream) {
                    reader.half.hear(word)
                } else if let Some(writer) = self.writers.get_mut(&stream) {
                    writer.half.hear(&word)
                } else {
                    word.answer_of_nobody()
                };
                if let Some(word) = answer {
                    self.say(stream, word, out);
                }
                self.take(now, stream, out);
                self.write(now, stream, out);
            }
            Input::Command(Command::Write { stream, items, is_whole, window }) => {
                let half = window.map_or_else(WritingHalf::new, WritingHalf::granted);
                self.writers.insert(stream, Writer { half, items, is_whole, asks_at: None });
                self.write(now, stream, out);
            }
            Input::Command(Command::Read { stream, window, tells, plant }) => {
                let mut half = ReadingHalf::new(window).with_plant(plant);
                if tells {
                    self.say(stream, half.grant(), out);
                }
                self.readers.insert(stream, Reader { half, asks_at: None });
            }
            Input::Command(Command::Take { stream }) => {
                if let Some(reader) = self.readers.get_mut(&stream) {
                    reader.asks_at = Some(now + PATIENCE);
                }
                self.take(now, stream, out);
            }
            Input::Command(Command::Drop { stream }) => {
                if self.readers.remove(&stream).is_some() {
                    self.say(stream, Word::Stop, out);
                }
            }
            Input::Tick => {
                let is_due = |at: Option<Time>| at.is_some_and(|at| at <= now);
                let mut words = Vec::new();
                for (stream, reader) in &mut self.readers {
                    if is_due(reader.asks_at) {
                        reader.asks_at = Some(now + PATIENCE);
                        words.push((*stream, reader.half.grant()));
                    }
                }
                for (stream, writer) in &mut self.writers {
                    if is_due(writer.asks_at) {
                        writer.asks_at = Some(now + PATIENCE);
                        words.push((*stream, writer.half.ask()));
                    }
                }
                words.into_iter().for_each(|(stream, word)| self.say(stream, word, out));
            }
            Input::Unreachable(_) => {
                self.readers.values_mut().for_each(|reader| reader.half.break_off());
                self.writers.values_mut().for_each(|writer| writer.half.break_off());
                let streams: Vec<u64> = self.readers.keys().chain(self.writers.keys()).copied().collect();
                for stream in streams {
                    self.take(now, stream, out);
                    self.write(now, stream, out);
                }
            }
            Input::Reachable(_) => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        let readers = self.readers.values().filter_map(|reader| reader.asks_at);
        readers.chain(self.writers.values().filter_map(|writer| writer.asks_at)).min()
    }

    fn check(&self) -> Result<(), Violation> {
        self.readers.values().try_for_each(|reader| reader.half.check())
    }
}

/// What is known of a stream from outside.
struct Written {
    count: u32,
    is_whole: bool,
    taken: u32,
    is_read: bool,
    is_calm: bool,
}

pub(crate) struct Streams {
    plant: Plant,
    open_every: Duration,
    take_every: Duration,
    streams: Vec<Written>,
    is_calm: bool,
}

impl Streams {
    pub(crate) fn new(rng: &mut Rng, plant: Plant) -> Self {
        Self {
            plant,
            open_every: Duration::from_millis(rng.between(200, 3_000)),
            take_every: Duration::from_micros(rng.between(1, 100_000)),
            streams: Vec::new(),
            is_calm: false,
        }
    }

    fn open(&mut self, world: &mut World<Node>) {
        let stream = self.streams.len() as u64;
        let count = world.rng().between(0, 40) as u32;
        let window = world.rng().between(1, 12) as u32;
        let is_whole = world.rng().chance(Chance::percent(70));
        let is_large = world.rng().chance(Chance::percent(4));
        let items = (0..count).map(|number| {
            let mut body = number.to_le_bytes().to_vec();
            // Now and then the bytes of the window matter, not its items.
            body.resize(if is_large { world.rng().between(4, 400_000) as usize } else { 8 }, 0);
            Bytes::from(body)
        });
        let items: VecDeque<Bytes> = items.collect();
        let is_read = world.is_up(0);
        self.streams.push(Written { count, is_whole, taken: 0, is_read, is_calm: self.is_calm });
        // The half that travels is there before any word can come: words do not overtake the call that brings it. Only
        // a reader that stays knows that its window is known over there.
        let reader_travels = world.rng().chance(Chance::percent(50));
        let write_in = Duration::from_millis(if reader_travels { 0 } else { 1 });
        let known = if reader_travels { None } else { Some(window) };
        let read = Command::Read { stream, window, tells: reader_travels, plant: self.plant };
        world.command(0, read);
        world.command(0, Command::Take { stream });
        let write = Command::Write { stream, items, is_whole, window: known };
        world.command_in(write_in, 1, write);
        if !self.is_calm && world.rng().chance(Chance::percent(10)) {
            let delay = Duration::from_micros(world.rng().between(0, 500_000));
            world.command_in(delay, 0, Command::Drop { stream });
            self.streams[stream as usize].is_read = false;
        }
    }
}

impl Scenario for Streams {
    type Machine = Node;

    fn nodes(&self) -> usize {
        2
    }

    fn boot(&mut self, boot: Boot<Node>) -> Node {
        Node { peer: 1 - boot.node as u64, ..Node::default() }
    }

    fn start(&mut self, world: &mut World<Node>) {
        world.wake_in(self.open_every, 0);
    }

    fn wake(&mut self, token: u64, world: &mut World<Node>) -> Result<(), Violation> {
        if token == CALM_TOKEN {
            self.open(world);
        } else if !self.is_calm {
            self.open(world);
            world.wake_in(self.open_every, 0);
        }
        Ok(())
    }

    fn observe(&mut self, _: Observed, event: &Event, world: &mut World<Node>) -> Result<(), Violation> {
        match event {
            Event::Took { stream, number } => {
                let most = self.take_every.as_micros() as u64;
                let written = &mut self.streams[*stream as usize];
                if *number != written.taken {
                    return Err(Violation(format!(
                        "stream {stream}: item {number} instead of {}",
                        written.taken
                    )));
                }
                written.taken += 1;
                let delay = Duration::from_micros(world.rng().between(0, most));
                world.command_in(delay, 0, Command::Take { stream: *stream });
            }
            Event::Ended { stream, how } => {
                let Written { count, is_whole, taken, is_calm, .. } = self.streams[*stream as usize];
                let is_right = match how {
                    Taken::End => is_whole && taken == count,
                    Taken::Abandoned => !is_whole && taken == count,
                    _ => !is_calm,
                };
                if !is_right {
                    return Err(Violation(format!(
                        "stream {stream} ends with {how:?} after {taken} of {count} items"
                    )));
                }
                self.streams[*stream as usize].is_read = false;
            }
            Event::Left => {}
        }
        Ok(())
    }

    fn crashed(&mut self, node: usize, _: &mut World<Node>) {
        if node == 0 {
            self.streams.iter_mut().for_each(|stream| stream.is_read = false);
        }
    }

    fn promise(&self, output: &Output<Node>) -> Option<u8> {
        match output {
            Output::Send { message: Spoken { word: Word::Item { .. }, .. }, .. } => Some(0),
            Output::Send { message: Spoken { word: Word::End { .. }, .. }, .. } => Some(1),
            Output::Send { message: Spoken { word: Word::Grant { .. }, .. }, .. } => Some(2),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        3
    }

    fn calm(&mut self, world: &mut World<Node>) {
        self.is_calm = true;
        // What was still being told of broken connections is told by then.
        world.wake_in(Duration::from_secs(3), CALM_TOKEN);
    }

    fn finish(&mut self, world: &mut World<Node>) -> Result<(), Violation> {
        if let Some(stream) = self.streams.iter().position(|stream| stream.is_read) {
            return Err(Violation(format!("the reader of stream {stream} waits for ever")));
        }
        match world.machine(1).map(|node| node.writers.len()) {
            Some(0) => Ok(()),
            left => Err(Violation(format!("{left:?} writers wait for ever"))),
        }
    }
}

pub(crate) fn config() -> Config {
    // Longer than three askings in a row.
    Config { active: Duration::from_secs(20), calm: Duration::from_secs(30), ..Config::default() }
}

const CALM_TOKEN: u64 = 1;
/// As in the async face.
const PATIENCE: Duration = Duration::from_secs(5);
