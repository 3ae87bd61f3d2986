//! State transfer: a joiner gets the application's state as of the beginning of its first view, or of a later one.
//!
//! Guarantee   a joiner delivers [`Up::View`], then [`Up::State`] as some older member had it at the beginning of
//!             that view, then every message of the view, and so on: nothing is missing, nothing is in both.
//! Method      the longest-standing member that has the state asks its application for it at the very moment of the
//!             view; chunks go to each joiner in a window, repeated until acknowledged, while the group goes on.
//!             A joiner holds its deliveries back until the state is complete, over as many views as that takes: others may
//!             come and go meanwhile. When its donor dies, another one begins anew with the state of a later view, and the
//!             joiner drops what it held from before that one.
//! Source      Birman & Joseph 1987 (virtual synchrony's state transfer).
//! Limits      [`Config::held_bytes_max`] of deliveries held by a joiner, [`Config::state_bytes_max`] of state; beyond
//!             either the joiner gives up, the group is not slowed down.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::{Lane, ProcessId};
use crate::planted::{Plant, Planted};
use crate::stack::{Down, Ended, Flow, Impossible, Layer, Offer, Up, View, ViewId};
use crate::time::Time;
use crate::wire::{Wire, WireError, put_bytes, take_bytes, take_u8, take_u64};

/// The limits and times of state transfer.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes in one chunk. Default 32 KiB.
    pub chunk_bytes: usize,
    /// Chunks under way to one joiner. Default 16.
    pub window_chunks: u64,
    /// Time until unacknowledged chunks are sent again. Default 200 ms.
    pub retry: Duration,
    /// Bytes of deliveries that a joiner holds while it waits. Default 256 MiB.
    pub held_bytes_max: usize,
    /// Bytes of a state that a joiner takes. Default 1 GiB.
    pub state_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chunk_bytes: 32 << 10,
            window_chunks: 16,
            retry: Duration::from_millis(200),
            held_bytes_max: 256 << 20,
            state_bytes_max: 1 << 30,
        }
    }
}

/// What donor and joiner send each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A piece of the state at the beginning of `view`.
    Chunk {
        /// The view.
        view: ViewId,
        /// Where the piece begins.
        offset: u64,
        /// The size of the whole state.
        total: u64,
        /// The piece.
        bytes: Bytes,
    },
    /// "I have all before `offset`", or, with `complete`, everything.
    Have {
        /// The view.
        view: ViewId,
        /// Bytes received without gap.
        offset: u64,
        /// True when the state is whole; a state may be empty.
        complete: bool,
    },
}

/// State transfer as a layer.
pub struct StateTransfer {
    me: ProcessId,
    config: Config,
    plant: Plant,
    view: Option<View>,
    synced: bool,
    /// Joiner: what to deliver once the state is here, beginning with the view.
    held: VecDeque<Up>,
    held_bytes: usize,
    /// Joiner: of which view the incoming state is.
    source: Option<ViewId>,
    incoming: BytesMut,
    /// Donor: one transfer for each joiner.
    outgoing: BTreeMap<ProcessId, Outgoing>,
}

struct Outgoing {
    view: ViewId,
    state: Bytes,
    acked: u64,
    sent: u64,
    retry_at: Time,
}

impl StateTransfer {
    /// The layer of process `me`.
    pub fn new(me: ProcessId, config: Config, plant: Plant) -> Self {
        Self {
            me,
            config,
            plant,
            view: None,
            synced: false,
            held: VecDeque::new(),
            held_bytes: 0,
            source: None,
            incoming: BytesMut::new(),
            outgoing: BTreeMap::new(),
        }
    }

    fn on_view(&mut self, view: View, flow: &mut Flow<Message>) {
        // What is on its way goes on.
        self.outgoing.retain(|joiner, _| view.contains(*joiner));
        self.view = Some(view.clone());
        if self.synced {
            flow.up(Up::View(view.clone()));
            if view.donor() == Some(self.me) && self.waiting().next().is_some() {
                flow.up(Up::StateWanted(view.id));
            }
        } else {
            self.held.push_back(Up::View(view));
        }
    }

    /// The members without state to whom none is on its way.
    fn waiting(&self) -> impl Iterator<Item = ProcessId> + '_ {
        let flags = self.view.iter().flat_map(|view| view.members.iter().zip(view.synced.iter()));
        let without = flags.filter(|(_, synced)| !**synced).map(|(member, _)| *member);
        without.filter(|member| *member != self.me && !self.outgoing.contains_key(member))
    }

    /// A joiner will begin with the state of this view; false when it was not yet a member then.
    fn begin(&mut self, view: ViewId) -> bool {
        let is_its = |event: &Up| matches!(event, Up::View(held) if held.id == view);
        let Some(place) = self.held.iter().position(is_its) else { return false };
        if !self.plant.has(Planted::StateKeepsOlderMessages) {
            let dropped: usize = self.held.drain(..place).map(|event| held_bytes_of(&event)).sum();
            self.held_bytes -= dropped;
        }
        if !self.plant.has(Planted::StateMixesViews) {
            self.incoming.clear();
        }
        self.source = Some(view);
        true
    }

    fn on_deliver(&mut self, event: Up, flow: &mut Flow<Message>) {
        if self.synced || self.plant.has(Planted::StateAfterMessages) {
            return flow.up(event);
        }
        self.held_bytes += held_bytes_of(&event);
        self.held.push_back(event);
        if self.held_bytes > self.config.held_bytes_max {
            self.held.clear();
            flow.up(Up::Ended(Ended::StateTooSlow));
            flow.down(Down::Leave);
        }
    }

    fn on_state(&mut self, now: Time, view: ViewId, state: Bytes, flow: &mut Flow<Message>) {
        if !self.synced || self.view.as_ref().is_none_or(|current| current.id != view) {
            return;
        }
        let joiners: Vec<_> = self.waiting().collect();
        for joiner in joiners {
            let outgoing = Outgoing { view, state: state.clone(), acked: 0, sent: 0, retry_at: now };
            self.outgoing.insert(joiner, outgoing);
        }
        self.send_chunks(now, flow);
    }

    fn send_chunks(&mut self, now: Time, flow: &mut Flow<Message>) {
        let (chunk, retry) = (self.config.chunk_bytes.max(1), self.config.retry);
        let window = self.config.window_chunks.max(1) * chunk as u64;
        for (&joiner, outgoing) in &mut self.outgoing {
            let (view, total) = (outgoing.view, outgoing.state.len() as u64);
            if outgoing.retry_at <= now {
                // Start over behind what is acknowledged. An empty state is one empty chunk.
                outgoing.sent = outgoing.acked;
                outgoing.retry_at = now + retry;
                if total == 0 {
                    let empty = Message::Chunk { view, offset: 0, total, bytes: Bytes::new() };
                    flow.send(joiner, Lane::Bulk, empty);
                }
            }
            while outgoing.sent < total && outgoing.sent < outgoing.acked + window {
                let end = (outgoing.sent + chunk as u64).min(total);
                let bytes = outgoing.state.slice(outgoing.sent as usize..end as usize);
                flow.send(joiner, Lane::Bulk, Message::Chunk { view, offset: outgoing.sent, total, bytes });
                outgoing.sent = end;
            }
        }
    }

    fn on_chunk(&mut self, from: ProcessId, chunk: (ViewId, u64, u64, Bytes), flow: &mut Flow<Message>) {
        let (view, offset, total, bytes) = chunk;
        let Some(current) = &self.view else { return };
        if current.id.group != view.group || current.id.is_before(view) || !current.contains(from) {
            return;
        }
        if self.synced {
            return flow.send(from, Lane::Control, Message::Have { view, offset: total, complete: true });
        }
        if total > self.config.state_bytes_max {
            self.incoming.clear();
            flow.up(Up::Ended(Ended::StateTooLarge));
            return flow.down(Down::Leave);
        }
        // The state of a later view is of another donor, and the earlier one may be dead.
        let is_later = self.source.is_none_or(|source| source.is_before(view));
        if is_later && !self.begin(view) || self.source != Some(view) {
            return;
        }
        if offset == self.incoming.len() as u64 {
            self.incoming.extend_from_slice(&bytes);
        }
        let have = self.incoming.len() as u64;
        let complete = have >= total;
        flow.send(from, Lane::Control, Message::Have { view, offset: have, complete });
        if complete {
            self.synced = true;
            self.held_bytes = 0;
            flow.down(Down::Synced(self.me));
            let mut held = std::mem::take(&mut self.held).into_iter();
            flow.ups.extend(held.next());
            flow.up(Up::State(std::mem::take(&mut self.incoming).freeze()));
            flow.ups.extend(held);
        }
    }

    fn on_have(
        &mut self,
        now: Time,
        from: ProcessId,
        (view, offset, complete): (ViewId, u64, bool),
        flow: &mut Flow<Message>,
    ) {
        let Some(outgoing) = self.outgoing.get_mut(&from).filter(|outgoing| outgoing.view == view) else {
            return;
        };
        if complete {
            self.outgoing.remove(&from);
            flow.down(Down::Synced(from));
        } else if offset > outgoing.acked && offset <= outgoing.sent {
            outgoing.acked = offset;
            outgoing.retry_at = now + self.config.retry;
        }
    }
}

impl Layer for StateTransfer {
    type Message = Message;

    fn down(&mut self, now: Time, request: Down, flow: &mut Flow<Message>) {
        match request {
            Down::State { view, state } => self.on_state(now, view, state, flow),
            Down::Create { group } => {
                self.synced = true;
                flow.down(Down::Create { group });
            }
            other => flow.down(other),
        }
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<Message>) {
        match event {
            Up::View(view) => self.on_view(view, flow),
            Up::Deliver { .. } => self.on_deliver(event, flow),
            other => flow.up(other),
        }
    }

    fn receive(&mut self, now: Time, from: ProcessId, message: Message, flow: &mut Flow<Message>) {
        match message {
            Message::Chunk { view, offset, total, bytes } => {
                self.on_chunk(from, (view, offset, total, bytes), flow);
            }
            Message::Have { view, offset, complete } => {
                self.on_have(now, from, (view, offset, complete), flow);
                self.send_chunks(now, flow);
            }
        }
    }

    fn tick(&mut self, now: Time, flow: &mut Flow<Message>) {
        self.send_chunks(now, flow);
    }

    fn deadline(&self) -> Option<Time> {
        self.outgoing.values().map(|outgoing| outgoing.retry_at).min()
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let below = below.with_all("state transfer", Offer::FIFO.and(Offer::VIEWS))?;
        Ok(below.with_none("state transfer", Offer::STATE)?.and(Offer::STATE))
    }
}

/// What a held event takes of the limit.
fn held_bytes_of(event: &Up) -> usize {
    match event {
        Up::Deliver { casts, .. } => {
            casts.iter().map(|cast| cast.payload.len() + size_of_val(cast)).sum::<usize>()
        }
        _ => 0,
    }
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Chunk { view, offset, total, bytes } => {
                out.put_u8(0);
                view.encode(out);
                out.put_u64_le(*offset);
                out.put_u64_le(*total);
                put_bytes(out, bytes);
            }
            Self::Have { view, offset, complete } => {
                out.put_u8(if *complete { 2 } else { 1 });
                view.encode(out);
                out.put_u64_le(*offset);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let kind = take_u8(input, "state message")?;
        let view = ViewId::decode(input)?;
        let offset = take_u64(input, "offset")?;
        match kind {
            0 => {
                let total = take_u64(input, "state size")?;
                Ok(Self::Chunk { view, offset, total, bytes: take_bytes(input, "chunk")? })
            }
            1 | 2 => Ok(Self::Have { view, offset, complete: kind == 2 }),
            other => Err(WireError::Invalid { what: "state message", value: u64::from(other) }),
        }
    }
}
