//! The duplicate filter: what was executed is not executed again, and its reply is kept for who asks again.
//!
//! Guarantee   of an at-most-once request at most one [`ServerEvent::Execute`] is ever told, in this life or in any
//!             other. A refusal is final. What is not known any more is answered with a typed doubt.
//! Method      see the module above. A session is named by a number drawn from the seed of this life: a request
//!             that names a session of an earlier life, or of a client that was evicted, meets no session.
//! Limits      [`ServerConfig`]. When it knows as many clients as it may, the one that has been silent longest is
//!             forgotten, unless something executes for it.

use std::collections::{BTreeMap, VecDeque};

use super::Mix;
use super::message::{CallId, Doubt, Message, Refusal, Rejection, Semantics, Verdict};
use crate::machine::{Input, Lane, Machine, Outputs, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::time::Time;
use bytes::Bytes;

/// The server's half of the protocol: one per life of one service.
pub struct Server {
    config: ServerConfig,
    sessions: BTreeMap<ClientKey, Session>,
    /// Told to execute and neither completed nor aborted.
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
    /// Requests executing at once; one more is refused as overloaded. Default 1,024.
    pub executing_max: u32,
    /// Bytes of replies kept for one client that has not acknowledged them; beyond it the oldest are forgotten.
    /// Default 1 MiB.
    pub reply_bytes_max: usize,
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
}

struct Session {
    id: u64,
    slots: Vec<Slot>,
    /// Kept replies, oldest first; an entry whose slot has moved on is void.
    kept: VecDeque<CallId>,
    kept_bytes: usize,
    /// The client has done with all calls below this number.
    complete_below: u64,
    executing: u32,
    heard: Time,
}

struct Slot {
    /// The newest call seen here; 0 before the first.
    sequence: u64,
    state: State,
}

enum State {
    /// Nothing to repeat: no call yet, or its reply is not kept.
    Silent,
    Executing {
        /// Whether the reply will be kept.
        keep: bool,
    },
    Ended(Verdict),
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
        let Execution { from, client, session: id, call, one_way } = *execution;
        let slot = self.sessions.get(&(from, client)).filter(|session| session.id == id);
        let slot = slot.and_then(|session| session.slots.get(call.slot as usize));
        one_way
            || slot.is_some_and(|slot| {
                slot.sequence == call.sequence && matches!(slot.state, State::Executing { .. })
            })
    }

    /// Requests that execute now.
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

    fn on_bind(&mut self, now: Time, from: ProcessId, client: u32, codec: u8, out: &mut Outputs<Self>) {
        let key = (from, client);
        let newest =
            self.sessions.range((lives(from.node).0, 0)..=(lives(from.node).1, u32::MAX)).next_back();
        if newest.is_some_and(|((process, _), _)| process.incarnation > from.incarnation) {
            return; // a late message of a process that has since restarted
        }
        let answer = if codec != self.config.codec {
            Err(Rejection::CodecMismatch)
        } else if let Some(session) = self.sessions.get_mut(&key) {
            session.heard = now;
            Ok(session.id)
        } else if self.draining {
            Err(Rejection::ShuttingDown)
        } else {
            self.forget_earlier_lives(from, out);
            self.admit(now, key)
        };
        let message = match answer {
            Ok(session) => Message::Bound { client, session, slots: self.config.slots_max },
            Err(reason) => Message::Rejected { client, reason },
        };
        out.send(from, Lane::Urgent, message);
    }

    /// The callers of an earlier life are gone: nobody waits for what executes for them.
    fn forget_earlier_lives(&mut self, from: ProcessId, out: &mut Outputs<Self>) {
        let first = ProcessId { node: from.node, incarnation: 0 };
        let keys: Vec<ClientKey> = self.sessions.range((first, 0)..(from, 0)).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(session) = self.sessions.remove(&key) else { continue };
            for (index, slot) in session.slots.iter().enumerate() {
                if matches!(slot.state, State::Executing { .. }) {
                    let call = CallId { slot: index as u32, sequence: slot.sequence };
                    self.executing -= 1;
                    self.stats.aborted += 1;
                    out.event(ServerEvent::Abort(execution(key, session.id, call, false)));
                }
            }
        }
    }

    fn admit(&mut self, now: Time, key: ClientKey) -> Result<u64, Rejection> {
        if self.sessions.len() >= self.config.clients_max {
            let idle = self.sessions.iter().filter(|(_, session)| session.executing == 0);
            let Some(victim) = idle.min_by_key(|(_, session)| session.heard).map(|(key, _)| *key) else {
                return Err(Rejection::TooManyClients);
            };
            self.sessions.remove(&victim);
            self.stats.clients_evicted += 1;
        }
        let id = self.mix.next();
        let session = Session {
            id,
            slots: Vec::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            complete_below: 0,
            executing: 0,
            heard: now,
        };
        self.sessions.insert(key, session);
        Ok(id)
    }

    fn on_request(&mut self, now: Time, from: ProcessId, request: Message, out: &mut Outputs<Self>) {
        let Message::Request {
            client,
            session: id,
            call,
            behind,
            method,
            signature,
            semantics,
            budget,
            body,
        } = request
        else {
            return;
        };
        let key = (from, client);
        let Some(session) = self.sessions.get_mut(&key).filter(|session| session.id == id) else {
            self.stats.lost_sessions += 1;
            if semantics != Semantics::OneWay {
                out.send(from, Lane::Urgent, Message::Lost { client, session: id });
            }
            return;
        };
        if call.slot >= self.config.slots_max || call.sequence == 0 {
            self.stats.stale += 1;
            return; // no client of ours does that
        }
        session.heard = now;
        // A distance that does not fit its field says nothing.
        if behind < u32::MAX {
            session.trim(call.sequence.saturating_sub(u64::from(behind)));
        }
        if call.sequence < session.complete_below && semantics != Semantics::OneWay {
            // Nobody waits for it, and what its caller did since may build on its being over: also an idempotent
            // request must not be executed behind a later one. A one-way call is complete as soon as it is sent.
            self.stats.stale += 1;
            return;
        }
        let slot = session.slot(call.slot);
        if call.sequence < slot.sequence && !self.config.plant.has(Planted::RpcSlotIgnoresSequence) {
            self.stats.stale += 1;
            return; // the client has used the slot again: nobody waits for this one
        }
        if call.sequence == slot.sequence {
            match &slot.state {
                State::Executing { .. } => {
                    self.stats.duplicates += 1;
                    out.send(from, Lane::Urgent, Message::Working { client, session: id, call });
                    return;
                }
                State::Ended(verdict) => {
                    self.stats.duplicates += 1;
                    if !self.config.plant.has(Planted::RpcExecutesDuplicates) {
                        self.stats.replayed += 1;
                        let verdict = verdict.clone();
                        out.send(from, Lane::Ordinary, Message::Reply { client, session: id, call, verdict });
                        return;
                    }
                    session.stop(call.slot);
                }
                // Nothing was kept of an idempotent call: doing it again is what its author allowed.
                State::Silent if semantics == Semantics::Idempotent => self.stats.duplicates += 1,
                State::Silent => {
                    self.stats.duplicates += 1;
                    if semantics != Semantics::OneWay {
                        let verdict = Verdict::Doubtful(Doubt::ReplyForgotten);
                        out.send(from, Lane::Ordinary, Message::Reply { client, session: id, call, verdict });
                    }
                    return;
                }
            }
        } else if session.stop(call.slot) {
            // A newer number in the slot: the client has given up on the older call.
            let given_up = CallId { sequence: session.slots[call.slot as usize].sequence, ..call };
            self.executing -= 1;
            self.stats.aborted += 1;
            out.event(ServerEvent::Abort(execution(key, id, given_up, false)));
        }
        session.slots[call.slot as usize].sequence = call.sequence;
        let refusal = if self.draining {
            Some(Refusal::ShuttingDown)
        } else if budget.is_zero() {
            Some(Refusal::DeadlinePassed)
        } else if self.executing >= self.config.executing_max {
            Some(Refusal::Overloaded)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.stats.refused += 1;
            if semantics != Semantics::OneWay {
                let verdict = Verdict::Refused(refusal);
                // Kept like a reply: the client may already have been told that it was not executed, so a copy that
                // comes later must not be.
                if !self.config.plant.has(Planted::RpcForgetsRefusals) {
                    session.keep(call, verdict.clone());
                } else {
                    session.slots[call.slot as usize].sequence -= 1;
                }
                out.send(from, Lane::Ordinary, Message::Reply { client, session: id, call, verdict });
            }
            return;
        }
        let one_way = semantics == Semantics::OneWay;
        if !one_way {
            session.slots[call.slot as usize].state =
                State::Executing { keep: semantics == Semantics::AtMostOnce };
            session.executing += 1;
        }
        self.executing += 1;
        self.stats.executed += 1;
        let execution = execution(key, id, call, one_way);
        out.event(ServerEvent::Execute { execution, method, signature, deadline: now + budget, body });
    }

    fn on_cancel(
        &mut self,
        now: Time,
        from: ProcessId,
        client: u32,
        id: u64,
        call: CallId,
        out: &mut Outputs<Self>,
    ) {
        let key = (from, client);
        let Some(session) = self.sessions.get_mut(&key).filter(|session| session.id == id) else { return };
        if call.slot >= self.config.slots_max || call.sequence < session.slot(call.slot).sequence {
            return;
        }
        session.heard = now;
        let sequence = session.slots[call.slot as usize].sequence;
        if session.stop(call.slot) {
            self.executing -= 1;
            self.stats.aborted += 1;
            out.event(ServerEvent::Abort(execution(key, id, CallId { sequence, ..call }, false)));
        }
        // Remembered even if the request has not come yet: then it comes too late.
        session.slots[call.slot as usize].sequence = call.sequence;
    }

    fn on_complete(&mut self, done: Execution, verdict: Verdict, out: &mut Outputs<Self>) {
        if done.one_way {
            self.executing = self.executing.saturating_sub(1);
            return;
        }
        let Execution { from, client, session: id, call, .. } = done;
        let Some(session) = self.sessions.get_mut(&(from, client)).filter(|session| session.id == id) else {
            return; // aborted: the client restarted
        };
        let Some(slot) = session.slots.get_mut(call.slot as usize) else { return };
        let State::Executing { keep } = slot.state else {
            return; // aborted
        };
        if slot.sequence != call.sequence {
            return; // aborted, and the slot was used again
        }
        session.stop(call.slot);
        self.executing -= 1;
        if keep {
            session.keep(call, verdict.clone());
        }
        while session.kept_bytes > self.config.reply_bytes_max {
            let Some(oldest) = session.kept.pop_front() else { break };
            if session.release(oldest) {
                self.stats.replies_forgotten += 1;
            }
        }
        out.send(from, Lane::Ordinary, Message::Reply { client, session: id, call, verdict });
    }
}

impl Session {
    fn slot(&mut self, index: u32) -> &mut Slot {
        let index = index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || Slot { sequence: 0, state: State::Silent });
        }
        &mut self.slots[index]
    }

    /// Ends whatever the slot holds; true when it was executing.
    fn stop(&mut self, index: u32) -> bool {
        let slot = self.slot(index);
        match std::mem::replace(&mut slot.state, State::Silent) {
            State::Executing { .. } => {
                self.executing -= 1;
                true
            }
            State::Ended(verdict) => {
                self.kept_bytes -= cost(&verdict);
                false
            }
            State::Silent => false,
        }
    }

    fn keep(&mut self, call: CallId, verdict: Verdict) {
        self.kept_bytes += cost(&verdict);
        self.slot(call.slot).state = State::Ended(verdict);
        self.kept.push_back(call);
        // Void entries pile up behind one that is not acknowledged; twice the slots is all that can be in use.
        if self.kept.len() > 2 * self.slots.len() + KEPT_SLACK {
            let slots = &self.slots;
            self.kept.retain(|call| {
                slots.get(call.slot as usize).is_some_and(|slot| {
                    slot.sequence == call.sequence && matches!(slot.state, State::Ended(_))
                })
            });
        }
    }

    /// Drops the kept verdict of `call`; false when it was not kept.
    fn release(&mut self, call: CallId) -> bool {
        let Some(slot) = self.slots.get_mut(call.slot as usize) else { return false };
        if slot.sequence != call.sequence {
            return false;
        }
        let State::Ended(verdict) = &slot.state else { return false };
        self.kept_bytes -= cost(verdict);
        slot.state = State::Silent;
        true
    }

    /// Drops the replies of calls that the client says are complete.
    fn trim(&mut self, complete_below: u64) {
        self.complete_below = self.complete_below.max(complete_below);
        while let Some(oldest) = self.kept.front().copied().filter(|call| call.sequence < complete_below) {
            self.kept.pop_front();
            self.release(oldest);
        }
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
                Message::Bind { client, codec } => self.on_bind(now, from, client, codec, out),
                Message::Request { .. } => self.on_request(now, from, message, out),
                Message::Cancel { client, session, call } => {
                    self.on_cancel(now, from, client, session, call, out)
                }
                Message::Bound { .. }
                | Message::Rejected { .. }
                | Message::Reply { .. }
                | Message::Working { .. }
                | Message::Lost { .. } => {}
            },
            Input::Command(ServerCommand::Complete { execution, verdict }) => {
                self.on_complete(execution, verdict, out);
            }
            Input::Command(ServerCommand::Drain) => self.draining = true,
            // A client that cannot be reached may come back in the same life and ask again.
            Input::Tick | Input::Reachable(_) | Input::Unreachable(_) => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn check(&self) -> Result<(), Violation> {
        let mut executing = 0;
        for ((process, client), session) in &self.sessions {
            let mut bytes = 0;
            let mut running = 0;
            for slot in &session.slots {
                match &slot.state {
                    State::Executing { .. } => running += 1,
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
            executing += running;
        }
        if executing > self.executing {
            return Err(Violation(format!("{executing} requests execute, {} counted", self.executing)));
        }
        if self.sessions.len() > self.config.clients_max {
            return Err(Violation(format!("{} clients known", self.sessions.len())));
        }
        Ok(())
    }
}

const fn execution(key: ClientKey, session: u64, call: CallId, one_way: bool) -> Execution {
    Execution { from: key.0, client: key.1, session, call, one_way }
}

const fn lives(node: u64) -> (ProcessId, ProcessId) {
    (ProcessId { node, incarnation: 0 }, ProcessId { node, incarnation: u64::MAX })
}

/// What a kept verdict counts: its body and its place in the tables.
fn cost(verdict: &Verdict) -> usize {
    let body = if let Verdict::Done(body) = verdict { body.len() } else { 0 };
    body + KEPT_OVERHEAD_BYTES
}

/// A table entry and an entry in the list of kept replies.
const KEPT_OVERHEAD_BYTES: usize = 64;

/// Void entries that are not worth a walk over the list.
const KEPT_SLACK: usize = 64;
