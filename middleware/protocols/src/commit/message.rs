//! What travels and what is kept: fixed layouts, little-endian, one tag byte first.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::TxnId;
use crate::wire::{Wire, WireError, put_bytes, put_count, take_bytes, take_count, take_u8, take_u64};

/// A participant's answer to a prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// Prepared: able to commit and to abort, come what may.
    Yes,
    /// Aborted already.
    No,
    /// Nothing was changed, so the outcome does not matter here; takes no further part.
    ReadOnly,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Make it permanent.
    Commit,
    /// Undo it.
    Abort,
}

/// The age of a transaction among those of its coordinator: incarnation, then sequence.
pub(super) type Age = (u64, u64);

/// What managers tell each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Coordinator to participant: prepare and vote.
    Prepare {
        /// The transaction.
        txn: TxnId,
        /// Incarnation and sequence of the coordinator's oldest transaction that is not forgotten.
        floor: (u64, u64),
        /// Everyone who takes part, so that they can ask each other.
        participants: Arc<[u64]>,
        /// This participant's part.
        payload: Bytes,
    },
    /// Participant to coordinator.
    Vote {
        /// The transaction.
        txn: TxnId,
        /// The answer.
        vote: Vote,
    },
    /// Coordinator to participant, or the answer to a query.
    Decided {
        /// The transaction.
        txn: TxnId,
        /// For good.
        decision: Decision,
    },
    /// Participant to coordinator: the commit is durable here.
    Acknowledged(TxnId),
    /// Participant to coordinator or to another participant: what became of it?
    Query(TxnId),
}

/// What must survive a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Participant: voted yes.
    Prepared {
        /// The transaction.
        txn: TxnId,
        /// Everyone who takes part.
        participants: Arc<[u64]>,
        /// What was prepared.
        payload: Bytes,
    },
    /// Participant: it is over here.
    Finished {
        /// The transaction.
        txn: TxnId,
        /// How.
        ending: Ending,
    },
    /// Coordinator: everyone may commit.
    Committed {
        /// The transaction.
        txn: TxnId,
        /// Who must acknowledge.
        waiting: Arc<[u64]>,
    },
    /// Coordinator: all have acknowledged.
    Forgotten(TxnId),
    /// Participant, in a snapshot only: older transactions of this coordinator are over.
    Floor(TxnId),
}

/// How a transaction ended at a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The resource has committed.
    Committed,
    /// The resource has aborted, or will never be asked.
    Aborted,
    /// Nothing to decide.
    ReadOnly,
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Prepare { txn, floor, participants, payload } => {
                out.put_u8(1);
                txn.encode(out);
                out.put_u64_le(floor.0);
                out.put_u64_le(floor.1);
                put_nodes(out, participants);
                put_bytes(out, payload);
            }
            Self::Vote { txn, vote } => {
                out.put_u8(2);
                txn.encode(out);
                out.put_u8(match vote {
                    Vote::Yes => 1,
                    Vote::No => 2,
                    Vote::ReadOnly => 3,
                });
            }
            Self::Decided { txn, decision } => {
                out.put_u8(3);
                txn.encode(out);
                out.put_u8(match decision {
                    Decision::Commit => 1,
                    Decision::Abort => 2,
                });
            }
            Self::Acknowledged(txn) => {
                out.put_u8(4);
                txn.encode(out);
            }
            Self::Query(txn) => {
                out.put_u8(5);
                txn.encode(out);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "commit message")? {
            1 => Ok(Self::Prepare {
                txn: TxnId::decode(input)?,
                floor: (take_u64(input, "floor incarnation")?, take_u64(input, "floor sequence")?),
                participants: take_nodes(input)?,
                payload: take_bytes(input, "prepare payload")?,
            }),
            2 => Ok(Self::Vote {
                txn: TxnId::decode(input)?,
                vote: match take_u8(input, "vote")? {
                    1 => Vote::Yes,
                    2 => Vote::No,
                    3 => Vote::ReadOnly,
                    other => return Err(invalid("vote", other)),
                },
            }),
            3 => Ok(Self::Decided {
                txn: TxnId::decode(input)?,
                decision: match take_u8(input, "decision")? {
                    1 => Decision::Commit,
                    2 => Decision::Abort,
                    other => return Err(invalid("decision", other)),
                },
            }),
            4 => Ok(Self::Acknowledged(TxnId::decode(input)?)),
            5 => Ok(Self::Query(TxnId::decode(input)?)),
            other => Err(invalid("commit message", other)),
        }
    }
}

impl Wire for Record {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Prepared { txn, participants, payload } => {
                out.put_u8(1);
                txn.encode(out);
                put_nodes(out, participants);
                put_bytes(out, payload);
            }
            Self::Finished { txn, ending } => {
                out.put_u8(2);
                txn.encode(out);
                out.put_u8(match ending {
                    Ending::Committed => 1,
                    Ending::Aborted => 2,
                    Ending::ReadOnly => 3,
                });
            }
            Self::Committed { txn, waiting } => {
                out.put_u8(3);
                txn.encode(out);
                put_nodes(out, waiting);
            }
            Self::Forgotten(txn) => {
                out.put_u8(4);
                txn.encode(out);
            }
            Self::Floor(txn) => {
                out.put_u8(5);
                txn.encode(out);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "commit record")? {
            1 => Ok(Self::Prepared {
                txn: TxnId::decode(input)?,
                participants: take_nodes(input)?,
                payload: take_bytes(input, "prepared payload")?,
            }),
            2 => Ok(Self::Finished {
                txn: TxnId::decode(input)?,
                ending: match take_u8(input, "ending")? {
                    1 => Ending::Committed,
                    2 => Ending::Aborted,
                    3 => Ending::ReadOnly,
                    other => return Err(invalid("ending", other)),
                },
            }),
            3 => Ok(Self::Committed { txn: TxnId::decode(input)?, waiting: take_nodes(input)? }),
            4 => Ok(Self::Forgotten(TxnId::decode(input)?)),
            5 => Ok(Self::Floor(TxnId::decode(input)?)),
            other => Err(invalid("commit record", other)),
        }
    }
}

impl Wire for TxnId {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.node);
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.sequence);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            node: take_u64(input, "coordinator")?,
            incarnation: take_u64(input, "coordinator's incarnation")?,
            sequence: take_u64(input, "transaction sequence")?,
        })
    }
}

fn put_nodes(out: &mut BytesMut, nodes: &[u64]) {
    put_count(out, nodes.len());
    for node in nodes {
        out.put_u64_le(*node);
    }
}

fn take_nodes(input: &mut Bytes) -> Result<Arc<[u64]>, WireError> {
    let count = take_count(input, size_of::<u64>(), "participants")?;
    (0..count).map(|_| take_u64(input, "participant")).collect()
}

fn invalid(what: &'static str, value: u8) -> WireError {
    WireError::Invalid { what, value: value.into() }
}
