//! Remote procedure call: who is called, how often a request travels, how often it is executed.
//!
//! Purpose     two machines and a table. [`Client`] is the table of outstanding calls: ids, deadlines, retransmission, what
//!             is known when no answer comes. [`Server`] is the duplicate filter with its cached replies.
//!             [`Completions`] are the durable records behind exactly-once calls. [`ReadingHalf`] and [`WritingHalf`]
//!             are the streams that calls may carry.
//! Guarantee   a request is executed *at most once*, whatever is lost, repeated, delayed or overtaken, also when
//!             either side crashes and comes back. An idempotent one may be executed again (*at least once* as long as
//!             its caller waits). An exactly-once one takes effect once, and is answered however often the server
//!             crashes meanwhile, as long as its caller lives and waits. A call ends exactly once, at the latest at
//!             its deadline, and its outcome never claims more than is known.
//! Method      a client binds and gets a *session*; a session has *slots*; a call takes a free slot and the next
//!             *sequence number*. The server keeps, per slot, the newest sequence number and its reply. A newer
//!             number in a slot says that the client has done with the older one, so that the table is bounded by
//!             construction; the number below which all calls are complete comes with every request and lets
//!             replies be dropped earlier. A server that does not know a session says so: it is a new incarnation
//!             or has evicted the client, and what was under way *may have been executed*.
//! Source      Birrell & Nelson 1984 (call identifiers, probes); the slot table of NFSv4.1 sessions (RFC 8881,
//!             2.10.6); the first incomplete number of RIFL (Lee et al. 2015).
//! Needs       nothing of the network but that it does not alter messages.
//! Limits      [`ClientConfig`], [`ServerConfig`]: calls, slots, clients, executions, bytes of cached replies.

mod client;
mod completions;
pub mod gather;
mod message;
mod server;
mod stream;

pub use client::{Client, ClientCommand, ClientConfig, ClientEvent, ClientStats, Outcome};
pub use completions::{Begun, CompletionRecord, CompletionStats, Completions, CompletionsConfig, Request};
pub use message::{CallId, Doubt, Message, Refusal, Rejection, Semantics, Verdict};
pub use server::{Execution, Orphans, Server, ServerCommand, ServerConfig, ServerEvent, ServerStats};
pub use stream::{MayWrite, ReadingHalf, Spoken, Taken, WINDOW_ITEMS_MAX, Word, WritingHalf};

/// A small generator of well-mixed numbers (splitmix64): for jitter and for session names, not for secrets.
#[derive(Debug, Clone)]
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
