//! Writes the bank's list of transfers, the same one for the same seed, to standard output.
//!
//! ```text
//! cargo run --example make_transfers -- --seed 1 > examples/transfers.csv
//! ```
//! Most lines are good. One in a hundred is malformed, and as many each pay from or to an account that does not exist,
//! overdraw, or repeat an earlier id; the bank refuses them all and must still balance.

#![allow(unreachable_pub, reason = "modules of one program")]

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use bank::accounts::{ACCOUNTS_PER_BRANCH, AccountId, BRANCHES};
use clap::Parser;

mod bank {
    pub mod accounts;
}

/// Writes a list of transfers for the bank to standard output.
#[derive(Parser)]
struct Arguments {
    /// Where the randomness starts; the same seed gives the same file.
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    /// How many lines, without the header.
    #[arg(long, default_value_t = LINES)]
    lines: u64,
}

/// Of the file that ships as `examples/transfers.csv`.
const SEED: u64 = 1;
/// Of the file that ships as `examples/transfers.csv`.
const LINES: u64 = 20_500;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    match write_transfers(arguments.seed, arguments.lines, &mut out).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make_transfers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_transfers(seed: u64, lines: u64, out: &mut impl Write) -> io::Result<()> {
    let mut chance = Chance(seed);
    writeln!(out, "id,from,to,cents")?;
    let mut ids = vec![1000];
    for _ in 0..lines {
        let repeated = ids[chance.below(ids.len() as u64) as usize];
        let id = ids[ids.len() - 1] + 1 + chance.below(3);
        ids.push(id);
        let from = account(&mut chance);
        // One in ten leaves the branch: those take a commit between two groups of processes.
        let to = if chance.below(10) == 0 { account(&mut chance) } else { neighbour(&mut chance, from) };
        let cents = 1 + chance.below(5_000);
        match chance.below(100) {
            0 => writeln!(out, "{}", malformed(&mut chance, id, from, to, cents))?,
            1 => writeln!(out, "{id},{},{to},{cents}", stranger(&mut chance))?,
            2 => writeln!(out, "{id},{from},{},{cents}", stranger(&mut chance))?,
            3 => writeln!(out, "{id},{from},{to},{}", 500_000_000 + cents)?,
            4 => writeln!(out, "{repeated},{from},{to},{cents}")?,
            _ => writeln!(out, "{id},{from},{to},{cents}")?,
        }
    }
    Ok(())
}

fn account(chance: &mut Chance) -> AccountId {
    let branch = 1 + chance.below(u64::from(BRANCHES)) as u8;
    AccountId { branch, number: chance.below(u64::from(ACCOUNTS_PER_BRANCH)) as u16 }
}

/// Another account of the same branch.
fn neighbour(chance: &mut Chance, of: AccountId) -> AccountId {
    let step = 1 + chance.below(u64::from(ACCOUNTS_PER_BRANCH) - 1) as u16;
    AccountId { number: (of.number + step) % ACCOUNTS_PER_BRANCH, ..of }
}

/// An account that nobody opened, sometimes at a branch that does not exist.
fn stranger(chance: &mut Chance) -> AccountId {
    let number = 5_000 + chance.below(5_000) as u16;
    AccountId { branch: 1 + chance.below(u64::from(BRANCHES) + 2) as u8, number }
}

fn malformed(chance: &mut Chance, id: u64, from: AccountId, to: AccountId, cents: u64) -> String {
    match chance.below(10) {
        0 => format!("{id},{from},{to}"),
        1 => format!("{id},{from},{to},{cents},EUR"),
        2 => format!("{id},{from},{to},{cents}.50"),
        3 => format!("{id},{from},{to},-{cents}"),
        4 => format!("{id},{from},{to},0"),
        5 => format!("{id},{from},{to},{cents}000000000000000000"),
        6 => format!("no. {id},{from},{to},{cents}"),
        7 => format!("{id},account 17,{to},{cents}"),
        8 => format!("{id},{from},{from},{cents}"),
        _ => String::new(),
    }
}

/// A small seeded source of numbers (splitmix64): this file's bytes must never change with a dependency.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; the bias of the remainder is far below what a list of transfers shows.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
