//! What a node knows of one other node, and which of two connections with it stays. Pure but for the handles it holds.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::connection::{Connection, Lane};
use quorate_transports::{Address, Credentials, Identity, Incarnation, NodeId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::channel::{CHANNEL_BYTES, Channel};

/// One other node.
pub(super) struct Peer {
    pub(super) node: NodeId,
    state: Mutex<PeerState>,
    /// Told of every change of the connection and of room in the backlog.
    pub(super) changed: Notify,
}

impl Peer {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, state: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, PeerState> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(super) struct PeerState {
    pub(super) active: Option<Active>,
    /// Addresses that the user gave.
    pub(super) given: VecDeque<Address>,
    /// Addresses that the peer itself told last.
    pub(super) told: Vec<Address>,
    /// Addresses that others told of it: nobody answers for them.
    pub(super) heard: VecDeque<Address>,
    /// The user wants it connected.
    pub(super) is_kept: bool,
    /// A task dials it, or pauses before it does.
    pub(super) is_dialling: bool,
    /// An attempt is under way now.
    pub(super) is_attempting: bool,
    /// Incoming connections that were accepted and not installed yet.
    pub(super) accepting: usize,
    /// Connections that are closing after the one that was used has ended; they may still deliver.
    pub(super) lingering: Vec<Spare>,
    /// The end of a connection that is told when none of those is left, and nothing has taken its place.
    pub(super) postponed: Option<(Identity, u64)>,
    /// Connections that came to be used.
    pub(super) connections: u64,
    /// Attempts that failed, or connections that broke soon, in a row.
    pub(super) failures: u32,
    pub(super) backlog: Backlog,
}

impl PeerState {
    /// Where to dial: the user's word first, hearsay last.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let told = self.told.iter().filter(|address| !self.given.contains(address));
        let known = |address: &&Address| self.given.contains(address) || self.told.contains(address);
        let heard = self.heard.iter().filter(|address| !known(address));
        self.given.iter().chain(told).chain(heard).cloned().collect()
    }

    pub(super) fn is_dialable(&self) -> bool {
        !self.given.is_empty() || !self.told.is_empty() || !self.heard.is_empty()
    }

    /// Somebody else is there.
    pub(super) fn unlearn(&mut self, address: &Address) {
        self.told.retain(|told| told != address);
        self.heard.retain(|heard| heard != address);
    }

    /// There is a reason to dial, and a way.
    pub(super) fn wants_connection(&self) -> bool {
        self.active.is_none() && self.is_dialable() && (self.is_kept || !self.backlog.messages.is_empty())
    }

    /// The end that can be told now: everything that was sent before it has been delivered.
    pub(super) fn take_down(&mut self) -> Option<(Identity, u64)> {
        if self.accepting == 0 && self.lingering.is_empty() { self.postponed.take() } else { None }
    }

    pub(super) fn give_address(&mut self, address: Address) {
        note(&mut self.given, address);
    }

    pub(super) fn hear_address(&mut self, address: Address) {
        note(&mut self.heard, address);
    }

    /// What is lost when the node forgets it to make room; `None` when it must not.
    pub(super) fn worth(&self) -> Option<Worth> {
        let is_connected = self.active.is_some() || self.accepting > 0 || !self.lingering.is_empty();
        if is_connected || !self.given.is_empty() || self.is_kept {
            return None;
        }
        match (self.is_dialling || !self.backlog.messages.is_empty(), self.connections > 0) {
            (false, false) => Some(Worth::Hearsay),
            (false, true) => Some(Worth::Acquaintance),
            (true, false) => Some(Worth::Attempt),
            (true, true) => None,
        }
    }

    /// Forgets where it is and what waits for it; gives the number of messages.
    pub(super) fn clear(&mut self) -> usize {
        self.is_kept = false;
        self.given.clear();
        self.told.clear();
        self.heard.clear();
        self.backlog.clear()
    }
}

/// What a peer that the user did not name, and that is not connected, is to the node; the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Worth {
    /// Others have told of it. It may not even be.
    Hearsay,
    /// It was connected once.
    Acquaintance,
    /// Hearsay that something waits for: whoever comes in person goes before it.
    Attempt,
}

/// The last of a few.
fn note(known: &mut VecDeque<Address>, address: Address) {
    known.retain(|known| *known != address);
    known.push_back(address);
    if known.len() > ADDRESSES_MAX {
        known.pop_front();
    }
}

/// The connection that is used.
pub(super) struct Active {
    pub(super) connection: Connection,
    pub(super) identity: Identity,
    /// What its medium knows of the peer.
    pub(super) credentials: Option<Credentials>,
    /// Tells connections of this node apart.
    pub(super) serial: u64,
    /// Its place in the order of announcements; later ones are larger.
    pub(super) rank: u64,
    pub(super) is_dialled: bool,
    pub(super) is_muted: Arc<AtomicBool>,
    /// Connections with the same life beside this one, which one of the sides is about to close: until this one has
    /// come to be on the other side, that may use those.
    pub(super) spares: Vec<Spare>,
}

/// A connection beside the one that is used.
pub(super) struct Spare {
    pub(super) connection: Connection,
    pub(super) identity: Identity,
    pub(super) credentials: Option<Credentials>,
    pub(super) serial: u64,
    pub(super) is_dialled: bool,
    pub(super) is_muted: Arc<AtomicBool>,
}

impl Active {
    /// The connection as one beside another, and those beside it.
    pub(super) fn retire(self) -> (Spare, Vec<Spare>) {
        let Self { connection, identity, credentials, serial, is_dialled, is_muted, spares, .. } = self;
        (Spare { connection, identity, credentials, serial, is_dialled, is_muted }, spares)
    }

    /// The connection that takes the place of one that ended: the other side may have used it all the time.
    ///
    /// # Errors
    /// The connections that are left, when none of them is open.
    pub(super) fn successor(mut self, rank: impl FnOnce() -> u64) -> Result<Self, Vec<Spare>> {
        let Some(at) = self.spares.iter().position(|spare| spare.connection.is_open()) else {
            return Err(self.spares);
        };
        let Spare { connection, identity, credentials, serial, is_dialled, is_muted } =
            self.spares.remove(at);
        let (rank, spares) = (rank(), self.spares);
        Ok(Self { connection, identity, credentials, serial, rank, is_dialled, is_muted, spares })
    }
}

/// A new connection beside one that is used: which one stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The new one; the old one's life is over, or its other end is gone.
    ReplaceDead,
    /// The new one; the old one is closed gracefully, by who dialled the new one.
    Replace,
    /// The old one; the new one is closed gracefully, by who dialled the old one.
    Keep,
    /// The old one; the new one belongs to an earlier life.
    Refuse,
}

/// One side of a comparison by [`choose`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) incarnation: Incarnation,
    pub(super) is_dialled: bool,
    /// The old one still takes sends; the new one's dialler insists that it has no other.
    pub(super) is_open: bool,
    pub(super) insists: bool,
}

/// Both sides come to the same choice, because it depends only on who dialled and on what the hello said.
pub(super) fn choose(old: Candidate, new: Candidate, we_are_lower: bool) -> Choice {
    if new.incarnation < old.incarnation {
        Choice::Refuse
    } else if new.incarnation > old.incarnation || new.insists {
        Choice::ReplaceDead
    } else if !old.is_open {
        Choice::Replace
    } else if old.is_dialled == new.is_dialled {
        Choice::Keep
    } else if new.is_dialled == we_are_lower {
        // The one that the lower node dialled stays.
        Choice::Replace
    } else {
        Choice::Keep
    }
}

/// Messages that wait for a connection.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) messages: VecDeque<Waiting>,
    pub(super) bytes: usize,
}

pub(super) struct Waiting {
    since: Instant,
    pub(super) life: Option<Incarnation>,
    pub(super) lane: Lane,
    pub(super) message: Bytes,
}

impl Backlog {
    /// Takes a message unless that would exceed `bytes_max`; below half of it any message, as a lane does, so that
    /// the lanes of a new connection take all of it.
    pub(super) fn push(
        &mut self,
        bytes_max: usize,
        life: Option<Incarnation>,
        lane: Lane,
        channel: Channel,
        parts: &[&[u8]],
        body: &Bytes,
    ) -> bool {
        let size = CHANNEL_BYTES + parts.iter().map(|part| part.len()).sum::<usize>() + body.len();
        let cost = size + size_of::<Waiting>();
        if self.bytes + cost > bytes_max && self.bytes > bytes_max / 2 {
            return false;
        }
        let mut message = Vec::with_capacity(size);
        message.extend_from_slice(&channel.0.to_le_bytes());
        parts.iter().for_each(|part| message.extend_from_slice(part));
        message.extend_from_slice(body);
        self.bytes += cost;
        self.messages.push_back(Waiting { since: Instant::now(), life, lane, message: message.into() });
        true
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.messages.pop_front()?;
        self.bytes -= waiting.message.len() + size_of::<Waiting>();
        Some(waiting)
    }

    /// Drops what has waited for `wait_max` or longer and returns how many messages that were.
    pub(super) fn expire(&mut self, wait_max: Duration) -> usize {
        let mut expired = 0;
        while self.messages.front().is_some_and(|waiting| waiting.since.elapsed() >= wait_max) {
            self.pop();
            expired += 1;
        }
        expired
    }

    pub(super) fn clear(&mut self) -> usize {
        let dropped = self.messages.len();
        *self = Self::default();
        dropped
    }
}

/// Addresses kept per peer, of those that the user gave and of those that others told.
const ADDRESSES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_two_connections_keep_the_same_one() {
        // Connection one was dialled by the lower node, connection two by the higher one; each side may come to
        // know them in either order.
        let candidate =
            |is_dialled| Candidate { incarnation: Incarnation(1), is_dialled, is_open: true, insists: false };
        for lower_saw_one_first in [true, false] {
            for higher_saw_one_first in [true, false] {
                let keeps_one = |we_are_lower: bool, saw_one_first: bool| {
                    let (one, two) = (candidate(we_are_lower), candidate(!we_are_lower));
                    let (old, new) = if saw_one_first { (one, two) } else { (two, one) };
                    let takes_new = choose(old, new, we_are_lower) == Choice::Replace;
                    takes_new != saw_one_first
                };
                assert!(keeps_one(true, lower_saw_one_first));
                assert!(keeps_one(false, higher_saw_one_first));
            }
        }
    }

    #[test]
    fn a_later_life_replaces_an_earlier_one_and_never_the_other_way() {
        let life = |incarnation| Candidate {
            incarnation: Incarnation(incarnation),
            is_dialled: true,
            is_open: true,
            insists: false,
        };
        for we_are_lower in [true, false] {
            assert_eq!(choose(life(1), life(2), we_are_lower), Choice::ReplaceDead);
            assert_eq!(choose(life(2), life(1), we_are_lower), Choice::Refuse);
            let insisting = Candidate { insists: true, ..life(1) };
            assert_eq!(choose(life(1), insisting, we_are_lower), Choice::ReplaceDead);
            assert_eq!(choose(life(1), life(1), we_are_lower), Choice::Keep);
        }
    }
}
