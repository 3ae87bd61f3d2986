//! Several servers behind one name: who is asked next, and who is asked when that one is gone.
//!
//! Guarantee   a server that is not reachable is passed over while another one is; [`Balanced::call`] asks another one
//!             only when it is certain that the first has not executed and will not.
//! Method      each server has a client of its own, bound and rebound like any; this only chooses among them. The
//!             consistent hash is rendezvous hashing: when a server goes, only its own keys move.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::{CallError, RpcError};
use crate::node::NodeId;

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
pub trait Candidate {
    /// Its server.
    fn node(&self) -> NodeId;
    /// Calls that have not ended.
    fn in_flight(&self) -> u32;
    /// Its server lives and takes new calls, as far as anybody knows.
    fn is_reachable(&self) -> bool;
}

/// An error that says whether another server may be asked.
pub trait Failure {
    /// It is certain that the call was not executed and will not be, for a reason of this server or the way to it.
    fn is_another_servers_turn(&self) -> bool;
}

impl Failure for CallError {
    fn is_another_servers_turn(&self) -> bool {
        self.is_retryable()
    }
}

impl<E> Failure for RpcError<E> {
    fn is_another_servers_turn(&self) -> bool {
        self.is_retryable()
    }
}

/// Clients of servers that do the same.
#[derive(Debug)]
pub struct Balanced<K> {
    clients: Vec<K>,
    balance: Balance,
    next: AtomicUsize,
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
        let clients: Vec<K> = clients.into_iter().collect();
        if clients.is_empty() {
            Err(Nobody)
        } else {
            Ok(Self { clients, balance, next: AtomicUsize::new(0) })
        }
    }

    /// All of them.
    pub fn clients(&self) -> &[K] {
        &self.clients
    }

    /// The next one.
    pub fn pick(&self) -> &K {
        &self.clients[self.order()[0]]
    }

    /// The one for this key, always the same as long as it is reachable.
    pub fn pick_for(&self, key: &(impl Hash + ?Sized)) -> &K {
        let weight = |client: &K| {
            let mut hasher = DefaultHasher::new();
            (key, client.node().0).hash(&mut hasher);
            (client.is_reachable(), hasher.finish())
        };
        let mut best = &self.clients[0];
        for client in &self.clients[1..] {
            if weight(client) > weight(best) {
                best = client;
            }
        }
        best
    }

    /// Makes a call with the next client, and with each other one in turn as long as it is certain that the last one has
    /// not executed it.
    ///
    /// # Errors
    /// What the last one said.
    /// # Cancel safety
    /// As the call itself.
    pub async fn call<T, E: Failure>(&self, call: impl AsyncFn(&K) -> Result<T, E>) -> Result<T, E> {
        let order = self.order();
        let (last, others) = (order[order.len() - 1], &order[..order.len() - 1]);
        for index in others {
            match call(&self.clients[*index]).await {
                Err(error) if error.is_another_servers_turn() => {}
                ended => return ended,
            }
        }
        call(&self.clients[last]).await
    }

    /// Everybody, the best first; never empty.
    fn order(&self) -> Vec<usize> {
        let count = self.clients.len();
        let start = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let mut order: Vec<usize> = (start..count).chain(0..start).collect();
        let rank = |index: &usize| {
            let client = &self.clients[*index];
            let in_flight = if self.balance == Balance::LeastInFlight { client.in_flight() } else { 0 };
            (!client.is_reachable(), in_flight)
        };
        // Stable: equals stay in turn.
        order.sort_by_key(rank);
        order
    }
}
