//! The duplicate filter: what was executed is not executed again, and its reply is kept for who asks again.
//!
//! Guarantee   of an at-most-once request at most one [`ServerEvent::Execute`] is ever told, in this life or in any
//!             other. A refusal is final. What is not known any more is answered with a typed doubt.
//! Method      see the module above. A session is named by a number drawn from the seed of this life: a request
//!             that names a session of an earlier life, or of a client that was evicted, meets no session.
//! Limits      [`ServerConfig`]. When it knows as many clients as it may, the one that has been silent longest is
//!             forgotten, unless something executes for it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Mix;
use super::completions::Request;
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

/// What a client that binds says of itself.
struct Wish {
    codec: u8,
    exactly_once: bool,
}

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

/// What a server does about executions whose caller may be gone (Nelson's four treatments; the fourth, extermination, is
/// asked for by the caller's next life with [`Message::Exterminate`], whatever is chosen here).
///
/// A new life of a process always ends what executes for its earlier ones: nobody waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orphans {
    /// Reincarnation: only a new life of the caller's process ends them, as soon as it is heard of.
    #[default]
    Reincarnation,
    /// Gentle reincarnation: a caller whose connection broke is asked, and what executes for it is ended when it has not
    /// said within `grace` that it still waits.
    Gentle {
        /// How long a caller has to answer. Shorter than a break of the network ends what somebody waits for.
        grace: Duration,
    },
    /// Expiration: what executes for a caller that was not heard for a `quantum` is ended. Callers with calls under way
    /// are told to be heard three times as often.
    Expiration {
        /// How long a caller may be silent. Short ones cost messages and end calls when the network is slow.
        quantum: Duration,
    },
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

struct Session {
    id: u64,
    /// Where the completion records know the client; 0 when they do not.
    seat: u64,
    slots: Vec<Slot>,
    /// Kept replies, oldest first; an entry whose slot has moved on is void.
    kept: VecDeque<CallId>,
    kept_bytes: usize,
    /// The client has done with all calls below this number.
    complete_below: u64,
    executing: u32,
    heard: Time,
    /// Since when its client is believed to be gone, and when it is asked next.
    suspected: Option<(Time, Time)>,
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
        /// The client's seat, when it is to be executed exactly once; else 0.
        seat: u64,
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
        let Execution { from, client, session: id, call, one_way, .. } = *execution;
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

    fn on_bind(&mut self, now: Time, from: ProcessId, client: u32, bind: Wish, out: &mut Outputs<Self>) {
        if self.knows_later_life(from) {
            return; // a late message of a process that has since restarted
        }
        let answer = if bind.codec != self.config.codec {
            Err(Rejection::CodecMismatch)
        } else if self.draining && !self.sessions.contains_key(&(from, client)) {
            Err(Rejection::ShuttingDown)
        } else if bind.exactly_once && self.config.exactly_once {
            out.event(ServerEvent::SeatWanted { from, client });
            return;
        } else {
            self.bind(now, (from, client), 0, out)
        };
        self.answer_bind(from, client, 0, answer, out);
    }

    fn on_seated(
        &mut self,
        now: Time,
        from: ProcessId,
        client: u32,
        seat: Option<u64>,
        out: &mut Outputs<Self>,
    ) {
        if self.knows_later_life(from) {
            return;
        }
        let answer = match seat {
            Some(seat) => self.bind(now, (from, client), seat, out),
            None => Err(Rejection::TooManyClients),
        };
        self.answer_bind(from, client, seat.unwrap_or(0), answer, out);
    }

    fn knows_later_life(&self, from: ProcessId) -> bool {
        let (first, last) = lives(from.node);
        let newest = self.sessions.range((first, 0)..=(last, u32::MAX)).next_back();
        newest.is_some_and(|((process, _), _)| process.incarnation > from.incarnation)
    }

    /// The session of a client: the one that it has, unless its seat is another one by now.
    fn bind(
        &mut self,
        now: Time,
        key: ClientKey,
        seat: u64,
        out: &mut Outputs<Self>,
    ) -> Result<u64, Rejection> {
        if let Some(session) = self.sessions.get_mut(&key) {
            if session.seat == seat {
                session.hear(now);
                return Ok(session.id);
            }
            self.forget(key, out);
        }
        if self.draining {
            return Err(Rejection::ShuttingDown);
        }
        self.forget_earlier_lives(key.0, out);
        self.admit(now, key, seat)
    }

    fn answer_bind(
        &self,
        from: ProcessId,
        client: u32,
        seat: u64,
        answer: Result<u64, Rejection>,
        out: &mut Outputs<Self>,
    ) {
        let message = match answer {
            Ok(session) => {
                let renewal = match self.config.orphans {
                    Orphans::Expiration { quantum } => quantum / 3,
                    Orphans::Reincarnation | Orphans::Gentle { .. } => Duration::ZERO,
                };
                Message::Bound { client, session, slots: self.config.slots_max, seat, renewal }
            }
            Err(reason) => Message::Rejected { client, reason },
        };
        out.send(from, Lane::Urgent, message);
    }

    /// The callers of an earlier life are gone: nobody waits for what executes for them.
    fn forget_earlier_lives(&mut self, from: ProcessId, out: &mut Outputs<Self>) {
        if self.config.plant.has(Planted::RpcIgnoresReincarnation) {
            return;
        }
        let first = ProcessId { node: from.node, incarnation: 0 };
        let keys: Vec<ClientKey> = self.sessions.range((first, 0)..(from, 0)).map(|(key, _)| *key).collect();
        for key in keys {
            self.forget(key, out);
        }
    }

    /// Ends a session and what executes in it.
    fn forget(&mut self, key: ClientKey, out: &mut Outputs<Self>) {
        let Some(session) = self.sessions.remove(&key) else { return };
        for (index, slot) in session.slots.iter().enumerate() {
            if let State::Executing { seat, .. } = slot.state {
                let call = CallId { slot: index as u32, sequence: slot.sequence };
                self.executing -= 1;
                self.stats.aborted += 1;
                self.stats.orphans += 1;
                out.event(ServerEvent::Abort(execution(key, session.id, call, seat)));
            }
        }
    }

    /// Ends what executes in a session, which goes on: its client may come back after all.
    fn end_orphans(&mut self, key: ClientKey, out: &mut Outputs<Self>) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.suspected = None;
        let id = session.id;
        for index in 0..session.slots.len() as u32 {
            if !matches!(session.slots[index as usize].state, State::Executing { .. }) {
                continue;
            }
            let call = CallId { slot: index, sequence: session.slots[index as usize].sequence };
            let Some(seat) = session.stop(index) else { continue };
            self.executing -= 1;
            self.stats.aborted += 1;
            self.stats.orphans += 1;
            if seat == 0 {
                session.keep(call, Verdict::Doubtful(Doubt::Abandoned));
            } // else the records tell whether it took effect, and it may be executed if it is asked for again
            out.event(ServerEvent::Abort(execution(key, id, call, seat)));
        }
    }

    /// What a new life of a process says, whatever it came for: its earlier ones wait for nothing any more.
    fn on_reachable(&mut self, peer: ProcessId, out: &mut Outputs<Self>) {
        if !self.knows_later_life(peer) {
            self.forget_earlier_lives(peer, out);
        }
    }

    fn on_unreachable(&mut self, now: Time, peer: ProcessId, out: &mut Outputs<Self>) {
        let Orphans::Gentle { .. } = self.config.orphans else { return };
        for ((from, _), session) in self.sessions.range_mut((peer, 0)..=(peer, u32::MAX)) {
            debug_assert_eq!(*from, peer);
            if session.executing > 0 && session.suspected.is_none() {
                session.suspected = Some((now, now));
            }
        }
        self.on_tick(now, out);
    }

    fn on_tick(&mut self, now: Time, out: &mut Outputs<Self>) {
        let mut gone = Vec::new();
        for (key, session) in &mut self.sessions {
            if session.executing == 0 {
                session.suspected = None;
                continue;
            }
            match self.config.orphans {
                Orphans::Reincarnation => {}
                Orphans::Expiration { quantum } => {
                    if now >= session.heard + quantum && !self.config.plant.has(Planted::RpcIgnoresSilence) {
                        gone.push(*key);
                    }
                }
                Orphans::Gentle { grace } => {
                    let Some((since, ask)) = session.suspected else { continue };
                    if now >= since + grace || self.config.plant.has(Planted::RpcEndsUnasked) {
                        gone.push(*key);
                    } else if now >= ask {
                        session.suspected = Some((since, now + grace / 4));
                        let message = Message::Ask { client: key.1, session: session.id };
                        out.send(key.0, Lane::Urgent, message);
                    }
                }
            }
        }
        for key in gone {
            self.end_orphans(key, out);
        }
    }

    fn admit(&mut self, now: Time, key: ClientKey, seat: u64) -> Result<u64, Rejection> {
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
            seat,
            slots: Vec::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            complete_below: 0,
            executing: 0,
            heard: now,
            suspected: None,
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
        session.hear(now);
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
                // Nothing was kept of an idempotent call: doing it again is what its author allowed. Of an exactly-once
                // one the records tell.
                State::Silent if matches!(semantics, Semantics::Idempotent | Semantics::ExactlyOnce) => {
                    self.stats.duplicates += 1;
                }
                State::Silent => {
                    self.stats.duplicates += 1;
                    if semantics != Semantics::OneWay {
                        let verdict = Verdict::Doubtful(Doubt::ReplyForgotten);
                        out.send(from, Lane::Ordinary, Message::Reply { client, session: id, call, verdict });
                    }
                    return;
                }
            }
        } else if let Some(seat) = session.stop(call.slot) {
            // A newer number in the slot: the client has given up on the older call.
            let given_up = CallId { sequence: session.slots[call.slot as usize].sequence, ..call };
            self.executing -= 1;
            self.stats.aborted += 1;
            out.event(ServerEvent::Abort(execution(key, id, given_up, seat)));
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
        let seat = if semantics == Semantics::ExactlyOnce { session.seat } else { 0 };
        // An exactly-once request may have taken effect in an earlier life: the records are asked first.
        let (refusal, unless) = match semantics {
            Semantics::ExactlyOnce if seat == 0 => (Some(Refusal::NoJournal), None),
            Semantics::ExactlyOnce => (None, refusal),
            _ => (refusal, None),
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
                State::Executing { keep: semantics != Semantics::Idempotent, seat };
            session.executing += 1;
        }
        self.executing += 1;
        self.stats.executed += 1;
        out.event(ServerEvent::Execute {
            execution: Execution { one_way, ..execution(key, id, call, seat) },
            method,
            signature,
            deadline: now + budget,
            body,
            acknowledged: session.complete_below,
            unless,
        });
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
        session.hear(now);
        let sequence = session.slots[call.slot as usize].sequence;
        if let Some(seat) = session.stop(call.slot) {
            self.executing -= 1;
            self.stats.aborted += 1;
            out.event(ServerEvent::Abort(execution(key, id, CallId { sequence, ..call }, seat)));
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
        let State::Executing { keep, .. } = slot.state else {
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
    fn hear(&mut self, now: Time) {
        self.heard = now;
        self.suspected = None;
    }

    fn slot(&mut self, index: u32) -> &mut Slot {
        let index = index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || Slot { sequence: 0, state: State::Silent });
        }
        &mut self.slots[index]
    }

    /// Ends whatever the slot holds; when it was executing, gives the seat for which (0 for none).
    fn stop(&mut self, index: u32) -> Option<u64> {
        let slot = self.slot(index);
        match std::mem::replace(&mut slot.state, State::Silent) {
            State::Executing { seat, .. } => {
                self.executing -= 1;
                return Some(seat);
            }
            State::Ended(verdict) => self.kept_bytes -= cost(&verdict),
            State::Silent => {}
        }
        None
    }

    fn keep(&mut self, call: CallId, verdict: Verdict) {
        let cost = cost(&verdict);
        self.kept_bytes += cost;
        self.slot(call.slot).state = State::Ended(verdict);
        if cost == 0 {
            return; // stays until its slot is used again
        }
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

const fn execution(key: ClientKey, session: u64, call: CallId, seat: u64) -> Execution {
    Execution { from: key.0, client: key.1, session, call, one_way: false, seat }
}

const fn lives(node: u64) -> (ProcessId, ProcessId) {
    (ProcessId { node, incarnation: 0 }, ProcessId { node, incarnation: u64::MAX })
}

/// What a kept verdict counts: its body and its place in the tables. A refusal needs no more than its slot and is never
/// dropped for want of room: a copy that comes later must not be executed, as the caller was told that it is not.
fn cost(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Done(body) => body.len() + KEPT_OVERHEAD_BYTES,
        Verdict::Doubtful(_) => KEPT_OVERHEAD_BYTES,
        Verdict::Refused(_) => 0,
    }
}

/// A table entry and an entry in the list of kept replies.
const KEPT_OVERHEAD_BYTES: usize = 64;

/// Void entries that are not worth a walk over the list.
const KEPT_SLACK: usize = 64;
