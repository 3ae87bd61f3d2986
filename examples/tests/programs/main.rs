//! The examples as a user meets them, processes with text going in and out; and the tests of their modules.
#![allow(unreachable_pub, dead_code, reason = "modules of programs, of which a test uses only parts")]

mod process;

#[path = "../../bank"]
mod bank {
    pub mod accounts;
    pub mod arguments;
    pub mod branch;
    pub mod input;
    pub mod processes;
    pub mod proof;
    pub mod report;
}

#[path = "../../chat"]
mod chat {
    pub mod room;
}

mod bank_runs;
mod chat_sessions;
mod print_table;

use process::run;

#[test]
fn the_shipped_list_of_transfers_is_what_the_generator_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/transfers.csv");
    let shipped = std::fs::read(path).expect("examples/transfers.csv ships with the sources");
    let made = run("make_transfers", &[]).stdout;
    let differs = shipped.split(|b| *b == b'\n').zip(made.split(|b| *b == b'\n')).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{path} differs (0 is the header): write it again with make_transfers");
    assert_eq!(shipped.len(), made.len());
    let other_seed = run("make_transfers", &["--seed", "2"]).stdout;
    assert!(other_seed != made, "the seed decides");
}
