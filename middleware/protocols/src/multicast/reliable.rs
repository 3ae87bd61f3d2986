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
//!             A message must fit one frame of the transport.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::{Lane, ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Cast, Down, Flow, Headers, Layer, Up, View, ViewId};
use crate::time::Time;
use crate::wire::{
    Wire, WireError, put_bytes, put_count, take_bytes, take_count, take_u8, take_u16, take_u64,
};

/// The limits and times of reliable multicast.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Messages of one sender that may be unstable. Default 8192. Fewer throttle a fast sender, more cost memory
    /// at every member.
    pub window_messages: u64,
    /// Bytes of one sender that may be unstable. Default 8 MiB. At least one message may always be unstable.
    pub window_bytes: usize,
    /// Messages that may wait for the window or for a view. Default 65,536; then [`Up::Rejected`].
    pub pending_max: usize,
    /// Payload bytes in one packet. Default 48 KiB; a larger message travels alone.
    pub batch_bytes: usize,
    /// How long a gap may stay before it is asked for. Default 20 ms: messages on different lanes overtake.
    pub nak_delay: Duration,
    /// How long until it is asked for again, elsewhere. Default 60 ms.
    pub nak_retry: Duration,
    /// Time between status messages while something is unstable. Default 100 ms.
    pub status_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window_messages: 8192,
            window_bytes: 8 << 20,
            pending_max: 65_536,
            batch_bytes: 48 << 10,
            nak_delay: Duration::from_millis(20),
            nak_retry: Duration::from_millis(60),
            status_interval: Duration::from_millis(100),
        }
    }
}

/// What members send each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Consecutive messages of the sender of this packet, and what it has received of the others.
    Data {
        /// The view they belong to.
        view: ViewId,
        /// The number of the first.
        first: u64,
        /// The messages.
        casts: Vec<Cast>,
        /// Acknowledgement vector by rank.
        received: Vec<u64>,
    },
    /// What the sender of this packet has received, by rank.
    Ack {
        /// The view it speaks of.
        view: ViewId,
        /// Acknowledgement vector by rank.
        received: Vec<u64>,
        /// True when the sender wants to hear the receiver's own.
        answer: bool,
    },
    /// "I miss these."
    Nak {
        /// The view they belong to.
        view: ViewId,
        /// Whose messages, by rank.
        sender: u16,
        /// The first missing one.
        first: u64,
        /// One past the last missing one.
        end: u64,
    },
    /// Messages of any sender, again.
    Repair {
        /// The view they belong to.
        view: ViewId,
        /// Whose messages, by rank.
        sender: u16,
        /// The number of the first.
        first: u64,
        /// The messages.
        casts: Vec<Cast>,
    },
}

/// Reliable FIFO multicast as a layer.
pub struct Reliable {
    me: ProcessId,
    config: Config,
    plant: Plant,
    /// The user cannot take more: acknowledgements are withheld.
    saturated: bool,
    /// Accepted from above, not yet numbered. Outlives views.
    pending: VecDeque<Cast>,
    current: Option<Epoch>,
    /// The view before, to help members that have not yet left it.
    previous: Option<Epoch>,
}

/// All that is known of one view's messages.
struct Epoch {
    view: View,
    rank: usize,
    others: std::sync::Arc<[ProcessId]>,
    streams: Vec<Stream>,
    /// `acked[member][sender]`: how many of the sender's messages the member holds.
    acked: Vec<Vec<u64>>,
    safe: Vec<u64>,
    /// What the others were last told.
    acknowledged: Vec<u64>,
    frozen: bool,
    fill: Option<Vec<u64>>,
    /// Something arrived that the others do not know of yet.
    ack_due: bool,
    /// `acked` changed since `safe` and the stable prefixes were computed.
    stability_due: bool,
    status_at: Time,
}

/// One sender's messages in one view.
#[derive(Default)]
struct Stream {
    /// Everyone holds the messages below; they are forgotten.
    stable: u64,
    /// The messages from `stable` on, without gap.
    store: VecDeque<Cast>,
    store_bytes: usize,
    delivered: u64,
    /// Messages behind a gap.
    early: BTreeMap<u64, Cast>,
    /// Somebody is known to hold the messages below.
    known: u64,
    nak_at: Option<Time>,
    nak_attempts: usize,
}

impl Stream {
    fn received(&self) -> u64 {
        self.stable + self.store.len() as u64
    }

    fn push(&mut self, cast: Cast) {
        self.store_bytes += cast.payload.len();
        self.store.push_back(cast);
    }

    fn range(&self, first: u64, end: u64, bytes_max: usize) -> Vec<Cast> {
        let from = first.saturating_sub(self.stable) as usize;
        let to = (end.min(self.received()).saturating_sub(self.stable)) as usize;
        let mut bytes = 0;
        let mut casts = Vec::new();
        for cast in self.store.iter().take(to).skip(from) {
            bytes += cast.payload.len() + CAST_OVERHEAD_BYTES;
            if bytes > bytes_max && !casts.is_empty() {
                break;
            }
            casts.push(cast.clone());
        }
        casts
    }

    fn forget_below(&mut self, stable: u64) {
        while self.stable < stable.min(self.delivered) {
            if let Some(cast) = self.store.pop_front() {
                self.store_bytes -= cast.payload.len();
            }
            self.stable += 1;
        }
    }
}

impl Epoch {
    fn new(now: Time, config: &Config, me: ProcessId, view: View) -> Option<Self> {
        let rank = view.rank(me)?;
        let size = view.members.len();
        Some(Self {
            rank,
            others: view.others(me),
            streams: (0..size).map(|_| Stream::default()).collect(),
            acked: vec![vec![0; size]; size],
            safe: vec![0; size],
            acknowledged: vec![0; size],
            frozen: false,
            fill: None,
            ack_due: false,
            stability_due: false,
            status_at: now + config.status_interval,
            view,
        })
    }

    /// The acknowledgement vector: what is held, or, while the user is saturated, what was acknowledged before.
    fn acknowledge(&mut self, saturated: bool) -> Vec<u64> {
        if !saturated {
            self.acknowledged = self.streams.iter().map(Stream::received).collect();
        }
        // One's own messages are no burden to oneself.
        self.acknowledged[self.rank] = self.streams[self.rank].received();
        self.acknowledged.clone()
    }

    fn is_settled(&self) -> bool {
        (0..self.streams.len())
            .all(|sender| self.streams[sender].store.is_empty() && self.missing_end(sender).is_none())
    }

    /// One past the last message of `sender` that is missed and known to exist; `None` when nothing is missed.
    /// A frozen member misses only what the cut wants.
    fn missing_end(&self, sender: usize) -> Option<u64> {
        let stream = &self.streams[sender];
        let end = match (&self.fill, self.frozen) {
            (Some(cut), true) => cut[sender],
            (None, true) => 0,
            (_, false) => stream.early.first_key_value().map_or(stream.known, |(&number, _)| number),
        };
        (stream.received() < end).then_some(end)
    }

    /// The messages of `sender` that may be kept: all, or when frozen only those that fill the cut.
    fn limit(&self, sender: usize) -> u64 {
        match (&self.fill, self.frozen) {
            (_, false) => u64::MAX,
            (Some(cut), true) => cut[sender],
            (None, true) => 0,
        }
    }

    fn on_acked(&mut self, now: Time, config: &Config, member: usize, received: &[u64]) {
        if received.len() != self.streams.len() {
            return;
        }
        for (sender, &count) in received.iter().enumerate() {
            if count > self.acked[member][sender] {
                self.acked[member][sender] = count;
                self.stability_due = true;
            }
            let stream = &mut self.streams[sender];
            // Nobody can hold more of my messages than I sent.
            if count > stream.known && sender != self.rank {
                stream.known = count;
                self.watch_gap(now, config, sender);
            }
        }
    }

    fn watch_gap(&mut self, now: Time, config: &Config, sender: usize) {
        let gap = self.missing_end(sender);
        let stream = &mut self.streams[sender];
        if gap.is_none() {
            (stream.nak_at, stream.nak_attempts) = (None, 0);
        } else if stream.nak_at.is_none() {
            stream.nak_at = Some(now + config.nak_delay);
        }
    }

    /// Forgets what everyone holds; true when more became safe.
    fn settle_stability(&mut self) -> bool {
        self.stability_due = false;
        let mut safer = false;
        for sender in 0..self.streams.len() {
            let stable = self.acked.iter().map(|received| received[sender]).min().unwrap_or(0);
            self.streams[sender].forget_below(stable);
            let safe = self.quorum_holds(sender);
            safer |= safe > self.safe[sender];
            self.safe[sender] = self.safe[sender].max(safe);
        }
        safer
    }

    /// How many of the sender's messages a quorum of the view holds.
    fn quorum_holds(&self, sender: usize) -> u64 {
        let held = |rank: usize| self.acked[rank][sender];
        // The answer is one of the counts: the largest that a quorum reaches.
        let counts = (0..self.acked.len()).map(held);
        counts.filter(|&count| self.view.is_quorum(|rank| held(rank) >= count)).max().unwrap_or(0)
    }
}

impl Reliable {
    /// The layer of process `me`, silent until its first view.
    pub fn new(me: ProcessId, config: Config, plant: Plant) -> Self {
        Self { me, config, plant, saturated: false, pending: VecDeque::new(), current: None, previous: None }
    }

    fn on_cast(&mut self, cast: Cast, flow: &mut Flow<Message>) {
        if self.pending.len() >= self.config.pending_max {
            flow.up(Up::Rejected(cast.payload));
        } else {
            self.pending.push_back(cast);
        }
    }

    fn has_room(&self, epoch: &Epoch) -> bool {
        let mine = &epoch.streams[epoch.rank];
        !epoch.frozen
            && (mine.store.is_empty()
                || ((mine.store.len() as u64) < self.config.window_messages
                    && mine.store_bytes < self.config.window_bytes))
    }

    /// Numbers, keeps, sends and delivers what waits, in as few packets as possible.
    fn send_pending(&mut self, flow: &mut Flow<Message>) {
        let Some(mut epoch) = self.current.take() else { return };
        while self.has_room(&epoch) && !self.pending.is_empty() {
            let mut casts = Vec::new();
            let mut bytes = 0;
            let rank = epoch.rank;
            let first = epoch.streams[rank].received();
            while let Some(cast) = self.pending.front() {
                bytes += cast.payload.len() + CAST_OVERHEAD_BYTES;
                if !self.has_room(&epoch) || (bytes > self.config.batch_bytes && !casts.is_empty()) {
                    break;
                }
                if let Some(cast) = self.pending.pop_front() {
                    epoch.streams[rank].push(cast.clone());
                    casts.push(cast);
                }
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
        let early_max = (self.config.window_messages as usize).saturating_mul(2);
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
                } else if stream.early.len() < early_max {
                    stream.early.insert(number, cast);
                }
            }
            number = number.saturating_add(1);
        }
        while let Some(entry) = stream.early.first_entry() {
            let next = stream.stable + stream.store.len() as u64;
            match (*entry.key()).cmp(&next) {
                std::cmp::Ordering::Greater => break,
                std::cmp::Ordering::Equal => {
                    let cast = entry.remove();
                    stream.push(cast);
                }
                std::cmp::Ordering::Less => drop(entry.remove()),
            }
        }
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
                stream.early.clear();
            }
            flow.up(Up::Filled { cut });
        }
    }

    fn on_freeze(&mut self, flow: &mut Flow<Message>) {
        let Some(epoch) = &mut self.current else { return };
        epoch.frozen = true;
        for stream in &mut epoch.streams {
            stream.early.clear();
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
        self.current = Epoch::new(now, &self.config, self.me, view.clone());
        flow.down(Down::Install { view: view.clone(), cut: None });
        flow.up(Up::View(view));
    }

    fn on_nak(&mut self, from: ProcessId, asked: (ViewId, u16, u64, u64), flow: &mut Flow<Message>) {
        let (view, sender, first, end) = asked;
        let epoch = [&self.current, &self.previous].into_iter().flatten().find(|epoch| epoch.view.id == view);
        let Some(epoch) = epoch.filter(|epoch| epoch.view.contains(from)) else { return };
        let Some(stream) = epoch.streams.get(usize::from(sender)) else { return };
        if first < stream.stable {
            return; // everyone held it once: the asker is confused or late
        }
        let casts = stream.range(first, end, self.config.batch_bytes);
        if !casts.is_empty() {
            flow.send(from, Lane::Ordinary, Message::Repair { view, sender, first, casts });
        }
    }

    fn ask_for_gaps(&mut self, now: Time, flow: &mut Flow<Message>) {
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
            // The sender first, then whoever is known to hold it, then anyone.
            let holds = |rank: &usize| epoch.acked[*rank][sender] > missing;
            let strangers = |rank: &usize| *rank != epoch.rank && *rank != sender;
            let known: Vec<_> = (0..epoch.acked.len()).filter(strangers).filter(holds).collect();
            let rest = (0..epoch.acked.len()).filter(strangers).filter(|rank| !holds(rank));
            let asked: Vec<_> = [sender].into_iter().chain(known).chain(rest).collect();
            let stream = &mut epoch.streams[sender];
            let holder = epoch.view.members[asked[stream.nak_attempts % asked.len()]];
            stream.nak_attempts += 1;
            stream.nak_at = Some(now + self.config.nak_retry);
            let nak = Message::Nak { view: epoch.view.id, sender: sender as u16, first: missing, end };
            flow.send(holder, Lane::Control, nak);
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
            Down::Saturated(saturated) => {
                self.saturated = saturated;
                if let Some(epoch) = &mut self.current {
                    epoch.ack_due = !saturated;
                }
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
            Message::Nak { view, sender, first, end } => self.on_nak(from, (view, sender, first, end), flow),
            Message::Repair { view, sender, first, casts } => {
                let rank = self.current_rank(from, view);
                let size = self.current.as_ref().map_or(0, |epoch| epoch.streams.len());
                if rank.is_some() && usize::from(sender) < size {
                    self.take(now, usize::from(sender), first, casts, flow);
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
        let sendable = !self.pending.is_empty() && self.has_room(epoch);
        if sendable || epoch.ack_due || epoch.stability_due {
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
}

impl Wire for Cast {
    fn encode(&self, out: &mut BytesMut) {
        self.headers.encode(out);
        put_bytes(out, &self.payload);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { headers: Headers::decode(input)?, payload: take_bytes(input, "payload")? })
    }
}

fn put_casts(out: &mut BytesMut, casts: &[Cast]) {
    put_count(out, casts.len());
    for cast in casts {
        cast.encode(out);
    }
}

fn take_casts(input: &mut Bytes) -> Result<Vec<Cast>, WireError> {
    let count = take_count(input, CAST_BYTES_MIN, "messages")?;
    (0..count).map(|_| Cast::decode(input)).collect()
}

pub(crate) fn put_counts(out: &mut BytesMut, counts: &[u64]) {
    put_count(out, counts.len());
    for &count in counts {
        out.put_u64_le(count);
    }
}

pub(crate) fn take_counts(input: &mut Bytes) -> Result<Vec<u64>, WireError> {
    let count = take_count(input, 8, "counts")?;
    (0..count).map(|_| take_u64(input, "count")).collect()
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Data { view, first, casts, received } => {
                out.put_u8(0);
                view.encode(out);
                out.put_u64_le(*first);
                put_counts(out, received);
                put_casts(out, casts);
            }
            Self::Ack { view, received, answer } => {
                out.put_u8(if *answer { 2 } else { 1 });
                view.encode(out);
                put_counts(out, received);
            }
            Self::Nak { view, sender, first, end } => {
                out.put_u8(3);
                view.encode(out);
                out.put_u16_le(*sender);
                out.put_u64_le(*first);
                out.put_u64_le(*end);
            }
            Self::Repair { view, sender, first, casts } => {
                out.put_u8(4);
                view.encode(out);
                out.put_u16_le(*sender);
                out.put_u64_le(*first);
                put_casts(out, casts);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let kind = take_u8(input, "multicast message")?;
        let view = ViewId::decode(input)?;
        match kind {
            0 => {
                let first = take_u64(input, "first number")?;
                let received = take_counts(input)?;
                Ok(Self::Data { view, first, received, casts: take_casts(input)? })
            }
            1 | 2 => Ok(Self::Ack { view, received: take_counts(input)?, answer: kind == 2 }),
            3 => Ok(Self::Nak {
                view,
                sender: take_u16(input, "sender rank")?,
                first: take_u64(input, "first number")?,
                end: take_u64(input, "end number")?,
            }),
            4 => Ok(Self::Repair {
                view,
                sender: take_u16(input, "sender rank")?,
                first: take_u64(input, "first number")?,
                casts: take_casts(input)?,
            }),
            other => Err(WireError::Invalid { what: "multicast message", value: u64::from(other) }),
        }
    }
}

/// What a message costs in a packet beside its payload: headers and length.
const CAST_OVERHEAD_BYTES: usize = 12;

/// The smallest encoded message: empty headers, empty payload.
const CAST_BYTES_MIN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    const A: ProcessId = ProcessId { node: 1, incarnation: 1 };
    const B: ProcessId = ProcessId { node: 2, incarnation: 1 };
    const C: ProcessId = ProcessId { node: 3, incarnation: 1 };

    fn view() -> View {
        let id = ViewId { group: 7, number: 1 };
        View { id, members: [A, B, C].into(), synced: [true; 3].into() }
    }

    fn member(me: ProcessId) -> (Reliable, Flow<Message>) {
        let (mut layer, mut flow) = (Reliable::new(me, Config::default(), Plant::NONE), Flow::new());
        layer.down(Time::ZERO, Down::Install { view: view(), cut: None }, &mut flow);
        flow.ups.clear();
        (layer, flow)
    }

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn cast(text: &'static str) -> Cast {
        Cast { headers: Headers::default(), payload: Bytes::from_static(text.as_bytes()) }
    }

    fn data(first: u64, texts: &[&'static str]) -> Message {
        let casts = texts.iter().copied().map(cast).collect();
        Message::Data { view: view().id, first, casts, received: vec![first + texts.len() as u64, 0, 0] }
    }

    /// Who is asked for what, in order.
    fn naks(flow: &mut Flow<Message>) -> Vec<(ProcessId, u64, u64)> {
        let asked = flow.sends.drain(..).filter_map(|(to, _, message)| match message {
            Message::Nak { first, end, .. } => Some((to.as_slice()[0], first, end)),
            _ => None,
        });
        asked.collect()
    }

    fn delivered(flow: &mut Flow<Message>) -> Vec<(u64, usize)> {
        let runs = flow.ups.drain(..).filter_map(|up| match up {
            Up::Deliver { first, casts, .. } => Some((first, casts.len())),
            _ => None,
        });
        runs.collect()
    }

    #[test]
    fn a_gap_is_asked_for_after_a_while_at_one_member_after_the_other() {
        let (mut b, mut flow) = member(B);
        b.receive(at(0), A, data(2, &["three"]), &mut flow);
        assert_eq!(delivered(&mut flow), []);
        b.tick(at(10), &mut flow);
        assert_eq!(naks(&mut flow), [], "messages may overtake each other for a moment");
        let mut asked = Vec::new();
        for millis in [20, 80, 140] {
            b.tick(at(millis), &mut flow);
            asked.extend(naks(&mut flow));
        }
        assert_eq!(asked, [(A, 0, 2), (C, 0, 2), (A, 0, 2)]);
        b.receive(at(150), A, data(0, &["one", "two"]), &mut flow);
        assert_eq!(delivered(&mut flow), [(0, 3)], "the early one follows without a second copy");
        b.receive(at(151), A, data(0, &["one", "two", "three"]), &mut flow);
        assert_eq!(delivered(&mut flow), [], "nothing twice");
    }

    /// A leader repeats its proposal, and with it the wish to fill, every 100 ms. Each repetition once began the search
    /// for a holder anew, so that the third one was never asked and the view change never ended.
    #[test]
    fn the_same_wish_to_fill_does_not_begin_the_search_for_a_holder_anew() {
        let (mut b, mut flow) = member(B);
        b.down(at(0), Down::Freeze, &mut flow);
        let mut asked = Vec::new();
        for round in 0..3 {
            b.down(at(100 * round), Down::Fill { cut: vec![0, 0, 5] }, &mut flow);
            for millis in [0, 60] {
                b.tick(at(100 * round + millis), &mut flow);
                asked.extend(naks(&mut flow).into_iter().map(|(to, _, _)| to));
            }
        }
        // C itself is the first choice, and A the second.
        assert!(asked.contains(&A) && asked.contains(&C), "{asked:?}");
        let repair = Message::Repair { view: view().id, sender: 2, first: 0, casts: vec![cast("x"); 5] };
        b.receive(at(300), A, repair, &mut flow);
        assert_eq!(delivered(&mut flow), [], "what fills the cut waits for the decision");
        let next = View { id: view().id.next(), members: [A, B].into(), synced: [true; 2].into() };
        b.down(at(301), Down::Install { view: next, cut: Some(vec![0, 0, 5]) }, &mut flow);
        assert_eq!(delivered(&mut flow), [(0, 5)]);
    }

    #[test]
    fn a_saturated_member_takes_messages_and_acknowledges_none() {
        let (mut b, mut flow) = member(B);
        b.down(at(0), Down::Saturated(true), &mut flow);
        b.receive(at(1), A, data(0, &["one"]), &mut flow);
        b.tick(at(1), &mut flow);
        assert_eq!(delivered(&mut flow), [(0, 1)]);
        assert!(flow.sends.is_empty(), "{:?}", flow.sends);
        b.down(at(2), Down::Saturated(false), &mut flow);
        b.tick(at(2), &mut flow);
        assert!(matches!(&flow.sends[..], [(_, _, Message::Ack { received, .. })] if *received == [1, 0, 0]));
    }
}
