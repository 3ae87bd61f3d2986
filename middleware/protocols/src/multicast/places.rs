//! Messages that wait for their places in a total order: what every way shares in which somebody tells the places.
//!
//! Guarantee   messages come out in the order of their places, each when a quorum holds both it and the message that told
//!             its place; what has no place at the end of a view comes by rank. Every survivor has the same places and
//!             the same rest, for both are multicast messages of the view.
//! Method      a place is a run of messages of one sender, with the number of the message that told it.
//! Limits      those of the layer below.

use std::collections::VecDeque;

use crate::machine::Violation;
use crate::planted::{Plant, Planted};
use crate::stack::{Cast, Down, Flow, Impossible, Offer, Up, View};

/// Passes a request on; a message of the user's gets a mark, by which it is told from one that tells places.
pub(super) fn pass_marked(mark: u8, request: Down, flow: &mut Flow<()>) {
    match request {
        Down::Cast(mut cast) => match cast.headers.push(&[mark]) {
            Ok(()) => flow.down(Down::Cast(cast)),
            Err(_) => flow.up(Up::Rejected(cast)),
        },
        other => flow.down(other),
    }
}

/// The messages of one view that are not delivered yet, and their places as far as they are known.
#[derive(Debug)]
pub(super) struct Places {
    plant: Plant,
    view: Option<View>,
    /// By rank: messages that are here, with their numbers.
    waiting: Vec<VecDeque<(u64, Cast)>>,
    told: VecDeque<Place>,
    safe: Vec<u64>,
    /// Only for `Planted::TotalLeftoverByArrival`.
    arrivals: Vec<usize>,
}

/// The next so many messages of a sender come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The rank of the member that says so, and the number of the message in which it does.
    pub(super) teller: usize,
    pub(super) number: u64,
    pub(super) sender: usize,
    pub(super) count: u32,
}

impl Places {
    pub(super) fn new(plant: Plant) -> Self {
        Self {
            plant,
            view: None,
            waiting: Vec::new(),
            told: VecDeque::new(),
            safe: Vec::new(),
            arrivals: Vec::new(),
        }
    }

    pub(super) fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Keeps a message until its place has come.
    pub(super) fn keep(&mut self, sender: usize, number: u64, cast: Cast) {
        if let Some(queue) = self.waiting.get_mut(sender) {
            queue.push_back((number, cast));
        }
        if self.plant.has(Planted::TotalLeftoverByArrival) {
            self.arrivals.push(sender);
        }
    }

    /// Learns the next place; one of no messages holds up those after it until it is safe itself.
    pub(super) fn tell(&mut self, place: Place) {
        if place.sender < self.waiting.len() {
            self.told.push_back(place);
        }
    }

    /// Learns what a quorum holds.
    pub(super) fn on_safe(&mut self, safe: Vec<u64>) {
        if safe.len() == self.safe.len() {
            self.safe = safe;
        }
    }

    /// Delivers what has its place and is safe; at the end of a view all that has its place.
    pub(super) fn deliver(&mut self, all: bool, flow: &mut Flow<()>) {
        let all = all || self.plant.has(Planted::TotalDeliversUnstable);
        while let Some(place) = self.told.front_mut() {
            let sender = place.sender;
            if !all && self.safe.get(place.teller).is_none_or(|&safe| place.number >= safe) {
                return;
            }
            if place.count == 0 {
                self.told.pop_front();
                continue;
            }
            let safe = if all { u64::MAX } else { self.safe[sender] };
            let queue = &mut self.waiting[sender];
            let count =
                queue.iter().take(place.count as usize).take_while(|(number, _)| *number < safe).count();
            let Some(&(first, _)) = queue.front().filter(|_| count > 0) else { return };
            let casts = queue.drain(..count).map(|(_, cast)| cast).collect();
            place.count -= count as u32;
            let done = place.count == 0;
            flow.up(Up::Deliver { sender, first, casts });
            if !done {
                return;
            }
            self.told.pop_front();
        }
    }

    /// Ends the view: the rest of the cut, then the next view.
    pub(super) fn end(&mut self, view: View, flow: &mut Flow<()>) {
        self.deliver(true, flow);
        for sender in std::mem::take(&mut self.arrivals) {
            let next = self.waiting.get_mut(sender).and_then(VecDeque::pop_front);
            if let Some((first, cast)) = next {
                flow.up(Up::Deliver { sender, first, casts: vec![cast] });
            }
        }
        for (sender, queue) in self.waiting.iter_mut().enumerate() {
            if let Some(&(first, _)) = queue.front() {
                let casts = queue.drain(..).map(|(_, cast)| cast).collect();
                flow.up(Up::Deliver { sender, first, casts });
            }
        }
        self.waiting = view.members.iter().map(|_| VecDeque::new()).collect();
        self.safe = vec![0; view.members.len()];
        self.told.clear();
        self.view = Some(view.clone());
        flow.up(Up::View(view));
    }

    pub(super) fn check(&self) -> Result<(), Violation> {
        tables_match(self.view.as_ref(), &[self.waiting.len(), self.safe.len()])
    }
}

/// What every way to a total order needs and gives.
pub(super) fn stands_on(below: Offer) -> Result<Offer, Impossible> {
    let below = below.with_all("total order", Offer::FIFO.and(Offer::VIEWS).and(Offer::SAFE))?;
    let below = below.with_none("total order", Offer::TOTAL.and(Offer::STATE))?;
    Ok(below.and(Offer::TOTAL).and(Offer::CAUSAL).without(Offer::SAFE))
}

/// What a layer keeps for each member must be there for each member of the view.
pub(super) fn tables_match(view: Option<&View>, tables: &[usize]) -> Result<(), Violation> {
    let members = view.map_or(0, |view| view.members.len());
    if tables.iter().all(|length| *length == members) {
        Ok(())
    } else {
        Err(Violation("total order: tables do not match the view".into()))
    }
}
