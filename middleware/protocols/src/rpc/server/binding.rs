//! Who may call: sessions are given, taken up again, and taken away for want of room.

use std::collections::VecDeque;
use std::time::Duration;

use super::session::Session;
use super::{ClientKey, Orphans, Server, ServerEvent};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::rpc::message::{Message, Rejection};
use crate::time::Time;

/// What a client that binds says of itself.
pub(super) struct Wish {
    pub(super) codec: u8,
    pub(super) exactly_once: bool,
}

impl Server {
    pub(super) fn on_bind(
        &mut self,
        now: Time,
        from: ProcessId,
        client: u32,
        bind: Wish,
        out: &mut Outputs<Self>,
    ) {
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

    pub(super) fn on_seated(
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

    pub(super) fn knows_later_life(&self, from: ProcessId) -> bool {
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
}

const fn lives(node: u64) -> (ProcessId, ProcessId) {
    (ProcessId { node, incarnation: 0 }, ProcessId { node, incarnation: u64::MAX })
}
