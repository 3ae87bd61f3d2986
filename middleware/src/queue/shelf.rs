//! One queue's decisions as a value: what is ready, who holds what until when, what comes back, what is given up.
//!
//! Guarantee   ready messages are given by priority, then in the order of their ids. Of a key only the first message is
//!             ever given, until it has left for good: nothing that comes back is overtaken by one of its key. A message is
//!             held by at most one lease at a time; it leaves only when it was settled. No clock, no disk, no task: the time
//!             and the outcomes come in.
//! Not here    the messages' bytes: where they lie is no business of these decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::Time;

use super::message::{DeadReason, Durability, Label, MessageId, Origin};

/// What is known of a message besides its bytes, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Slip {
    /// Where its newest copy lies in the log; nowhere when it is only in memory.
    pub(super) place: Option<u64>,
    pub(super) size: usize,
    pub(super) label: Label,
    pub(super) origin: Option<Origin>,
    pub(super) deliveries: u32,
    pub(super) class: Durability,
    stand: Stand,
    /// The lease it was given last.
    lease: Lease,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand {
    /// To be given, if it is the first of its key.
    Ready,
    /// Was put, or given back, for later.
    Delayed(Time),
    /// Somebody has it until then.
    Leased(Time),
    /// Could not be taken out when that was due; tried again then.
    Retry(Time),
    /// Its end is on its way to the disk.
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
    pub(super) deliveries: u32,
}

/// The messages of one queue.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    messages: BTreeMap<MessageId, Slip>,
    /// Acknowledged, and kept for those who read them again.
    kept: BTreeMap<MessageId, Slip>,
    /// What would be given, the first one first.
    ready: BTreeSet<(u8, MessageId)>,
    /// Per key, those that have not left.
    lines: BTreeMap<Bytes, BTreeSet<MessageId>>,
    timers: BTreeSet<(Time, MessageId)>,
    /// To be taken out by whoever drives this.
    doomed: BTreeMap<MessageId, DeadReason>,
    bytes: usize,
    kept_bytes: usize,
    leases: u64,
}

impl Slip {
    pub(super) fn new(
        place: Option<u64>,
        size: usize,
        label: Label,
        origin: Option<Origin>,
        deliveries: u32,
        class: Durability,
    ) -> Self {
        Self { place, size, label, origin, deliveries, class, stand: Stand::Settling, lease: Lease(0) }
    }

    pub(super) fn stand(&self) -> Stand {
        self.stand
    }

    fn is_expired(&self, now: Time) -> bool {
        self.label.expires.is_some_and(|expires| expires <= now)
    }

    /// When it must be looked at.
    fn wake(&self) -> Option<Time> {
        let sooner = |time: Time| self.label.expires.map_or(time, |expires| expires.min(time));
        match self.stand {
            Stand::Ready => self.label.expires,
            Stand::Delayed(until) => Some(sooner(until)),
            // Whoever has it may finish.
            Stand::Leased(until) | Stand::Retry(until) => Some(until),
            Stand::Settling => None,
        }
    }

    fn rank(&self, id: MessageId) -> (u8, MessageId) {
        (u8::MAX - self.label.priority, id)
    }
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

    /// Of what would be given next, its rank (the smaller the sooner) and its id.
    pub(super) fn first_ready(&self) -> Option<(u8, MessageId)> {
        self.ready.first().copied()
    }

    pub(super) fn kept(&self) -> &BTreeMap<MessageId, Slip> {
        &self.kept
    }

    pub(super) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Those that have not left.
    pub(super) fn messages(&self) -> &BTreeMap<MessageId, Slip> {
        &self.messages
    }

    /// A message, kept ones included.
    pub(super) fn slip(&self, id: MessageId) -> Option<&Slip> {
        self.messages.get(&id).or_else(|| self.kept.get(&id))
    }

    /// A message arrives, or comes back from those that are kept.
    pub(super) fn insert(&mut self, now: Time, id: MessageId, slip: Slip) {
        self.bytes += slip.size;
        if let Some(key) = slip.label.key.clone() {
            let line = self.lines.entry(key).or_default();
            let first = line.first().copied();
            line.insert(id);
            // Only what comes back to its old place comes before others.
            if let Some(first) = first.filter(|first| id < *first)
                && let Some(behind) = self.messages.get(&first)
            {
                self.ready.remove(&behind.rank(first));
            }
        }
        let stand = match slip.label.due {
            Some(due) if due > now => Stand::Delayed(due),
            _ => Stand::Ready,
        };
        self.messages.insert(id, Slip { stand: Stand::Settling, lease: Lease(0), ..slip });
        self.place(id, stand);
    }

    /// A message arrives among those that are kept.
    pub(super) fn insert_kept(&mut self, id: MessageId, slip: Slip) {
        self.kept_bytes += slip.size;
        self.kept.insert(id, slip);
    }

    /// Notes how often a message was delivered before a restart.
    pub(super) fn restore_deliveries(&mut self, id: MessageId, deliveries: u32) {
        if let Some(slip) = self.messages.get_mut(&id) {
            slip.deliveries = slip.deliveries.max(deliveries);
        }
    }

    /// Notes that a newer copy of a message lies at `place`, and gives its old place; `None` when it is not here.
    pub(super) fn relocate(&mut self, id: MessageId, place: Option<u64>) -> Option<Option<u64>> {
        let slip = self.messages.get_mut(&id).or_else(|| self.kept.get_mut(&id))?;
        Some(std::mem::replace(&mut slip.place, place))
    }

    /// Gives the first ready message, leased for `lease`.
    pub(super) fn take(&mut self, now: Time, lease: Duration) -> Option<Taken> {
        let (_, id) = self.ready.first().copied()?;
        self.place(id, Stand::Leased(now + lease));
        let slip = self.messages.get_mut(&id)?;
        self.leases += 1;
        slip.lease = Lease(self.leases);
        slip.deliveries = slip.deliveries.saturating_add(1);
        Some(Taken { id, lease: slip.lease, deliveries: slip.deliveries })
    }

    /// Prolongs a lease; false when it is lost.
    pub(super) fn renew(&mut self, now: Time, id: MessageId, lease: Lease, duration: Duration) -> bool {
        if !self.holds(id, lease) {
            return false;
        }
        self.place(id, Stand::Leased(now + duration));
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
        self.come_back(now, id, delay, deliveries_max);
        true
    }

    /// The message that this lease may still settle.
    pub(super) fn settleable(&self, id: MessageId, lease: Lease) -> Option<&Slip> {
        // An expired lease still counts while nobody else got the message: the work was done once.
        self.messages
            .get(&id)
            .filter(|slip| slip.lease == lease && matches!(slip.stand, Stand::Leased(_) | Stand::Ready))
    }

    /// Takes a message out of everyone's reach while its end is being stored.
    pub(super) fn settle(&mut self, id: MessageId) {
        self.place(id, Stand::Settling);
    }

    /// The end of a message is stored: it goes.
    pub(super) fn remove(&mut self, id: MessageId) -> Option<Slip> {
        self.place(id, Stand::Settling);
        self.doomed.remove(&id);
        let slip = self.messages.remove(&id)?;
        self.bytes -= slip.size;
        if let Some(key) = &slip.label.key
            && let Some(line) = self.lines.get_mut(key)
        {
            line.remove(&id);
            match line.first().copied() {
                Some(next) => self.offer(next),
                None => drop(self.lines.remove(key)),
            }
        }
        Some(slip)
    }

    /// A kept message goes.
    pub(super) fn remove_kept(&mut self, id: MessageId) -> Option<Slip> {
        let slip = self.kept.remove(&id)?;
        self.kept_bytes -= slip.size;
        Some(slip)
    }

    /// A message's end could not be stored: it is ready again after `delay`.
    pub(super) fn unsettle(&mut self, now: Time, id: MessageId, delay: Duration) {
        if self.messages.get(&id).is_none_or(|slip| slip.stand != Stand::Settling) {
            return;
        }
        if delay.is_zero() {
            self.come_back(now, id, delay, None);
        } else {
            self.place(id, Stand::Retry(now + delay));
        }
    }

    /// Does what is due: what was delayed is ready, what was held comes back, what has expired is doomed.
    pub(super) fn expire(&mut self, now: Time, deliveries_max: Option<u32>) {
        while let Some((due, id)) = self.timers.first().copied()
            && due <= now
        {
            self.come_back(now, id, Duration::ZERO, deliveries_max);
        }
    }

    /// Gives up what was delivered so often, when that is known only now: what is not ready is looked at when it comes back.
    /// True if there was something.
    pub(super) fn give_up(&mut self, deliveries_max: Option<u32>) -> bool {
        let Some(max) = deliveries_max else { return false };
        let is_over = |slip: &Slip| slip.stand == Stand::Ready && slip.deliveries >= max;
        let over: Vec<_> =
            self.messages.iter().filter(|(_, slip)| is_over(slip)).map(|(id, _)| *id).collect();
        for id in &over {
            self.place(*id, Stand::Settling);
            self.doomed.insert(*id, DeadReason::Deliveries);
        }
        !over.is_empty()
    }

    /// The next message that must be taken out, and why; it is out of everyone's reach.
    pub(super) fn next_doomed(&mut self) -> Option<(MessageId, DeadReason)> {
        self.doomed.pop_first()
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.timers.first().map(|(due, _)| *due)
    }

    fn holds(&self, id: MessageId, lease: Lease) -> bool {
        self.messages
            .get(&id)
            .is_some_and(|slip| slip.lease == lease && matches!(slip.stand, Stand::Leased(_)))
    }

    fn come_back(&mut self, now: Time, id: MessageId, delay: Duration, deliveries_max: Option<u32>) {
        let Some(slip) = self.messages.get_mut(&id) else { return };
        let doom = if slip.is_expired(now) {
            Some(DeadReason::Expired)
        } else if deliveries_max.is_some_and(|max| slip.deliveries >= max) {
            Some(DeadReason::Deliveries)
        } else {
            None
        };
        if let Some(reason) = doom {
            self.place(id, Stand::Settling);
            self.doomed.insert(id, reason);
        } else if delay.is_zero() {
            self.place(id, Stand::Ready);
        } else {
            // A delayed message belongs to nobody: the lease that gave it back is over.
            slip.lease = Lease(0);
            self.place(id, Stand::Delayed(now + delay));
        }
    }

    /// A planted bug: nobody of its key waits for this message any more.
    #[cfg(test)]
    pub(super) fn open_key(&mut self, id: MessageId) {
        let Some(key) = self.messages.get(&id).and_then(|slip| slip.label.key.clone()) else { return };
        if let Some(line) = self.lines.get_mut(&key) {
            line.remove(&id);
            if let Some(next) = line.first().copied() {
                self.offer(next);
            }
        }
    }

    /// Moves a message to another stand, with all that depends on it.
    fn place(&mut self, id: MessageId, stand: Stand) {
        let Some(slip) = self.messages.get_mut(&id) else { return };
        if let Some(wake) = slip.wake() {
            self.timers.remove(&(wake, id));
        }
        if slip.stand == Stand::Ready {
            self.ready.remove(&slip.rank(id));
        }
        slip.stand = stand;
        if let Some(wake) = slip.wake() {
            self.timers.insert((wake, id));
        }
        self.offer(id);
    }

    /// Lets a message be given if it is ready and the first of its key.
    fn offer(&mut self, id: MessageId) {
        let Some(slip) = self.messages.get(&id) else { return };
        let is_first = match &slip.label.key {
            None => true,
            Some(key) => self.lines.get(key).is_none_or(|line| line.first() == Some(&id)),
        };
        if slip.stand == Stand::Ready && is_first {
            self.ready.insert(slip.rank(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_core::{RngCore, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

    use super::*;

    impl Shelf {
        /// What should be given: by looking at all.
        fn first_by_looking(&self) -> Option<MessageId> {
            let is_first = |id: &MessageId, slip: &Slip| {
                let mut earlier = self.messages.range(..*id).map(|(_, other)| &other.label.key);
                slip.label.key.is_none() || earlier.all(|key| *key != slip.label.key)
            };
            let ready =
                self.messages.iter().filter(|(id, slip)| slip.stand == Stand::Ready && is_first(id, slip));
            ready.min_by_key(|(id, slip)| slip.rank(**id)).map(|(id, _)| *id)
        }
    }

    /// Random consumers against a shelf: at each moment every message stands in exactly one place, nobody gets a
    /// message while another's lease on it runs, and what is given is the first by priority that is ready and the oldest of
    /// its key.
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
                        let key = (any.is_multiple_of(2)).then(|| Bytes::from(vec![(any % 5) as u8]));
                        let label = Label { priority: (any % 3) as u8, key, ..Label::default() };
                        let slip = Slip::new(None, any % 10, label, None, 0, Durability::Memory);
                        shelf.insert(now, MessageId::from_u64(put), slip);
                        put += 1;
                    }
                    2 | 3 => {
                        let first = shelf.first_by_looking();
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
                        if shelf.settleable(id, lease).is_some() {
                            shelf.settle(id);
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
                    _ => settling.extend(shelf.next_doomed().map(|(id, _)| id)),
                }
                assert_eq!(shelf.len() as u64, put - gone, "seed {seed}");
                let ready = shelf.messages.values().filter(|slip| slip.stand == Stand::Ready).count();
                let places = ready + shelf.timers.len() + shelf.doomed.len() + settling.len();
                assert_eq!(places, shelf.len(), "seed {seed}");
                assert_eq!(shelf.bytes, shelf.messages.values().map(|slip| slip.size).sum::<usize>());
            }
        }
    }
}
