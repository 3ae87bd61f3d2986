//! What a call is for when it is for an object: the head of its request, and what is known before it is sent.
//!
//! Layout      kind `u8` (0: an object, 1: what a call of the same caller will return), the incarnation of the node that it
//!             is for `u64` (0: whichever), the object's number or the promise's `u64`, the method's id `u32`, its
//!             signature `u32`; then what a request for a service has. See docs/wire.md.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::ProcessId;
use quorate_protocols::objects::{Reference, Standing};
use quorate_protocols::rpc::Refusal;

use super::super::error::{CallError, NotSent};
use super::super::schema::MethodSchema;
use super::{Home, Promise, counter};

/// What a client calls that does not call a service.
pub(in crate::rpc) enum Target {
    Object(Use),
    Promise(Promise),
}

/// One use of a reference; it ends with this.
pub(in crate::rpc) struct Use {
    pub(super) home: Arc<Home>,
    pub(super) reference: Reference,
}

impl Use {
    pub(super) fn check(&self) -> Result<(), CallError> {
        if self.home.is_closed() {
            return Err(CallError::NotSent(NotSent::NodeShutDown));
        }
        match self.home.standing(self.reference) {
            Standing::Held | Standing::Arriving => Ok(()),
            Standing::ObjectGone | Standing::Unknown => Err(CallError::NotExecuted(Refusal::ObjectGone)),
            Standing::Refused => Err(CallError::NotSent(NotSent::TooManyReferences)),
            Standing::OwnerSilent => {
                // A later call may find it.
                self.home.want(self.reference);
                Err(CallError::NotSent(NotSent::ObjectsNodeGone))
            }
            Standing::OwnerEnded => Err(CallError::NotExecuted(Refusal::OtherLife)),
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.home.release(self.reference);
    }
}

impl Target {
    /// The reference that it is; `None` as long as that has not come.
    pub(super) fn as_object(&self) -> Option<&Use> {
        match self {
            Self::Object(object) => Some(object),
            Self::Promise(_) => None,
        }
    }

    /// Where a call goes now.
    ///
    /// # Errors
    /// Why it cannot succeed.
    fn place(&self) -> Result<Place, CallError> {
        match self {
            Self::Object(object) => {
                object.check()?;
                let Reference { owner, number } = object.reference;
                Ok(Place { kind: OBJECT, incarnation: owner.incarnation, number })
            }
            Self::Promise(promise) => match promise.known() {
                None => {
                    let ProcessId { incarnation, .. } = promise.server;
                    Ok(Place { kind: PROMISE, incarnation, number: promise.number })
                }
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(made)) => match made.as_object() {
                    Some(object) if object.reference.owner.node == promise.server.node => made.place(),
                    _ => Err(CallError::NotExecuted(Refusal::ObjectElsewhere)),
                },
            },
        }
    }
}

/// Where a request for an object goes.
pub(in crate::rpc) struct Place {
    kind: u8,
    incarnation: u64,
    number: u64,
}

/// A request for an object, as it travels.
pub(in crate::rpc) struct Wrapped {
    pub(in crate::rpc) carrier: &'static MethodSchema,
    pub(in crate::rpc) body: Bytes,
}

/// Puts the head of a request for an object, and the number of its result if that is called ahead, before the arguments,
/// which begin at `at`.
///
/// # Errors
/// Why a call of it cannot succeed.
pub(in crate::rpc) fn wrap(
    target: &Target,
    method: &'static MethodSchema,
    signature: u32,
    promised: Option<u64>,
    (request, at): (&[u8], usize),
) -> Result<Wrapped, CallError> {
    let Place { kind, incarnation, number } = target.place()?;
    let (before, arguments) = request.split_at(at);
    let mut body = BytesMut::with_capacity(request.len() + HEAD_BYTES + size_of::<u64>());
    body.put_slice(before);
    body.put_u8(kind);
    body.put_u64_le(incarnation);
    body.put_u64_le(number);
    body.put_u32_le(method.id);
    body.put_u32_le(signature);
    if let Some(promised) = promised {
        body.put_u64_le(promised);
    }
    body.put_slice(arguments);
    Ok(Wrapped { carrier: counter::carrier_of(method, kind == PROMISE), body: body.freeze() })
}

/// A request for an object, as its owner finds it.
pub(super) struct Asked {
    /// It is for what another call will make.
    pub(super) is_ahead: bool,
    pub(super) incarnation: u64,
    pub(super) number: u64,
    pub(super) method: u32,
    pub(super) signature: u32,
    pub(super) arguments: Bytes,
}

impl Asked {
    pub(super) fn read(mut request: Bytes) -> Option<Self> {
        if request.len() < HEAD_BYTES {
            return None;
        }
        let is_ahead = match request.get_u8() {
            OBJECT => false,
            PROMISE => true,
            _ => return None,
        };
        Some(Self {
            is_ahead,
            incarnation: request.get_u64_le(),
            number: request.get_u64_le(),
            method: request.get_u32_le(),
            signature: request.get_u32_le(),
            arguments: request,
        })
    }
}

const HEAD_BYTES: usize = 25;
const OBJECT: u8 = 0;
const PROMISE: u8 = 1;
