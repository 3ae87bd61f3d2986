//! How long does it take to decide whether a history is linearizable?
//!
//! Set-up      clients overlap on registers, 4 at a time, half reads, half writes; of one write in 200 the outcome is
//!             unknown, whether it took effect or not. Each history is built before the clock runs; the median of the
//!             rounds counts. Where there are several keys, each is searched apart.
//! Blind spot  all histories are linearizable: a refusal must exhaust the search and takes longer.
//! Run         cargo bench -p benches --bench history [-- --quick]

use std::time::{Duration, Instant};

use clap::Parser;
use quorate::history::{
    History, Limits, Operation, Register, RegisterCall, RegisterReturn, Specification, linearizable_by_key,
};

#[derive(Parser)]
struct Options {
    /// One round of each, and no million.
    #[arg(long)]
    quick: bool,
    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), quorate::history::Rejection> {
    let options = Options::parse();
    let rounds = if options.quick { 1 } else { 7 };
    println!("{:>10} {:>8} {:>14} {:>14}", "operations", "keys", "decided in ms", "operations/s");
    for (operations, keys) in [(850, 1), (10_000, 1), (100_000, 100), (1_000_000, 1_000)] {
        if options.quick && operations > 100_000 {
            continue;
        }
        let history = overlapping(operations, keys);
        let mut took = Vec::new();
        for _ in 0..rounds {
            let began = Instant::now();
            linearizable_by_key(&Keyed, &history, |call| call.0, &Limits::default())?;
            took.push(began.elapsed());
        }
        took.sort();
        let median: Duration = took[rounds / 2];
        let (millis, rate) = (median.as_secs_f64() * 1e3, operations as f64 / median.as_secs_f64());
        println!("{operations:>10} {keys:>8} {millis:>14.3} {rate:>14.0}");
    }
    Ok(())
}

/// Each operation takes effect at a moment of its own, is called up to 20 before and returns up to 20 after it.
fn overlapping(operations: u64, keys: u64) -> History<(u64, RegisterCall<u64>), RegisterReturn<u64>> {
    let mut state = 1_u64;
    let mut draw = move |below: u64| {
        // Knuth's multiplier: plain numbers, the same in each run.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut values = vec![None; usize::try_from(keys).unwrap_or_default()];
    let mut clocks = vec![100; values.len()];
    let mut history = History::default();
    for number in 0..operations {
        let key = draw(keys);
        let place = usize::try_from(key).unwrap_or_default();
        clocks[place] += 10;
        let (called, returned) = (clocks[place] - draw(20), clocks[place] + draw(20));
        let is_unknown = draw(200) == 0;
        let (call, answer) = if draw(2) == 0 {
            if !is_unknown || draw(2) == 0 {
                values[place] = Some(number);
            }
            (RegisterCall::Write(number), (!is_unknown).then_some(RegisterReturn::Written))
        } else {
            (RegisterCall::Read, Some(RegisterReturn::Value(values[place])))
        };
        let returned = answer.map(|answer| (returned, answer));
        history.push(Operation { process: number, call: (key, call), called, returned });
    }
    history
}

/// A register for each key.
struct Keyed;

impl Specification for Keyed {
    type State = Option<u64>;
    type Call = (u64, RegisterCall<u64>);
    type Return = RegisterReturn<u64>;

    fn initial(&self) -> Self::State {
        None
    }

    fn step(
        &self,
        state: &Self::State,
        call: &Self::Call,
        returned: Option<&Self::Return>,
    ) -> Option<Self::State> {
        Register::new().step(state, &call.1, returned)
    }

    fn is_read(&self, call: &Self::Call) -> bool {
        Register::new().is_read(&call.1)
    }
}
