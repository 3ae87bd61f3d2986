//! Why a daemon does not start.

use std::io;
use std::path::PathBuf;

use quorate::naming::{DirectoryError, NamesError};
use quorate::transports::AddressError;

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is no TOML, or has fields that there are not.
    #[error("{} is not understood", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Something that must be an address is none.
    #[error("listen: {text:?} is no address")]
    Address {
        /// What stands there.
        text: String,
        /// What is wrong with it.
        #[source]
        source: AddressError,
    },
    /// A field has a value that makes no sense.
    #[error("{field}: {reason}")]
    Field {
        /// Which one.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a daemon could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings are wrong.
    #[error("settings")]
    Config(#[from] ConfigError),
    /// The node could not be started: the address may be taken, by another daemon for example.
    #[error("the daemon cannot listen")]
    Node(#[from] quorate::node::StartError),
    /// The node has a directory already.
    #[error("no directory")]
    Directory(#[from] DirectoryError),
    /// The daemon cannot ask its own directory.
    #[error("the own directory does not answer")]
    Names(#[from] NamesError),
    /// What earlier lives of the daemon noted cannot be read, or cannot be written anew.
    #[error("{} cannot be used", path.display())]
    State {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The system gives no signals to wait for, or no runtime.
    #[error("the system")]
    System(#[from] io::Error),
}
