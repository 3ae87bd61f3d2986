//! The table of outstanding calls: ids, deadlines, retransmission, cancellation, and what is known at the end.
//!
//! Guarantee   every call ends exactly once with an [`Outcome`], at the latest at its deadline. A request is sent
//!             again only to the session that it was first sent to, unless its method is idempotent.
//! Method      see the module above. Timers are lazy: the machine asks to be woken at the earliest moment at which
//!             anything may be due and then looks at all calls, so that starting and ending a call touches no
//!             timer queue.
//! Limits      [`ClientConfig::calls_max`] calls; one more ends at once with [`Outcome::TooManyCalls`].

mod binding;
mod table;

use std::time::Duration;

use bytes::Bytes;

use self::binding::{Binding, Session};
use self::table::{Call, NONE};
use super::Mix;
use super::message::{CallId, Doubt, Message, Refusal, Rejection, Semantics, Verdict};
use crate::machine::{Input, Lane, Machine, Outputs, ProcessId, Violation};
use crate::planted::Plant;
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
    /// Requests sent, those that were sent again included.
    pub sent: u64,
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
                    // Of an exactly-once call the server has asked its records first.
                    Verdict::Refused(_) if self.calls[slot as usize].is_refused_in_doubt() => {
                        Outcome::MaybeExecuted(Doubt::SessionLost)
                    }
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
