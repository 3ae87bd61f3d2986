//! The binding to a server: asked for, lost with a life of the server, taken up again.

use std::time::Duration;

use super::{Client, ClientConfig, ClientEvent, Outcome};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::rpc::Mix;
use crate::rpc::message::{Doubt, Message, Semantics};
use crate::time::Time;

pub(super) enum Binding {
    /// Asking for a session; `last` is taken up again if the server still knows it.
    Seeking {
        last: Option<Session>,
        due: Time,
        attempts: u32,
    },
    Bound(Session),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) server: ProcessId,
    pub(super) id: u64,
    pub(super) slots: u32,
    /// Where the server's records know us, in all its lives; 0 when it keeps none.
    pub(super) seat: u64,
    /// How often we must be heard while calls are under way; zero: not at all.
    pub(super) renewal: Duration,
}

impl Client {
    /// Whichever life the server is in: the session says for which one a message is meant, and another one answers
    /// that it does not know the session.
    pub(super) const fn address(&self) -> ProcessId {
        ProcessId::any_life(self.server.node)
    }

    /// The session that replies may still belong to.
    pub(super) const fn session(&self) -> Option<Session> {
        match self.binding {
            Binding::Bound(session) => Some(session),
            Binding::Seeking { last, .. } => last,
        }
    }

    pub(super) fn seek(&mut self, now: Time, last: Option<Session>, out: &mut Outputs<Self>) {
        self.binding = Binding::Seeking { last, due: now, attempts: 0 };
        self.ask(now, out);
    }

    pub(super) fn ask(&mut self, now: Time, out: &mut Outputs<Self>) {
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
    pub(super) fn lose_session(&mut self, out: &mut Outputs<Self>) {
        self.each(|client, slot| {
            let call = &mut client.calls[slot as usize];
            if call.sent == 0 {
                return;
            }
            if matches!(call.semantics, Semantics::Idempotent | Semantics::ExactlyOnce)
                || client.config.plant.has(Planted::RpcReissuesAfterRestart)
            {
                call.sent = 0;
                call.is_in_doubt = true;
                call.due = call.deadline;
            } else {
                client.end(slot, Outcome::MaybeExecuted(Doubt::SessionLost), out);
            }
        });
    }

    /// Tells the server that we still wait.
    pub(super) fn renew(&mut self, now: Time, out: &mut Outputs<Self>) {
        let Some(session) = self.session() else { return };
        self.renew_at = now + session.renewal;
        if !self.config.plant.has(Planted::RpcNeverRenews) {
            let message = Message::Renew { client: self.config.number, session: session.id };
            out.send(self.address(), Lane::Urgent, message);
        }
    }

    /// When the server is to be told next that we still wait.
    pub(super) fn renewal_due(&self) -> Option<Time> {
        match &self.binding {
            Binding::Bound(session) if !session.renewal.is_zero() && self.outstanding > 0 => {
                Some(self.renew_at)
            }
            _ => None,
        }
    }

    pub(super) fn on_bound(&mut self, now: Time, new: Session, out: &mut Outputs<Self>) {
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

    pub(super) fn on_reachable(&mut self, now: Time, peer: ProcessId, out: &mut Outputs<Self>) {
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
}

/// Doubles from `retry_min` to `retry_max`, a quarter up or down by chance, so that many clients do not come at once.
pub(super) fn backoff(config: &ClientConfig, mix: &mut Mix, attempts: u32) -> Duration {
    let doubled = config.retry_min.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let base = doubled.min(config.retry_max).max(Duration::from_micros(1));
    let nanos = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX / 2);
    Duration::from_nanos(nanos - nanos / 4 + mix.next() % (nanos / 2).max(1))
}
