//! Callers that each wait for their own answer, the same ones for every rival. Shared with `peers/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::worker::{Calls, Outcome, Task, Trips, say_result, wait_for_caller};

/// Calls between two looks at the clock, where the time of a single one is not asked for.
const CALLS_A_LOOK: u64 = 16;

/// A runtime of one thread: what one core can do is asked.
pub fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Keeps a server alive until the caller closes its standard input, then says what it took.
pub async fn serve_until_told() -> Outcome<()> {
    tokio::task::spawn_blocking(wait_for_caller).await??;
    say_result(&[])
}

/// A client and what it sends.
pub trait Caller: Clone + Send + Sync + 'static {
    /// One call, whose answer is the argument.
    fn call(&mut self) -> impl Future<Output = Outcome<()>> + Send;
}

/// Calls until the time is over and says the figures. Every caller is a task, as callers are.
pub async fn run(task: &Task, calls: Calls, mut caller: impl Caller) -> Outcome<()> {
    // What is made once is not measured: bindings, buffers, caches.
    caller.call().await?;
    if calls.in_flight == 1 {
        let task = task.clone();
        let alone = tokio::spawn(async move {
            let mut trips = Trips::new(&task)?;
            while trips.goes_on() {
                let start = Instant::now();
                caller.call().await?;
                trips.took(start)?;
            }
            trips.say()
        });
        return alone.await?;
    }
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let until = began + task.time;
    let callers: Vec<_> = (0..calls.in_flight)
        .map(|_| {
            let (mut caller, done) = (caller.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                while Instant::now() < until {
                    for _ in 0..CALLS_A_LOOK {
                        caller.call().await?;
                    }
                    done.fetch_add(CALLS_A_LOOK, Ordering::Relaxed);
                }
                Outcome::Ok(())
            })
        })
        .collect();
    for caller in callers {
        caller.await??;
    }
    say_result(&[
        ("messages", done.load(Ordering::Relaxed) as f64),
        ("seconds", began.elapsed().as_secs_f64()),
    ])
}
