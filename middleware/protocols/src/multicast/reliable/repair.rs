//! Asking for what is missed, and answering.

use super::{Feedback, Message, Reliable};
use crate::machine::{Lane, ProcessId};
use crate::stack::{Flow, ViewId};
use crate::time::Time;

impl Reliable {
    pub(super) fn on_nak(
        &mut self,
        now: Time,
        from: ProcessId,
        asked: (ViewId, u16, u64, u64),
        flow: &mut Flow<Message>,
    ) {
        let (view, sender, first, end) = asked;
        let epoch = [&self.current, &self.previous].into_iter().flatten().find(|epoch| epoch.view.id == view);
        let Some(epoch) = epoch.filter(|epoch| epoch.view.contains(from)) else { return };
        let Some(stream) = epoch.streams.get(usize::from(sender)) else { return };
        if first < stream.stable {
            return; // everyone held it once: the asker is confused or late
        }
        if first >= stream.received() {
            return self.keep_wish(now, from, asked);
        }
        // As many packets as a round trip is worth; the asker comes back at once for what is left.
        let last = first + stream.range(first, end, self.config.repair_bytes).len() as u64;
        let mut first = first;
        while first < last {
            let casts = stream.range(first, last, self.config.batch_bytes);
            let next = first + casts.len() as u64;
            flow.send(
                from,
                Lane::Ordinary,
                Message::Repair { view, sender, first, casts, more: next < last },
            );
            first = next;
        }
    }

    /// Who stands below in the tree misses what this member misses, too: asks for it at once, and will pass it on.
    fn keep_wish(&mut self, now: Time, from: ProcessId, asked: (ViewId, u16, u64, u64)) {
        let (view, sender, first, end) = asked;
        let is_tree = matches!(self.config.feedback, Feedback::Tree { .. });
        let Some(epoch) = self.current.as_mut().filter(|epoch| epoch.view.id == view && is_tree) else {
            return;
        };
        let stream = &mut epoch.streams[usize::from(sender)];
        if epoch.frozen || usize::from(sender) == epoch.rank {
            return;
        }
        stream.waiting.insert(from, (first, end));
        stream.known = stream.known.max(end);
        stream.nak_at = stream.nak_at.or(Some(now));
    }

    /// More of a sender's messages are here: those who wait for them get them.
    pub(super) fn grant_wishes(&mut self, now: Time, sender: usize, flow: &mut Flow<Message>) {
        let Some(epoch) = &mut self.current else { return };
        let (view, stream) = (epoch.view.id, &mut epoch.streams[sender]);
        let received = stream.received();
        let granted: Vec<_> = stream.waiting.extract_if(.., |_, (first, _)| *first < received).collect();
        for (peer, (first, end)) in granted {
            self.on_nak(now, peer, (view, sender as u16, first, end), flow);
        }
    }

    /// Somebody has asked all: the sender answers all, unless it has done so a moment ago, and whoever misses the same waits.
    pub(super) fn on_nak_to_all(
        &mut self,
        now: Time,
        from: ProcessId,
        asked: (ViewId, u16, u64, u64),
        flow: &mut Flow<Message>,
    ) {
        let (view, sender, first, end) = asked;
        let rank = usize::from(sender);
        let Some(epoch) = self.current.as_mut().filter(|epoch| epoch.view.id == view) else { return };
        if !epoch.view.contains(from) || rank >= epoch.streams.len() {
            return;
        }
        let wait = epoch.wait(&self.config, rank);
        let is_mine = rank == epoch.rank;
        let stream = &mut epoch.streams[rank];
        if !is_mine {
            // Its answer is on its way to all.
            let misses_too = (first..end).contains(&stream.received());
            if misses_too && let Some(at) = &mut stream.nak_at {
                *at = (*at).max(now + self.config.nak_retry + wait);
            }
            return;
        }
        let is_answered =
            stream.answered.is_some_and(|(number, at)| number == first && now < at + self.config.nak_delay);
        if first < stream.stable || is_answered {
            return;
        }
        stream.answered = Some((first, now));
        let last = first + stream.range(first, end, self.config.repair_bytes).len() as u64;
        let mut first = first;
        while first < last {
            let casts = stream.range(first, last, self.config.batch_bytes);
            let next = first + casts.len() as u64;
            let repair = Message::Repair { view, sender, first, casts, more: next < last };
            flow.multicast(epoch.others.clone(), Lane::Ordinary, repair);
            first = next;
        }
    }

    pub(super) fn ask_for_gaps(&mut self, now: Time, flow: &mut Flow<Message>) {
        let Some(epoch) = &mut self.current else { return };
        for sender in 0..epoch.streams.len() {
            if epoch.streams[sender].nak_at.is_none_or(|at| at > now) {
                continue;
            }
            let missing = epoch.streams[sender].received();
            let Some(end) = epoch.missing_end(sender) else {
                (epoch.streams[sender].nak_at, epoch.streams[sender].nak_attempts) = (None, 0);
                continue;
            };
            // The sender first, or those between it and this member, then whoever is known to hold it, then anyone. For a cut
            // only holders can help.
            let feedback = if epoch.frozen { Feedback::Direct } else { self.config.feedback };
            let line = feedback.line(epoch.rank, sender, epoch.acked.len());
            let holds = |rank: &usize| epoch.acked[*rank][sender] > missing;
            let strangers = |rank: &usize| *rank != epoch.rank && !line.contains(rank);
            let known: Vec<_> = (0..epoch.acked.len()).filter(strangers).filter(holds).collect();
            let rest = (0..epoch.acked.len()).filter(strangers).filter(|rank| !holds(rank));
            let asked: Vec<_> = line.iter().copied().chain(known).chain(rest).collect();
            let is_first = epoch.streams[sender].nak_attempts == 0 && !epoch.frozen;
            let (view, wait) = (epoch.view.id, epoch.wait(&self.config, sender));
            let stream = &mut epoch.streams[sender];
            if is_first && matches!(self.config.feedback, Feedback::Suppressed { .. }) {
                stream.nak_attempts = 1;
                stream.nak_at = Some(now + self.config.nak_retry + wait);
                let sender = sender as u16;
                let nak = Message::Nak { view, sender, first: missing, end, to_all: true };
                flow.multicast(epoch.others.clone(), Lane::Control, nak);
                continue;
            }
            let holder = epoch.view.members[asked[stream.nak_attempts % asked.len()]];
            stream.nak_attempts += 1;
            stream.nak_at = Some(now + self.config.nak_retry);
            let nak = Message::Nak { view, sender: sender as u16, first: missing, end, to_all: false };
            flow.send(holder, Lane::Control, nak);
        }
    }
}
