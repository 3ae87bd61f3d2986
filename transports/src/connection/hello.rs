//! The first frame of each side, and whether the two sides fit together. Pure.
//!
//! Layout, little-endian:
//! ```text
//! magic "QRTE" | version_min u16 | version_max u16 | ... what follows belongs to version 1 ...
//! flags u8 (1 = insists, 2 = wants a node) | verdict u8 | codec u16 | message_bytes_max u32 | node u64
//! | incarnation u64 | wanted node u64 | addresses u8 | each: length u16, text
//! ```
//! The dialler speaks first, the answer carries the verdict. Both sides then know both hellos and come to the same
//! conclusion. Magic and versions stay where they are in all versions, so that any two can tell that they differ.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::MESSAGE_BYTES_MIN;
use crate::address::Address;
use crate::identity::{Identity, Incarnation, NodeId};

/// Which codec the bodies of a node's own layers use. 0 means that none is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CodecId(pub u16);

/// What one side says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest and newest protocol version that it speaks.
    pub versions: (u16, u16),
    /// Its codec.
    pub codec: CodecId,
    /// The largest message that it takes, in bytes.
    pub message_bytes_max: u32,
    /// Who it is.
    pub identity: Identity,
    /// Whom the dialler expects to find.
    pub wanted: Option<NodeId>,
    /// The dialler was turned away as a duplicate before, and no other connection came.
    pub insists: bool,
    /// Where it can be dialled; at most [`Hello::ADDRESSES_MAX`].
    pub addresses: Vec<Address>,
}

/// The answering side's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Messages may follow. The dialler's own hello carries this too.
    Accept,
    /// Another connection between the two is preferred, or on its way.
    Duplicate,
    /// The answering side takes no connections any more.
    ShuttingDown,
    /// The two do not fit together: compare the hellos. If they do, the answering side does not want this peer.
    Incompatible,
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The newest version that both speak.
    pub version: u16,
    /// The smaller of both limits, in bytes.
    pub message_bytes_max: usize,
}

/// Compares two hellos; the result is the same on both sides, up to who is called ours.
///
/// # Errors
/// The first [`Mismatch`], naming both sides' values.
pub fn agree(ours: &Hello, theirs: &Hello) -> Result<Agreement, Mismatch> {
    agree_versions(ours.versions, theirs.versions)?;
    if ours.codec != theirs.codec {
        return Err(Mismatch::Codec { ours: ours.codec.0, theirs: theirs.codec.0 });
    }
    for (wanted, found) in [(ours.wanted, theirs.identity), (theirs.wanted, ours.identity)] {
        if let Some(wanted) = wanted
            && wanted != found.node
        {
            return Err(Mismatch::Node { wanted, found });
        }
    }
    if ours.identity.node == theirs.identity.node {
        return Err(Mismatch::SameNode { ours: ours.identity, theirs: theirs.identity });
    }
    let message_bytes_max = ours.message_bytes_max.min(theirs.message_bytes_max) as usize;
    if message_bytes_max < MESSAGE_BYTES_MIN {
        return Err(Mismatch::Limit { ours: ours.message_bytes_max, theirs: theirs.message_bytes_max });
    }
    Ok(Agreement { version: ours.versions.1.min(theirs.versions.1), message_bytes_max })
}

impl Hello {
    /// The protocol versions that this code speaks.
    pub const VERSIONS: (u16, u16) = (1, 1);
    /// The most addresses in a hello.
    pub const ADDRESSES_MAX: usize = 8;
    /// The longest hello in bytes.
    pub const BYTES_MAX: usize = FIXED_BYTES + Self::ADDRESSES_MAX * (2 + Address::BYTES_MAX);

    /// A hello of this version of the protocol. Addresses beyond [`Self::ADDRESSES_MAX`] are left out.
    pub fn new(identity: Identity, codec: CodecId, message_bytes_max: usize, addresses: &[Address]) -> Self {
        Self {
            versions: Self::VERSIONS,
            codec,
            message_bytes_max: u32::try_from(message_bytes_max).unwrap_or(u32::MAX),
            identity,
            wanted: None,
            insists: false,
            addresses: addresses.iter().take(Self::ADDRESSES_MAX).cloned().collect(),
        }
    }

    /// The frame that says it.
    pub fn encode(&self, verdict: Verdict) -> Bytes {
        let mut out = BytesMut::with_capacity(FIXED_BYTES + 64);
        out.put_slice(MAGIC);
        out.put_u16_le(self.versions.0);
        out.put_u16_le(self.versions.1);
        out.put_u8(u8::from(self.insists) | u8::from(self.wanted.is_some()) << 1);
        out.put_u8(match verdict {
            Verdict::Accept => 0,
            Verdict::Duplicate => 1,
            Verdict::ShuttingDown => 2,
            Verdict::Incompatible => 3,
        });
        out.put_u16_le(self.codec.0);
        out.put_u32_le(self.message_bytes_max);
        out.put_u64_le(self.identity.node.0);
        out.put_u64_le(self.identity.incarnation.0);
        out.put_u64_le(self.wanted.map_or(0, |node| node.0));
        let addresses = &self.addresses[..self.addresses.len().min(Self::ADDRESSES_MAX)];
        out.put_u8(addresses.len() as u8);
        for address in addresses {
            // An address is at most `Address::BYTES_MAX` long.
            out.put_u16_le(address.as_str().len() as u16);
            out.put_slice(address.as_str().as_bytes());
        }
        out.freeze()
    }

    /// Reads a hello of a peer whose versions overlap with `ours`.
    ///
    /// # Errors
    /// [`HelloError`] naming what is wrong; [`HelloError::Mismatch`] when the versions do not overlap, whatever else
    /// the frame holds.
    pub fn decode(mut input: &[u8], ours: (u16, u16)) -> Result<(Self, Verdict), HelloError> {
        if input.len() > Self::BYTES_MAX {
            return Err(HelloError::TooLong { size: input.len(), limit: Self::BYTES_MAX });
        }
        let input = &mut input;
        let magic = take::<4>(input, "magic")?;
        if &magic != MAGIC {
            return Err(HelloError::NotQuorate { found: magic });
        }
        let versions = (
            u16::from_le_bytes(take(input, "oldest version")?),
            u16::from_le_bytes(take(input, "newest version")?),
        );
        agree_versions(ours, versions)?;
        let [flags, verdict] = take(input, "flags and verdict")?;
        let verdict = match verdict {
            0 => Verdict::Accept,
            1 => Verdict::Duplicate,
            2 => Verdict::ShuttingDown,
            3 => Verdict::Incompatible,
            value => return Err(HelloError::Invalid { what: "verdict", value: value.into() }),
        };
        if flags > 3 {
            return Err(HelloError::Invalid { what: "flags", value: flags.into() });
        }
        let codec = CodecId(u16::from_le_bytes(take(input, "codec")?));
        let message_bytes_max = u32::from_le_bytes(take(input, "message limit")?);
        let node = NodeId(u64::from_le_bytes(take(input, "node id")?));
        let incarnation = Incarnation(u64::from_le_bytes(take(input, "incarnation")?));
        let wanted = NodeId(u64::from_le_bytes(take(input, "wanted node")?));
        let [count] = take(input, "number of addresses")?;
        if usize::from(count) > Self::ADDRESSES_MAX {
            return Err(HelloError::Invalid { what: "number of addresses", value: count.into() });
        }
        let mut addresses = Vec::with_capacity(count.into());
        for _ in 0..count {
            let length = usize::from(u16::from_le_bytes(take(input, "address length")?));
            let text = input.get(..length).ok_or(HelloError::Truncated { what: "address" })?;
            input.advance(length);
            let address = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            addresses.push(address.ok_or(HelloError::Invalid { what: "address", value: length as u64 })?);
        }
        if !input.is_empty() {
            return Err(HelloError::Trailing(input.len()));
        }
        let hello = Self {
            versions,
            codec,
            message_bytes_max,
            identity: Identity::new(node, incarnation),
            wanted: (flags & 2 != 0).then_some(wanted),
            insists: flags & 1 != 0,
            addresses,
        };
        Ok((hello, verdict))
    }
}

/// Why two sides that both speak the protocol do not fit together. Changing one side's settings is the only help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// No common protocol version.
    #[error("we speak protocol versions {} to {}, the peer {} to {}", ours.0, ours.1, theirs.0, theirs.1)]
    Version {
        /// Our oldest and newest.
        ours: (u16, u16),
        /// Theirs.
        theirs: (u16, u16),
    },
    /// Different codecs.
    #[error("our codec is {ours}, the peer's is {theirs}")]
    Codec {
        /// Our [`CodecId`].
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// One side takes too small messages.
    #[error(
        "messages: we take {ours} bytes, the peer takes {theirs}, at least {MESSAGE_BYTES_MIN} are needed"
    )]
    Limit {
        /// Our limit.
        ours: u32,
        /// Theirs.
        theirs: u32,
    },
    /// The dialler looked for somebody else.
    #[error("node {wanted} was wanted, {found} was found")]
    Node {
        /// Whom it looked for.
        wanted: NodeId,
        /// Who stands there.
        found: Identity,
    },
    /// Both sides claim the same node id: a node dialled itself, or two share an id.
    #[error("both sides are node {}: we are {ours}, the peer is {theirs}", ours.node)]
    SameNode {
        /// Us.
        ours: Identity,
        /// Them.
        theirs: Identity,
    },
}

/// Why a first frame is not an acceptable hello.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// Something else speaks there.
    #[error("not a quorate peer: it began with {found:02x?}")]
    NotQuorate {
        /// Its first bytes.
        found: [u8; 4],
    },
    /// Too long to be a hello.
    #[error("hello of {size} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// It ends inside a field.
    #[error("hello ends inside its {what}")]
    Truncated {
        /// The field.
        what: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("{what} of the hello cannot be {value}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// The value; for a text its length.
        value: u64,
    },
    /// There are bytes behind its end.
    #[error("{0} bytes behind the hello's end")]
    Trailing(usize),
    /// The versions do not overlap.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

fn agree_versions(ours: (u16, u16), theirs: (u16, u16)) -> Result<(), Mismatch> {
    let overlap = ours.0 <= theirs.1 && theirs.0 <= ours.1 && theirs.0 <= theirs.1;
    if overlap { Ok(()) } else { Err(Mismatch::Version { ours, theirs }) }
}

fn take<const N: usize>(input: &mut &[u8], what: &'static str) -> Result<[u8; N], HelloError> {
    let (field, rest) = input.split_first_chunk::<N>().ok_or(HelloError::Truncated { what })?;
    *input = rest;
    Ok(*field)
}

const MAGIC: &[u8; 4] = b"QRTE";
/// Everything but the addresses.
const FIXED_BYTES: usize = 4 + 4 + 2 + 2 + 4 + 8 + 8 + 8 + 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(node: u64) -> Hello {
        let address = "tcp://127.0.0.1:7".parse().unwrap();
        Hello::new(Identity::new(NodeId(node), Incarnation(3)), CodecId(1), 1 << 20, &[address])
    }

    #[test]
    fn t07_two_sides_that_fit_agree_on_the_smaller_limit() {
        let (ours, mut theirs) = (hello(1), hello(2));
        theirs.message_bytes_max = 5000;
        let expected = Ok(Agreement { version: 1, message_bytes_max: 5000 });
        assert_eq!(agree(&ours, &theirs), expected);
        assert_eq!(agree(&theirs, &ours), expected);
    }

    #[test]
    fn t07_a_mismatch_names_both_sides() {
        let ours = hello(1);
        let check = |change: fn(&mut Hello), text: &str| {
            let mut theirs = hello(2);
            change(&mut theirs);
            assert_eq!(agree(&ours, &theirs).unwrap_err().to_string(), text);
            assert!(agree(&theirs, &ours).is_err());
        };
        check(|t| t.versions = (4, 6), "we speak protocol versions 1 to 1, the peer 4 to 6");
        check(|t| t.codec = CodecId(9), "our codec is 1, the peer's is 9");
        check(
            |t| t.message_bytes_max = 10,
            "messages: we take 1048576 bytes, the peer takes 10, at least 1024 are needed",
        );
        check(|t| t.wanted = Some(NodeId(8)), "node 8 was wanted, 1#3 was found");
        check(|t| t.identity.node = NodeId(1), "both sides are node 1: we are 1#3, the peer is 1#3");
    }

    #[test]
    fn t07_a_future_version_is_told_apart_from_garbage() {
        let mut frame = b"QRTE".to_vec();
        frame.extend([7, 0, 9, 0]);
        frame.extend([0xff; 30]);
        let mismatch = Mismatch::Version { ours: (1, 1), theirs: (7, 9) };
        assert_eq!(Hello::decode(&frame, (1, 1)), Err(HelloError::Mismatch(mismatch)));
        let http = Hello::decode(b"GET / HTTP/1.1", (1, 1));
        assert_eq!(http, Err(HelloError::NotQuorate { found: *b"GET " }));
    }

    #[test]
    fn t07_every_truncation_of_a_hello_is_a_typed_error() {
        let frame = hello(1).encode(Verdict::Accept);
        for length in 0..frame.len() {
            assert!(
                matches!(Hello::decode(&frame[..length], (1, 1)), Err(HelloError::Truncated { .. })),
                "{length}"
            );
        }
        let longer = [&frame[..], b"x"].concat();
        assert_eq!(Hello::decode(&longer, (1, 1)), Err(HelloError::Trailing(1)));
    }

    proptest! {
        #[test]
        fn t07_a_hello_is_read_as_it_was_written(
            node: u64, life: u64, codec: u16, limit: u32, insists: bool, wanted: Option<u64>, addresses in 0usize..10,
        ) {
            let addresses: Vec<Address> = (0..addresses).map(|i| format!("mem://{i}").parse().unwrap()).collect();
            let identity = Identity::new(NodeId(node), Incarnation(life));
            let mut hello = Hello::new(identity, CodecId(codec), limit as usize, &addresses);
            hello.insists = insists;
            hello.wanted = wanted.map(NodeId);
            for verdict in [Verdict::Accept, Verdict::Duplicate, Verdict::ShuttingDown, Verdict::Incompatible] {
                let frame = hello.encode(verdict);
                prop_assert!(frame.len() <= Hello::BYTES_MAX);
                prop_assert_eq!(Hello::decode(&frame, (1, 1)), Ok((hello.clone(), verdict)));
            }
        }

        #[test]
        fn t07_any_bytes_are_a_hello_or_a_typed_error(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let _ = Hello::decode(&bytes, (1, 1));
            let mut frame = hello(1).encode(Verdict::Accept).to_vec();
            for (at, value) in edits {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            let _ = Hello::decode(&frame, (1, 1));
        }
    }
}
