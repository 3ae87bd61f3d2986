//! Where the halves of streams hear each other.
//!
//! Method      the halves of a stream talk on the channels of the service that they came with, beside its calls. A
//!             writer's words share one lane, so that its end comes behind its items; a reader's words may overtake
//!             them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_protocols::ProcessId;
use quorate_protocols::rpc::{Spoken, Word};

use super::generated::Boxed;
use super::objects::{Home, Target};
use crate::node::Node;

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
