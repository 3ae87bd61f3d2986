//! Total order by a sequencer: the longest-standing member of the view fixes the order of everybody's messages.
//!
//! Guarantee   all members deliver the same messages of a view in the same order, which keeps each sender's own.
//!             *Uniform*: what any member delivered, also one that crashed right after, every survivor delivers,
//!             at the same place: a message is delivered only when a quorum of the view holds both it and its
//!             place in the order, and every quorum's knowledge enters the cut of a view change.
//! Method      members multicast their messages themselves; the sequencer multicasts only the order, as runs of
//!             (sender, count), one packet for each batch of arrivals. The order travels through the same reliable
//!             FIFO multicast, so it is repaired, acknowledged and cut like any message; it goes before the sequencer's
//!             own messages, whatever the window says, and is gone with its view. At the end of a view, what
//!             the order did not reach is delivered by rank: every survivor has the same rest.
//! Source      van Steen & Tanenbaum, totally ordered multicasting; Kaashoek & Tanenbaum 1991 (the variant in which
//!             data are multicast and the sequencer sends only the order).
//! Limits      those of the layer below; the order of a message costs 6 bytes for each run.

use bytes::{BufMut, Bytes, BytesMut};

use super::places::{Place, Places, pass_marked, stands_on};
use crate::machine::{ProcessId, Violation};
use crate::planted::Plant;
use crate::stack::{Cast, Down, Flow, Headers, Impossible, Layer, Offer, Up};
use crate::time::Time;
use crate::wire::{Wire, WireError, put_count, take_count, take_u16, take_u32};

/// The sequencer order as a layer. It sends nothing of its own: orders are multicast messages.
#[derive(Debug)]
pub struct TotalSequencer {
    me: ProcessId,
    places: Places,
    /// Sequencer only: messages that have no place yet, in order of arrival.
    unplaced: Vec<Run>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    sender: u16,
    count: u32,
}

impl TotalSequencer {
    /// The layer of process `me`.
    pub fn new(me: ProcessId, plant: Plant) -> Self {
        Self { me, places: Places::new(plant), unplaced: Vec::new() }
    }

    fn is_sequencer(&self) -> bool {
        self.places.view().is_some_and(|view| view.members.first() == Some(&self.me))
    }

    fn on_deliver(&mut self, sender: usize, first: u64, casts: Vec<Cast>) {
        let sequencer = self.is_sequencer();
        for (number, mut cast) in (first..).zip(casts) {
            match cast.headers.pop::<1>() {
                Some([DATA]) => {
                    self.places.keep(sender, number, cast);
                    if sequencer {
                        self.place(sender);
                    }
                }
                // Only the sequencer's word counts; its own orders come back to it like everyone else's.
                Some([ORDER]) if sender == 0 => self.on_order(number, cast.payload),
                _ => {}
            }
        }
    }

    fn place(&mut self, sender: usize) {
        match self.unplaced.last_mut() {
            Some(run) if usize::from(run.sender) == sender => run.count += 1,
            _ => self.unplaced.push(Run { sender: sender as u16, count: 1 }),
        }
    }

    fn on_order(&mut self, number: u64, payload: Bytes) {
        let Ok(order) = Order::from_bytes(payload) else { return };
        for Run { sender, count } in order.runs {
            self.places.tell(Place { teller: 0, number, sender: usize::from(sender), count });
        }
    }
}

impl Layer for TotalSequencer {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        pass_marked(DATA, request, flow);
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
            Up::View(view) => {
                self.unplaced.clear();
                self.places.end(view, flow);
            }
            other => flow.up(other),
        }
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, flow: &mut Flow<()>) {
        if !self.unplaced.is_empty() {
            let order = Order { runs: std::mem::take(&mut self.unplaced) };
            let mut headers = Headers::default();
            if headers.push(&[ORDER]).is_ok() {
                flow.down(Down::CastFirst(Cast { headers, payload: order.to_bytes() }));
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        (!self.unplaced.is_empty()).then_some(Time::ZERO)
    }

    fn check(&self) -> Result<(), Violation> {
        self.places.check()
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        stands_on(below)
    }
}

/// The places of messages: the next `count` of each sender in turn.
struct Order {
    runs: Vec<Run>,
}

impl Wire for Order {
    fn encode(&self, out: &mut BytesMut) {
        put_count(out, self.runs.len());
        for run in &self.runs {
            out.put_u16_le(run.sender);
            out.put_u32_le(run.count);
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let count = take_count(input, 6, "runs")?;
        let run = |input: &mut Bytes| {
            let run = Run { sender: take_u16(input, "sender rank")?, count: take_u32(input, "run length")? };
            // Nothing could follow a run that never ends because it never begins.
            if run.count == 0 { Err(WireError::Invalid { what: "run length", value: 0 }) } else { Ok(run) }
        };
        Ok(Self { runs: (0..count).map(|_| run(input)).collect::<Result<_, WireError>>()? })
    }
}

/// A user's message.
const DATA: u8 = 0;

/// The sequencer's message.
const ORDER: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_no_messages_is_refused() {
        let order = |count| Order { runs: vec![Run { sender: 1, count }] };
        assert!(Order::from_bytes(order(1).to_bytes()).is_ok());
        let refused = Order::from_bytes(order(0).to_bytes()).err();
        assert_eq!(refused, Some(WireError::Invalid { what: "run length", value: 0 }));
    }
}
