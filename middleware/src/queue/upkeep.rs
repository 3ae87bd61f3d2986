//! Keeping the log short: cutting it behind what is still needed, and writing again what is old and still needed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_protocols::Time;

use super::books::{Books, Need, RECORDS_BYTES, Unit};
use super::message::{Label, MessageId};
use super::planted::Bug;
use super::record::{Put, Step, Why};
use super::shelf::Stand;

/// How the log stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogSize {
    pub(super) first: u64,
    pub(super) segments: u64,
    pub(super) segment_bytes: u64,
}

/// What is to be done for it, in this order.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// To be stored before the cut.
    pub(super) floor: Option<Unit>,
    pub(super) cut: Option<u64>,
    /// To be stored: what lay at the log's beginning, again.
    pub(super) moves: Option<Unit>,
}

/// What is written again.
enum Again {
    Step(Step),
    Name(u32, MessageId, Bytes),
}

impl Books {
    /// What is to be done when so much went that nobody needs any more: a quarter of a segment.
    pub(super) fn upkeep(&mut self, log: LogSize) -> Upkeep {
        let mut upkeep = Upkeep::default();
        self.idle_bytes = 0;
        // Not the log's end: what is stored there may not have been done here yet.
        let done = if self.has(Bug::CutsWhatIsNotDone) { u64::MAX } else { self.done };
        let near = self.needed.first().map(|(place, _)| *place);
        let far = self.desks.values().filter_map(|desk| desk.distance.place_min());
        let far = far.filter(|_| !self.has(Bug::CutsWhatIsFar));
        let oldest = far.chain(near).min().unwrap_or(done);
        if log.first < oldest {
            // What tells which ids were given out may go with the cut.
            upkeep.floor = Some(Unit::of(vec![Step::Floor { next: self.next }]));
            upkeep.cut = Some(oldest);
        }
        let payloads: usize = self.desks.values().map(|desk| desk.bytes() + desk.shelf.kept_bytes()).sum();
        let far: usize = self.desks.values().map(|desk| desk.distance.len()).sum();
        let needed = (payloads + self.cell_bytes) as u64 + (self.needed.len() + far) as u64 * RECORDS_BYTES;
        let segments = SEGMENTS_MIN + SEGMENTS_PER_NEEDED * needed / log.segment_bytes;
        if !self.is_moving && log.segments > segments {
            // Half of what went: so moving never writes more than the users do, and is done after a bounded time.
            let bytes_max = (log.segment_bytes / 8).min(MOVED_BYTES_MAX);
            upkeep.moves = self.plan_moves(bytes_max, log.segment_bytes / 2);
        }
        upkeep
    }

    /// The queues of which something may be kept too long once this is done.
    pub(super) fn keeping(&self, unit: &Unit) -> BTreeSet<u32> {
        let keeps = |queue: &u32| self.desks.get(queue).is_some_and(|desk| !desk.shelf.kept().is_empty());
        let queue = |step: &Step| match step {
            Step::Gone { queue, why: Why::Kept, .. } | Step::Sought { queue, .. } => Some(*queue),
            Step::Gone { queue, .. } => Some(*queue).filter(keeps),
            _ => None,
        };
        unit.steps.iter().filter_map(queue).collect()
    }

    /// Stops behind `bytes_max`; one append holds `unit_bytes_max` in any case.
    fn plan_moves(&mut self, bytes_max: u64, unit_bytes_max: u64) -> Option<Unit> {
        let mut bytes = 0;
        let mut steps = Vec::new();
        let mut names: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        let mut moved = BTreeSet::new();
        for need in self.oldest_needs() {
            let again = match need {
                Need::Message(queue, id) => {
                    if !moved.insert((queue, id)) {
                        continue;
                    }
                    self.again(queue, id).map(|put| (put.payload.len(), Again::Step(Step::Put(put))))
                }
                Need::Name(queue, id) => {
                    let name = self.desks.get(&queue).and_then(|desk| desk.seen.name(id)).cloned();
                    name.map(|name| (name.len(), Again::Name(queue, id, name)))
                }
                Need::Cell(key) => {
                    let cell = self.cells.get(&key).filter(|_| !self.coming_cells.contains_key(&key));
                    cell.map(|cell| {
                        let step = Step::Cell { key: key.clone(), value: Some(cell.value.clone()) };
                        (key.len() + cell.value.len(), Again::Step(step))
                    })
                }
            };
            let Some((size, again)) = again else { continue };
            bytes += size as u64 + RECORDS_BYTES;
            // A large one goes alone: what one append does not hold would be tried again for ever.
            let is_first = steps.is_empty() && names.is_empty();
            if bytes > unit_bytes_max && !is_first {
                break;
            }
            match again {
                Again::Step(step) => steps.push(step),
                Again::Name(queue, id, name) => names.entry(queue).or_default().push((id, name)),
            }
            if bytes > bytes_max {
                break;
            }
        }
        steps.extend(names.into_iter().map(|(queue, names)| Step::Named { queue, names }));
        if steps.is_empty() {
            return None;
        }
        let unit = Unit { steps, is_move: true };
        self.is_moving = true;
        for step in &unit.steps {
            self.reserve(step);
        }
        Some(unit)
    }

    /// A message to be written again, unless something is under way that was decided before and would lie before the copy.
    fn again(&self, queue: u32, id: MessageId) -> Option<Put> {
        let desk = self.desks.get(&queue)?;
        if desk.sweeping > 0 && !self.has(Bug::MovesWhatIsBeingPurged) {
            return None;
        }
        let Some(slip) = desk.shelf.slip(id) else {
            let put = self.bodies.read(desk.distance.get(id)?.place).ok()?;
            let again = Some(desk.distance.deliveries(id).or(put.again).unwrap_or(0));
            return Some(Put { label: Label { name: None, ..put.label }, again, ..put });
        };
        let is_kept = desk.shelf.kept().contains_key(&id);
        if !is_kept && slip.stand() == Stand::Settling && !self.has(Bug::MovesWhatIsBeingAcknowledged) {
            return None;
        }
        let mut label = slip.label.clone();
        // The window of names is kept apart.
        label.name = None;
        Some(Put {
            queue,
            id,
            label,
            origin: slip.origin,
            again: Some(slip.deliveries),
            is_kept,
            class: slip.class,
            payload: self.bodies.get(queue, id, slip.place).ok()?,
        })
    }

    /// What the first places of the log that are needed tell, in their order, as far as it is worth while.
    fn oldest_needs(&self) -> Vec<Need> {
        let near = self.needed.iter().take(MOVED_MAX).cloned();
        let far = self.desks.iter().flat_map(|(queue, desk)| {
            let spots = desk.distance.first_places(MOVED_MAX);
            spots.map(|spot| (spot.place, Need::Message(*queue, spot.id)))
        });
        let mut needs: Vec<_> = near.chain(far).collect();
        needs.sort();
        needs.truncate(MOVED_MAX);
        needs.into_iter().map(|(_, need)| need).collect()
    }

    /// Drops what was kept long enough or is too much, when it is worth a record.
    pub(super) fn plan_trim(&mut self, now: Time, queue: u32) -> Option<Unit> {
        let desk = self.desks.get(&queue)?;
        let kept = desk.shelf.kept();
        // Nobody has said yet what is to be kept.
        if !desk.is_opened || desk.sweeping > 0 || kept.is_empty() {
            return None;
        }
        let config = &desk.config;
        let slack = |most: usize| most.saturating_add(most / TRIM_SLACK);
        let too_many = kept.len() > slack(config.retain_messages);
        let too_large = desk.shelf.kept_bytes() > slack(config.bytes_max);
        // Twice the age at most, so that there is one record for many.
        let is_old =
            kept.values().next().is_some_and(|slip| now.since(slip.label.put_at) / 2 > config.retain_age);
        if !(too_many || too_large || is_old) {
            return None;
        }
        let (mut count, mut bytes) = (kept.len(), desk.shelf.kept_bytes());
        let stays = kept.iter().find(|(_, slip)| {
            let stays = count <= config.retain_messages
                && bytes <= config.bytes_max
                && now.since(slip.label.put_at) <= config.retain_age;
            (count, bytes) = (count - 1, bytes - slip.size);
            stays
        });
        let below = stays.map_or(self.next, |(id, _)| *id);
        let unit = Unit::of(vec![Step::Trimmed { queue, below }]);
        self.reserve(&unit.steps[0]);
        Some(unit)
    }
}

/// The journal may have so many segments...
const SEGMENTS_MIN: u64 = 4;
/// ...and so many times the bytes that its messages need, before old ones are written again.
const SEGMENTS_PER_NEEDED: u64 = 3;
/// Written again at a time: more would delay the puts behind them.
const MOVED_BYTES_MAX: u64 = 1 << 20;
/// And so many: with the least payloads these are about as much.
const MOVED_MAX: usize = 8192;
/// Kept messages may be an eighth more than asked for, so that trimming them costs few records.
const TRIM_SLACK: usize = 8;
