//! What went wrong, and what is known: was it sent, was it executed, may it be tried again.

use std::fmt;
use std::time::Duration;

use quorate_protocols::rpc::{Doubt, Refusal, Rejection};

use super::metadata::MetadataError;
use super::objects::{Dangling, Failed};
use crate::codec::{DecodeError, EncodeError};
use crate::node;

/// Why a call has no answer of the service. The variant says what is known of its execution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request never left: it was not executed and will not be.
    #[error("not sent: {0}")]
    NotSent(NotSent),
    /// The server has it and did not execute it; it will not execute it later.
    #[error("not executed: {0}")]
    NotExecuted(Refusal),
    /// It was sent; it may have been executed or not. Find out by asking the service before repeating it.
    #[error("may have been executed: {0}")]
    MaybeExecuted(Doubt),
    /// The deadline passed first. If `sent`, it may have been executed, or may yet be.
    #[error("no answer within {deadline:?} ({})", if *.sent { "it may have been executed" } else { "it was never sent" })]
    DeadlinePassed {
        /// How long the caller was willing to wait.
        deadline: Duration,
        /// Whether the request ever left.
        sent: bool,
    },
    /// It was called ahead of the result of an earlier call, which failed: there is nothing to call. It was not executed and
    /// will not be.
    #[error("not executed: {service}::{method}, call {position} of the chain, failed: {why}")]
    EarlierFailed {
        /// The service or object that was called first: its trait.
        service: &'static str,
        /// The method that failed.
        method: &'static str,
        /// Its place in the chain of calls that were made ahead of each other, from 1.
        position: u32,
        /// How.
        why: EarlierFailure,
    },
    /// This node was shut down while the call was under way; it may have been executed, or may yet be.
    #[error("the node was shut down during the call; it may have been executed")]
    NodeShutDown,
    /// A layer of this client ended the call; the error says whether it had been sent. See
    /// [`tower`](crate::rpc::tower).
    #[cfg(feature = "tower")]
    #[error("a layer of the client ended the call: {0}")]
    Layer(super::tower::LayerError),
    /// It was executed, but this side does not understand the result: the two sides differ in a type.
    #[error("executed, but the result is not understood: {0}")]
    BadReply(DecodeError),
}

/// Why a request never left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSent {
    /// The arguments have no representation in the codec. The caller's own fault.
    #[error("{0}")]
    Encode(EncodeError),
    /// What the client says beside the arguments, and what the handler that calls was told to pass on, are together more
    /// than may travel.
    #[error("{0}")]
    Metadata(MetadataError),
    /// The request exceeds what the connection carries. The caller's own fault.
    #[error("a request of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit of the connection.
        limit: usize,
    },
    /// Nobody is there who could be asked: all servers behind the name have gone. Retry when one has come.
    #[error("nobody is there to be asked")]
    NoServer,
    /// This client has as many calls outstanding as it may. Retry when one has ended.
    #[error("{limit} calls are outstanding already")]
    TooManyCalls {
        /// The limit.
        limit: u32,
    },
    /// The connection is full, and so many bytes of one-way calls wait for it already. Retry when it has caught up.
    #[error("{waiting} bytes of one-way calls wait for the connection already (limit {limit})")]
    NoRoom {
        /// Bytes that wait.
        waiting: usize,
        /// The limit.
        limit: usize,
    },
    /// References need `Objects` on this node.
    #[error("the remote objects of this node are not open")]
    NoObjects,
    /// The node of the object that is called has not been heard for longer than the lease. Retry when it is reachable:
    /// it may still have the object.
    #[error("the node of the object is gone")]
    ObjectsNodeGone,
    /// The node of the object does not let this one hold so many. Drop some and get a new reference.
    #[error("this node holds too many objects of the other one")]
    TooManyReferences,
    /// This node is being shut down.
    #[error("the node is shut down")]
    NodeShutDown,
}

impl CallError {
    /// No object is or will be there for those who called ahead of this call.
    pub(super) fn is_final_for_others(&self) -> bool {
        match self {
            Self::EarlierFailed { why: EarlierFailure::Call(error), .. } => error.is_not_executed(),
            error => error.is_not_executed(),
        }
    }

    /// What has become of the object that was called; `None` when the error does not say that of it.
    pub const fn dangling(&self) -> Option<Dangling> {
        match self {
            Self::NotExecuted(Refusal::ObjectGone) | Self::NotSent(NotSent::TooManyReferences) => {
                Some(Dangling::ObjectGone)
            }
            Self::NotExecuted(Refusal::OtherLife) => Some(Dangling::OtherLife),
            Self::NotSent(NotSent::ObjectsNodeGone) => Some(Dangling::NodeGone),
            _ => None,
        }
    }

    /// True when the same call may succeed later without change, and repeating it cannot execute it twice.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::NotSent(reason) => {
                matches!(reason, NotSent::TooManyCalls { .. } | NotSent::NoRoom { .. } | NotSent::NoServer)
            }
            Self::NotExecuted(refusal) => {
                matches!(
                    refusal,
                    Refusal::Overloaded
                        | Refusal::ShuttingDown
                        | Refusal::DeadlinePassed
                        | Refusal::JournalFailed
                )
            }
            Self::DeadlinePassed { sent, .. } => !*sent,
            Self::EarlierFailed { why: EarlierFailure::Call(error), .. } => error.is_retryable(),
            Self::EarlierFailed { why: EarlierFailure::Application, .. }
            | Self::MaybeExecuted(_)
            | Self::NodeShutDown
            | Self::BadReply(_) => false,
            // Whether it makes sense only the layer knows.
            #[cfg(feature = "tower")]
            Self::Layer(_) => false,
        }
    }

    /// True when it is certain that the call was not executed and will not be.
    pub const fn is_not_executed(&self) -> bool {
        match self {
            #[cfg(feature = "tower")]
            Self::Layer(error) => !error.is_sent(),
            error => {
                matches!(
                    error,
                    Self::NotSent(_)
                        | Self::NotExecuted(_)
                        | Self::DeadlinePassed { sent: false, .. }
                        | Self::EarlierFailed { .. }
                )
            }
        }
    }
}

/// How an earlier call failed, as those are told who called ahead of its result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EarlierFailure {
    /// The service said so by its own error, which its caller has.
    #[error("the service answered with an error")]
    Application,
    /// There is no answer of the service.
    #[error("{0}")]
    Call(Box<CallError>),
}

impl Failed for CallError {
    fn failure(&self) -> EarlierFailure {
        EarlierFailure::Call(Box::new(self.clone()))
    }
}

impl<E> Failed for RpcError<E> {
    fn failure(&self) -> EarlierFailure {
        match self {
            Self::Application(_) => EarlierFailure::Application,
            Self::Call(error) => error.failure(),
        }
    }
}

/// Why a method that returns `Result<T, E>` did not give a `T`: the service said `E`, or there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RpcError<E> {
    /// The service executed the call and this is its answer.
    Application(E),
    /// There is no answer of the service; the inner error says what is known.
    Call(CallError),
}

impl<E> RpcError<E> {
    /// The service's own error.
    pub fn application(self) -> Option<E> {
        match self {
            Self::Application(error) => Some(error),
            Self::Call(_) => None,
        }
    }

    /// As [`CallError::dangling`]; an answer of the object says that it is there.
    pub const fn dangling(&self) -> Option<Dangling> {
        match self {
            Self::Application(_) => None,
            Self::Call(error) => error.dangling(),
        }
    }

    /// As [`CallError::is_retryable`]; an answer of the service is none.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Application(_) => false,
            Self::Call(error) => error.is_retryable(),
        }
    }
}

impl<E> From<CallError> for RpcError<E> {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl<E: fmt::Display> fmt::Display for RpcError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Application(error) => error.fmt(f),
            Self::Call(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for RpcError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // Transparent: both print as themselves, so their own sources follow.
        match self {
            Self::Application(error) => error.source(),
            Self::Call(error) => error.source(),
        }
    }
}

/// Why a client could not bind to a service, with what was tried. Nothing was executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The text is no address.
    #[error("no address")]
    Address(#[source] quorate_transports::AddressError),
    /// No node answered there.
    #[error("service {service:?}: no node at {address}")]
    Unreachable {
        /// The service that was wanted.
        service: String,
        /// Where it was looked for.
        address: String,
        /// What the connection said.
        #[source]
        source: node::ConnectError,
    },
    /// Nothing at the address answered in time.
    #[error("service {service:?}: no connection to {address} within {waited:?}")]
    NoConnection {
        /// The service that was wanted.
        service: String,
        /// Where it was looked for.
        address: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A node answered, and refused.
    #[error("service {service:?} of node {node} at {address}: {reason}")]
    Rejected {
        /// The service that was wanted.
        service: String,
        /// Where it was looked for.
        address: String,
        /// Who answered.
        node: node::Identity,
        /// Why.
        reason: Rejection,
    },
    /// A node stands there but did not answer for the service in time.
    #[error("service {service:?} of node {node} at {address}: no answer within {waited:?}")]
    NoAnswer {
        /// The service that was wanted.
        service: String,
        /// Where it was looked for.
        address: String,
        /// Who was asked.
        node: node::Identity,
        /// How long was waited.
        waited: Duration,
    },
    /// This node is being shut down.
    #[error("the node is shut down")]
    NodeShutDown,
}

impl BindError {
    /// True when binding may succeed later without change.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoConnection { .. } | Self::NoAnswer { .. } => true,
            Self::Rejected { reason, .. } => !matches!(reason, Rejection::CodecMismatch),
            Self::Address(_) | Self::NodeShutDown => false,
        }
    }
}

/// Why a service could not be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The node serves something by this name already.
    #[error("the node serves {name:?} already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A method is declared `#[exactly_once]`, for which the service needs a durable state: use
    /// [`serve_durable`](crate::node::Node::serve_durable).
    #[error("method {method:?} of {name:?} is exactly-once: serve it with a durable state")]
    NeedsDurable {
        /// The name.
        name: String,
        /// The method.
        method: &'static str,
    },
}
