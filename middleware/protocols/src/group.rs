//! The group: the layers assembled, as one machine.
//!
//! Purpose     a user names the order that is wanted; this module puts the layers that give it on each other.
//! Guarantee   reliable, view-synchronous multicast in agreed views, with the state for joiners; in FIFO order, in
//!             causal order or in uniform total order.
//! Method      from the top: state transfer, order, view changes, fragments, reliable multicast, failure detector.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::{Input, Machine, Outputs, ProcessId, Targets, Violation};
use crate::membership::detector::{Detection, Detector};
use crate::membership::heartbeat;
use crate::membership::view_sync::{self, ViewSync};
use crate::multicast::causal::Causal;
use crate::multicast::fifo::Fifo;
use crate::multicast::fragment::{self, Fragment};
use crate::multicast::reliable::{self, Reliable};
use crate::multicast::state_transfer::{self, StateTransfer};
use crate::multicast::total::{Total, TotalBy};
use crate::planted::Plant;
use crate::stack::{Cast, Down, Ended, Flow, Headers, Impossible, Layer, Offer, Pair, Up, View, ViewId};
use crate::time::Time;
use crate::wire::{WireError, take_u64};

/// The limits and times of all layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Config {
    /// The failure detector's.
    pub heartbeat: heartbeat::Config,
    /// Which failure detector.
    pub detection: Detection,
    /// The view changes'.
    pub view_sync: view_sync::Config,
    /// Those of large messages.
    pub fragment: fragment::Config,
    /// Reliable multicast's.
    pub reliable: reliable::Config,
    /// How total order is found.
    pub total_by: TotalBy,
    /// State transfer's.
    pub state_transfer: state_transfer::Config,
    /// The planted bug, for the simulator's own proof.
    pub plant: Plant,
}

/// What the user of a group asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Found a new group; `group` must be unlike that of any other.
    Create {
        /// The group's unique number.
        group: u64,
    },
    /// Join through any of these processes.
    Join {
        /// Processes that may be members.
        contacts: Vec<ProcessId>,
    },
    /// Multicast to the group, this member included.
    Cast(Bytes),
    /// Multicast to the group what came from outside.
    CastOutside {
        /// Who sent it there: the number of its node, of its life and of its message.
        from: Outsider,
        /// What was sent.
        payload: Bytes,
    },
    /// The state that [`Event::StateWanted`] asked for.
    State {
        /// The view it was asked for.
        view: ViewId,
        /// The application's own encoding.
        state: Bytes,
    },
    /// The user cannot take more events for now, or can again. While it cannot, this member acknowledges nothing, so
    /// that the others' windows fill and they wait; events go on only up to those windows.
    Saturated(bool),
    /// Leave in good order. What was cast before is delivered by those that stay, unless no quorum takes it within twice
    /// the time for which a silent member is trusted; what is cast after may be lost.
    Leave,
}

/// What the user of a group is told, in an order that has a meaning: see [`StateTransfer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A view begins.
    View(View),
    /// A message of the current view.
    Deliver {
        /// Who sent it.
        from: ProcessId,
        /// What was sent.
        payload: Bytes,
    },
    /// A message of the current view that came from outside.
    DeliverOutside {
        /// Who sent it, as the member knows that took it.
        from: Outsider,
        /// The member that took it.
        via: ProcessId,
        /// What was sent.
        payload: Bytes,
    },
    /// The application's state as of now is wanted, for joiners: answer with [`Command::State`].
    StateWanted(ViewId),
    /// The group's state at the beginning of the current view, for this joiner.
    State(Bytes),
    /// No quorum of the view seems alive: nothing is ordered, no view is agreed, until enough come back.
    QuorumLost,
    /// A quorum is there again.
    QuorumRegained,
    /// The failure detector does not hear a member.
    Suspected(ProcessId),
    /// It hears it again: the suspicion was false.
    Trusted(ProcessId),
    /// A message was not taken: too many wait already.
    Rejected(Bytes),
    /// The same of a message from outside.
    RejectedOutside(Outsider),
    /// This process is no longer a member. Nothing follows.
    Ended(Ended),
}

/// Who is no member and sends to the group: the number of its node, of its life and of its message.
pub type Outsider = (u64, u64, u64);

/// A group over any stack of layers.
pub struct Group<S: Layer> {
    stack: S,
    flow: Flow<S::Message>,
    view: Option<View>,
    ended: bool,
}

/// What all groups have below their order: members, agreed views, and multicast that is whole and reliable between them.
pub type Agreed = Pair<ViewSync, Pair<Fragment, Pair<Reliable, Detector>>>;

/// A group in FIFO order.
pub type FifoGroup = Group<Pair<StateTransfer, Pair<Fifo, Agreed>>>;

/// A group in causal order.
pub type CausalGroup = Group<Pair<StateTransfer, Pair<Causal, Agreed>>>;

/// A group in uniform total order.
pub type TotalGroup = Group<Pair<StateTransfer, Pair<Total, Agreed>>>;

/// The layers that all groups have below their order, for process `me`; for stacks of the user's own, too.
pub fn agreed(me: ProcessId, config: &Config) -> Agreed {
    let detector = Detector::new(me, config.heartbeat, config.detection);
    let reliable = Reliable::new(me, config.reliable, config.plant);
    let views = ViewSync::new(me, config.view_sync, &config.heartbeat, config.plant);
    let fragment = Fragment::new(me, config.fragment, config.plant);
    Pair::new(views, Pair::new(fragment, Pair::new(reliable, detector)))
}

impl FifoGroup {
    /// Process `me` of a group in FIFO order; in no view until it creates or joins.
    pub fn fifo(me: ProcessId, config: Config) -> Self {
        let state = StateTransfer::new(me, config.state_transfer, config.plant);
        Self::of(Pair::new(state, Pair::new(Fifo, agreed(me, &config))))
    }
}

impl CausalGroup {
    /// Process `me` of a group in causal order; in no view until it creates or joins.
    pub fn causal(me: ProcessId, config: Config) -> Self {
        let state = StateTransfer::new(me, config.state_transfer, config.plant);
        let causal = Causal::new(me, config.plant);
        Self::of(Pair::new(state, Pair::new(causal, agreed(me, &config))))
    }
}

impl TotalGroup {
    /// Process `me` of a group in uniform total order; in no view until it creates or joins.
    pub fn total(me: ProcessId, config: Config) -> Self {
        let state = StateTransfer::new(me, config.state_transfer, config.plant);
        let total = Total::new(me, config.total_by, config.plant);
        Self::of(Pair::new(state, Pair::new(total, agreed(me, &config))))
    }
}

impl<S: Layer> Group<S> {
    /// A group over layers of the user's own choice.
    ///
    /// # Errors
    /// [`Impossible`]: the layers cannot stand on each other in this order, and why.
    pub fn over(stack: S) -> Result<Self, Impossible> {
        stack.stands_on(Offer::NOTHING)?.with_all("a group", Offer::VIEWS)?;
        Ok(Self::of(stack))
    }

    fn of(stack: S) -> Self {
        debug_assert!(stack.stands_on(Offer::NOTHING).is_ok(), "the library's own stacks are possible");
        Self { stack, flow: Flow::new(), view: None, ended: false }
    }

    /// The current view, as far as its events have been given out.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    fn carry_out(&mut self, me: &mut Outputs<Self>) {
        // Sends first: what the user does with an event must not delay the network.
        for (to, lane, message) in self.flow.sends.drain(..) {
            match to {
                Targets::One(peer) => me.send(peer, lane, message),
                Targets::Many(peers) => me.multicast(peers, lane, message),
            }
        }
        debug_assert!(self.flow.downs.is_empty(), "a request nobody knows: {:?}", self.flow.downs);
        while let Some(event) = self.flow.ups.pop_front() {
            match event {
                Up::View(view) => {
                    self.view = Some(view.clone());
                    me.event(Event::View(view));
                }
                Up::Deliver { sender, casts, .. } => {
                    let from = self.view.as_ref().and_then(|view| view.members.get(sender)).copied();
                    let Some(from) = from else { continue };
                    for mut cast in casts {
                        let event = match cast.headers.pop::<1>() {
                            None => Event::Deliver { from, payload: cast.payload },
                            Some(_) => match take_outsider(&mut cast.payload) {
                                Ok(sender) => {
                                    Event::DeliverOutside { from: sender, via: from, payload: cast.payload }
                                }
                                Err(_) => continue,
                            },
                        };
                        me.event(event);
                    }
                }
                Up::StateWanted(view) => me.event(Event::StateWanted(view)),
                Up::State(state) => me.event(Event::State(state)),
                Up::QuorumLost => me.event(Event::QuorumLost),
                Up::QuorumRegained => me.event(Event::QuorumRegained),
                Up::Suspect(peer) => me.event(Event::Suspected(peer)),
                Up::Trust(peer) => me.event(Event::Trusted(peer)),
                Up::Rejected(mut cast) => match cast.headers.pop::<1>() {
                    None => me.event(Event::Rejected(cast.payload)),
                    Some(_) => {
                        let from = take_outsider(&mut cast.payload);
                        from.into_iter().for_each(|from| me.event(Event::RejectedOutside(from)));
                    }
                },
                Up::Ended(why) if !self.ended => {
                    self.ended = true;
                    me.event(Event::Ended(why));
                }
                // What the layers tell each other ends here.
                _ => {}
            }
        }
    }
}

impl<S: Layer> Machine for Group<S> {
    type Command = Command;
    type Event = Event;
    type Message = S::Message;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        if self.ended {
            return;
        }
        match input {
            Input::Tick => self.stack.tick(now, &mut self.flow),
            Input::Received { from, message } => self.stack.receive(now, from, message, &mut self.flow),
            Input::Reachable(peer) => self.stack.up(now, Up::Reachable(peer), &mut self.flow),
            Input::Unreachable(peer) => self.stack.up(now, Up::Unreachable(peer), &mut self.flow),
            Input::Command(command) => {
                let request = match command {
                    Command::Create { group } => Down::Create { group },
                    Command::Join { contacts } => Down::Join { contacts },
                    Command::Cast(payload) => Down::Cast(Cast { headers: Headers::default(), payload }),
                    Command::CastOutside { from, payload } => Down::Cast(cast_outside(from, &payload)),
                    Command::State { view, state } => Down::State { view, state },
                    Command::Saturated(full) => Down::Saturated(full),
                    Command::Leave => Down::Leave,
                };
                self.stack.down(now, request, &mut self.flow);
            }
        }
        self.carry_out(out);
    }

    fn deadline(&self) -> Option<Time> {
        if self.ended { None } else { self.stack.deadline() }
    }

    fn check(&self) -> Result<(), Violation> {
        self.stack.check()
    }
}

/// The payload of a message from outside begins with who sent it, and a header says so: others have none from here.
fn cast_outside((node, life, number): Outsider, payload: &Bytes) -> Cast {
    let mut marked = BytesMut::with_capacity(OUTSIDER_BYTES + payload.len());
    for part in [node, life, number] {
        marked.put_u64_le(part);
    }
    marked.put_slice(payload);
    let mut headers = Headers::default();
    let is_marked = headers.push(&[OUTSIDE]);
    debug_assert!(is_marked.is_ok(), "the first header has room");
    Cast { headers, payload: marked.freeze() }
}

fn take_outsider(payload: &mut Bytes) -> Result<Outsider, WireError> {
    Ok((take_u64(payload, "node")?, take_u64(payload, "life")?, take_u64(payload, "number")?))
}

/// What stands before the payload of a message from outside.
pub const OUTSIDER_BYTES: usize = 24;

/// What came from outside.
const OUTSIDE: u8 = 0;

impl<S: Layer> fmt::Debug for Group<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("view", &self.view).field("ended", &self.ended).finish_non_exhaustive()
    }
}
