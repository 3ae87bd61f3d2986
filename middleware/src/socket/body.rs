//! What a message is made of: borrowed bytes are copied once, into the connection's lane; owned large ones never.

use bytes::Bytes;

/// The content of a message to be sent. Everything that is bytes becomes one: `socket.send("hello")`,
/// `socket.send(&buffer[..])`, `socket.send(bytes)`.
#[derive(Debug, Clone)]
pub enum Body<'a> {
    /// Copied once.
    Slice(&'a [u8]),
    /// Not copied from 8 KiB on.
    Owned(Bytes),
}

impl Body<'_> {
    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Slice(slice) => slice,
            Self::Owned(bytes) => bytes,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same content on its own.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Slice(slice) => Bytes::copy_from_slice(slice),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Body<'a> {
    fn from(slice: &'a [u8]) -> Self {
        Self::Slice(slice)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Body<'a> {
    fn from(array: &'a [u8; N]) -> Self {
        Self::Slice(array)
    }
}

impl<'a> From<&'a str> for Body<'a> {
    fn from(text: &'a str) -> Self {
        Self::Slice(text.as_bytes())
    }
}

impl<'a> From<&'a Vec<u8>> for Body<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Slice(bytes)
    }
}

impl From<Bytes> for Body<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Owned(bytes)
    }
}

impl From<Vec<u8>> for Body<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes.into())
    }
}

impl From<String> for Body<'_> {
    fn from(text: String) -> Self {
        Self::Owned(text.into())
    }
}
