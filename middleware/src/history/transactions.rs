//! Transactions: serializability, strict or not.

use std::collections::HashMap;
use std::hash::Hash;

use super::facts::{Fact, one_order, refuse};
use super::order::{Order, Reason};
use super::verdict::{Limits, Model, Rejection, Undecided, Verdict, violated};

/// Transactions that committed or may have. Those that certainly aborted are no part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transactions<K, V> {
    /// All of them; verdicts name them by their place here.
    pub transactions: Vec<Transaction<K, V>>,
}

impl<K, V> Default for Transactions<K, V> {
    fn default() -> Self {
        Self { transactions: Vec::new() }
    }
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction<K, V> {
    /// When it began, on a clock that all share.
    pub began: u64,
    /// When it had committed. `None`: the outcome is unknown, and it counts as committed if another one read from it.
    pub committed: Option<u64>,
    /// What it found in each key before it wrote that itself.
    pub reads: Vec<(K, Option<V>)>,
    /// What it left in each key: its last write.
    pub writes: Vec<(K, V)>,
}

/// Whether all transactions could have run one after the other with what they read.
///
/// # Errors
/// [`Violated`](Rejection::Violated); [`Undecided`](Rejection::Undecided): two transactions wrote the same to a key, or
/// there are too many, or too much is open.
pub fn serializable<K: Eq + Hash, V: Eq + Hash>(history: &Transactions<K, V>, limits: &Limits) -> Verdict {
    check(history, Model::Serializable, limits)
}

/// As [`serializable`], in an order in which a transaction that had committed before another began comes first.
///
/// # Errors
/// As [`serializable`].
pub fn strictly_serializable<K: Eq + Hash, V: Eq + Hash>(
    history: &Transactions<K, V>,
    limits: &Limits,
) -> Verdict {
    check(history, Model::StrictlySerializable, limits)
}

fn check<K: Eq + Hash, V: Eq + Hash>(history: &Transactions<K, V>, model: Model, limits: &Limits) -> Verdict {
    let all = &history.transactions;
    let (operations, limit) = (all.len(), limits.operations_max);
    if operations > limit {
        return Err(Rejection::Undecided(Undecided::TooMany { operations, limit }));
    }
    let mut origins: HashMap<(&K, &V), usize> = HashMap::new();
    for (index, transaction) in all.iter().enumerate() {
        for (key, value) in &transaction.writes {
            if let Some(other) = origins.insert((key, value), index) {
                return Err(Rejection::Undecided(Undecided::SameValue(other, index)));
            }
        }
    }
    let counts = counted(all, &origins);
    let mut writers: HashMap<&K, Vec<usize>> = HashMap::new();
    for (index, transaction) in all.iter().enumerate().filter(|(index, _)| counts[*index]) {
        for (key, _) in &transaction.writes {
            writers.entry(key).or_default().push(index);
        }
    }
    let mut order = Order::new(all.len());
    let add = |order: &mut Order, one, other, reason| {
        order.add(one, other, reason).map(drop).map_err(|circle| refuse(model, &circle))
    };
    if model == Model::StrictlySerializable {
        let committed = |index: &usize| all[*index].committed.unwrap_or(u64::MAX);
        let mut by_end: Vec<usize> = (0..all.len()).filter(|index| counts[*index]).collect();
        // From the end: nothing comes before what is added, so that each step is short.
        by_end.sort_by_key(|index| std::cmp::Reverse(committed(index)));
        for &one in &by_end {
            for &other in &by_end {
                if committed(&one) < all[other].began {
                    add(&mut order, one, other, Reason::Time)?;
                }
            }
        }
    }
    let mut facts = Vec::new();
    for (reader, transaction) in all.iter().enumerate().filter(|(index, _)| counts[*index]) {
        for (key, value) in &transaction.reads {
            let source = match value {
                Some(value) => match origins.get(&(key, value)) {
                    Some(source) => Some(*source),
                    None => return Err(violated(model, vec![reader], "nobody wrote what it read")),
                },
                None => None,
            };
            if let Some(source) = source {
                add(&mut order, source, reader, Reason::Read)?;
            }
            facts.push(Fact { reader, source, writers: writers.get(key).map_or(&[], Vec::as_slice) });
        }
    }
    one_order(model, order, &facts, limits)
}

/// Which ones took effect: those that are known to, and those that these read from, and so on.
fn counted<K: Eq + Hash, V: Eq + Hash>(
    all: &[Transaction<K, V>],
    origins: &HashMap<(&K, &V), usize>,
) -> Vec<bool> {
    let mut counts = vec![false; all.len()];
    let mut line: Vec<usize> = (0..all.len()).filter(|index| all[*index].committed.is_some()).collect();
    while let Some(index) = line.pop() {
        if !std::mem::replace(&mut counts[index], true) {
            let found = all[index].reads.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
            line.extend(found.filter_map(|read| origins.get(&read).copied()));
        }
    }
    counts
}
