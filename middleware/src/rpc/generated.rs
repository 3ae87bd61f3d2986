//! What the code that `#[service]` makes calls; not for people.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;

use bytes::BytesMut;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::{Serialize, Serializer};

pub use super::calling::Calling;
pub use bytes::Bytes;
use bytes::{Buf, BufMut};
pub use quorate_protocols::rpc::{Doubt, Refusal, Verdict};

use super::envelope::{self, Head};
use super::error::{CallError, NotSent, RpcError};
use super::port::Travelled;
use super::schema::MethodSchema;
use crate::codec::{Codec, EncodeError, Payload, decode_frame};

/// A handler that has not begun.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The service as the generated client knows it, when both are in one process.
pub type AnyService = Box<dyn Any + Send + Sync>;

/// A run of bytes where the user wrote `Vec<u8>` or `Bytes`.
pub struct Run<T>(pub T);

impl<T: AsRef<[u8]>> Serialize for Run<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_ref())
    }
}

impl<'de, T: From<Payload>> Deserialize<'de> for Run<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Payload::deserialize(deserializer).map(|payload| Self(payload.into()))
    }
}

/// Encoded arguments.
pub struct Encoded {
    /// What stands before the arguments, and they.
    pub(super) body: Bytes,
    /// Where they begin.
    pub(super) arguments_at: usize,
    pub(super) head: Head,
    /// Behind the required arguments stand added ones.
    pub(super) has_added: bool,
    /// Nothing, mostly.
    pub(super) travelled: Option<Box<Travelled>>,
}

/// Arguments behind the required ones: `u32` length of what is required, that, then for each added argument its
/// length and its bytes.
pub struct Added(BytesMut, Encoded);

impl Added {
    /// Begins behind the required arguments.
    pub fn behind(required: Encoded) -> Self {
        let mut all = BytesMut::with_capacity(required.body.len() + BUFFER_BYTES_MIN);
        let (before, arguments) = required.body.split_at(required.arguments_at);
        all.put_slice(before);
        all.put_u32_le(arguments.len() as u32);
        all.put_slice(arguments);
        Self(all, required)
    }

    /// Appends one.
    pub fn put<C: Codec, T: Serialize>(&mut self, argument: &T) -> Result<(), CallError> {
        let start = self.0.len();
        self.0.put_u32_le(0);
        C::encode(argument, &mut self.0).map_err(|error| CallError::NotSent(NotSent::Encode(error)))?;
        let length = (self.0.len() - start - size_of::<u32>()) as u32;
        self.0[start..start + size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    /// All of them.
    pub fn end(self) -> Encoded {
        Encoded { body: self.0.freeze(), has_added: true, ..self.1 }
    }
}

/// Splits what [`Added`] has put together; `None` when it is damaged.
fn split_added(mut body: Bytes) -> Option<(Bytes, Bytes)> {
    let required = take_run(&mut body)?;
    Some((required, body))
}

/// The arguments of a request.
pub(super) struct Matched {
    pub(super) required: Bytes,
    pub(super) added: Bytes,
    /// The number under which the caller calls ahead what it will return.
    pub(super) promised: Option<u64>,
}

/// Takes the arguments of a request for a method apart, when both sides mean the same method.
pub(super) fn match_signature(
    schema: &MethodSchema,
    signature: u32,
    mut body: Bytes,
) -> Result<Matched, Refusal> {
    let marks = signature ^ schema.signature;
    let promised = match marks {
        0 | ADDED => None,
        mark if mark == PROMISED || mark == ADDED ^ PROMISED => {
            let number = u64::from_le_bytes(*body.first_chunk().ok_or(Refusal::Malformed)?);
            body.advance(size_of::<u64>());
            Some(number)
        }
        _ => return Err(Refusal::SignatureMismatch),
    };
    if marks == ADDED || marks == ADDED ^ PROMISED {
        let (required, added) = split_added(body).ok_or(Refusal::Malformed)?;
        return Ok(Matched { required, added, promised });
    }
    Ok(Matched { required: body, added: Bytes::new(), promised })
}

/// The next added argument; one that was not sent is none.
pub fn take_added<C: Codec, T: DeserializeOwned>(added: &mut Bytes) -> Result<Option<T>, Malformed> {
    if added.is_empty() {
        return Ok(None);
    }
    let run = take_run(added).ok_or(Malformed)?;
    decode_frame::<C, Option<T>>(&run).map_err(|_| Malformed)
}

/// Arguments that are none.
pub struct Malformed;

fn take_run(from: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_le_bytes(*from.first_chunk()?) as usize;
    from.advance(size_of::<u32>());
    (length <= from.len()).then(|| from.split_to(length))
}

/// What a signature is mixed with when added arguments are there.
pub(super) const ADDED: u32 = 0xadde_d000;

/// What a signature is mixed with when the result is called ahead: before the arguments stands its number.
pub(super) const PROMISED: u32 = 0x9301_0000;

/// What a method that returns a `Result` gives its caller.
pub fn application<T, E>(result: Result<Result<T, E>, CallError>) -> Result<T, RpcError<E>> {
    result?.map_err(RpcError::Application)
}

/// Decodes a reply.
pub fn read<C: Codec, R: DeserializeOwned>(reply: Bytes) -> Result<R, CallError> {
    decode_frame::<C, R>(&reply).map_err(CallError::BadReply)
}

/// The answer to arguments that could not be read.
pub fn malformed() -> Dispatched {
    Dispatched::Refused(Refusal::Malformed)
}

/// What an argument, a result or an error must be.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel to another process",
    label = "neither `Serialize` nor `Deserialize`, or only one of them",
    note = "derive both: `#[derive(serde::Serialize, serde::Deserialize)]`"
)]
pub trait Travels {}

impl<T: Serialize + DeserializeOwned> Travels for T {}

/// Compiles when `T` can travel.
pub const fn travels<T: Travels>() {}

/// What became of a request on its way into the service's code.
pub enum Dispatched {
    /// It did not get there.
    Refused(Refusal),
    /// It is to be polled.
    Running(Boxed<Verdict>),
}

/// Decodes the arguments, and encodes the result when it comes.
pub fn handle<C, A, F, R>(request: Bytes, call: F) -> Dispatched
where
    C: Codec,
    A: DeserializeOwned,
    F: FnOnce(A) -> R,
    R: Future<Output: Serialize> + Send + 'static,
{
    let Ok(arguments) = decode_frame::<C, A>(&request) else {
        return Dispatched::Refused(Refusal::Malformed);
    };
    // The arguments share the frame where they need it.
    drop(request);
    let running = call(arguments);
    Dispatched::Running(Box::pin(async move {
        let result = running.await;
        let encoded = encode_behind::<C, _>(|out| out.put_u8(envelope::ANSWER_PLAIN), &result);
        encoded.map_or(Verdict::Doubtful(Doubt::ReplyUnsendable), |(answer, _)| Verdict::Done(answer))
    }))
}

/// The answer to an id that the trait does not have.
pub fn no_such_method() -> Dispatched {
    Dispatched::Refused(Refusal::NoSuchMethod)
}

/// Encodes into a part of this thread's buffer, so that one allocation serves many values. Before it goes what `before`
/// writes; where the value begins, is told.
pub(super) fn encode_behind<C: Codec, T: Serialize + ?Sized>(
    before: impl FnOnce(&mut BytesMut),
    value: &T,
) -> Result<(Bytes, usize), EncodeError> {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => encode_into::<C, T>(before, value, &mut buffer),
        // A user's `Serialize` that encodes something itself.
        Err(_) => encode_into::<C, T>(before, value, &mut BytesMut::new()),
    })
}

fn encode_into<C: Codec, T: Serialize + ?Sized>(
    before: impl FnOnce(&mut BytesMut),
    value: &T,
    buffer: &mut BytesMut,
) -> Result<(Bytes, usize), EncodeError> {
    buffer.clear();
    buffer.reserve(BUFFER_BYTES_MIN);
    before(buffer);
    let at = buffer.len();
    C::encode(value, buffer)?;
    Ok((buffer.split().freeze(), at))
}

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(BUFFER_BYTES));
}

/// What one allocation holds: many small values. A value that outlives the others keeps all of it alive.
const BUFFER_BYTES: usize = 8 * 1024;
/// What is left of a buffer must hold this much, or a new one is begun.
const BUFFER_BYTES_MIN: usize = 256;
