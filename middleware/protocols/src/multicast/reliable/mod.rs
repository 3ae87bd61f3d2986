//! Reliable FIFO multicast within a view.
//!
//! Guarantee   every member that stays delivers each sender's messages in order, without gap, loss or repetition;
//!             with the view change above it, the same ones as every other member that stays.
//! Method      numbers per sender; receivers that see a gap ask for it (negative acknowledgement), the sender
//!             first, then any other holder; acknowledgement vectors, one for each batch of arrivals, tell what is
//!             safe (held by a quorum) and what is stable (held by all and therefore forgotten).
//!             When frozen for a view change nothing more is delivered: what is fetched to fill the cut is kept
//!             until the view is decided, because only then is it known to belong to this view.
//! Source      van Steen & Tanenbaum, reliable group communication; Birman, Schiper & Stephenson 1991.
//! Limits      `Config::window_messages` and `window_bytes` unstable messages a sender; beyond that messages wait,
//!             and beyond `Config::pending_max` waiting ones they are rejected. Early arrivals: two windows a sender.
//!             What a layer above says of its own, such as an order, goes before all that and has no limit here.
//!             A message must fit one frame of the transport.

mod epoch;
mod feedback;
mod message;
mod repair;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use feedback::Feedback;
pub use message::Message;
pub(crate) use message::{put_counts, take_counts};

use crate::machine::{Lane, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Cast, Down, Flow, Impossible, Layer, Offer, Up, View, ViewId};
use crate::time::Time;
use epoch::{CAST_OVERHEAD_BYTES, Epoch, Stream};

/// The limits and times of reliable multicast.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Messages of one sender that may be unstable. Default 8192. Fewer throttle a fast sender, more cost memory
    /// at every member.
    pub window_messages: u64,
    /// Bytes of one sender that may be unstable. Default 2 MiB: all of it may be on its way to one member, beside
    /// repairs, and a node's ordinary lane takes 4 MiB. At least one message may always be unstable.
    pub window_bytes: usize,
    /// Messages that may wait for the window or for a view. Default 65,536; then [`Up::Rejected`].
    pub pending_max: usize,
    /// Payload bytes in one packet. Default 48 KiB; a larger message travels alone.
    pub batch_bytes: usize,
    /// Payload bytes that answer one request for missing messages. Default 1 MiB: fewer make a round trip the limit of
    /// the repair, more would be lost again in the lane.
    pub repair_bytes: usize,
    /// How long a gap may stay before it is asked for. Default 20 ms: messages on different lanes overtake.
    pub nak_delay: Duration,
    /// How long a silent holder is waited for before another one is asked. Default 60 ms.
    pub nak_retry: Duration,
    /// How members ask for what they miss.
    pub feedback: Feedback,
    /// Time between status messages while something is unstable. Default 100 ms.
    pub status_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window_messages: 8192,
            window_bytes: 2 << 20,
            pending_max: 65_536,
            batch_bytes: 48 << 10,
            repair_bytes: 1 << 20,
            nak_delay: Duration::from_millis(20),
            nak_retry: Duration::from_millis(60),
            feedback: Feedback::default(),
            status_interval: Duration::from_millis(100),
        }
    }
}

/// Reliable FIFO multicast as a layer.
pub struct Reliable {
    me: ProcessId,
    config: Config,
    plant: Plant,
    /// The user cannot take more: acknowledgements are withheld.
    saturated: bool,
    /// The layer above wants to know when a quorum holds all own messages.
    draining: bool,
    /// What the layers above say about this view; goes before what is pending.
    first: VecDeque<Cast>,
    /// Accepted from above, not yet numbered. Outlives views.
    pending: VecDeque<Cast>,
    current: Option<Epoch>,
    /// The view before, to help members that have not yet left it.
    previous: Option<Epoch>,
}

impl Reliable {
    /// The layer of process `me`, silent until its first view.
    pub fn new(me: ProcessId, config: Config, plant: Plant) -> Self {
        Self {
            me,
            config,
            plant,
            saturated: false,
            draining: false,
            first: VecDeque::new(),
            pending: VecDeque::new(),
            current: None,
            previous: None,
        }
    }

    fn on_cast(&mut self, cast: Cast, flow: &mut Flow<Message>) {
        if self.pending.len() >= self.config.pending_max {
            flow.up(Up::Rejected(cast));
        } else {
            self.pending.push_back(cast);
        }
    }

    /// True when another of the user's messages may be numbered. Not while the user does not read: its own messages
    /// would be delivered to it at once.
    fn has_room(&self, epoch: &Epoch) -> bool {
        let mine = &epoch.streams[epoch.rank];
        !self.saturated
            && (mine.store.is_empty()
                || ((mine.store.len() as u64) < self.config.window_messages
                    && mine.store_bytes < self.config.window_bytes))
    }

    /// The message that may be sent next.
    fn sendable(&self, epoch: &Epoch) -> Option<&Cast> {
        let pending = || self.pending.front().filter(|_| self.has_room(epoch));
        self.first.front().or_else(pending).filter(|_| !epoch.frozen)
    }

    /// Numbers, keeps, sends and delivers what waits, in as few packets as possible.
    fn send_pending(&mut self, flow: &mut Flow<Message>) {
        let Some(mut epoch) = self.current.take() else { return };
        while self.sendable(&epoch).is_some() {
            let mut casts = Vec::new();
            let mut bytes = 0;
            let rank = epoch.rank;
            let first = epoch.streams[rank].received();
            while let Some(cast) = self.sendable(&epoch) {
                bytes += cast.payload.len() + CAST_OVERHEAD_BYTES;
                if bytes > self.config.batch_bytes && !casts.is_empty() {
                    break;
                }
                let Some(cast) = self.first.pop_front().or_else(|| self.pending.pop_front()) else { break };
                epoch.streams[rank].push(cast.clone());
                casts.push(cast);
            }
            let mine = &mut epoch.streams[rank];
            let received = mine.received();
            (mine.delivered, mine.known) = (received, received);
            epoch.acked[rank][rank] = received;
            (epoch.stability_due, epoch.ack_due) = (true, false);
            let (view, received) = (epoch.view.id, epoch.acknowledge(self.saturated));
            flow.up(Up::Deliver { sender: rank, first, casts: casts.clone() });
            let data = Message::Data { view, first, casts, received };
            flow.multicast(epoch.others.clone(), Lane::Ordinary, data);
        }
        self.current = Some(epoch);
    }

    /// Takes consecutive messages of `sender`, from itself or repaired, and delivers what is in order.
    fn take(&mut self, now: Time, sender: usize, first: u64, casts: Vec<Cast>, flow: &mut Flow<Message>) {
        let Some(epoch) = &mut self.current else { return };
        if sender == epoch.rank {
            return;
        }
        let limit = epoch.limit(sender);
        let frozen = epoch.frozen && !self.plant.has(Planted::FlushDoesNotFreeze);
        let limit = if frozen { limit } else { u64::MAX };
        let stream = &mut epoch.streams[sender];
        let before = stream.received();
        let mut number = first;
        for cast in casts {
            let next = stream.received();
            if number < next {
                if self.plant.has(Planted::MulticastDeliversDuplicates) && !frozen {
                    flow.up(Up::Deliver { sender, first: number, casts: vec![cast] });
                }
            } else if number < limit {
                let skips = self.plant.has(Planted::MulticastSkipsGaps) && !frozen;
                if number == next || skips {
                    stream.push(cast);
                } else {
                    stream.keep_early(&self.config, number, cast);
                }
            }
            number = number.saturating_add(1);
        }
        stream.close_gap();
        stream.known = stream.known.max(stream.received());
        if !frozen && stream.received() > before {
            let from = (stream.delivered - stream.stable) as usize;
            let casts: Vec<_> = stream.store.iter().skip(from).cloned().collect();
            let first = stream.delivered;
            stream.delivered = stream.received();
            let (rank, received) = (epoch.rank, stream.delivered);
            epoch.acked[rank][sender] = received;
            (epoch.ack_due, epoch.stability_due) = (true, true);
            // The sender holds what it sent.
            epoch.acked[sender][sender] = epoch.acked[sender][sender].max(received);
            flow.up(Up::Deliver { sender, first, casts });
        }
        epoch.watch_gap(now, &self.config, sender);
        if !epoch.streams[sender].waiting.is_empty() {
            self.grant_wishes(now, sender, flow);
        }
        self.report_filled(flow);
    }

    fn report_filled(&mut self, flow: &mut Flow<Message>) {
        let Some(epoch) = &mut self.current else { return };
        let complete =
            |cut: &Vec<u64>| epoch.streams.iter().zip(cut).all(|(stream, &count)| stream.received() >= count);
        if epoch.fill.as_ref().is_some_and(complete)
            && let Some(cut) = epoch.fill.take()
        {
            for stream in &mut epoch.streams {
                (stream.nak_at, stream.nak_attempts) = (None, 0);
                stream.forget_early();
            }
            flow.up(Up::Filled { cut });
        }
    }

    fn on_freeze(&mut self, flow: &mut Flow<Message>) {
        let Some(epoch) = &mut self.current else { return };
        epoch.frozen = true;
        for stream in &mut epoch.streams {
            stream.forget_early();
            stream.waiting.clear();
            (stream.nak_at, stream.nak_attempts) = (None, 0);
        }
        let received = epoch.streams.iter().map(|stream| stream.delivered).collect();
        flow.up(Up::Frozen { received });
    }

    fn on_fill(&mut self, now: Time, cut: Vec<u64>, flow: &mut Flow<Message>) {
        let Some(epoch) = &mut self.current else { return };
        // The same wish again must not begin the search for a holder anew: it would never get beyond the first two.
        if cut.len() != epoch.streams.len() || epoch.fill.as_ref() == Some(&cut) {
            return;
        }
        for (stream, &count) in epoch.streams.iter_mut().zip(&cut) {
            stream.nak_attempts = 0;
            // Frozen members hear of nothing new by themselves: ask at once.
            stream.nak_at = (stream.received() < count).then_some(now);
        }
        epoch.fill = Some(cut);
        self.report_filled(flow);
    }

    fn on_install(&mut self, now: Time, view: View, cut: Option<Vec<u64>>, flow: &mut Flow<Message>) {
        if let (Some(mut epoch), Some(cut)) = (self.current.take(), cut) {
            for (sender, (stream, &count)) in epoch.streams.iter_mut().zip(&cut).enumerate() {
                let from = (stream.delivered - stream.stable) as usize;
                let take = count.saturating_sub(stream.delivered) as usize;
                let casts: Vec<_> = stream.store.iter().skip(from).take(take).cloned().collect();
                if !casts.is_empty() {
                    let first = stream.delivered;
                    stream.delivered += casts.len() as u64;
                    flow.up(Up::Deliver { sender, first, casts });
                }
            }
            self.previous = Some(epoch);
        }
        if !self.plant.has(Planted::TotalObeysStaleOrder) {
            self.first.clear();
        }
        self.current = Epoch::new(now, &self.config, self.me, view.clone());
        flow.down(Down::Install { view: view.clone(), cut: None });
        flow.up(Up::View(view));
        self.report_drained(flow);
    }

    fn report_drained(&mut self, flow: &mut Flow<Message>) {
        let held = |epoch: &Epoch| epoch.safe[epoch.rank] >= epoch.streams[epoch.rank].received();
        if self.draining && self.pending.is_empty() && self.current.as_ref().is_none_or(held) {
            self.draining = false;
            flow.up(Up::Drained);
        }
    }

    /// The rank of `from` in the current view, when `view` is that view.
    fn current_rank(&self, from: ProcessId, view: ViewId) -> Option<usize> {
        self.current.as_ref().filter(|epoch| epoch.view.id == view)?.view.rank(from)
    }
}

impl Layer for Reliable {
    type Message = Message;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Message>) {
        match request {
            Down::Cast(cast) => self.on_cast(cast, flow),
            Down::CastFirst(cast) => self.first.push_back(cast),
            Down::Saturated(saturated) => {
                self.saturated = saturated;
                if let Some(epoch) = &mut self.current {
                    epoch.ack_due = !saturated;
                }
            }
            Down::Drain => {
                self.draining = true;
                self.report_drained(flow);
            }
            Down::Freeze => self.on_freeze(flow),
            Down::Fill { cut } => self.on_fill(now, cut, flow),
            Down::Install { view, cut } => self.on_install(now, view, cut, flow),
            other => flow.down(other),
        }
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<Message>) {
        flow.up(event);
    }

    fn receive(&mut self, now: Time, from: ProcessId, message: Message, flow: &mut Flow<Message>) {
        match message {
            Message::Data { view, first, casts, received } => {
                let Some(rank) = self.current_rank(from, view) else { return };
                self.take(now, rank, first, casts, flow);
                if let Some(epoch) = &mut self.current {
                    epoch.on_acked(now, &self.config, rank, &received);
                }
            }
            Message::Ack { view, received, answer } => {
                let Some(rank) = self.current_rank(from, view) else { return };
                let Some(epoch) = &mut self.current else { return };
                epoch.on_acked(now, &self.config, rank, &received);
                if answer && !epoch.frozen {
                    let received = epoch.acknowledge(self.saturated);
                    flow.send(from, Lane::Control, Message::Ack { view, received, answer: false });
                }
            }
            Message::Nak { view, sender, first, end, to_all: false } => {
                self.on_nak(now, from, (view, sender, first, end), flow);
            }
            Message::Nak { view, sender, first, end, to_all: true } => {
                self.on_nak_to_all(now, from, (view, sender, first, end), flow);
            }
            Message::Repair { view, sender, first, casts, more } => {
                let (rank, sender) = (self.current_rank(from, view), usize::from(sender));
                let received =
                    |layer: &Self| layer.current.as_ref()?.streams.get(sender).map(Stream::received);
                let before = received(self);
                if rank.is_none() || before.is_none() {
                    return;
                }
                self.take(now, sender, first, casts, flow);
                if received(self) > before
                    && let Some(epoch) = &mut self.current
                {
                    epoch.on_repaired(now, &self.config, sender, more);
                }
            }
        }
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Message>) {
        self.send_pending(flow);
        self.ask_for_gaps(now, flow);
        let Some(epoch) = &mut self.current else { return };
        if epoch.stability_due && epoch.settle_stability() {
            flow.up(Up::Safe(epoch.safe.clone()));
        }
        self.report_drained(flow);
        let Some(epoch) = &mut self.current else { return };
        let view = epoch.view.id;
        if epoch.ack_due && !epoch.frozen && !self.saturated {
            let ack = Message::Ack { view, received: epoch.acknowledge(self.saturated), answer: false };
            flow.multicast(epoch.others.clone(), Lane::Control, ack);
        }
        epoch.ack_due = false;
        if epoch.status_at <= now {
            epoch.status_at = now + self.config.status_interval;
            if !epoch.frozen && !epoch.is_settled() {
                let status = Message::Ack { view, received: epoch.acknowledge(self.saturated), answer: true };
                flow.multicast(epoch.others.clone(), Lane::Control, status);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        let epoch = self.current.as_ref()?;
        if self.sendable(epoch).is_some() || epoch.ack_due || epoch.stability_due {
            return Some(Time::ZERO);
        }
        let status = (!epoch.frozen && !epoch.is_settled()).then_some(epoch.status_at);
        epoch.streams.iter().filter_map(|stream| stream.nak_at).chain(status).min()
    }

    fn check(&self) -> Result<(), Violation> {
        for epoch in [&self.current, &self.previous].into_iter().flatten() {
            for (sender, stream) in epoch.streams.iter().enumerate() {
                if stream.delivered < stream.stable || stream.delivered > stream.received() {
                    return Err(Violation(format!("sender {sender}: delivered beyond what is held")));
                }
            }
        }
        Ok(())
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let below = below.with_none("reliable multicast", Offer::FIFO)?;
        Ok(below.and(Offer::FIFO).and(Offer::CUT).and(Offer::SAFE))
    }
}
