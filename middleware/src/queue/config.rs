//! A queue's few knobs.

use std::time::Duration;

use super::books::DEDUPLICATE_MAX;
use super::error::DeclareError;

/// How one queue behaves. Not stored: given each time the queue is opened.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    pub(super) messages_max: usize,
    pub(super) bytes_max: usize,
    pub(super) message_bytes_max: usize,
    pub(super) when_full: WhenFull,
    pub(super) lease: Duration,
    pub(super) deliveries_max: Option<u32>,
    pub(super) dead_letters: Option<String>,
    pub(super) when_expired: WhenExpired,
    pub(super) deduplicate: usize,
    pub(super) retain_messages: usize,
    pub(super) retain_age: Duration,
}

/// What becomes of a message that expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenExpired {
    /// It goes.
    Drop,
    /// It goes to the dead letters.
    Bury,
}

/// What a put does when the queue has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits until there is.
    Wait,
    /// It fails with [`PutError::Full`](super::PutError::Full).
    Reject,
}

impl QueueConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            messages_max: 1_000_000,
            bytes_max: 256 << 20,
            message_bytes_max: 1 << 20,
            when_full: WhenFull::Wait,
            lease: Duration::from_secs(30),
            deliveries_max: Some(16),
            dead_letters: None,
            when_expired: WhenExpired::Drop,
            deduplicate: 10_000,
            retain_messages: 0,
            retain_age: Duration::MAX,
        }
    }

    /// Most messages in the queue, being put and being delivered included. Default 1,000,000; at least 1.
    pub fn messages_max(mut self, messages: usize) -> Self {
        self.messages_max = messages;
        self
    }

    /// Most payload bytes in the queue. Default 256 MiB; at least 1. They are on the disk, but for what is put in memory only.
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = bytes;
        self
    }

    /// Most bytes of one message. Default 1 MiB; must fit into a segment of the journal.
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// What a put does when the queue is full. Default: wait.
    pub fn when_full(mut self, policy: WhenFull) -> Self {
        self.when_full = policy;
        self
    }

    /// How long a delivery belongs to its consumer. Default 30 s; more than zero. Too short, and messages are
    /// delivered twice; too long, and those of a consumer that hangs are late.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// After how many deliveries without an acknowledgement a message is a dead letter. Default `Some(16)`; `None`
    /// means that it is tried for ever.
    pub fn deliveries_max(mut self, deliveries: Option<u32>) -> Self {
        self.deliveries_max = deliveries;
        self
    }

    /// The queue that gets the dead letters; it is created with this one. Default: this queue's name with `.dead` behind
    /// it, and none for a queue whose name ends so: its messages are tried for ever.
    pub fn dead_letters(mut self, name: impl Into<String>) -> Self {
        self.dead_letters = Some(name.into());
        self
    }

    /// What becomes of a message that [expires](super::Message::expires_after). Default: it goes.
    pub fn when_expired(mut self, policy: WhenExpired) -> Self {
        self.when_expired = policy;
        self
    }

    /// How many [names](super::Message::name) of messages are remembered to recognise a repetition, at most 1,000,000.
    /// Default 10,000; 0 recognises only what is still on its way.
    pub fn deduplicate(mut self, names: usize) -> Self {
        self.deduplicate = names;
        self
    }

    /// Keeps acknowledged messages for those who [read](super::Queue::browse) them again or [seek](super::Queue::seek)
    /// back: the last `messages` of them, up to an age of `age` since they were put, and at most
    /// [`bytes_max`](Self::bytes_max) bytes; up to an eighth more, and up to twice the age, which is looked at when something
    /// is acknowledged. Default: none.
    pub fn retain(mut self, messages: usize, age: Duration) -> Self {
        (self.retain_messages, self.retain_age) = (messages, age);
        self
    }

    pub(super) fn check(&self, name: &str) -> Result<(), DeclareError> {
        check_name(name)?;
        if let Some(dead) = &self.dead_letters {
            check_name(dead)?;
        }
        let wrong = |field| Err(DeclareError::Config { field });
        if self.messages_max == 0 {
            return wrong("messages_max");
        }
        if self.bytes_max == 0 {
            return wrong("bytes_max");
        }
        if self.message_bytes_max == 0 {
            return wrong("message_bytes_max");
        }
        if self.lease.is_zero() {
            return wrong("lease");
        }
        if self.deliveries_max == Some(0) {
            return wrong("deliveries_max");
        }
        if self.deduplicate > DEDUPLICATE_MAX {
            return Err(DeclareError::Names { limit: DEDUPLICATE_MAX });
        }
        Ok(())
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn check_name(name: &str) -> Result<(), DeclareError> {
    let is_valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if (1..=QUEUE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_valid) {
        Ok(())
    } else {
        Err(DeclareError::Name { name: name.to_owned() })
    }
}

/// Room for a hierarchy in the name, and small beside any message.
pub(super) const QUEUE_NAME_BYTES_MAX: usize = 128;
