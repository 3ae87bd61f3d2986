//! Completion records: which exactly-once requests took effect, and what they were answered, across crashes.
//!
//! Guarantee   a request takes effect at most once in all lives of a service, and who asks again is given the answer that
//!             was recorded with the effect. What is no longer known is said to be unknown, never guessed.
//! Method      a client has a durable *seat*. What a request did and what it was answered are one [`CompletionRecord`],
//!             so that a crash leaves both or neither. A seat keeps one answer for each slot of its client: a newer
//!             number in the slot, or the number below which the client has done with all calls, lets it go.
//! Durability  this value writes nothing: it gives records, counts them, and says with each answer how many records must
//!             be durable before the answer may leave. The user that holds answers back so lets nothing out that a
//!             crash could take back, and many answers wait for one sync.
//! Source      RIFL (Lee, Park, Kejriwal, Matsushita, Ousterhout 2015): completion records atomic with the effect, client
//!             leases, acknowledged prefixes. The slots are those of NFSv4.1 sessions (RFC 8881, 2.10.6).
//! Limits      [`CompletionsConfig`]: seats, slots and bytes of a seat. Who would exceed them is refused before it takes
//!             effect: no answer that may be asked for is ever dropped to make room, except with a whole seat whose
//!             client has been silent for longer than its lease.

mod record;
mod seat;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

pub use self::record::{CompletionRecord, Request};
use self::seat::{Seat, State};
use super::message::{CallId, Refusal};
use crate::machine::{ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::time::Time;

/// The completion records of one service. See the module's page.
pub struct Completions {
    config: CompletionsConfig,
    seats: BTreeMap<(ProcessId, u32), Seat>,
    next_seat: u64,
    /// Records given out, or replayed.
    emitted: u64,
    stats: CompletionStats,
}

/// What is to be done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Execute it, then [`complete`](Completions::complete) or [`abandon`](Completions::abandon) it.
    Execute,
    /// It executes already; ask again when that is over.
    Running,
    /// It took effect before. Its answer may leave when so many records are durable.
    Recorded {
        /// The encoded answer.
        reply: Bytes,
        /// Records that must be durable first.
        stable: u64,
    },
    /// It did not take effect, and will not.
    Refused(Refusal),
    /// The seat is not known any more: nothing is known of the request.
    Forgotten,
    /// Its client has done with it: nobody waits for an answer.
    Stale,
}

/// The limits of a table.
#[derive(Debug, Clone)]
pub struct CompletionsConfig {
    /// Clients with a seat. Default 16,384, some 200 bytes each and what they hold.
    pub seats_max: usize,
    /// Answers kept for one client, at most one for each call that it may have under way. Default 1,024.
    pub slots_max: usize,
    /// Bytes of answers kept for one client; while it has not acknowledged so many, its new requests are refused as
    /// overloaded. Default 1 MiB.
    pub reply_bytes_max: usize,
    /// How long a silent client keeps its seat when another one needs the room. A client that is away for longer may
    /// learn that nothing is known of what it had under way. Default 5 min.
    pub lease: Duration,
    /// A bug for the simulator to find.
    pub plant: Plant,
}

impl Default for CompletionsConfig {
    fn default() -> Self {
        Self {
            seats_max: 16_384,
            slots_max: 1_024,
            reply_bytes_max: 1 << 20,
            lease: Duration::from_secs(300),
            plant: Plant::NONE,
        }
    }
}

/// Totals since this life began, and what is kept now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompletionStats {
    /// Requests that took effect.
    pub completed: u64,
    /// Answers given from a record.
    pub replayed: u64,
    /// Requests of which nothing was known any more.
    pub forgotten: u64,
    /// Seats taken away from clients that were silent for longer than their lease.
    pub evicted: u64,
    /// Clients with a seat now.
    pub seats: usize,
    /// Bytes of answers kept now.
    pub kept_bytes: usize,
}

impl Completions {
    /// A table without seats; [`replay`](Self::replay) what is durable before it is used.
    pub const fn new(config: CompletionsConfig) -> Self {
        let stats =
            CompletionStats { completed: 0, replayed: 0, forgotten: 0, evicted: 0, seats: 0, kept_bytes: 0 };
        Self { config, seats: BTreeMap::new(), next_seat: 1, emitted: 0, stats }
    }

    /// Takes a durable record of an earlier life, in order. The service's own change is for the service to apply.
    pub fn replay(&mut self, now: Time, record: &CompletionRecord) {
        match record {
            CompletionRecord::Seat { from, client, seat, evicts } => {
                self.install(now, (*from, *client), *seat, *evicts);
            }
            CompletionRecord::Done { request, acknowledged, reply, .. } => {
                if self.config.plant.has(Planted::RpcForgetsAnswers) {
                    return;
                }
                if let Some(seat) = self.seat(request) {
                    seat.trim(*acknowledged);
                    seat.set(request.call, State::Done { reply: reply.clone(), stable: 0 });
                }
            }
            CompletionRecord::Over { request } => {
                if let Some(seat) = self.seat(request) {
                    seat.set(request.call, State::Void);
                }
            }
            CompletionRecord::NextSeat(next) => self.next_seat = self.next_seat.max(*next),
            CompletionRecord::Change(_) => {}
        }
    }

    /// Everything that is known, as records: replayed, they give this table. Only for when all records so far will be
    /// covered by the snapshot.
    pub fn snapshot(&self) -> Vec<CompletionRecord> {
        let mut records = vec![CompletionRecord::NextSeat(self.next_seat)];
        for ((from, client), seat) in &self.seats {
            let (from, client) = (*from, *client);
            records.push(CompletionRecord::Seat { from, client, seat: seat.id, evicts: None });
            for (slot, entry) in &seat.slots {
                let call = CallId { slot: *slot, sequence: entry.sequence };
                let request = Request { from, client, seat: seat.id, call };
                records.push(match &entry.state {
                    State::Done { reply, .. } => CompletionRecord::Done {
                        request,
                        acknowledged: seat.floor,
                        reply: reply.clone(),
                        change: Bytes::new(),
                    },
                    State::Running | State::Void => CompletionRecord::Over { request },
                });
            }
        }
        records
    }

    /// Gives a client its seat, the one that it has if it has one. `None` when all are taken by clients that may
    /// still come back. Else the seat, and how many records must be durable before the client may be told.
    pub fn take_seat(
        &mut self,
        now: Time,
        from: ProcessId,
        client: u32,
        out: &mut Vec<CompletionRecord>,
    ) -> Option<(u64, u64)> {
        if let Some(seat) = self.seats.get_mut(&(from, client)) {
            seat.heard = now;
            return Some((seat.id, self.emitted));
        }
        let mut evicts = None;
        let leaving = self.seats.keys().filter(|(holder, _)| is_earlier_life(*holder, from)).count();
        if self.seats.len() - leaving >= self.config.seats_max {
            let lease = self.config.lease;
            let away = self
                .seats
                .iter()
                .filter(|(_, seat)| seat.running == 0 && now.since(seat.heard) >= lease)
                .min_by_key(|(_, seat)| seat.heard)
                .map(|(key, _)| *key)?;
            evicts = Some(away);
            self.stats.evicted += 1;
        }
        let seat = self.next_seat;
        self.install(now, (from, client), seat, evicts);
        out.push(CompletionRecord::Seat { from, client, seat, evicts });
        self.emitted += 1;
        Some((seat, self.emitted))
    }

    /// What is to be done with a request. `acknowledged`: its client has done with all calls below this number.
    /// `unless`: a reason to refuse it, if it has not taken effect already.
    pub fn begin(
        &mut self,
        now: Time,
        request: Request,
        acknowledged: u64,
        unless: Option<Refusal>,
    ) -> Begun {
        let CompletionsConfig { slots_max, reply_bytes_max, plant, .. } = self.config;
        let Some(seat) = self.seat(&request) else {
            self.stats.forgotten += 1;
            return Begun::Forgotten;
        };
        seat.heard = now;
        if plant.has(Planted::RpcTrimsUnacknowledged) {
            seat.let_go_below(request.call.sequence);
        } else {
            seat.trim(acknowledged);
        }
        if request.call.sequence < seat.floor {
            return Begun::Stale;
        }
        match seat.slots.get(&request.call.slot) {
            Some(slot) if request.call.sequence < slot.sequence => return Begun::Stale,
            Some(slot) if request.call.sequence == slot.sequence => match &slot.state {
                State::Running => return Begun::Running,
                State::Done { reply, stable } => {
                    let (reply, stable) = (reply.clone(), *stable);
                    self.stats.replayed += 1;
                    return Begun::Recorded { reply, stable: self.promise(stable) };
                }
                State::Void => {}
            },
            Some(_) => {}
            None if seat.slots.len() >= slots_max => return Begun::Refused(Refusal::Overloaded),
            None => {}
        }
        if let Some(refusal) = unless {
            return Begun::Refused(refusal);
        }
        if seat.kept_bytes >= reply_bytes_max {
            return Begun::Refused(Refusal::Overloaded);
        }
        seat.set(request.call, State::Running);
        Begun::Execute
    }

    /// The request has been executed: what it changed and what it is answered become one record. Gives how many
    /// records must be durable before the answer may leave; `None` when its client has given it up, and then it must
    /// not take effect.
    pub fn complete(
        &mut self,
        request: Request,
        reply: Bytes,
        change: Bytes,
        out: &mut Vec<CompletionRecord>,
    ) -> Option<u64> {
        let stable = self.emitted + 1;
        let apart = self.config.plant.has(Planted::RpcRecordsEffectApart);
        let seat = self.seat(&request)?;
        if !seat.is_running(request.call) {
            return None;
        }
        seat.set(request.call, State::Done { reply: reply.clone(), stable });
        let acknowledged = seat.floor;
        if apart {
            out.push(CompletionRecord::Change(change));
            out.push(CompletionRecord::Done { request, acknowledged, reply, change: Bytes::new() });
        } else {
            out.push(CompletionRecord::Done { request, acknowledged, reply, change });
        }
        self.emitted = stable;
        self.stats.completed += 1;
        Some(self.promise(stable))
    }

    /// Nothing came of the request, and it had no effect: a copy of it may be executed.
    pub fn abandon(&mut self, request: Request) {
        if let Some(seat) = self.seat(&request)
            && seat.is_running(request.call)
        {
            seat.set(request.call, State::Void);
        }
    }

    /// A change that belongs to no request; gives how many records must be durable before it is.
    pub fn change(&mut self, change: Bytes, out: &mut Vec<CompletionRecord>) -> u64 {
        out.push(CompletionRecord::Change(change));
        self.emitted += 1;
        self.emitted
    }

    /// Records so far: what was seen of the service's state until now is durable when so many are.
    pub const fn emitted(&self) -> u64 {
        self.emitted
    }

    /// Totals and what is kept.
    pub fn stats(&self) -> CompletionStats {
        CompletionStats {
            seats: self.seats.len(),
            kept_bytes: self.seats.values().map(|seat| seat.kept_bytes).sum(),
            ..self.stats
        }
    }

    /// Checks what must hold between two calls.
    ///
    /// # Errors
    /// A [`Violation`]: a bug in this value.
    pub fn check(&self) -> Result<(), Violation> {
        for ((from, client), seat) in &self.seats {
            let (bytes, running) = seat.count();
            if (bytes, running) != (seat.kept_bytes, seat.running) {
                return Err(Violation(format!(
                    "client {client} of {from}: {bytes} bytes kept and {running} running, counted {} and {}",
                    seat.kept_bytes, seat.running
                )));
            }
            if seat.slots.len() > self.config.slots_max {
                return Err(Violation(format!("client {client} of {from} has {} slots", seat.slots.len())));
            }
        }
        if self.seats.len() > self.config.seats_max {
            return Err(Violation(format!("{} seats", self.seats.len())));
        }
        Ok(())
    }

    fn promise(&self, stable: u64) -> u64 {
        if self.config.plant.has(Planted::RpcAnswersBeforeRecord) { 0 } else { stable }
    }

    fn seat(&mut self, request: &Request) -> Option<&mut Seat> {
        self.seats.get_mut(&(request.from, request.client)).filter(|seat| seat.id == request.seat)
    }

    fn install(&mut self, now: Time, key: (ProcessId, u32), id: u64, evicts: Option<(ProcessId, u32)>) {
        // The calls of an earlier life of the client's process have nobody who would ask for their answers.
        self.seats.retain(|holder, _| !is_earlier_life(holder.0, key.0) && Some(*holder) != evicts);
        self.next_seat = self.next_seat.max(id.saturating_add(1));
        self.seats.insert(key, Seat::new(id, now));
    }
}

const fn is_earlier_life(one: ProcessId, other: ProcessId) -> bool {
    one.node == other.node && one.incarnation < other.incarnation
}
