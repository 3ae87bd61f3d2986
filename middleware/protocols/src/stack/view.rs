//! Views: who is in the group, as all its members agree.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::ProcessId;
use crate::wire::{Wire, WireError, put_count, take_count, take_u8, take_u16, take_u64};

/// Names a view: the group's unique number, then the view's place in its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId {
    /// Tells groups of the same name apart, for example one that was created anew.
    pub group: u64,
    /// Grows by one with each view.
    pub number: u64,
}

impl ViewId {
    /// The id of the view after this one.
    pub const fn next(self) -> Self {
        Self { group: self.group, number: self.number + 1 }
    }

    /// True when `other` is a view of the same group that comes later.
    pub fn is_before(self, other: Self) -> bool {
        self.group == other.group && self.number < other.number
    }
}

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.number)
    }
}

/// Members of one view at most. Tables of a view grow with the square of its members, and so does the detector's traffic;
/// groups are meant for some ten.
pub const MEMBERS_MAX: usize = 256;

/// An agreed membership, of at most [`MEMBERS_MAX`]. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its name.
    pub id: ViewId,
    /// The members, longest-standing first: a member's place is its *rank*.
    pub members: Arc<[ProcessId]>,
    /// For each member by rank: whether it had the group's state when the view was proposed.
    pub synced: Arc<[bool]>,
    /// Fewer members than this decide nothing, as long as the view has so many: the group's configured quorum, given by its
    /// founder. 1 asks for nothing more than a majority.
    pub quorum_min: u16,
}

impl View {
    /// A member's rank; `None` for a stranger.
    pub fn rank(&self, process: ProcessId) -> Option<usize> {
        self.members.iter().position(|&member| member == process)
    }

    /// True for members.
    pub fn contains(&self, process: ProcessId) -> bool {
        self.rank(process).is_some()
    }

    /// All members but one.
    pub fn others(&self, process: ProcessId) -> Arc<[ProcessId]> {
        self.members.iter().copied().filter(|&member| member != process).collect()
    }

    /// True when the members for which `holds` is true may decide for the view: more than half of them, or exactly
    /// half with the longest-standing one among them, and no fewer than the configured quorum or all. Any two quorums
    /// share a member.
    ///
    /// Source: dynamic-linear voting, Jajodia & Mutchler 1990.
    pub fn is_quorum(&self, holds: impl Fn(usize) -> bool) -> bool {
        let count = (0..self.members.len()).filter(|&rank| holds(rank)).count();
        count >= self.least() && self.is_majority(holds)
    }

    /// How many members at least decide, whoever they are: the configured quorum, or all where the view has fewer.
    pub fn least(&self) -> usize {
        usize::from(self.quorum_min).min(self.members.len())
    }

    /// As [`is_quorum`](Self::is_quorum), whatever quorum is configured.
    pub(crate) fn is_majority(&self, holds: impl Fn(usize) -> bool) -> bool {
        let count = (0..self.members.len()).filter(|&rank| holds(rank)).count();
        count * 2 > self.members.len() || (count * 2 == self.members.len() && count > 0 && holds(0))
    }

    /// The member that hands its state to joiners: the longest-standing one that has it.
    pub fn donor(&self) -> Option<ProcessId> {
        self.members.iter().zip(self.synced.iter()).find(|(_, synced)| **synced).map(|(member, _)| *member)
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{", self.id)?;
        for (rank, member) in self.members.iter().enumerate() {
            write!(f, "{}{member}", if rank == 0 { "" } else { " " })?;
        }
        write!(f, "}}")
    }
}

impl Wire for ViewId {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.group);
        out.put_u64_le(self.number);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let (group, number) = (take_u64(input, "group number")?, take_u64(input, "view number")?);
        // The last number is left out, so that the next one always exists.
        if number == u64::MAX {
            return Err(WireError::Invalid { what: "view number", value: number });
        }
        Ok(Self { group, number })
    }
}

impl Wire for View {
    fn encode(&self, out: &mut BytesMut) {
        self.id.encode(out);
        out.put_u16_le(self.quorum_min);
        put_count(out, self.members.len());
        for (member, synced) in self.members.iter().zip(self.synced.iter()) {
            member.encode(out);
            out.put_u8(u8::from(*synced));
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let id = ViewId::decode(input)?;
        let quorum_min = take_u16(input, "configured quorum")?;
        let count = take_count(input, 17, "view members")?;
        if count > MEMBERS_MAX {
            return Err(WireError::Invalid { what: "view members", value: count as u64 });
        }
        let mut members = Vec::with_capacity(count);
        let mut synced = Vec::with_capacity(count);
        for _ in 0..count {
            let member = ProcessId::decode(input)?;
            if members.contains(&member) {
                return Err(WireError::Invalid { what: "repeated view member", value: member.node });
            }
            members.push(member);
            synced.push(match take_u8(input, "synced flag")? {
                0 => false,
                1 => true,
                other => return Err(WireError::Invalid { what: "synced flag", value: u64::from(other) }),
            });
        }
        Ok(Self { id, members: members.into(), synced: synced.into(), quorum_min })
    }
}
