//! Calls to all members of a group, and their answers.
//!
//! Guarantee   a call is a message of the group: every member that goes on gets it once, at its place in the group's order,
//!             so in total order all answer from the same state. A member that leaves or dies is not waited for.
//! Method      calls and answers are multicasts; whoever did not ask drops the answers. That costs each of n members
//!             n answers, and spares a second way for them: what was delivered before a view change, all have seen.
//! Limits      a member's calls are numbered, and a new one waits while [`CALLS_MAX`] have begun since the oldest that is still
//!             waited for. Each says which one that is, and an answer to one before it is dropped, also one that waits to
//!             leave. So at most so many answers for each caller wait, whether it waits for them or has given them up.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::ProcessId;
use quorate_protocols::rpc::gather::{Gather, Standing, Wanted};
use quorate_transports::BoxFuture;
use tokio::sync::{Notify, Semaphore};

use super::{CastError, Event, Events, Group, Order};

/// Makes calls to all members of a group. Cheap to clone. Somebody must read the [`Calls`] meanwhile.
pub struct Caller<O: Order> {
    group: Group<O>,
    shared: Arc<Shared>,
}

/// What comes to a member of a group whose members call each other: to be read at all times, as [`Events`] are.
pub struct Calls<O: Order> {
    group: Group<O>,
    events: Events,
    shared: Arc<Shared>,
    members: Arc<[ProcessId]>,
    sending: Option<BoxFuture<'static, Result<(), CastError>>>,
}

/// Something that came.
#[derive(Debug)]
pub enum Asked {
    /// A call, of this member's own too: answer it.
    Call(Call),
    /// Whatever else happens in the group; a message that is no call among it.
    Event(Event),
}

/// A call by a member. Dropped unanswered, its caller waits for nothing until its deadline.
#[must_use = "the caller waits for the answer"]
pub struct Call {
    from: ProcessId,
    number: u64,
    body: Bytes,
    shared: Arc<Shared>,
}

/// Why a call to a group did not get the answers that it wanted. Members may have executed it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Those who have not answered have gone, or never were so many.
    #[error("{} of {wanted} answers came, and no more can come", answers.len())]
    NotEnough {
        /// How many were wanted.
        wanted: usize,
        /// What was answered, and by whom.
        answers: Vec<(ProcessId, Bytes)>,
    },
    /// Not enough answers came in time.
    #[error("{} answers came within {deadline:?}", answers.len())]
    Deadline {
        /// The time that was given.
        deadline: Duration,
        /// What was answered, and by whom.
        answers: Vec<(ProcessId, Bytes)>,
    },
    /// The call did not leave, or the membership ended before enough answers came.
    #[error("the call was cut off")]
    Cast(#[source] CastError),
}

struct Shared {
    state: Mutex<State>,
    /// One permit for each call that may begin.
    room: Semaphore,
    /// Told when an answer waits to be sent.
    wake: Notify,
    /// The largest body of an answer.
    answer_bytes_max: usize,
}

#[derive(Default)]
struct State {
    calls: BTreeMap<u64, (Gather, Arc<Notify>)>,
    /// The number of the next call.
    next: u64,
    /// The number of the oldest call that is waited for, or of the next one.
    oldest: u64,
    answers: VecDeque<Answer>,
    /// So many answers may wait before those are sought that nobody waits for any more.
    sought_at: usize,
    /// The oldest call that each caller waits for.
    waited: BTreeMap<ProcessId, u64>,
    is_over: bool,
}

/// What is to be said to a caller.
struct Answer {
    to: ProcessId,
    number: u64,
    /// `None` says that there will be no answer.
    body: Option<Bytes>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A call that waits for answers from now on: its number, and that of the oldest one.
    fn begin(&mut self, wanted: Wanted, done: Arc<Notify>) -> (u64, u64) {
        let number = self.next;
        self.next += 1;
        self.calls.insert(number, (Gather::new(wanted), done));
        (number, self.oldest)
    }

    /// Nobody waits for a call any more: what came of it, and how many calls more may begin.
    fn end(&mut self, number: u64) -> (Option<Gather>, usize) {
        let gather = self.calls.remove(&number).map(|(gather, _)| gather);
        let oldest = self.calls.first_key_value().map_or(self.next, |(number, _)| *number);
        let room = oldest - std::mem::replace(&mut self.oldest, oldest);
        (gather, room as usize)
    }

    fn put_answer(&mut self, answer: Answer) {
        self.answers.push_back(answer);
        if self.answers.len() > self.sought_at.max(ANSWERS_UNSOUGHT) {
            let waited = &self.waited;
            self.answers.retain(|answer| answer.is_waited_for(waited));
            // Half of them anew before the next search, so that searching costs each one only so much.
            self.sought_at = self.answers.len() * 2;
        }
    }

    fn next_answer(&mut self) -> Option<Answer> {
        loop {
            let answer = self.answers.pop_front()?;
            if answer.is_waited_for(&self.waited) {
                return Some(answer);
            }
        }
    }

    /// Changes every call, and tells those that are over.
    fn change(&mut self, mut change: impl FnMut(u64, &mut Gather)) {
        for (number, (gather, done)) in &mut self.calls {
            change(*number, gather);
            if gather.standing() != Standing::Open {
                done.notify_one();
            }
        }
    }
}

impl<O: Order> Calls<O> {
    /// Takes over a membership's events. All members of the group must do so: messages have a byte more. What is no call is
    /// cast by [`Caller::cast`].
    pub fn over(group: Group<O>, events: Events) -> (Caller<O>, Self) {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            room: Semaphore::new(CALLS_MAX),
            wake: Notify::new(),
            answer_bytes_max: group.inner.payload_bytes_max.saturating_sub(ANSWER_BYTES),
        });
        let members = group.view().map_or_else(|| Arc::from([]), |view| view.members);
        let calls = Self { group: group.clone(), events, shared: shared.clone(), members, sending: None };
        (Caller { group, shared }, calls)
    }

    /// What comes next; `None` after [`Event::Ended`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Asked> {
        loop {
            let wake = self.shared.clone();
            let mut woken = std::pin::pin!(wake.wake.notified());
            woken.as_mut().enable();
            let event = poll_fn(|cx| {
                self.poll_send(cx);
                match self.events.poll_event(cx) {
                    Poll::Ready(event) => Poll::Ready(Some(event)),
                    // Another answer is to be sent.
                    Poll::Pending => woken.as_mut().poll(cx).map(|()| None),
                }
            });
            let Some(event) = event.await else { continue };
            let Some(event) = event else {
                self.end();
                return None;
            };
            if let Some(asked) = self.take(event) {
                return Some(asked);
            }
        }
    }

    /// Sends answers, as far as there is room.
    fn poll_send(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(sending) = &mut self.sending {
                // Whoever is no longer a member owes no answer.
                let Poll::Ready(_) = sending.as_mut().poll(cx) else { return };
                self.sending = None;
            }
            let Some(answer) = self.shared.state().next_answer() else { return };
            let answer = answer.encode();
            let group = self.group.clone();
            self.sending = Some(Box::pin(async move { group.cast(answer).await }));
        }
    }

    /// What of an event is for the user.
    fn take(&mut self, event: Event) -> Option<Asked> {
        match event {
            Event::View(view) => {
                self.members = view.members.clone();
                let mut state = self.shared.state();
                state.change(|_, gather| gather.on_view(&view.members));
                state.waited.retain(|caller, _| view.contains(*caller));
                drop(state);
                Some(Asked::Event(Event::View(view)))
            }
            Event::Message { from, payload } => self.take_message(from, payload),
            other => Some(Asked::Event(other)),
        }
    }

    fn take_message(&mut self, from: ProcessId, payload: Bytes) -> Option<Asked> {
        let mut rest = payload.clone();
        match rest.try_get_u8() {
            Ok(CALL) => {
                let number = rest.try_get_u64_le().ok()?;
                let oldest = rest.try_get_u64_le().ok()?;
                self.shared.state().waited.insert(from, oldest);
                if from == self.group.me() {
                    let members = self.members.clone();
                    self.shared.state().change(|other, gather| {
                        if other == number {
                            gather.on_asked(&members);
                        }
                    });
                }
                Some(Asked::Call(Call { from, number, body: rest, shared: self.shared.clone() }))
            }
            Ok(kind @ (ANSWER | REFUSAL)) => {
                let node = rest.try_get_u64_le().ok()?;
                let caller = ProcessId { node, incarnation: rest.try_get_u64_le().ok()? };
                let number = rest.try_get_u64_le().ok()?;
                if caller == self.group.me() {
                    self.shared.state().change(|other, gather| match kind {
                        _ if other != number => {}
                        ANSWER => gather.on_answer(from, rest.clone()),
                        _ => gather.on_refusal(from),
                    });
                }
                None
            }
            Ok(PLAIN) => Some(Asked::Event(Event::Message { from, payload: rest })),
            _ => None,
        }
    }

    fn end(&self) {
        let mut state = self.shared.state();
        state.is_over = true;
        state.calls.values().for_each(|(_, done)| done.notify_one());
    }
}

impl<O: Order> Drop for Calls<O> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<O: Order> Caller<O> {
    /// The membership.
    pub fn group(&self) -> &Group<O> {
        &self.group
    }

    /// Multicasts a message that is no call: it comes as an [`Event::Message`] among what [`Calls`] give.
    ///
    /// # Errors
    /// As [`Group::cast`].
    /// # Cancel safety
    /// As [`Group::cast`].
    pub async fn cast(&self, payload: &[u8]) -> Result<(), CastError> {
        self.group.cast([&[PLAIN], payload].concat().into()).await
    }

    /// Calls all members, this one too, and waits until `wanted` of those to whom it is delivered have answered, at most
    /// `deadline`. Gives the answers in the order in which they came.
    ///
    /// # Errors
    /// [`CallError`], with the answers that came.
    /// # Cancel safety
    /// Dropping the future may leave the call made; its answers are dropped.
    pub async fn call(
        &self,
        body: &[u8],
        wanted: Wanted,
        deadline: Duration,
    ) -> Result<Vec<(ProcessId, Bytes)>, CallError> {
        let mut pending = Pending { shared: &self.shared, number: None };
        let called = tokio::time::timeout(deadline, self.make(body, wanted, &mut pending)).await;
        let (gather, is_over) = pending.end();
        let gather = gather.unwrap_or_else(|| Gather::new(wanted));
        match called {
            Ok(Err(error)) => Err(CallError::Cast(error)),
            _ if gather.standing() == Standing::Enough => Ok(gather.into_answers()),
            Ok(Ok(())) if is_over => Err(CallError::Cast(CastError::Ended(None))),
            Ok(Ok(())) => {
                Err(CallError::NotEnough { wanted: gather.wanted(), answers: gather.into_answers() })
            }
            Err(_) => Err(CallError::Deadline { deadline, answers: gather.into_answers() }),
        }
    }

    /// Makes the call and waits for its end.
    async fn make(&self, body: &[u8], wanted: Wanted, pending: &mut Pending<'_>) -> Result<(), CastError> {
        // Closed never, so it is there sooner or later.
        let room = self.shared.room.acquire().await.map_err(|_| CastError::Ended(None))?;
        let done = Arc::new(Notify::new());
        let (number, oldest) = {
            let mut state = self.shared.state();
            if state.is_over {
                return Err(CastError::Ended(None));
            }
            // Given back when no call before the next one is waited for.
            room.forget();
            state.begin(wanted, done.clone())
        };
        pending.number = Some(number);
        let mut payload = BytesMut::with_capacity(CALL_BYTES + body.len());
        payload.put_u8(CALL);
        payload.put_u64_le(number);
        payload.put_u64_le(oldest);
        payload.put_slice(body);
        self.group.cast(payload.freeze()).await?;
        done.notified().await;
        Ok(())
    }
}

/// A call that is forgotten when it is over, or when nobody waits for it any more.
struct Pending<'a> {
    shared: &'a Shared,
    /// `None` before it has begun, and after its end.
    number: Option<u64>,
}

impl Pending<'_> {
    fn end(&mut self) -> (Option<Gather>, bool) {
        let mut state = self.shared.state();
        let (gather, room) = self.number.take().map_or((None, 0), |number| state.end(number));
        self.shared.room.add_permits(room);
        (gather, state.is_over)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

impl Call {
    /// Who calls.
    pub fn from(&self) -> ProcessId {
        self.from
    }

    /// What is asked.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Answers. It leaves, unless the caller has given it up by then, when [`Calls::next`] is waited for.
    ///
    /// # Errors
    /// [`CastError::TooLarge`]: beside 25 bytes, `body` does not fit a message of the group. The caller is told that this
    /// member will not answer.
    pub fn answer(self, body: &[u8]) -> Result<(), CastError> {
        let limit = self.shared.answer_bytes_max;
        let fits = body.len() <= limit;
        let body_said = fits.then(|| Bytes::copy_from_slice(body));
        let answer = Answer { to: self.from, number: self.number, body: body_said };
        self.shared.state().put_answer(answer);
        self.shared.wake.notify_one();
        if fits { Ok(()) } else { Err(CastError::TooLarge { size: body.len(), limit }) }
    }
}

impl Answer {
    /// Whoever has gone, or has not called as a member, waits for nothing.
    fn is_waited_for(&self, waited: &BTreeMap<ProcessId, u64>) -> bool {
        waited.get(&self.to).is_some_and(|oldest| self.number >= *oldest)
    }

    fn encode(&self) -> Bytes {
        let body = self.body.as_deref().unwrap_or_default();
        let mut answer = BytesMut::with_capacity(ANSWER_BYTES + body.len());
        answer.put_u8(if self.body.is_some() { ANSWER } else { REFUSAL });
        answer.put_u64_le(self.to.node);
        answer.put_u64_le(self.to.incarnation);
        answer.put_u64_le(self.number);
        answer.put_slice(body);
        answer.freeze()
    }
}

impl<O: Order> Clone for Caller<O> {
    fn clone(&self) -> Self {
        Self { group: self.group.clone(), shared: self.shared.clone() }
    }
}

impl<O: Order> fmt::Debug for Caller<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "caller in {:?}", self.group)
    }
}

impl<O: Order> fmt::Debug for Calls<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "calls in {:?}", self.group)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {} of {}, {} bytes", self.number, self.from, self.body.len())
    }
}

/// Calls of one member from the oldest one on that it waits for; further ones wait. A call that nobody answers until its
/// deadline may hold up later ones.
pub const CALLS_MAX: usize = 8192;

/// So few answers are not searched for such that nobody waits for.
const ANSWERS_UNSOUGHT: usize = 1024;

/// What a message is, by its first byte.
const CALL: u8 = 0;
const ANSWER: u8 = 1;
const PLAIN: u8 = 2;
const REFUSAL: u8 = 3;

/// What is before the body of a call: its number, and that of the oldest one.
const CALL_BYTES: usize = 17;
/// And of an answer: the caller and its number.
const ANSWER_BYTES: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: u64) -> ProcessId {
        ProcessId { node, incarnation: 1 }
    }

    #[test]
    fn g10_calls_make_room_in_their_order_so_that_the_oldest_one_bounds_how_many_answers_may_wait() {
        let mut state = State::default();
        let begin = |state: &mut State| state.begin(Wanted::All, Arc::default());
        assert_eq!([(); 4].map(|()| begin(&mut state)), [(0, 0), (1, 0), (2, 0), (3, 0)]);
        assert_eq!(state.end(1).1, 0, "the first one is waited for");
        assert_eq!(state.end(2).1, 0);
        assert_eq!(state.end(0).1, 3);
        assert_eq!(begin(&mut state), (4, 3));
        assert_eq!(state.end(3).1 + state.end(4).1, 2, "in the end all room is there again");
        assert!(state.end(4).0.is_none(), "an end counts once");
    }

    #[test]
    fn g10_answers_that_their_caller_does_not_wait_for_any_more_are_not_kept() {
        let mut state = State::default();
        let answer = |to, number| Answer { to: id(to), number, body: None };
        state.waited.extend([(id(1), 0), (id(2), 0)]);
        state.put_answer(answer(2, 3));
        // Called and given up, again and again, while no answer leaves.
        for number in 0..100_000_u64 {
            state.waited.insert(id(1), number.saturating_sub(9));
            state.put_answer(answer(1, number));
        }
        assert!(state.answers.len() <= ANSWERS_UNSOUGHT + 11, "{} answers wait", state.answers.len());
        assert!(state.next_answer().is_some_and(|first| first.to == id(2)));
        let left: Vec<_> = std::iter::from_fn(|| state.next_answer()).map(|answer| answer.number).collect();
        assert_eq!(left, (99_990..100_000).collect::<Vec<_>>());
        // Who has left waits for nothing.
        state.put_answer(answer(3, 1));
        assert!(state.next_answer().is_none());
    }
}
