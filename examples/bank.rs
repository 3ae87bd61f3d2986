//! A bank that survives the death of a process and proves that no cent was lost or made.
//!
//! Three branches keep accounts; each branch is a group of replica processes that execute the same orders in the same
//! order. Clients send the transfers of a file; a transfer between two branches is a two-phase commit between their
//! groups. In the middle one process is killed and started again.
//!
//! ```text
//! cargo run --release --example bank
//! cargo run --release --example bank -- --help
//! ```
//! It ends with what was executed, what was refused and why, how fast, how long the recovery took, and the proof: the
//! money of all branches is what it was at opening, and the replicas of each branch have the same state.
//! The exit status is 0 only when the proof holds.
#![allow(unreachable_pub, reason = "modules of one program")]

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bank::arguments::{Arguments, Part, Run};
use bank::clients::{Chance, Hall};
use bank::cluster::Cluster;
use bank::input::{Line, Lines, Transfer};
use bank::report::{Books, Recovery, Report, Tally};
use clap::Parser as _;
use tokio::task::JoinSet;

mod bank {
    pub mod accounts;
    pub mod arguments;
    pub mod books;
    pub mod branch;
    pub mod clients;
    pub mod cluster;
    pub mod desk;
    pub mod input;
    pub mod processes;
    pub mod progress;
    pub mod replica;
    pub mod report;
    pub mod teller;
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.part {
        Some(Part::Replica(replica)) => bank::replica::run(replica).await.map(|()| true),
        None => run(&arguments.run).await,
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

async fn run(run: &Run) -> Result<bool, Box<dyn Error>> {
    run.check()?;
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
    let recovery =
        if run.no_kill { None } else { Some(kill_one(&mut cluster, &hall, lines, &mut chance).await?) };
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    let took = began.elapsed();
    progress.abort();

    let audits = cluster.audit(&hall).await;
    let recovery = recovery.map(|r| Recovery { longest_silence: hall.longest_silence(r.who.branch), ..r });
    hall.tally(|tally| {
        let report = Report { tally, took, recovery, books: Books(audits) };
        print!("{report}");
        if let Some(path) = &run.refused {
            let mut out = BufWriter::new(File::create(path).map_err(|e| format!("{}: {e}", path.display()))?);
            tally.write_refused(&mut out)?;
            out.flush()?;
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

/// When half of the lines have an answer, kills one process and starts it again on its directory.
async fn kill_one(
    cluster: &mut Cluster,
    hall: &Hall,
    lines: u64,
    chance: &mut Chance,
) -> Result<Recovery, Box<dyn Error>> {
    let after_lines = *hall.finished().wait_for(|finished| *finished >= lines / 2).await?;
    let place = cluster.any_place(chance);
    let killed = Instant::now();
    hall.watch_silence(place.branch);
    cluster.restart(place, hall).await?;
    Ok(Recovery { who: place, after_lines, took: killed.elapsed(), longest_silence: Duration::ZERO })
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
