//! The command line: what a user may choose, and what the main process tells a replica that it starts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Runs a bank of three branches, each a group of replica processes, through a list of transfers; kills one process in
/// the middle; and proves at the end that no cent was lost or made.
#[derive(Debug, Parser)]
#[command(name = "bank", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to run.
    #[command(flatten)]
    pub run: Run,
    /// Which part of the bank this process is; none: the whole.
    #[command(subcommand)]
    pub part: Option<Part>,
}

/// The whole bank.
#[derive(Debug, Args)]
pub struct Run {
    /// Decides which processes are killed and how clients space their retries.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The list of transfers, a CSV file with the columns id,from,to,cents.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/transfers.csv"))]
    pub transfers: PathBuf,
    /// Processes per branch.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=REPLICAS_MAX))]
    pub replicas: u8,
    /// How often a process is killed on the way. It is back before the next one is; none is killed again before all
    /// others were.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=KILLS_MAX))]
    pub kills: u8,
    /// Kill nobody: the same as --kills 0.
    #[arg(long, conflicts_with = "kills")]
    pub no_kill: bool,
    /// How many clients ask at the same time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=CLIENTS_MAX))]
    pub clients: u16,
    /// Write every refused line with its number and reason to this file.
    #[arg(long, value_name = "FILE")]
    pub refused: Option<PathBuf>,
    /// Instead of the file: customers move money between branches for so long, in processes that are killed again and
    /// again, as the branches' are, over a network that loses and doubles 30 % of all messages.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX),
        conflicts_with_all = ["transfers", "replicas", "kills", "no_kill", "clients", "refused"],
    )]
    pub seconds: Option<u64>,
    /// With --seconds: calls are only made at least once, and the books do not balance.
    #[arg(long, requires = "seconds")]
    pub at_least_once: bool,
}

/// The parts of the bank that run in processes of their own.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// One replica of one branch; started by the main process, which speaks to it over its standard input.
    #[command(hide = true)]
    Replica(Replica),
    /// A branch in bad weather.
    #[command(hide = true)]
    Vault(Vault),
    /// A client in bad weather.
    #[command(hide = true)]
    Customer(Customer),
}

/// One replica of one branch.
#[derive(Debug, Args)]
pub struct Replica {
    /// The branch, from 1.
    #[arg(long)]
    pub branch: u8,
    /// Which of the branch's replicas, from 0.
    #[arg(long)]
    pub index: u8,
    /// Where it keeps what must survive a crash.
    #[arg(long)]
    pub directory: PathBuf,
}

/// A branch in bad weather.
#[derive(Debug, Args)]
pub struct Vault {
    /// The branch, from 1.
    #[arg(long)]
    pub branch: u8,
    /// Where it listens.
    #[arg(long)]
    pub listen: String,
    /// Decides which messages are lost.
    #[arg(long)]
    pub seed: u64,
    /// Where it keeps what must survive a crash.
    #[arg(long)]
    pub directory: PathBuf,
}

/// A client in bad weather.
#[derive(Debug, Args)]
pub struct Customer {
    /// Which one, from 0.
    #[arg(long)]
    pub number: u8,
    /// Where the branches listen, in the order of their numbers.
    #[arg(long = "vault")]
    pub vaults: Vec<String>,
    /// Decides which messages are lost, and what is transferred.
    #[arg(long)]
    pub seed: u64,
    /// Whether calls are only made at least once.
    #[arg(long)]
    pub at_least_once: bool,
    /// Where it keeps what must survive a crash.
    #[arg(long)]
    pub directory: PathBuf,
}

/// More than nine processes per branch only cost time on one machine.
const REPLICAS_MAX: i64 = 9;
/// Every process of the largest bank once, and some twice.
const KILLS_MAX: i64 = 50;
/// Each client is one task with one call at a time.
const CLIENTS_MAX: i64 = 4096;

/// An hour.
const SECONDS_MAX: u64 = 3_600;

/// A view goes on only with a majority of the one before: of three, one may die.
pub const REPLICAS_TO_SURVIVE_A_KILL: u8 = 3;

impl Run {
    /// How often a process is killed.
    pub fn kills(&self) -> u8 {
        if self.no_kill { 0 } else { self.kills }
    }

    /// Refuses what cannot end well, before anything is started.
    pub fn check(&self) -> Result<(), String> {
        if self.kills() > 0 && self.replicas < REPLICAS_TO_SURVIVE_A_KILL {
            return Err(format!(
                "--replicas {} has no majority left when one is killed: use at least {REPLICAS_TO_SURVIVE_A_KILL}, or --no-kill",
                self.replicas
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_replicas_need_no_kill() {
        let parse =
            |line: &str| Arguments::try_parse_from(line.split(' ')).expect("valid arguments").run.check();
        assert!(parse("bank --replicas 2").is_err());
        assert!(parse("bank --replicas 2 --no-kill").is_ok());
        assert!(parse("bank --replicas 2 --kills 0").is_ok());
        assert!(parse("bank --replicas 3").is_ok());
    }

    #[test]
    fn senseless_numbers_are_refused() {
        for line in [
            "bank --replicas 0",
            "bank --replicas 10",
            "bank --clients 0",
            "bank --kills 51",
            "bank --kills 2 --no-kill",
            "bank --seed x",
            "bank --seconds 0",
            "bank --seconds 5 --kills 2",
            "bank --at-least-once",
            "bank --moon",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
