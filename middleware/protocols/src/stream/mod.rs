//! Streams with quality of service: what a flow may send, when its units are played, and what repairs them.
//!
//! Purpose     the decisions of continuous media as pure values: they are told the time and never ask for it, and equal
//!             inputs give equal decisions on every machine.
//! Guarantee   each module states its own; none of them keeps more than its named limit, whatever a peer sends.
//! Source      van Steen & Tanenbaum, "Distributed Systems", stream-oriented communication; RFC 2212, RFC 3550.
//!
//! | what | module |
//! | --- | --- |
//! | the flow specification and how streams transmit | [`flow`], [`mode`] |
//! | how much may be sent, and when | [`bucket`], [`admission`] |
//! | when each unit is played | [`playout`] |
//! | several sub-streams together | [`skew`] |
//! | what repairs losses | [`erasure`], [`interleave`], [`repair`], [`loss`] |
//! | what a receiver tells the sender | [`report`], [`adapt`] |

pub mod adapt;
pub mod admission;
pub mod bucket;
pub mod erasure;
pub mod flow;
pub mod interleave;
pub mod loss;
pub mod mode;
pub mod playout;
pub mod repair;
pub mod report;
pub mod skew;

pub use adapt::{Layers, RateControl};
pub use admission::{Admission, Grant, Refusal, Verdict};
pub use bucket::{Pacer, PacerFull, Refused, TokenBucket};
pub use erasure::{CodeError, ErasureCode};
pub use flow::{FlowSpec, SpecError};
pub use interleave::{Blocks, Interleaver};
pub use loss::{LossMeter, Losses, Protection, Requests};
pub use mode::{Breach, Monitor, TransmissionMode};
pub use playout::{Playout, PlayoutStats, Policy};
pub use repair::{Parity, Protector, RepairStats, Repairer};
pub use report::{Reception, Report};
pub use skew::Synchroniser;
