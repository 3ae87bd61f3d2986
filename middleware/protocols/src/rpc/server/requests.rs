//! Requests: each is executed, refused or answered from what is kept.

use super::session::{Slot, State, Stopped};
use super::{Execution, Server, ServerEvent, execution};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::rpc::message::{CallId, Doubt, Message, Refusal, Semantics, Verdict};
use crate::time::Time;

impl Server {
    pub(super) fn on_request(
        &mut self,
        now: Time,
        from: ProcessId,
        request: Message,
        out: &mut Outputs<Self>,
    ) {
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
        let repeats = call.sequence == slot.sequence;
        if repeats {
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
        } else if let Some(Stopped { seat, places }) = session.stop(call.slot) {
            // A newer number in the slot: the client has given up on the older call.
            let given_up = CallId { sequence: session.slots[call.slot as usize].sequence, ..call };
            self.executing -= places;
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
                // What is refused of an idempotent call that comes again is its repetition: the call was executed.
                let verdict = match repeats && semantics == Semantics::Idempotent {
                    true => Verdict::Doubtful(Doubt::ReplyForgotten),
                    false => Verdict::Refused(refusal),
                };
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
                State::Executing { keep: semantics != Semantics::Idempotent, seat, has_place: true };
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

    pub(super) fn on_cancel(
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
        if let Some(Stopped { seat, places }) = session.stop(call.slot) {
            self.executing -= places;
            self.stats.aborted += 1;
            out.event(ServerEvent::Abort(execution(key, id, CallId { sequence, ..call }, seat)));
        }
        // Remembered even if the request has not come yet: then it comes too late.
        session.slots[call.slot as usize].sequence = call.sequence;
    }

    pub(super) fn on_executed(&mut self, done: Execution) {
        let session = self.sessions.get_mut(&(done.from, done.client));
        let slot = session.filter(|session| session.id == done.session);
        let slot = slot.and_then(|session| session.slots.get_mut(done.call.slot as usize));
        if let Some(Slot { sequence, state: State::Executing { has_place, .. } }) = slot
            && *sequence == done.call.sequence
        {
            self.executing -= u32::from(std::mem::take(has_place));
        }
    }

    pub(super) fn on_complete(&mut self, done: Execution, verdict: Verdict, out: &mut Outputs<Self>) {
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
        self.executing -= session.stop(call.slot).map_or(0, |stopped| stopped.places);
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
