//! Keeping the log short: cutting it behind what is still needed, and writing again what is old and still needed.

use std::collections::{BTreeMap, BTreeSet};

use quorate_protocols::Time;

use super::books::{Books, Need, RECORDS_BYTES, Unit};
use super::message::{Label, MessageId};
use super::planted::Bug;
use super::record::{Put, Step};
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
            upkeep.moves = self.plan_moves((log.segment_bytes / 8).min(MOVED_BYTES_MAX));
        }
        upkeep
    }

    fn plan_moves(&mut self, bytes_max: u64) -> Option<Unit> {
        let mut bytes = 0;
        let mut steps = Vec::new();
        let mut names: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        let mut moved = BTreeSet::new();
        for need in self.oldest_needs() {
            let size = match need {
                Need::Message(queue, id) => {
                    if !moved.insert((queue, id)) {
                        continue;
                    }
                    let Some(put) = self.again(queue, id) else { continue };
                    let size = put.payload.len();
                    steps.push(Step::Put(put));
                    size
                }
                Need::Name(queue, id) => {
                    let name = self.desks.get(&queue).and_then(|desk| desk.seen.name(id)).cloned();
                    let Some(name) = name else { continue };
                    let size = name.len();
                    names.entry(queue).or_default().push((id, name));
                    size
                }
                Need::Cell(key) => {
                    let Some(cell) = self.cells.get(&key).filter(|_| !self.coming_cells.contains_key(&key))
                    else {
                        continue;
                    };
                    let size = key.len() + cell.value.len();
                    steps.push(Step::Cell { key: key.clone(), value: Some(cell.value.clone()) });
                    size
                }
            };
            bytes += size as u64 + RECORDS_BYTES;
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
        if desk.sweeping > 0 || kept.is_empty() {
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
