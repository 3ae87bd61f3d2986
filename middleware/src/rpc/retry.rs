//! Calls that are made again by the client itself: after a failure that allows it, or beside one that takes long.
//!
//! Guarantee   a call is made again only when it is certain that it was not executed and will not be, or when its method is
//!             idempotent. All tries together keep the deadline of the call, and all calls of a client the budget.
//! Method      pauses double, and half of each is chance, so that many clients do not come back at once. The budget is a
//!             tank: every call pays a little in, every repetition takes a whole call out; a service that fails entirely
//!             is asked little more often than one that works.
//! Source      Nygard, "Release It!"; Dean & Barroso, "The Tail at Scale" 2013 (hedged requests); the token bucket of
//!             gRPC's retry throttling (A6).
//! Limits      [`Retry::tries_max`], [`Hedge::extra_max`], [`Budget`]. Requests that get lost on the way need none of this:
//!             they are sent again under the same number, and are executed once.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::rpc::Doubt;
use tokio::time::Instant;

use super::call::{Call, Request};
use super::calls::Core;
use super::error::CallError;
use super::schema::Semantics;

/// When a client makes a failed call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// How often a call is made in all, the first time included. Default 3.
    pub tries_max: u32,
    /// The pause before the second try; doubles with each. Half of every pause is chance. Default 10 ms.
    pub pause_min: Duration,
    /// The longest pause. Default 1 s.
    pub pause_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { tries_max: 3, pause_min: Duration::from_millis(10), pause_max: Duration::from_secs(1) }
    }
}

/// When a client makes an idempotent call a second time while the first still goes on; the first answer counts, and the
/// other call is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hedge {
    /// How long the first, and each further one, is waited for alone. Default 1 s; a good value is what 95 of 100 calls
    /// stay below.
    pub after: Duration,
    /// Calls beside the first, at most. Default 1.
    pub extra_max: u32,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after: Duration::from_secs(1), extra_max: 1 }
    }
}

/// How many calls a client may add to those that it was asked for, by [`Retry`] and [`Hedge`] together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Budget {
    /// For every hundred calls so many may be added. Default 20.
    pub percent: u32,
    /// So many may be added at once, and before any call was made. Default 10.
    pub reserve: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { percent: 20, reserve: 10 }
    }
}

/// What a client has added to the calls that it was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryStats {
    /// Failed calls made again.
    pub retried: u64,
    /// Calls made beside others.
    pub hedged: u64,
    /// Calls that were not made again because the budget was used up.
    pub refused: u64,
}

/// The budget of one client.
pub(super) struct Tank {
    /// In hundredths of a call.
    level: AtomicU32,
    full: u32,
    percent: u32,
    retried: AtomicU64,
    hedged: AtomicU64,
    refused: AtomicU64,
}

impl Tank {
    pub(super) fn new(budget: Budget) -> Self {
        let full = budget.reserve.saturating_mul(CALL);
        let none = || AtomicU64::new(0);
        let (level, percent) = (AtomicU32::new(full), budget.percent);
        Self { level, full, percent, retried: none(), hedged: none(), refused: none() }
    }

    pub(super) fn stats(&self) -> RetryStats {
        RetryStats {
            retried: self.retried.load(Ordering::Relaxed),
            hedged: self.hedged.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn pay_in(&self) {
        let filled = |level: u32| Some(level.saturating_add(self.percent).min(self.full));
        let _ = self.level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, filled);
    }

    fn take_out(&self, counter: &AtomicU64) -> bool {
        let drained = |level: u32| level.checked_sub(CALL);
        let is_there = self.level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, drained).is_ok();
        if is_there { counter } else { &self.refused }.fetch_add(1, Ordering::Relaxed);
        is_there
    }
}

/// True when `request` may be made more than once by itself.
pub(super) fn concerns(core: &Core, request: &Request) -> bool {
    let may_hedge = core.options.hedge.is_some() && request.semantics == Semantics::Idempotent;
    // Streams cannot be read twice, and references are on their way once.
    let is_alone = request.semantics != Semantics::OneWay && request.travelled.is_none();
    is_alone && (core.options.retry.is_some() || may_hedge)
}

/// Makes a call as often as it may be and needs to be.
pub(super) async fn insist<K>(core: K, request: Request) -> Result<Bytes, CallError>
where
    K: Deref<Target = Core> + Clone + Unpin,
{
    let start = Instant::now();
    let left = || request.deadline.saturating_sub(start.elapsed());
    let tank = &core.tank;
    tank.pay_in();
    let tries_max = core.options.retry.map_or(1, |retry| retry.tries_max);
    for tries in 1.. {
        let begin = || Call::begin(core.clone(), request.again(left()), None);
        let error = match core.options.hedge.filter(|_| request.semantics == Semantics::Idempotent) {
            Some(hedge) => hedged(hedge, tank, begin).await,
            None => begin().await,
        };
        let error = match error {
            Err(error) if tries < tries_max && may_be_repeated(&error, request.semantics) => error,
            ended => return ended,
        };
        let pause =
            core.options.retry.map_or(Duration::ZERO, |retry| pause(&retry, tries, core.numbers.chance()));
        if pause >= left() || !tank.take_out(&tank.retried) {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
    // The loop has no end of its own.
    std::future::pending().await
}

/// Makes a call, and others beside it when it takes long; the first answer counts.
async fn hedged<K>(hedge: Hedge, tank: &Tank, begin: impl Fn() -> Call<K>) -> Result<Bytes, CallError>
where
    K: Deref<Target = Core> + Unpin,
{
    let mut going = vec![begin()];
    let mut extra_left = hedge.extra_max;
    let mut patience = Box::pin(tokio::time::sleep(hedge.after));
    let mut known: Option<CallError> = None;
    std::future::poll_fn(|cx| {
        loop {
            let mut at = 0;
            while let Some(call) = going.get_mut(at) {
                match Pin::new(call).poll(cx) {
                    Poll::Ready(Ok(answer)) => return Poll::Ready(Ok(answer)),
                    Poll::Ready(Err(error)) => {
                        drop(going.remove(at));
                        // What is in doubt stays in doubt, whatever becomes of the others.
                        known = known.take().filter(|known| !known.is_not_executed()).or(Some(error));
                    }
                    Poll::Pending => at += 1,
                }
            }
            if going.is_empty()
                && let Some(error) = known.take()
            {
                return Poll::Ready(Err(error));
            }
            if extra_left == 0 || patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if !tank.take_out(&tank.hedged) {
                extra_left = 0;
                continue;
            }
            extra_left -= 1;
            going.push(begin());
            patience.as_mut().reset(Instant::now() + hedge.after);
        }
    })
    .await
}

fn may_be_repeated(error: &CallError, semantics: Semantics) -> bool {
    match error {
        // The method's own code failed, or its answer cannot travel: it would again.
        CallError::MaybeExecuted(Doubt::HandlerFailed | Doubt::ReplyUnsendable) => false,
        CallError::MaybeExecuted(_) => semantics == Semantics::Idempotent,
        error => error.is_retryable(),
    }
}

/// Doubles with every try; half of it is chance.
fn pause(retry: &Retry, tries: u32, chance: f64) -> Duration {
    let doubled = retry.pause_min.saturating_mul(1 << (tries - 1).min(16));
    let half = doubled.min(retry.pause_max) / 2;
    half + half.mul_f64(chance)
}

const CALL: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_lets_some_calls_of_a_hundred_be_made_again() {
        let tank = Tank::new(Budget { percent: 20, reserve: 2 });
        let spent = |tries: u32| (0..tries).filter(|_| tank.take_out(&tank.retried)).count();
        assert_eq!(spent(10), 2, "the reserve");
        for _ in 0..5 {
            tank.pay_in();
        }
        assert_eq!(spent(10), 1);
        for _ in 0..1_000 {
            tank.pay_in();
        }
        assert_eq!(spent(10), 2, "it does not grow beyond its reserve");
        assert_eq!(tank.stats(), RetryStats { retried: 5, hedged: 0, refused: 25 });
    }

    #[test]
    fn pauses_double_and_half_of_each_is_chance() {
        let retry = Retry::default();
        for tries in 1..40 {
            let full = retry.pause_min.saturating_mul(1 << (tries - 1).min(16)).min(retry.pause_max);
            assert_eq!(pause(&retry, tries, 0.0), full / 2);
            let longest = pause(&retry, tries, 1.0);
            assert!(longest <= full && longest > full / 2, "{longest:?} of {full:?}");
        }
    }
}
