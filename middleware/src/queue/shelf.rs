//! One queue's decisions as a value: what is ready, who holds what until when, what comes back, what is given up.
//!
//! Guarantee   ready messages are given in the order of their ids. A message is held by at most one lease at a time; it
//!             leaves only when it was settled. No clock, no disk, no task: the time and the outcomes come in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::Time;

/// A message's lasting name within its journal; later messages have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u64);

impl MessageId {
    pub(super) const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// The position in the queues' journal at which the message was stored.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a dead letter comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) queue: u32,
    pub(super) id: MessageId,
    pub(super) deliveries: u32,
}

impl Origin {
    /// Fills the place of one that is not there.
    pub(super) const NONE: Self = Self { queue: 0, id: MessageId(0), deliveries: 0 };
}

/// A message and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) payload: Bytes,
    pub(super) deliveries: u32,
    pub(super) origin: Option<Origin>,
    /// Where its newest copy lies in the log.
    pub(super) at: u64,
    stand: Stand,
    /// The lease it was given last.
    lease: Lease,
}

impl Message {
    /// Its acknowledgement or its burial is on its way to the disk.
    pub(super) fn is_settling(&self) -> bool {
        self.stand == Stand::Settling
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    Ready,
    /// Comes back by itself: a lease or a delay.
    Until(Time),
    /// Its acknowledgement or its burial is on its way to the disk.
    Settling,
}

/// Tells one delivery of a message from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lease(u64);

/// What a consumer gets.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) id: MessageId,
    pub(super) lease: Lease,
    pub(super) payload: Bytes,
    pub(super) deliveries: u32,
    pub(super) origin: Option<Origin>,
}

/// The messages of one queue.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    messages: BTreeMap<MessageId, Message>,
    ready: BTreeSet<MessageId>,
    timers: BTreeSet<(Time, MessageId)>,
    /// Given up; to be buried by whoever drives this.
    doomed: BTreeSet<MessageId>,
    bytes: usize,
    leases: u64,
}

impl Shelf {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = (MessageId, u64)> + '_ {
        self.messages.iter().map(|(id, message)| (*id, message.at))
    }

    pub(super) fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.get(&id)
    }

    /// A durable message arrives.
    pub(super) fn insert(
        &mut self,
        id: MessageId,
        at: u64,
        payload: Bytes,
        deliveries: u32,
        origin: Option<Origin>,
    ) {
        self.bytes += payload.len();
        self.ready.insert(id);
        let message = Message { payload, deliveries, origin, at, stand: Stand::Ready, lease: Lease(0) };
        if let Some(old) = self.messages.insert(id, message) {
            // Only while the log is replayed: a moved message comes again.
            self.bytes -= old.payload.len();
        }
    }

    /// Notes how often a message was delivered before a restart.
    pub(super) fn restore_deliveries(&mut self, id: MessageId, deliveries: u32) {
        if let Some(message) = self.messages.get_mut(&id) {
            message.deliveries = message.deliveries.max(deliveries);
        }
    }

    /// Notes that a newer copy of a message lies at `at`; false when the message went meanwhile.
    pub(super) fn relocate(&mut self, id: MessageId, at: u64) -> bool {
        self.messages.get_mut(&id).map(|message| message.at = at).is_some()
    }

    /// Gives the first ready message, leased for `lease`.
    pub(super) fn take(&mut self, now: Time, lease: Duration) -> Option<Taken> {
        let id = self.ready.pop_first()?;
        let message = self.messages.get_mut(&id)?;
        self.leases += 1;
        message.lease = Lease(self.leases);
        message.deliveries = message.deliveries.saturating_add(1);
        message.stand = Stand::Until(now + lease);
        self.timers.insert((now + lease, id));
        Some(Taken {
            id,
            lease: message.lease,
            payload: message.payload.clone(),
            deliveries: message.deliveries,
            origin: message.origin,
        })
    }

    /// Prolongs a lease; false when it is lost.
    pub(super) fn renew(&mut self, now: Time, id: MessageId, lease: Lease, duration: Duration) -> bool {
        if !self.holds(id, lease) {
            return false;
        }
        self.place(id, Stand::Until(now + duration));
        true
    }

    /// Gives a message back, to be ready after `delay`, or given up when it was delivered `deliveries_max` times; false
    /// when the lease is lost.
    pub(super) fn give_back(
        &mut self,
        now: Time,
        id: MessageId,
        lease: Lease,
        delay: Duration,
        deliveries_max: Option<u32>,
    ) -> bool {
        if !self.holds(id, lease) {
            return false;
        }
        self.return_message(now, id, delay, deliveries_max);
        true
    }

    /// Takes a message out of everyone's reach while its acknowledgement is being stored; false when the lease is lost.
    pub(super) fn settle(&mut self, id: MessageId, lease: Lease) -> bool {
        // An expired lease still counts while nobody else got the message: the work was done once.
        let is_ready_again = |message: &Message| message.lease == lease && message.stand == Stand::Ready;
        if !self.holds(id, lease) && !self.messages.get(&id).is_some_and(is_ready_again) {
            return false;
        }
        self.place(id, Stand::Settling);
        true
    }

    /// The acknowledgement is stored: the message goes. Also the way of a replayed acknowledgement.
    pub(super) fn remove(&mut self, id: MessageId) -> Option<Message> {
        self.place(id, Stand::Settling);
        let message = self.messages.remove(&id)?;
        self.bytes -= message.payload.len();
        Some(message)
    }

    /// The acknowledgement or the burial could not be stored: the message is ready again after `delay`.
    pub(super) fn unsettle(&mut self, now: Time, id: MessageId, delay: Duration) {
        if self.messages.get(&id).is_some_and(|message| message.stand == Stand::Settling) {
            self.return_message(now, id, delay, None);
        }
    }

    /// Brings back what is due.
    pub(super) fn expire(&mut self, now: Time, deliveries_max: Option<u32>) {
        while let Some((due, id)) = self.timers.first().copied() {
            if due > now {
                break;
            }
            self.return_message(now, id, Duration::ZERO, deliveries_max);
        }
    }

    /// The next message that is given up, taken out of everyone's reach.
    pub(super) fn next_doomed(&mut self) -> Option<MessageId> {
        self.doomed.pop_first()
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.timers.first().map(|(due, _)| *due)
    }

    fn holds(&self, id: MessageId, lease: Lease) -> bool {
        self.messages
            .get(&id)
            .is_some_and(|message| message.lease == lease && matches!(message.stand, Stand::Until(_)))
    }

    fn return_message(&mut self, now: Time, id: MessageId, delay: Duration, deliveries_max: Option<u32>) {
        let Some(message) = self.messages.get(&id) else { return };
        if deliveries_max.is_some_and(|max| message.deliveries >= max) {
            self.place(id, Stand::Settling);
            self.doomed.insert(id);
        } else if delay.is_zero() {
            self.place(id, Stand::Ready);
        } else {
            // A delayed message belongs to nobody: the lease that gave it back is over.
            self.place(id, Stand::Until(now + delay));
            if let Some(message) = self.messages.get_mut(&id) {
                message.lease = Lease(0);
            }
        }
    }

    /// Moves a message to another stand, with all that depends on it.
    fn place(&mut self, id: MessageId, stand: Stand) {
        let Some(message) = self.messages.get_mut(&id) else { return };
        match message.stand {
            Stand::Ready => drop(self.ready.remove(&id)),
            Stand::Until(due) => drop(self.timers.remove(&(due, id))),
            Stand::Settling => {}
        }
        message.stand = stand;
        match stand {
            Stand::Ready => drop(self.ready.insert(id)),
            Stand::Until(due) => drop(self.timers.insert((due, id))),
            Stand::Settling => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_core::{RngCore, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

    use super::*;

    /// Random consumers against a shelf: at each moment every message stands in exactly one place, nobody gets a
    /// message while another's lease on it runs, and what is given is the oldest that is ready.
    #[test]
    fn q03_message_is_in_one_place_and_in_one_hand_whatever_consumers_do() {
        for seed in 0..300 {
            let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut shelf = Shelf::default();
            let mut now = Time::ZERO;
            let mut held: Vec<(MessageId, Lease, Time)> = Vec::new();
            let mut settling: Vec<MessageId> = Vec::new();
            let (mut put, mut gone) = (0, 0);
            for _ in 0..200 {
                let any = chance.next_u64() as usize;
                now = now + Duration::from_millis(chance.next_u64() % 50);
                shelf.expire(now, Some(4));
                match chance.next_u64() % 8 {
                    0 | 1 => {
                        shelf.insert(MessageId(put), put, Bytes::from(vec![0; any % 10]), 0, None);
                        put += 1;
                    }
                    2 | 3 => {
                        let first = shelf.ready.first().copied();
                        let taken = shelf.take(now, Duration::from_millis(100));
                        assert_eq!(taken.as_ref().map(|taken| taken.id), first, "seed {seed}");
                        if let Some(taken) = taken {
                            let is_free = held.iter().all(|(id, _, until)| *id != taken.id || *until <= now);
                            assert!(is_free, "seed {seed}: {} is in two hands", taken.id);
                            held.push((taken.id, taken.lease, now + Duration::from_millis(100)));
                        }
                    }
                    4 if !held.is_empty() => {
                        let (id, lease, _) = held.swap_remove(any % held.len());
                        shelf.give_back(now, id, lease, Duration::from_millis(any as u64 % 3 * 30), Some(4));
                    }
                    5 if !held.is_empty() => {
                        let (id, lease, _) = held.swap_remove(any % held.len());
                        if shelf.settle(id, lease) {
                            settling.push(id);
                        }
                    }
                    6 if !settling.is_empty() => {
                        let id = settling.swap_remove(any % settling.len());
                        if any.is_multiple_of(4) {
                            shelf.unsettle(now, id, Duration::ZERO);
                        } else {
                            assert!(shelf.remove(id).is_some(), "seed {seed}");
                            gone += 1;
                        }
                    }
                    _ => settling.extend(shelf.next_doomed()),
                }
                assert_eq!(shelf.len() as u64, put - gone, "seed {seed}");
                let places = shelf.ready.len() + shelf.timers.len() + shelf.doomed.len() + settling.len();
                assert_eq!(places, shelf.len(), "seed {seed}");
                assert_eq!(shelf.bytes, shelf.messages.values().map(|m| m.payload.len()).sum::<usize>());
            }
        }
    }
}
