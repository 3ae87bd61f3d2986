//! The owner's role: which objects are exported, and who holds them.

use std::collections::BTreeSet;

use super::{Change, Objects, ObjectsEvent, ObjectsMessage};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::time::Time;

/// An object of this process.
#[derive(Debug)]
pub(super) struct Exported {
    /// How often this process uses it itself.
    pub(super) uses: u64,
    /// How often it is on its way.
    pub(super) pins: u64,
    /// Processes that hold it.
    pub(super) holders: u64,
}

impl Exported {
    pub(super) const fn is_garbage(&self) -> bool {
        self.uses == 0 && self.pins == 0 && self.holders == 0
    }
}

/// A process that holds objects of this one.
#[derive(Debug)]
pub(super) struct Holder {
    epoch: u64,
    /// The number of its next change.
    next: u64,
    pub(super) held: BTreeSet<u64>,
    pub(super) expires: Time,
}

impl Objects {
    pub(super) fn holders_of(&self, node: u64) -> impl Iterator<Item = &Holder> {
        let lives = ProcessId { node, incarnation: 0 }..=ProcessId { node, incarnation: u64::MAX };
        self.holders.range(lives).map(|(_, holder)| holder)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_claims(
        &mut self,
        now: Time,
        from: ProcessId,
        epoch: u64,
        stamp: u64,
        first: u64,
        changes: &[Change],
        out: &mut Outputs<Self>,
    ) {
        let later = from.incarnation.saturating_add(1);
        let lives = ProcessId { node: from.node, incarnation: later }..=ProcessId {
            node: from.node,
            incarnation: u64::MAX,
        };
        if self.holders.range(lives).next().is_some() {
            return; // a later life of the same node has spoken: this one is over
        }
        if first.checked_add(changes.len() as u64).is_none() {
            return; // nobody counts so far
        }
        let known = self.holders.get(&from).map(|holder| holder.epoch);
        if known.is_some_and(|known| epoch < known) {
            return;
        }
        let mut before = BTreeSet::new();
        if known != Some(epoch) {
            if first != 1 {
                out.send(from, Lane::Control, ObjectsMessage::Unknown { epoch });
                return;
            }
            let fresh = Holder { epoch, next: 1, held: BTreeSet::new(), expires: now + self.config.lease };
            if let Some(old) = self.holders.insert(from, fresh) {
                before = old.held;
            }
        }
        let Some(holder) = self.holders.get_mut(&from) else { return };
        holder.expires = now + self.config.lease;
        let mut touched = before.clone();
        for (number, change) in (first..).zip(changes) {
            let is_next = number == holder.next || self.config.plant.has(Planted::ObjectsIgnoreOrder);
            if !is_next {
                if number > holder.next {
                    break; // what lies between is still to come
                }
                continue;
            }
            holder.next = holder.next.max(number.saturating_add(1));
            let object = change.number;
            if !change.is_held {
                if holder.held.remove(&object)
                    && let Some(exported) = self.exported.get_mut(&object)
                {
                    exported.holders -= 1;
                    touched.insert(object);
                }
            } else if let Some(exported) = self.exported.get_mut(&object)
                && (holder.held.len() < self.config.holder_max || holder.held.contains(&object))
                && holder.held.insert(object)
            {
                exported.holders += 1;
            }
        }
        let claimed = || changes.iter().filter(|change| change.is_held).map(|change| change.number);
        // What was claimed, is there, and is not held in spite of it; one that was given back since is of no interest.
        let applied = (first..holder.next).zip(changes).filter(|(_, change)| change.is_held);
        let refused = applied.map(|(_, change)| change.number);
        let is_refused = |object: &u64| self.exported.contains_key(object) && !holder.held.contains(object);
        let answer = ObjectsMessage::Known {
            epoch,
            stamp,
            // No further than this message says what it claims: the lists are about nothing else.
            next: holder.next.min(first + changes.len() as u64),
            gone: claimed().filter(|number| !self.exported.contains_key(number)).collect(),
            refused: refused.filter(is_refused).collect(),
        };
        out.send(from, Lane::Control, answer);
        // What the session before held goes only now: the new one may hold the same.
        for number in before {
            if let Some(exported) = self.exported.get_mut(&number) {
                exported.holders -= 1;
            }
        }
        for number in touched {
            self.collect(number, out);
        }
    }

    /// Lets go of what a holder held.
    pub(super) fn forget_holder(&mut self, holder: ProcessId, out: &mut Outputs<Self>) {
        let Some(Holder { held, .. }) = self.holders.remove(&holder) else { return };
        for number in held {
            if let Some(exported) = self.exported.get_mut(&number) {
                exported.holders -= 1;
                self.collect(number, out);
            }
        }
    }

    pub(super) fn end_leases(&mut self, now: Time, out: &mut Outputs<Self>) {
        let over = self.holders.iter().filter(|(_, holder)| holder.expires <= now);
        let over: Vec<ProcessId> = over.map(|(id, _)| *id).collect();
        for id in over {
            if self.config.plant.has(Planted::ObjectsKeepExpired)
                && let Some(holder) = self.holders.get_mut(&id)
            {
                holder.expires = now + self.config.lease;
                continue;
            }
            // One that has given everything back and is silent has not failed.
            if self.holders.get(&id).is_some_and(|holder| !holder.held.is_empty()) {
                self.stats.leases_expired += 1;
            }
            self.forget_holder(id, out);
        }
    }

    /// Takes the object away when nobody holds it.
    pub(super) fn collect(&mut self, number: u64, out: &mut Outputs<Self>) {
        if self.exported.get(&number).is_some_and(Exported::is_garbage) {
            self.exported.remove(&number);
            self.stats.collected += 1;
            out.event(ObjectsEvent::Collected { number });
        }
    }

    pub(super) fn withdraw(&mut self, number: u64, out: &mut Outputs<Self>) {
        if self.exported.remove(&number).is_some() {
            for holder in self.holders.values_mut() {
                holder.held.remove(&number);
            }
            out.event(ObjectsEvent::Collected { number });
        }
    }
}
