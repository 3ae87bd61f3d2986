//! The table of outstanding calls: each is sent, sent again, and ended once.

use bytes::Bytes;

use super::binding::{Binding, Session, backoff};
use super::{Client, ClientEvent, Outcome};
use crate::machine::{Lane, Outputs};
use crate::planted::Planted;
use crate::rpc::message::{CallId, Doubt, Message, Refusal, Semantics};
use crate::time::Time;

pub(super) struct Call {
    /// 0 when the slot is free.
    pub(super) sequence: u64,
    pub(super) token: u32,
    pub(super) method: u32,
    pub(super) signature: u32,
    pub(super) semantics: Semantics,
    /// How often it was sent in this session.
    pub(super) sent: u32,
    /// Whether it was sent in any session.
    pub(super) sent_ever: bool,
    /// Whether it was sent in a session that was lost: no later refusal says that it was not executed then.
    pub(super) is_in_doubt: bool,
    /// The seat under which an exactly-once call was first sent; 0 before.
    pub(super) seat: u64,
    pub(super) deadline: Time,
    pub(super) due: Time,
    pub(super) before: u32,
    pub(super) after: u32,
    pub(super) body: Bytes,
}

impl Call {
    /// Whether a refusal is of a copy only, and an earlier copy may have been executed.
    pub(super) fn is_refused_in_doubt(&self) -> bool {
        self.is_in_doubt && self.semantics == Semantics::Idempotent
    }
}

impl Client {
    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(super) fn call(
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
            is_in_doubt: false,
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
    pub(super) fn transmit(&mut self, now: Time, slot: u32, out: &mut Outputs<Self>) {
        let Binding::Bound(session) = self.binding else { return };
        if slot >= session.slots {
            // Taken before this session told how many there are.
            let outcome = match self.calls[slot as usize].is_in_doubt {
                true => Outcome::MaybeExecuted(Doubt::SessionLost),
                false => Outcome::TooManyCalls { limit: session.slots },
            };
            self.end(slot, outcome, out);
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
        self.stats.sent += 1;
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

    pub(super) fn message(&self, now: Time, session: Session, slot: u32) -> Message {
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
    pub(super) fn transmit_outstanding(&mut self, now: Time, all: bool, out: &mut Outputs<Self>) {
        self.each(|client, slot| {
            if all || client.calls[slot as usize].sent == 0 {
                client.transmit(now, slot, out);
            }
        });
    }

    /// Visits the outstanding calls from the oldest on; the visited one may end.
    pub(super) fn each(&mut self, mut visit: impl FnMut(&mut Self, u32)) {
        let mut slot = self.oldest;
        while slot != NONE {
            let next = self.calls[slot as usize].after;
            visit(self, slot);
            slot = next;
        }
    }

    pub(super) fn end(&mut self, slot: u32, outcome: Outcome, out: &mut Outputs<Self>) {
        match &outcome {
            Outcome::DeadlinePassed { .. } => self.stats.deadlines_passed += 1,
            Outcome::MaybeExecuted(_) => self.stats.maybe_executed += 1,
            _ => {}
        }
        let token = self.release(slot);
        out.event(ClientEvent::Ended { token, outcome });
    }

    pub(super) fn release(&mut self, slot: u32) -> u32 {
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

    pub(super) fn find(&self, call: CallId) -> Option<u32> {
        let entry = self.calls.get(call.slot as usize)?;
        (call.sequence != 0 && entry.sequence == call.sequence).then_some(call.slot)
    }

    pub(super) fn wake_by(&mut self, moment: Time) {
        self.wake = Some(self.wake.map_or(moment, |wake| wake.min(moment)));
    }
}

/// The end of the list of outstanding calls.
pub(super) const NONE: u32 = u32::MAX;
