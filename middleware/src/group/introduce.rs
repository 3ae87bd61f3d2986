//! Members tell each other where the others can be dialled, so that a joiner needs the address of only one.
//!
//! Format      count u16, then for each: node u64, length u16, address as text; little-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::ProcessId;
use quorate_protocols::stack::View;
use quorate_transports::{Address, NodeId};

use crate::driver::send_aside;
use crate::node::{Channel, Node};

/// The introductions of one member of one group.
pub(super) struct Introducer {
    node: Node,
    channel: Channel,
    me: ProcessId,
}

impl Introducer {
    pub(super) fn new(node: Node, channel: Channel, me: ProcessId) -> Self {
        Self { node, channel, me }
    }

    /// Tells every other member of a new view where the members are, as far as this one knows.
    pub(super) fn introduce(&self, view: &View) {
        let mut known: Vec<(NodeId, Address)> = Vec::new();
        for member in view.members.iter() {
            let node = NodeId(member.node);
            let addresses =
                if *member == self.me { self.node.addresses() } else { self.node.addresses_of(node) };
            known.extend(addresses.into_iter().map(|address| (node, address)));
        }
        let frame = encode(&known);
        for member in view.members.iter().filter(|member| **member != self.me) {
            send_aside(&self.node, self.channel, NodeId(member.node), &frame);
        }
    }

    /// Notes what another member told. Bad bytes are dropped: an introduction is a help, not a promise.
    pub(super) fn hear(&self, from: NodeId, frame: Bytes) {
        match decode(frame) {
            Some(known) => {
                let others = known.into_iter().filter(|(node, _)| node.0 != self.me.node);
                others.for_each(|(node, address)| self.node.add_address(node, address));
            }
            None => tracing::debug!(%from, "malformed introduction dropped"),
        }
    }
}

fn encode(known: &[(NodeId, Address)]) -> Bytes {
    let mut out = BytesMut::new();
    let known = &known[..known.len().min(INTRODUCED_MAX)];
    out.put_u16_le(known.len() as u16);
    for (node, address) in known {
        let text = address.to_string();
        out.put_u64_le(node.0);
        out.put_u16_le(text.len().min(ADDRESS_BYTES_MAX) as u16);
        out.put_slice(&text.as_bytes()[..text.len().min(ADDRESS_BYTES_MAX)]);
    }
    out.freeze()
}

fn decode(mut frame: Bytes) -> Option<Vec<(NodeId, Address)>> {
    let count = usize::from(frame.try_get_u16_le().ok()?);
    if count > INTRODUCED_MAX {
        return None;
    }
    let mut known = Vec::new();
    for _ in 0..count {
        let node = NodeId(frame.try_get_u64_le().ok()?);
        let length = usize::from(frame.try_get_u16_le().ok()?);
        if length > frame.len() || length > ADDRESS_BYTES_MAX {
            return None;
        }
        let text = frame.split_to(length);
        known.push((node, std::str::from_utf8(&text).ok()?.parse().ok()?));
    }
    frame.is_empty().then_some(known)
}

/// Addresses in one introduction: far more than members of a group.
const INTRODUCED_MAX: usize = 1024;

/// Bytes of one address.
const ADDRESS_BYTES_MAX: usize = 512;

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
}
