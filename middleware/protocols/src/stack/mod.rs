//! Small layers, stacked: what passes between them, and how two become one.
//!
//! Purpose     a group is built from layers that a reader can take in one at a time.
//! Guarantee   a stack is run to rest inside one call: no threads and no queues that outlive the call stand
//!             between layers; requests and events keep their order.
//! Method      a [`Layer`] takes requests from above and events from below, and appends both to a [`Flow`];
//!             [`Pair`] joins two layers into one, so a stack of any height is again a layer, dispatched
//!             statically. A layer talks to its own kind at other processes by messages of its own type.
//! Source      the common protocol interface of Horus and Ensemble; van Renesse, Birman & Maffeis 1996.

mod header;
mod layer;
mod offer;
mod view;

pub use header::{Headers, HeadersFull};
pub use layer::{Either, Flow, Layer, Pair};
pub use offer::{Impossible, Offer};
pub use view::{MEMBERS_MAX, View, ViewId};

use bytes::Bytes;

use crate::machine::ProcessId;

/// One multicast message inside the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cast {
    /// What the layers wrote for their own kind.
    pub headers: Headers,
    /// What the user sent; never copied on its way.
    pub payload: Bytes,
}

/// What travels down: requests. A layer that does not know a request passes it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Down {
    /// Become the first member of a new group. `group` tells it from others of the same name.
    Create {
        /// The group's unique number.
        group: u64,
    },
    /// Ask these processes to be let in.
    Join {
        /// Processes that may be members.
        contacts: Vec<ProcessId>,
    },
    /// Leave the group in good order.
    Leave,
    /// Multicast in the current view; waits for the next one while the view changes.
    Cast(Cast),
    /// Answer with [`Up::Drained`] when all that was cast here is certain to be delivered.
    Drain,
    /// Multicast before everything that waits, whatever the window says: what a layer says to its own kind about this
    /// view. Gone with the view.
    CastFirst(Cast),
    /// The user cannot take more for now, or can again: while it cannot, nothing is acknowledged.
    Saturated(bool),
    /// The state that [`Up::StateWanted`] asked for.
    State {
        /// The view at whose beginning it was taken.
        view: ViewId,
        /// The application's own encoding.
        state: Bytes,
    },
    /// This member now has the group's state.
    Synced(ProcessId),
    /// Stop delivering; answer with [`Up::Frozen`].
    Freeze,
    /// Fetch what is missing below `cut` (one number a sender); answer with [`Up::Filled`].
    Fill {
        /// For each sender by rank, how many of its messages belong to this view.
        cut: Vec<u64>,
    },
    /// Deliver what is left below `cut`, then begin `view`; answer with [`Up::View`].
    Install {
        /// The next view.
        view: View,
        /// As in [`Down::Fill`]; `None` for a process that was in no view.
        cut: Option<Vec<u64>>,
    },
}

/// What travels up: events. A layer that does not know an event passes it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Up {
    /// Consecutive messages of one sender, in its order.
    Deliver {
        /// The sender's rank in the current view.
        sender: usize,
        /// The number of the first; the others follow without gap.
        first: u64,
        /// The messages.
        casts: Vec<Cast>,
    },
    /// For each sender by rank: how many of its messages a quorum of the view holds.
    Safe(Vec<u64>),
    /// Answer to [`Down::Freeze`]: for each sender by rank, how many of its messages were taken.
    Frozen {
        /// The counts.
        received: Vec<u64>,
    },
    /// Answer to [`Down::Fill`]: all below this cut is here.
    Filled {
        /// The cut that was asked for.
        cut: Vec<u64>,
    },
    /// Answer to [`Down::Drain`]: nothing waits, and a quorum holds every message that was cast here.
    Drained,
    /// A view begins.
    View(View),
    /// The failure detector suspects a member.
    Suspect(ProcessId),
    /// The failure detector no longer suspects it.
    Trust(ProcessId),
    /// A member has shown which view it is in.
    PeerView {
        /// The member.
        peer: ProcessId,
        /// Its view.
        view: ViewId,
    },
    /// The driver's evidence that a connection stands.
    Reachable(ProcessId),
    /// The driver's evidence that a connection broke.
    Unreachable(ProcessId),
    /// The members that seem alive are no quorum: nothing is decided until enough come back.
    QuorumLost,
    /// They are a quorum again.
    QuorumRegained,
    /// The application is asked for its state as of now, for joiners.
    StateWanted(ViewId),
    /// The group's state at the beginning of the current view.
    State(Bytes),
    /// A message was not taken: the limit of waiting messages is reached. With the headers of the layers above.
    Rejected(Cast),
    /// This process is no longer a member, and why.
    Ended(Ended),
}

/// Why a membership ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It asked to leave.
    Left,
    /// The others went on without it. It may join again under a new incarnation.
    Expelled,
    /// The group has no room for another member.
    Full,
    /// The group's state is larger than this process takes.
    StateTooLarge,
    /// While it waited for the state, more messages arrived than it may hold.
    StateTooSlow,
    /// A message came that is larger than this process takes: members disagree about the limit.
    MessageTooLarge,
    /// Its user did not read for too long, and the group goes on without it.
    TooSlow,
}
