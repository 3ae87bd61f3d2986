//! What the members of a company send each other.

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::{
    Wire, WireError, put_bytes, put_count, take_bytes, take_count, take_u8, take_u32, take_u64,
};

/// Which operation a message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the operations")]
pub enum Kind {
    Barrier = 1,
    Broadcast = 2,
    Scatter = 3,
    Gather = 4,
    AllGather = 5,
    Reduce = 6,
    AllReduce = 7,
    Scan = 8,
    AllToAll = 9,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Barrier,
        Self::Broadcast,
        Self::Scatter,
        Self::Gather,
        Self::AllGather,
        Self::Reduce,
        Self::AllReduce,
        Self::Scan,
        Self::AllToAll,
    ];
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CollectiveMessage {
    /// A step of an operation.
    Part {
        /// Which operation, counting from 0.
        number: u64,
        /// What the sender takes it for.
        kind: Kind,
        /// Which step of it.
        phase: u8,
        /// What the receiver shall have.
        items: Vec<Bytes>,
    },
    /// A part came.
    Acknowledge {
        /// Of which operation.
        number: u64,
        /// Of which step.
        phase: u8,
    },
    /// The sender's operations fail from now on.
    Abort {
        /// The member because of which.
        rank: u32,
    },
}

impl Wire for CollectiveMessage {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Part { number, kind, phase, items } => {
                out.put_slice(&[PART, *kind as u8, *phase]);
                out.put_u64_le(*number);
                put_count(out, items.len());
                items.iter().for_each(|item| put_bytes(out, item));
            }
            Self::Acknowledge { number, phase } => {
                out.put_slice(&[ACKNOWLEDGE, *phase]);
                out.put_u64_le(*number);
            }
            Self::Abort { rank } => {
                out.put_u8(ABORT);
                out.put_u32_le(*rank);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "collective message")? {
            PART => {
                let kind = take_u8(input, "collective operation")?;
                let kind = Kind::ALL
                    .into_iter()
                    .find(|known| *known as u8 == kind)
                    .ok_or(WireError::Invalid { what: "collective operation", value: kind.into() })?;
                let phase = take_u8(input, "phase")?;
                let number = take_u64(input, "number of the operation")?;
                let count = take_count(input, 4, "items")?;
                let items = (0..count).map(|_| take_bytes(input, "item")).collect::<Result<_, _>>()?;
                Ok(Self::Part { number, kind, phase, items })
            }
            ACKNOWLEDGE => {
                let phase = take_u8(input, "phase")?;
                Ok(Self::Acknowledge { number: take_u64(input, "number of the operation")?, phase })
            }
            ABORT => Ok(Self::Abort { rank: take_u32(input, "rank")? }),
            other => Err(WireError::Invalid { what: "collective message", value: other.into() }),
        }
    }
}

const PART: u8 = 1;
const ACKNOWLEDGE: u8 = 2;
const ABORT: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_as_it_was_and_no_part_of_it_does() {
        let mut messages = vec![
            CollectiveMessage::Acknowledge { number: 3, phase: 1 },
            CollectiveMessage::Abort { rank: 9 },
        ];
        messages.extend(Kind::ALL.map(|kind| {
            let items = vec!["one".into(), Bytes::new()];
            CollectiveMessage::Part { number: 7, kind, phase: 2, items }
        }));
        for message in messages {
            let bytes = message.to_bytes();
            assert_eq!(CollectiveMessage::from_bytes(bytes.clone()), Ok(message.clone()));
            for end in 0..bytes.len() {
                assert!(
                    CollectiveMessage::from_bytes(bytes.slice(..end)).is_err(),
                    "{message:?} cut at {end}"
                );
            }
        }
    }
}
