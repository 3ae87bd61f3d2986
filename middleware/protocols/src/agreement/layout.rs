//! The bytes of messages and records.
//!
//! Guarantee   every length is checked before anything is reserved, and there is one encoding of each value; see
//!             `docs/wire.md` and `docs/disk.md`.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::message::{Content, Entry, Gap, Members, Message, Proposal, Record};
use crate::machine::ProcessId;
use crate::wire::{
    Wire, WireError, put_bytes, put_count, take_bytes, take_count, take_u8, take_u32, take_u64,
};

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Ask { term, is_vote, last, chosen } => {
                out.put_u8(if *is_vote { 2 } else { 1 });
                put_numbers(out, [*term, last.0, last.1, *chosen]);
            }
            Self::Answer { term, is_vote, granted } => {
                out.put_u8(if *is_vote { 4 } else { 3 });
                out.put_u64_le(*term);
                out.put_u8((*granted).into());
            }
            Self::Lend { term, after, entries } => {
                out.put_u8(5);
                put_numbers(out, [*term, after.0, after.1]);
                put_entries(out, entries);
            }
            Self::Append { term, after, chosen, round, entries } => {
                out.put_u8(6);
                put_numbers(out, [*term, after.0, after.1, *chosen, *round]);
                put_entries(out, entries);
            }
            Self::Appended { term, round, held } => {
                out.put_u8(if held.is_ok() { 7 } else { 8 });
                put_numbers(out, [*term, *round]);
                match held {
                    Ok(held) => out.put_u64_le(*held),
                    Err(gap) => put_numbers(out, [gap.after, gap.try_after]),
                }
            }
            Self::Chunk { term, round, index, total, offset, data } => {
                out.put_u8(9);
                put_numbers(out, [*term, *round, *index, *total, *offset]);
                put_bytes(out, data);
            }
            Self::ChunkTaken { term, round, index, offset } => {
                out.put_u8(10);
                put_numbers(out, [*term, *round, *index, *offset]);
            }
            Self::Propose(proposals) => {
                out.put_u8(11);
                put_count(out, proposals.len());
                for proposal in proposals.iter() {
                    proposal.encode(out);
                }
            }
            Self::ReadAsk(ask) => {
                out.put_u8(12);
                out.put_u64_le(*ask);
            }
            Self::ReadAnswer { ask, index } => {
                out.put_u8(13);
                put_numbers(out, [*ask, *index]);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "log message")? {
            kind @ (1 | 2) => {
                let [term, index, last_term, chosen] = take_numbers(input, "question for a vote")?;
                Ok(Self::Ask { term, is_vote: kind == 2, last: (index, last_term), chosen })
            }
            kind @ (3 | 4) => Ok(Self::Answer {
                term: take_u64(input, "voter's term")?,
                is_vote: kind == 4,
                granted: match take_u8(input, "vote")? {
                    0 => false,
                    1 => true,
                    other => return Err(invalid("vote", other)),
                },
            }),
            5 => {
                let [term, index, after_term] = take_numbers(input, "lent entries")?;
                Ok(Self::Lend { term, after: (index, after_term), entries: take_entries(input)? })
            }
            6 => {
                let [term, index, after_term, chosen, round] = take_numbers(input, "entries")?;
                let entries = take_entries(input)?;
                Ok(Self::Append { term, after: (index, after_term), chosen, round, entries })
            }
            kind @ (7 | 8) => {
                let [term, round] = take_numbers(input, "answer to entries")?;
                let held = if kind == 7 {
                    Ok(take_u64(input, "held place")?)
                } else {
                    let [after, try_after] = take_numbers(input, "gap")?;
                    Err(Gap { after, try_after })
                };
                Ok(Self::Appended { term, round, held })
            }
            9 => {
                let [term, round, index, total, offset] = take_numbers(input, "chunk")?;
                let data = take_bytes(input, "chunk")?;
                Ok(Self::Chunk { term, round, index, total, offset, data })
            }
            10 => {
                let [term, round, index, offset] = take_numbers(input, "answer to a chunk")?;
                Ok(Self::ChunkTaken { term, round, index, offset })
            }
            11 => {
                keep_apart(input);
                let count = take_count(input, PROPOSAL_BYTES, "proposals")?;
                Ok(Self::Propose((0..count).map(|_| Proposal::decode(input)).collect::<Result<_, _>>()?))
            }
            12 => Ok(Self::ReadAsk(take_u64(input, "question for a read")?)),
            13 => {
                let [ask, index] = take_numbers(input, "answer for a read")?;
                Ok(Self::ReadAnswer { ask, index })
            }
            other => Err(invalid("log message", other)),
        }
    }
}

impl Wire for Record {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Promise { term, voted } => {
                out.put_u8(1);
                out.put_u64_le(*term);
                match voted {
                    None => out.put_u8(0),
                    Some(voted) => {
                        out.put_u8(1);
                        voted.encode(out);
                    }
                }
            }
            Self::Entries { first, entries } => {
                out.put_u8(2);
                out.put_u64_le(*first);
                put_entries(out, entries);
            }
            Self::Part { total, offset, data } => {
                out.put_u8(3);
                put_numbers(out, [*total, *offset]);
                put_bytes(out, data);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "log record")? {
            1 => Ok(Self::Promise {
                term: take_u64(input, "promised term")?,
                voted: match take_u8(input, "vote")? {
                    0 => None,
                    1 => Some(ProcessId::decode(input)?),
                    other => return Err(invalid("vote", other)),
                },
            }),
            2 => Ok(Self::Entries { first: take_u64(input, "first place")?, entries: take_entries(input)? }),
            3 => {
                let [total, offset] = take_numbers(input, "part of a snapshot")?;
                Ok(Self::Part { total, offset, data: take_bytes(input, "part of a snapshot")? })
            }
            other => Err(invalid("log record", other)),
        }
    }
}

impl Wire for Proposal {
    fn encode(&self, out: &mut BytesMut) {
        self.origin.encode(out);
        out.put_u64_le(self.sequence);
        out.put_u32_le(self.behind);
        out.put_u64_le(self.fence);
        put_bytes(out, &self.payload);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            origin: ProcessId::decode(input)?,
            sequence: take_u64(input, "proposal's sequence")?,
            behind: take_u32(input, "proposal's oldest")?,
            fence: take_u64(input, "proposal's fence")?,
            payload: take_bytes(input, "proposal")?,
        })
    }
}

impl Wire for Entry {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.term);
        match &self.content {
            Content::Nothing => out.put_u8(0),
            Content::Command(proposal) => {
                out.put_u8(1);
                proposal.encode(out);
            }
            Content::Members(members) => {
                out.put_u8(2);
                members.encode(out);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let term = take_u64(input, "entry's term")?;
        let content = match take_u8(input, "entry")? {
            0 => Content::Nothing,
            1 => Content::Command(Proposal::decode(input)?),
            2 => Content::Members(Arc::new(Members::decode(input)?)),
            other => return Err(invalid("entry", other)),
        };
        Ok(Self { term, content })
    }
}

impl Wire for Members {
    fn encode(&self, out: &mut BytesMut) {
        for set in [&self.voters, &self.learners] {
            put_count(out, set.len());
            for member in set {
                member.encode(out);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { voters: take_members(input)?, learners: take_members(input)? })
    }
}

/// Members stand in ascending order, each once: so there is one encoding of a set.
fn take_members(input: &mut Bytes) -> Result<BTreeSet<ProcessId>, WireError> {
    let count = take_count(input, size_of::<ProcessId>(), "members")?;
    let mut members = BTreeSet::new();
    for _ in 0..count {
        let member = ProcessId::decode(input)?;
        if members.last().is_some_and(|last| *last >= member) {
            return Err(WireError::Invalid { what: "member out of order", value: member.node });
        }
        members.insert(member);
    }
    Ok(members)
}

fn put_entries(out: &mut BytesMut, entries: &[Entry]) {
    put_count(out, entries.len());
    for entry in entries {
        entry.encode(out);
    }
}

fn take_entries(input: &mut Bytes) -> Result<Arc<[Entry]>, WireError> {
    keep_apart(input);
    let count = take_count(input, NOTHING_BYTES, "entries")?;
    (0..count).map(|_| Entry::decode(input)).collect()
}

/// Payloads live long and share what they came in. A copy holds nothing but them, where a transport's buffer may also hold
/// whatever else came with them.
fn keep_apart(input: &mut Bytes) {
    *input = Bytes::copy_from_slice(input);
}

fn put_numbers<const N: usize>(out: &mut BytesMut, numbers: [u64; N]) {
    for number in numbers {
        out.put_u64_le(number);
    }
}

fn take_numbers<const N: usize>(input: &mut Bytes, what: &'static str) -> Result<[u64; N], WireError> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = take_u64(input, what)?;
    }
    Ok(numbers)
}

fn invalid(what: &'static str, value: u8) -> WireError {
    WireError::Invalid { what, value: value.into() }
}

/// The least bytes of an entry.
const NOTHING_BYTES: usize = 9;
/// The least bytes of a proposal.
const PROPOSAL_BYTES: usize = 40;
