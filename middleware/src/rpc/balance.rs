//! Several servers that do the same: who is asked next, and who is asked when that one is gone.
//!
//! Guarantee   a server that is not reachable is passed over while another one is. [`Balanced::call`] asks another one
//!             only when it is certain that the first has not executed and will not; [`Balanced::call_idempotent`] also
//!             when the first is not reachable any more, or nothing better than doubt is known.
//! Method      each server has a client of its own, bound and rebound like any; this only chooses among them. The
//!             consistent hash is rendezvous hashing: when a server goes, only its own keys move. Servers come and go
//!             while calls are made: `quorate::naming` keeps the list by a directory.
//! Source      Thaler & Ravishankar 1998 (rendezvous hashing).

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use quorate_protocols::rpc::Doubt;
use quorate_transports::BoxFuture;
use tokio::sync::watch;

use super::client::ClientOptions;
use super::error::{BindError, CallError, NotSent, RpcError};
use super::place::Place;
use crate::node::{Node, NodeId};

/// Who is asked next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest calls of ours under way.
    LeastInFlight,
}

/// A client that can be chosen; generated clients are.
pub trait Candidate: Clone + Send + Sync + 'static {
    /// Binds to the service called `name` at `place`; as the `connect_with` of generated clients.
    ///
    /// # Errors
    /// [`BindError`].
    fn bind(
        node: &Node,
        name: &str,
        place: Place,
        options: ClientOptions,
    ) -> impl Future<Output = Result<Self, BindError>> + Send;
    /// Its server.
    fn node(&self) -> NodeId;
    /// Calls that have not ended.
    fn in_flight(&self) -> u32;
    /// Requests that have left so far, those that left again included.
    fn requests_sent(&self) -> u64;
    /// Its server lives and takes new calls, as far as anybody knows.
    fn is_reachable(&self) -> bool;
    /// Waits until its server is not reachable.
    fn wait_unreachable(&self) -> impl Future<Output = ()> + Send;
}

/// An error that says whether another server may be asked.
pub trait Failure: From<CallError> {
    /// It is certain that the call was not executed and will not be, for a reason of this server or the way to it.
    fn is_another_servers_turn(&self) -> bool;

    /// Whether the call was executed is not known.
    fn is_in_doubt(&self) -> bool;
}

impl Failure for CallError {
    fn is_another_servers_turn(&self) -> bool {
        self.is_retryable()
    }

    fn is_in_doubt(&self) -> bool {
        // A handler that panics would do so anywhere.
        !matches!(self, Self::MaybeExecuted(Doubt::HandlerFailed | Doubt::ReplyUnsendable))
            && matches!(self, Self::MaybeExecuted(_))
    }
}

impl<E> Failure for RpcError<E> {
    fn is_another_servers_turn(&self) -> bool {
        self.is_retryable()
    }

    fn is_in_doubt(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_in_doubt())
    }
}

/// Clients of servers that do the same. Cheap to clone; clones share them.
pub struct Balanced<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    members: RwLock<Vec<Arc<Member<K>>>>,
    balance: Balance,
    next: AtomicUsize,
    seeker: Option<Box<dyn Seeker>>,
}

/// Who may bring a server when none is there.
pub(crate) trait Seeker: Send + Sync {
    /// Returns when `is_there`, or when it is known that nobody will come soon. False when nobody has.
    fn seek<'a>(&'a self, is_there: &'a (dyn Fn() -> bool + Sync)) -> BoxFuture<'a, bool>;
}

/// One server.
pub(crate) struct Member<K> {
    pub(crate) client: K,
    /// It is preferred to those that are not.
    is_near: AtomicBool,
    /// Set when it does not belong to the servers any more.
    gone: watch::Sender<bool>,
}

impl<K: Candidate> Member<K> {
    pub(crate) fn new(client: K, is_near: bool) -> Arc<Self> {
        Arc::new(Self { client, is_near: AtomicBool::new(is_near), gone: watch::Sender::new(false) })
    }

    pub(crate) fn set_near(&self, is_near: bool) {
        self.is_near.store(is_near, Ordering::Relaxed);
    }

    /// What is known of a call that was given up here when so many requests had left at its beginning.
    fn given_up(&self, sent: u64) -> CallError {
        // Nothing has left since: not this call either.
        if self.client.requests_sent() == sent {
            CallError::NotSent(NotSent::NoServer)
        } else {
            CallError::MaybeExecuted(Doubt::SessionLost)
        }
    }

    /// Waits until it does not belong to the servers any more and cannot be reached: one that only goes still answers
    /// what it has begun.
    async fn wait_lost(&self) {
        // An error would say that it is gone, and cannot be: it is held here.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
        self.client.wait_unreachable().await;
    }
}

/// There is nobody to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a service behind one name needs a server")]
pub struct Nobody;

impl<K: Candidate> Balanced<K> {
    /// Chooses among `clients`.
    ///
    /// # Errors
    /// [`Nobody`] when there is none.
    pub fn new(clients: impl IntoIterator<Item = K>, balance: Balance) -> Result<Self, Nobody> {
        let balanced = Self::empty(balance, None);
        let members: Vec<_> = clients.into_iter().map(|client| Member::new(client, false)).collect();
        if members.is_empty() {
            return Err(Nobody);
        }
        balanced.replace(members);
        Ok(balanced)
    }

    /// Nobody yet.
    pub(crate) fn empty(balance: Balance, seeker: Option<Box<dyn Seeker>>) -> Self {
        let (members, next) = (RwLock::default(), AtomicUsize::new(0));
        Self { shared: Arc::new(Shared { members, balance, next, seeker }) }
    }

    /// From now on these. Calls at those who are not among them any more go on; those that cannot be reached either end
    /// in doubt.
    pub(crate) fn replace(&self, members: Vec<Arc<Member<K>>>) {
        let before = {
            let mut place = self.shared.members.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *place, members.clone())
        };
        for member in before.iter().filter(|old| !members.iter().any(|new| Arc::ptr_eq(new, old))) {
            member.gone.send_replace(true);
        }
    }

    /// All of them.
    pub fn clients(&self) -> Vec<K> {
        self.members().iter().map(|member| member.client.clone()).collect()
    }

    /// The next one; `None` when there is nobody now.
    pub fn pick(&self) -> Option<K> {
        self.order(&self.members()).first().map(|member| member.client.clone())
    }

    /// The one for this key, always the same as long as it is reachable; `None` when there is nobody now. Programs that were
    /// built with different releases of Rust may choose differently.
    pub fn pick_for(&self, key: &(impl Hash + ?Sized)) -> Option<K> {
        let weight = |member: &Arc<Member<K>>| {
            let mut hasher = DefaultHasher::new();
            (key, member.client.node().0).hash(&mut hasher);
            (member.client.is_reachable(), hasher.finish())
        };
        self.members().iter().max_by_key(|member| weight(member)).map(|member| member.client.clone())
    }

    /// Makes a call with the next client, and with each other one in turn as long as it is certain that the last one has
    /// not executed it.
    ///
    /// # Errors
    /// What the last one said; [`NotSent::NoServer`] when there is nobody;
    /// [`CallError::MaybeExecuted`] when its server was given up while the call was under way.
    /// # Cancel safety
    /// As the call itself.
    pub async fn call<T, E: Failure>(&self, call: impl AsyncFn(&K) -> Result<T, E>) -> Result<T, E> {
        let mut last = E::from(CallError::NotSent(NotSent::NoServer));
        for round in 1..=ROUNDS {
            for member in self.order(&self.members()) {
                let sent = member.client.requests_sent();
                let ended = tokio::select! {
                    biased;
                    ended = call(&member.client) => Some(ended),
                    () = member.wait_lost() => None,
                };
                match ended.unwrap_or_else(|| Err(member.given_up(sent).into())) {
                    Err(error) if error.is_another_servers_turn() => last = error,
                    ended => return ended,
                }
            }
            if round == ROUNDS || !self.seek().await {
                break;
            }
        }
        Err(last)
    }

    /// As [`call`](Self::call), for what may be executed twice: another server is asked, too, when the last one cannot be
    /// reached any more, or when nothing better than doubt is known.
    ///
    /// # Errors
    /// What the last one said; [`NotSent::NoServer`] when there is nobody.
    /// # Cancel safety
    /// As the call itself.
    pub async fn call_idempotent<T, E: Failure>(
        &self,
        call: impl AsyncFn(&K) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut last = E::from(CallError::NotSent(NotSent::NoServer));
        for round in 1..=ROUNDS {
            let members = self.order(&self.members());
            let count = members.len();
            for (tried, member) in members.into_iter().enumerate() {
                let has_others = tried + 1 < count;
                let lost = async {
                    // The last one may come back: nobody else will answer.
                    if has_others {
                        member.client.wait_unreachable().await;
                    } else {
                        std::future::pending().await
                    }
                };
                let ended = tokio::select! {
                    biased;
                    ended = call(&member.client) => ended,
                    () = member.wait_lost() => Err(CallError::MaybeExecuted(Doubt::SessionLost).into()),
                    () = lost => Err(CallError::MaybeExecuted(Doubt::SessionLost).into()),
                };
                match ended {
                    Err(error) if error.is_another_servers_turn() || error.is_in_doubt() => last = error,
                    ended => return ended,
                }
            }
            if round == ROUNDS || !self.seek().await {
                break;
            }
        }
        Err(last)
    }

    /// Looks for a server when none can be reached; true when there is one then.
    async fn seek(&self) -> bool {
        let is_there = || self.members().iter().any(|member| member.client.is_reachable());
        match &self.shared.seeker {
            Some(seeker) if !is_there() => seeker.seek(&is_there).await,
            _ => false,
        }
    }

    fn members(&self) -> Vec<Arc<Member<K>>> {
        self.shared.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everybody, the best first.
    fn order(&self, members: &[Arc<Member<K>>]) -> Vec<Arc<Member<K>>> {
        let count = members.len().max(1);
        let start = self.shared.next.fetch_add(1, Ordering::Relaxed) % count;
        let mut order: Vec<_> =
            members.iter().skip(start).chain(members.iter().take(start)).cloned().collect();
        let by_load = self.shared.balance == Balance::LeastInFlight;
        // Stable: equals stay in turn.
        order.sort_by_cached_key(|member| {
            let in_flight = if by_load { member.client.in_flight() } else { 0 };
            (!member.client.is_reachable(), !member.is_near.load(Ordering::Relaxed), in_flight)
        });
        order
    }
}

/// A call is offered once to all servers, and once more to whoever was brought because there was none.
const ROUNDS: u32 = 2;

impl<K> Clone for Balanced<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K> fmt::Debug for Balanced<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.shared.members.read().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Balanced").field("servers", &count).field("balance", &self.shared.balance).finish()
    }
}
