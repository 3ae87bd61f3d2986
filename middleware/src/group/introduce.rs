//! Members tell each other where the others can be dialled, so that a joiner needs the address of only one; and, where sides
//! go on apart, which side they are on.
//!
//! Trust       only the word of a member of the view is taken, and only about members: as hearsay, which a node tries last
//!             and forgets first.
//! Method      a joiner hears of the others before it is in a view itself: what cannot be judged yet waits for the next view.
//! Format      behind the kind: count u16, then for each: node u64, length u16, address as text; of a side its number u64;
//!             little-endian.
//! Limits      [`INTRODUCED_MAX`] addresses in one introduction, [`EARLY_MAX`] introductions that wait.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::ProcessId;
use quorate_protocols::stack::View;
use quorate_transports::{Address, NodeId};

use tokio::sync::mpsc;

use super::{ASIDE_INTRODUCTION, ASIDE_SIDE};
use crate::driver::send_aside;
use crate::node::{Channel, Node};
#[cfg(feature = "secrets")]
use quorate_protocols::guard::Crypto as _;

/// The introductions of one member of one group.
pub(super) struct Introducer {
    node: Node,
    channel: Channel,
    me: ProcessId,
    book: Book,
    /// Where words about sides go, if they are wanted.
    line: Option<mpsc::Sender<(NodeId, u64)>>,
    /// Proves that whoever introduces has the group's secret, if it has one.
    #[cfg(feature = "secrets")]
    seals: Option<super::secret::Seals>,
}

impl Introducer {
    pub(super) fn new(node: Node, channel: Channel, me: ProcessId) -> Self {
        Self {
            node,
            channel,
            me,
            book: Book::default(),
            line: None,
            #[cfg(feature = "secrets")]
            seals: None,
        }
    }

    /// Passes on what others say about their sides.
    pub(super) fn hearing_sides(mut self, line: Option<mpsc::Sender<(NodeId, u64)>>) -> Self {
        self.line = line;
        self
    }

    /// Members of a group with a secret prove that they have it.
    #[cfg(feature = "secrets")]
    pub(super) fn sealed(mut self, seals: Option<super::secret::Seals>) -> Self {
        self.seals = seals;
        self
    }

    #[cfg(feature = "secrets")]
    fn prove(&self, known: &[u8], frame: &mut Vec<u8>) {
        if let Some(seals) = &self.seals {
            frame.extend_from_slice(&seals.vouch(&said_by(INTRODUCTION, self.me.node, known)));
        }
    }

    #[cfg(feature = "secrets")]
    fn is_proved(&self, kind: &[u8], from: NodeId, frame: &mut Bytes) -> bool {
        let Some(seals) = &self.seals else { return true };
        let Some(proof) = frame.first_chunk::<32>().copied() else { return false };
        frame.advance(proof.len());
        seals.believes(&said_by(kind, from.0, frame), &proof)
    }

    /// Tells every other member of a new view where the members are, as far as this one knows.
    pub(super) fn introduce(&mut self, view: &View) {
        let members = view.members.iter().map(|member| NodeId(member.node)).collect();
        // What waited for this view may be what this member has to tell.
        self.note(|book| book.begin(members));
        let mut known: Vec<(NodeId, Address)> = Vec::new();
        for member in view.members.iter() {
            let node = NodeId(member.node);
            let addresses =
                if *member == self.me { self.node.addresses() } else { self.node.addresses_of(node) };
            known.extend(addresses.into_iter().map(|address| (node, address)));
        }
        let mut frame = vec![ASIDE_INTRODUCTION];
        let known = encode(&known);
        #[cfg(feature = "secrets")]
        self.prove(&known, &mut frame);
        frame.extend_from_slice(&known);
        for member in view.members.iter().filter(|member| **member != self.me) {
            send_aside(&self.node, self.channel, NodeId(member.node), &frame);
        }
    }

    /// Notes what another member told. Bad bytes are dropped: an introduction is a help, not a promise.
    pub(super) fn hear(&mut self, from: NodeId, frame: Bytes) {
        #[cfg(feature = "secrets")]
        let mut frame = frame;
        #[cfg(feature = "secrets")]
        if !self.is_proved(INTRODUCTION, from, &mut frame) {
            return tracing::debug!(%from, "unproved introduction dropped");
        }
        match decode(frame) {
            Some(known) => self.note(|book| book.hear(from, known)),
            None => tracing::debug!(%from, "malformed introduction dropped"),
        }
    }

    /// Another node says which side it is on. What finds no room is said again.
    pub(super) fn hear_of_side(&self, from: NodeId, frame: Bytes) {
        let mut frame = frame;
        #[cfg(feature = "secrets")]
        if !self.is_proved(SIDE, from, &mut frame) {
            return tracing::debug!(%from, "unproved word about a side dropped");
        }
        if let (Some(line), Ok(side)) = (&self.line, frame.try_get_u64_le()) {
            let _ = line.try_send((from, side));
        }
    }

    fn note(&mut self, read: impl FnOnce(&mut Book) -> Vec<(NodeId, Address)>) {
        let known = read(&mut self.book).into_iter().filter(|(node, _)| node.0 != self.me.node);
        known.for_each(|(node, address)| self.node.hear_address(node, address));
    }
}

/// Says which side this node is on.
pub(super) struct Sides {
    pub(super) node: Node,
    pub(super) channel: Channel,
    #[cfg(feature = "secrets")]
    pub(super) seals: Option<super::secret::Seals>,
}

impl Sides {
    /// Tells these nodes; may be lost.
    pub(super) fn tell(&self, to: &[u64], side: u64) {
        let said = side.to_le_bytes();
        let mut frame = vec![ASIDE_SIDE];
        #[cfg(feature = "secrets")]
        if let Some(seals) = &self.seals {
            frame.extend_from_slice(&seals.vouch(&said_by(SIDE, self.node.identity().node.0, &said)));
        }
        frame.extend_from_slice(&said);
        to.iter().for_each(|node| send_aside(&self.node, self.channel, NodeId(*node), &frame));
    }
}

/// Whose word is taken, about whom.
#[derive(Default)]
struct Book {
    /// Of the present view.
    members: Vec<NodeId>,
    /// What was told by those who may be members of the next view, or about those; the last of each.
    early: VecDeque<(NodeId, Vec<(NodeId, Address)>)>,
}

impl Book {
    /// A view begins: gives what can be believed now.
    fn begin(&mut self, members: Vec<NodeId>) -> Vec<(NodeId, Address)> {
        self.members = members;
        let early = std::mem::take(&mut self.early);
        early.into_iter().flat_map(|(from, told)| self.believe(from, &told)).collect()
    }

    /// Gives what can be believed now, and keeps what may be later.
    fn hear(&mut self, from: NodeId, told: Vec<(NodeId, Address)>) -> Vec<(NodeId, Address)> {
        let believed = self.believe(from, &told);
        if believed.len() < told.len() {
            self.early.retain(|(earlier, _)| *earlier != from);
            self.early.push_back((from, told));
            if self.early.len() > EARLY_MAX {
                self.early.pop_front();
            }
        }
        believed
    }

    fn believe(&self, from: NodeId, told: &[(NodeId, Address)]) -> Vec<(NodeId, Address)> {
        let is_member = |node: &NodeId| self.members.contains(node);
        let told = told.iter().filter(|(node, _)| is_member(&from) && is_member(node));
        told.cloned().collect()
    }
}

/// What is proved: that it is of this kind, by this node.
#[cfg(feature = "secrets")]
fn said_by(kind: &[u8], node: u64, known: &[u8]) -> Vec<u8> {
    let mut said = kind.to_vec();
    said.extend_from_slice(&node.to_le_bytes());
    said.extend_from_slice(known);
    said
}

pub(super) fn encode(known: &[(NodeId, Address)]) -> Bytes {
    let mut out = BytesMut::new();
    let known = &known[..known.len().min(INTRODUCED_MAX)];
    out.put_u16_le(known.len() as u16);
    for (node, address) in known {
        let text = address.as_str();
        out.put_u64_le(node.0);
        // At most `Address::BYTES_MAX`, which fits.
        out.put_u16_le(text.len() as u16);
        out.put_slice(text.as_bytes());
    }
    out.freeze()
}

/// What can be read of it: another build may have transports that this one does not know.
pub(super) fn decode(mut frame: Bytes) -> Option<Vec<(NodeId, Address)>> {
    let count = usize::from(frame.try_get_u16_le().ok()?);
    if count > INTRODUCED_MAX {
        return None;
    }
    let mut known = Vec::new();
    for _ in 0..count {
        let node = NodeId(frame.try_get_u64_le().ok()?);
        let length = usize::from(frame.try_get_u16_le().ok()?);
        if length > frame.len() || length > Address::BYTES_MAX {
            return None;
        }
        let text = frame.split_to(length);
        let address = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
        known.extend(address.map(|address| (node, address)));
    }
    frame.is_empty().then_some(known)
}

#[cfg(feature = "secrets")]
const INTRODUCTION: &[u8] = b"introduction";
#[cfg(feature = "secrets")]
const SIDE: &[u8] = b"side of a group";

/// Addresses in one introduction: far more than members of a group.
const INTRODUCED_MAX: usize = 1024;

/// Introductions that wait for the next view: each of them tells of all members.
const EARLY_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_introduction_reads_back_and_garbage_does_not() {
        let known: Vec<(NodeId, Address)> = [(1, "tcp://127.0.0.1:7"), (2, "mem://two")]
            .map(|(id, at)| (NodeId(id), at.parse().unwrap()))
            .into();
        let frame = encode(&known);
        assert_eq!(decode(frame.clone()), Some(known));
        for length in 0..frame.len() {
            assert_eq!(decode(frame.slice(..length)), None, "cut after {length} bytes");
        }
    }
    #[test]
    fn what_cannot_be_read_of_an_introduction_costs_only_itself() {
        let known = [(NodeId(1), "tcp://127.0.0.1:7".parse().unwrap())];
        let mut frame = BytesMut::from(&encode(&known)[..]);
        frame[0] = 2;
        frame.put_u64_le(3);
        frame.put_u16_le(3);
        frame.put_slice(b"\xff??");
        assert_eq!(decode(frame.freeze()), Some(known.to_vec()));
    }

    #[test]
    fn only_members_are_believed_and_only_about_members() {
        let at = |node: u64| (NodeId(node), format!("mem://{node}").parse::<Address>().unwrap());
        let nodes = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<Vec<_>>();
        let mut book = Book::default();
        // Before the first view nobody is, and a stranger's word is never taken.
        assert_eq!(book.hear(NodeId(1), vec![at(1), at(2), at(9)]), []);
        assert_eq!(book.hear(NodeId(7), (0..1_000).map(at).collect()), []);
        assert_eq!(book.begin(nodes(&[1, 2, 3])), [at(1), at(2)]);
        assert_eq!(book.hear(NodeId(8), vec![at(2), at(3)]), []);
        // A member that is ahead tells of whom this one does not know yet.
        assert_eq!(book.hear(NodeId(2), vec![at(3), at(4)]), [at(3)]);
        assert_eq!(book.begin(nodes(&[1, 2, 3, 4])), [at(3), at(4)]);
        assert_eq!(book.begin(nodes(&[1, 2, 3, 4, 7, 8])), []);
        for stranger in 100..200 {
            book.hear(NodeId(stranger), vec![at(1)]);
        }
        assert_eq!(book.early.len(), EARLY_MAX);
    }
}
