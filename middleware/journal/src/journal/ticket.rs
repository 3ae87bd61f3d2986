//! Waiting for one outcome, in a task or on a thread.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::line::Shared;

/// One outcome for one waiter.
pub(super) struct Ticket<T>(Mutex<TicketState<T>>);

struct TicketState<T> {
    outcome: Option<T>,
    waker: Option<Waker>,
    is_withdrawn: bool,
}

impl<T> Ticket<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(TicketState { outcome: None, waker: None, is_withdrawn: false })))
    }

    fn lock(&self) -> MutexGuard<'_, TicketState<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn complete(&self, outcome: T) {
        let waker = {
            let mut state = self.lock();
            state.outcome = Some(outcome);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.lock();
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.lock().is_withdrawn
    }
}

/// Waits for a ticket; dropped before its outcome, it withdraws it as far as that is still possible.
pub(super) struct Waiter<T> {
    pub(super) ticket: Arc<Ticket<T>>,
    /// Where it may still wait for room, and has to be taken out.
    pub(super) leaves: Option<Arc<Shared>>,
}

impl<T> Future for Waiter<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let outcome = self.ticket.poll(cx);
        if outcome.is_ready() {
            self.leaves = None;
        }
        outcome
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        self.ticket.lock().is_withdrawn = true;
        if let Some(shared) = self.leaves.take() {
            shared.forget_withdrawn();
        }
    }
}

/// Runs a future on the calling thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(outcome) => return outcome,
            // A stray wake-up only costs another poll.
            Poll::Pending => thread::park(),
        }
    }
}
