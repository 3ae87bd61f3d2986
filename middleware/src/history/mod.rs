//! Checkers of histories: what clients saw goes in, a verdict with the offending operations comes out.
//!
//! Purpose     the names of consistency models mean something only when a machine can say that a run broke them. These
//!             checkers know nothing of quorate: record what your own system answered, and ask.
//! Guarantee   `Ok` is a proof that the history is one that the model allows; [`Rejection::Violated`] is a proof that it
//!             is not; [`Rejection::Undecided`] says that a limit came first, and is an error like the other one, so
//!             that no test takes it for a success.
//! Source      van Steen & Tanenbaum, "Distributed Systems", consistency and replication. Linearizability: Herlihy and
//!             Wing 1990; search with memory: Wing and Gong 1993, Lowe 2017. Causal memory: Ahamad et al. 1995, by bad
//!             patterns: Bouajjani et al. 2017. Pipelined RAM: Lipton and Sandberg 1988. Session guarantees: Terry et al.
//!             1994. Serializability by frontiers: Biswas and Enea 2019. Entry consistency: Bershad et al. 1993.
//!             Continuous consistency: Yu and Vahdat 2002.
//! Limits      [`Limits`]; values written to one key must differ where a reader could not tell them apart.
//!
//! | you have | you ask |
//! | --- | --- |
//! | operations with beginning and end on an object of any kind: a [`History`] | [`linearizable`], [`linearizable_by_key`], [`sequential`] |
//! | reads and writes of processes, in the order of each: a [`Trace`] | [`sequential_trace`], [`causal`], [`fifo`], [`eventual`] |
//! | what replicas took in, and what roaming clients did at them: a [`ReplicaLog`] | [`monotonic_reads`], [`monotonic_writes`], [`read_your_writes`], [`writes_follow_reads`] |
//! | transactions with what they read and wrote: [`Transactions`] | [`serializable`], [`strictly_serializable`] |
//! | accesses between locks and unlocks: a [`LockTrace`] | [`entry`] |
//! | how writes spread, with their weights: a [`ConitLog`] | [`continuous`] |
//!
//! ```
//! use quorate::history::{Limits, Trace, causal, sequential_trace};
//!
//! // The textbook's notation: a line for each process, NIL for a key that nobody has written.
//! let trace: Trace<String, String> =
//!     "P1: W(x)a W(x)c\nP2: R(x)a W(x)b\nP3: R(x)a R(x)c R(x)b\nP4: R(x)a R(x)b R(x)c".parse()?;
//! causal(&trace, &Limits::default())?;
//! assert!(sequential_trace(&trace, &Limits::default()).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod conits;
mod facts;
mod locks;
mod object;
mod order;
mod record;
mod replicas;
mod search;
mod trace;
mod transactions;
mod verdict;
mod weak;

pub use conits::{Bounds, ConitLog, Deviation, continuous};
pub use locks::{LockKind, LockTrace, entry};
pub use object::{Fifo, FifoCall, Register, RegisterCall, RegisterReturn, Specification};
pub use record::{History, Operation, Pending, Recorder};
pub use replicas::{
    ReplicaLog, WriteId, monotonic_reads, monotonic_writes, read_your_writes, writes_follow_reads,
};
pub use search::{linearizable, linearizable_by_key, sequential};
pub use trace::{Access, ParseTraceError, Trace};
pub use transactions::{Transaction, Transactions, serializable, strictly_serializable};
pub use verdict::{Limits, Model, Rejection, Undecided, Verdict, Violation};
pub use weak::{causal, eventual, fifo, sequential_trace};
