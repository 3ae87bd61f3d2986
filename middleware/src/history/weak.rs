//! Models of reads and writes: sequential, causal, FIFO and eventual consistency.
//!
//! Method      an order that the model asks for is grown by what the reads say until it contradicts itself or nothing
//!             follows any more. For one process's reads, which stand in one order, that decides: with all that must precede
//!             each read put right before it, its source is the last write of its key. So causal and FIFO consistency are
//!             decided for each process in polynomial time; sequential consistency may need to try what is left open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use super::facts::{self, Fact, one_order};
use super::order::{Order, Reason};
use super::trace::{Access, Sources, Trace};
use super::verdict::{Limits, Model, Rejection, Undecided, Verdict, violated};

/// Whether the writes of each process are seen in its order by all (FIFO consistency, pipelined RAM): for each process
/// there is an order of its accesses and all writes that keeps the orders of all processes and explains its reads.
///
/// # Errors
/// [`Violated`](Rejection::Violated); [`Undecided`](Rejection::Undecided): two writes of a key wrote the same, or there
/// are too many accesses.
pub fn fifo<K: Eq + Hash, V: Eq + Hash>(trace: &Trace<K, V>, limits: &Limits) -> Verdict {
    let check = Check::begin(trace, Model::Fifo, limits)?;
    check.processes().into_iter().try_for_each(|process| {
        let mut order = check.in_process_order()?;
        check.add_sources(&mut order, |reader| reader == process)?;
        check.grow(&mut order, process)
    })
}

/// Whether writes that may depend on each other are seen in that order by all (causal memory): for each process there is
/// an order of its accesses and all writes that keeps the causal order and explains its reads. One access precedes another
/// causally when its process did it first, when the other one read what it wrote, or over several such steps.
///
/// # Errors
/// As [`fifo`].
pub fn causal<K: Eq + Hash, V: Eq + Hash>(trace: &Trace<K, V>, limits: &Limits) -> Verdict {
    let check = Check::begin(trace, Model::Causal, limits)?;
    check.processes().into_iter().try_for_each(|process| {
        let mut order = check.in_process_order()?;
        check.add_sources(&mut order, |_| true)?;
        check.grow(&mut order, process)
    })
}

/// Whether there is one order of all accesses that keeps that of each process and explains all reads (Lamport 1979). See
/// [`sequential`](super::sequential) for objects other than registers.
///
/// # Errors
/// As [`fifo`]; and the search took too long.
pub fn sequential_trace<K: Eq + Hash, V: Eq + Hash>(trace: &Trace<K, V>, limits: &Limits) -> Verdict {
    let check = Check::begin(trace, Model::Sequential, limits)?;
    let mut order = check.in_process_order()?;
    check.add_sources(&mut order, |_| true)?;
    one_order(check.model, order, &check.facts(|_| true), limits)
}

/// Whether all that is read after [`quiet`](Trace::quiet) agrees: of each key one value, which somebody wrote and which its
/// writer did not overwrite itself; nothing only where nobody wrote. Before that moment anything may be read that was
/// written.
///
/// # Errors
/// As [`fifo`]; a write after that moment is a violation, too.
pub fn eventual<K: Eq + Hash, V: Eq + Hash>(trace: &Trace<K, V>, limits: &Limits) -> Verdict {
    let check = Check::begin(trace, Model::Eventual, limits)?;
    let quiet_from = trace.quiet_from.unwrap_or(trace.accesses.len());
    let mut last_writes: HashMap<&K, BTreeMap<u64, usize>> = HashMap::new();
    let mut last_reads: HashMap<&K, usize> = HashMap::new();
    for (index, access) in trace.accesses.iter().enumerate() {
        let (key, is_quiet) = (access.key(), index >= quiet_from);
        match access {
            Access::Write { .. } if is_quiet => {
                return Err(violated(Model::Eventual, vec![index], "it is written after the updates ended"));
            }
            Access::Write { process, .. } => {
                last_writes.entry(key).or_default().insert(*process, index);
            }
            Access::Read { .. } if !is_quiet => {}
            Access::Read { .. } => {
                let source = check.sources.of[index];
                let writes = last_writes.get(key).into_iter().flat_map(BTreeMap::values).copied();
                let writes: BTreeSet<usize> = writes.collect();
                if source.map_or(!writes.is_empty(), |source| !writes.contains(&source)) {
                    let operations = [index].into_iter().chain(source).chain(writes).collect();
                    return Err(violated(Model::Eventual, operations, "what was read is not the last"));
                }
                if let Some(other) = last_reads.insert(key, index)
                    && check.sources.of[other] != source
                {
                    return Err(violated(Model::Eventual, vec![index, other], "readers do not agree"));
                }
            }
        }
    }
    Ok(())
}

struct Check<'a, K, V> {
    trace: &'a Trace<K, V>,
    model: Model,
    sources: Sources,
    /// The writes of each key.
    writes: HashMap<&'a K, Vec<usize>>,
}

impl<'a, K: Eq + Hash, V: Eq + Hash> Check<'a, K, V> {
    fn begin(trace: &'a Trace<K, V>, model: Model, limits: &Limits) -> Result<Self, Rejection> {
        let (operations, limit) = (trace.accesses.len(), limits.operations_max);
        if operations > limit {
            return Err(Rejection::Undecided(Undecided::TooMany { operations, limit }));
        }
        let sources = trace.sources()?;
        if let Some(read) = sources.unwritten.first() {
            return Err(violated(model, vec![*read], "nobody wrote what it read"));
        }
        let mut writes: HashMap<&K, Vec<usize>> = HashMap::new();
        for (index, access) in trace.accesses.iter().enumerate() {
            if let Access::Write { key, .. } = access {
                writes.entry(key).or_default().push(index);
            }
        }
        Ok(Self { trace, model, sources, writes })
    }

    fn processes(&self) -> BTreeSet<u64> {
        self.trace.accesses.iter().map(Access::process).collect()
    }

    fn in_process_order(&self) -> Result<Order, Rejection> {
        let mut order = Order::new(self.trace.accesses.len());
        let mut first: HashMap<u64, usize> = HashMap::new();
        // From the end: nothing comes before what is added, so that each step is short.
        for (index, access) in self.trace.accesses.iter().enumerate().rev() {
            if let Some(next) = first.insert(access.process(), index) {
                self.add(&mut order, index, next, Reason::Process)?;
            }
        }
        Ok(order)
    }

    /// What a process of interest read comes before the read.
    fn add_sources(&self, order: &mut Order, is_of_interest: impl Fn(u64) -> bool) -> Verdict {
        for (read, source) in self.reads(is_of_interest) {
            if let Some(source) = source {
                self.add(order, source, read, Reason::Read)?;
            }
        }
        Ok(())
    }

    fn grow(&self, order: &mut Order, process: u64) -> Verdict {
        let facts = self.facts(|reader| reader == process);
        facts::grow(order, &facts, false).map_err(|circle| facts::refuse(self.model, &circle))
    }

    fn facts(&self, is_of_interest: impl Fn(u64) -> bool) -> Vec<Fact<'_>> {
        let writers =
            |read: usize| self.writes.get(self.trace.accesses[read].key()).map_or(&[][..], Vec::as_slice);
        self.reads(is_of_interest)
            .map(|(reader, source)| Fact { reader, source, writers: writers(reader) })
            .collect()
    }

    fn reads(&self, is_of_interest: impl Fn(u64) -> bool) -> impl Iterator<Item = (usize, Option<usize>)> {
        self.trace.accesses.iter().enumerate().filter_map(move |(index, access)| match access {
            Access::Read { process, .. } if is_of_interest(*process) => Some((index, self.sources.of[index])),
            _ => None,
        })
    }

    fn add(&self, order: &mut Order, one: usize, other: usize, reason: Reason) -> Result<bool, Rejection> {
        order.add(one, other, reason).map_err(|circle| facts::refuse(self.model, &circle))
    }
}
