//! A bank: its branches' books, a list of transfers, and a proof at the end that no cent was lost or made.
//!
//! ```text
//! cargo run --release --example bank
//! cargo run --release --example bank -- --help
//! ```
#![allow(unreachable_pub, reason = "modules of one program")]

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use bank::arguments::{Arguments, Run};
use bank::branch::{Branch, Command, Leg, Outcome, Side};
use bank::input::{Line, Lines};
use bank::report::{Books, Report, Tally};
use clap::Parser as _;

mod bank {
    pub mod accounts;
    pub mod arguments;
    pub mod branch;
    pub mod input;
    pub mod report;
}

fn main() -> ExitCode {
    match run(&Arguments::parse().run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bank: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(run: &Run) -> Result<bool, Box<dyn Error>> {
    run.check()?;
    let file = File::open(&run.transfers).map_err(|error| format!("{}: {error}", run.transfers.display()))?;
    let mut branches: Vec<Branch> = (1..=bank::accounts::BRANCHES).map(Branch::open).collect();
    let mut tally = Tally::new();
    let began = Instant::now();
    for line in Lines::open(BufReader::new(file))? {
        tally.lines += 1;
        match line? {
            Line::Refused(line, reason) => tally.refuse(line, reason.kind(), &reason),
            Line::Transfer(line, order) => {
                let asked = Instant::now();
                let is_between = order.from.branch != order.to.branch;
                let [from, to] = [order.from.branch, order.to.branch].map(|b| usize::from(b).wrapping_sub(1));
                let missing =
                    [(order.from, from), (order.to, to)].into_iter().find(|(_, i)| *i >= branches.len());
                let outcome = if let Some((account, _)) = missing {
                    Outcome::Refused(bank::branch::Refusal::UnknownAccount(account))
                } else if !is_between {
                    branches[from].apply(&Command::Transfer(order))
                } else {
                    let legs = [(from, Side::Pays), (to, Side::Receives)];
                    let transaction = u128::from(line);
                    let refusal = legs.iter().find_map(|(at, side)| {
                        let leg = Leg { transfer: order, side: *side };
                        Some(branches[*at].apply(&Command::Prepare(transaction, leg)))
                            .filter(|o| *o != Outcome::Done)
                    });
                    for (at, _) in legs {
                        branches[at].apply(&Command::Finish(transaction, refusal.is_none()));
                    }
                    refusal.unwrap_or(Outcome::Done)
                };
                match outcome {
                    Outcome::Done => tally.execute(is_between, asked.elapsed()),
                    Outcome::Refused(refusal) => tally.refuse(line, refusal.kind(), &refusal),
                }
            }
        }
    }
    let books =
        Books(branches.iter().zip(1..).map(|(branch, number)| (number, vec![branch.audit()])).collect());
    let report = Report { tally: &tally, took: began.elapsed(), recovery: None, books };
    print!("{report}");
    if let Some(path) = &run.refused {
        let mut out = BufWriter::new(File::create(path)?);
        tally.write_refused(&mut out)?;
        out.flush()?;
    }
    Ok(report.flaws().is_empty())
}
