//! The machine: what comes in is given to the role that it is for; references on their way are kept here.

use std::collections::{BTreeMap, BTreeSet};

use super::holder::Owner;
use super::owner::{Exported, Holder};
use super::{ObjectsCommand, ObjectsConfig, ObjectsEvent, ObjectsMessage, ObjectsStats, Reference, Standing};
use crate::machine::{Input, Lane, Machine, Outputs, ProcessId, Violation};
use crate::planted::Planted;
use crate::time::Time;

/// The references of one process: its own objects with their holders, what it holds of others, what it passes on.
#[derive(Debug)]
pub struct Objects {
    pub(super) me: ProcessId,
    pub(super) config: ObjectsConfig,
    pub(super) exported: BTreeMap<u64, Exported>,
    pub(super) holders: BTreeMap<ProcessId, Holder>,
    pub(super) owners: BTreeMap<ProcessId, Owner>,
    /// The number of the last session with any owner.
    pub(super) epochs: u64,
    /// References held of all owners.
    pub(super) held: usize,
    pins: BTreeMap<u64, Pin>,
    /// The same, in the order in which they end.
    ends: BTreeSet<(Time, u64)>,
    /// The same for each node that they go to.
    ends_of: BTreeMap<u64, BTreeSet<(Time, u64)>>,
    pub(super) stats: ObjectsStats,
}

/// A reference on its way.
#[derive(Debug)]
struct Pin {
    reference: Reference,
    to: ProcessId,
    until: Time,
}

impl Objects {
    /// The references of the process `me`, which has none yet. `first`: smaller numbers of sessions were used by earlier
    /// machines of the same life.
    pub fn new(me: ProcessId, first: u64, config: ObjectsConfig) -> Self {
        Self {
            me,
            config,
            exported: BTreeMap::new(),
            holders: BTreeMap::new(),
            owners: BTreeMap::new(),
            epochs: first,
            held: 0,
            pins: BTreeMap::new(),
            ends: BTreeSet::new(),
            ends_of: BTreeMap::new(),
            stats: ObjectsStats::default(),
        }
    }

    /// Whose references they are.
    pub fn me(&self) -> ProcessId {
        self.me
    }

    /// The limits.
    pub fn config(&self) -> &ObjectsConfig {
        &self.config
    }

    /// Objects exported now.
    pub fn exported(&self) -> usize {
        self.exported.len()
    }

    /// True while the object can be called.
    pub fn is_exported(&self, number: u64) -> bool {
        self.exported.contains_key(&number)
    }

    /// References held now.
    pub fn held(&self) -> usize {
        self.held
    }

    /// References on their way now.
    pub fn in_transit(&self) -> usize {
        self.pins.len()
    }

    /// True when a process may be given one object of ours more, as far as is known.
    pub fn may_give(&self, to: ProcessId) -> bool {
        let held: usize = self.holders_of(to.node).map(|holder| holder.held.len()).sum();
        held < self.config.holder_max && self.pinned_for(to.node) < self.pins_share()
    }

    /// References that are on their way to a node.
    fn pinned_for(&self, node: u64) -> usize {
        self.ends_of.get(&node).map_or(0, BTreeSet::len)
    }

    /// How many may be on their way to one node: whoever asks for many and confirms none takes nobody else's.
    fn pins_share(&self) -> usize {
        self.config.pins_max.div_ceil(PINS_SHARE)
    }

    /// What is known of a reference at this moment.
    pub fn standing(&self, now: Time, reference: Reference) -> Standing {
        if reference.owner == self.me {
            return if self.is_exported(reference.number) { Standing::Held } else { Standing::ObjectGone };
        }
        self.standing_of_held(now, reference)
    }

    /// Totals and present numbers.
    pub fn stats(&self) -> ObjectsStats {
        ObjectsStats {
            exported: self.exported.len(),
            holders: self.holders.values().filter(|holder| !holder.held.is_empty()).count(),
            held_by_others: self.holders.values().map(|holder| holder.held.len()).sum(),
            held: self.held(),
            owners: self.owners.len(),
            in_transit: self.pins.len(),
            ..self.stats
        }
    }

    fn depart(&mut self, now: Time, reference: Reference, to: ProcessId, pin: u64, out: &mut Outputs<Self>) {
        if self.config.plant.has(Planted::ObjectsForgetDeparted) {
            return;
        }
        let is_pinned = if reference.owner == self.me {
            self.exported.get_mut(&reference.number).map(|object| object.pins += 1).is_some()
        } else {
            self.pin_held(reference)
        };
        // What is gone already need not be kept; the receiver will be told by its owner.
        if !is_pinned || self.pins.contains_key(&pin) {
            return;
        }
        // For whoever has too many on the way, or else for whoever has most, the oldest is given up.
        let crowded = match self.pinned_for(to.node) >= self.pins_share() {
            true => Some(to.node),
            false if self.pins.len() >= self.config.pins_max => {
                self.ends_of.iter().max_by_key(|(_, ends)| ends.len()).map(|(node, _)| *node)
            }
            false => None,
        };
        let oldest = crowded.and_then(|node| self.ends_of.get(&node)?.first());
        if let Some((_, oldest)) = oldest.copied() {
            self.stats.lost_in_transit += 1;
            self.unpin(now, oldest, out);
        }
        let until = now + self.config.transit;
        self.pins.insert(pin, Pin { reference, to, until });
        self.ends.insert((until, pin));
        self.ends_of.entry(to.node).or_default().insert((until, pin));
    }

    /// A reference is on its way no more.
    pub(super) fn unpin(&mut self, now: Time, pin: u64, out: &mut Outputs<Self>) {
        let Some(Pin { reference, to, until }) = self.pins.remove(&pin) else { return };
        self.ends.remove(&(until, pin));
        if let Some(ends) = self.ends_of.get_mut(&to.node) {
            ends.remove(&(until, pin));
            if ends.is_empty() {
                self.ends_of.remove(&to.node);
            }
        }
        if reference.owner != self.me {
            self.unpin_held(now, reference, out);
        } else if let Some(object) = self.exported.get_mut(&reference.number) {
            object.pins -= 1;
            self.collect(reference.number, out);
        }
    }

    fn on_arrived(&mut self, now: Time, from: ProcessId, pins: &[u64], out: &mut Outputs<Self>) {
        for pin in pins {
            if self.pins.get(pin).is_some_and(|known| known.to.node == from.node) {
                self.unpin(now, *pin, out);
            }
        }
    }

    /// Tells the sender that a reference has come and is safe.
    pub(super) fn say_arrived(&mut self, now: Time, to: ProcessId, pins: Vec<u64>, out: &mut Outputs<Self>) {
        if pins.is_empty() {
            return;
        }
        if to == self.me {
            self.on_arrived(now, to, &pins, out);
        } else {
            out.send(to, Lane::Control, ObjectsMessage::Arrived { pins });
        }
    }

    /// All lives of a node before this one are over.
    fn ended_before(&mut self, now: Time, node: u64, incarnation: u64, out: &mut Outputs<Self>) {
        let earlier = |id: &ProcessId| id.node == node && id.incarnation < incarnation;
        let holders: Vec<ProcessId> = self.holders.keys().filter(|id| earlier(id)).copied().collect();
        for holder in holders {
            self.forget_holder(holder, out);
        }
        let owners: Vec<ProcessId> = self.owners.keys().filter(|id| earlier(id)).copied().collect();
        for owner in owners {
            self.owner_ended(now, owner, out);
        }
        let pins: Vec<u64> = self
            .pins
            .iter()
            .filter(|(_, pin)| pin.to.incarnation != ProcessId::ANY_LIFE && earlier(&pin.to))
            .map(|(pin, _)| *pin)
            .collect();
        for pin in pins {
            self.unpin(now, pin, out);
        }
    }

    fn command(&mut self, now: Time, command: ObjectsCommand, out: &mut Outputs<Self>) {
        match command {
            ObjectsCommand::Export { number } => {
                self.stats.exports += 1;
                self.exported.insert(number, Exported { uses: 1, pins: 0, holders: 0 });
            }
            ObjectsCommand::Withdraw { number } => self.withdraw(number, out),
            ObjectsCommand::Release(reference) if reference.owner == self.me => {
                if let Some(object) = self.exported.get_mut(&reference.number) {
                    object.uses = object.uses.saturating_sub(1);
                    self.collect(reference.number, out);
                }
            }
            ObjectsCommand::Release(reference) => self.release_held(now, reference, out),
            ObjectsCommand::Depart { reference, to, pin } => self.depart(now, reference, to, pin, out),
            ObjectsCommand::Recall { pin } => self.unpin(now, pin, out),
            ObjectsCommand::Arrive { reference, from, pin } if reference.owner == self.me => {
                match self.exported.get_mut(&reference.number) {
                    Some(object) => object.uses += 1,
                    None => out.event(ObjectsEvent::Dangling(reference)),
                }
                self.say_arrived(now, from, vec![pin], out);
            }
            ObjectsCommand::Arrive { reference, from, pin } => {
                self.arrive_held(now, reference, from, pin, out);
            }
            ObjectsCommand::Want(reference) => self.on_sign(now, reference.owner),
            ObjectsCommand::Ended(life) => {
                self.ended_before(now, life.node, life.incarnation.saturating_add(1), out);
            }
            ObjectsCommand::Close => {
                self.say_goodbye(now, out);
                let numbers: Vec<u64> = self.exported.keys().copied().collect();
                for number in numbers {
                    self.withdraw(number, out);
                }
            }
        }
    }
}

impl Machine for Objects {
    type Command = ObjectsCommand;
    type Event = ObjectsEvent;
    type Message = ObjectsMessage;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Command(command) => self.command(now, command, out),
            Input::Received { from, .. } if from == self.me => {}
            Input::Received { from, message } => {
                self.on_sign(now, from);
                match message {
                    ObjectsMessage::Claims { epoch, stamp, first, changes } => {
                        self.on_claims(now, from, epoch, stamp, first, &changes, out);
                    }
                    ObjectsMessage::Known { epoch, stamp, next, gone, refused } => {
                        self.on_known(now, from, epoch, stamp, next, (&gone, &refused), out);
                    }
                    ObjectsMessage::Unknown { epoch } => self.on_unknown(now, from, epoch),
                    ObjectsMessage::Arrived { pins } => self.on_arrived(now, from, &pins, out),
                }
            }
            Input::Reachable(peer) => {
                // A new life of a node is the end of the one before.
                self.ended_before(now, peer.node, peer.incarnation, out);
                self.on_sign(now, peer);
            }
            Input::Unreachable(_) => {}
            Input::Tick => {
                while let Some((_, pin)) = self.ends.first().copied().filter(|(until, _)| *until <= now) {
                    self.stats.lost_in_transit += 1;
                    self.unpin(now, pin, out);
                }
                self.end_leases(now, out);
                self.tell_owners(now, out);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        let pin = self.ends.first().map(|(until, _)| *until);
        let holder = self.holders.values().map(|holder| holder.expires).min();
        let owner = self.owners.values().filter_map(Owner::deadline).min();
        [pin, holder, owner].into_iter().flatten().min()
    }

    fn check(&self) -> Result<(), Violation> {
        let broken = |what: &str, reference: Reference| Err(Violation(format!("{what}: {reference}")));
        if self.held != self.owners.values().map(|owner| owner.held.len()).sum::<usize>() {
            return Err(Violation("what is held is miscounted".to_owned()));
        }
        let by_node: usize = self.ends_of.values().map(BTreeSet::len).sum();
        if self.pins.len() != self.ends.len() || self.pins.len() != by_node {
            return Err(Violation("pins and their ends differ".to_owned()));
        }
        let pinned =
            |reference: Reference| self.pins.values().filter(|pin| pin.reference == reference).count() as u64;
        for (number, object) in &self.exported {
            let reference = Reference { owner: self.me, number: *number };
            let holders = self.holders.values().filter(|holder| holder.held.contains(number)).count() as u64;
            if object.holders != holders || object.pins != pinned(reference) {
                return broken("an object miscounts its holders", reference);
            }
            if object.is_garbage() {
                return broken("an object that nobody holds is still there", reference);
            }
        }
        for (id, owner) in &self.owners {
            owner.check(*id, &pinned)?;
        }
        Ok(())
    }
}

/// What part of all references on their way may go to one node.
const PINS_SHARE: usize = 4;
