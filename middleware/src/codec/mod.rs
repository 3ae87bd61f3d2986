//! Codecs: how the arguments and results of calls, and the bodies of messages, become bytes.
//!
//! Purpose     one small trait over serde, a type parameter with a default wherever values travel.
//! Guarantee   decoding never panics and never believes a length that the frame does not back; bytes left behind a
//!             value are an error. quorate's own headers and records do not go through a codec: their layouts are
//!             fixed.
//! Methods     [`Postcard`] (default), `Json` (feature `json`, for reading along), `Bincode` (feature `bincode`).
//! Limits      a frame is bounded by its transport. A recursive type is decoded recursively: do not accept one from
//!             a peer that is not trusted. [`Payload`] carries bulk bytes: element by element through serde they
//!             cost many times more.

#[cfg(feature = "bincode")]
mod bincode;
#[cfg(feature = "json")]
mod json;
mod payload;
mod postcard;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};

#[cfg(feature = "bincode")]
pub use self::bincode::Bincode;
#[cfg(feature = "json")]
pub use self::json::Json;
pub use self::payload::Payload;
pub use self::postcard::Postcard;

/// A way to write values as bytes. Implementations are names without state.
pub trait Codec: Send + Sync + 'static {
    /// Told to the other side when two processes bind, so that a mismatch is an error there and not garbage later.
    /// Ids below 128 belong to quorate.
    const ID: u8;
    /// The codec's name for people.
    const NAME: &'static str;

    /// Appends the bytes of `value` to `out`.
    ///
    /// # Errors
    /// [`EncodeError`] when the value has no representation in this codec; `out` may then hold a part of it.
    fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), EncodeError>;

    /// Reads a value that must fill `frame` exactly; it may borrow from it.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not such a value.
    fn decode<'de, T: Deserialize<'de>>(frame: &'de [u8]) -> Result<T, DecodeError>;
}

/// Reads a value from a whole frame. Every [`Payload`] in it is a slice of the frame, not a copy, when the frame is
/// large enough for that to pay.
///
/// # Errors
/// As [`Codec::decode`].
pub fn decode_frame<C: Codec, T: DeserializeOwned>(frame: &Bytes) -> Result<T, DecodeError> {
    payload::sharing(frame, || C::decode(frame))
}

/// The name of the codec with this id, for messages about a mismatch.
pub fn codec_name(id: u8) -> &'static str {
    match id {
        postcard::ID => "postcard",
        JSON_ID => "json",
        BINCODE_ID => "bincode",
        _ => "unknown",
    }
}

/// A value that a codec cannot write. The caller's own fault: the same value will fail again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{codec} cannot encode the value: {reason}")]
pub struct EncodeError {
    /// The codec's name.
    pub codec: &'static str,
    /// What it said.
    pub reason: String,
}

/// Bytes that are not the value that was asked for: the two sides disagree on a type, or the bytes are garbage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{codec} cannot decode {type_name}: {reason}")]
pub struct DecodeError {
    /// The codec's name.
    pub codec: &'static str,
    /// The type that was asked for.
    pub type_name: &'static str,
    /// What the codec said.
    pub reason: String,
}

impl DecodeError {
    /// For implementations: the error of decoding a `T` with codec `C`.
    pub fn new<C: Codec, T>(reason: impl ToString) -> Self {
        Self { codec: C::NAME, type_name: std::any::type_name::<T>(), reason: reason.to_string() }
    }
}

impl DecodeError {
    /// An answer that is none before any codec has looked at it.
    pub(crate) fn of_answer(reason: &str) -> Self {
        Self { codec: "rpc", type_name: "an answer", reason: reason.to_owned() }
    }
}

const JSON_ID: u8 = 2;
const BINCODE_ID: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Point,
        Circle { radius: u32 },
        Named(String, Option<i64>),
    }

    fn round_trips<C: Codec>() {
        let value =
            (vec![Shape::Point, Shape::Circle { radius: 7 }, Shape::Named("ä".into(), Some(-1))], 3.5f64);
        let mut out = BytesMut::from(&b"kept"[..]);
        C::encode(&value, &mut out).unwrap();
        assert_eq!(&out[..4], b"kept", "{}: what was in the buffer stays", C::NAME);
        let frame = out.split_off(4).freeze();
        assert_eq!(decode_frame::<C, (Vec<Shape>, f64)>(&frame).unwrap(), value, "{}", C::NAME);
    }

    fn refuses_damage<C: Codec>() {
        let mut out = BytesMut::new();
        C::encode(&("some text", 77u32), &mut out).unwrap();
        let whole = out.freeze();
        for length in 0..whole.len() {
            let error = C::decode::<(String, u32)>(&whole[..length]).unwrap_err();
            assert_eq!(error.codec, C::NAME);
        }
        let mut longer = whole.to_vec();
        longer.push(b'1');
        assert!(C::decode::<(String, u32)>(&longer).is_err(), "{}: bytes behind the value", C::NAME);
        // A length that the frame does not back must not reserve memory for it.
        assert!(C::decode::<Vec<u64>>(&[0xff; 10]).is_err(), "{}", C::NAME);
    }

    fn carries_payloads<C: Codec>() {
        for size in [0, 1, 100, 5_000] {
            let payload = Payload::from(vec![0xa5; size]);
            let mut out = BytesMut::new();
            C::encode(&(1u8, &payload, 2u8), &mut out).unwrap();
            let decoded: (u8, Payload, u8) = decode_frame::<C, _>(&out.freeze()).unwrap();
            assert_eq!(decoded, (1, payload, 2), "{} {size}", C::NAME);
        }
    }

    fn check<C: Codec>() {
        round_trips::<C>();
        refuses_damage::<C>();
        carries_payloads::<C>();
        assert_eq!(codec_name(C::ID), C::NAME);
    }

    #[test]
    fn postcard_round_trips_and_refuses_damage() {
        check::<Postcard>();
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_round_trips_and_refuses_damage() {
        check::<Json>();
    }

    #[cfg(feature = "bincode")]
    #[test]
    fn bincode_round_trips_and_refuses_damage() {
        check::<Bincode>();
    }

    #[test]
    fn a_large_payload_is_a_slice_of_its_frame() {
        let mut out = BytesMut::new();
        Postcard::encode(&(7u32, Payload::from(vec![1; 4096])), &mut out).unwrap();
        let frame = out.freeze();
        let (_, payload): (u32, Payload) = decode_frame::<Postcard, _>(&frame).unwrap();
        let range = frame.as_ptr() as usize..frame.as_ptr() as usize + frame.len();
        assert!(range.contains(&(payload.as_ptr() as usize)));
    }
}
