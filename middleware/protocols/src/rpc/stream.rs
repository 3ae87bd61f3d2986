//! The two halves of a stream: items in order, each once, no faster than they are read.
//!
//! Guarantee   a reader takes a prefix of what the writer wrote, in order, each item once, whatever is lost, repeated or
//!             overtaken; it hears of the end only behind the last item, and of a whole stream only when the writer
//!             said so. A word that is lost for good ends the stream as broken, on the side that misses it.
//! Method      the reader grants items and bytes as totals, the writer stays below both. Whoever waits for long asks: a
//!             writer by a [`Word::Count`], a reader by repeating its grant; the answer tells whether something is
//!             missing. A side that does not know the stream any more [says so](Word::answer_of_nobody).
//! Needs       who drives a half asks when it has waited; words of one direction come in order, or a little later than
//!             others. An item that was lost is not sent again: connections do that.
//! Source      the credit windows of HTTP/2 and QUIC streams (RFC 9000, 4).
//! Limits      a window in items, and 1 MiB, which the last item may exceed.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::Violation;
use crate::planted::{Plant, Planted};
use crate::wire::{self, Wire, WireError};

/// One message of one half to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Writer: the item with this number.
    Item {
        /// Counted from 0.
        number: u64,
        /// The encoded item.
        body: Bytes,
    },
    /// Writer: so many items were written in all.
    End {
        /// How many.
        count: u64,
        /// Whether they are all that there was; else the writer gave up.
        is_whole: bool,
    },
    /// Writer: so many items were written so far.
    Count {
        /// How many.
        count: u64,
        /// Whether the writer waits for a grant.
        asks: bool,
    },
    /// Writer's side: nobody writes this stream (any more).
    Gone,
    /// Reader: so much may be written in all.
    Grant {
        /// Items.
        items: u64,
        /// Bytes; the item that passes this limit is still written.
        bytes: u64,
    },
    /// Reader: nobody reads any more.
    Stop,
}

impl Word {
    /// Said by a writer.
    pub const fn is_writers(&self) -> bool {
        matches!(self, Self::Item { .. } | Self::End { .. } | Self::Count { .. } | Self::Gone)
    }

    /// What a side answers that does not know the stream.
    pub const fn answer_of_nobody(&self) -> Option<Self> {
        match self {
            Self::Item { .. } | Self::Count { .. } => Some(Self::Stop),
            Self::Grant { .. } => Some(Self::Gone),
            Self::End { .. } | Self::Gone | Self::Stop => None,
        }
    }
}

/// A word with its address, as it travels beside the messages about calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoken {
    /// The client's number within its process.
    pub client: u32,
    /// The stream's number between the two.
    pub stream: u64,
    /// What is said.
    pub word: Word,
}

impl Spoken {
    /// True when a frame goes on with this and not with a message about a call.
    pub fn is_next(frame: &[u8]) -> bool {
        frame.first().is_some_and(|kind| *kind >= ITEM)
    }

    /// Appends all but the body, and gives that, so that it need not be copied.
    pub fn encode_head(&self, out: &mut BytesMut) -> Bytes {
        let kind = match &self.word {
            Word::Item { .. } => ITEM,
            Word::End { .. } => END,
            Word::Count { .. } => COUNT,
            Word::Gone => GONE,
            Word::Grant { .. } => GRANT,
            Word::Stop => STOP,
        };
        out.put_u8(kind);
        out.put_u32_le(self.client);
        out.put_u64_le(self.stream);
        match &self.word {
            Word::Item { number, body } => {
                out.put_u64_le(*number);
                wire::put_count(out, body.len());
                return body.clone();
            }
            Word::End { count, is_whole: flag } | Word::Count { count, asks: flag } => {
                out.put_u64_le(*count);
                out.put_u8(u8::from(*flag));
            }
            Word::Grant { items, bytes } => {
                out.put_u64_le(*items);
                out.put_u64_le(*bytes);
            }
            Word::Gone | Word::Stop => {}
        }
        Bytes::new()
    }
}

impl Wire for Spoken {
    fn encode(&self, out: &mut BytesMut) {
        let body = self.encode_head(out);
        out.put_slice(&body);
    }

    fn decode(frame: &mut Bytes) -> Result<Self, WireError> {
        let kind = wire::take_u8(frame, "stream message kind")?;
        let client = wire::take_u32(frame, "client number")?;
        let stream = wire::take_u64(frame, "stream")?;
        let word = match kind {
            ITEM => Word::Item {
                number: wire::take_u64(frame, "item number")?,
                body: wire::take_bytes(frame, "item")?,
            },
            END => Word::End { count: wire::take_u64(frame, "count")?, is_whole: take_flag(frame)? },
            COUNT => Word::Count { count: wire::take_u64(frame, "count")?, asks: take_flag(frame)? },
            GONE => Word::Gone,
            GRANT => {
                Word::Grant { items: wire::take_u64(frame, "items")?, bytes: wire::take_u64(frame, "bytes")? }
            }
            STOP => Word::Stop,
            other => return Err(WireError::Invalid { what: "stream message kind", value: other.into() }),
        };
        Ok(Self { client, stream, word })
    }
}

fn take_flag(frame: &mut Bytes) -> Result<bool, WireError> {
    match wire::take_u8(frame, "flag")? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(WireError::Invalid { what: "flag", value: other.into() }),
    }
}

/// The half that writes.
#[derive(Debug, Default)]
pub struct WritingHalf {
    granted: u64,
    granted_bytes: u64,
    sent: u64,
    sent_bytes: u64,
    state: Over,
}

/// How a stream is over for one half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Over {
    #[default]
    No,
    Stopped,
    Broken,
}

/// What a writer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayWrite {
    /// Write an item.
    Now,
    /// Nothing, until the reader grants more.
    Later,
    /// Nothing ever: nobody reads any more.
    Stopped,
    /// Nothing ever: the other half cannot be reached.
    Broken,
}

impl WritingHalf {
    /// A writer that waits for the first grant.
    pub fn new() -> Self {
        Self::default()
    }

    /// A writer that knows its reader's window.
    pub fn granted(window: u32) -> Self {
        let window = u64::from(window_of(window));
        Self { granted: window, granted_bytes: WINDOW_BYTES, ..Self::default() }
    }

    /// Whether an item may be written now.
    pub const fn may_write(&self) -> MayWrite {
        match self.state {
            Over::Stopped => MayWrite::Stopped,
            Over::Broken => MayWrite::Broken,
            Over::No if self.sent < self.granted && self.sent_bytes < self.granted_bytes => MayWrite::Now,
            Over::No => MayWrite::Later,
        }
    }

    /// The next item, to be said. It counts when it [was](Self::written).
    pub const fn item(&self, body: Bytes) -> Word {
        Word::Item { number: self.sent, body }
    }

    /// The item was said.
    pub const fn written(&mut self, bytes: usize) {
        self.sent += 1;
        self.sent_bytes += bytes as u64;
    }

    /// The last word.
    pub const fn end(&self, is_whole: bool) -> Word {
        Word::End { count: self.sent, is_whole }
    }

    /// What to say when a grant was waited for in vain.
    pub const fn ask(&self) -> Word {
        Word::Count { count: self.sent, asks: true }
    }

    /// Hears the reader; gives what is to be answered.
    pub fn hear(&mut self, word: &Word) -> Option<Word> {
        match *word {
            Word::Grant { items, bytes } => {
                let is_news = items > self.granted || bytes > self.granted_bytes;
                self.granted = self.granted.max(items);
                self.granted_bytes = self.granted_bytes.max(bytes);
                // A reader that repeats itself has waited: it may miss something.
                return (!is_news).then_some(Word::Count { count: self.sent, asks: false });
            }
            Word::Stop => self.state = Over::Stopped,
            // No reader of ours says that.
            Word::Item { .. } | Word::End { .. } | Word::Count { .. } | Word::Gone => {}
        }
        None
    }

    /// The reader cannot be reached any more.
    pub fn break_off(&mut self) {
        if self.state == Over::No {
            self.state = Over::Broken;
        }
    }
}

/// The half that reads.
#[derive(Debug)]
pub struct ReadingHalf {
    window: u64,
    ready: VecDeque<Bytes>,
    /// Items that have overtaken others.
    held: BTreeMap<u64, Bytes>,
    held_bytes: u64,
    /// Items that came, in order.
    arrived: u64,
    arrived_bytes: u64,
    taken: u64,
    taken_bytes: u64,
    granted: u64,
    granted_bytes: u64,
    end: Option<(u64, bool)>,
    /// How much had arrived when the writer had said more for the first time.
    missing_at: Option<u64>,
    is_broken: bool,
    plant: Plant,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The next item, and a grant that is worth a message.
    Item(Bytes, Option<Word>),
    /// Nothing yet.
    Nothing,
    /// That was all.
    End,
    /// The writer gave up.
    Abandoned,
    /// Something is missing, or the writer cannot be reached.
    Broken,
}

impl ReadingHalf {
    /// A reader of whose window the writer knows.
    pub const fn new(window: u32) -> Self {
        let window = window_of(window) as u64;
        Self {
            window,
            ready: VecDeque::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            arrived: 0,
            arrived_bytes: 0,
            taken: 0,
            taken_bytes: 0,
            granted: window,
            granted_bytes: WINDOW_BYTES,
            end: None,
            missing_at: None,
            is_broken: false,
            plant: Plant::NONE,
        }
    }

    /// The same with a bug for the simulator to find.
    #[must_use]
    pub fn with_plant(mut self, plant: Plant) -> Self {
        self.plant = plant;
        self
    }

    /// Takes the next item, if it is there.
    pub fn take(&mut self) -> Taken {
        if let Some(body) = self.ready.pop_front() {
            self.taken += 1;
            self.taken_bytes += body.len() as u64;
            let grown = self.taken + self.window - self.granted;
            let grown_bytes = self.taken_bytes + WINDOW_BYTES - self.granted_bytes;
            let is_worth_it = grown >= self.window.div_ceil(2) || grown_bytes >= WINDOW_BYTES / 2;
            return Taken::Item(body, is_worth_it.then(|| self.grant()));
        }
        match self.end {
            Some((count, is_whole)) if count == self.arrived || self.plant.has(Planted::StreamEndsEarly) => {
                if is_whole {
                    Taken::End
                } else {
                    Taken::Abandoned
                }
            }
            _ if self.is_broken => Taken::Broken,
            _ => Taken::Nothing,
        }
    }

    /// What to say when an item was waited for in vain, and first of all when the writer does not know the window.
    pub const fn grant(&mut self) -> Word {
        self.granted = self.taken + self.window;
        self.granted_bytes = self.taken_bytes + WINDOW_BYTES;
        Word::Grant { items: self.granted, bytes: self.granted_bytes }
    }

    /// Hears the writer; gives what is to be answered.
    pub fn hear(&mut self, word: Word) -> Option<Word> {
        match word {
            Word::Item { number, body } => self.on_item(number, body),
            Word::End { count, is_whole } => self.end = Some((count, is_whole)),
            Word::Count { count, asks } => {
                let is_missing = count > self.arrived + self.held.len() as u64;
                // What is under way may come behind the first such word, not behind the answer to a second question.
                if is_missing
                    && self.missing_at == Some(self.arrived)
                    && !self.plant.has(Planted::StreamWaitsForTheLost)
                {
                    self.is_broken = true;
                }
                self.missing_at = is_missing.then_some(self.arrived);
                return asks.then(|| self.grant());
            }
            Word::Gone => self.is_broken |= self.end.is_none_or(|(count, _)| count != self.arrived),
            // No writer of ours says that.
            Word::Grant { .. } | Word::Stop => {}
        }
        None
    }

    fn on_item(&mut self, number: u64, body: Bytes) {
        let is_again = number < self.arrived || self.held.contains_key(&number);
        if is_again && !self.plant.has(Planted::StreamTakesCopies) {
            return;
        }
        self.held_bytes += body.len() as u64;
        self.held.insert(number, body);
        // The writer stayed below the grant when it wrote the last of these, whichever of them came first.
        let last_bytes = self.held.last_key_value().map_or(0, |(_, body)| body.len() as u64);
        let is_granted = self.arrived_bytes + self.held_bytes - last_bytes < self.granted_bytes;
        if number >= self.granted || !is_granted {
            // No writer of ours does that.
            (self.held, self.held_bytes) = (BTreeMap::new(), 0);
            self.is_broken = true;
            return;
        }
        while let Some(entry) = self.held.first_entry() {
            if *entry.key() > self.arrived && !self.plant.has(Planted::StreamSkipsGaps) {
                break;
            }
            let body = entry.remove();
            self.held_bytes -= body.len() as u64;
            self.arrived_bytes += body.len() as u64;
            self.arrived += 1;
            self.ready.push_back(body);
        }
    }

    /// The writer cannot be reached any more.
    pub const fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// Checks the half's own invariants.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check(&self) -> Result<(), Violation> {
        let held: u64 = self.held.values().map(|body| body.len() as u64).sum();
        if held != self.held_bytes || self.taken + self.ready.len() as u64 != self.arrived {
            return Err(Violation(format!("the counts are wrong: {self:?}")));
        }
        if self.ready.len() as u64 + self.held.len() as u64 > self.window {
            return Err(Violation(format!("{} items wait", self.ready.len() + self.held.len())));
        }
        Ok(())
    }
}

const fn window_of(window: u32) -> u32 {
    if window == 0 {
        1
    } else if window > WINDOW_ITEMS_MAX {
        WINDOW_ITEMS_MAX
    } else {
        window
    }
}

/// Items of one stream that may wait to be read, at most.
pub const WINDOW_ITEMS_MAX: u32 = 65_536;
/// Bytes of items that may be on their way or wait to be read.
const WINDOW_BYTES: u64 = 1 << 20;

// Beside the kinds of messages about calls.
const ITEM: u8 = 64;
const END: u8 = 65;
const COUNT: u8 = 66;
const GONE: u8 = 67;
const GRANT: u8 = 68;
const STOP: u8 = 69;
