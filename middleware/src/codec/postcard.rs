//! Postcard: compact, maintained, with a documented wire format (variable-length integers, little-endian).

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Codec, DecodeError, EncodeError};

/// The default codec. Not self-describing: both sides must agree on the types.
#[derive(Debug, Clone, Copy)]
pub struct Postcard;

impl Codec for Postcard {
    const ID: u8 = ID;
    const NAME: &'static str = "postcard";

    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), EncodeError> {
        postcard::serialize_with_flavor(value, Appending(out))
            .map_err(|error| EncodeError { codec: Self::NAME, reason: error.to_string() })
    }

    fn decode<'de, T: Deserialize<'de>>(frame: &'de [u8]) -> Result<T, DecodeError> {
        let (value, rest) = postcard::take_from_bytes(frame).map_err(DecodeError::new::<Self, T>)?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(DecodeError::new::<Self, T>(format_args!("{} bytes behind the value", rest.len())))
        }
    }
}

/// Writes straight into the caller's buffer; postcard's own `Extend` flavour goes byte by byte.
struct Appending<'a>(&'a mut BytesMut);

impl postcard::ser_flavors::Flavor for Appending<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.put_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

pub(super) const ID: u8 = 1;
