//! What stands before a link: places for those who have not said or proved yet who they are, and who got in.
//!
//! Guarantee   a newcomer always gets a place. When all are taken, the oldest of the source that holds most of them is
//!             given up, so that one address which opens links and says nothing displaces itself, not others.
//! Limits      as many places as the owner says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::address::Address;
#[cfg(any(feature = "tls", feature = "quic"))]
use crate::error::LinkError;
use crate::error::TrustError;

/// Places for handshakes. Clones share them.
#[derive(Debug, Clone)]
pub struct Handshakes {
    table: Arc<Mutex<Table>>,
    places_max: usize,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// Oldest first.
    places: BTreeMap<u64, Holder>,
}

#[derive(Debug)]
struct Holder {
    source: String,
    /// Dropped to tell the holder that it lost its place.
    _keep: oneshot::Sender<()>,
}

/// A place; dropping it frees it.
#[derive(Debug)]
pub struct Place {
    handshakes: Handshakes,
    number: u64,
    lost: oneshot::Receiver<()>,
    is_lost: bool,
}

impl Handshakes {
    /// So many places, at least one.
    pub fn new(places_max: usize) -> Self {
        Self { table: Arc::default(), places_max: places_max.max(1) }
    }

    /// Takes a place for a link from `peer`; somebody else may lose theirs.
    pub fn enter(&self, peer: &Address) -> Place {
        let (keep, lost) = oneshot::channel();
        let mut table = self.table();
        if table.places.len() >= self.places_max {
            let oldest = table.oldest_of_the_busiest();
            oldest.map(|number| table.places.remove(&number));
        }
        table.next += 1;
        let number = table.next;
        table.places.insert(number, Holder { source: source(peer), _keep: keep });
        drop(table);
        Place { handshakes: self.clone(), number, lost, is_lost: false }
    }

    /// At least half of the places are taken.
    #[cfg(feature = "quic")]
    pub(crate) fn is_busy(&self) -> bool {
        2 * self.table().places.len() >= self.places_max
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn oldest_of_the_busiest(&self) -> Option<u64> {
        let mut counts = BTreeMap::new();
        for holder in self.places.values() {
            *counts.entry(&holder.source).or_insert(0usize) += 1;
        }
        let most = counts.values().copied().max()?;
        self.places.iter().find(|(_, holder)| counts.get(&holder.source) == Some(&most)).map(|(at, _)| *at)
    }
}

impl Place {
    /// Runs a step of what the place was taken for; `None` when the place is lost before the step is done.
    ///
    /// # Cancel safety
    /// Dropping the future drops the step; the place is kept.
    pub async fn hold<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        if self.is_lost {
            return None;
        }
        tokio::select! {
            done = step => Some(done),
            _ = &mut self.lost => {
                self.is_lost = true;
                None
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.table().places.remove(&self.number);
    }
}

/// What links that share it share a fate for: the host where there is one, or else the medium.
fn source(peer: &Address) -> String {
    match peer.rest().parse::<SocketAddr>() {
        Ok(place) => place.ip().to_canonical().to_string(),
        Err(_) => peer.scheme().to_owned(),
    }
}

/// What became of those who dialled a transport that asks for certificates. Totals only grow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GateStats {
    /// Diallers that proved who they are.
    pub accepted: u64,
    /// Diallers that did not: broken off, too slow, displaced, or not trusted.
    pub refused: u64,
    /// Why the last one of those that were not trusted was refused, and where it dialled from.
    pub untrusted_last: Option<(Address, TrustError)>,
}

/// Counts for [`GateStats`].
#[cfg(any(feature = "tls", feature = "quic"))]
#[derive(Debug, Default)]
pub(crate) struct Gate {
    stats: Mutex<GateStats>,
}

#[cfg(any(feature = "tls", feature = "quic"))]
impl Gate {
    pub(crate) fn stats(&self) -> GateStats {
        self.lock().clone()
    }

    pub(crate) fn let_in(&self) {
        self.lock().accepted += 1;
    }

    pub(crate) fn turn_away(&self, error: LinkError) {
        tracing::debug!(error = &error as &dyn std::error::Error, "dialler refused before it said who it is");
        let mut stats = self.lock();
        stats.refused += 1;
        if let LinkError::Untrusted { peer, source } = error {
            stats.untrusted_last = Some((peer, source));
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t08_a_source_that_holds_most_places_makes_room_for_a_newcomer() {
        let handshakes = Handshakes::new(3);
        let enter = |text: &str| handshakes.enter(&text.parse().unwrap());
        let mut honest = enter("tcp://10.0.0.1:1");
        let mut first = enter("tcp://10.0.0.9:1");
        let mut second = enter("tcp://10.0.0.9:2");
        let is_lost = |place: &mut Place| place.lost.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        let mut newcomer = enter("tcp://10.0.0.2:1");
        assert!(is_lost(&mut first) && !is_lost(&mut second) && !is_lost(&mut honest));
        // One each: the oldest goes.
        let last = enter("mem://x");
        assert!(is_lost(&mut honest) && !is_lost(&mut second) && !is_lost(&mut newcomer));
        drop((last, first));
        assert_eq!(handshakes.table().places.len(), 2);
    }
}
