//! One connection: what goes out.

use super::super::packet::{self, AcksOut, Data, Head, Piece, Reason, piece_bytes_max};
use super::super::recovery::Sent;
use super::super::{Limits, Nanos};
use super::{Connection, PAUSE_MAX, Phase};

impl<A: Copy + Eq> Connection<A> {
    /// Appends the next packet that may leave now, of at most `bytes_max`, and says where it goes.
    pub(in super::super) fn next_packet(
        &mut self,
        now: Nanos,
        limits: &Limits,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Option<A> {
        if std::mem::take(&mut self.owes.reset) {
            packet::put_reset(out, self.peer, self.local, Reason::Unknown);
            return Some(self.place);
        }
        match &mut self.phase {
            Phase::Dialling { cookie, hello_at, pause, .. } => {
                if *hello_at > now {
                    return None;
                }
                *hello_at = now + *pause;
                *pause = (*pause * 2).min(PAUSE_MAX);
                packet::put_hello(out, self.local, *cookie, limits.receive_bytes_max as u64);
                Some(self.place)
            }
            Phase::Welcoming { .. } => {
                if !std::mem::take(&mut self.owes.welcome) {
                    return None;
                }
                packet::put_welcome(out, self.peer, self.local, limits.receive_bytes_max as u64);
                Some(self.place)
            }
            Phase::Open => self.next_data(now, bytes_max, out),
            Phase::Broken(_) => None,
        }
    }

    fn next_data(&mut self, now: Nanos, bytes_max: usize, out: &mut Vec<u8>) -> Option<A> {
        // They say where somebody is, so they travel alone, outside of what is counted and repeated.
        let challenge = self.owes.challenge.take();
        let response = if challenge.is_some() { None } else { self.owes.response.take() };
        if let Some((_, place)) = challenge.or(response) {
            let number = self.recovery.number();
            let token = |owed: Option<(u64, A)>| owed.map(|(token, _)| token);
            let data =
                Data { number, challenge: token(challenge), response: token(response), ..Data::default() };
            let start = packet::put_data(out, &Head { to: self.peer, from: self.local, data, acks: None });
            packet::seal(out, start);
            return Some(place);
        }
        self.paced_until = None;
        let is_ack_due = self.received.due().is_some_and(|at| at <= now);
        let may_ask = self.wants_to_say() && self.may_ask(now);
        if !may_ask && !is_ack_due {
            return None;
        }
        let grants = may_ask && std::mem::take(&mut self.owes.credit);
        // What carries no piece is long enough with it to be answered by a challenge, should the peer not know us here.
        let tells = self.received.due().is_some() || grants || !self.has_piece();
        let mut runs = Vec::new();
        let acks = tells.then(|| {
            let delay_micros = self.received.tell(now, &mut runs);
            (self.incoming.grant(grants), delay_micros)
        });
        let number = self.recovery.number();
        let mut data = Data { number, ..Data::default() };
        let mut piece = None;
        if may_ask {
            data.wants_ack = true;
            data.stops = std::mem::take(&mut self.owes.stop);
            data.aborts = std::mem::take(&mut self.owes.abort);
            self.owes.ping = false;
            if self.has_piece() {
                piece = self.out.next_piece(piece_bytes_max(bytes_max, acks.map(|_| runs.len())));
            }
        }
        data.piece = piece.map(|(offset, _, ends)| Piece { offset, bytes: &[], ends });
        let acks = acks.map(|(credit, delay_micros)| AcksOut { credit, delay_micros, runs: &runs });
        let start = packet::put_data(out, &Head { to: self.peer, from: self.local, data, acks });
        if let Some((from, until, _)) = piece {
            self.out.copy(from, until, out);
        }
        packet::seal(out, start);
        if may_ask {
            self.probes_left = self.probes_left.saturating_sub(1);
            let (stops, aborts) = (data.stops, data.aborts);
            let sent = Sent { at: now, bytes: out.len() - start, piece, stops, aborts, grants };
            self.recovery.on_sent(number, sent);
        }
        Some(self.place)
    }

    /// True when a packet that wants an answer may leave now.
    fn may_ask(&mut self, now: Nanos) -> bool {
        if self.probes_left > 0 {
            return true;
        }
        if !self.recovery.has_room() {
            return false;
        }
        self.paced_until = self.recovery.pace(now);
        self.paced_until.is_none()
    }
}
