//! What this process itself has asked for: proposals and reads whose end it does not know yet.
//!
//! Limits      as many of each as [`Config::outstanding_max`](super::Config::outstanding_max).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::message::Proposal;
use super::seats::Seats;
use crate::machine::ProcessId;
use crate::time::Time;

/// Proposals under way, in the order of their sequence.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// The sequence of the first one in the queue: all before it are over.
    base: u64,
    queue: VecDeque<Option<Waiting>>,
    /// Those before this one were handed to the present leader.
    sent: u64,
}

#[derive(Debug)]
struct Waiting {
    token: u64,
    fence: u64,
    payload: Bytes,
}

impl Outstanding {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn push(&mut self, token: u64, fence: u64, payload: Bytes) {
        self.queue.push_back(Some(Waiting { token, fence, payload }));
    }

    /// Everything is to be handed to the leader once more.
    pub(super) fn resend(&mut self) {
        self.sent = self.base;
    }

    /// The next one to hand over.
    pub(super) fn next_unsent(&mut self, me: ProcessId) -> Option<Proposal> {
        loop {
            let sequence = self.sent;
            let behind = sequence - self.base;
            let waiting = self.queue.get(usize::try_from(behind).ok()?)?;
            self.sent += 1;
            if let Some(Waiting { fence, payload, .. }) = waiting {
                return Some(Proposal {
                    origin: me,
                    sequence,
                    behind: u32::try_from(behind).unwrap_or(u32::MAX),
                    fence: *fence,
                    payload: payload.clone(),
                });
            }
        }
    }

    /// The proposal of this sequence is over; its token, unless it was over before.
    pub(super) fn settle(&mut self, sequence: u64) -> Option<u64> {
        let offset = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        let token = self.queue.get_mut(offset)?.take().map(|waiting| waiting.token);
        self.close_up();
        token
    }

    /// Takes out those that may not be chosen after `term` has begun; their tokens.
    pub(super) fn fenced_off(&mut self, term: u64) -> Vec<u64> {
        self.take_where(|_, waiting| waiting.fence != 0 && waiting.fence < term)
    }

    /// Takes out those that are over by what `seats` say; their tokens.
    pub(super) fn seated(&mut self, seats: &Seats, me: ProcessId) -> Vec<u64> {
        self.take_where(|sequence, _| seats.has(me, sequence))
    }

    fn take_where(&mut self, is_over: impl Fn(u64, &Waiting) -> bool) -> Vec<u64> {
        let mut tokens = Vec::new();
        for (offset, slot) in self.queue.iter_mut().enumerate() {
            let sequence = self.base + offset as u64;
            if let Some(waiting) = slot.take_if(|waiting| is_over(sequence, waiting)) {
                tokens.push(waiting.token);
            }
        }
        self.close_up();
        tokens
    }

    fn close_up(&mut self) {
        while self.queue.pop_front_if(|slot| slot.is_none()).is_some() {
            self.base += 1;
        }
        self.sent = self.sent.max(self.base);
    }
}

/// Reads under way: first it is asked from which place on they may be answered, then that place is waited for.
#[derive(Debug, Default)]
pub(super) struct Reads {
    next: u64,
    /// Nobody has said yet; ascending.
    asking: VecDeque<(u64, u64)>,
    /// The leader was asked about those before this one.
    asked: u64,
    waiting: BTreeMap<u64, Vec<u64>>,
    waiting_count: usize,
}

impl Reads {
    pub(super) fn len(&self) -> usize {
        self.asking.len() + self.waiting_count
    }

    pub(super) fn push(&mut self, token: u64) {
        self.next += 1;
        self.asking.push_back((self.next, token));
    }

    /// All are to be asked about once more.
    pub(super) fn ask_again(&mut self) {
        self.asked = 0;
    }

    /// The question that covers all so far, unless it was asked before.
    pub(super) fn question(&mut self) -> Option<u64> {
        let is_new = !self.asking.is_empty() && self.asked < self.next;
        self.asked = self.next;
        is_new.then_some(self.next)
    }

    /// The answer covers all reads that were there when it was asked for.
    pub(super) fn on_answer(&mut self, ask: u64, index: u64) {
        while let Some((_, token)) = self.asking.pop_front_if(|(number, _)| *number <= ask) {
            self.waiting.entry(index).or_default().push(token);
            self.waiting_count += 1;
        }
    }

    /// Those that a state up to `delivered` may answer.
    pub(super) fn readable(&mut self, delivered: u64) -> Vec<u64> {
        let mut tokens = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            if *first.key() > delivered {
                break;
            }
            tokens.append(&mut first.remove());
        }
        self.waiting_count -= tokens.len();
        tokens
    }
}

/// Wants one thing again when too much time has passed without progress.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Again(pub(super) Option<Time>);

impl Again {
    pub(super) fn is_due(self, now: Time) -> bool {
        self.0.is_some_and(|at| at <= now)
    }
}
