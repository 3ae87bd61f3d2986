//! How fast the erasure code is at the small blocks that streams have.
//!
//! Run       `cargo run --release -p quorate-protocols --example erasure`
//! Measures  one thread, shards of 1,200 bytes that lie in the cache, as many data shards lost as there is parity.
//! Prints    data of the blocks per second: k times 1,200 bytes for each block that was coded; the median of 501 rounds.
//! Blind to  memory that is not in the cache, and to the network.

#![allow(clippy::disallowed_methods, reason = "a measuring program may look at the clock")]

use std::time::Instant;

use quorate_protocols::stream::{CodeError, ErasureCode};

const SHARD: usize = 1_200;
const ROUNDS: usize = 501;
const BLOCKS: usize = 20;

fn main() -> Result<(), CodeError> {
    println!("| k | m | encoding | decoding 1 lost | decoding m lost |\n| --- | --- | --- | --- | --- |");
    for (k, m) in [(5, 1), (10, 2), (10, 4), (16, 4), (20, 4), (32, 4), (32, 8)] {
        let code = ErasureCode::new(k, m)?;
        let data: Vec<Vec<u8>> =
            (0..k).map(|at| (0..SHARD).map(|i| (i * 31 + at * 7) as u8).collect()).collect();
        let mut parity = vec![vec![0; SHARD]; m];
        let encoding = rate(k, || code.encode(&data, &mut parity))?;
        let whole: Vec<_> = data.iter().chain(&parity).cloned().map(Some).collect();
        let mut rates = [0.0; 2];
        for (rate_of, lost) in rates.iter_mut().zip([1, m]) {
            let mut shards = whole.clone();
            *rate_of = rate(k, || {
                shards[..lost].fill(None);
                code.reconstruct(&mut shards).map(|_| ())
            })?;
            assert_eq!(shards, whole);
        }
        println!("| {k} | {m} | {encoding:.2} GB/s | {:.2} GB/s | {:.2} GB/s |", rates[0], rates[1]);
    }
    Ok(())
}

/// Billions of bytes of data a second.
fn rate(k: usize, mut block: impl FnMut() -> Result<(), CodeError>) -> Result<f64, CodeError> {
    let mut rates = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..BLOCKS {
            block()?;
        }
        rates.push((k * SHARD * BLOCKS) as f64 / began.elapsed().as_secs_f64() / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[ROUNDS / 2])
}
