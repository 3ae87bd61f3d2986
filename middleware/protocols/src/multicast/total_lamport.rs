//! Total order by Lamport's timestamps: messages are delivered in the order of their sending times, by rank where those are
//! equal.
//!
//! Guarantee   that of the [sequencer](super::total_sequencer): one order for all, which keeps each sender's own, uniformly.
//!             No member is more important than another, and none that dies must be replaced before the rest goes on
//!             ordering; but every member has to say something before a message is delivered.
//! Method      each message carries its sender's logical clock. A member that gets a message says, unless it has something
//!             to send anyway, up to which time nothing more will come from it: one word for each batch of arrivals. A
//!             message is delivered when no member can send an earlier one any more and a quorum holds it. At the end of
//!             a view the rest is delivered by time and rank: every survivor has the same rest.
//! Source      Lamport 1978; van Steen & Tanenbaum, totally ordered multicasting with Lamport's logical clocks.
//! Limits      those of the layer below; n words for each batch of messages, where the sequencer sends one.

use std::collections::VecDeque;

use bytes::Bytes;

use super::places::{stands_on, tables_match};
use crate::machine::{ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Cast, Down, Flow, Headers, Impossible, Layer, Offer, Up, View};
use crate::time::Time;

/// The order by Lamport's timestamps as a layer. It sends nothing of its own: its words are multicast messages.
#[derive(Debug)]
pub struct TotalLamport {
    me: ProcessId,
    plant: Plant,
    view: Option<View>,
    /// The time of the last own message, or a later one that was seen.
    clock: u64,
    /// The times of own messages that were cast and have not come back: nothing later may be promised.
    under_way: VecDeque<u64>,
    members: Vec<Member>,
    safe: Vec<u64>,
    /// The others know that nothing more comes from here up to this time.
    told: u64,
}

/// What came from one member.
#[derive(Debug, Default)]
struct Member {
    /// Nothing more comes from it up to this time.
    past: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    time: u64,
    number: u64,
    cast: Cast,
}

impl TotalLamport {
    /// The layer of process `me`.
    pub fn new(me: ProcessId, plant: Plant) -> Self {
        Self {
            me,
            plant,
            view: None,
            clock: 0,
            under_way: VecDeque::new(),
            members: Vec::new(),
            safe: Vec::new(),
            told: 0,
        }
    }

    fn rank(&self) -> Option<usize> {
        self.view.as_ref()?.rank(self.me)
    }

    fn on_cast(&mut self, mut cast: Cast, flow: &mut Flow<()>) {
        let time = self.clock.saturating_add(1);
        match cast.headers.push(&header(MESSAGE, time)) {
            Ok(()) => {
                self.clock = time;
                self.under_way.push_back(time);
                flow.down(Down::Cast(cast));
            }
            Err(_) => flow.up(Up::Rejected(cast)),
        }
    }

    fn on_deliver(&mut self, sender: usize, first: u64, casts: Vec<Cast>) {
        let is_own = self.rank() == Some(sender);
        let Some(member) = self.members.get_mut(sender) else { return };
        for (number, mut cast) in (first..).zip(casts) {
            let Some([kind, time @ ..]) = cast.headers.pop::<HEADER_BYTES>() else { continue };
            let time = u64::from_le_bytes(time);
            self.clock = self.clock.max(time);
            member.past = member.past.max(time);
            if kind == MESSAGE {
                member.waiting.push_back(Waiting { time, number, cast });
                if is_own {
                    self.under_way.pop_front();
                    self.told = self.told.max(time);
                }
            }
        }
    }

    /// Up to which time nothing more will come from here.
    fn promise(&self) -> u64 {
        let first = self.under_way.front().filter(|_| !self.plant.has(Planted::LamportPromisesTooMuch));
        first.map_or(self.clock, |first| first.saturating_sub(1))
    }

    /// What is to be said, because a message waits for it; `None` when nothing is.
    fn due(&self) -> Option<u64> {
        let last =
            self.members.iter().filter_map(|member| member.waiting.back()).map(|last| last.time).max()?;
        let promise = self.promise();
        (promise.min(last) > self.told).then_some(promise)
    }

    /// The member whose message is the earliest of those that wait, when nobody can send an earlier one.
    fn next(&self) -> Option<usize> {
        let fronts = self.members.iter().enumerate();
        let fronts = fronts.filter_map(|(rank, member)| Some((member.waiting.front()?.time, rank)));
        let (time, sender) = fronts.min()?;
        let own = self.rank();
        let is_past = |(rank, member): (usize, &Member)| {
            // What is not said yet does not count: others wait for the word that a message makes one say.
            let past = if Some(rank) == own { self.told } else { member.past };
            rank == sender || !member.waiting.is_empty() || past >= time
        };
        let is_next = self.members.iter().enumerate().all(is_past);
        (is_next || self.plant.has(Planted::LamportWaitsForNobody)).then_some(sender)
    }

    fn deliver_ready(&mut self, flow: &mut Flow<()>) {
        let (mut start, mut run, mut from) = (0, Vec::new(), 0);
        let unstable = self.plant.has(Planted::LamportDeliversUnstable);
        while let Some(sender) = self.next() {
            let is_safe = |waiting: &Waiting| unstable || waiting.number < self.safe[sender];
            let Some(next) = self.members[sender].waiting.pop_front_if(|waiting| is_safe(waiting)) else {
                break;
            };
            if sender != from || next.number != start + run.len() as u64 {
                hand_up(from, start, std::mem::take(&mut run), flow);
                (from, start) = (sender, next.number);
            }
            run.push(next.cast);
        }
        hand_up(from, start, run, flow);
    }

    /// All of the ending view has come: the rest of it by time and rank, then the next view.
    fn on_view(&mut self, view: View, flow: &mut Flow<()>) {
        let mut rest: Vec<_> = std::mem::take(&mut self.members)
            .into_iter()
            .enumerate()
            .flat_map(|(rank, member)| member.waiting.into_iter().map(move |waiting| (rank, waiting)))
            .collect();
        if !self.plant.has(Planted::LamportLeftoverByRank) {
            rest.sort_by_key(|(rank, waiting)| (waiting.time, *rank));
        }
        for (sender, waiting) in rest {
            hand_up(sender, waiting.number, vec![waiting.cast], flow);
        }
        self.members = view.members.iter().map(|_| Member::default()).collect();
        self.safe = vec![0; view.members.len()];
        self.told = 0;
        self.view = Some(view.clone());
        flow.up(Up::View(view));
    }
}

impl Layer for TotalLamport {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        match request {
            Down::Cast(cast) => self.on_cast(cast, flow),
            other => flow.down(other),
        }
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<()>) {
        match event {
            Up::Deliver { sender, first, casts } => {
                self.on_deliver(sender, first, casts);
                self.deliver_ready(flow);
            }
            Up::Safe(safe) if safe.len() == self.safe.len() => {
                self.safe = safe;
                self.deliver_ready(flow);
            }
            Up::Safe(_) => {}
            Up::Rejected(mut cast) => {
                if let Some([MESSAGE, time @ ..]) = cast.headers.pop::<HEADER_BYTES>() {
                    let time = u64::from_le_bytes(time);
                    self.under_way.retain(|other| *other != time);
                }
                flow.up(Up::Rejected(cast));
            }
            Up::View(view) => self.on_view(view, flow),
            other => flow.up(other),
        }
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, flow: &mut Flow<()>) {
        if let Some(promise) = self.due() {
            self.told = promise;
            let mut headers = Headers::default();
            if headers.push(&header(WORD, promise)).is_ok() {
                flow.down(Down::CastFirst(Cast { headers, payload: Bytes::new() }));
            }
            self.deliver_ready(flow);
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.due().map(|_| Time::ZERO)
    }

    fn check(&self) -> Result<(), Violation> {
        tables_match(self.view.as_ref(), &[self.members.len(), self.safe.len()])
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        stands_on(below)
    }
}

fn hand_up(sender: usize, first: u64, casts: Vec<Cast>, flow: &mut Flow<()>) {
    if !casts.is_empty() {
        flow.up(Up::Deliver { sender, first, casts });
    }
}

fn header(kind: u8, time: u64) -> [u8; HEADER_BYTES] {
    let mut header = [kind; HEADER_BYTES];
    header[1..].copy_from_slice(&time.to_le_bytes());
    header
}

/// A kind and a time.
const HEADER_BYTES: usize = 9;

/// A user's message.
const MESSAGE: u8 = 0;

/// Nothing more comes up to that time.
const WORD: u8 = 1;
