//! What is put: a payload and how it is to be treated.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::Time;

use super::error::PutError;

/// A message to be put: bytes, and what is asked for them. Whatever becomes [`Bytes`] becomes a message with the defaults.
///
/// ```
/// use std::time::Duration;
/// use quorate::queue::Message;
///
/// let order = Message::new("three apples").key("ann").priority(7).expires_after(Duration::from_secs(60));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub(super) payload: Bytes,
    pub(super) key: Option<Bytes>,
    pub(super) priority: u8,
    pub(super) delay: Duration,
    pub(super) expires_after: Option<Duration>,
    pub(super) name: Option<Bytes>,
    pub(super) durability: Durability,
}

/// How safe a message is before its put returns, the weakest first. Its acknowledgement is as safe as the message was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Durability {
    /// In this process only: gone with it. It costs no disk.
    Memory,
    /// Written, not synced: it survives the death of the process, not that of the machine.
    Written,
    /// Written and synced, with all puts that wait at the same time: it survives a power cut.
    #[default]
    Synced,
}

impl Message {
    /// A message with the defaults: no key, priority 4, at once, for ever, synced.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            key: None,
            priority: PRIORITY,
            delay: Duration::ZERO,
            expires_after: None,
            name: None,
            durability: Durability::default(),
        }
    }

    /// Messages of one key (at most 255 bytes) are delivered one after the other, in the order in which they were put:
    /// the next one when the one before is acknowledged, given up or expired. A message that fails, or whose consumer
    /// hangs, so delays those of its key, and no others.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// A higher priority is delivered first; 4 is the default. Within a key the order of the puts goes before, and a key
    /// counts as its first message does.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Not delivered before `delay` has passed, on the machine's clock, also across a restart. It holds up those of its
    /// key that are put later.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Not delivered once `time` has passed, on the machine's clock, also across a restart; what becomes of it then,
    /// [`QueueConfig::when_expired`](super::QueueConfig::when_expired) says. A consumer that has it by then may finish.
    pub fn expires_after(mut self, time: Duration) -> Self {
        self.expires_after = Some(time);
        self
    }

    /// A name (1 to 255 bytes) by which a repetition is known: a put of the same name into the same queue stores nothing
    /// while the first one is among the last [`QueueConfig::deduplicate`](super::QueueConfig::deduplicate) named ones, also
    /// across a restart and after it was acknowledged. So a put whose outcome is unknown may be repeated. It must not ask for
    /// more [durability](Self::durability) than the first one when that was in memory only.
    pub fn name(mut self, name: impl Into<Bytes>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How safe it is before the put returns.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    pub(super) fn check(&self) -> Result<(), PutError> {
        let is_too_long =
            |text: &Option<Bytes>| text.as_ref().is_some_and(|text| text.len() > LABEL_BYTES_MAX);
        if is_too_long(&self.key) {
            return Err(PutError::Label { field: "key" });
        }
        if is_too_long(&self.name) || self.name.as_ref().is_some_and(Bytes::is_empty) {
            return Err(PutError::Label { field: "name" });
        }
        Ok(())
    }

    pub(super) fn label(&self, now: Time) -> Label {
        Label {
            put_at: now,
            priority: self.priority,
            key: self.key.clone(),
            name: self.name.clone(),
            due: (!self.delay.is_zero()).then(|| now + self.delay),
            expires: self.expires_after.map(|time| now + time),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Message {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

/// A message's lasting number among all messages of its directory; later ones have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u64);

impl MessageId {
    /// The message with this number.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is kept of a message beside its bytes. Its times are on the machine's clock, so that they last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Label {
    pub(super) put_at: Time,
    pub(super) priority: u8,
    pub(super) key: Option<Bytes>,
    pub(super) name: Option<Bytes>,
    pub(super) due: Option<Time>,
    pub(super) expires: Option<Time>,
}

/// Why a message was taken out without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DeadReason {
    /// It was delivered too often without an acknowledgement.
    Deliveries,
    /// Its time was over before a consumer had acknowledged it.
    Expired,
    /// It was on its way to another node, and the next one takes no message of that size.
    TooLarge,
}

/// Where a dead letter comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) queue: u32,
    pub(super) id: MessageId,
    pub(super) deliveries: u32,
    pub(super) reason: DeadReason,
}

/// Between the urgent and the idle: 0 to 9 is what most brokers have.
pub(super) const PRIORITY: u8 = 4;
/// Their length is one byte on the disk.
pub(super) const LABEL_BYTES_MAX: usize = 255;
