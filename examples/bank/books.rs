//! The branch's books as this replica holds them: a member of the branch's group that comes back when it is shut out.
//!
//! Guarantee   [`Books::execute`] returns what the branch as a whole did. A replica that the others gave up, rightly or
//!             not, joins again with their state; commands that were under way then are repeated, which is harmless,
//!             because each command knows its order or transaction by number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate::codec::{Codec as _, Postcard};
use quorate::group::{Builder, Group, Total};
use quorate::node::{Address, Node, NodeId};
use quorate::replication::{Replicated, RestoreError, StateMachine};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::branch::{Branch, Command, Keeper, Outcome};
use super::processes::Place;

/// The pause before joining is tried again.
const REJOIN_PAUSE: Duration = Duration::from_millis(100);

type Replica = Replicated<Branch, Group<Total>>;

/// The books of one branch.
pub struct Books {
    node: Node,
    place: Place,
    addresses: Mutex<BTreeMap<Place, Address>>,
    /// The current membership; `None` while this replica is shut out.
    replica: watch::Sender<Option<Replica>>,
}

impl Books {
    /// Books of a replica that is no member yet.
    pub fn new(node: Node, place: Place) -> Arc<Self> {
        Arc::new(Self { node, place, addresses: Mutex::default(), replica: watch::Sender::new(None) })
    }

    /// Which replica of which branch this is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// This life of this replica.
    pub fn keeper(&self) -> Keeper {
        let me = self.node.identity();
        Keeper { node: me.node.0, incarnation: me.incarnation.0 }
    }

    /// Notes where another replica, of any branch, listens now, and connects to it.
    pub fn meet(&self, other: Place, address: Address) {
        self.node.add_address(NodeId(other.node()), address.clone());
        lock(&self.addresses).insert(other, address.clone());
        let node = self.node.clone();
        // One that cannot be reached now is dialled again when it is needed, or it dials us.
        tokio::spawn(async move { node.connect(&address).await.map(drop) });
    }

    /// Where another replica listens, as far as it is known.
    pub fn address(&self, of: Place) -> Option<Address> {
        lock(&self.addresses).get(&of).cloned()
    }

    /// The replicas of a branch that are known and connected, this one left out.
    pub fn present(&self, branch: u8) -> Vec<Place> {
        let connected = self.node.peers();
        let places = lock(&self.addresses);
        let is_connected = |place: &Place| connected.iter().any(|peer| peer.node.0 == place.node());
        places
            .keys()
            .filter(|p| p.branch == branch && **p != self.place && is_connected(p))
            .copied()
            .collect()
    }

    /// Founds or joins the branch's group and stays in it until the task is dropped; returns when the state is here.
    pub async fn enter(self: &Arc<Self>, is_founder: bool) -> Membership {
        let mut replica = self.replica.subscribe();
        let membership = Membership(tokio::spawn(Arc::clone(self).stay(is_founder)));
        // The sender is `self`, so the wait only ends with a replica.
        let _ = replica.wait_for(Option::is_some).await;
        membership
    }

    /// Executes a command at all replicas of the branch, however long that takes.
    pub async fn execute(&self, command: Command) -> Outcome {
        let mut current = self.replica.subscribe();
        loop {
            let replica = match current.wait_for(Option::is_some).await.map(|replica| replica.clone()) {
                Ok(Some(replica)) => replica,
                // Cannot be: the condition says so, and the sender is `self`.
                Ok(None) | Err(_) => continue,
            };
            match replica.apply(&command).await {
                Ok(outcome) => return outcome,
                // Shut out; what was under way may have been executed. The next membership tells.
                Err(_) => tokio::time::sleep(REJOIN_PAUSE).await,
            }
        }
    }

    /// Looks at the books as this replica has them now; `None` while it is shut out.
    pub fn read<T>(&self, look: impl FnOnce(&Branch) -> T) -> Option<T> {
        self.replica.borrow().as_ref().map(|replica| replica.read(look))
    }

    async fn stay(self: Arc<Self>, is_founder: bool) {
        let mut founds = is_founder;
        loop {
            let builder = Builder::total(format!("branch {}", self.place.branch));
            let entered = if founds {
                builder.create(&self.node).await
            } else {
                builder.join(&self.node, &self.colleagues()).await
            };
            match entered {
                Ok((group, events)) => {
                    founds = false;
                    let replica = Replica::start(group, events, Branch::open(self.place.branch));
                    if replica.wait_state().await {
                        let mut progress = replica.watch();
                        self.replica.send_replace(Some(replica));
                        // An error means that it is over, too.
                        let _ = progress.wait_for(|progress| progress.is_over).await;
                        self.replica.send_replace(None);
                    }
                }
                Err(error) => eprintln!("bank: {} cannot enter its group yet: {error}", self.place),
            }
            tokio::time::sleep(REJOIN_PAUSE).await;
        }
    }

    fn colleagues(&self) -> Vec<Address> {
        let addresses = lock(&self.addresses);
        let others = addresses.iter().filter(|(p, _)| p.branch == self.place.branch && **p != self.place);
        others.map(|(_, address)| address.clone()).collect()
    }
}

/// A replica's stay in its group; ends when dropped.
pub struct Membership(JoinHandle<()>);

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StateMachine for Branch {
    type Command = Command;
    type Response = Outcome;

    fn apply(&mut self, command: Command) -> Outcome {
        Branch::apply(self, &command)
    }

    fn snapshot(&self) -> Bytes {
        let mut out = BytesMut::new();
        // Books are numbers and maps of numbers: every codec can write them.
        Postcard::encode(self, &mut out).expect("books have an encoding");
        out.freeze()
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError> {
        *self = Postcard::decode(&snapshot).map_err(|error| RestoreError(error.to_string()))?;
        Ok(())
    }
}

/// Whoever panicked with the lock held had changed nothing halfway: each use is one insertion or a look.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
