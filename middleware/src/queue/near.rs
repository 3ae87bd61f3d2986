//! Which messages are known with all that belongs to them, and which by their place in the log only.
//!
//! Guarantee   what would be given next is near. The order is the same as if all were near: what is far is compared by its
//!             rank with what is near, and brought when it comes first.
//! Limits      [`NEAR_MAX`] messages of a queue that are ready are near, and all that are more than plain: with a key, a
//!             delay, an end, or delivered before.

use std::collections::BTreeMap;

use quorate_journal::ReadError;
use quorate_protocols::Time;

use super::books::{Books, Desk, Need};
use super::far::{Far, Spot};
use super::message::{Label, MessageId};
use super::shelf::Slip;

/// The messages of one queue that are far.
#[derive(Default)]
pub(super) struct Distance {
    /// By their rank.
    far: BTreeMap<u8, Far>,
    /// How often some of them were delivered before a restart.
    deliveries: BTreeMap<MessageId, u32>,
}

impl Distance {
    pub(super) fn len(&self) -> usize {
        self.far.values().map(Far::len).sum()
    }

    /// The sizes of all, added up.
    pub(super) fn bytes(&self) -> usize {
        self.far.values().map(Far::bytes).sum()
    }

    /// The first place in the log that one of them needs.
    pub(super) fn place_min(&self) -> Option<u64> {
        self.far.values().filter_map(Far::place_min).min()
    }

    pub(super) fn get(&self, id: MessageId) -> Option<Spot> {
        self.far.values().find_map(|far| far.get(id))
    }

    /// The oldest one.
    pub(super) fn oldest(&self) -> Option<Spot> {
        self.far.values().filter_map(Far::first).min_by_key(|spot| spot.id)
    }

    /// Of each rank those from `from` on.
    pub(super) fn ranges(&self, from: MessageId) -> impl Iterator<Item = impl Iterator<Item = Spot>> {
        self.far.values().map(move |far| far.range(from))
    }

    pub(super) fn oldest_id(&self) -> Option<MessageId> {
        self.oldest().map(|spot| spot.id)
    }

    /// Of each rank those with the first places in the log, `most` of them and some more.
    pub(super) fn first_places(&self, most: usize) -> impl Iterator<Item = Spot> {
        self.far.values().flat_map(move |far| far.first_places(most))
    }

    /// By their rank.
    pub(super) fn ranks(&self) -> &BTreeMap<u8, Far> {
        &self.far
    }

    pub(super) fn rank(&mut self, rank: u8) -> &mut Far {
        self.far.entry(rank).or_default()
    }

    /// How often some of them were delivered before a restart.
    pub(super) fn delivered(&self) -> &BTreeMap<MessageId, u32> {
        &self.deliveries
    }

    pub(super) fn deliveries(&self, id: MessageId) -> Option<u32> {
        self.deliveries.get(&id).copied()
    }

    /// Takes a message out.
    pub(super) fn take(&mut self, id: MessageId) -> Option<Spot> {
        self.deliveries.remove(&id);
        self.far.values_mut().find_map(|far| far.remove(id))
    }

    /// Takes those before `below` out; gives how many and how large they were.
    pub(super) fn drop_below(&mut self, below: MessageId) -> (usize, usize) {
        self.deliveries = self.deliveries.split_off(&below);
        let gone = self.far.values_mut().map(|far| far.drop_below(below));
        gone.fold((0, 0), |(count, bytes), (more, size)| (count + more, bytes + size))
    }

    /// Notes how often a message was delivered before a restart.
    pub(super) fn restore_deliveries(&mut self, id: MessageId, deliveries: u32) {
        if deliveries > 0 && self.get(id).is_some() {
            let known = self.deliveries.entry(id).or_default();
            *known = deliveries.max(*known);
        }
    }

    /// What comes first of all, with its rank.
    fn first(&self) -> Option<(u8, MessageId)> {
        self.far.iter().find_map(|(rank, far)| Some((*rank, far.first()?.id)))
    }
}

impl Desk {
    /// Messages in the queue, far ones included.
    pub(super) fn len(&self) -> usize {
        self.shelf.len() + self.distance.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.shelf.bytes() + self.distance.bytes()
    }

    pub(super) fn ready(&self) -> usize {
        self.shelf.ready() + self.distance.len()
    }

    /// It has not left.
    pub(super) fn has(&self, id: MessageId) -> bool {
        self.shelf.messages().contains_key(&id) || self.distance.get(id).is_some()
    }
}

impl Books {
    /// A message arrives, or comes again: true if it is far now.
    pub(super) fn put_far(
        &mut self,
        queue: u32,
        (id, label): (MessageId, &Label),
        (place, size): (Option<u64>, usize),
        again: Option<u32>,
        is_kept: bool,
    ) -> bool {
        let (is_bounded, near_max) = (self.bodies.is_bounded(), self.near_max);
        let desk = self.desk(queue);
        let Some(place) = place.filter(|_| is_bounded) else { return false };
        let is_plain = label.key.is_none() && label.due.is_none() && label.expires.is_none() && !is_kept;
        let is_near = |desk: &Desk| again.is_some() && desk.shelf.slip(id).is_some();
        if !is_plain || is_near(desk) {
            return false;
        }
        let far = desk.distance.rank(u8::MAX - label.priority);
        let is_there = again.is_some() && far.relocate(id, place).is_some();
        if !is_there {
            if far.len() == 0 && desk.shelf.ready() < near_max {
                return false;
            }
            far.insert(Spot { id, place, size });
        }
        desk.distance.restore_deliveries(id, again.unwrap_or(0));
        true
    }

    /// Sees to it that the message that would be given next is on the shelf, and its bytes are in memory. Reads from the
    /// disk what is not.
    pub(super) fn bring_near(&mut self, now: Time, queue: u32) -> Result<(), ReadError> {
        let desk = self.desks.entry(queue).or_default();
        // Again when all that came was delivered too often before a restart.
        while let Some((rank, id)) = desk.distance.first()
            && desk.shelf.first_ready().is_none_or(|first| (rank, id) < first)
        {
            let far = desk.distance.far.entry(rank).or_default();
            let mut puts = Vec::new();
            let mut bytes = 0;
            for spot in far.range(id).take(BROUGHT) {
                bytes += spot.size;
                if bytes > BROUGHT_BYTES && !puts.is_empty() {
                    break;
                }
                match self.bodies.read(spot.place) {
                    Ok(put) => puts.push((spot, put)),
                    Err(error) if puts.is_empty() => return Err(error),
                    // Those before it are whole.
                    Err(_) => break,
                }
            }
            far.drop_front(puts.len());
            for (spot, put) in puts {
                let deliveries = desk.distance.deliveries.remove(&spot.id).or(put.again).unwrap_or(0);
                let place = Some(spot.place);
                self.needed.insert((spot.place, Need::Message(queue, spot.id)));
                let slip = Slip::new(place, spot.size, put.label, put.origin, deliveries, put.class);
                desk.shelf.insert(now, spot.id, slip);
                self.bodies.insert(queue, spot.id, put.payload, place);
            }
            let deliveries_max = desk.deliveries_max();
            desk.shelf.give_up(deliveries_max);
        }
        if let Some((_, id)) = desk.shelf.first_ready()
            && !self.bodies.is_near(queue, id)
            && let Some(slip) = desk.shelf.slip(id)
        {
            let payload = self.bodies.get(queue, id, slip.place)?;
            self.bodies.hold(queue, id, payload);
        }
        Ok(())
    }

    /// A message was handed to a consumer: its bytes are not wanted again soon.
    pub(super) fn handed_out(&mut self, queue: u32, id: MessageId) {
        let place = self.desk(queue).shelf.slip(id).and_then(|slip| slip.place);
        self.bodies.release(queue, id, place);
    }

    /// A message of any queue that has not left.
    pub(super) fn has_message(&self, id: MessageId) -> bool {
        self.desks.values().any(|desk| desk.has(id))
    }

    /// When a message was put that is far.
    pub(super) fn put_at(&self, spot: Spot) -> Option<Time> {
        self.bodies.read(spot.place).ok().map(|put| put.label.put_at)
    }
}

/// Messages that are ready and near: at some 300 bytes each.
pub(super) const NEAR_MAX: usize = 1024;
/// Read at a time: enough that a disk streams, little enough to wait for.
const BROUGHT: usize = 256;
const BROUGHT_BYTES: usize = 256 << 10;
