//! What travels with a call beside its arguments: few, small, typed values that the client says and the handler reads.
//!
//! Guarantee   what a client says with [`with_metadata`](super::Client::with_metadata) every handler that it calls reads by
//!             [`caller`](super::caller), over every transport, within one node and with every codec. A value under a
//!             key that [propagates](Key::propagating) also goes with the calls that such a handler makes, and so on;
//!             no other does. A call of a handler that says more itself than what came along leaves room for is not
//!             made: it fails with a [`MetadataError`].
//! Layout      see docs/wire.md; values are encoded by postcard, whatever the codec of the service is.
//! Limits      [`METADATA_ENTRIES_MAX`], [`METADATA_BYTES_MAX`], [`METADATA_KEY_BYTES_MAX`]. It is not for bulk: it goes
//!             with every call. Who calls says it of itself: trust it as far as its [`credentials`](super::Caller::credentials).

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::trace::TraceContext;
use crate::codec::{Codec, DecodeError, EncodeError, Postcard};

/// Entries of one call, at most.
pub const METADATA_ENTRIES_MAX: usize = 64;
/// All entries of one call, in bytes, with 3 for each beside its key and its value: what says something of a call, not its data.
pub const METADATA_BYTES_MAX: usize = 8 << 10;
/// The longest key, in bytes.
pub const METADATA_KEY_BYTES_MAX: usize = 64;

/// The name and the type of one value of metadata. Meant to be a constant that both sides see.
///
/// ```
/// use quorate::rpc::{Key, Metadata};
///
/// const TENANT: Key<String> = Key::propagating("tenant");
/// const ATTEMPT: Key<u32> = Key::new("attempt");
///
/// let metadata = Metadata::new().with(&TENANT, "acme")?.with(&ATTEMPT, &2)?;
/// assert_eq!(metadata.value(&TENANT)?, Some("acme".to_owned()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Key<T> {
    name: &'static str,
    propagates: bool,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    /// A value for the service that is called, and nobody else.
    pub const fn new(name: &'static str) -> Self {
        Self { name, propagates: false, of: PhantomData }
    }

    /// A value that also goes with the calls that the handler makes, and those of their handlers.
    pub const fn propagating(name: &'static str) -> Self {
        Self { name, propagates: true, of: PhantomData }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What travels with a call beside its arguments.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    entries: BTreeMap<String, Entry>,
    /// All of it on the wire.
    bytes: usize,
    trace: Option<TraceContext>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    value: Bytes,
    propagates: bool,
}

/// Why something cannot be metadata, or is not what its key says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// A key that is empty or too long.
    #[error("a key of {bytes} bytes, where 1 to {METADATA_KEY_BYTES_MAX} are allowed")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// More entries than may be.
    #[error("more than {METADATA_ENTRIES_MAX} entries of metadata")]
    TooMany,
    /// More bytes than may be.
    #[error("{bytes} bytes of metadata exceed the limit of {METADATA_BYTES_MAX}")]
    TooLarge {
        /// All entries together.
        bytes: usize,
    },
    /// The value has no representation.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The caller's value is of another type than the key.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Metadata {
    /// None.
    pub const fn new() -> Self {
        Self { entries: BTreeMap::new(), bytes: 0, trace: None }
    }

    /// The same with a value, which replaces one of the same key.
    ///
    /// # Errors
    /// [`MetadataError`].
    pub fn with<T, V>(mut self, key: &Key<T>, value: &V) -> Result<Self, MetadataError>
    where
        T: Borrow<V>,
        V: Serialize + ?Sized,
    {
        let mut out = BytesMut::new();
        Postcard::encode(value, &mut out)?;
        self.insert(key.name.to_owned(), Entry { value: out.freeze(), propagates: key.propagates })?;
        Ok(self)
    }

    /// The same as a part of a trace that was begun elsewhere: calls become children of this span. Inside of a handler the
    /// handler's own span is the parent, unless this says otherwise.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// The value under `key`, when there is one.
    ///
    /// # Errors
    /// [`MetadataError::Decode`] when it is of another type.
    pub fn value<T: DeserializeOwned>(&self, key: &Key<T>) -> Result<Option<T>, MetadataError> {
        match self.entries.get(key.name) {
            Some(entry) => Ok(Some(Postcard::decode(&entry.value)?)),
            None => Ok(None),
        }
    }

    /// The names of what is there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// True when there is nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) const fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// What goes with the calls of a handler that was called with this; `None` when nothing does.
    pub(super) fn propagating(&self) -> Option<Self> {
        let mut kept = Self::new();
        for (name, entry) in self.entries.iter().filter(|(_, entry)| entry.propagates) {
            kept.bytes += cost(name, &entry.value);
            kept.entries.insert(name.clone(), entry.clone());
        }
        (!kept.is_empty()).then_some(kept)
    }

    /// This, and of `other` what this does not say itself.
    ///
    /// # Errors
    /// [`MetadataError`] when both together are too much.
    pub(super) fn over(&self, other: Self) -> Result<Self, MetadataError> {
        let mut both = self.clone();
        for (name, entry) in other.entries {
            if !both.entries.contains_key(&name) {
                both.insert(name, entry)?;
            }
        }
        Ok(both)
    }

    /// What they take on the wire.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u16_le(self.bytes as u16);
        for (name, entry) in &self.entries {
            out.put_u8(name.len() as u8 | if entry.propagates { PROPAGATES } else { 0 });
            out.put_slice(name.as_bytes());
            out.put_u16_le(entry.value.len() as u16);
            out.put_slice(&entry.value);
        }
    }

    /// `None` when it is damaged, or more than is allowed.
    pub(super) fn decode(input: &mut Bytes) -> Option<Self> {
        let length = take_u16(input)?;
        if length > input.len() {
            return None;
        }
        let mut input = input.split_to(length);
        let mut metadata = Self::new();
        while !input.is_empty() {
            let head = input.get_u8();
            let name = take(&mut input, usize::from(head & !PROPAGATES))?;
            let length = take_u16(&mut input)?;
            // A copy: a small value must not keep a large frame alive.
            let value = Bytes::copy_from_slice(&take(&mut input, length)?);
            let name = std::str::from_utf8(&name).ok()?.to_owned();
            metadata.insert(name, Entry { value, propagates: head & PROPAGATES != 0 }).ok()?;
        }
        Some(metadata)
    }

    fn insert(&mut self, name: String, entry: Entry) -> Result<(), MetadataError> {
        if name.is_empty() || name.len() > METADATA_KEY_BYTES_MAX {
            return Err(MetadataError::Key { bytes: name.len() });
        }
        let old = self.entries.get(&name).map(|old| cost(&name, &old.value));
        if old.is_none() && self.entries.len() >= METADATA_ENTRIES_MAX {
            return Err(MetadataError::TooMany);
        }
        let bytes = self.bytes - old.unwrap_or(0) + cost(&name, &entry.value);
        if bytes > METADATA_BYTES_MAX {
            return Err(MetadataError::TooLarge { bytes });
        }
        self.bytes = bytes;
        self.entries.insert(name, entry);
        Ok(())
    }
}

/// Names only: values may be secrets.
impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").field("names", &self.entries.keys()).field("trace", &self.trace).finish()
    }
}

fn take(input: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= input.len()).then(|| input.split_to(length))
}

fn take_u16(input: &mut Bytes) -> Option<usize> {
    let length = u16::from_le_bytes(*input.first_chunk()?);
    input.advance(size_of::<u16>());
    Some(usize::from(length))
}

const fn cost(name: &str, value: &Bytes) -> usize {
    ENTRY_OVERHEAD_BYTES + name.len() + value.len()
}

/// The lengths of an entry on the wire.
const ENTRY_OVERHEAD_BYTES: usize = 3;
/// Beside the length of a key.
const PROPAGATES: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Key<String> = Key::propagating("text");
    const NUMBER: Key<u64> = Key::new("number");

    fn travel(metadata: &Metadata) -> Option<Metadata> {
        let mut out = BytesMut::new();
        metadata.encode(&mut out);
        assert_eq!(out.len(), metadata.bytes() + size_of::<u16>());
        let mut input = out.freeze();
        let read = Metadata::decode(&mut input);
        assert!(input.is_empty());
        read
    }

    #[test]
    fn what_travels_is_what_was_said() {
        let said = Metadata::new().with(&TEXT, "a").unwrap().with(&NUMBER, &7).unwrap();
        let said = said.with(&TEXT, "longer than before").unwrap();
        let read = travel(&said).expect("it is whole");
        assert_eq!(read, said);
        assert_eq!(read.value(&NUMBER), Ok(Some(7)));
        assert_eq!(read.value(&Key::<u64>::new("nothing")), Ok(None));
        assert!(matches!(read.value(&Key::<(u64, String)>::new("number")), Err(MetadataError::Decode(_))));
        let on = read.propagating().expect("one of them goes on");
        assert_eq!(on.names().collect::<Vec<_>>(), ["text"]);
        assert_eq!(travel(&on), Some(on.clone()));
        // What is said anew stands before what came along.
        let both = Metadata::new().with(&TEXT, "mine").unwrap().over(on).unwrap();
        assert_eq!(both.value(&TEXT), Ok(Some("mine".to_owned())));
    }

    #[test]
    fn too_much_is_refused_where_it_is_said_and_where_it_arrives() {
        let large = "x".repeat(METADATA_BYTES_MAX);
        assert!(matches!(Metadata::new().with(&TEXT, large.as_str()), Err(MetadataError::TooLarge { .. })));
        assert_eq!(Metadata::new().with(&Key::<u64>::new(""), &1), Err(MetadataError::Key { bytes: 0 }));
        let name: &'static str = Box::leak("k".repeat(METADATA_KEY_BYTES_MAX + 1).into_boxed_str());
        assert!(matches!(Metadata::new().with(&Key::<u64>::new(name), &1), Err(MetadataError::Key { .. })));
        let mut full = Metadata::new();
        for number in 0..METADATA_ENTRIES_MAX {
            let entry = Entry { value: Bytes::new(), propagates: false };
            full.insert(format!("{number}"), entry).unwrap();
        }
        assert_eq!(full.clone().with(&NUMBER, &1), Err(MetadataError::TooMany));
        assert_eq!(travel(&full), Some(full.clone()));
        // Cut anywhere, it is refused, not misread.
        let mut out = BytesMut::new();
        full.encode(&mut out);
        let whole = out.freeze();
        for length in 0..whole.len() {
            assert_eq!(Metadata::decode(&mut whole.slice(..length)), None);
        }
    }
}
