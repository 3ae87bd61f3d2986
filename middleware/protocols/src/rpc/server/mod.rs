//! The duplicate filter: what was executed is not executed again, and its reply is kept for who asks again.
//!
//! Guarantee   of an at-most-once request at most one [`ServerEvent::Execute`] is ever told, in this life or in any
//!             other. A refusal is final. What is not known any more is answered with a typed doubt.
//! Method      see the module above. A session is named by a number drawn from the seed of this life: a request
//!             that names a session of an earlier life, or of a client that was evicted, meets no session.
//! Limits      [`ServerConfig`]. When it knows as many clients as it may, the one that has been silent longest is
//!             forgotten, unless something executes for it.

mod binding;
mod orphans;
mod requests;
mod session;

use std::collections::BTreeMap;

use bytes::Bytes;

use self::binding::Wish;
pub use self::orphans::Orphans;
use self::session::{Session, State, cost};
use super::Mix;
use super::completions::Request;
use super::message::{CallId, Message, Refusal, Rejection, Verdict};
use crate::machine::{Input, Lane, Machine, Outputs, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::time::Time;

/// The server's half of the protocol: one per life of one service.
pub struct Server {
    config: ServerConfig,
    sessions: BTreeMap<ClientKey, Session>,
    /// Told to execute and neither done nor aborted.
    executing: u32,
    draining: bool,
    mix: Mix,
    stats: ServerStats,
}

/// One client: which process in which life, and its number there.
type ClientKey = (ProcessId, u32);

/// What the local user asks of the server machine.
#[derive(Debug, Clone)]
pub enum ServerCommand {
    /// What [`ServerEvent::Execute`] asked for is done. Ignored when it was aborted meanwhile.
    Complete {
        /// The same as in the event.
        execution: Execution,
        /// What became of it.
        verdict: Verdict,
    },
    /// The service's code is done with an execution, and its verdict will follow when it is safe to tell: what only waits
    /// leaves its place to another request. Whoever says so bounds what waits. Ignored when it was aborted meanwhile.
    Executed(Execution),
    /// Answers [`ServerEvent::SeatWanted`], when the seat is durable; `None` when no more clients can have one.
    Seated {
        /// Whose process.
        from: ProcessId,
        /// The client's number within it.
        client: u32,
        /// Its seat, not 0.
        seat: Option<u64>,
    },
    /// Take no new requests or clients; what executes goes on.
    Drain,
}

/// What the server machine tells its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// Execute a request.
    Execute {
        /// Names it in [`ServerCommand::Complete`].
        execution: Execution,
        /// The method's stable id.
        method: u32,
        /// The fingerprint of its types, as the client knows them.
        signature: u32,
        /// When the caller gives up.
        deadline: Time,
        /// The encoded arguments.
        body: Bytes,
        /// The client has done with all its calls below this number.
        acknowledged: u64,
        /// Only of exactly-once calls: the reason to refuse it, if the records do not say that it took effect.
        unless: Option<Refusal>,
    },
    /// A client that wants to make exactly-once calls binds, perhaps not for the first time: give it its seat by
    /// [`ServerCommand::Seated`].
    SeatWanted {
        /// Whose process.
        from: ProcessId,
        /// The client's number within it.
        client: u32,
    },
    /// Stop executing: nobody waits for it any more. No completion is expected.
    Abort(Execution),
}

/// Names one execution of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Execution {
    /// Whose.
    pub from: ProcessId,
    /// The client's number within its process.
    pub client: u32,
    /// Its session.
    pub session: u64,
    /// Which call.
    pub call: CallId,
    /// Nobody waits for a reply, and it is never aborted.
    pub one_way: bool,
    /// The client's seat, when it is to be executed exactly once; else 0.
    pub seat: u64,
}

impl Execution {
    /// The request, as the completion records know it; `None` when it is not an exactly-once one.
    pub fn request(&self) -> Option<Request> {
        let Self { from, client, call, seat, .. } = *self;
        (seat != 0).then_some(Request { from, client, seat, call })
    }
}

/// The server's limits.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The id of the codec that the service uses.
    pub codec: u8,
    /// Clients known at once. Default 1,024.
    pub clients_max: usize,
    /// Outstanding calls of one client; a table entry of some 64 bytes each, made as they are used. Default 16,384.
    pub slots_max: u32,
    /// Requests executing at once, without those of which only the answer waits; one more is refused as overloaded.
    /// Default 1,024.
    pub executing_max: u32,
    /// Bytes of replies kept for one client that has not acknowledged them; beyond it the oldest are forgotten.
    /// Default 1 MiB.
    pub reply_bytes_max: usize,
    /// Whether completion records are kept, so that clients may have seats. Default no.
    pub exactly_once: bool,
    /// What is done about executions whose caller may be gone.
    pub orphans: Orphans,
    /// Names sessions; must differ between any two lives of the service.
    pub seed: u64,
    /// A bug for the simulator to find.
    pub plant: Plant,
}

impl ServerConfig {
    /// The defaults.
    pub const fn new(codec: u8, seed: u64) -> Self {
        Self {
            codec,
            clients_max: 1_024,
            slots_max: 16_384,
            executing_max: 1_024,
            reply_bytes_max: 1 << 20,
            exactly_once: false,
            orphans: Orphans::Reincarnation,
            seed,
            plant: Plant::NONE,
        }
    }
}

/// Totals since the service began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Requests given to the service.
    pub executed: u64,
    /// Requests that came again and were not executed again.
    pub duplicates: u64,
    /// Requests that were older than what their slot holds, or of calls that the client has done with.
    pub stale: u64,
    /// Requests refused.
    pub refused: u64,
    /// Executions stopped because nobody waits any more.
    pub aborted: u64,
    /// Replies given from the cache.
    pub replayed: u64,
    /// Replies dropped for want of room before they were acknowledged.
    pub replies_forgotten: u64,
    /// Requests of unknown sessions.
    pub lost_sessions: u64,
    /// Clients forgotten for want of room.
    pub clients_evicted: u64,
    /// Executions stopped because their caller's process is gone, or is silent and believed to be.
    pub orphans: u64,
}

impl Server {
    /// A service in a new life.
    pub fn new(config: ServerConfig) -> Self {
        Self {
            mix: Mix(config.seed),
            config,
            sessions: BTreeMap::new(),
            executing: 0,
            draining: false,
            stats: ServerStats::default(),
        }
    }

    /// True while the execution is neither completed nor aborted.
    pub fn is_executing(&self, execution: &Execution) -> bool {
        let Execution { from, client, session: id, call, one_way, .. } = *execution;
        let slot = self.sessions.get(&(from, client)).filter(|session| session.id == id);
        let slot = slot.and_then(|session| session.slots.get(call.slot as usize));
        one_way
            || slot.is_some_and(|slot| {
                slot.sequence == call.sequence && matches!(slot.state, State::Executing { .. })
            })
    }

    /// Requests that execute now, without those of which only the answer waits.
    pub const fn executing(&self) -> u32 {
        self.executing
    }

    /// Clients known now.
    pub fn clients(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes of replies kept now.
    pub fn kept_bytes(&self) -> usize {
        self.sessions.values().map(|session| session.kept_bytes).sum()
    }

    /// Totals.
    pub const fn stats(&self) -> ServerStats {
        self.stats
    }
}

impl Machine for Server {
    type Command = ServerCommand;
    type Event = ServerEvent;
    type Message = Message;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Received { from, message } => match message {
                Message::Bind { client, codec, exactly_once } => {
                    self.on_bind(now, from, client, Wish { codec, exactly_once }, out);
                }
                Message::Request { .. } => self.on_request(now, from, message, out),
                Message::Cancel { client, session, call } => {
                    self.on_cancel(now, from, client, session, call, out)
                }
                Message::Renew { client, session: id } => {
                    let session = self.sessions.get_mut(&(from, client));
                    if let Some(session) = session.filter(|session| session.id == id) {
                        session.hear(now);
                    }
                }
                Message::Exterminate { client } => {
                    self.on_reachable(from, out);
                    out.send(from, Lane::Urgent, Message::Exterminated { client });
                }
                Message::Bound { .. }
                | Message::Ask { .. }
                | Message::Exterminated { .. }
                | Message::Rejected { .. }
                | Message::Reply { .. }
                | Message::Working { .. }
                | Message::Lost { .. } => {}
            },
            Input::Command(ServerCommand::Complete { execution, verdict }) => {
                self.on_complete(execution, verdict, out);
            }
            Input::Command(ServerCommand::Executed(execution)) => self.on_executed(execution),
            Input::Command(ServerCommand::Seated { from, client, seat }) => {
                self.on_seated(now, from, client, seat, out);
            }
            Input::Command(ServerCommand::Drain) => {
                if !std::mem::replace(&mut self.draining, true) {
                    // Who knows it sends nothing that would come too late to be refused.
                    for (process, client) in self.sessions.keys() {
                        let (client, reason) = (*client, Rejection::ShuttingDown);
                        out.send(*process, Lane::Urgent, Message::Rejected { client, reason });
                    }
                }
            }
            Input::Tick => self.on_tick(now, out),
            Input::Reachable(peer) => self.on_reachable(peer, out),
            Input::Unreachable(peer) => self.on_unreachable(now, peer, out),
        }
    }

    fn deadline(&self) -> Option<Time> {
        let waited_for = self.sessions.values().filter(|session| session.executing > 0);
        match self.config.orphans {
            Orphans::Reincarnation => None,
            Orphans::Expiration { .. } if self.config.plant.has(Planted::RpcIgnoresSilence) => None,
            Orphans::Expiration { quantum } => waited_for.map(|session| session.heard + quantum).min(),
            Orphans::Gentle { grace } => waited_for
                .filter_map(|session| session.suspected)
                .map(|(since, ask)| ask.min(since + grace))
                .min(),
        }
    }

    fn check(&self) -> Result<(), Violation> {
        let mut places = 0;
        for ((process, client), session) in &self.sessions {
            let mut bytes = 0;
            let mut running = 0;
            for slot in &session.slots {
                match &slot.state {
                    State::Executing { has_place, .. } => {
                        running += 1;
                        places += u32::from(*has_place);
                    }
                    State::Ended(verdict) => bytes += cost(verdict),
                    State::Silent => {}
                }
            }
            if (bytes, running) != (session.kept_bytes, session.executing) {
                return Err(Violation(format!(
                    "client {client} of {process}: {bytes} bytes kept and {running} executing, counted {} and {}",
                    session.kept_bytes, session.executing
                )));
            }
        }
        if places > self.executing {
            return Err(Violation(format!("{places} requests execute, {} counted", self.executing)));
        }
        if self.sessions.len() > self.config.clients_max {
            return Err(Violation(format!("{} clients known", self.sessions.len())));
        }
        Ok(())
    }
}

const fn execution(key: ClientKey, session: u64, call: CallId, seat: u64) -> Execution {
    Execution { from: key.0, client: key.1, session, call, one_way: false, seat }
}
