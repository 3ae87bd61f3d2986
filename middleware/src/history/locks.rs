//! Accesses between locks and unlocks: entry consistency.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::verdict::{Model, Verdict, violated};

/// Locks, accesses and unlocks in the order in which they took place, each key guarded by a lock of its own (the
/// *synchronisation variable*). Verdicts name events by their place, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockTrace<K, V> {
    events: Vec<(u64, K, Event<V>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event<V> {
    Locked(LockKind),
    Unlocked,
    Read(Option<V>),
    Wrote(V),
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// By one, who may write.
    Exclusive,
    /// By any number, who may read.
    Shared,
}

impl<K, V> Default for LockTrace<K, V> {
    fn default() -> Self {
        Self { events: Vec::new() }
    }
}

impl<K, V> LockTrace<K, V> {
    /// `process` got the lock of `key`.
    pub fn locked(&mut self, process: u64, key: K, kind: LockKind) {
        self.events.push((process, key, Event::Locked(kind)));
    }

    /// `process` let the lock of `key` go.
    pub fn unlocked(&mut self, process: u64, key: K) {
        self.events.push((process, key, Event::Unlocked));
    }

    /// `process` read `value`, or found nothing.
    pub fn read(&mut self, process: u64, key: K, value: Option<V>) {
        self.events.push((process, key, Event::Read(value)));
    }

    /// `process` wrote `value`.
    pub fn wrote(&mut self, process: u64, key: K, value: V) {
        self.events.push((process, key, Event::Wrote(value)));
    }
}

/// Whether who holds a key's lock finds the key up to date (Bershad et al. 1993): an exclusive lock is held by nobody else,
/// a shared one by nobody exclusively; what is written is written under an exclusive lock; and what is read under a lock is
/// what was written last. A read without the lock may find whatever was written at any time, or nothing.
///
/// # Errors
/// [`Violated`](super::Rejection::Violated): the event, and the one that it does not fit.
pub fn entry<K: Eq + Hash, V: Eq>(trace: &LockTrace<K, V>) -> Verdict {
    let mut guards: HashMap<&K, Guard<'_, V>> = HashMap::new();
    let wrong = |at: usize, other: Option<usize>, why: &str| {
        Err(violated(Model::Entry, [at].into_iter().chain(other).collect(), why))
    };
    for (at, (process, key, event)) in trace.events.iter().enumerate() {
        let guard = guards.entry(key).or_insert_with(Guard::new);
        match event {
            Event::Locked(kind) => {
                let is_free = |held: &LockKind| *kind == LockKind::Shared && *held == LockKind::Shared;
                let holders =
                    guard.holders.iter().find(|(who, (held, _))| **who != *process && !is_free(held));
                if let Some((_, (_, since))) = holders {
                    return wrong(at, Some(*since), "the lock was held by another one");
                }
                guard.holders.insert(*process, (*kind, at));
            }
            Event::Unlocked => {
                guard.holders.remove(process);
            }
            Event::Wrote(value) => {
                if !matches!(guard.holders.get(process), Some((LockKind::Exclusive, _))) {
                    return wrong(at, None, "it was written without the exclusive lock");
                }
                guard.written.push((at, value));
            }
            Event::Read(value) => {
                let last = guard.written.last();
                if guard.holders.contains_key(process) {
                    if last.map(|(_, value)| *value) != value.as_ref() {
                        return wrong(
                            at,
                            last.map(|(at, _)| *at),
                            "what is read under the lock is not the last",
                        );
                    }
                } else if let Some(value) = value
                    && !guard.written.iter().any(|(_, written)| *written == value)
                {
                    return wrong(at, None, "nobody wrote what it read");
                }
            }
        }
    }
    Ok(())
}

/// A key with its lock.
struct Guard<'a, V> {
    holders: BTreeMap<u64, (LockKind, usize)>,
    written: Vec<(usize, &'a V)>,
}

impl<V> Guard<'_, V> {
    const fn new() -> Self {
        Self { holders: BTreeMap::new(), written: Vec::new() }
    }
}
