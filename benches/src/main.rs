//! Comparisons between processes: quorate, loops by hand and the peers, one after the other in every round.
//!
//! Run       `cargo run --release -p benches -- sockets [--quick] [--rounds N] [--json FILE] [--svg FOLDER]`
//! Peers     are a package of their own (`benches/peers`), built with `--build-peers`; one that is missing is named.
//! Figures   medians of the rounds, with the least and the greatest; ratios of one run are claims, rates are not.

#![allow(unreachable_pub, reason = "modules of one program")]

mod audience;
mod by_hand;
mod callers;
mod chain;
mod connections;
mod contest;
mod inline_loop;
mod lanes;
mod log;
mod ours;
mod promises;
mod queues;
mod report;
mod rpc;
mod sockets;
mod worker;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::worker::{Kind, Outcome, Task};

#[derive(Parser)]
#[command(about = "Measures quorate beside loops by hand and beside its peers")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One-way rates and round trips of sockets, between processes and inside one.
    Sockets(Settings),
    /// Typed calls: alone, many at once, large ones, inside one process, and what promises cost.
    Rpc(Settings),
    /// Chains of calls, each on the reference that the one before returns.
    Chain(Settings),
    /// Urgent messages on a connection that a transfer fills.
    Lanes(Settings),
    /// Memory of idle connections, and clients that come and go.
    Connections(Settings),
    /// Publish and subscribe with a subscriber that never reads.
    Audience(Settings),
    /// Durable puts, here, into another process, and with the brokers that are installed.
    Queues(Settings),
    /// Writes on a replicated log, in memory and on disks.
    Log(Settings),
    /// All of these.
    All(Settings),
    /// One side of one comparison; the other commands start it.
    #[command(hide = true)]
    Worker { arguments: Vec<String> },
    /// The subscribers of `audience`.
    #[command(hide = true)]
    Attend(audience::Audience),
    /// The other process of `queues`.
    #[command(hide = true)]
    Depot(queues::Depot),
    /// One rival of `log`.
    #[command(hide = true)]
    LogSide(log::LogSide),
    /// A replica of `log`.
    #[command(hide = true)]
    LogFollower(log::LogFollower),
    /// The clients of `connections`.
    #[command(hide = true)]
    Crowd(connections::Crowd),
}

/// How to run, and where the figures go.
#[derive(Args)]
struct Settings {
    /// Fewer and shorter rounds: a minute in all.
    #[arg(long)]
    quick: bool,
    /// How often every rival runs.
    #[arg(long)]
    rounds: Option<usize>,
    /// Only tables with this in their name.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Writes every figure of every round to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws a picture of each table into this folder.
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// Builds the peers first; they need a C++ compiler, cmake and some minutes.
    #[arg(long)]
    build_peers: bool,
}

fn main() -> Outcome<()> {
    match Options::parse().command {
        Command::Sockets(settings) => sockets::run(&settings),
        Command::Rpc(settings) => rpc::run(&settings),
        Command::Chain(settings) => chain::run(&settings),
        Command::Lanes(settings) => lanes::run(&settings),
        Command::Connections(settings) => connections::run(&settings),
        Command::Audience(settings) => audience::run(&settings),
        Command::Queues(settings) => queues::run(&settings),
        Command::Log(settings) => log::run(&settings),
        Command::LogSide(side) => log::side(&side),
        Command::LogFollower(follower) => log::follow(&follower),
        Command::All(settings) => {
            sockets::run(&settings)?;
            rpc::run(&settings)?;
            chain::run(&settings)?;
            lanes::run(&settings)?;
            audience::run(&settings)?;
            queues::run(&settings)?;
            log::run(&settings)?;
            connections::run(&settings)
        }
        Command::Attend(audience) => audience::attend(&audience),
        Command::Depot(depot) => queues::keep(&depot),
        Command::Crowd(crowd) => connections::crowd(&crowd),
        Command::Worker { arguments } => {
            let task = Task::from_arguments(arguments.into_iter())?;
            match task.rival.as_str() {
                by_hand::NAME | by_hand::TWO_THREADS | by_hand::ONE_THREAD => by_hand::run(&task),
                inline_loop::NAME => inline_loop::run(&task),
                promises::PLAIN | promises::AT_MOST_ONCE | promises::EXACTLY_ONCE | promises::JOURNAL => {
                    promises::work(&task)
                }
                ours::NAME | ours::MANY | ours::TWO_THREADS | ours::ONE_THREAD => match task.kind {
                    Kind::Calls(calls) => rpc::work(&task, calls),
                    Kind::OneWay | Kind::RoundTrip => ours::run(&task),
                },
                other => Err(format!("{other} is none of ours").into()),
            }
        }
    }
}
