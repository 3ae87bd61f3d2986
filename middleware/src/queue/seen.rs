//! The names under which messages were put, so that a repetition is known: the last ones of each queue.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::message::MessageId;

/// The window of one queue.
#[derive(Debug, Default)]
pub(super) struct Seen {
    by_name: BTreeMap<Bytes, MessageId>,
    /// With the place in the log that tells of it.
    by_id: BTreeMap<MessageId, (Bytes, Option<u64>)>,
}

impl Seen {
    /// The message that was put under this name.
    pub(super) fn find(&self, name: &Bytes) -> Option<MessageId> {
        self.by_name.get(name).copied()
    }

    /// The name of a message.
    pub(super) fn name(&self, id: MessageId) -> Option<&Bytes> {
        self.by_id.get(&id).map(|(name, _)| name)
    }

    /// Those that the log tells of, the oldest first, with the place.
    pub(super) fn stored(&self) -> impl Iterator<Item = (MessageId, u64, &Bytes)> {
        self.by_id.iter().filter_map(|(id, (name, place))| Some((*id, (*place)?, name)))
    }

    /// Whether the log tells of it.
    #[cfg(test)]
    pub(super) fn is_stored(&self, id: MessageId) -> bool {
        self.by_id.get(&id).is_some_and(|(_, place)| place.is_some())
    }

    /// Remembers a name that `place` in the log tells; gives the place that told it before.
    pub(super) fn remember(&mut self, id: MessageId, name: Bytes, place: Option<u64>) -> Option<u64> {
        // An old name that is written again does not hide the newer message of that name.
        if self.by_name.get(&name).is_none_or(|known| *known < id) {
            self.by_name.insert(name.clone(), id);
        }
        self.by_id.insert(id, (name, place)).and_then(|(_, place)| place)
    }

    /// Forgets the oldest one beyond `window`.
    pub(super) fn forget_oldest(&mut self, window: usize) -> Option<(MessageId, Option<u64>)> {
        if self.by_id.len() <= window {
            return None;
        }
        let (id, (name, place)) = self.by_id.pop_first()?;
        if self.by_name.get(&name) == Some(&id) {
            self.by_name.remove(&name);
        }
        Some((id, place))
    }
}
