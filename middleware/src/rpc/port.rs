//! What streams say to each other, and the places where they hear it.
//!
//! Method      the halves of a stream talk on the channels of the service that they came with, beside its calls. A
//!             writer's words share one lane, so that its end comes behind its items; a reader's words may overtake
//!             them. Grants and counts are totals: repeated or reordered they do no harm.
//! Layout      kind `u8`, the client's number `u32`, the stream's number `u64`, then what [`Word`] says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_protocols::{ProcessId, WireError, wire};

use super::generated::Boxed;
use super::objects::{Home, Target};
use crate::node::Node;

/// One message of one half to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// Writer: the item with this number, counted from 0.
    Item { number: u64, body: Bytes },
    /// Writer: so many items were all, or were written before it was given up.
    End { count: u64, is_whole: bool },
    /// Writer: so many items were written so far; `asks` for a grant.
    Count { count: u64, asks: bool },
    /// Writer's side: nobody writes this stream (any more).
    Gone,
    /// Reader: so many items and bytes may be written in all.
    Grant { items: u64, bytes: u64 },
    /// Reader: nobody reads any more.
    Stop,
}

impl Word {
    /// Said by a writer; it is spoken in the items' lane.
    pub(super) const fn is_writers(&self) -> bool {
        matches!(self, Self::Item { .. } | Self::End { .. } | Self::Count { .. } | Self::Gone)
    }

    /// What a side answers that does not know the stream.
    const fn answer_of_nobody(&self) -> Option<Self> {
        match self {
            Self::Item { .. } | Self::Count { .. } => Some(Self::Stop),
            Self::Grant { .. } => Some(Self::Gone),
            Self::End { .. } | Self::Gone | Self::Stop => None,
        }
    }
}

/// A word with its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spoken {
    pub(super) client: u32,
    pub(super) stream: u64,
    pub(super) word: Word,
}

impl Spoken {
    /// True when a frame goes on with this and not with a message about a call.
    pub(super) fn is_next(frame: &[u8]) -> bool {
        frame.first().is_some_and(|kind| *kind >= ITEM)
    }

    /// Appends all but the body, and gives that.
    pub(super) fn encode_head(&self, out: &mut BytesMut) -> Bytes {
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

    /// # Errors
    /// [`WireError`] when the frame does not go on with a word.
    pub(super) fn decode(frame: &mut Bytes) -> Result<Self, WireError> {
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

/// Why a word was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsaid {
    /// The connection takes no more for now.
    Full,
    /// It can never be sent.
    TooLarge { size: usize, limit: usize },
    /// There is no way to the other half.
    Gone,
}

/// The way to the other side of a binding.
pub(super) trait Link: Send + Sync {
    fn say(&self, stream: u64, word: Word) -> Result<(), Unsaid>;

    /// Waits until the items' lane takes a word.
    fn ready(&self) -> Boxed<()>;

    /// Lets `half` hear what comes for the stream: a new one without a number. `None` when there are too many, or one of
    /// this number.
    fn enter(&self, number: Option<u64>, half: Arc<dyn Half>) -> Option<u64>;

    fn leave(&self, stream: u64);

    /// Where references come from and go to: the objects of this node, if they are open, and the other side.
    fn references(&self) -> Option<(Arc<Home>, ProcessId)>;
}

/// One half of a stream, as its side of the binding knows it.
pub(super) trait Half: Send + Sync {
    /// Hears the other half; gives what is to be answered.
    fn hear(&self, word: Word) -> Option<Word>;

    /// The other half cannot be heard any more.
    fn break_off(&self);
}

/// Whose a stream is, on one side: the process at the other end, the client's number, the stream's own.
type Key = (ProcessId, u32, u64);

/// The streams of a client or of a service.
pub(super) struct Streams {
    halves: Mutex<BTreeMap<Key, Arc<dyn Half>>>,
    next: AtomicU64,
}

impl Streams {
    /// The two sides of a binding number their streams apart.
    pub(super) fn new(is_client: bool) -> Self {
        Self { halves: Mutex::default(), next: AtomicU64::new(u64::from(is_client)) }
    }

    pub(super) fn enter(
        &self,
        peer: ProcessId,
        client: u32,
        number: Option<u64>,
        half: Arc<dyn Half>,
    ) -> Option<u64> {
        let mut halves = self.halves();
        let number = number.unwrap_or_else(|| self.next.fetch_add(2, Ordering::Relaxed));
        let key = (peer, client, number);
        if halves.len() >= STREAMS_MAX || halves.contains_key(&key) {
            return None;
        }
        halves.insert(key, half);
        Some(number)
    }

    pub(super) fn leave(&self, peer: ProcessId, client: u32, number: u64) {
        let half = self.halves().remove(&(peer, client, number));
        // Dropped without the lock: it may be the last of its stream.
        drop(half);
    }

    /// Gives a word to its stream, and what is to be answered.
    pub(super) fn hear(&self, peer: ProcessId, spoken: Spoken) -> Option<Spoken> {
        let Spoken { client, stream, word } = spoken;
        let half = self.halves().get(&(peer, client, stream)).cloned();
        let answer = match half {
            Some(half) => half.hear(word),
            None => word.answer_of_nobody(),
        };
        answer.map(|word| Spoken { client, stream, word })
    }

    /// The halves of these streams hear nothing any more.
    pub(super) fn break_off(&self, which: impl Fn(ProcessId, u64) -> bool) {
        let mut broken = Vec::new();
        self.halves().retain(|(peer, _, stream), half| {
            let goes = which(*peer, *stream);
            if goes {
                broken.push(Arc::clone(half));
            }
            !goes
        });
        broken.iter().for_each(|half| half.break_off());
    }

    fn halves(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<dyn Half>>> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes along with a call.
#[derive(Default)]
pub(super) struct Travelled {
    /// The numbers of streams.
    pub(super) streams: Vec<u64>,
    /// The pins of references.
    pub(super) pins: Vec<u64>,
    /// The last reference, with its use.
    pub(super) departed: Option<Arc<Target>>,
    /// The object that it is for, which is used as long as the call lasts.
    pub(super) object: Option<Arc<Target>>,
}

impl Travelled {
    /// The references of what has never left are not on their way.
    pub(super) fn recall(&mut self, node: &Node) {
        if let Some(home) = (!self.pins.is_empty()).then(|| Home::of(node)).flatten() {
            self.pins.drain(..).for_each(|pin| home.recall(pin));
        }
    }
}

/// Encodes or decodes something that may hold streams or references; tells what has travelled.
pub(super) fn through<R>(link: Arc<dyn Link>, travel: impl FnOnce() -> R) -> (R, Travelled) {
    /// Puts back what was there, also when a user's serde code panics.
    struct Restore(Option<Port>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            PORT.with(|port| *port.borrow_mut() = before);
        }
    }
    let port = Port { link, travelled: Travelled::default() };
    let _restore = Restore(PORT.with(|place| place.borrow_mut().replace(port)));
    let result = travel();
    let travelled = PORT.with(|place| place.borrow_mut().take()).map(|port| port.travelled);
    (result, travelled.unwrap_or_default())
}

/// Where something is encoded or decoded now.
pub(super) fn link() -> Option<Arc<dyn Link>> {
    PORT.with(|port| port.borrow().as_ref().map(|port| Arc::clone(&port.link)))
}

/// See [`Link::references`].
pub(super) fn references() -> Option<(Arc<Home>, ProcessId)> {
    link()?.references()
}

/// Notes that a stream has travelled.
pub(super) fn note(stream: u64) {
    note_in(|travelled| travelled.streams.push(stream));
}

/// Notes that a reference has travelled.
pub(super) fn note_reference(reference: Arc<Target>, pin: u64) {
    note_in(|travelled| {
        travelled.pins.push(pin);
        travelled.departed = Some(reference);
    });
}

/// The reference that has travelled last.
pub(super) fn departed() -> Option<Arc<Target>> {
    PORT.with(|port| port.borrow_mut().as_mut().and_then(|port| port.travelled.departed.take()))
}

fn note_in(what: impl FnOnce(&mut Travelled)) {
    PORT.with(|port| {
        if let Some(port) = port.borrow_mut().as_mut() {
            what(&mut port.travelled);
        }
    });
}

struct Port {
    link: Arc<dyn Link>,
    travelled: Travelled,
}

thread_local! {
    static PORT: RefCell<Option<Port>> = const { RefCell::new(None) };
}

/// Streams of one client or one service at once.
const STREAMS_MAX: usize = 4_096;

// Beside the kinds of messages about calls.
const ITEM: u8 = 64;
const END: u8 = 65;
const COUNT: u8 = 66;
const GONE: u8 = 67;
const GRANT: u8 = 68;
const STOP: u8 = 69;
