//! Clients that find their servers by name.
//!
//! Purpose     a service that several processes register under one name is called as one: who is there now is asked, by a
//!             policy.
//! Guarantee   a server that registers is used as soon as the directory tells of it, one whose entry goes is given up,
//!             and one that comes back under another life or another address is bound anew, without the callers' doing.
//!             What a dead server leaves in the directory until its lease ends is passed over.
//!             The directory of a superserver is asked to start what is called and not there.
//! Method      a task follows the name and keeps the list of a [`Balanced`]; each entry has a task of its own that binds,
//!             again and again while the entry stands. While the directory is not reachable, the list stays as it was.
//! Limits      `SERVERS_MAX` servers of one name; further ones are not used.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use quorate_transports::BoxFuture;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::entry::{Found, Query};
use super::error::{NameError, NamesError};
use super::names::Names;
use crate::node::{Address, Node};
use crate::rpc::{Balance, Balanced, BindError, Candidate, ClientOptions, Member, Place, Seeker};

/// How clients that find their servers by name behave.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoundOptions {
    /// Who is asked next. Default: one after the other.
    pub balance: Balance,
    /// Servers whose entry has this attribute are asked before all others: `("rack", "12")`. Default: none is nearer.
    pub near: Option<(String, String)>,
    /// Only servers whose entry has all these attributes are asked. Default: all under the name.
    pub attributes: BTreeMap<String, String>,
    /// Of the client of each server. [`ClientOptions::bind_deadline`] is how long a superserver may take to start one, and
    /// again how long is tried to bind to the first.
    pub client: ClientOptions,
}

impl Default for BoundOptions {
    fn default() -> Self {
        Self {
            balance: Balance::RoundRobin,
            near: None,
            attributes: BTreeMap::new(),
            client: ClientOptions::default(),
        }
    }
}

/// Why nobody was found under a name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BoundError {
    /// The directory did not answer.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// Nobody is registered under the name, or nobody with the attributes, and nobody is there to start it.
    #[error("nobody offers {name:?}")]
    Nobody {
        /// The name.
        name: String,
    },
    /// Servers are registered, and none could be bound to in time.
    #[error("no server of {name:?} could be bound to within {waited:?} ({})", .last.as_ref().map_or_else(|| "none has answered".to_owned(), ToString::to_string))]
    Unbound {
        /// The name.
        name: String,
        /// How long was waited.
        waited: Duration,
        /// What the last attempt said.
        #[source]
        last: Option<Arc<BindError>>,
    },
}

/// Clients of all servers that are registered under a name: what a generated client's `connect_by_name` gives. Dropping it
/// ends the following; clones of its [`Balanced`] keep the last list.
pub struct Bound<K> {
    servers: Balanced<K>,
    name: String,
    task: AbortHandle,
}

impl<K: Candidate> Bound<K> {
    /// Follows `name` in the directory and binds to the service of that name at every server there. Returns when the first
    /// is bound. Must be called within a tokio runtime.
    ///
    /// Where the directory is an endpoint daemon's, a service that is not there is started, now and whenever a
    /// [`call`](Balanced::call) finds nobody; following it alone keeps nothing running.
    ///
    /// # Errors
    /// [`BoundError`].
    /// # Cancel safety
    /// Dropping the future leaves nothing behind but connections that others may use.
    pub async fn connect(names: &Names, name: &str, options: BoundOptions) -> Result<Self, BoundError> {
        let query =
            options.attributes.iter().fold(Query::named(name), |query, (key, value)| query.with(key, value));
        let waited = options.client.bind_deadline;
        // Told at once when there is nobody, and by whom the directory is not reached.
        if names.lookup_latest(&query).await?.is_empty() {
            let is_wanted = |found: &Found| {
                options.attributes.iter().all(|(key, value)| found.attributes.get(key) == Some(value))
            };
            match names.start(name, waited).await {
                Ok(started) if started.iter().any(is_wanted) => {}
                Ok(_) | Err(NamesError::Refused(NameError::NotRegistered { .. })) => {
                    return Err(BoundError::Nobody { name: name.to_owned() });
                }
                Err(error) => return Err(error.into()),
            }
        }
        let (told, mut news) = watch::channel(News::default());
        let seeker = Starting { names: names.clone(), name: name.to_owned(), waited, news: news.clone() };
        let servers = Balanced::empty(options.balance, Some(Box::new(seeker)));
        let following = Following {
            node: names.node().clone(),
            name: name.to_owned(),
            options,
            servers: servers.clone(),
            entries: BTreeMap::new(),
            binding: JoinSet::new(),
            told,
        };
        let task = tokio::spawn(following.run(names.clone(), query)).abort_handle();
        let bound = Self { servers, name: name.to_owned(), task };
        let is_bound = tokio::time::timeout(waited, news.wait_for(|news| news.is_bound)).await;
        if is_bound.is_ok_and(|told| told.is_ok()) {
            return Ok(bound);
        }
        let last = news.borrow().last.clone();
        Err(BoundError::Unbound { name: name.to_owned(), waited, last })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<K> Deref for Bound<K> {
    type Target = Balanced<K>;

    fn deref(&self) -> &Balanced<K> {
        &self.servers
    }
}

impl<K> Drop for Bound<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K> fmt::Debug for Bound<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("name", &self.name).field("servers", &self.servers).finish()
    }
}

/// Asks a superserver to start what is called and not there.
struct Starting {
    names: Names,
    name: String,
    waited: Duration,
    news: watch::Receiver<News>,
}

impl Seeker for Starting {
    fn seek<'a>(&'a self, is_there: &'a (dyn Fn() -> bool + Sync)) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let mut news = self.news.clone();
            match self.names.start(&self.name, self.waited).await {
                Ok(found) if !found.is_empty() => {}
                _ => return false,
            }
            let is_bound = tokio::time::timeout(self.waited, news.wait_for(|_| is_there())).await;
            is_bound.is_ok_and(|told| told.is_ok())
        })
    }
}

/// What who waits for a server is told.
#[derive(Debug, Default)]
struct News {
    is_bound: bool,
    last: Option<Arc<BindError>>,
}

/// The task that keeps the list.
struct Following<K> {
    node: Node,
    name: String,
    options: BoundOptions,
    servers: Balanced<K>,
    /// By their addresses: what is registered twice at the same place is one server.
    entries: BTreeMap<Vec<Address>, Server<K>>,
    binding: JoinSet<Tried<K>>,
    told: watch::Sender<News>,
}

struct Server<K> {
    /// Of the entry: a server that comes back registers anew.
    version: u64,
    is_near: bool,
    member: Option<Arc<Member<K>>>,
    binding: Option<AbortHandle>,
}

/// What became of an attempt to bind.
struct Tried<K> {
    addresses: Vec<Address>,
    version: u64,
    pause: Duration,
    result: Result<K, BindError>,
}

impl<K: Candidate> Following<K> {
    async fn run(mut self, names: Names, query: Query) {
        let mut watch = names.watch(query);
        loop {
            tokio::select! {
                found = watch.next() => match found {
                    Ok(found) => self.on_found(found),
                    Err(NamesError::Unreachable { .. }) => tokio::time::sleep(PAUSE_MIN).await,
                    Err(error) => {
                        tracing::warn!(name = self.name, %error, "a name is followed no more");
                        return;
                    }
                },
                Some(tried) = self.binding.join_next(), if !self.binding.is_empty() => {
                    // One that was given up has nothing to say.
                    if let Ok(tried) = tried {
                        self.on_tried(tried);
                    }
                }
            }
        }
    }

    fn on_found(&mut self, mut found: Vec<Found>) {
        found.truncate(SERVERS_MAX);
        let near = self.options.near.clone();
        let is_near = |found: &Found| {
            near.as_ref().is_some_and(|(key, value)| found.attributes.get(key) == Some(value))
        };
        let mut before = std::mem::take(&mut self.entries);
        for found in found.into_iter().filter(|found| !found.addresses.is_empty()) {
            let is_near = is_near(&found);
            let Found { addresses, version, .. } = found;
            let known = self.entries.remove(&addresses).or_else(|| before.remove(&addresses));
            let mut server = known.unwrap_or(Server { version, is_near, member: None, binding: None });
            server.member.iter().for_each(|member| member.set_near(is_near));
            server.is_near = is_near;
            let is_newer = version > server.version;
            server.version = server.version.max(version);
            // Another life may stand there, and under another number.
            let is_lost = server.member.as_ref().is_some_and(|member| !member.client.is_reachable());
            if server.binding.is_none() && (server.member.is_none() || is_newer && is_lost) {
                server.binding = Some(self.bind(addresses.clone(), server.version, Duration::ZERO));
            }
            self.entries.insert(addresses, server);
        }
        for gone in before.into_values() {
            gone.binding.iter().for_each(AbortHandle::abort);
        }
        self.publish();
    }

    fn on_tried(&mut self, tried: Tried<K>) {
        let Tried { addresses, version, pause, result } = tried;
        let Some(server) = self.entries.get_mut(&addresses) else { return };
        server.binding = None;
        match result {
            Ok(client) => {
                server.member = Some(Member::new(client, server.is_near));
                self.publish();
            }
            Err(error) => {
                tracing::debug!(name = self.name, %error, "a server could not be bound to");
                let (pause, version) = (pause.max(PAUSE_MIN / 2) * 2, server.version.max(version));
                let again = self.bind(addresses.clone(), version, pause.min(PAUSE_MAX));
                if let Some(server) = self.entries.get_mut(&addresses) {
                    server.binding = Some(again);
                }
                self.told.send_modify(|news| news.last = Some(Arc::new(error)));
            }
        }
    }

    fn publish(&self) {
        let members: Vec<_> = self.entries.values().filter_map(|server| server.member.clone()).collect();
        let is_bound = !members.is_empty();
        self.servers.replace(members);
        self.told.send_modify(|news| news.is_bound = is_bound);
    }

    /// Begins to bind to a server, after a pause, at the first of its addresses where it stands.
    fn bind(&mut self, addresses: Vec<Address>, version: u64, pause: Duration) -> AbortHandle {
        let (node, name, options) = (self.node.clone(), self.name.clone(), self.options.client);
        self.binding.spawn(async move {
            tokio::time::sleep_until(Instant::now() + pause).await;
            let mut result = Err(BindError::NodeShutDown);
            for address in &addresses {
                result = K::bind(&node, &name, Place::Address(address.clone()), options).await;
                if result.is_ok() {
                    break;
                }
            }
            Tried { addresses, version, pause, result }
        })
    }
}

/// The first pause after an attempt that failed; doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Servers of one name, at most: as many as the directory tells at once.
const SERVERS_MAX: usize = 256;
