//! Bytes that travel as one run, and are not copied out of the frame that brought them.
//!
//! Method      serde can lend a visitor a slice of its input but not the buffer that owns it. While a frame is
//!             decoded, the frame waits in a thread-local place; a slice that lies within it becomes a share of it.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// An immutable run of bytes as an argument, a result or a field: what `Vec<u8>` should be in a message.
///
/// Encoding copies it once; decoding shares the received frame when that is at least `SHARED_FRAME_BYTES_MIN` long
/// (then the whole frame lives as long as the payload). Cloning shares.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Payload(Bytes);

impl Payload {
    /// The bytes, shared.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Payload> for Bytes {
    fn from(payload: Payload) -> Self {
        payload.0
    }
}

impl From<Payload> for Vec<u8> {
    fn from(payload: Payload) -> Self {
        payload.0.into()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Run)
    }
}

/// Runs `decode` with `frame` to share.
pub(super) fn sharing<R>(frame: &Bytes, decode: impl FnOnce() -> R) -> R {
    if frame.len() < SHARED_FRAME_BYTES_MIN {
        return decode();
    }
    /// Puts back what was there, also when a user's `Deserialize` panics.
    struct Restore(Option<Bytes>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            FRAME.with(|place| *place.borrow_mut() = before);
        }
    }
    let _restore = Restore(FRAME.with(|place| place.borrow_mut().replace(frame.clone())));
    decode()
}

struct Run;

impl<'de> Visitor<'de> for Run {
    type Value = Payload;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a run of bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Payload, E> {
        let shared = FRAME.with(|place| place.borrow().as_ref().and_then(|frame| share(frame, bytes)));
        Ok(shared.map_or_else(|| bytes.into(), Payload))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Payload, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Payload, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = elements.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

/// `part` as a share of `frame`, when it lies within it.
fn share(frame: &Bytes, part: &[u8]) -> Option<Bytes> {
    let start = (part.as_ptr() as usize).checked_sub(frame.as_ptr() as usize)?;
    let end = start.checked_add(part.len())?;
    (end <= frame.len()).then(|| frame.slice(start..end))
}

thread_local! {
    static FRAME: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Below this a copy costs less than sharing, and a small payload would keep a whole read buffer alive.
const SHARED_FRAME_BYTES_MIN: usize = 1024;
