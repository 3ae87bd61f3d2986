//! Framed messages and datagrams behind one contract.
//!
//! Purpose     moves bytes between processes and knows nothing of what they mean.
//! Guarantee   a [`Link`] delivers whole frames, in order, without repetition or alteration, until it breaks; what
//!             was handed over when it broke may or may not have arrived. Every buffer has a limit.
//! Contract    [`transport`]: a [`Transport`] per scheme, collected in a [`Registry`]. No allocation and no boxed
//!             future per frame: polls move batches between an [`Outbox`], the medium and an [`Inbox`].
//! Rooms       [`mem`] (inside one process), [`tcp`] (feature `tcp`, on by default), `unix`, `tls`, `quic`, `udp`
//!             (features of their names), [`sim`] (a whole simulated
//!             network), [`fault`] (faults on any transport, and their model), [`connection`] (handshake and lanes on
//!             any link), `conformance` (feature `conformance`: checks for any transport).

pub mod address;
#[cfg(any(feature = "tls", feature = "quic"))]
mod certificates;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod connection;
pub mod credentials;
pub mod error;
pub mod fault;
pub mod frame;
pub mod gate;
pub mod identity;
pub mod mem;
#[cfg(any(feature = "quic", feature = "udp"))]
mod probe;
#[cfg(feature = "quic")]
pub mod quic;
pub mod registry;
#[cfg(any(feature = "quic", feature = "udp"))]
mod release;
pub mod sim;
pub mod stream;
#[cfg(feature = "tcp")]
pub mod tcp;
mod timer;
#[cfg(feature = "tls")]
pub mod tls;
pub mod transport;
#[cfg(feature = "udp")]
pub mod udp;
#[cfg(all(unix, feature = "unix"))]
pub mod unix;

pub use address::{Address, AddressError};
#[cfg(any(feature = "tls", feature = "quic"))]
pub use certificates::{Certificates, CertificatesError};
pub use credentials::{Certificate, Credentials, ProcessCredentials};
pub use error::{LinkError, TransportError, TrustError};
pub use frame::{FrameError, Inbox, Outbox};
pub use identity::{Identity, Incarnation, NodeId};
pub use registry::Registry;
pub use transport::{BoxFuture, DatagramSocket, FrameReceiver, FrameSender, Link, Listener, Transport};
