//! Explicit byte layouts of messages and records: little-endian, length-limited, checked, never a serializer's
//! accident.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::machine::ProcessId;

/// A value with a fixed layout on the wire and on disk.
pub trait Wire: Sized {
    /// Appends the value's bytes.
    fn encode(&self, out: &mut BytesMut);

    /// Takes the value from the front of `input`; payloads are slices of it, not copies.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a value; `input` is then of no further use.
    fn decode(input: &mut Bytes) -> Result<Self, WireError>;

    /// The value's bytes as one buffer.
    fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Decodes a value that must fill `input` exactly.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and [`WireError::Trailing`].
    fn from_bytes(mut input: Bytes) -> Result<Self, WireError> {
        let value = Self::decode(&mut input)?;
        if input.has_remaining() { Err(WireError::Trailing(input.len())) } else { Ok(value) }
    }
}

/// Why bytes are not the value they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The input ended inside a field.
    #[error("truncated: {what} needs {needed} bytes, {left} left")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Its size.
        needed: usize,
        /// What was there.
        left: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{what} cannot be {value}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// The value found.
        value: u64,
    },
    /// Bytes were left over behind the value.
    #[error("{0} bytes behind the end")]
    Trailing(usize),
}

macro_rules! take {
    ($name:ident, $type:ty, $get:ident) => {
        /// Takes one integer, little-endian.
        ///
        /// # Errors
        /// [`WireError::Truncated`] naming `what`.
        pub fn $name(input: &mut Bytes, what: &'static str) -> Result<$type, WireError> {
            need(input, size_of::<$type>(), what)?;
            Ok(input.$get())
        }
    };
}

take!(take_u8, u8, get_u8);
take!(take_u16, u16, get_u16_le);
take!(take_u32, u32, get_u32_le);
take!(take_u64, u64, get_u64_le);

/// Takes a count of items that take at least `item_bytes` each, so that a lie about the count cannot make the
/// receiver reserve memory that the input does not back.
///
/// # Errors
/// [`WireError::Truncated`] when the input cannot hold so many.
pub fn take_count(input: &mut Bytes, item_bytes: usize, what: &'static str) -> Result<usize, WireError> {
    let count = take_u32(input, what)? as usize;
    need(input, count.saturating_mul(item_bytes.max(1)), what)?;
    Ok(count)
}

/// Takes a length-prefixed run of bytes, as a slice of the input.
///
/// # Errors
/// [`WireError::Truncated`] when the input is shorter than its prefix says.
pub fn take_bytes(input: &mut Bytes, what: &'static str) -> Result<Bytes, WireError> {
    let length = take_u32(input, what)? as usize;
    need(input, length, what)?;
    Ok(input.split_to(length))
}

/// Puts a length-prefixed run of bytes.
pub fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

/// Puts a count. Counts are bounded by the frame limit, far below `u32::MAX`.
pub fn put_count(out: &mut BytesMut, count: usize) {
    debug_assert!(u32::try_from(count).is_ok());
    out.put_u32_le(count as u32);
}

impl Wire for ProcessId {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.node);
        out.put_u64_le(self.incarnation);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { node: take_u64(input, "node id")?, incarnation: take_u64(input, "incarnation")? })
    }
}

/// A machine without peers or without records uses `()`.
impl Wire for () {
    fn encode(&self, _: &mut BytesMut) {}
    fn decode(_: &mut Bytes) -> Result<Self, WireError> {
        Ok(())
    }
}

fn need(input: &Bytes, needed: usize, what: &'static str) -> Result<(), WireError> {
    if input.len() < needed { Err(WireError::Truncated { what, needed, left: input.len() }) } else { Ok(()) }
}
