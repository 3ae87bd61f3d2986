//! `quorate`: the queues of a directory from the command line.
//!
//! Purpose     list, put, get, tail, browse, move, purge, dump, check and bench, for people and for pipes: a line in is a
//!             message, a message is a line out; `--json` gives one object a line.
//! Guarantee   what `put` was given is synced when it ends well; `get` removes a message after it was written out; `move`
//!             is exact, whatever crashes.
//! Exit codes  0 done; 1 it failed; 2 it was asked wrongly; 3 there is no such queue, or nothing in it; 4 another process
//!             has the directory; 5 the directory is damaged, or not one of queues.
//! Limits      one process owns a directory at a time: this works on queues whose node does not run.

mod arguments;
mod commands;
mod failure;
mod show;

use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quorate: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("quorate: {}", failure.with_causes());
            ExitCode::from(failure.code())
        }
    }
}
