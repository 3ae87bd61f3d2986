//! A seeded simulator of machines: virtual time, faults, thousands of seeds a minute.
//!
//! Purpose     the code that runs over sockets runs here, unchanged, under every fault of the one fault model, and a
//!             failure replays bit for bit. It is public: test your own machines, or your service on top of ours.
//! Method      a [`Scenario`] makes machines, feeds them and knows what must hold. Each seed draws a [`Plan`] up front:
//!             [`Weather`] (latency, loss, duplication, reordering, clock drift, sync time) and an explicit list of
//!             [`Fault`]s, among them strikes that hit a node right at a promise. After the faults comes a calm phase in
//!             which everything must end well.
//! Failure     the failing seed runs again (another trace hash is a failure of its own), its fault list is shrunk, and
//!             the report shows seed, faults, last events, what was broken and the command that repeats it.
//! Source      FoundationDB's and TigerBeetle's simulators; swarm testing (Groce et al. 2012); delta debugging (Zeller).
//! Limits      one run has [`NODES_MAX`] nodes; no bytes are corrupted: transports check them.
//!
//! ```
//! use quorate::sim::{self, Boot, Config, Observed, Scenario, World};
//! use quorate::protocols::{Input, Lane, Machine, Outputs, ProcessId, Time, Violation};
//!
//! /// Answers every message, and tells its user how many it got.
//! struct Echo { id: ProcessId, got: u64 }
//!
//! impl Machine for Echo {
//!     type Command = ProcessId;
//!     type Event = u64;
//!     type Message = ProcessId;
//!     type Record = ();
//!     fn handle(&mut self, _now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
//!         match input {
//!             Input::Command(peer) => out.send(peer, Lane::Ordinary, self.id),
//!             Input::Received { message, .. } => {
//!                 self.got += 1;
//!                 out.event(self.got);
//!                 if message != self.id { out.send(message, Lane::Ordinary, message) }
//!             }
//!             _ => {}
//!         }
//!     }
//!     fn deadline(&self) -> Option<Time> { None }
//! }
//!
//! #[derive(Default)]
//! struct AtMostTwice { most: u64 }
//!
//! impl Scenario for AtMostTwice {
//!     type Machine = Echo;
//!     fn nodes(&self) -> usize { 2 }
//!     fn boot(&mut self, boot: Boot<Echo>) -> Echo { Echo { id: boot.id, got: 0 } }
//!     fn start(&mut self, world: &mut World<Echo>) { world.command(0, world.id(1)) }
//!     fn observe(&mut self, _: Observed, got: &u64, _: &mut World<Echo>) -> Result<(), Violation> {
//!         self.most = self.most.max(*got);
//!         Ok(())
//!     }
//!     fn finish(&mut self, _: &mut World<Echo>) -> Result<(), Violation> {
//!         // Networks repeat messages: once for each of the two ways.
//!         if self.most > 4 { Err(Violation(format!("{} copies", self.most))) } else { Ok(()) }
//!     }
//! }
//!
//! let summary = sim::sweep(&Config::default(), 0..100, |_| AtMostTwice::default())?;
//! assert_eq!(summary.seeds, 100);
//! # Ok::<(), Box<sim::Failure>>(())
//! ```

mod fault;
mod scenario;
mod sweep;
mod trace;
mod weather;
mod world;

pub use fault::{Action, Fault, Keep, Kind, Moment, Nodes, Plan};
pub use quorate_transports::fault::model::{Chance, Rng};
pub use scenario::{Boot, Observed, Scenario};
pub use sweep::{Breach, Config, Failure, Found, Summary, hunt, replay, sweep};
pub use weather::{Hints, Weather};
pub use world::{Counts, NODES_MAX, World};
