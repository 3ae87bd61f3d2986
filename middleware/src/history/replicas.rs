//! What a client sees that moves between replicas: the four session guarantees.
//!
//! Method      a write has an id; each replica takes writes in, in some order. What a client read at a replica is the set of
//!             writes of the key that the replica had taken in by then. The guarantees speak of one key, as the
//!             textbook's do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use super::verdict::{Model, Verdict, violated};

/// A write, the same at all replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// What replicas took in and what clients did at them, in an order that is that of each replica and of each client.
/// Verdicts name events by their place, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaLog<K> {
    events: Vec<Event<K>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event<K> {
    TakenIn { replica: u64, write: WriteId },
    Wrote { client: u64, replica: u64, key: K, write: WriteId },
    Read { client: u64, replica: u64, key: K },
}

impl<K> Default for ReplicaLog<K> {
    fn default() -> Self {
        Self { events: Vec::new() }
    }
}

impl<K> ReplicaLog<K> {
    /// `replica` took in a write of another one. A replica that gets a newer state as a whole takes in all writes in it.
    pub fn taken_in(&mut self, replica: u64, write: WriteId) {
        self.events.push(Event::TakenIn { replica, write });
    }

    /// `client` wrote `key` at `replica`, which has taken the write in.
    pub fn wrote(&mut self, client: u64, replica: u64, key: K, write: WriteId) {
        self.events.push(Event::Wrote { client, replica, key, write });
    }

    /// `client` read `key` at `replica`.
    pub fn read(&mut self, client: u64, replica: u64, key: K) {
        self.events.push(Event::Read { client, replica, key });
    }
}

/// Whether each read of a client sees all that its earlier reads of the key saw.
///
/// # Errors
/// [`Violated`](super::Rejection::Violated): the read, and the earlier one.
pub fn monotonic_reads<K: Eq + Hash>(log: &ReplicaLog<K>) -> Verdict {
    let view = View::new(log);
    let mut last: HashMap<(u64, &K), usize> = HashMap::new();
    for (at, event) in log.events.iter().enumerate() {
        let Event::Read { client, replica, key } = event else { continue };
        if let Some(earlier) = last.insert((*client, key), at)
            && let Event::Read { replica: before, .. } = &log.events[earlier]
            && let Some(write) =
                view.seen(*before, key, earlier).find(|write| !view.has(*replica, *write, at))
        {
            let why = format!("it lacks write {} of an earlier read", write.0);
            return Err(violated(Model::MonotonicReads, vec![at, earlier], why));
        }
    }
    Ok(())
}

/// Whether each read of a client sees all that the client wrote to the key before.
///
/// # Errors
/// [`Violated`](super::Rejection::Violated): the read, and the write.
pub fn read_your_writes<K: Eq + Hash>(log: &ReplicaLog<K>) -> Verdict {
    let view = View::new(log);
    let mut written: HashMap<(u64, &K), Vec<(WriteId, usize)>> = HashMap::new();
    for (at, event) in log.events.iter().enumerate() {
        match event {
            Event::Wrote { client, key, write, .. } => {
                written.entry((*client, key)).or_default().push((*write, at));
            }
            Event::Read { client, replica, key } => {
                let own = written.get(&(*client, key)).into_iter().flatten();
                if let Some((write, wrote)) = own.copied().find(|(write, _)| !view.has(*replica, *write, at))
                {
                    let why = format!("it lacks the client's own write {}", write.0);
                    return Err(violated(Model::ReadYourWrites, vec![at, wrote], why));
                }
            }
            Event::TakenIn { .. } => {}
        }
    }
    Ok(())
}

/// Whether every replica takes a client's writes of a key in in the client's order, without a gap.
///
/// # Errors
/// [`Violated`](super::Rejection::Violated): where the later one was taken in, and where the earlier one was written.
pub fn monotonic_writes<K: Eq + Hash>(log: &ReplicaLog<K>) -> Verdict {
    let view = View::new(log);
    let mut last: HashMap<(u64, &K), (WriteId, usize)> = HashMap::new();
    for (at, event) in log.events.iter().enumerate() {
        let Event::Wrote { client, key, write, .. } = event else { continue };
        if let Some((earlier, wrote)) = last.insert((*client, key), (*write, at)) {
            for (replica, taken) in view.taken(*write) {
                if !view.has(replica, earlier, taken) {
                    let why = format!("replica {replica} lacks the client's write {} before it", earlier.0);
                    return Err(violated(Model::MonotonicWrites, vec![taken, wrote], why));
                }
            }
        }
    }
    Ok(())
}

/// Whether every replica that takes in a write has taken in before what its client had read of the key when it wrote.
///
/// # Errors
/// [`Violated`](super::Rejection::Violated): where the write was taken in, and where it was written.
pub fn writes_follow_reads<K: Eq + Hash>(log: &ReplicaLog<K>) -> Verdict {
    let view = View::new(log);
    let mut read: HashMap<(u64, &K), BTreeSet<WriteId>> = HashMap::new();
    for (at, event) in log.events.iter().enumerate() {
        match event {
            Event::Read { client, replica, key } => {
                read.entry((*client, key)).or_default().extend(view.seen(*replica, key, at));
            }
            Event::Wrote { client, key, write, .. } => {
                let before = read.get(&(*client, key)).into_iter().flatten();
                for (replica, taken) in view.taken(*write) {
                    if let Some(lacking) = before.clone().find(|one| !view.has(replica, **one, taken)) {
                        let why = format!("replica {replica} lacks write {}, which was read", lacking.0);
                        return Err(violated(Model::WritesFollowReads, vec![taken, at], why));
                    }
                }
            }
            Event::TakenIn { .. } => {}
        }
    }
    Ok(())
}

/// When each replica took in which write.
struct View<'a, K> {
    taken: BTreeMap<(WriteId, u64), usize>,
    /// The writes of each key.
    writes: HashMap<&'a K, Vec<WriteId>>,
}

impl<'a, K: Eq + Hash> View<'a, K> {
    fn new(log: &'a ReplicaLog<K>) -> Self {
        let (mut taken, mut writes) = (BTreeMap::new(), HashMap::<_, Vec<_>>::new());
        for (at, event) in log.events.iter().enumerate() {
            match event {
                Event::TakenIn { replica, write } => {
                    taken.entry((*write, *replica)).or_insert(at);
                }
                Event::Wrote { replica, key, write, .. } => {
                    taken.entry((*write, *replica)).or_insert(at);
                    writes.entry(key).or_default().push(*write);
                }
                Event::Read { .. } => {}
            }
        }
        Self { taken, writes }
    }

    fn has(&self, replica: u64, write: WriteId, at: usize) -> bool {
        self.taken.get(&(write, replica)).is_some_and(|taken| *taken <= at)
    }

    /// Which replicas took a write in, and when.
    fn taken(&self, write: WriteId) -> impl Iterator<Item = (u64, usize)> {
        let all = self.taken.range((write, 0)..=(write, u64::MAX));
        all.map(|((_, replica), at)| (*replica, *at))
    }

    /// The writes of a key that a replica had taken in.
    fn seen(&self, replica: u64, key: &K, at: usize) -> impl Iterator<Item = WriteId> {
        let writes = self.writes.get(key).into_iter().flatten().copied();
        writes.filter(move |write| self.has(replica, *write, at))
    }
}
