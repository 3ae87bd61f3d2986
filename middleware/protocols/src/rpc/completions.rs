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

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::message::{CallId, Refusal, put_call_id, take_call};
use crate::machine::{ProcessId, Violation};
use crate::planted::{Plant, Planted};
use crate::time::Time;
use crate::wire::{Wire, WireError, put_bytes, take_bytes, take_u8, take_u32, take_u64};

/// The completion records of one service. See the module's page.
pub struct Completions {
    config: CompletionsConfig,
    seats: BTreeMap<(ProcessId, u32), Seat>,
    next_seat: u64,
    /// Records given out, or replayed.
    emitted: u64,
    stats: CompletionStats,
}

/// One exactly-once request: named the same however often it is sent, and in every life of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Whose.
    pub from: ProcessId,
    /// The client's number within its process.
    pub client: u32,
    /// The client's seat.
    pub seat: u64,
    /// Which call.
    pub call: CallId,
}

/// What must be durable. Replaying all of them, in order, gives the table again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompletionRecord {
    /// A client has this seat; what an earlier seat of the same client held is gone, and the seats of its process's
    /// earlier lives.
    Seat {
        /// Whose.
        from: ProcessId,
        /// The client's number within its process.
        client: u32,
        /// The seat.
        seat: u64,
        /// Who had to make room.
        evicts: Option<(ProcessId, u32)>,
    },
    /// A request took effect: what it changed and what it is answered.
    Done {
        /// Which.
        request: Request,
        /// The client has done with all calls below this number.
        acknowledged: u64,
        /// The encoded answer.
        reply: Bytes,
        /// What the service changed, in its own encoding.
        change: Bytes,
    },
    /// The service changed something that belongs to no request.
    Change(Bytes),
    /// In a snapshot only: nothing is known to have come of this request, and older ones of its slot are over.
    Over {
        /// Which.
        request: Request,
    },
    /// In a snapshot only: the number of the next seat.
    NextSeat(u64),
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

struct Seat {
    id: u64,
    slots: BTreeMap<u32, Slot>,
    /// The client has done with all calls below this number.
    floor: u64,
    kept_bytes: usize,
    running: u32,
    heard: Time,
}

struct Slot {
    sequence: u64,
    state: State,
}

enum State {
    Running,
    /// It was begun, and nothing came of it.
    Void,
    Done {
        reply: Bytes,
        /// How many records must be durable before this is one of them.
        stable: u64,
    },
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
        let limits = self.config.clone();
        let Some(seat) = self.seat(&request) else {
            self.stats.forgotten += 1;
            return Begun::Forgotten;
        };
        seat.heard = now;
        if limits.plant.has(Planted::RpcTrimsUnacknowledged) {
            seat.slots.retain(|_, slot| slot.sequence >= request.call.sequence);
            seat.recount();
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
            None if seat.slots.len() >= limits.slots_max => return Begun::Refused(Refusal::Overloaded),
            None => {}
        }
        if let Some(refusal) = unless {
            return Begun::Refused(refusal);
        }
        if seat.kept_bytes >= limits.reply_bytes_max {
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
        let seat = Seat { id, slots: BTreeMap::new(), floor: 0, kept_bytes: 0, running: 0, heard: now };
        self.seats.insert(key, seat);
    }
}

const fn is_earlier_life(one: ProcessId, other: ProcessId) -> bool {
    one.node == other.node && one.incarnation < other.incarnation
}

impl Seat {
    fn set(&mut self, call: CallId, state: State) {
        let (bytes, running) = weight(&state);
        let slot = Slot { sequence: call.sequence, state };
        let before = self.slots.insert(call.slot, slot).map_or((0, 0), |old| weight(&old.state));
        self.kept_bytes = self.kept_bytes + bytes - before.0;
        self.running = self.running + running - before.1;
    }

    fn is_running(&self, call: CallId) -> bool {
        let slot = self.slots.get(&call.slot);
        slot.is_some_and(|slot| slot.sequence == call.sequence && matches!(slot.state, State::Running))
    }

    /// Lets go of the answers to calls that the client has done with.
    fn trim(&mut self, acknowledged: u64) {
        if acknowledged > self.floor {
            self.floor = acknowledged;
            self.slots.retain(|_, slot| slot.sequence >= acknowledged);
            self.recount();
        }
    }

    fn recount(&mut self) {
        (self.kept_bytes, self.running) = self.count();
    }

    fn count(&self) -> (usize, u32) {
        self.slots
            .values()
            .map(|slot| weight(&slot.state))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

/// Bytes kept for a slot, and whether it runs.
fn weight(state: &State) -> (usize, u32) {
    match state {
        State::Running => (0, 1),
        State::Void => (0, 0),
        State::Done { reply, .. } => (reply.len() + SLOT_OVERHEAD_BYTES, 0),
    }
}

impl Wire for CompletionRecord {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Seat { from, client, seat, evicts } => {
                out.put_u8(SEAT);
                from.encode(out);
                out.put_u32_le(*client);
                out.put_u64_le(*seat);
                out.put_u8(u8::from(evicts.is_some()));
                if let Some((from, client)) = evicts {
                    from.encode(out);
                    out.put_u32_le(*client);
                }
            }
            Self::Done { request, acknowledged, reply, change } => {
                out.put_u8(DONE);
                request.encode(out);
                out.put_u64_le(*acknowledged);
                put_bytes(out, reply);
                put_bytes(out, change);
            }
            Self::Change(change) => {
                out.put_u8(CHANGE);
                put_bytes(out, change);
            }
            Self::Over { request } => {
                out.put_u8(OVER);
                request.encode(out);
            }
            Self::NextSeat(next) => {
                out.put_u8(NEXT_SEAT);
                out.put_u64_le(*next);
            }
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(match take_u8(input, "record tag")? {
            SEAT => Self::Seat {
                from: ProcessId::decode(input)?,
                client: take_u32(input, "client number")?,
                seat: take_u64(input, "seat")?,
                evicts: match take_u8(input, "eviction")? {
                    0 => None,
                    1 => Some((ProcessId::decode(input)?, take_u32(input, "client number")?)),
                    other => return Err(WireError::Invalid { what: "eviction", value: other.into() }),
                },
            },
            DONE => Self::Done {
                request: Request::decode(input)?,
                acknowledged: take_u64(input, "acknowledgement")?,
                reply: take_bytes(input, "answer")?,
                change: take_bytes(input, "change")?,
            },
            CHANGE => Self::Change(take_bytes(input, "change")?),
            OVER => Self::Over { request: Request::decode(input)? },
            NEXT_SEAT => Self::NextSeat(take_u64(input, "seat")?),
            other => return Err(WireError::Invalid { what: "record tag", value: other.into() }),
        })
    }
}

impl Wire for Request {
    fn encode(&self, out: &mut BytesMut) {
        self.from.encode(out);
        out.put_u32_le(self.client);
        out.put_u64_le(self.seat);
        put_call_id(out, self.call);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            from: ProcessId::decode(input)?,
            client: take_u32(input, "client number")?,
            seat: take_u64(input, "seat")?,
            call: take_call(input)?,
        })
    }
}

/// A slot in its tree.
const SLOT_OVERHEAD_BYTES: usize = 64;

const SEAT: u8 = 1;
const DONE: u8 = 2;
const CHANGE: u8 = 3;
const OVER: u8 = 4;
const NEXT_SEAT: u8 = 5;
