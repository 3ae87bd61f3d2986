//! Keeping the journal short: cutting it behind what is still needed, and writing again what is old and still needed.

use std::sync::Arc;

use quorate_journal::{AppendError, Appended, Position};

use super::record::Step;
use super::room::{RECORDS_BYTES, Room, State};

impl Room {
    /// Cuts the journal behind what is still needed, now and then; and when a few old messages keep a long journal
    /// alive, writes them again at its end.
    pub(super) fn tidy(self: &Arc<Self>, state: &mut State) {
        let stats = self.journal.stats();
        if state.removed_bytes < stats.segment_bytes / 4 {
            return;
        }
        state.removed_bytes = 0;
        let end = self.journal.durable();
        let oldest = state.places.first_key_value().map_or(end, |(at, _)| Position::from_u64(*at));
        if self.journal.first() < oldest {
            // A failure shows in the next append.
            let _ = self.journal.truncate_soon(oldest);
        }
        let payloads: usize = state.desks.values().map(|desk| desk.shelf.bytes()).sum();
        let needed = payloads as u64 + state.places.len() as u64 * RECORDS_BYTES;
        let segments = SEGMENTS_MIN + SEGMENTS_PER_NEEDED * needed / stats.segment_bytes;
        if state.is_moving || stats.segments as u64 <= segments {
            return;
        }
        // Half of what went: so moving never writes more than the users do, and is done after a bounded time.
        let bytes_max = (stats.segment_bytes / 8).min(MOVED_BYTES_MAX);
        let mut bytes = 0;
        let mut records = Vec::new();
        let mut moved = Vec::new();
        for (at, (number, id)) in &state.places {
            let Some(message) = state.desks.get(number).and_then(|desk| desk.shelf.message(*id)) else {
                continue;
            };
            // An acknowledgement that lies before the copy in the journal would not remove it.
            if message.is_settling() {
                continue;
            }
            let step = Step::Moved {
                queue: *number,
                id: *id,
                deliveries: message.deliveries,
                origin: message.origin,
                payload: message.payload.clone(),
            };
            let record = step.encode();
            bytes += record.payload.len() as u64 + RECORDS_BYTES;
            if bytes > bytes_max && !moved.is_empty() {
                break;
            }
            records.push(record);
            moved.push((*at, *number, *id));
        }
        if moved.is_empty() {
            return;
        }
        let room = self.clone();
        let then = move |outcome: Result<Appended, AppendError>| {
            let mut state = room.lock();
            state.is_moving = false;
            match outcome {
                Ok(appended) => {
                    for (index, (old, number, id)) in moved.into_iter().enumerate() {
                        let at = appended.first.plus(index as u64).as_u64();
                        let desk = state.desks.entry(number).or_default();
                        if desk.shelf.relocate(id, at) {
                            desk.totals.moved += 1;
                            state.places.remove(&old);
                            state.places.insert(at, (number, id));
                        }
                    }
                }
                Err(error) => state.note(&error),
            }
        };
        match self.journal.append_then(records, then) {
            Ok(()) => state.is_moving = true,
            // Too large for one segment is a matter of odd settings, and only costs space.
            Err(error) => state.note(&error),
        }
    }
}

/// The journal may have so many segments...
const SEGMENTS_MIN: u64 = 4;
/// ...and so many times the bytes that its messages need, before old ones are written again.
const SEGMENTS_PER_NEEDED: u64 = 3;
/// Written again at a time: more would delay the puts behind them.
const MOVED_BYTES_MAX: u64 = 1 << 20;
