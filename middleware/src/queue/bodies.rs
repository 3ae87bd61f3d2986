//! Where the messages' bytes lie: in memory, beside the journal.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::message::MessageId;

/// The bytes of all messages of a directory.
#[derive(Debug, Default)]
pub(super) struct Bodies(BTreeMap<MessageId, Bytes>);

impl Bodies {
    pub(super) fn insert(&mut self, id: MessageId, payload: Bytes) {
        self.0.insert(id, payload);
    }

    pub(super) fn remove(&mut self, id: MessageId) {
        self.0.remove(&id);
    }

    /// The bytes of a message that is there.
    pub(super) fn get(&self, id: MessageId) -> Bytes {
        self.0.get(&id).cloned().unwrap_or_default()
    }
}
