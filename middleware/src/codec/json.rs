//! JSON: for reading along and for peers in other languages; several times larger and slower than the default.

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Codec, DecodeError, EncodeError, JSON_ID};

/// JSON through `serde_json`. Bulk bytes become arrays of numbers; nesting is limited to 128 levels.
#[derive(Debug, Clone, Copy)]
pub struct Json;

impl Codec for Json {
    const ID: u8 = JSON_ID;
    const NAME: &'static str = "json";

    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), EncodeError> {
        serde_json::to_writer(out.writer(), value)
            .map_err(|error| EncodeError { codec: Self::NAME, reason: error.to_string() })
    }

    fn decode<'de, T: Deserialize<'de>>(frame: &'de [u8]) -> Result<T, DecodeError> {
        serde_json::from_slice(frame).map_err(DecodeError::new::<Self, T>)
    }
}
