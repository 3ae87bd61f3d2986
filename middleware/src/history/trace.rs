//! Reads and writes of processes, in each one's order, without times: what the weaker models are about.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use super::object::{RegisterCall, RegisterReturn};
use super::record::History;
use super::verdict::{Rejection, Undecided};

/// What processes read and wrote, each in its own order. Verdicts name accesses by their place here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace<K, V> {
    /// All accesses; those of one process stand in its order.
    pub accesses: Vec<Access<K, V>>,
    /// Accesses from here on took place after all updates had ended and had the time to spread; see
    /// [`eventual`](super::eventual).
    pub quiet_from: Option<usize>,
}

/// One access.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Access<K, V> {
    /// `process` read `value`, or found nothing.
    Read {
        /// Who.
        process: u64,
        /// What.
        key: K,
        /// What it found.
        value: Option<V>,
    },
    /// `process` wrote `value`.
    Write {
        /// Who.
        process: u64,
        /// What.
        key: K,
        /// What it wrote.
        value: V,
    },
}

impl<K, V> Access<K, V> {
    /// Who.
    pub const fn process(&self) -> u64 {
        match self {
            Self::Read { process, .. } | Self::Write { process, .. } => *process,
        }
    }

    /// What.
    pub const fn key(&self) -> &K {
        match self {
            Self::Read { key, .. } | Self::Write { key, .. } => key,
        }
    }
}

impl<K, V> Default for Trace<K, V> {
    fn default() -> Self {
        Self { accesses: Vec::new(), quiet_from: None }
    }
}

impl<K, V> Trace<K, V> {
    /// Adds that `process` read `value`, or found nothing.
    pub fn read(&mut self, process: u64, key: K, value: Option<V>) {
        self.accesses.push(Access::Read { process, key, value });
    }

    /// Adds that `process` wrote `value`.
    pub fn write(&mut self, process: u64, key: K, value: V) {
        self.accesses.push(Access::Write { process, key, value });
    }

    /// All updates have ended, and have had the time to spread.
    pub fn quiet(&mut self) {
        self.quiet_from = Some(self.accesses.len());
    }

    /// The accesses of a history of one register. Of a write whose outcome is unknown it is told that it took place
    /// when somebody read its value, else it is left out; a read whose outcome is unknown is left out. `None` if
    /// there is a compare-and-set: it is neither.
    pub fn from_register(key: &K, history: &History<RegisterCall<V>, RegisterReturn<V>>) -> Option<Self>
    where
        K: Clone,
        V: Clone + Eq + Hash,
    {
        let mut sorted: Vec<_> = history.operations.iter().collect();
        sorted.sort_by_key(|operation| operation.called);
        let was_read = |value: &V| {
            history.operations.iter().any(|operation| {
                matches!(&operation.returned, Some((_, RegisterReturn::Value(Some(read)))) if read == value)
            })
        };
        let mut trace = Self::default();
        for operation in sorted {
            match (&operation.call, &operation.returned) {
                (RegisterCall::Read, Some((_, RegisterReturn::Value(value)))) => {
                    trace.read(operation.process, key.clone(), value.clone());
                }
                (RegisterCall::Write(value), returned) => {
                    if returned.is_some() || was_read(value) {
                        trace.write(operation.process, key.clone(), value.clone());
                    }
                }
                (RegisterCall::Read, _) => {}
                (RegisterCall::CompareAndSet { .. }, _) => return None,
            }
        }
        Some(trace)
    }
}

/// Who wrote what is read.
pub(super) struct Sources {
    /// For each access that is a read: the write that it read, if it found something and somebody wrote it.
    pub(super) of: Vec<Option<usize>>,
    /// Reads of values that nobody wrote.
    pub(super) unwritten: Vec<usize>,
}

impl<K: Eq + Hash, V: Eq + Hash> Trace<K, V> {
    pub(super) fn sources(&self) -> Result<Sources, Rejection> {
        let mut writes = HashMap::new();
        for (index, access) in self.accesses.iter().enumerate() {
            if let Access::Write { key, value, .. } = access
                && let Some(other) = writes.insert((key, value), index)
            {
                return Err(Rejection::Undecided(Undecided::SameValue(other, index)));
            }
        }
        let mut sources = Sources { of: Vec::with_capacity(self.accesses.len()), unwritten: Vec::new() };
        for (index, access) in self.accesses.iter().enumerate() {
            let Access::Read { key, value: Some(value), .. } = access else {
                sources.of.push(None);
                continue;
            };
            let source = writes.get(&(key, value)).copied();
            if source.is_none() {
                sources.unwritten.push(index);
            }
            sources.of.push(source);
        }
        Ok(sources)
    }
}

/// A line for each process, accesses divided by blanks: `P1: W(x)a R(y)NIL`. A line `quiet` says that what follows took
/// place after all updates had spread.
impl FromStr for Trace<String, String> {
    type Err = ParseTraceError;

    fn from_str(text: &str) -> Result<Self, ParseTraceError> {
        let mut trace = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line == "quiet" {
                trace.quiet();
                continue;
            }
            let wrong = || ParseTraceError(line.to_owned());
            let (process, accesses) = line.split_once(':').ok_or_else(wrong)?;
            let process = process.trim().strip_prefix('P').and_then(|number| number.parse().ok());
            let process = process.ok_or_else(wrong)?;
            for access in accesses.split_whitespace() {
                let (kind, rest) = access.split_once('(').ok_or_else(wrong)?;
                let (key, value) = rest.split_once(')').ok_or_else(wrong)?;
                let (key, value) = (key.to_owned(), value.to_owned());
                match kind {
                    "R" => trace.read(process, key, (value != "NIL").then_some(value)),
                    "W" => trace.write(process, key, value),
                    _ => return Err(wrong()),
                }
            }
        }
        Ok(trace)
    }
}

/// A line that is no process with its accesses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not like `P1: W(x)a R(y)NIL`")]
pub struct ParseTraceError(String);

impl<K: fmt::Display, V: fmt::Display> fmt::Display for Access<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { process, key, value: Some(value) } => write!(f, "P{process}: R({key}){value}"),
            Self::Read { process, key, value: None } => write!(f, "P{process}: R({key})NIL"),
            Self::Write { process, key, value } => write!(f, "P{process}: W({key}){value}"),
        }
    }
}
