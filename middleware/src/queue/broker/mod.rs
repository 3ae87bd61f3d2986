//! A message broker between queues: rules that are stored and may be edited while it runs match, change and route messages.
//!
//! Guarantee   every message that the broker takes leaves its queue exactly once: all that the rules make of it and its
//!             acknowledgement are one [unit of work](super::Work). What no rule wants, and what cannot be read, changed or
//!             written as its rule says, goes to the [rejected](Rejected) ones with the reason. Messages are taken one after
//!             the other, so what a rule sends to a queue is there in the order of what it was made from.
//! Rules       a [`RuleBase`] is JSON: conditions on metadata and content, changes (set, copy, remove, look up, split, code of
//!             yours), and where the results go: to queues, here or on other nodes, or to whom subscribed to a topic. It is
//!             stored in the queues' journal. An [edit](Broker::edit) takes effect between two messages, and tells between
//!             which.
//! Formats     content is read into one common form, [`Value`], and written from it: [`JSON`](format::Json), CSV, plain text,
//!             types of yours by any [codec](crate::codec) ([`Typed`]), and what you add by the trait [`Format`].
//! Method      [`Machine`] decides, as a pure function of the rules and one message; `face.rs` drives it over the queues.
//! Source      message brokers as application-level gateways with a rule base: Tanenbaum & van Steen, "Distributed Systems"
//!             (message-queuing systems).
//! Limits      [`RULES_MAX`] rules, a rule base of [`BASE_BYTES_MAX`] bytes, [`RESULTS_MAX`] messages out of one. Rules that send
//!             in a circle over several brokers are not noticed.
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::journal::{Config, MemoryStorage};
//! use quorate::queue::Queues;
//! use quorate::queue::broker::{Broker, RuleBase};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let queues = Queues::open(MemoryStorage::new(), Config::new(1))?;
//! let broker = Broker::on(&queues, "incoming").start().await?;
//! let rules = r#"{ "rules": [ { "name": "paid orders",
//!     "when": [ { "field": "/state", "test": { "is": "paid" } } ],
//!     "change": [ { "remove": { "field": "/state" } } ],
//!     "to": [ { "queue": { "name": "parcels", "format": "csv" } } ] } ] }"#;
//! broker.edit(0, RuleBase::parse(rules)?).await?;
//!
//! queues.queue("incoming").await?.put(r#"{"state": "paid", "apples": 3}"#).await?;
//! let parcels = queues.queue("parcels").await?;
//! if let Some(parcel) = parcels.get(Duration::from_secs(5)).await? {
//!     assert_eq!(parcel.payload(), "apples\n3\n");
//!     parcel.ack().await?;
//! }
//! # broker.stop().await;
//! # queues.close().await;
//! # Ok(())
//! # }
//! ```

mod csv;
mod face;
mod field;
pub mod format;
mod machine;
mod rejected;
mod rules;
mod task;
#[cfg(test)]
mod tests;

pub use face::{Broker, BrokerBuilder, BrokerError, BrokerStats, EditError, Edited, RetryError};
pub use format::{Format, FormatError, Formats, Typed};
pub use machine::{Decision, Incoming, Machine, Outgoing, Reason};
pub use rejected::Rejected;
pub use rules::{
    BASE_BYTES_MAX, Change, Condition, RULES_MAX, Rule, RuleBase, RulesError, Subscription, Target, Test,
};
/// The common form of content: what formats read into and write from.
pub use serde_json::Value;

pub use machine::RESULTS_MAX;
