//! What the code that `#[service]` makes calls; not for people.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use bytes::Bytes;
pub use quorate_protocols::rpc::{Doubt, Refusal, Verdict};

use crate::codec::{Codec, EncodeError, decode_frame};

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
    Running(Pin<Box<dyn Future<Output = Verdict> + Send>>),
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
        encode::<C, _>(&result).map_or(Verdict::Doubtful(Doubt::ReplyUnsendable), Verdict::Done)
    }))
}

/// The answer to an id that the trait does not have.
pub fn no_such_method() -> Dispatched {
    Dispatched::Refused(Refusal::NoSuchMethod)
}

/// Encodes into a part of this thread's buffer, so that one allocation serves many values.
pub(super) fn encode<C: Codec, T: Serialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => encode_into::<C, T>(value, &mut buffer),
        // A user's `Serialize` that encodes something itself.
        Err(_) => encode_into::<C, T>(value, &mut BytesMut::new()),
    })
}

fn encode_into<C: Codec, T: Serialize + ?Sized>(
    value: &T,
    buffer: &mut BytesMut,
) -> Result<Bytes, EncodeError> {
    buffer.clear();
    buffer.reserve(BUFFER_BYTES_MIN);
    C::encode(value, buffer)?;
    Ok(buffer.split().freeze())
}

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(BUFFER_BYTES));
}

/// What one allocation holds: many small values. A value that outlives the others keeps all of it alive.
const BUFFER_BYTES: usize = 8 * 1024;
/// What is left of a buffer must hold this much, or a new one is begun.
const BUFFER_BYTES_MIN: usize = 256;
