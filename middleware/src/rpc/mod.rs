//! Remote procedure call: plain traits, called across processes.
//!
//! Purpose     `#[service]` on a trait gives a typed client and a server; a call looks like a local one and says, when
//!             it fails, what is known.
//! Guarantee   a request is executed *at most once*, however often it is sent: also when connections break, messages
//!             are repeated, or either side crashes and comes back. A method declared `#[idempotent]` may be executed
//!             again. Every call ends, at the latest at its deadline. Dropping a call cancels it on both sides.
//! Method      the machines of `quorate_protocols::rpc` behind two thin faces.
//! Around it   [`caller`] tells a handler for whom it runs: node, credentials, deadline, [`Metadata`], trace. [`Retry`] and
//!             [`Hedge`] repeat calls within a [`Budget`]; [`Manner`] says how a service works on its requests;
//!             [`Balanced`] chooses among servers; feature `tower` puts layers around either side.
//! Limits      [`ClientOptions`], [`ServeOptions`]; a request or reply is bounded by what a connection carries.
//!
//! | failure (Tanenbaum & van Steen) | what the caller sees |
//! | --- | --- |
//! | the server cannot be located | [`BindError`], at once, with what was tried |
//! | the request is lost | nothing: it is sent again under the same id |
//! | the server crashes | [`CallError::MaybeExecuted`], or for `#[idempotent]` methods the answer of the next life |
//! | the reply is lost | nothing: the kept reply is sent again |
//! | the client crashes | its next life ends what was executing for it |
//!
//! ```
//! use quorate::node::Node;
//! use quorate::service;
//!
//! #[service]
//! pub trait Greeter {
//!     /// Says hello.
//!     async fn greet(&self, name: String) -> String;
//! }
//!
//! struct Polite;
//!
//! impl Greeter for Polite {
//!     async fn greet(&self, name: String) -> String {
//!         format!("hello {name}")
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let server = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let _serving = server.serve("greeter", GreeterServer::new(Polite))?;
//!
//! let node = Node::builder().start().await?;
//! let greeter = GreeterClient::connect(&node, "greeter", &server.addresses()[0]).await?;
//! assert_eq!(greeter.greet("ann".into()).await?, "hello ann");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod answers;
mod balance;
mod call;
mod calling;
mod calls;
mod client;
mod compat;
mod context;
#[cfg(feature = "cookies")]
pub mod cookies;
mod deferred;
mod endings;
mod envelope;
mod error;
mod exactly_once;
mod executing;
#[doc(hidden)]
pub mod generated;
mod here;
mod manner;
mod metadata;
mod objects;
mod orphans;
mod pipe;
mod place;
mod port;
mod post;
mod replies;
mod retry;
mod schema;
mod server;
mod sessions;
mod stream;
mod stub;
mod to_client;
mod to_service;
mod together;
#[cfg(feature = "tower")]
pub mod tower;
mod trace;

pub use balance::{Balance, Balanced, Candidate, Failure, Nobody};
pub(crate) use balance::{Member, Seeker};
pub use client::{Client, ClientOptions, Patience};
pub use compat::{Change, Difference, Outline, OutlineError, check};
pub use context::{Caller, caller};
pub use deferred::Deferred;
pub use envelope::Compression;
pub use error::{BindError, CallError, EarlierFailure, NotSent, RpcError, ServeError};
pub use exactly_once::{
    Committed, Durable, DurableConfig, DurableOpenError, DurableStats, NotDurable, State, Transaction,
};
pub use manner::Manner;
pub use metadata::{
    Key, METADATA_BYTES_MAX, METADATA_ENTRIES_MAX, METADATA_KEY_BYTES_MAX, Metadata, MetadataError,
};
pub use objects::{
    Dangling, ExportError, Failed, ObjectId, Objects, ObjectsError, ObjectsOptions, ObjectsStats, Promised,
    Remote, Skeleton, Stub,
};
pub use orphans::{BindingLog, BindingLogError, Extermination, Noted};
pub use place::{Here, IntoPlace, Place};
pub use quorate_protocols::rpc::{
    ClientStats, CompletionStats, Doubt, Orphans, Refusal, Rejection, ServerStats,
};
pub use retry::{Budget, Hedge, Retry, RetryStats};
pub use schema::{ArgumentSchema, MethodSchema, Schema, Semantics};
pub use server::{ServeOptions, ServeStats, Service, Serving};
pub use sessions::{NoRoom, SessionId, SessionLost, Sessions, SessionsFull, SessionsOptions, SessionsStats};
pub use stream::{Incoming, Outgoing, StreamError, stream};
pub use together::{NotEnough, Wanted, together};
pub use trace::{TraceContext, TraceError};
