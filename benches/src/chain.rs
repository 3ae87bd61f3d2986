//! What does it gain to call a reference before it has come: a chain of calls, each on what the one before returns.
//!
//! Set-up      two nodes over TCP in this process, each on a thread of its own; then the same with a delay in each direction
//!             of their connection. Both ways take turns, chain by chain, so that a noisy machine hurts both.
//! Blind spot  one machine, and nothing else under way.

use std::time::{Duration, Instant};

use quorate::node::Node;
use quorate::rpc::{Objects, Remote};
use quorate::service;
use quorate_transports::fault::FaultHandle;
use quorate_transports::fault::model::{LatencyModel, LinkModel};
use quorate_transports::tcp::Tcp;

use crate::Settings;
use crate::callers::runtime;
use crate::worker::Outcome;

/// Calls of a chain: eight that return a reference, and one that returns a number.
const CALLS: u64 = 9;

#[service]
trait Link {
    async fn next(&self) -> Remote<LinkClient>;
    async fn number(&self) -> u64;
}

struct Chain {
    number: u64,
    objects: std::sync::Arc<Objects>,
}

impl Link for Chain {
    async fn next(&self) -> Remote<LinkClient> {
        let next = Self { number: self.number + 1, objects: self.objects.clone() };
        self.objects.export(LinkServer::new(next)).expect("room for a chain")
    }
    async fn number(&self) -> u64 {
        self.number
    }
}

pub fn run(settings: &Settings) -> Outcome<()> {
    let chains = if settings.quick { 300 } else { 3_000 };
    println!(
        "a chain of {CALLS} calls, each on the reference that the one before returns; medians of {chains} chains"
    );
    println!("{:<28} {:>16} {:>16} {:>8}", "", "awaited, us", "ahead, us", "gain");
    for (name, delay) in [("TCP", Duration::ZERO), ("TCP, 1 ms each way", Duration::from_millis(1))] {
        let chains = if delay.is_zero() { chains } else { chains / 10 };
        let (awaited, ahead) = measure(delay, chains)?;
        println!("{name:<28} {awaited:>16.1} {ahead:>16.1} {:>8.1}", awaited / ahead);
    }
    Ok(())
}

/// Medians, in microseconds.
fn measure(delay: Duration, chains: u32) -> Outcome<(f64, f64)> {
    let faults = FaultHandle::new(1);
    let latency = LatencyModel::Constant(delay);
    faults.change(|network| network.set_links(1, 2, LinkModel { latency, fifo: true, ..LinkModel::PERFECT }));
    let (say_address, address) = std::sync::mpsc::channel();
    let (done, is_done) = tokio::sync::oneshot::channel::<()>();
    let server = {
        let faults = faults.clone();
        std::thread::spawn(move || -> Result<(), String> {
            let runtime = runtime().map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let node = match delay.is_zero() {
                    true => Node::builder(),
                    false => Node::builder().transport(faults.wrap(1, Tcp::new())),
                };
                let node = node.id(1).listen("tcp://127.0.0.1:0").start().await;
                let node = node.map_err(|error| error.to_string())?;
                let objects = std::sync::Arc::new(Objects::on(&node).map_err(|error| error.to_string())?);
                let serving = node.serve("chain", LinkServer::new(Chain { number: 0, objects }));
                let _serving = serving.map_err(|error| error.to_string())?;
                say_address.send(node.addresses()[0].to_string()).map_err(|error| error.to_string())?;
                // Ends with its sender, however that ends.
                let _ = is_done.await;
                Ok(())
            })
        })
    };
    let address = address.recv()?;
    let figures: Outcome<(f64, f64)> = runtime()?.block_on(async {
        let node = match delay.is_zero() {
            true => Node::builder(),
            false => Node::builder().transport(faults.wrap(2, Tcp::new())),
        };
        let node = node.id(2).start().await?;
        let _objects = Objects::on(&node)?;
        let chain = LinkClient::connect(&node, "chain", &address).await?;
        // A task, as callers are.
        let compared =
            tokio::spawn(async move { compare(&chain, chains).await.map_err(|error| error.to_string()) });
        Ok(compared.await??)
    });
    drop(done);
    server.join().map_err(|_| "the server panicked")??;
    figures
}

async fn compare(chain: &LinkClient, chains: u32) -> Outcome<(f64, f64)> {
    let (mut awaited, mut ahead) = (Vec::new(), Vec::new());
    for round in 0..chains + WARM_UP {
        let start = Instant::now();
        let mut link = chain.next().await?;
        for _ in 2..CALLS {
            link = link.next().await?;
        }
        let number = link.number().await?;
        let took = start.elapsed();
        drop(link);

        let start = Instant::now();
        let mut links = vec![chain.next_ahead()];
        for at in 2..CALLS as usize {
            links.push(links[at - 2].next_ahead());
        }
        let same = links[CALLS as usize - 2].number().await?;
        let took_ahead = start.elapsed();
        if (number, same) != (CALLS - 1, CALLS - 1) {
            return Err("a chain ended at the wrong link".into());
        }
        if round >= WARM_UP {
            awaited.push(took.as_secs_f64() * 1e6);
            ahead.push(took_ahead.as_secs_f64() * 1e6);
        }
    }
    Ok((median(awaited), median(ahead)))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Chains that are not measured: bindings are made, buffers grow.
const WARM_UP: u32 = 20;
