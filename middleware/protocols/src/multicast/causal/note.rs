//! What a sender tells of its past, and how it is laid out.

use bytes::{BufMut, Bytes, BytesMut};

use crate::stack::{MEMBERS_MAX, ViewId};
use crate::wire::{Wire, WireError, put_count, take_count, take_u16, take_u64};

/// "My next messages come after these": the entries of the sender's vector timestamp that have changed since its last
/// note in the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// The view in which the messages were delivered.
    pub(super) view: ViewId,
    /// A member's rank, and how many of its messages.
    pub(super) counts: Vec<(u16, u64)>,
}

impl Wire for Note {
    fn encode(&self, out: &mut BytesMut) {
        self.view.encode(out);
        put_count(out, self.counts.len());
        for (rank, count) in &self.counts {
            out.put_u16_le(*rank);
            out.put_u64_le(*count);
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let view = ViewId::decode(input)?;
        let count = take_count(input, 10, "timestamps")?;
        if count > MEMBERS_MAX {
            return Err(WireError::Invalid { what: "timestamps", value: count as u64 });
        }
        let entry = |_| Ok((take_u16(input, "member's rank")?, take_u64(input, "member's count")?));
        Ok(Self { view, counts: (0..count).map(entry).collect::<Result<_, WireError>>()? })
    }
}
