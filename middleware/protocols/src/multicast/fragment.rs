//! Messages larger than what one packet should carry: cut into fragments, and put together again.
//!
//! Guarantee   as the layer below, for messages of up to [`Config::message_bytes_max`] bytes: each comes whole, once, in its
//!             sender's order, or not at all, and at the place of its last fragment.
//! Method      a large message is cut, and its fragments are multicast one behind the other, a few at a time; what its
//!             sender casts meanwhile waits, so that each receiver puts together one message of each sender.
//!             All fragments of a message belong to one view: when the view changes in the middle, everybody forgets the
//!             part, and the sender begins anew in the next view. So it is decided with the view which messages belong
//!             to it, and a joiner need not know about halves.
//! Source      the FRAG layers of Horus and JGroups; the restart follows from virtual synchrony.
//! Limits      [`Config`]; a receiver holds at most one message of each sender that is not whole.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::machine::{ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::stack::{Cast, Down, Ended, Flow, Headers, Impossible, Layer, Offer, Up};
use crate::time::Time;

/// The limits of fragmentation. All members should use the same.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Payload bytes that travel in one piece. Default 256 KiB. Smaller ones cost a header each, larger ones hold up what is
    /// on the same lane.
    pub fragment_bytes: usize,
    /// The largest message. Default and upper limit [`MESSAGE_BYTES_MAX`]. A member that gets a larger one ends.
    pub message_bytes_max: usize,
    /// Messages that may wait behind a large one. Default 65,536; then [`Up::Rejected`].
    pub waiting_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { fragment_bytes: 256 << 10, message_bytes_max: MESSAGE_BYTES_MAX, waiting_max: 65_536 }
    }
}

/// Fragmentation as a layer. It sends nothing of its own: fragments are multicast messages.
pub struct Fragment {
    me: ProcessId,
    config: Config,
    plant: Plant,
    rank: Option<usize>,
    /// Own messages that were not handed down whole. The first one is large: what is behind it waits until it is numbered.
    queue: VecDeque<Cast>,
    sending: Sending,
    /// Own fragments of an earlier attempt that are still on their way down.
    stale: usize,
    /// By rank: the fragments of a message that is not whole.
    parts: Vec<Option<Part>>,
    /// The layer above wants to know when a quorum holds all own messages.
    is_draining: bool,
}

/// How far the first message of the queue is.
#[derive(Default)]
struct Sending {
    /// Bytes that were handed down.
    cut: usize,
    /// Fragments that were handed down and have no number yet.
    under_way: usize,
    /// Fragments that have a number in this view.
    numbered: usize,
}

/// The beginning of a message.
struct Part {
    headers: Headers,
    fragments: Vec<Bytes>,
    bytes: usize,
}

impl Fragment {
    /// The layer of process `me`.
    pub fn new(me: ProcessId, config: Config, plant: Plant) -> Self {
        Self {
            me,
            config,
            plant,
            rank: None,
            queue: VecDeque::new(),
            sending: Sending::default(),
            stale: 0,
            parts: Vec::new(),
            is_draining: false,
        }
    }

    fn is_large(&self, cast: &Cast) -> bool {
        cast.payload.len() > self.config.fragment_bytes.max(1)
    }

    fn on_cast(&mut self, cast: Cast, flow: &mut Flow<()>) {
        let waits = !self.queue.is_empty() && !self.plant.has(Planted::FragmentLetsOthersPass);
        if !self.is_large(&cast) && !waits {
            return hand_down(cast, WHOLE, flow);
        }
        if self.queue.len() >= self.config.waiting_max || cast.payload.len() > self.config.message_bytes_max {
            return flow.up(Up::Rejected(cast));
        }
        self.queue.push_back(cast);
        self.send(flow);
    }

    /// Hands down what may go: small messages, and of a large one as much as may be under way.
    fn send(&mut self, flow: &mut Flow<()>) {
        let size = self.config.fragment_bytes.max(1);
        while let Some(front) = self.queue.front() {
            let total = front.payload.len();
            if total <= size {
                if let Some(cast) = self.queue.pop_front() {
                    hand_down(cast, WHOLE, flow);
                }
                continue;
            }
            while self.sending.cut < total && self.sending.under_way < UNDER_WAY_MAX {
                let from = self.sending.cut;
                let end = total.min(from + size);
                let (headers, kind) = match (from, end == total) {
                    (0, _) => (front.headers, FIRST),
                    (_, false) => (Headers::default(), MIDDLE),
                    (_, true) => (Headers::default(), LAST),
                };
                let fragment = Cast { headers, payload: front.payload.slice(from..end) };
                self.sending.cut = end;
                self.sending.under_way += 1;
                hand_down(fragment, kind, flow);
            }
            return;
        }
        if std::mem::take(&mut self.is_draining) {
            flow.down(Down::Drain);
        }
    }

    /// A fragment of this member has its number; the whole message, if that was the last one.
    fn on_own(&mut self, kind: u8, flow: &mut Flow<()>) -> Option<Cast> {
        if self.stale > 0 {
            self.stale -= 1;
            if self.stale == 0 {
                // What is behind a message that was refused waits for nothing else.
                self.send(flow);
            }
            return None;
        }
        self.sending.under_way = self.sending.under_way.saturating_sub(1);
        self.sending.numbered += 1;
        let whole = if kind == LAST { self.queue.pop_front() } else { None };
        if whole.is_some() {
            self.sending = Sending::default();
        }
        self.send(flow);
        whole
    }

    /// Another member's fragment; the whole message, if that was the last one.
    fn on_fragment(&mut self, sender: usize, kind: u8, cast: Cast, flow: &mut Flow<()>) -> Option<Cast> {
        let part = self.parts.get_mut(sender)?;
        if kind == FIRST {
            *part = Some(Part { headers: cast.headers, fragments: Vec::new(), bytes: 0 });
        }
        // What has no beginning in this view belongs to an attempt of the last one.
        let open = part.as_mut()?;
        if cast.payload.is_empty() {
            // Nobody cuts such a one, and any number of them would fit the limit.
            *part = None;
            return None;
        }
        open.bytes += cast.payload.len();
        if open.bytes > self.config.message_bytes_max {
            *part = None;
            flow.up(Up::Ended(Ended::MessageTooLarge));
            return None;
        }
        open.fragments.push(cast.payload);
        if kind != LAST {
            return None;
        }
        let Part { headers, fragments, bytes } = part.take()?;
        let mut payload = BytesMut::with_capacity(bytes);
        fragments.iter().for_each(|fragment| payload.extend_from_slice(fragment));
        Some(Cast { headers, payload: payload.freeze() })
    }

    fn on_deliver(&mut self, sender: usize, first: u64, casts: Vec<Cast>, flow: &mut Flow<()>) {
        // A run is what has consecutive numbers; a fragment takes a number and is no message.
        let (mut start, mut run) = (first, Vec::with_capacity(casts.len()));
        for (number, mut cast) in (first..).zip(casts) {
            let whole = match cast.headers.pop::<1>() {
                Some([WHOLE]) => {
                    // Its sender has given up what it had begun.
                    if let Some(part) = self.parts.get_mut(sender) {
                        *part = None;
                    }
                    Some(cast)
                }
                Some([kind @ (FIRST | MIDDLE | LAST)]) if self.rank == Some(sender) => {
                    self.on_own(kind, flow)
                }
                Some([kind @ (FIRST | MIDDLE | LAST)]) => self.on_fragment(sender, kind, cast, flow),
                Some([ASIDE]) => Some(cast),
                _ => None,
            };
            let Some(whole) = whole else { continue };
            if number != start + run.len() as u64 {
                if !run.is_empty() {
                    flow.up(Up::Deliver { sender, first: start, casts: std::mem::take(&mut run) });
                }
                start = number;
            }
            run.push(whole);
        }
        if !run.is_empty() {
            flow.up(Up::Deliver { sender, first: start, casts: run });
        }
    }

    /// What was not taken below: nobody will get the rest of that message.
    fn on_rejected(&mut self, mut cast: Cast, flow: &mut Flow<()>) {
        match cast.headers.pop::<1>() {
            Some([FIRST | MIDDLE | LAST]) => {
                if self.sending.cut > 0 {
                    self.stale += std::mem::take(&mut self.sending).under_way;
                    self.queue.pop_front().into_iter().for_each(|whole| flow.up(Up::Rejected(whole)));
                }
                // The refused one will not come back.
                self.stale = self.stale.saturating_sub(1);
                if self.stale == 0 {
                    self.send(flow);
                }
            }
            _ => flow.up(Up::Rejected(cast)),
        }
    }

    /// A view begins: what was not whole by the end of the last one begins anew, unless all of it is still to come.
    fn on_view(&mut self, size: usize) {
        if !self.plant.has(Planted::FragmentOutlivesViews) {
            self.parts.clear();
        }
        self.parts.resize_with(size, || None);
        if self.sending.numbered > 0 && !self.plant.has(Planted::FragmentForgetsToRestart) {
            self.stale += self.sending.under_way;
            self.sending = Sending::default();
        }
    }
}

impl Layer for Fragment {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        match request {
            Down::Cast(cast) => self.on_cast(cast, flow),
            Down::CastFirst(mut cast) => {
                if cast.headers.push(&[ASIDE]).is_ok() {
                    flow.down(Down::CastFirst(cast));
                }
            }
            Down::Drain if !self.queue.is_empty() => self.is_draining = true,
            other => flow.down(other),
        }
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<()>) {
        match event {
            Up::Deliver { sender, first, casts } => self.on_deliver(sender, first, casts, flow),
            Up::Rejected(cast) => self.on_rejected(cast, flow),
            Up::View(view) => {
                self.rank = view.rank(self.me);
                self.on_view(view.members.len());
                flow.up(Up::View(view));
                self.send(flow);
            }
            other => flow.up(other),
        }
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, _: &mut Flow<()>) {}

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn check(&self) -> Result<(), Violation> {
        let Sending { cut, under_way, .. } = self.sending;
        let total = self.queue.front().map_or(0, |front| front.payload.len());
        if cut > total || under_way > UNDER_WAY_MAX {
            return Err(Violation(format!("fragments: {cut} of {total} bytes, {under_way} under way")));
        }
        Ok(())
    }

    fn stands_on(&self, below: Offer) -> Result<Offer, Impossible> {
        below.with_all("fragments", Offer::FIFO)
    }
}

fn hand_down(mut cast: Cast, kind: u8, flow: &mut Flow<()>) {
    match cast.headers.push(&[kind]) {
        Ok(()) => flow.down(Down::Cast(cast)),
        Err(_) => flow.up(Up::Rejected(cast)),
    }
}

/// The largest message there is: 1 GiB.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Fragments that are handed down and not numbered yet: enough to fill the window below, few enough to be thrown away.
const UNDER_WAY_MAX: usize = 8;

/// What a cast is.
const WHOLE: u8 = 0;
const FIRST: u8 = 1;
const MIDDLE: u8 = 2;
const LAST: u8 = 3;
/// Of a layer above, before everything that waits.
const ASIDE: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{View, ViewId};

    const ME: ProcessId = ProcessId { node: 1, incarnation: 1 };

    fn cast(payload: &'static str) -> Cast {
        Cast { headers: Headers::default(), payload: payload.into() }
    }

    fn casts(flow: &mut Flow<()>) -> Vec<Cast> {
        let downs = flow.drain_downs().map(|down| match down {
            Down::Cast(cast) => cast,
            other => panic!("casts only: {other:?}"),
        });
        downs.collect()
    }

    #[test]
    fn g09_what_waits_behind_a_large_message_that_is_refused_goes_on_when_its_fragments_are_gone() {
        let config = Config { fragment_bytes: 2, ..Config::default() };
        let (mut layer, mut flow) = (Fragment::new(ME, config, Plant::NONE), Flow::new());
        let id = ViewId { group: 1, number: 1 };
        let view = Up::View(View { id, members: [ME].into(), synced: [true].into(), quorum_min: 1 });
        layer.up(Time::ZERO, view, &mut flow);
        layer.down(Time::ZERO, Down::Cast(cast("large")), &mut flow);
        layer.down(Time::ZERO, Down::Cast(cast("s")), &mut flow);
        let mut fragments = casts(&mut flow);
        assert_eq!(fragments.len(), 3, "the small one waits");
        flow.drain_ups().for_each(drop);
        // The window below takes two of them.
        layer.up(Time::ZERO, Up::Rejected(fragments.remove(2)), &mut flow);
        let refused: Vec<_> = flow.drain_ups().collect();
        assert!(matches!(&refused[..], [Up::Rejected(whole)] if whole.payload == "large"), "{refused:?}");
        layer.up(Time::ZERO, Up::Deliver { sender: 0, first: 0, casts: fragments }, &mut flow);
        assert_eq!(flow.drain_ups().count(), 0, "half a message is none");
        let sent = casts(&mut flow);
        assert!(matches!(&sent[..], [small] if small.payload == "s"), "{sent:?}");
    }
}
