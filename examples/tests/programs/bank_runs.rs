//! The bank as a user runs it: all of its processes, on small files.

use std::collections::BTreeSet;
use std::fs;

use super::process::{Running, run, scratch, text};

/// The shipped list's header and first lines, as a file of their own.
fn first_lines(count: usize, name: &str) -> String {
    let shipped =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/transfers.csv")).expect("it ships");
    let path = scratch(name);
    let lines: Vec<&str> = shipped.lines().take(count + 1).collect();
    fs::write(&path, lines.join("\n")).expect("a scratch file");
    path
}

#[test]
fn a02_a_process_is_killed_in_the_middle_and_no_cent_is_lost_or_made() {
    let (transfers, refused) = (first_lines(3_000, "kill.csv"), scratch("kill-refused.txt"));
    let ended = run("bank", &["--transfers", &transfers, "--seed", "7", "--refused", &refused]);
    let report = text(&ended.stdout);
    assert!(ended.status.success(), "{report}{}", text(&ended.stderr));
    assert!(report.contains("3000 read: "), "{report}");
    assert!(report.contains("serving again after "), "{report}");
    assert!(report.contains("proof        holds"), "{report}");
    assert!(text(&ended.stderr).contains("of 3000 lines"), "progress is shown: {}", text(&ended.stderr));

    // What a line itself is refused for does not depend on when it is looked at.
    let refused = fs::read_to_string(refused).expect("written");
    let said: BTreeSet<&str> = refused.lines().collect();
    for line in [
        "line 49: account b1-0128 holds less than the 500000156 cents of the transfer",
        "line 51: id 1056 was used on line 28",
        "line 53: account b4-9814 does not exist",
        "line 181: 5 columns instead of 4",
        "line 611: cents \"3199.50\" is not a number",
        "line 720: amount 0 is not positive",
        "line 846: amount 4658000000000000000000 exceeds the limit of 1000000000 cents",
        "line 923: from \"account 17\" is not an account name such as b1-0042",
        "line 1287: amount -1038 is not positive",
        "line 1839: from and to are both b1-0177",
    ] {
        assert!(said.contains(line), "{line} is not among {refused}");
    }
}

#[test]
fn a02_every_process_is_killed_once_while_all_orders_are_two_phase_commits() {
    // Every order is between branches: whoever is killed coordinates and takes part, and is its group's sequencer once.
    let mut lines = "id,from,to,cents\n".to_owned();
    for id in 0..2_000 {
        let (from, to) = (1 + id % 3, 1 + (id + 1 + id % 2) % 3);
        lines.push_str(&format!("{id},b{from}-{:04},b{to}-{:04},7\n", id % 199, id % 197));
    }
    let transfers = scratch("between.csv");
    fs::write(&transfers, lines).expect("a scratch file");
    let ended = run("bank", &["--transfers", &transfers, "--kills", "9", "--clients", "32"]);
    let report = text(&ended.stdout);
    assert!(ended.status.success(), "{report}{}", text(&ended.stderr));
    for branch in 1..=3 {
        for replica in 0..3 {
            let part = format!("kill         branch {branch} replica {replica} after ");
            assert!(report.contains(&part), "{part} is not in {report}");
        }
    }
    assert!(report.contains("2000 executed, 0 refused"), "{report}");
    assert!(report.contains("proof        holds: each of 2000 acknowledged transfers"), "{report}");
}

#[test]
fn a02_a_bank_of_single_processes_runs_without_a_kill() {
    let transfers = first_lines(300, "single.csv");
    let ended = run("bank", &["--transfers", &transfers, "--replicas", "1", "--no-kill", "--clients", "4"]);
    let report = text(&ended.stdout);
    assert!(ended.status.success(), "{report}{}", text(&ended.stderr));
    assert!(report.contains("kill         none") && report.contains("proof        holds"), "{report}");
}

#[test]
fn a02_a_storm_of_losses_copies_and_kills_leaves_the_books_balanced_exactly_once_and_not_at_least_once() {
    let exactly_once = run("bank", &["--seconds", "4", "--seed", "3"]);
    let report = text(&exactly_once.stdout);
    assert!(exactly_once.status.success(), "{report}{}", text(&exactly_once.stderr));
    assert!(report.contains("books        balance: "), "{report}");
    // The machine may be busy; something must have happened all the same.
    assert!(!report.contains("transfers    0 completed"), "{report}");
    assert!(!report.contains("kill         0 times a branch, 0 times a customer"), "{report}");

    let at_least_once = run("bank", &["--seconds", "3", "--seed", "3", "--at-least-once"]);
    let report = text(&at_least_once.stdout);
    assert_eq!(at_least_once.status.code(), Some(1), "{report}{}", text(&at_least_once.stderr));
    assert!(report.contains("books        DO NOT BALANCE: "), "{report}");
}

#[test]
fn no_replica_outlives_a_main_process_that_is_killed() {
    let mut bank = Running::start_with_errors("bank", "bank", &["--clients", "1"]);
    // Replicas write to the same standard error: it ends when the last of them has.
    bank.expect("of 20500 lines");
    bank.kill();
    bank.expect_end();
}

#[cfg(unix)]
#[test]
fn a_bank_that_is_told_to_stop_leaves_no_process_and_no_file() {
    for (signal, status) in [("-INT", 130), ("-TERM", 143)] {
        let mut bank = Running::start_with_errors("bank", "bank", &["--clients", "1"]);
        bank.expect("of 20500 lines");
        let id = bank.id();
        let left = || {
            let names =
                fs::read_dir(scratch("")).expect("it exists").flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().starts_with(&format!("quorate-bank-{id}-"))).count()
        };
        assert_eq!(left(), 1);
        let told = std::process::Command::new("kill").args([signal, &id.to_string()]).status();
        assert!(told.expect("a system command").success());
        bank.expect_end();
        assert_eq!(bank.finish().code(), Some(status));
        assert_eq!(left(), 0, "the directory is gone");
    }
}

#[test]
fn the_bank_refuses_a_file_that_is_none_and_a_kill_that_nobody_survives() {
    for (arguments, part) in [
        (&["--transfers", "/nowhere/t.csv"][..], "/nowhere/t.csv"),
        (
            &["--transfers", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")],
            "instead of \"id,from,to,cents\"",
        ),
        (&["--refused", "/nowhere/refused.txt"], "bank: /nowhere/refused.txt: "),
        (&["--replicas", "2"], "no majority"),
        (&["--kills", "51"], "51 is not in 0..=50"),
        (&["--replicas", "many"], "invalid value 'many'"),
    ] {
        let ended = run("bank", arguments);
        let said = text(&ended.stderr);
        assert!(!ended.status.success(), "{arguments:?}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

/// A replica alone, on a directory of its own.
fn replica(index: &str, directory: &str) -> Vec<String> {
    ["replica", "--branch", "1", "--index", index, "--directory", directory].map(str::to_owned).to_vec()
}

/// What a replica says on standard error until it ends, which must be a failure.
fn refusal(index: &str, directory: &str) -> String {
    let arguments = replica(index, directory);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut running = Running::start_with_errors("replica", "bank", &arguments);
    running.say("found");
    running.expect_end();
    let said = running.seen.join("\n");
    assert!(!running.finish().success() && !said.contains("panicked"), "{said}");
    said
}

#[tokio::test]
async fn q02_a_replica_with_a_damaged_or_a_foreign_directory_says_which_file_and_where_and_ends() {
    use quorate::journal::{Config, FileStorage, Journal, Record};
    let directory = scratch("damaged-replica");
    // Left over from an earlier run.
    let _ = fs::remove_dir_all(&directory);
    let place = std::path::Path::new(&directory).join("transactions");
    let open = || Journal::open(FileStorage::open(&place).expect("it can be made"), Config::new(100));
    let (journal, _) = open().expect("a good disk");
    for _ in 0..20 {
        journal.append(vec![Record::new(1, vec![7; 100])]).await.expect("a good disk");
    }
    journal.close().await;
    let file = place.join(format!("{:020}-{:020}.segment", 1, 0));
    let whole = fs::read(&file).expect("it can be read");

    // A bit in the tenth of twenty records.
    let mut flipped = whole.clone();
    flipped[4096 + 9 * 136 + 50] ^= 1;
    fs::write(&file, flipped).expect("it can be written");
    let said = refusal("0", &directory);
    let expected = format!("journal is corrupt: {} at byte {}", file.display(), 4096 + 9 * 136);
    assert!(said.contains(&expected), "{said}");

    // Cut off in the middle of it, it is the journal of a process that died there.
    fs::write(&file, &whole[..4096 + 9 * 136 + 50]).expect("it can be written");
    let arguments = replica("0", &directory);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut running = Running::start("replica", "bank", &arguments);
    running.say("found");
    running.expect("serving");
    assert!(running.finish().success());

    let said = refusal("1", &directory);
    assert!(said.contains(&format!("{directory} belongs to node 100, not to node 101")), "{said}");
}
