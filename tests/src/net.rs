//! Networks that tests run on: the medium is a parameter, and every test of what stands above takes all of them.
//!
//! Another medium is one line in [`SCHEMES`] and one in [`transport`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate::node::{Node, NodeBuilder};
use quorate_transports::fault::model::LinkModel;
use quorate_transports::mem::Mem;
use quorate_transports::quic::Quic;
use quorate_transports::sim::{SimConfig, SimNetwork};
use quorate_transports::tcp::Tcp;
use quorate_transports::tls::Tls;
use quorate_transports::udp::Udp;
#[cfg(unix)]
use quorate_transports::unix::Unix;
use quorate_transports::{
    Address, BoxFuture, Certificates, DatagramSocket, Link, Listener, Transport, TransportError,
};

use crate::authority::Authority;

/// The media that carry whole nodes.
#[cfg(unix)]
const SCHEMES: [&str; 7] = ["mem", "tcp", "unix", "tls", "quic", "udp", "sim"];
#[cfg(not(unix))]
const SCHEMES: [&str; 6] = ["mem", "tcp", "tls", "quic", "udp", "sim"];
/// Those that end at the process.
const WITHIN: [&str; 2] = ["mem", "sim"];

fn transport(scheme: &str, place: &Path) -> Arc<dyn Transport> {
    match scheme {
        "mem" => Arc::new(Mem::new()),
        // In true time here, and so without latency; seeds and faults are for stories of their own.
        "sim" => Arc::new(simulated().transport("host")),
        "tcp" => Arc::new(Tcp::new()),
        #[cfg(unix)]
        "unix" => Arc::new(Unix::new()),
        "tls" => Arc::new(Tls::new(certificates(place))),
        "quic" => Arc::new(Quic::new(certificates(place))),
        "udp" => Arc::new(Udp::new()),
        other => panic!("no medium {other:?}"),
    }
}

/// A network that a test runs on. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    scheme: &'static str,
    listen: String,
    transport: Shared,
    place: PathBuf,
    /// What the place is removed with.
    _kept: Option<Arc<tempfile::TempDir>>,
}

/// Every network that carries whole nodes in one process.
///
/// # Panics
/// Without a directory for temporary files.
pub fn nets() -> Vec<Net> {
    SCHEMES.into_iter().map(Net::new).collect()
}

/// Every network that carries nodes of several processes.
pub fn nets_between_processes() -> Vec<Net> {
    SCHEMES.into_iter().filter(|scheme| !WITHIN.contains(scheme)).map(Net::new).collect()
}

/// The one within the process.
pub fn memory() -> Net {
    Net::new("mem")
}

/// The one of which there is most in the world.
pub fn tcp() -> Net {
    Net::new("tcp")
}

impl Net {
    fn new(scheme: &'static str) -> Self {
        let place = tempfile::tempdir().expect("a directory for temporary files");
        // One certificate for all who meet on this network.
        let authority = Authority::new();
        let (chain, key) = authority.signed(&["127.0.0.1"]);
        for (name, text) in CERTIFICATE_FILES.into_iter().zip([authority.pem(), chain, key]) {
            std::fs::write(place.path().join(name), text).expect("a file in it");
        }
        let net = Self::at(scheme, place.path());
        Self { _kept: Some(Arc::new(place)), ..net }
    }

    fn at(scheme: &'static str, place: &Path) -> Self {
        let listen = match scheme {
            "mem" => "mem://".to_owned(),
            "sim" => "sim://host:0".to_owned(),
            "unix" => format!("unix://{}/*", place.display()),
            _ => format!("{scheme}://127.0.0.1:0"),
        };
        let transport = Shared(transport(scheme, place));
        Self { scheme, listen, transport, place: place.to_owned(), _kept: None }
    }

    /// What another process of the test can [find](Self::found) this network by.
    pub fn description(&self) -> String {
        format!("{} {}", self.scheme, self.place.display())
    }

    /// The network of another process of the test, which keeps it for as long as it lives.
    ///
    /// # Panics
    /// When `description` is none.
    pub fn found(description: &str) -> Self {
        let (scheme, place) = description.split_once(' ').expect("a description");
        let scheme = SCHEMES.into_iter().find(|known| *known == scheme).expect("a medium");
        Self::at(scheme, Path::new(place))
    }

    /// What its addresses begin with.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Where a node may listen: at any free place.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// Where nobody listens.
    pub fn nobody(&self) -> String {
        match self.scheme {
            "mem" => "mem://nobody".to_owned(),
            "sim" => "sim://host:1".to_owned(),
            "unix" => format!("unix://{}/nobody", self.place.display()),
            scheme => format!("{scheme}://127.0.0.1:1"),
        }
    }

    /// What carries it, to be wrapped.
    pub fn transport(&self) -> impl Transport + use<> {
        self.transport.clone()
    }

    /// A node that listens on this network.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn node(&self, id: u64) -> Node {
        self.builder(id).start().await.expect("the node starts")
    }

    /// A node on this network that is still to be given its limits.
    pub fn builder(&self, id: u64) -> NodeBuilder {
        self.dialler(id).listen(&*self.listen)
    }

    /// One that only dials.
    pub fn dialler(&self, id: u64) -> NodeBuilder {
        // Shown when the test fails: over which medium.
        println!("node {id} over {}", self.scheme);
        Node::builder().id(id).transport(self.transport.clone())
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.listen)
    }
}

/// One transport for many nodes.
#[derive(Clone)]
struct Shared(Arc<dyn Transport>);

impl Transport for Shared {
    fn scheme(&self) -> &'static str {
        self.0.scheme()
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        self.0.listen(address)
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        self.0.connect(address)
    }

    fn bind<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn DatagramSocket>, TransportError>> {
        self.0.bind(address)
    }
}

fn simulated() -> SimNetwork {
    let mut config = SimConfig::default();
    config.link = LinkModel::PERFECT;
    SimNetwork::with_config(1, config)
}

fn certificates(place: &Path) -> Certificates {
    let [trusted, chain, key] = CERTIFICATE_FILES
        .map(|name| std::fs::read_to_string(place.join(name)).expect("written when the network was made"));
    Certificates::from_pem(&trusted, &chain, &key).expect("certificates made just now")
}

/// Who is trusted, the own chain, its key.
const CERTIFICATE_FILES: [&str; 3] = ["authority.pem", "chain.pem", "key.pem"];
