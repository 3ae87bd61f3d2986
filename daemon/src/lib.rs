//! The endpoint daemon of a host, and its superserver.
//!
//! Purpose     services of a host are found at one well-known address; those that are configured are started when
//!             somebody looks for them, and stopped when they have been idle. The binary `quorate-superd` is this library
//!             with a file of settings; a program of yours may have it inside by [`Superserver::start`].
//! Guarantee   a service has at most one process, however many ask for it at once. Whoever asks is answered when the
//!             process has registered, that is, when it serves; or is told why there is none, within the service's
//!             `ready_ms_max`. A process that is stopped for being idle refuses what still comes (nothing was executed),
//!             and its clients find the next one by asking again; only a request that is on its way for longer than the
//!             process lingers (half a second) is left to its own deadline. A process that dies is registered no more at
//!             once. Processes outlive the death of the daemon; its next life adopts them.
//! Method      the daemon is a directory ([`quorate::naming`]) that is told of names that are wanted and not there. The
//!             alternatives were to hold the listening socket and hand it to the process, as inetd does: that needs a
//!             medium with sockets to inherit, which `quic://`, `udp://` and `mem://` have not, and the superserver would
//!             have to know every port; and to relay the requests, which costs every call another hop. Answering late
//!             works for every medium and costs a call nothing.
//! Limits      [`Config`]: processes in all, time to be ready, to stop, pauses after crashes. Unix; processes that outlived
//!             the daemon are adopted on Linux, and elsewhere go on without a superserver.
//! Source      inetd; systemd's socket activation; Tanenbaum & van Steen, servers and superservers.
#![cfg(unix)]

mod config;
mod error;
mod keeper;
mod process;
mod program;
mod records;
mod superserver;

pub use config::{Config, Service};
pub use error::{ConfigError, StartError};
pub use program::run;
pub use superserver::Superserver;
