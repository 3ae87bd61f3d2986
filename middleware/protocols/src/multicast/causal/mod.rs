//! Causal order: a message is delivered only after every message that its sender had delivered before it.
//!
//! Guarantee   within a view, if one multicast happened before another, every member delivers it first; each sender's
//!             own order is part of that. Nothing is said about concurrent messages. What was delivered in an earlier
//!             view comes before anyway, by virtual synchrony.
//!             A message whose predecessor died with all who held it is delivered by no member that goes on.
//! Method      vector timestamps, counted anew in each view. The layer below is FIFO, so a sender tells only what has
//!             changed since it last told, in a *note* that it multicasts right before the message: payloads are not
//!             copied, headers stay small, and a burst of messages needs one note. Messages that come early wait, each
//!             sender's in its order.
//! Source      van Steen & Tanenbaum, causally ordered multicasting; Birman, Schiper & Stephenson 1991; telling the
//!             changes only: Singhal & Kshemkalyani 1992.
//! Limits      `HELD_MESSAGES_MAX` and `HELD_BYTES_MAX` that wait; beyond either this member acknowledges nothing, as
//!             for a user who does not read, so that the senders' windows bound the rest.

mod note;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::machine::{ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Cast, Down, Flow, Headers, Impossible, Layer, Offer, Up, View};
use crate::time::Time;
use crate::wire::Wire;
use note::Note;

/// Causal order as a layer. It sends nothing of its own: notes are multicast messages.
pub struct Causal {
    me: ProcessId,
    plant: Plant,
    view: Option<View>,
    /// By rank: how many messages of each member were delivered in this view.
    delivered: Vec<u64>,
    /// The same as this member has last told the others.
    told: Vec<u64>,
    senders: Vec<Sender>,
    held_messages: usize,
    held_bytes: usize,
    /// What waits here is too much: acknowledgements are withheld.
    is_behind: bool,
    /// The user cannot take more.
    is_saturated: bool,
}

/// What came from one member.
#[derive(Default)]
struct Sender {
    /// By rank: what must be delivered before the next message of this member.
    after: Vec<u64>,
    waiting: VecDeque<Item>,
}

enum Item {
    Note(Note),
    Message(u64, Cast),
}

impl Causal {
    /// The layer of process `me`.
    pub fn new(me: ProcessId, plant: Plant) -> Self {
        Self {
            me,
            plant,
            view: None,
            delivered: Vec::new(),
            told: Vec::new(),
            senders: Vec::new(),
            held_messages: 0,
            held_bytes: 0,
            is_behind: false,
            is_saturated: false,
        }
    }

    /// Multicasts what has changed since the last note, then the message.
    fn on_cast(&mut self, mut cast: Cast, flow: &mut Flow<()>) {
        if let Some(view) = &self.view {
            let me = view.rank(self.me);
            let changed = (0..self.delivered.len())
                .filter(|rank| self.delivered[*rank] > self.told[*rank] && Some(*rank) != me)
                .map(|rank| (rank as u16, self.delivered[rank]));
            let changed: Vec<_> = changed.collect();
            if !changed.is_empty() {
                self.told.clone_from(&self.delivered);
                let mut headers = Headers::default();
                if headers.push(&[NOTE]).is_ok() {
                    let note = Note { view: view.id, counts: changed };
                    flow.down(Down::Cast(Cast { headers, payload: note.to_bytes() }));
                }
            }
        }
        match cast.headers.push(&[MESSAGE]) {
            Ok(()) => flow.down(Down::Cast(cast)),
            Err(_) => flow.up(Up::Rejected(cast)),
        }
    }

    /// What was not taken below: if it was a note, the next one tells everything again. The message behind it was not
    /// taken either, for nothing was sent in between.
    fn on_rejected(&mut self, mut cast: Cast, flow: &mut Flow<()>) {
        self.told.fill(0);
        if cast.headers.pop::<1>() != Some([NOTE]) {
            flow.up(Up::Rejected(cast));
        }
    }

    fn on_deliver(&mut self, sender: usize, first: u64, casts: Vec<Cast>, flow: &mut Flow<()>) {
        if sender >= self.senders.len() {
            return;
        }
        for (number, mut cast) in (first..).zip(casts) {
            match cast.headers.pop::<1>() {
                Some([MESSAGE]) => {
                    self.held_messages += 1;
                    self.held_bytes += cast.payload.len();
                    self.senders[sender].waiting.push_back(Item::Message(number, cast));
                }
                Some([NOTE]) => {
                    if let Ok(note) = Note::from_bytes(cast.payload) {
                        self.senders[sender].waiting.push_back(Item::Note(note));
                    }
                }
                // What a layer above says of its own has no place in the order of messages.
                Some([ASIDE]) => flow.up(Up::Deliver { sender, first: number, casts: vec![cast] }),
                _ => {}
            }
        }
        // What this sender has delivered others may wait for, and their messages yet others.
        let mut next = self.deliver_of(sender, flow);
        while next {
            next = false;
            for other in 0..self.senders.len() {
                next |= self.deliver_of(other, flow);
            }
        }
        self.hold_back(flow);
    }

    /// Delivers what waits of one sender as far as it may; true when that was something.
    fn deliver_of(&mut self, sender: usize, flow: &mut Flow<()>) -> bool {
        let (mut first, mut run) = (0, Vec::new());
        let mut has_delivered = false;
        while let Some(item) = self.senders[sender].waiting.front() {
            if matches!(item, Item::Message(..)) && !self.is_due(sender) {
                break;
            }
            match self.senders[sender].waiting.pop_front() {
                Some(Item::Note(note)) => self.on_note(sender, &note),
                Some(Item::Message(number, cast)) => {
                    // A note takes a number as well: what is around it is not one run.
                    if number != first + run.len() as u64 && !run.is_empty() {
                        flow.up(Up::Deliver { sender, first, casts: std::mem::take(&mut run) });
                    }
                    if run.is_empty() {
                        first = number;
                    }
                    self.held_messages -= 1;
                    self.held_bytes -= cast.payload.len();
                    self.delivered[sender] += 1;
                    has_delivered = true;
                    run.push(cast);
                }
                None => break,
            }
        }
        if !run.is_empty() {
            flow.up(Up::Deliver { sender, first, casts: run });
        }
        has_delivered
    }

    fn is_due(&self, sender: usize) -> bool {
        self.plant.has(Planted::CausalIgnoresTimestamps)
            || self.senders[sender].after.iter().zip(&self.delivered).all(|(after, here)| after <= here)
    }

    fn on_note(&mut self, sender: usize, note: &Note) {
        // Of an earlier view, sent when it was over: all that go on had delivered what it speaks of.
        let is_old = self.view.as_ref().is_none_or(|view| view.id != note.view);
        if is_old && !self.plant.has(Planted::CausalObeysOldNotes) {
            return;
        }
        for (rank, count) in &note.counts {
            if let Some(after) = self.senders[sender].after.get_mut(usize::from(*rank)) {
                *after = (*after).max(*count);
            }
        }
    }

    /// While too much waits, nothing is acknowledged.
    fn hold_back(&mut self, flow: &mut Flow<()>) {
        let is_over = |share: usize| {
            self.held_messages > HELD_MESSAGES_MAX / share || self.held_bytes > HELD_BYTES_MAX / share
        };
        let is_behind = is_over(if self.is_behind { 2 } else { 1 });
        if is_behind != self.is_behind {
            self.is_behind = is_behind;
            if !self.is_saturated {
                flow.down(Down::Saturated(is_behind));
            }
        }
    }

    /// All of the ending view has come. What still waits has lost a predecessor for ever: every member that goes on has
    /// the same rest, and drops it.
    fn on_view(&mut self, view: View, flow: &mut Flow<()>) {
        if self.plant.has(Planted::CausalDeliversOrphans) {
            self.senders.iter_mut().for_each(|sender| sender.after.fill(0));
            while (0..self.senders.len()).any(|sender| self.deliver_of(sender, flow)) {}
        }
        let size = view.members.len();
        self.senders = (0..size).map(|_| Sender { after: vec![0; size], ..Sender::default() }).collect();
        self.delivered = vec![0; size];
        if self.plant.has(Planted::CausalNotesOutliveViews) {
            self.told.resize(size, 0);
        } else {
            self.told = vec![0; size];
        }
        (self.held_messages, self.held_bytes) = (0, 0);
        self.view = Some(view.clone());
        flow.up(Up::View(view));
        self.hold_back(flow);
    }
}

impl Layer for Causal {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        match request {
            Down::Cast(cast) => self.on_cast(cast, flow),
            Down::CastFirst(mut cast) => {
                if cast.headers.push(&[ASIDE]).is_ok() {
                    flow.down(Down::CastFirst(cast));
                }
            }
            Down::Saturated(is_saturated) => {
                self.is_saturated = is_saturated;
                flow.down(Down::Saturated(is_saturated || self.is_behind));
            }
            other => flow.down(other),
        }
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<()>) {
        match event {
            Up::Deliver { sender, first, casts } => self.on_deliver(sender, first, casts, flow),
            Up::Rejected(cast) => self.on_rejected(cast, flow),
            Up::View(view) => self.on_view(view, flow),
            other => flow.up(other),
        }
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, _: &mut Flow<()>) {}

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn check(&self) -> Result<(), Violation> {
        let members = self.view.as_ref().map_or(0, |view| view.members.len());
        let sizes = [self.delivered.len(), self.senders.len()];
        if sizes != [members; 2] {
            return Err(Violation("causal order: tables do not match the view".into()));
        }
        let waiting = self.senders.iter().flat_map(|sender| &sender.waiting);
        let messages = waiting.filter(|item| matches!(item, Item::Message(..))).count();
        if messages == self.held_messages {
            Ok(())
        } else {
            Err(Violation(format!("causal order: {messages} messages wait, not {}", self.held_messages)))
        }
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        let below = below.with_all("causal order", Offer::FIFO.and(Offer::VIEWS))?;
        let below = below.with_none("causal order", Offer::CAUSAL.and(Offer::STATE))?;
        Ok(below.and(Offer::CAUSAL))
    }
}

/// A message of the user.
const MESSAGE: u8 = 0;

/// What the next messages of its sender come after.
const NOTE: u8 = 1;

/// What a layer above says of its own.
const ASIDE: u8 = 2;

/// Messages that may wait for others while everything is acknowledged: as many as one sender's window by default.
const HELD_MESSAGES_MAX: usize = 8192;

/// Their bytes: some windows by default.
const HELD_BYTES_MAX: usize = 8 << 20;
