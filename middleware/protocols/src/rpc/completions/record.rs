//! What must be durable of exactly-once requests, and its layout.

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::ProcessId;
use crate::rpc::message::{CallId, put_call_id, take_call};
use crate::wire::{Wire, WireError, put_bytes, take_bytes, take_u8, take_u32, take_u64};

/// One exactly-once request: named the same however often it is sent, and in every life of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Whose.
    pub from: ProcessId,
    /// The client's number within its process.
    pub client: u32,
    /// The client's seat.
    pub seat: u64,
    /// Which call.
    pub call: CallId,
}

/// What must be durable. Replaying all of them, in order, gives the table again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompletionRecord {
    /// A client has this seat; what an earlier seat of the same client held is gone, and the seats of its process's
    /// earlier lives.
    Seat {
        /// Whose.
        from: ProcessId,
        /// The client's number within its process.
        client: u32,
        /// The seat.
        seat: u64,
        /// Who had to make room.
        evicts: Option<(ProcessId, u32)>,
    },
    /// A request took effect: what it changed and what it is answered.
    Done {
        /// Which.
        request: Request,
        /// The client has done with all calls below this number.
        acknowledged: u64,
        /// The encoded answer.
        reply: Bytes,
        /// What the service changed, in its own encoding.
        change: Bytes,
    },
    /// The service changed something that belongs to no request.
    Change(Bytes),
    /// In a snapshot only: nothing is known to have come of this request, and older ones of its slot are over.
    Over {
        /// Which.
        request: Request,
    },
    /// In a snapshot only: the number of the next seat.
    NextSeat(u64),
}

impl Wire for CompletionRecord {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Seat { from, client, seat, evicts } => {
                out.put_u8(SEAT);
                from.encode(out);
                out.put_u32_le(*client);
                out.put_u64_le(*seat);
                out.put_u8(u8::from(evicts.is_some()));
                if let Some((from, client)) = evicts {
                    from.encode(out);
                    out.put_u32_le(*client);
                }
            }
            Self::Done { request, acknowledged, reply, change } => {
                out.put_u8(DONE);
                request.encode(out);
                out.put_u64_le(*acknowledged);
                put_bytes(out, reply);
                put_bytes(out, change);
            }
            Self::Change(change) => {
                out.put_u8(CHANGE);
                put_bytes(out, change);
            }
            Self::Over { request } => {
                out.put_u8(OVER);
                request.encode(out);
            }
            Self::NextSeat(next) => {
                out.put_u8(NEXT_SEAT);
                out.put_u64_le(*next);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(match take_u8(input, "record tag")? {
            SEAT => Self::Seat {
                from: ProcessId::decode(input)?,
                client: take_u32(input, "client number")?,
                seat: take_u64(input, "seat")?,
                evicts: match take_u8(input, "eviction")? {
                    0 => None,
                    1 => Some((ProcessId::decode(input)?, take_u32(input, "client number")?)),
                    other => return Err(WireError::Invalid { what: "eviction", value: other.into() }),
                },
            },
            DONE => Self::Done {
                request: Request::decode(input)?,
                acknowledged: take_u64(input, "acknowledgement")?,
                reply: take_bytes(input, "answer")?,
                change: take_bytes(input, "change")?,
            },
            CHANGE => Self::Change(take_bytes(input, "change")?),
            OVER => Self::Over { request: Request::decode(input)? },
            NEXT_SEAT => Self::NextSeat(take_u64(input, "seat")?),
            other => return Err(WireError::Invalid { what: "record tag", value: other.into() }),
        })
    }
}

impl Wire for Request {
    fn encode(&self, out: &mut BytesMut) {
        self.from.encode(out);
        out.put_u32_le(self.client);
        out.put_u64_le(self.seat);
        put_call_id(out, self.call);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            from: ProcessId::decode(input)?,
            client: take_u32(input, "client number")?,
            seat: take_u64(input, "seat")?,
            call: take_call(input)?,
        })
    }
}

const SEAT: u8 = 1;
const DONE: u8 = 2;
const CHANGE: u8 = 3;
const OVER: u8 = 4;
const NEXT_SEAT: u8 = 5;
