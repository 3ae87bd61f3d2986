//! Total order by a circulating token: whoever holds it says where its own messages come, and passes it on.
//!
//! Guarantee   that of the [sequencer](super::total_sequencer): one order for all, which keeps each sender's own, uniformly.
//!             No member orders for another, and nobody who sends is kept waiting for ever: between two turns of a member
//!             each other one has at most one.
//! Method      members multicast their messages themselves. The token is a multicast message, too: its number in the row of
//!             all turns, how many of the holder's messages come next, and who holds it then: the next one in the ring of
//!             whom a message waits. So all know who holds it, and it is repaired, acknowledged and cut like any message.
//!             Where nothing waits it rests. What no turn reached by the end of a view, or only a turn that comes after
//!             one that is missing, is delivered by rank: every survivor has the same rest.
//! Lost        a token cannot be lost but with its holder; the next view begins with a new one at its first member.
//! Source      van Steen & Tanenbaum, token ring algorithm; Chang & Maxemchuk 1984; Amir et al. 1995 (Totem). Here the token
//!             is told to all, because they must know the order in any case.
//! Limits      those of the layer below; a message of 14 bytes for each turn, and a lone sender that does not hold the token
//!             waits for one turn more than with a sequencer.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::places::{Place, Places, pass_marked, stands_on, tables_match};
use crate::machine::{ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Cast, Down, Flow, Headers, Impossible, Layer, Offer, Up, View};
use crate::time::Time;
use crate::wire::{Wire, WireError, take_u16, take_u32, take_u64};

/// The order of a token as a layer. It sends nothing of its own: turns are multicast messages.
#[derive(Debug)]
pub struct TotalToken {
    me: ProcessId,
    plant: Plant,
    places: Places,
    /// By rank: messages that are here and that no turn has placed.
    unplaced: Vec<u32>,
    /// The next turn, and whose it is.
    turn: u64,
    holder: usize,
    /// It is mine, and I have told it already.
    is_told: bool,
    /// Turns that came before an earlier one, with who told them in which message.
    early: BTreeMap<u64, (usize, u64, Turn)>,
}

impl TotalToken {
    /// The layer of process `me`.
    pub fn new(me: ProcessId, plant: Plant) -> Self {
        Self {
            me,
            plant,
            places: Places::new(plant),
            unplaced: Vec::new(),
            turn: 0,
            holder: 0,
            is_told: false,
            early: BTreeMap::new(),
        }
    }

    fn rank(&self) -> Option<usize> {
        self.places.view()?.rank(self.me)
    }

    fn on_deliver(&mut self, sender: usize, first: u64, casts: Vec<Cast>) {
        let is_own = self.rank() == Some(sender);
        for (number, mut cast) in (first..).zip(casts) {
            match cast.headers.pop::<1>() {
                Some([MESSAGE]) => {
                    self.places.keep(sender, number, cast);
                    if let Some(count) = self.unplaced.get_mut(sender) {
                        *count = count.saturating_add(1);
                    }
                }
                Some([TURN]) => {
                    self.is_told &= !is_own;
                    let Ok(turn) = Turn::from_bytes(cast.payload) else { continue };
                    if self.plant.has(Planted::TokenIgnoresTurns) {
                        self.turn = turn.number;
                    }
                    if turn.number >= self.turn {
                        self.early.entry(turn.number).or_insert((sender, number, turn));
                    }
                    self.take_turns();
                }
                _ => {}
            }
        }
    }

    /// Obeys the turns that follow without a gap.
    fn take_turns(&mut self) {
        while let Some((teller, number, turn)) = self.early.remove(&self.turn) {
            let is_holder = teller == self.holder || self.plant.has(Planted::TokenIsDoubled);
            let (Some(unplaced), true) = (self.unplaced.get_mut(teller), is_holder) else { return };
            let count = turn.count.min(*unplaced);
            *unplaced -= count;
            // A turn without messages must be safe, too, before what comes after it is delivered: survivors who lack it
            // would not know the places behind.
            if count > 0 || !self.plant.has(Planted::TokenTrustsEmptyTurns) {
                self.places.tell(Place { teller, number, sender: teller, count });
            }
            self.turn += 1;
            self.holder = usize::from(turn.next).min(self.unplaced.len() - 1);
        }
    }

    /// What the holder has to say, when something waits for it.
    fn due(&self) -> Option<Turn> {
        let (me, members) = (self.rank()?, self.unplaced.len());
        let holds = self.holder == me || (self.plant.has(Planted::TokenIsDoubled) && self.unplaced[me] > 0);
        if !holds || self.is_told {
            return None;
        }
        let next = (1..members).map(|step| (me + step) % members).find(|rank| self.unplaced[*rank] > 0);
        let count = self.unplaced[me];
        let is_wanted = count > 0 || next.is_some();
        is_wanted.then(|| Turn { number: self.turn, count, next: next.unwrap_or(me) as u16 })
    }

    fn on_view(&mut self, view: View, flow: &mut Flow<()>) {
        self.unplaced = vec![0; view.members.len()];
        (self.turn, self.is_told) = (0, false);
        if !self.plant.has(Planted::TokenOutlivesViews) {
            self.holder = 0;
        }
        self.early.clear();
        self.places.end(view, flow);
    }
}

impl Layer for TotalToken {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        pass_marked(MESSAGE, request, flow);
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<()>) {
        match event {
            Up::Deliver { sender, first, casts } => {
                self.on_deliver(sender, first, casts);
                self.places.deliver(false, flow);
            }
            Up::Safe(safe) => {
                self.places.on_safe(safe);
                self.places.deliver(false, flow);
            }
            Up::View(view) => self.on_view(view, flow),
            other => flow.up(other),
        }
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, flow: &mut Flow<()>) {
        if let Some(turn) = self.due() {
            let mut headers = Headers::default();
            if headers.push(&[TURN]).is_ok() {
                self.is_told = true;
                flow.down(Down::CastFirst(Cast { headers, payload: turn.to_bytes() }));
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.due().map(|_| Time::ZERO)
    }

    fn check(&self) -> Result<(), Violation> {
        self.places.check()?;
        tables_match(self.places.view(), &[self.unplaced.len()])
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        stands_on(below)
    }
}

/// One turn of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    /// Turns of a view are numbered from 0.
    number: u64,
    /// So many messages of the holder come next.
    count: u32,
    /// The rank of who holds it then.
    next: u16,
}

impl Wire for Turn {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.number);
        out.put_u32_le(self.count);
        out.put_u16_le(self.next);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let number = take_u64(input, "turn")?;
        Ok(Self {
            number,
            count: take_u32(input, "messages of a turn")?,
            next: take_u16(input, "next holder")?,
        })
    }
}

/// A user's message.
const MESSAGE: u8 = 0;

/// The holder's word.
const TURN: u8 = 1;
