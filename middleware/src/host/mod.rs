//! Finding services of a host: its directory at a well-known address, and tenants that are started when somebody asks.
//!
//! Purpose     a client need not know the port of a server: every host has an *endpoint daemon* at a well-known address,
//!             where servers register and clients ask. The daemon may be a *superserver*, which starts the process of a
//!             service when the first request for it comes, and stops it when it has been idle.
//! Guarantee   a server stays registered over restarts of the daemon, for what is registered is a wish of its owner that
//!             is seen to. A tenant that is told to go is registered no more before it refuses anything, finishes what
//!             it has begun, and refuses what still comes: whoever is refused knows that nothing was executed, and finds
//!             the next life by asking again.
//! Method      the daemon is a [directory](crate::naming) of one replica; [`Names::find`] tells it of a name that is
//!             wanted and not there. [`Tenant`] is the other half of a superserver, in the service's process; the package
//!             `quorate-superd` is the daemon.
//! Limits      those of the directory; one [`Tenant`] a node. Idle is a service that was not called and executes
//!             nothing: streams that outlive their call do not count.
//! Source      Tanenbaum & van Steen, "Distributed Systems": servers, end points and superservers; inetd.
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::naming::{Directory, Names};
//! use quorate::{Node, host, service};
//!
//! #[service]
//! pub trait Greeter {
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
//! // The daemon. Its address is well known; here any free port will do.
//! let daemon = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let _directory = Directory::found(&daemon).await?;
//! let at_daemon = daemon.addresses();
//!
//! // A server; `host::names(&node)` asks at the well-known address.
//! let node = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
//! let serving = node.serve("greeter", GreeterServer::new(Polite))?;
//! let names = Names::connect(&node, &at_daemon).await?;
//! let _tenant = host::Tenant::offer_at(&node, &names, "greeter", serving).await?;
//!
//! // A client.
//! let node = Node::builder().start().await?;
//! let names = Names::connect(&node, &at_daemon).await?;
//! let found = names.find("greeter", Duration::from_secs(5)).await?;
//! let greeter = GreeterClient::connect(&node, "greeter", &found[0].addresses[0]).await?;
//! assert_eq!(greeter.greet("ann".into()).await?, "hello ann");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod control;
mod tenant;

use quorate_transports::AddressError;

pub use control::{ControlClient, SERVICE, Staying, Ticket};
pub use tenant::Tenant;

use crate::naming::{Names, NamesError};
use crate::node::{Address, Node};
use crate::rpc::ServeError;

/// Where the directory of a host is, unless [`DIRECTORY_VARIABLE`] says otherwise.
pub const WELL_KNOWN: &str = "tcp://127.0.0.1:7117";

/// The environment variable that says where the directory of this host is: its addresses, separated by spaces.
pub const DIRECTORY_VARIABLE: &str = "QUORATE_DIRECTORY";

/// Where the directory of this host is.
///
/// # Errors
/// [`HostError::Address`] when the environment names something else than addresses.
pub fn directory() -> Result<Vec<Address>, HostError> {
    let text = std::env::var(DIRECTORY_VARIABLE).unwrap_or_else(|_| WELL_KNOWN.to_owned());
    let parse =
        |text: &str| text.parse().map_err(|source| HostError::Address { text: text.to_owned(), source });
    text.split_whitespace().map(parse).collect()
}

/// A handle to the directory of this host.
///
/// # Errors
/// [`HostError::Address`], [`HostError::Names`].
pub async fn names(node: &Node) -> Result<Names, HostError> {
    Ok(Names::connect(node, &directory()?).await?)
}

/// Why there is no way to the directory of this host, or nothing is offered there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The environment names something else than an address of the directory.
    #[error("no address in {DIRECTORY_VARIABLE}: {text:?}")]
    Address {
        /// What stands there.
        text: String,
        /// What is wrong with it.
        #[source]
        source: AddressError,
    },
    /// The environment says that a superserver started this process, and does not say how.
    #[error("no ticket in {}: {text:?}", control::TICKET_VARIABLE)]
    Ticket {
        /// What stands there.
        text: String,
    },
    /// The directory does not take it.
    #[error("the directory of this host")]
    Names(#[from] NamesError),
    /// The node has a tenant already.
    #[error("what the superserver calls cannot be served")]
    Serve(#[from] ServeError),
}
