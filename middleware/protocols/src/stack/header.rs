//! The header area of a message: each layer pushes its few bytes on the way down and pops them on the way up.

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::{Wire, WireError, take_u8};

/// Bytes that layers write for their own kind, last written first read. Copied, never allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Headers {
    bytes: [u8; HEADER_BYTES_MAX],
    length: u8,
}

impl Headers {
    /// Pushes a layer's bytes.
    ///
    /// # Errors
    /// [`HeadersFull`] when the layers of the stack want more than `HEADER_BYTES_MAX` bytes together.
    pub fn push(&mut self, header: &[u8]) -> Result<(), HeadersFull> {
        let start = usize::from(self.length);
        let room = self.bytes.get_mut(start..start + header.len()).ok_or(HeadersFull)?;
        room.copy_from_slice(header);
        self.length += header.len() as u8;
        Ok(())
    }

    /// Pops the `N` bytes pushed last; `None` when a peer sent fewer.
    pub fn pop<const N: usize>(&mut self) -> Option<[u8; N]> {
        let start = usize::from(self.length).checked_sub(N)?;
        let header = self.bytes[start..start + N].try_into().ok()?;
        self.length = start as u8;
        Some(header)
    }
}

/// The layers' headers do not fit: a mistake in the composition of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the layers' headers exceed {HEADER_BYTES_MAX} bytes")]
pub struct HeadersFull;

impl Wire for Headers {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.length);
        out.put_slice(&self.bytes[..usize::from(self.length)]);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let length = take_u8(input, "headers")?;
        let size = usize::from(length);
        if size > HEADER_BYTES_MAX {
            return Err(WireError::Invalid { what: "headers", value: u64::from(length) });
        }
        if input.len() < size {
            return Err(WireError::Truncated { what: "headers", needed: size, left: input.len() });
        }
        let mut headers = Self { bytes: [0; HEADER_BYTES_MAX], length };
        headers.bytes[..size].copy_from_slice(&input.split_to(size));
        Ok(headers)
    }
}

/// Room for the headers of all layers of a stack; with the length byte a round 16.
const HEADER_BYTES_MAX: usize = 15;
