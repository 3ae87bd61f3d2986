//! A bank that survives the death of a process and proves that no cent was lost or made.
//!
//! Three branches keep accounts; each branch is a group of replica processes that execute the same orders in the same
//! order. Clients send the transfers of a file; a transfer between two branches is a two-phase commit between their
//! groups. In the middle one process is killed and started again, or several, one after the other.
//!
//! ```text
//! cargo run --example bank
//! cargo run --example bank -- --help
//! cargo run --example bank -- --seconds 60
//! cargo run --example bank -- --seconds 60 --at-least-once
//! ```
//! It ends with what was executed, what was refused and why, how fast, how long the recovery took, and the proof: every
//! transfer that was acknowledged is once in the books of both its ends, at every replica, and nothing else is; the
//! money of all branches is what it was at opening; and the replicas of each branch have the same state.
//! With `--seconds`, a third of all messages is lost and as many come twice, and the processes of branches and of clients
//! are killed again and again. A transfer is then a withdrawal and a deposit, two exactly-once calls; at the end the books
//! balance. With `--at-least-once` they do not, and it says by how much.
//!
//! The exit status is 0 only when the proof holds. What the branches know lives in the memory of their replicas: the
//! death of one is survived, that of a whole branch is not.
#![allow(unreachable_pub, reason = "modules of one program")]

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bank::arguments::{Arguments, Part, Run};
use bank::clients::{Chance, Hall};
use bank::cluster::Cluster;
use bank::input::{Line, Lines, Transfer};
use bank::report::{Recovery, Report, Tally};
use clap::Parser as _;
use tokio::task::JoinSet;

mod bank {
    pub mod accounts;
    pub mod arguments;
    pub mod books;
    pub mod branch;
    pub mod clients;
    pub mod cluster;
    pub mod customer;
    pub mod desk;
    pub mod input;
    pub mod processes;
    pub mod progress;
    pub mod proof;
    pub mod replica;
    pub mod report;
    pub mod storm;
    pub mod teller;
    pub mod vault;
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.part {
        Some(Part::Replica(replica)) => bank::replica::run(replica).await.map(|()| true),
        Some(Part::Vault(vault)) => bank::vault::run(vault).await.map(|()| true),
        Some(Part::Customer(customer)) => bank::customer::run(customer).await.map(|()| true),
        // What is dropped here on a signal ends its processes and removes its directory.
        None => tokio::select! {
            ended = run_whole(&arguments.run) => ended,
            signal = asked_to_stop() => {
                eprintln!("\nbank: stopped before the end");
                return ExitCode::from(128 + signal);
            }
        },
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bank: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run_whole(arguments: &Run) -> Result<bool, Box<dyn Error>> {
    match arguments.seconds {
        Some(seconds) => bank::storm::run(seconds, arguments.seed, arguments.at_least_once).await,
        None => run(arguments).await,
    }
}

async fn run(run: &Run) -> Result<bool, Box<dyn Error>> {
    run.check()?;
    let named = |path: &Path, error: &dyn Error| format!("{}: {error}", path.display());
    // Opened first: whoever wants the lines written must not learn at the end that they cannot be.
    let refused = match &run.refused {
        Some(path) => Some((path, File::create(path).map_err(|error| named(path, &error))?)),
        None => None,
    };
    let (orders, tally) = read(run)?;
    let lines = tally.lines;
    eprintln!(
        "bank: {lines} lines, {} orders; starting 3 branches of {} processes",
        orders.len(),
        run.replicas
    );

    let mut cluster = Cluster::start(run.replicas).await?;
    let hall = Arc::new(Hall::new(orders, tally));
    cluster.open_desks(&hall).await?;

    let began = Instant::now();
    let mut chance = Chance(run.seed);
    let mut clients = JoinSet::new();
    for _ in 0..run.clients {
        clients.spawn(Arc::clone(&hall).client(chance.next()));
    }
    let progress = tokio::spawn(bank::progress::show(Arc::clone(&hall), lines));
    let mut recoveries = kill(run.kills(), &mut cluster, &hall, lines, &mut chance).await?;
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    let took = began.elapsed();
    progress.await?;

    let books = cluster.audit(&hall).await;
    cluster.close().await?;
    for (recovery, silence) in recoveries.iter_mut().zip(hall.longest_silences()) {
        recovery.longest_silence = silence;
    }
    hall.tally(|tally| {
        let report = Report { tally, took, recoveries, books };
        write!(stdout(), "{report}")?;
        if let Some((path, file)) = refused {
            let mut out = BufWriter::new(file);
            tally.write_refused(&mut out).and_then(|()| out.flush()).map_err(|error| named(path, &error))?;
        }
        Ok(report.flaws().is_empty())
    })
}

/// Orders with their lines.
type Orders = Vec<(u64, Transfer)>;

/// All orders of the file, and a tally that has counted the lines that are none.
fn read(run: &Run) -> Result<(Orders, Tally), Box<dyn Error>> {
    let in_file = |error: &dyn Error| format!("{}: {}", run.transfers.display(), with_causes(error));
    let file = File::open(&run.transfers).map_err(|error| in_file(&error))?;
    let (mut orders, mut tally) = (Vec::new(), Tally::new());
    for line in Lines::open(BufReader::new(file)).map_err(|error| in_file(&error))? {
        tally.lines += 1;
        match line.map_err(|error| in_file(&error))? {
            Line::Transfer(line, order) => orders.push((line, order)),
            Line::Refused(line, reason) => tally.refuse(line, reason.kind(), &reason),
        }
    }
    Ok((orders, tally))
}

/// Spreads the kills over the lines; each process is started again on its directory before the next one is killed.
async fn kill(
    times: u8,
    cluster: &mut Cluster,
    hall: &Hall,
    lines: u64,
    chance: &mut Chance,
) -> Result<Vec<Recovery>, Box<dyn Error>> {
    let mut recoveries = Vec::new();
    let victims = cluster.places(chance).into_iter().cycle();
    for (who, nth) in victims.zip(1..=u64::from(times)) {
        let due = lines * nth / (u64::from(times) + 1);
        let after_lines = *hall.finished().wait_for(|finished| *finished >= due).await?;
        let killed = Instant::now();
        hall.watch_silence(who.branch);
        cluster.restart(who, hall).await?;
        recoveries.push(Recovery {
            who,
            after_lines,
            took: killed.elapsed(),
            longest_silence: Duration::ZERO,
        });
    }
    Ok(recoveries)
}

/// Waits for Ctrl-C or a request to terminate; the signal's number.
async fn asked_to_stop() -> u8 {
    const INTERRUPT: u8 = 2;
    #[cfg(unix)]
    {
        const TERMINATE: u8 = 15;
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            return tokio::select! {
                _ = terminate.recv() => TERMINATE,
                _ = tokio::signal::ctrl_c() => INTERRUPT,
            };
        }
    }
    // Without a handler the system's own way of ending stays, so an error here leaves nobody waiting.
    match tokio::signal::ctrl_c().await {
        Ok(()) => INTERRUPT,
        Err(_) => std::future::pending().await,
    }
}

/// The error and what caused it, in one line.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
