//! The table of outstanding calls: ids, deadlines, retransmission, cancellation, and what is known at the end.
//!
//! Guarantee   every call ends exactly once with an [`Outcome`], at the latest at its deadline. A request is sent
//!             again only to the session that it was first sent to, unless its method is idempotent.
//! Method      see the module above. Timers are lazy: the machine asks to be woken at the earliest moment at which
//!             anything may be due and then looks at all calls, so that starting and ending a call touches no
//!             timer queue.
//! Limits      [`ClientConfig::calls_max`] calls; one more ends at once with [`Outcome::TooManyCalls`].

use std::time::Duration;

use bytes::Bytes;

use super::Mix;
use super::message::{CallId, Doubt, Message, Refusal, Rejection, Semantics, Verdict};
use crate::machine::{Input, Lane, Machine, Outputs, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::time::Time;

/// The client's half of the protocol: one per binding of one process to one service.
pub struct Client {
    config: ClientConfig,
    /// The server in its latest known life.
    server: ProcessId,
    binding: Binding,
    /// The server has said that it takes no new requests in this session.
    is_leaving: bool,
    calls: Vec<Call>,
    free: Vec<u32>,
    /// The oldest and the newest outstanding call; they are linked in the order of their sequence numbers.
    oldest: u32,
    newest: u32,
    outstanding: u32,
    sequence: u64,
    /// No call needs anything before this moment.
    wake: Option<Time>,
    /// When the server is to be told that we still wait, if it wants to hear it.
    renew_at: Time,
    mix: Mix,
    stats: ClientStats,
}

/// What the local user asks of the client machine.
#[derive(Debug, Clone)]
pub enum ClientCommand {
    /// Make a call. It gets the id that [`Client::upcoming`] tells.
    Call {
        /// Given back when the call ends; means nothing to the machine.
        token: u32,
        /// The method's stable id.
        method: u32,
        /// The fingerprint of its types.
        signature: u32,
        /// How often it may be executed.
        semantics: Semantics,
        /// When to give up.
        deadline: Time,
        /// The encoded arguments.
        body: Bytes,
    },
    /// Nobody waits for the call any more. No event follows.
    Cancel(CallId),
    /// Nothing can be sent any more: end every call with [`Outcome::Closed`].
    Close,
}

/// What the client machine tells its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// Bound to this life of the server: the first time, after a restart, or after having been forgotten.
    Bound(ProcessId),
    /// The server refuses to bind. The machine goes on trying, ever more rarely.
    Rejected(Rejection),
    /// A call has ended.
    Ended {
        /// The user's own token.
        token: u32,
        /// What is known.
        outcome: Outcome,
    },
}

/// What is known of a call that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Executed; the encoded result (empty for a one-way call, of which only the sending is known).
    Replied(Bytes),
    /// Not sent: so many calls are outstanding already.
    TooManyCalls {
        /// The limit.
        limit: u32,
    },
    /// Not executed, and it will not be.
    NotExecuted(Refusal),
    /// Sent; it may have been executed or not.
    MaybeExecuted(Doubt),
    /// This side closed first. If it was sent, it may have been executed or may yet be.
    Closed {
        /// Whether the request was ever sent.
        sent: bool,
    },
    /// The deadline passed first. If it was sent, it may have been executed or may yet be.
    DeadlinePassed {
        /// Whether the request was ever sent.
        sent: bool,
    },
}

/// The client's limits and timing.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The client's number within its process; never used twice in one incarnation.
    pub number: u32,
    /// The id of the codec.
    pub codec: u8,
    /// Whether there will be exactly-once calls: the server then gives this client a seat in its records. Default no.
    pub exactly_once: bool,
    /// Outstanding calls, at most. Too small: bursts fail; too large: memory, some 150 bytes each. Default 16,384.
    pub calls_max: u32,
    /// How long to wait for a reply before the first retransmission. Below the usual time of a call it only costs
    /// messages. Default 200 ms.
    pub retry_min: Duration,
    /// The longest wait between two retransmissions; the wait doubles until then. Default 5 s.
    pub retry_max: Duration,
    /// Feeds the jitter.
    pub seed: u64,
    /// A bug for the simulator to find.
    pub plant: Plant,
}

impl ClientConfig {
    /// The defaults for client `number`, encoding with `codec`.
    pub const fn new(number: u32, codec: u8, seed: u64) -> Self {
        Self {
            number,
            codec,
            exactly_once: false,
            calls_max: 16_384,
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
            seed,
            plant: Plant::NONE,
        }
    }
}

/// Totals since the client was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// Calls begun.
    pub calls: u64,
    /// Requests sent again.
    pub retransmissions: u64,
    /// Calls cancelled by their callers.
    pub cancelled: u64,
    /// Calls that ended by their deadline.
    pub deadlines_passed: u64,
    /// Calls of which only "perhaps" is known.
    pub maybe_executed: u64,
    /// Sessions got; more than one means that the server restarted or forgot us.
    pub sessions: u64,
    /// Replies to calls that had ended.
    pub late_replies: u64,
}

enum Binding {
    /// Asking for a session; `last` is taken up again if the server still knows it.
    Seeking {
        last: Option<Session>,
        due: Time,
        attempts: u32,
    },
    Bound(Session),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Session {
    server: ProcessId,
    id: u64,
    slots: u32,
    /// Where the server's records know us, in all its lives; 0 when it keeps none.
    seat: u64,
    /// How often we must be heard while calls are under way; zero: not at all.
    renewal: Duration,
}

struct Call {
    /// 0 when the slot is free.
    sequence: u64,
    token: u32,
    method: u32,
    signature: u32,
    semantics: Semantics,
    /// How often it was sent in this session.
    sent: u32,
    /// Whether it was sent in any session.
    sent_ever: bool,
    /// The seat under which an exactly-once call was first sent; 0 before.
    seat: u64,
    deadline: Time,
    due: Time,
    before: u32,
    after: u32,
    body: Bytes,
}

impl Client {
    /// A client of the service on `server`. It begins to bind at the first [`Input::Tick`].
    pub fn new(server: ProcessId, config: ClientConfig) -> Self {
        Self {
            mix: Mix(config.seed),
            config,
            server,
            binding: Binding::Seeking { last: None, due: Time::ZERO, attempts: 0 },
            is_leaving: false,
            calls: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            outstanding: 0,
            sequence: 0,
            wake: None,
            renew_at: Time::ZERO,
            stats: ClientStats::default(),
        }
    }

    /// The id that the next [`ClientCommand::Call`] gets, if it is taken at all.
    pub fn upcoming(&self) -> CallId {
        let slot = self.free.last().copied().unwrap_or(self.calls.len() as u32);
        CallId { slot, sequence: self.sequence + 1 }
    }

    /// The life of the server that the client is bound to.
    pub const fn bound_to(&self) -> Option<ProcessId> {
        match &self.binding {
            Binding::Bound(session) => Some(session.server),
            Binding::Seeking { .. } => None,
        }
    }

    /// Bound to a server that takes new requests, as far as is known.
    pub const fn is_served(&self) -> bool {
        matches!(self.binding, Binding::Bound(_)) && !self.is_leaving
    }

    /// Bytes of the table of calls, without the arguments that it keeps.
    pub const fn table_bytes(&self) -> usize {
        self.calls.capacity() * size_of::<Call>() + self.free.capacity() * size_of::<u32>()
    }

    /// Calls that have not ended.
    pub const fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// The request of a call that was told to be sent, as it reads now: for who could not send it at once. `None` when
    /// the call has ended, or will be sent anew because the session is in doubt.
    pub fn request(&self, now: Time, call: CallId) -> Option<Message> {
        let Binding::Bound(session) = self.binding else { return None };
        let slot = self.find(call).filter(|slot| self.calls[*slot as usize].sent > 0)?;
        Some(self.message(now, session, slot))
    }

    /// Totals.
    pub const fn stats(&self) -> ClientStats {
        self.stats
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    fn call(
        &mut self,
        now: Time,
        token: u32,
        method: u32,
        signature: u32,
        semantics: Semantics,
        deadline: Time,
        body: Bytes,
        out: &mut Outputs<Self>,
    ) {
        self.stats.calls += 1;
        let limit = match &self.binding {
            Binding::Bound(session) => self.config.calls_max.min(session.slots),
            Binding::Seeking { .. } => self.config.calls_max,
        };
        if self.outstanding >= limit {
            out.event(ClientEvent::Ended { token, outcome: Outcome::TooManyCalls { limit } });
            return;
        }
        self.sequence += 1;
        let before = self.newest;
        let call = Call {
            sequence: self.sequence,
            token,
            method,
            signature,
            semantics,
            sent: 0,
            sent_ever: false,
            seat: 0,
            deadline,
            due: deadline,
            before,
            after: NONE,
            body,
        };
        let slot = if let Some(slot) = self.free.pop() {
            self.calls[slot as usize] = call;
            slot
        } else {
            self.calls.push(call);
            (self.calls.len() - 1) as u32
        };
        match before {
            NONE => self.oldest = slot,
            before => self.calls[before as usize].after = slot,
        }
        self.newest = slot;
        self.outstanding += 1;
        self.wake_by(deadline);
        self.transmit(now, slot, out);
    }

    /// Sends the request of `slot`, if there is a session to send it in.
    fn transmit(&mut self, now: Time, slot: u32, out: &mut Outputs<Self>) {
        let Binding::Bound(session) = self.binding else { return };
        if slot >= session.slots {
            // Taken before this session told how many there are.
            self.end(slot, Outcome::TooManyCalls { limit: session.slots }, out);
            return;
        }
        let call = &mut self.calls[slot as usize];
        if call.deadline <= now {
            // Sent now, it would only be refused, and this side would no longer know that it was never executed.
            let sent = call.sent_ever;
            self.end(slot, Outcome::DeadlinePassed { sent }, out);
            return;
        }
        if self.is_leaving && !call.sent_ever {
            // It would be refused, if it came in time; and if it did not, nobody would know that it was never executed.
            self.end(slot, Outcome::NotExecuted(Refusal::ShuttingDown), out);
            return;
        }
        if call.semantics == Semantics::ExactlyOnce {
            if session.seat == 0 {
                let outcome = match call.sent_ever {
                    true => Outcome::MaybeExecuted(Doubt::RecordForgotten),
                    false => Outcome::NotExecuted(Refusal::NoJournal),
                };
                self.end(slot, outcome, out);
                return;
            }
            let ignored = self.config.plant.has(Planted::RpcReissuesUnderNewSeat);
            if call.seat != 0 && call.seat != session.seat && !ignored {
                // The records that would tell are gone: sent again, it might take effect a second time.
                self.end(slot, Outcome::MaybeExecuted(Doubt::RecordForgotten), out);
                return;
            }
            call.seat = session.seat;
        }
        if call.sent > 0 {
            self.stats.retransmissions += 1;
        }
        call.sent += 1;
        call.sent_ever = true;
        self.renew_at = now + session.renewal;
        out.send(self.address(), Lane::Ordinary, self.message(now, session, slot));
        if self.calls[slot as usize].semantics == Semantics::OneWay {
            self.end(slot, Outcome::Replied(Bytes::new()), out);
            return;
        }
        let due = now + backoff(&self.config, &mut self.mix, self.calls[slot as usize].sent);
        self.calls[slot as usize].due = due;
        self.wake_by(due);
    }

    fn message(&self, now: Time, session: Session, slot: u32) -> Message {
        let oldest = self.calls[self.oldest as usize].sequence;
        let call = &self.calls[slot as usize];
        Message::Request {
            client: self.config.number,
            session: session.id,
            call: CallId { slot, sequence: call.sequence },
            behind: u32::try_from(call.sequence - oldest).unwrap_or(u32::MAX),
            method: call.method,
            signature: call.signature,
            semantics: call.semantics,
            budget: call.deadline.since(now),
            body: call.body.clone(),
        }
    }

    /// Sends, in the order of their numbers, all calls that have not been sent in this session, or simply all.
    fn transmit_outstanding(&mut self, now: Time, all: bool, out: &mut Outputs<Self>) {
        self.each(|client, slot| {
            if all || client.calls[slot as usize].sent == 0 {
                client.transmit(now, slot, out);
            }
        });
    }

    /// Visits the outstanding calls from the oldest on; the visited one may end.
    fn each(&mut self, mut visit: impl FnMut(&mut Self, u32)) {
        let mut slot = self.oldest;
        while slot != NONE {
            let next = self.calls[slot as usize].after;
            visit(self, slot);
            slot = next;
        }
    }

    fn end(&mut self, slot: u32, outcome: Outcome, out: &mut Outputs<Self>) {
        match &outcome {
            Outcome::DeadlinePassed { .. } => self.stats.deadlines_passed += 1,
            Outcome::MaybeExecuted(_) => self.stats.maybe_executed += 1,
            _ => {}
        }
        let token = self.release(slot);
        out.event(ClientEvent::Ended { token, outcome });
    }

    fn release(&mut self, slot: u32) -> u32 {
        let call = &mut self.calls[slot as usize];
        call.sequence = 0;
        call.body = Bytes::new();
        let (token, before, after) = (call.token, call.before, call.after);
        match before {
            NONE => self.oldest = after,
            before => self.calls[before as usize].after = after,
        }
        match after {
            NONE => self.newest = before,
            after => self.calls[after as usize].before = before,
        }
        // Last in, first out: the same few slots stay warm on both sides.
        self.free.push(slot);
        self.outstanding -= 1;
        token
    }

    /// Whichever life the server is in: the session says for which one a message is meant, and another one answers
    /// that it does not know the session.
    const fn address(&self) -> ProcessId {
        ProcessId::any_life(self.server.node)
    }

    fn find(&self, call: CallId) -> Option<u32> {
        let entry = self.calls.get(call.slot as usize)?;
        (call.sequence != 0 && entry.sequence == call.sequence).then_some(call.slot)
    }

    fn wake_by(&mut self, moment: Time) {
        self.wake = Some(self.wake.map_or(moment, |wake| wake.min(moment)));
    }

    /// The session that replies may still belong to.
    const fn session(&self) -> Option<Session> {
        match self.binding {
            Binding::Bound(session) => Some(session),
            Binding::Seeking { last, .. } => last,
        }
    }

    fn seek(&mut self, now: Time, last: Option<Session>, out: &mut Outputs<Self>) {
        self.binding = Binding::Seeking { last, due: now, attempts: 0 };
        self.ask(now, out);
    }

    fn ask(&mut self, now: Time, out: &mut Outputs<Self>) {
        if let Binding::Seeking { due, attempts, .. } = &mut self.binding {
            *attempts = attempts.saturating_add(1);
            *due = now + backoff(&self.config, &mut self.mix, *attempts);
            let message = Message::Bind {
                client: self.config.number,
                codec: self.config.codec,
                exactly_once: self.config.exactly_once,
            };
            out.send(self.address(), Lane::Urgent, message);
        }
    }

    /// The server no longer knows what it was asked in the session: only idempotent calls may be asked again, and those
    /// that it has in its records if they were executed.
    fn lose_session(&mut self, out: &mut Outputs<Self>) {
        self.each(|client, slot| {
            let call = &mut client.calls[slot as usize];
            if call.sent == 0 {
                return;
            }
            if matches!(call.semantics, Semantics::Idempotent | Semantics::ExactlyOnce)
                || client.config.plant.has(Planted::RpcReissuesAfterRestart)
            {
                call.sent = 0;
                call.due = call.deadline;
            } else {
                client.end(slot, Outcome::MaybeExecuted(Doubt::SessionLost), out);
            }
        });
    }

    fn on_message(&mut self, now: Time, from: ProcessId, message: Message, out: &mut Outputs<Self>) {
        // A message of an earlier life says nothing any more.
        if from.node != self.server.node
            || from.incarnation < self.server.incarnation
            || message.client() != self.config.number
        {
            return;
        }
        match message {
            Message::Bound { session, slots, seat, renewal, .. } => {
                self.on_bound(now, Session { server: from, id: session, slots, seat, renewal }, out)
            }
            Message::Ask { session, .. } => {
                if self.session().is_some_and(|known| known.id == session) && self.outstanding > 0 {
                    self.renew(now, out);
                }
            }
            Message::Rejected { reason, .. } => match self.binding {
                Binding::Seeking { .. } => out.event(ClientEvent::Rejected(reason)),
                // The service has gone from a living node, and its sessions with it.
                Binding::Bound(_) if reason == Rejection::NoSuchService => {
                    self.lose_session(out);
                    self.seek(now, None, out);
                }
                Binding::Bound(_) if reason == Rejection::ShuttingDown => self.is_leaving = true,
                Binding::Bound(_) => {}
            },
            Message::Reply { session, call, verdict, .. } => {
                if self.session().is_none_or(|known| known.id != session) {
                    return;
                }
                let Some(slot) = self.find(call) else {
                    self.stats.late_replies += 1;
                    return;
                };
                let outcome = match verdict {
                    Verdict::Done(body) => Outcome::Replied(body),
                    Verdict::Refused(refusal) => Outcome::NotExecuted(refusal),
                    Verdict::Doubtful(doubt) => Outcome::MaybeExecuted(doubt),
                };
                self.end(slot, outcome, out);
            }
            Message::Working { session, call, .. } => {
                if self.session().is_some_and(|known| known.id == session)
                    && let Some(slot) = self.find(call)
                {
                    let due = now + self.config.retry_max;
                    self.calls[slot as usize].due = due;
                    // It may come earlier: without a session the call waited for nothing but its deadline.
                    self.wake_by(due);
                }
            }
            Message::Lost { session, .. } => {
                if self.session().is_some_and(|known| known.id == session) {
                    self.server = from;
                    self.lose_session(out);
                    self.seek(now, None, out);
                }
            }
            Message::Bind { .. }
            | Message::Request { .. }
            | Message::Cancel { .. }
            | Message::Renew { .. }
            | Message::Exterminate { .. }
            | Message::Exterminated { .. } => {}
        }
    }

    /// Tells the server that we still wait.
    fn renew(&mut self, now: Time, out: &mut Outputs<Self>) {
        let Some(session) = self.session() else { return };
        self.renew_at = now + session.renewal;
        if !self.config.plant.has(Planted::RpcNeverRenews) {
            let message = Message::Renew { client: self.config.number, session: session.id };
            out.send(self.address(), Lane::Urgent, message);
        }
    }

    /// When the server is to be told next that we still wait.
    fn renewal_due(&self) -> Option<Time> {
        match &self.binding {
            Binding::Bound(session) if !session.renewal.is_zero() && self.outstanding > 0 => {
                Some(self.renew_at)
            }
            _ => None,
        }
    }

    fn on_bound(&mut self, now: Time, new: Session, out: &mut Outputs<Self>) {
        match self.binding {
            // Repeated, or an answer to a question that was asked again meanwhile.
            Binding::Bound(old) if old.server == new.server => return,
            Binding::Seeking { last: Some(last), .. } if last == new => {
                // Only the connection had broken: what was under way is asked again at once.
                self.binding = Binding::Bound(new);
                self.transmit_outstanding(now, true, out);
                return;
            }
            Binding::Bound(_) | Binding::Seeking { .. } => {}
        }
        self.server = new.server;
        self.is_leaving = false;
        self.lose_session(out);
        self.binding = Binding::Bound(new);
        self.stats.sessions += 1;
        out.event(ClientEvent::Bound(new.server));
        self.transmit_outstanding(now, false, out);
    }

    fn on_reachable(&mut self, now: Time, peer: ProcessId, out: &mut Outputs<Self>) {
        if peer.node != self.server.node || peer.incarnation < self.server.incarnation {
            return;
        }
        if peer.incarnation > self.server.incarnation {
            self.server = peer;
            self.lose_session(out);
            self.seek(now, None, out);
        } else if matches!(self.binding, Binding::Seeking { .. }) {
            self.ask(now, out);
        }
    }

    fn on_tick(&mut self, now: Time, out: &mut Outputs<Self>) {
        if let Binding::Seeking { due, .. } = self.binding
            && due <= now
        {
            self.ask(now, out);
        }
        if self.renewal_due().is_some_and(|due| due <= now) {
            self.renew(now, out);
        }
        if self.wake.is_none_or(|wake| wake > now) {
            return;
        }
        self.wake = None;
        self.each(|client, slot| {
            let call = &client.calls[slot as usize];
            if call.deadline <= now {
                let sent = call.sent_ever;
                client.end(slot, Outcome::DeadlinePassed { sent }, out);
            } else if call.due <= now {
                client.wake_by(call.deadline);
                // Without a session it waits for one; taking it up again sends everything.
                client.calls[slot as usize].due = client.calls[slot as usize].deadline;
                client.transmit(now, slot, out);
            } else {
                client.wake_by(call.due.min(call.deadline));
            }
        });
    }
}

impl Machine for Client {
    type Command = ClientCommand;
    type Event = ClientEvent;
    type Message = Message;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Tick => self.on_tick(now, out),
            Input::Received { from, message } => self.on_message(now, from, message, out),
            Input::Command(ClientCommand::Call { token, method, signature, semantics, deadline, body }) => {
                self.call(now, token, method, signature, semantics, deadline, body, out);
            }
            Input::Command(ClientCommand::Cancel(id)) => {
                let Some(slot) = self.find(id) else { return };
                self.stats.cancelled += 1;
                let sent = self.calls[slot as usize].sent > 0;
                self.release(slot);
                if let (true, Some(session)) = (sent, self.session()) {
                    let message =
                        Message::Cancel { client: self.config.number, session: session.id, call: id };
                    // In the lane of the request, so that it does not overtake it.
                    out.send(self.address(), Lane::Ordinary, message);
                }
            }
            Input::Command(ClientCommand::Close) => self.each(|client, slot| {
                let sent = client.calls[slot as usize].sent_ever;
                client.end(slot, Outcome::Closed { sent }, out);
            }),
            Input::Reachable(peer) => self.on_reachable(now, peer, out),
            Input::Unreachable(peer) => {
                // New calls wait until the server is known to live: what was never sent is never in doubt.
                if let Binding::Bound(session) = self.binding
                    && session.server == peer
                {
                    self.seek(now, Some(session), out);
                }
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        match (&self.binding, self.wake) {
            (Binding::Seeking { due, .. }, Some(wake)) => Some(wake.min(*due)),
            (Binding::Seeking { due, .. }, None) => Some(*due),
            (Binding::Bound(_), wake) => match (wake, self.renewal_due()) {
                (Some(wake), Some(due)) => Some(wake.min(due)),
                (wake, due) => wake.or(due),
            },
        }
    }

    fn check(&self) -> Result<(), Violation> {
        let (mut slot, mut count, mut last) = (self.oldest, 0, 0);
        while slot != NONE {
            let call = &self.calls[slot as usize];
            if call.sequence <= last {
                return Err(Violation(format!("call {} stands behind call {last}", call.sequence)));
            }
            if self.wake.is_none_or(|wake| wake > call.deadline.min(call.due)) {
                return Err(Violation(format!("call {} is never woken", call.sequence)));
            }
            (last, slot, count) = (call.sequence, call.after, count + 1);
        }
        if count != self.outstanding || count as usize + self.free.len() != self.calls.len() {
            return Err(Violation(format!(
                "{count} calls linked, {} counted, {} of {} slots free",
                self.outstanding,
                self.free.len(),
                self.calls.len()
            )));
        }
        Ok(())
    }
}

/// Doubles from `retry_min` to `retry_max`, a quarter up or down by chance, so that many clients do not come at once.
fn backoff(config: &ClientConfig, mix: &mut Mix, attempts: u32) -> Duration {
    let doubled = config.retry_min.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let base = doubled.min(config.retry_max).max(Duration::from_micros(1));
    let nanos = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX / 2);
    Duration::from_nanos(nanos - nanos / 4 + mix.next() % (nanos / 2).max(1))
}

/// The end of the list of outstanding calls.
const NONE: u32 = u32::MAX;
