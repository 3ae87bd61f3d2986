//! What a view-synchronous group promises, judged by what its members saw: in a simulation, or in processes that wrote it down.
//!
//! Guarantee   views are the same for all who install them, and follow each other without gaps; those who go on together have
//!             delivered the same (*virtual synchrony*); joiners start from the same state; nothing is delivered twice, out of
//!             its sender's order, or without having been sent; what is promised beyond that by a [`Promise`].
//! Order       what one member saw must be told in its order; members may be told of one after the other, after all that any
//!             of them sent.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::stack::{View, ViewId};
use quorate_protocols::{ProcessId, Violation};

/// What may be expected of a stack.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// All deliver in one order, and what anyone delivered every survivor delivers.
    pub uniform_total: bool,
    /// What a sender had delivered when it sent is delivered before what it sent.
    pub causal: bool,
}

/// What was seen so far.
#[derive(Debug)]
pub struct Oracle {
    promise: Promise,
    /// Each life that was in the group or wanted to be.
    pub processes: BTreeMap<ProcessId, Process>,
    /// By number.
    pub views: BTreeMap<u64, ViewRecord>,
    sent: BTreeMap<ProcessId, u64>,
    /// What the sender of a message, named by sender and number, had delivered when it was told to send it.
    pasts: BTreeMap<(ProcessId, u64), BTreeMap<ProcessId, u64>>,
}

/// One life.
#[derive(Debug, Default)]
pub struct Process {
    /// The view that it is in.
    pub view: Option<View>,
    /// It has the state.
    pub synced: bool,
    /// It was told that its membership is over.
    pub ended: bool,
    /// It was asked to leave.
    pub leaving: bool,
    /// How often it was told to join and was in no view yet.
    pub asked: u32,
    delivered_here: u64,
    here_hash: u64,
    /// The application's state.
    pub state: State,
}

/// What has been agreed about one view.
#[derive(Debug)]
pub struct ViewRecord {
    /// The view.
    pub view: View,
    /// The one sequence, as far as anyone has delivered it (total order only).
    sequence: Vec<(ProcessId, u64)>,
    /// What those who left it for the next view had delivered: count and order-free hash.
    closed: Option<(u64, u64)>,
    /// The application's state at its beginning.
    state: Option<State>,
}

/// The replicated application: counts and a hash of what was delivered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The number of each sender's last message.
    pub last: BTreeMap<ProcessId, u64>,
    hash: u64,
}

impl State {
    /// Takes a message.
    pub fn apply(&mut self, from: ProcessId, number: u64, ordered: bool) {
        let item = mix(from.node ^ mix(from.incarnation ^ mix(number)));
        self.hash = if ordered { mix(self.hash ^ item) } else { self.hash.wrapping_add(item) };
        self.last.insert(from, number);
    }

    /// Its bytes, and some more.
    pub fn encode(&self, padding: usize) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.hash);
        out.put_u64_le(self.last.len() as u64);
        for (process, number) in &self.last {
            out.put_u64_le(process.node);
            out.put_u64_le(process.incarnation);
            out.put_u64_le(*number);
        }
        out.put_bytes(0, padding);
        out.freeze()
    }

    /// Reads it back.
    ///
    /// # Panics
    /// When it is none.
    pub fn decode(mut bytes: Bytes) -> Self {
        let hash = bytes.get_u64_le();
        let count = bytes.get_u64_le();
        let mut process = || {
            let id = ProcessId { node: bytes.get_u64_le(), incarnation: bytes.get_u64_le() };
            (id, bytes.get_u64_le())
        };
        Self { last: (0..count).map(|_| process()).collect(), hash }
    }
}

/// Spreads the bits of a number.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Oracle {
    /// Nothing was seen yet.
    pub fn new(promise: Promise) -> Self {
        Self {
            promise,
            processes: BTreeMap::new(),
            views: BTreeMap::new(),
            sent: BTreeMap::new(),
            pasts: BTreeMap::new(),
        }
    }

    /// A life sends its next message: what the message is to carry.
    pub fn on_send(&mut self, id: ProcessId) -> (u64, BytesMut) {
        let past = self.processes.get(&id).map(|process| process.state.clone()).unwrap_or_default();
        let number = self.on_send_after(id, &past);
        let mut payload = BytesMut::new();
        payload.put_u64_le(id.node);
        payload.put_u64_le(id.incarnation);
        payload.put_u64_le(number);
        (number, payload)
    }

    /// A life sends its next message, whose number this is, in this state.
    pub fn on_send_after(&mut self, id: ProcessId, past: &State) -> u64 {
        let sent = self.sent.entry(id).or_default();
        *sent += 1;
        if self.promise.causal {
            self.pasts.insert((id, *sent), past.last.clone());
        }
        *sent
    }

    /// How many messages a life has sent.
    pub fn sent(&self, id: ProcessId) -> u64 {
        self.sent.get(&id).copied().unwrap_or(0)
    }

    /// A life is given the state.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn on_state(&mut self, id: ProcessId, state: State) -> Result<(), Violation> {
        if let Some(process) = self.processes.get_mut(&id) {
            process.state = state;
            process.synced = true;
        }
        self.check_state(id)
    }

    /// No fewer than the configured quorum go on, but for those that left by themselves.
    fn check_quorum(&self, view: &View) -> Result<(), Violation> {
        let Some(before) = self.views.get(&(view.id.number - 1)).map(|record| &record.view) else {
            return Ok(());
        };
        let leaves = |member: &ProcessId| self.processes.get(member).is_some_and(|process| process.leaving);
        let by_will =
            before.members.iter().filter(|member| view.contains(**member) || leaves(member)).count();
        ensure(by_will >= before.least(), || {
            format!("{view} follows {before}, of which {} must go on", before.least())
        })
    }

    /// A life installs a view.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn on_view(&mut self, id: ProcessId, view: &View) -> Result<(), Violation> {
        self.check_quorum(view)?;
        let record = self.views.entry(view.id.number).or_insert_with(|| ViewRecord {
            view: view.clone(),
            sequence: Vec::new(),
            closed: None,
            state: None,
        });
        ensure(record.view == *view, || format!("{id} installs {view}, others {}", record.view))?;
        ensure(view.contains(id), || format!("{id} installs {view} without itself"))?;
        let process = self.processes.entry(id).or_default();
        let before = process.view.replace(view.clone());
        let (count, hash) = (process.delivered_here, process.here_hash);
        (process.delivered_here, process.here_hash) = (0, 0);
        if let Some(before) = before {
            ensure(before.id.next() == view.id, || format!("{id} skips from {} to {}", before.id, view.id))?;
            if process.synced {
                self.close(id, before.id, (count, hash))?;
            }
        } else {
            process.synced = view.id.number == 1;
        }
        self.check_state(id)
    }

    /// Virtual synchrony: all that go on together have delivered the same.
    fn close(&mut self, id: ProcessId, view: ViewId, delivered: (u64, u64)) -> Result<(), Violation> {
        let Some(record) = self.views.get_mut(&view.number) else { return Ok(()) };
        let closed = *record.closed.get_or_insert(delivered);
        ensure(closed == delivered, || {
            format!("{id} leaves {view} with {delivered:?}, others with {closed:?}")
        })?;
        let longest = record.sequence.len() as u64;
        ensure(!self.promise.uniform_total || longest <= closed.0, || {
            format!("{id} leaves {view} with {} deliveries, but {longest} were made", closed.0)
        })
    }

    fn check_state(&mut self, id: ProcessId) -> Result<(), Violation> {
        let process = &self.processes[&id];
        let (Some(view), true) = (&process.view, process.synced) else { return Ok(()) };
        let Some(record) = self.views.get_mut(&view.id.number) else { return Ok(()) };
        let expected = record.state.get_or_insert_with(|| process.state.clone());
        ensure(*expected == process.state, || {
            format!("{id} begins {} with {:?}, others with {expected:?}", view.id, process.state)
        })
    }

    /// A life delivers a message.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn on_deliver(
        &mut self,
        id: ProcessId,
        from: ProcessId,
        mut payload: Bytes,
    ) -> Result<(), Violation> {
        let total = self.promise.uniform_total;
        let sender = ProcessId { node: payload.get_u64_le(), incarnation: payload.get_u64_le() };
        let number = payload.get_u64_le();
        ensure(sender == from, || format!("{id} is told {from} where {sender} sent"))?;
        let sent = self.sent.get(&from).copied().unwrap_or(0);
        ensure(number <= sent, || format!("{id} delivers {from}/{number}, which was never sent"))?;
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let Some(view) = process.view.clone() else {
            return Err(Violation(format!("{id} delivers before its first view")));
        };
        ensure(process.synced, || format!("{id} delivers before it has the state"))?;
        ensure(!process.ended, || format!("{id} delivers after its end"))?;
        ensure(view.contains(from), || format!("{id} delivers from {from}, not in {view}"))?;
        let last = process.state.last.get(&from).copied().unwrap_or(0);
        ensure(number == last + 1, || format!("{id} delivers {from}/{number} after {last}"))?;
        for (other, past) in self.pasts.get(&(from, number)).into_iter().flatten() {
            let here = process.state.last.get(other).copied().unwrap_or(0);
            ensure(here >= *past, || {
                format!("{id} delivers {from}/{number} before {other}/{past}, which {from} had delivered")
            })?;
        }
        process.state.apply(from, number, total);
        let position = process.delivered_here as usize;
        process.delivered_here += 1;
        process.here_hash =
            process.here_hash.wrapping_add(mix(from.node ^ mix(from.incarnation ^ mix(number))));
        let Some(record) = self.views.get_mut(&view.id.number) else { return Ok(()) };
        if total {
            match record.sequence.get(position) {
                Some(&there) => ensure(there == (from, number), || {
                    format!("{id} delivers {from}/{number} as {position} of {}, others {there:?}", view.id)
                })?,
                None => record.sequence.push((from, number)),
            }
            let closed = record.closed.map_or(u64::MAX, |(count, _)| count);
            ensure(record.sequence.len() as u64 <= closed, || {
                format!("{id} delivers {from}/{number} in {}, which ended without it", view.id)
            })?;
        }
        Ok(())
    }
}

/// What must be so.
///
/// # Errors
/// [`Violation`] with what `otherwise` says, unless it `holds`.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(otherwise())) }
}
