//! What may go wrong, and the exit code that says so.

use std::error::Error;
use std::path::PathBuf;

use quorate::journal::{OpenError, ReadError};
use quorate::queue::{DeclareError, PutError, QueueError, QueuesOpenError, WorkError};

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{} is no directory of queues", .0.display())]
    NoDirectory(PathBuf),
    #[error("cannot open the queues")]
    Open(#[source] QueuesOpenError),
    #[error("there is no queue {0}")]
    NoQueue(String),
    #[error("there is nothing in {0}")]
    Nothing(String),
    #[error("a name is for one message, and there are {0}")]
    OneName(usize),
    #[error("cannot open the queue")]
    Declare(#[from] DeclareError),
    #[error("cannot put")]
    Put(#[from] PutError),
    #[error("cannot do that to the queue")]
    Queue(#[from] QueueError),
    #[error("cannot move")]
    Work(#[from] WorkError),
    #[error("the journal cannot be read")]
    Read(#[from] ReadError),
    #[error("a record of the journal is not understood")]
    Record(#[source] QueuesOpenError),
    #[error("cannot read or write")]
    Io(#[from] std::io::Error),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::OneName(_) => 2,
            Self::NoQueue(_) | Self::Nothing(_) => 3,
            Self::Open(QueuesOpenError::Journal(OpenError::InUse { .. })) => 4,
            Self::NoDirectory(_) | Self::Record(_) | Self::Read(ReadError::Corrupt(_)) => 5,
            Self::Open(QueuesOpenError::Journal(OpenError::Io { .. })) => 1,
            Self::Open(_) => 5,
            _ => 1,
        }
    }

    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
