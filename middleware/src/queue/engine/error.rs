//! What can go wrong between a program and the engine that it chose.

use std::error::Error;

use super::super::error::DeclareError;

/// Why something did not happen. Unless a variant says otherwise, *nothing* was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// It is not the URL of an engine, or lacks a part. (Its text is not repeated: it may have a password.)
    #[error("the engine's url {reason}")]
    Url {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The engine is not part of this build.
    #[error("this build has no engine for `{scheme}:`; enable the feature `{feature}` of quorate")]
    NotBuilt {
        /// What the URL begins with.
        scheme: &'static str,
        /// What to enable.
        feature: &'static str,
    },
    /// The name of the queue, or a setting, is not one.
    #[error("the queue cannot be declared")]
    Declare(#[from] DeclareError),
    /// The message asks for what this engine cannot do. Retrying cannot help.
    #[error("this engine has no {what}")]
    Unsupported {
        /// What it asks for.
        what: &'static str,
    },
    /// The message exceeds the limit. Retrying cannot help.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A message's key has more than 255 bytes, or its name not 1 to 255.
    #[error("the {field} has a wrong length")]
    Label {
        /// Which of them.
        field: &'static str,
    },
    /// The engine cannot be reached, or not any more, or has no means to do it now (a full disk, say). Retry later: where the
    /// connection broke it is made anew.
    #[error("the engine cannot be reached")]
    Unreachable(#[source] Box<dyn Error + Send + Sync>),
    /// The connection broke, or the engine was silent, after a message or its acknowledgement had left: it **may or may
    /// not** have been stored. Retry with the same [name](super::super::Message::name), where the engine knows names.
    #[error("the outcome is unknown")]
    Unknown(#[source] Box<dyn Error + Send + Sync>),
    /// The engine said no: there is no such queue any more, say, or one with other settings.
    #[error("the engine refused")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
    /// The lease ran out: the message comes again, or has come.
    #[error("the lease on the message was lost")]
    LeaseLost,
    /// The queues were closed.
    #[error("the queues are closed")]
    Closed,
}

impl EngineError {
    /// True when the same call may succeed later without change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unknown(_))
    }
}
