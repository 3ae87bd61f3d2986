//! Bincode 2.0.1, with a byte limit. Its authors have stopped maintaining it (RUSTSEC-2025-0141), so it is never on
//! by default; version 3.0.0 is an empty release.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::Writer;
use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::{BINCODE_ID, Codec, DecodeError, EncodeError};

/// Bincode through serde, little-endian with variable-length integers.
#[derive(Debug, Clone, Copy)]
pub struct Bincode;

impl Codec for Bincode {
    const ID: u8 = BINCODE_ID;
    const NAME: &'static str = "bincode";

    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), EncodeError> {
        bincode::serde::encode_into_writer(value, Appending(out), CONFIG)
            .map_err(|error| EncodeError { codec: Self::NAME, reason: error.to_string() })
    }

    fn decode<'de, T: Deserialize<'de>>(frame: &'de [u8]) -> Result<T, DecodeError> {
        let (value, used) =
            bincode::serde::borrow_decode_from_slice(frame, CONFIG).map_err(DecodeError::new::<Self, T>)?;
        if used == frame.len() {
            Ok(value)
        } else {
            Err(DecodeError::new::<Self, T>(format_args!("{} bytes behind the value", frame.len() - used)))
        }
    }
}

struct Appending<'a>(&'a mut BytesMut);

impl Writer for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.put_slice(bytes);
        Ok(())
    }
}

/// What one decoding may claim: twice the largest frame of the transports' default, so that the frame's own limit
/// is the one that speaks.
const VALUE_BYTES_MAX: usize = 32 * 1024 * 1024;

const CONFIG: Configuration<LittleEndian, Varint, Limit<VALUE_BYTES_MAX>> =
    bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();
