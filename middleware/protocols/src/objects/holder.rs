//! The holder's role: what is held of whom, what its owners still have to be told, and how long they keep it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Change, Objects, ObjectsConfig, ObjectsEvent, ObjectsMessage, Reference, Standing};
use crate::machine::{Lane, Outputs, ProcessId, Violation};
use crate::planted::Planted;
use crate::time::Time;

/// A process of whose objects this one holds some.
#[derive(Debug)]
pub(super) struct Owner {
    epoch: u64,
    /// The number of the first change that is not confirmed.
    first: u64,
    unconfirmed: VecDeque<Change>,
    pub(super) held: BTreeMap<u64, Held>,
    /// Until then the owner keeps what is registered.
    lease_until: Time,
    /// When it is given up unless it gets on.
    given_up_at: Time,
    word: OwnersWord,
    /// It has answered, in whichever session.
    is_heard: bool,
    /// The node that brought the first of its references.
    brought_by: u64,
    /// The number after the last change that it was told.
    told: u64,
    /// When it is told again.
    tell_at: Time,
    /// The pause before changes are told again; grows up to the renewal.
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnersWord {
    /// It is told what is held, and expected to answer.
    Expected,
    /// It did not for so long that it is told nothing any more. When there is a sign of it, it is told anew.
    GivenUp,
    /// Its life is over.
    Ended,
}

/// A reference that is held.
#[derive(Debug)]
pub(super) struct Held {
    uses: u64,
    pins: u64,
    state: State,
    /// Until then whoever brought it last is taken to keep it, when the owner does not do so yet.
    brought_until: Time,
    /// Who is to be told when it is registered: of each the last pin, which is the one that lasts longest.
    senders: BTreeMap<ProcessId, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// By the change with this number.
    Registering(u64),
    Registered,
    Gone,
    Refused,
}

impl Owner {
    /// The owner is told no more: there is nothing to say, or nobody to say it to.
    fn is_silent(&self) -> bool {
        self.word != OwnersWord::Expected || (self.held.is_empty() && self.unconfirmed.is_empty())
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.is_silent()).then_some(self.tell_at)
    }

    /// Has the owner told of a change with the batch that leaves next.
    fn push(&mut self, now: Time, number: u64, is_held: bool) -> u64 {
        self.unconfirmed.push_back(Change { number, is_held });
        self.tell_at = self.tell_at.min(now);
        self.first + self.unconfirmed.len() as u64 - 1
    }

    /// Everything that is held is claimed anew, in a session of its own.
    fn begin_session(&mut self, now: Time, epoch: u64) {
        self.word = OwnersWord::Expected;
        self.epoch = epoch;
        self.first = 1;
        self.unconfirmed.clear();
        self.told = 1;
        // Nothing is known to be kept until it is confirmed.
        self.lease_until = Time::ZERO;
        for (number, held) in &mut self.held {
            if matches!(held.state, State::Registered | State::Registering(_)) {
                self.unconfirmed.push_back(Change { number: *number, is_held: true });
                held.state = State::Registering(self.unconfirmed.len() as u64);
            }
        }
        self.tell_at = now;
        self.pause = RETRY_MIN;
    }

    pub(super) fn check(&self, id: ProcessId, pinned: &impl Fn(Reference) -> u64) -> Result<(), Violation> {
        for (number, held) in &self.held {
            let reference = Reference { owner: id, number: *number };
            if held.pins != pinned(reference) {
                return Err(Violation(format!("a holder miscounts what is on its way: {reference}")));
            }
            if held.uses == 0 && held.pins == 0 {
                return Err(Violation(format!("a holder holds what nobody uses: {reference}")));
            }
        }
        Ok(())
    }
}

impl Objects {
    pub(super) fn standing_of_held(&self, now: Time, reference: Reference) -> Standing {
        let Some(owner) = self.owners.get(&reference.owner) else { return Standing::Unknown };
        let Some(held) = owner.held.get(&reference.number) else { return Standing::Unknown };
        match held.state {
            State::Gone => Standing::ObjectGone,
            State::Refused => Standing::Refused,
            _ if owner.word == OwnersWord::Ended => Standing::OwnerEnded,
            _ if owner.word == OwnersWord::GivenUp => Standing::OwnerSilent,
            State::Registered if now < owner.lease_until => Standing::Held,
            State::Registering(_) if now < owner.lease_until.max(held.brought_until) => Standing::Arriving,
            State::Registered | State::Registering(_) => Standing::OwnerSilent,
        }
    }

    /// Until when the owner is known to keep what is registered with it; for the simulator.
    pub fn lease_until(&self, owner: ProcessId) -> Option<Time> {
        self.owners.get(&owner).map(|owner| owner.lease_until)
    }

    /// True when one reference more may be taken from a process: within the limits, and those of its owner get on.
    pub fn may_take(&self, reference: Reference, from: ProcessId) -> bool {
        if reference.owner == self.me {
            return true;
        }
        let Some(owner) = self.owners.get(&reference.owner) else {
            let is_unheard_of_his = |owner: &&Owner| !owner.is_heard && owner.brought_by == from.node;
            let limit = self.config.owners_max;
            return self.held < self.config.held_max
                && self.owners.len() < limit
                // Whoever invents owners leaves room for those whom others bring.
                && self.owners.values().filter(is_unheard_of_his).count() < limit.div_ceil(OWNERS_SHARE);
        };
        owner.held.contains_key(&reference.number)
            || (self.held < self.config.held_max
                && owner.unconfirmed.len() <= owner.held.len() + UNCONFIRMED_BEYOND_HELD)
    }

    fn held_mut(&mut self, reference: Reference) -> Option<&mut Held> {
        self.owners.get_mut(&reference.owner)?.held.get_mut(&reference.number)
    }

    /// False when it is not held.
    pub(super) fn pin_held(&mut self, reference: Reference) -> bool {
        self.held_mut(reference).map(|held| held.pins += 1).is_some()
    }

    pub(super) fn unpin_held(&mut self, now: Time, reference: Reference, out: &mut Outputs<Self>) {
        if let Some(held) = self.held_mut(reference) {
            held.pins -= 1;
            self.give_back(now, reference, out);
        }
    }

    pub(super) fn release_held(&mut self, now: Time, reference: Reference, out: &mut Outputs<Self>) {
        if let Some(held) = self.held_mut(reference) {
            held.uses = held.uses.saturating_sub(1);
            self.give_back(now, reference, out);
        }
    }

    /// Tells the owner when the reference is not held any more.
    fn give_back(&mut self, now: Time, reference: Reference, out: &mut Outputs<Self>) {
        let ignores_pins = self.config.plant.has(Planted::ObjectsCleanWhilePinned);
        let Some(owner) = self.owners.get_mut(&reference.owner) else { return };
        let Some(held) = owner.held.get(&reference.number) else { return };
        if held.uses > 0 || (held.pins > 0 && !ignores_pins) {
            return;
        }
        if held.pins > 0 {
            // The planted bug: told, although it is still on its way to somebody.
            owner.push(now, reference.number, false);
            return;
        }
        let state = held.state;
        let senders = owner.held.remove(&reference.number).map(|held| held.senders).unwrap_or_default();
        self.held -= 1;
        if owner.word == OwnersWord::Expected && state != State::Gone {
            owner.push(now, reference.number, false);
        }
        if owner.held.is_empty() {
            // After a lease without a word the owner keeps nothing of what it has not heard by then.
            owner.given_up_at = owner.given_up_at.min(now + self.config.lease);
            // One that was told nothing, or is told nothing any more, has nothing to forget.
            if owner.is_silent() || (owner.first, owner.told) == (1, 1) {
                self.owners.remove(&reference.owner);
            }
        }
        // What is not used any more need not be kept on its way here.
        for (sender, pin) in senders {
            self.say_arrived(now, sender, vec![pin], out);
        }
    }

    pub(super) fn arrive_held(
        &mut self,
        now: Time,
        reference: Reference,
        from: ProcessId,
        pin: u64,
        out: &mut Outputs<Self>,
    ) {
        // Whoever brings it has it from its owner.
        self.on_sign(now, reference.owner);
        let (epochs, lease) = (&mut self.epochs, holders_lease(&self.config));
        let owner = self.owners.entry(reference.owner).or_insert_with(|| {
            *epochs += 1;
            Owner {
                epoch: *epochs,
                first: 1,
                unconfirmed: VecDeque::new(),
                held: BTreeMap::new(),
                // What is not registered relies on its sender; this is when its silence is told.
                lease_until: now + lease,
                given_up_at: Time::ZERO,
                word: OwnersWord::Expected,
                is_heard: false,
                brought_by: from.node,
                told: 1,
                tell_at: now,
                pause: RETRY_MIN,
            }
        });
        if owner.held.is_empty() {
            owner.given_up_at = now + self.config.lease * GIVEN_UP_LEASES;
        }
        if !owner.held.contains_key(&reference.number) {
            let state = match owner.word {
                OwnersWord::Ended => State::Registered,
                _ => State::Registering(owner.push(now, reference.number, true)),
            };
            let fresh = Held { uses: 0, pins: 0, state, brought_until: now, senders: BTreeMap::new() };
            owner.held.insert(reference.number, fresh);
            self.held += 1;
        }
        let Some(held) = owner.held.get_mut(&reference.number) else { return };
        held.uses += 1;
        held.brought_until = now + lease;
        match held.state {
            _ if owner.word == OwnersWord::Ended => out.event(ObjectsEvent::Dangling(reference)),
            State::Registered if now < owner.lease_until => {}
            // Until the owner has confirmed it, or that the lease still runs, the sender keeps it.
            State::Registering(_) | State::Registered => {
                if let Some(earlier) = held.senders.insert(from, pin) {
                    self.say_arrived(now, from, vec![earlier], out);
                }
                return;
            }
            State::Gone | State::Refused => out.event(ObjectsEvent::Dangling(reference)),
        }
        self.say_arrived(now, from, vec![pin], out);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_known(
        &mut self,
        now: Time,
        from: ProcessId,
        epoch: u64,
        stamp: u64,
        next: u64,
        (gone, refused): (&[u64], &[u64]),
        out: &mut Outputs<Self>,
    ) {
        let Some(owner) = self.owners.get_mut(&from) else { return };
        if owner.epoch != epoch || owner.word != OwnersWord::Expected {
            return;
        }
        let end = owner.first + owner.unconfirmed.len() as u64;
        if next > end {
            return; // not ours
        }
        // From the sending of what is answered here: the owner counts from its receipt, which was later.
        let counts_from = match self.config.plant.has(Planted::ObjectsLeaseFromAnswer) {
            true => now,
            false => Time::from_nanos(stamp).min(now),
        };
        owner.lease_until = owner.lease_until.max(counts_from + holders_lease(&self.config));
        owner.is_heard = true;
        // One that answers and confirms nothing does not get on.
        if next > owner.first || owner.unconfirmed.is_empty() {
            owner.given_up_at = now + self.config.lease * GIVEN_UP_LEASES;
        }
        let mut senders: BTreeMap<ProcessId, Vec<u64>> = BTreeMap::new();
        if next > owner.first {
            let confirmed = owner.unconfirmed.drain(..(next - owner.first) as usize);
            for (number, change) in (owner.first..).zip(confirmed) {
                if let Some(held) = owner.held.get_mut(&change.number)
                    && held.state == State::Registering(number)
                {
                    let lost = |list: &[u64]| list.contains(&change.number);
                    held.state = if lost(gone) {
                        State::Gone
                    } else if lost(refused) {
                        State::Refused
                    } else {
                        State::Registered
                    };
                    if held.state != State::Registered {
                        self.stats.dangling += 1;
                        let reference = Reference { owner: from, number: change.number };
                        out.event(ObjectsEvent::Dangling(reference));
                    }
                }
            }
            owner.first = next;
        }
        let is_kept = now < owner.lease_until;
        for held in owner.held.values_mut() {
            let waits = match held.state {
                State::Registering(_) => true,
                State::Registered => !is_kept,
                State::Gone | State::Refused => false,
            };
            if !waits {
                for (sender, pin) in std::mem::take(&mut held.senders) {
                    senders.entry(sender).or_default().push(pin);
                }
            }
        }
        owner.pause = RETRY_MIN;
        if owner.unconfirmed.is_empty() {
            owner.tell_at = now + renewal(&self.config);
        } else if owner.told < end {
            owner.tell_at = now; // there was more than one message holds
        }
        if owner.is_silent() {
            self.owners.remove(&from);
        }
        for (sender, pins) in senders {
            self.say_arrived(now, sender, pins, out);
        }
    }

    /// The owner has forgotten the session: it ended without our knowing. Everything is claimed again.
    pub(super) fn on_unknown(&mut self, now: Time, from: ProcessId, epoch: u64) {
        let Some(owner) = self.owners.get_mut(&from) else { return };
        if owner.epoch != epoch || owner.word != OwnersWord::Expected {
            return;
        }
        owner.is_heard = true;
        self.epochs += 1;
        // It does not get on by that: it may say so again and again.
        owner.begin_session(now, self.epochs);
        if owner.is_silent() {
            self.owners.remove(&from);
        }
    }

    /// There is a sign that this life of an owner goes on: one that was given up is told what is held of it.
    pub(super) fn on_sign(&mut self, now: Time, id: ProcessId) {
        let given_up = |owner: &&mut Owner| owner.word == OwnersWord::GivenUp;
        if let Some(owner) = self.owners.get_mut(&id).filter(given_up) {
            self.epochs += 1;
            owner.begin_session(now, self.epochs);
            owner.given_up_at = now + self.config.lease * GIVEN_UP_LEASES;
        }
    }

    /// That life of the owner is over: what is held of it will never be there again.
    pub(super) fn owner_ended(&mut self, now: Time, id: ProcessId, out: &mut Outputs<Self>) {
        if let Some(owner) = self.owners.get(&id).filter(|owner| owner.word != OwnersWord::Ended) {
            for (number, held) in &owner.held {
                if matches!(held.state, State::Registered | State::Registering(_)) {
                    self.stats.dangling += 1;
                    out.event(ObjectsEvent::Dangling(Reference { owner: id, number: *number }));
                }
            }
            self.silence(now, id, OwnersWord::Ended, out);
        }
    }

    /// The owner is told nothing any more.
    fn silence(&mut self, now: Time, id: ProcessId, word: OwnersWord, out: &mut Outputs<Self>) {
        let Some(owner) = self.owners.get_mut(&id) else { return };
        owner.word = word;
        owner.unconfirmed.clear();
        let held = owner.held.values_mut();
        let senders: Vec<_> = held.flat_map(|held| std::mem::take(&mut held.senders)).collect();
        if owner.held.is_empty() {
            self.owners.remove(&id);
        }
        for (sender, pin) in senders {
            self.say_arrived(now, sender, vec![pin], out);
        }
    }

    /// Tells every owner, once, that nothing is held any more. Whom it does not reach, the lease tells.
    pub(super) fn say_goodbye(&mut self, now: Time, out: &mut Outputs<Self>) {
        for owner in self.owners.values_mut().filter(|owner| owner.word == OwnersWord::Expected) {
            let numbers: Vec<u64> = owner.held.keys().copied().collect();
            for number in numbers {
                owner.push(now, number, false);
            }
        }
        self.tell_owners(now, out);
        let owners: Vec<ProcessId> = self.owners.keys().copied().collect();
        for owner in owners {
            self.owner_ended(now, owner, out);
        }
    }

    /// Sends each owner that is due its changes, or a renewal.
    pub(super) fn tell_owners(&mut self, now: Time, out: &mut Outputs<Self>) {
        let due = self.owners.iter().filter(|(_, owner)| owner.deadline().is_some_and(|at| at <= now));
        let due: Vec<ProcessId> = due.map(|(id, _)| *id).collect();
        for id in due {
            let Some(owner) = self.owners.get_mut(&id) else { continue };
            if now >= owner.given_up_at {
                self.silence(now, id, OwnersWord::GivenUp, out);
                continue;
            }
            let changes: Vec<Change> = owner.unconfirmed.iter().take(CHANGES_PER_MESSAGE).copied().collect();
            owner.told = owner.told.max(owner.first + changes.len() as u64);
            let message = ObjectsMessage::Claims {
                epoch: owner.epoch,
                stamp: now.as_nanos(),
                first: owner.first,
                changes,
            };
            out.send(id, Lane::Control, message);
            owner.tell_at = now + owner.pause.min(renewal(&self.config));
            owner.pause = (owner.pause * 2).min(renewal(&self.config));
        }
    }
}

/// How long a holder relies on what the owner grants: short enough that clocks may differ in rate by a tenth.
fn holders_lease(config: &ObjectsConfig) -> Duration {
    config.lease * 3 / 4
}

/// How often a holder says that it lives: two of these may be lost before it loses its lease.
fn renewal(config: &ObjectsConfig) -> Duration {
    config.lease / 4
}

/// The first pause before unconfirmed changes are told again; doubles up to the renewal.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Changes in one message: 9 KiB.
const CHANGES_PER_MESSAGE: usize = 1024;
/// An owner that confirms nothing for so many leases is told nothing any more until there is a sign of it; one of which
/// nothing is held, after a single lease.
const GIVEN_UP_LEASES: u32 = 10;
/// What part of all owners one node may bring of which none has answered yet.
const OWNERS_SHARE: usize = 4;
/// Changes that an owner has not confirmed, beyond those that say what is held now: further references of it are refused.
/// Eight full messages; an owner that answers within a second confirms as many in it.
const UNCONFIRMED_BEYOND_HELD: usize = 8 * CHANGES_PER_MESSAGE;
