//! Remote objects: who holds a reference to what, and when nobody does any more.
//!
//! Purpose     the distributed garbage collector of remote references. Every process runs one [`Objects`], which is
//!             *owner* of the objects that it exports, *holder* of the references that it was given, and *sender* of those
//!             that it passes on.
//! Guarantee   an object is collected only when its owner neither uses it itself, nor has it on its way to somebody, nor
//!             has a holder whose lease runs: a holder that hears its owner within [`ObjectsConfig::lease`] never loses an
//!             object. An object that nobody holds is collected: at once when the last holder said so, after the lease
//!             when the last holder died, after [`ObjectsConfig::transit`] when a reference was lost on its way. A holder
//!             that has lost its lease knows it before the owner acts on it.
//! Method      per holder the owner keeps the *set* of objects that it holds (reference listing, not counting: a
//!             repeated message does no harm, and a dead holder's entries can be dropped). A holder numbers its changes
//!             ("I hold it", "I do not hold it any more": dirty and clean); the owner applies them in their order and
//!             each once, so that a change that was overtaken or repeated means nothing else than it did. What carries
//!             the changes renews the lease: one message for all references of one holder to one owner. The lease of a
//!             holder counts from the sending of what was answered, and ends earlier than the owner's: clocks drift.
//!             A sender keeps (*pins*) what it passes on until the receiver says that it is registered with the owner.
//! Source      Birrell, Evers, Nelson, Owicki & Wobber 1993, "Distributed garbage collection for network objects" (dirty and
//!             clean calls, sequence numbers, transient entries); Java RMI (leases); Tanenbaum & van Steen, "Distributed
//!             Systems", reference listing.
//! Needs       messages that are not altered. Clocks that differ in rate by less than a tenth.
//! Limits      [`ObjectsConfig`]. Cycles over several processes are not found: who builds one takes it apart himself.

mod holder;
mod machine;
mod message;
mod owner;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use machine::Objects;
pub use message::{Change, ObjectsMessage};

use crate::machine::ProcessId;
use crate::planted::Plant;

/// An object of one life of one process. Its number is never given twice in that life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Who exports it.
    pub owner: ProcessId,
    /// Which of the owner's objects it is, from 1.
    pub number: u64,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.number, self.owner)
    }
}

/// How long references live without word, and how many there may be.
#[derive(Debug, Clone)]
pub struct ObjectsConfig {
    /// How long an owner keeps what a silent holder holds. Holders renew four times as often. Default 30 s: shorter frees
    /// sooner after a crash and loses references in shorter partitions.
    pub lease: Duration,
    /// How long a reference may be on its way before its sender lets go of it. Default 60 s.
    pub transit: Duration,
    /// Objects exported at once. Default 65,536.
    pub exported_max: usize,
    /// Objects of this process that one other may hold at once. Default 16,384.
    pub holder_max: usize,
    /// References that this process may hold at once. Default 65,536.
    pub held_max: usize,
    /// Processes of which references may be held, or are still to be told that nothing is. Default 4,096. Of a quarter of
    /// these one process may bring references before any of them has answered.
    pub owners_max: usize,
    /// References that this process may have on their way at once. Default 65,536; to one node at most a quarter of them.
    /// Beyond it no object of this process is passed on to that node; of others' objects the one that has been longest on
    /// its way, to that node or else to the node with the most of them, is kept for it no longer.
    pub pins_max: usize,
    /// Which known bug to plant.
    pub plant: Plant,
}

impl Default for ObjectsConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            transit: Duration::from_secs(60),
            exported_max: 65_536,
            holder_max: 16_384,
            held_max: 65_536,
            owners_max: 4_096,
            pins_max: 65_536,
            plant: Plant::NONE,
        }
    }
}

/// What the local user does with references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectsCommand {
    /// A new object, under a number that was never used; one use of it begins.
    Export {
        /// Its number.
        number: u64,
    },
    /// The object is not to be called any more, whoever holds it.
    Withdraw {
        /// Its number.
        number: u64,
    },
    /// One use less.
    Release(Reference),
    /// A used reference is passed on.
    Depart {
        /// Which.
        reference: Reference,
        /// To whom; in whichever life when its incarnation is [`ProcessId::ANY_LIFE`].
        to: ProcessId,
        /// A number that was never used; travels with the reference.
        pin: u64,
    },
    /// What was passed on under this pin has never left, or will never be read.
    Recall {
        /// The pin.
        pin: u64,
    },
    /// A reference has come; one use of it begins.
    Arrive {
        /// Which.
        reference: Reference,
        /// From whom.
        from: ProcessId,
        /// The pin that travelled with it.
        pin: u64,
    },
    /// Somebody would use a reference whose owner is silent: one that was given up is told again what is held of it.
    Want(Reference),
    /// A life of a node is known to be over.
    Ended(ProcessId),
    /// This process stops: every owner is told that nothing of it is held any more, and no object can be called.
    Close,
}

/// What the local user is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectsEvent {
    /// Nobody holds this object of ours any more; it is exported no more.
    Collected {
        /// Its number.
        number: u64,
    },
    /// A reference that is used here has lost its object.
    Dangling(Reference),
}

/// What is known of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The owner keeps the object for this holder, or is this process.
    Held,
    /// The owner is being told; until then the sender keeps it.
    Arriving,
    /// The owner does not have the object any more.
    ObjectGone,
    /// The owner does not let this process hold so many objects.
    Refused,
    /// The owner has not been heard for longer than the lease; it may have collected the object.
    OwnerSilent,
    /// That life of the owner is over.
    OwnerEnded,
    /// Nobody here uses it.
    Unknown,
}

/// Totals, which only grow, and present numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectsStats {
    /// Objects exported now.
    pub exported: usize,
    /// Objects exported so far.
    pub exports: u64,
    /// Objects that were collected because nobody held them.
    pub collected: u64,
    /// Processes that hold objects of this one now.
    pub holders: usize,
    /// References of others to objects of this one now: pairs of holder and object.
    pub held_by_others: usize,
    /// Holders whose lease ended without a word.
    pub leases_expired: u64,
    /// References held now.
    pub held: usize,
    /// Owners of those.
    pub owners: usize,
    /// References that lost their object.
    pub dangling: u64,
    /// References on their way now.
    pub in_transit: usize,
    /// References whose receiver was not heard of in time.
    pub lost_in_transit: u64,
}
