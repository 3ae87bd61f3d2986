//! What client and server say to each other, and its layout.
//!
//! Layout      one byte of kind, then fixed little-endian fields in the order of declaration; a body comes last, behind
//!             its length (u32).

use std::fmt;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::{Wire, WireError, put_count, take_bytes, take_u8, take_u32, take_u64};

/// An enum of single-byte codes with a sentence each.
macro_rules! codes {
    ($(#[$about:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant = $code,)*
        }

        impl $name {
            fn take(input: &mut Bytes) -> Result<Self, WireError> {
                match take_u8(input, $what)? {
                    $($code => Ok(Self::$variant),)*
                    other => Err(WireError::Invalid { what: $what, value: other.into() }),
                }
            }
        }

        impl std::error::Error for $name {}

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}
/// One message of the protocol. `client` is the number of the client within its process: it says where a reply goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Client: I want to call this service.
    Bind {
        /// The client's number within its process.
        client: u32,
        /// How it encodes arguments.
        codec: u8,
        /// Whether it will make exactly-once calls, for which it needs a seat.
        exactly_once: bool,
    },
    /// Server: call under this session.
    Bound {
        /// The client's number.
        client: u32,
        /// Names the client's slot table in this life of the service.
        session: u64,
        /// Slots that the client may use.
        slots: u32,
        /// Names the client in the service's completion records, in all lives of the service; 0 when it has none.
        seat: u64,
        /// The client must be heard so often while it has calls under way, or they are ended; zero: it need not.
        renewal: Duration,
    },
    /// Server: you cannot call.
    Rejected {
        /// The client's number.
        client: u32,
        /// Why.
        reason: Rejection,
    },
    /// Client: execute this.
    Request {
        /// The client's number.
        client: u32,
        /// The session it believes in.
        session: u64,
        /// Which call.
        call: CallId,
        /// How far behind `call.sequence` the oldest incomplete call lies.
        behind: u32,
        /// The method's stable id.
        method: u32,
        /// The fingerprint of its types.
        signature: u32,
        /// How often it may be executed.
        semantics: Semantics,
        /// How long the caller will wait from now on.
        budget: Duration,
        /// The encoded arguments.
        body: Bytes,
    },
    /// Server: this became of it.
    Reply {
        /// The client's number.
        client: u32,
        /// The session.
        session: u64,
        /// Which call.
        call: CallId,
        /// What became of it.
        verdict: Verdict,
    },
    /// Server: I have it and am at it; there is no need to ask again soon.
    Working {
        /// The client's number.
        client: u32,
        /// The session.
        session: u64,
        /// Which call.
        call: CallId,
    },
    /// Client: nobody waits for this any more.
    Cancel {
        /// The client's number.
        client: u32,
        /// The session.
        session: u64,
        /// Which call.
        call: CallId,
    },
    /// Server: I know no such session; bind again.
    Lost {
        /// The client's number.
        client: u32,
        /// The unknown session.
        session: u64,
    },
    /// Server: do you still wait for what I execute for you?
    Ask {
        /// The client's number.
        client: u32,
        /// The session.
        session: u64,
    },
    /// Client: I still wait.
    Renew {
        /// The client's number.
        client: u32,
        /// The session.
        session: u64,
    },
    /// Client: end what you execute for earlier lives of my process.
    Exterminate {
        /// Where the answer goes.
        client: u32,
    },
    /// Server: nothing executes for earlier lives of your process any more.
    Exterminated {
        /// The number that asked.
        client: u32,
    },
}

/// One call within a session: a slot of the server's table and the call's own number, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// The slot.
    pub slot: u32,
    /// Counts the calls of this client in this life; starts with 1.
    pub sequence: u64,
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.sequence, self.slot)
    }
}

/// How often a request may be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Semantics {
    /// Never twice. The default.
    AtMostOnce,
    /// Twice does no harm: no reply is kept, and it is sent again to a restarted server.
    Idempotent,
    /// Never twice, perhaps not at all, and nobody waits for an answer.
    OneWay,
    /// Once, and its answer is kept with its effect over crashes of the server: it is sent until it is answered.
    ExactlyOnce,
}

/// What became of a request, as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Executed; the encoded result.
    Done(Bytes),
    /// Not executed, and it will not be.
    Refused(Refusal),
    /// It was begun; whether it had an effect is not known, or its result is not.
    Doubtful(Doubt),
}

codes! {
    /// Why a server did not execute a request. A refusal is final: the same request will never be executed later.
    Refusal, "refusal" {
        /// The service has no method with this id.
        NoSuchMethod = 1, "the service has no such method";
        /// The method's types, or how often it may be executed, differ between the two sides.
        SignatureMismatch = 2, "the method has other types or semantics on the server";
        /// The arguments could not be decoded.
        Malformed = 3, "the server could not decode the arguments";
        /// The server executes as many requests as it may.
        Overloaded = 4, "the server is overloaded";
        /// The service is being shut down.
        ShuttingDown = 5, "the service is shutting down";
        /// The caller's deadline had passed when the server came to it.
        DeadlinePassed = 6, "the deadline passed before the server began";
        /// An exactly-once call of a service that keeps no completion records.
        NoJournal = 7, "the service keeps no records of exactly-once calls";
        /// The service's journal has failed; it can promise nothing until it is opened again.
        JournalFailed = 8, "the service's journal has failed";
        /// What the call changes and answers cannot be encoded, or exceeds what the journal takes at once.
        Unrecordable = 9, "its record cannot be encoded or exceeds what the service's journal takes";
        /// The arguments are compressed in a way that the server was not built with.
        CompressionUnknown = 10, "the server cannot read compressed arguments";
        /// What stands before the service's own code, to protect it, did not let the request through.
        Denied = 11, "the service's middleware did not let it through";
        /// The object that is called is not there: it was withdrawn, or nobody held it any more.
        ObjectGone = 16, "the object is gone";
        /// The object that is called was one of an earlier life of its node.
        OtherLife = 17, "the node of the object has begun another life";
        /// The object that is called was never made: the call failed that should have made it.
        EarlierFailed = 18, "the call that should have made the object failed";
        /// The object that a call has made ahead of its result lives on another node than the call was made of.
        ObjectElsewhere = 19, "the object lives on another node: await the reference first";
    }
}

codes! {
    /// Why nothing better than "perhaps" is known of a request.
    Doubt, "doubt" {
        /// The server no longer knows the session: it crashed and came back, or has evicted this client.
        SessionLost = 1, "the server restarted or forgot this client";
        /// It was executed, but the reply is not kept any longer.
        ReplyForgotten = 2, "executed, but the reply is no longer kept";
        /// The service's code panicked.
        HandlerFailed = 3, "the service's code panicked";
        /// It was executed, but its result cannot be sent.
        ReplyUnsendable = 4, "executed, but the result could not be encoded or exceeds the frame limit";
        /// The server stopped working on it: cancelled, or its deadline passed.
        Abandoned = 5, "the server abandoned it";
        /// An exactly-once call of a client whose completion records are gone: it was away for longer than its lease.
        RecordForgotten = 6, "the server no longer keeps this client's records";
        /// The journal failed while the call was being recorded.
        JournalFailed = 7, "the service's journal failed while it was being recorded";
    }
}

codes! {
    /// Why a client cannot bind to a service.
    Rejection, "rejection" {
        /// The node serves nothing by this name.
        NoSuchService = 1, "the node serves nothing by this name";
        /// The two sides encode arguments differently.
        CodecMismatch = 2, "the service uses another codec";
        /// The service has as many clients as it may.
        TooManyClients = 3, "the service has too many clients";
        /// The service is being shut down.
        ShuttingDown = 4, "the service is shutting down";
    }
}

impl Message {
    /// The number of the client within its process that this is from or for.
    pub const fn client(&self) -> u32 {
        match self {
            Self::Bind { client, .. }
            | Self::Bound { client, .. }
            | Self::Rejected { client, .. }
            | Self::Request { client, .. }
            | Self::Reply { client, .. }
            | Self::Working { client, .. }
            | Self::Cancel { client, .. }
            | Self::Lost { client, .. }
            | Self::Ask { client, .. }
            | Self::Renew { client, .. }
            | Self::Exterminate { client }
            | Self::Exterminated { client } => *client,
        }
    }

    /// Whether a server answers it, so that its sender repeats it until it hears something.
    pub const fn is_answered(&self) -> bool {
        match self {
            Self::Request { semantics, .. } => !matches!(semantics, Semantics::OneWay),
            Self::Bind { .. } | Self::Renew { .. } | Self::Exterminate { .. } => true,
            _ => false,
        }
    }

    /// Appends everything before the body to `out` and gives the body, so that it need not be copied.
    pub fn encode_head(&self, out: &mut BytesMut) -> &Bytes {
        match self {
            Self::Bind { client, codec, exactly_once } => {
                out.put_u8(BIND);
                out.put_u32_le(*client);
                out.put_u8(*codec);
                out.put_u8(u8::from(*exactly_once));
            }
            Self::Bound { client, session, slots, seat, renewal } => {
                out.put_u8(BOUND);
                out.put_u32_le(*client);
                out.put_u64_le(*session);
                out.put_u32_le(*slots);
                out.put_u64_le(*seat);
                out.put_u64_le(u64::try_from(renewal.as_micros()).unwrap_or(u64::MAX));
            }
            Self::Rejected { client, reason } => {
                out.put_u8(REJECTED);
                out.put_u32_le(*client);
                out.put_u8(*reason as u8);
            }
            Self::Request { client, session, call, behind, method, signature, semantics, budget, body } => {
                put_call(out, REQUEST, *client, *session, *call);
                out.put_u32_le(*behind);
                out.put_u32_le(*method);
                out.put_u32_le(*signature);
                out.put_u8(*semantics as u8);
                out.put_u64_le(u64::try_from(budget.as_micros()).unwrap_or(u64::MAX));
                put_count(out, body.len());
                return body;
            }
            Self::Reply { client, session, call, verdict } => {
                put_call(out, REPLY, *client, *session, *call);
                match verdict {
                    Verdict::Done(body) => {
                        out.put_u8(DONE);
                        put_count(out, body.len());
                        return body;
                    }
                    Verdict::Refused(refusal) => {
                        out.put_u8(REFUSED);
                        out.put_u8(*refusal as u8);
                    }
                    Verdict::Doubtful(doubt) => {
                        out.put_u8(DOUBTFUL);
                        out.put_u8(*doubt as u8);
                    }
                }
            }
            Self::Working { client, session, call } => put_call(out, WORKING, *client, *session, *call),
            Self::Cancel { client, session, call } => put_call(out, CANCEL, *client, *session, *call),
            Self::Lost { client, session } => {
                out.put_u8(LOST);
                out.put_u32_le(*client);
                out.put_u64_le(*session);
            }
            Self::Ask { client, session } => {
                out.put_u8(ASK);
                out.put_u32_le(*client);
                out.put_u64_le(*session);
            }
            Self::Renew { client, session } => {
                out.put_u8(RENEW);
                out.put_u32_le(*client);
                out.put_u64_le(*session);
            }
            Self::Exterminate { client } => {
                out.put_u8(EXTERMINATE);
                out.put_u32_le(*client);
            }
            Self::Exterminated { client } => {
                out.put_u8(EXTERMINATED);
                out.put_u32_le(*client);
            }
        }
        &NO_BODY
    }
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        let body = self.encode_head(out);
        out.put_slice(body);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let kind = take_u8(input, "message kind")?;
        let client = take_u32(input, "client number")?;
        Ok(match kind {
            BIND => Self::Bind {
                client,
                codec: take_u8(input, "codec")?,
                exactly_once: match take_u8(input, "wish for a seat")? {
                    0 => false,
                    1 => true,
                    other => {
                        return Err(WireError::Invalid { what: "wish for a seat", value: other.into() });
                    }
                },
            },
            BOUND => Self::Bound {
                client,
                session: take_u64(input, "session")?,
                slots: take_u32(input, "slots")?,
                seat: take_u64(input, "seat")?,
                renewal: Duration::from_micros(take_u64(input, "renewal")?),
            },
            REJECTED => Self::Rejected { client, reason: Rejection::take(input)? },
            REQUEST => Self::Request {
                client,
                session: take_u64(input, "session")?,
                call: take_call(input)?,
                behind: take_u32(input, "acknowledgement")?,
                method: take_u32(input, "method")?,
                signature: take_u32(input, "signature")?,
                semantics: match take_u8(input, "semantics")? {
                    0 => Semantics::AtMostOnce,
                    1 => Semantics::Idempotent,
                    2 => Semantics::OneWay,
                    3 => Semantics::ExactlyOnce,
                    other => return Err(WireError::Invalid { what: "semantics", value: other.into() }),
                },
                budget: Duration::from_micros(take_u64(input, "budget")?),
                body: take_bytes(input, "arguments")?,
            },
            REPLY => Self::Reply {
                client,
                session: take_u64(input, "session")?,
                call: take_call(input)?,
                verdict: match take_u8(input, "verdict")? {
                    DONE => Verdict::Done(take_bytes(input, "result")?),
                    REFUSED => Verdict::Refused(Refusal::take(input)?),
                    DOUBTFUL => Verdict::Doubtful(Doubt::take(input)?),
                    other => return Err(WireError::Invalid { what: "verdict", value: other.into() }),
                },
            },
            WORKING => {
                Self::Working { client, session: take_u64(input, "session")?, call: take_call(input)? }
            }
            CANCEL => Self::Cancel { client, session: take_u64(input, "session")?, call: take_call(input)? },
            LOST => Self::Lost { client, session: take_u64(input, "session")? },
            ASK => Self::Ask { client, session: take_u64(input, "session")? },
            RENEW => Self::Renew { client, session: take_u64(input, "session")? },
            EXTERMINATE => Self::Exterminate { client },
            EXTERMINATED => Self::Exterminated { client },
            other => return Err(WireError::Invalid { what: "message kind", value: other.into() }),
        })
    }
}

fn put_call(out: &mut BytesMut, kind: u8, client: u32, session: u64, call: CallId) {
    // At once: this is written for every call, and each piece would be a look at the room that is left.
    let mut head = [0; CALL_BYTES];
    head[0] = kind;
    head[1..5].copy_from_slice(&client.to_le_bytes());
    head[5..13].copy_from_slice(&session.to_le_bytes());
    head[13..21].copy_from_slice(&call.sequence.to_le_bytes());
    head[21..].copy_from_slice(&call.slot.to_le_bytes());
    out.put_slice(&head);
}

pub(super) fn put_call_id(out: &mut BytesMut, call: CallId) {
    out.put_u64_le(call.sequence);
    out.put_u32_le(call.slot);
}

pub(super) fn take_call(input: &mut Bytes) -> Result<CallId, WireError> {
    Ok(CallId { sequence: take_u64(input, "sequence number")?, slot: take_u32(input, "slot")? })
}

/// The body of what has none.
static NO_BODY: Bytes = Bytes::new();

/// What begins every message about a call.
const CALL_BYTES: usize = 25;

const BIND: u8 = 1;
const BOUND: u8 = 2;
const REJECTED: u8 = 3;
const REQUEST: u8 = 4;
const REPLY: u8 = 5;
const WORKING: u8 = 6;
const CANCEL: u8 = 7;
const LOST: u8 = 8;
const ASK: u8 = 9;
const RENEW: u8 = 10;
const EXTERMINATE: u8 = 11;
const EXTERMINATED: u8 = 12;

const DONE: u8 = 0;
const REFUSED: u8 = 1;
const DOUBTFUL: u8 = 2;
