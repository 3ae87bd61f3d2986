//! Where the messages' bytes lie: in the log, and those that are wanted soon in memory as well.
//!
//! Limits      of each queue [`NEAR_BYTES`] are kept in memory, of all together [`NEAR_BYTES_ALL`], and whatever lies in no log.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_journal::{Corruption, Position, ReadError, Reader};

use super::message::MessageId;
use super::record::{Put, Step};

/// The bytes of all messages of a directory.
#[derive(Default)]
pub(super) struct Bodies {
    near: BTreeMap<(u32, MessageId), Bytes>,
    near_bytes: BTreeMap<u32, usize>,
    all_bytes: usize,
    /// Without one, everything is in memory.
    log: Option<RefCell<Reader>>,
}

impl Bodies {
    /// From now on, what lies in the log is read from there.
    pub(super) fn read_from(&mut self, log: Reader) {
        self.log = Some(RefCell::new(log));
    }

    /// Lets go of the log.
    pub(super) fn close(&mut self) {
        self.log = None;
    }

    pub(super) fn is_bounded(&self) -> bool {
        self.log.is_some()
    }

    pub(super) fn is_near(&self, queue: u32, id: MessageId) -> bool {
        self.near.contains_key(&(queue, id))
    }

    /// A message arrives; in memory it is only if there is room, or if it is nowhere else.
    pub(super) fn insert(&mut self, queue: u32, id: MessageId, payload: Bytes, place: Option<u64>) {
        let near = self.near_bytes.get(&queue).copied().unwrap_or(0) + payload.len();
        let is_wanted = near <= NEAR_BYTES && self.all_bytes + payload.len() <= NEAR_BYTES_ALL;
        if is_wanted || place.is_none() || !self.is_bounded() {
            self.hold(queue, id, payload);
        }
    }

    /// Has a message in memory.
    pub(super) fn hold(&mut self, queue: u32, id: MessageId, payload: Bytes) {
        self.remove(queue, id);
        self.all_bytes += payload.len();
        *self.near_bytes.entry(queue).or_default() += payload.len();
        self.near.insert((queue, id), payload);
    }

    /// A message goes.
    pub(super) fn remove(&mut self, queue: u32, id: MessageId) {
        let Some(payload) = self.near.remove(&(queue, id)) else { return };
        self.all_bytes -= payload.len();
        if let Some(near) = self.near_bytes.get_mut(&queue) {
            *near -= payload.len();
        }
    }

    /// A message is not wanted again soon.
    pub(super) fn release(&mut self, queue: u32, id: MessageId, place: Option<u64>) {
        if place.is_some() && self.is_bounded() {
            self.remove(queue, id);
        }
    }

    /// The bytes of a message that is there.
    pub(super) fn get(&self, queue: u32, id: MessageId, place: Option<u64>) -> Result<Bytes, ReadError> {
        match (self.near.get(&(queue, id)), place) {
            (Some(payload), _) => Ok(payload.clone()),
            (None, Some(place)) => Ok(self.read(place)?.payload),
            (None, None) => Err(ReadError::Closed),
        }
    }

    /// The message whose record lies at `place`. Reads from the disk.
    pub(super) fn read(&self, place: u64) -> Result<Put, ReadError> {
        let mut log = self.log.as_ref().ok_or(ReadError::Closed)?.borrow_mut();
        log.seek(Position::from_u64(place));
        let entry = log.next().ok_or(ReadError::Closed)??;
        let wrong = |reason: &str| {
            let file = format!("the record at position {place}");
            ReadError::Corrupt(Corruption { file, offset: 0, reason: reason.to_owned() })
        };
        match Step::decode(&entry).map_err(wrong)? {
            // A copy: what was read shares a large buffer with its neighbours, and one message would keep all of it.
            Step::Put(put) => Ok(Put { payload: Bytes::copy_from_slice(&put.payload), ..put }),
            _ => Err(wrong("is no message")),
        }
    }
}

/// Of each queue: what its consumers take in a moment.
const NEAR_BYTES: usize = 2 << 20;
/// Of all queues: what waits in many of them that nobody reads must not fill the memory.
const NEAR_BYTES_ALL: usize = 8 << 20;
