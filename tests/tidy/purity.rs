//! The deterministic zone: sources that may know neither clock, socket, thread, file, task nor chance.

use crate::source::{code_only, word_places};
use crate::tree::{Finding, Tree, assert_clean, assert_findings};

/// Folders whose every source file is deterministic.
const PURE: &[&str] = &[
    "middleware/protocols/src/",
    "transports/src/fault/model/",
    "transports/src/udp/machine/",
    "middleware/src/sim/",
];

/// Files in them that are not: what runs many seeds reads the command line and measures its own speed.
const IMPURE: &[&str] = &["middleware/src/sim/sweep.rs"];

/// What must not stand in a pure source, and what stands there instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("Instant", "time is an argument: `now: Time`"),
    ("SystemTime", "time is an argument: `now: Time`"),
    ("std::net", "a machine owns no socket: it emits `Output::Send`"),
    ("std::thread", "a machine owns no thread and never blocks"),
    ("std::fs", "a machine owns no file: it emits `Output::Persist`"),
    ("std::env", "configuration is an argument"),
    ("std::process", "a machine neither starts nor ends processes"),
    ("thread_local!", "state belongs into the machine's value"),
    ("tokio", "tasks belong to the driver"),
    ("async", "a machine is called, it does not wait"),
    ("thread_rng", "randomness is an argument, seeded by the driver"),
    ("rand::", "randomness is an argument, seeded by the driver"),
    ("getrandom", "randomness is an argument, seeded by the driver"),
    ("HashMap", "its iteration order differs between runs: use `BTreeMap`"),
    ("HashSet", "its iteration order differs between runs: use `BTreeSet`"),
    ("RandomState", "its seed differs between runs"),
];

/// What `quorate-protocols` may depend on; a new name needs a look at whether it is pure.
const DEPENDENCIES: &[&str] = &["bytes", "thiserror"];

/// What its tests may depend on besides.
const DEV_DEPENDENCIES: &[&str] = &["proptest"];

const MANIFEST: &str = "middleware/protocols/Cargo.toml";

fn impure_sources(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for folder in PURE {
        for (file, text) in tree.under(folder, ".rs").filter(|(file, _)| !IMPURE.contains(file)) {
            let code = code_only(text);
            for (word, instead) in FORBIDDEN {
                for (line, _) in word_places(&code, word) {
                    findings.push(Finding::new(file, line, format!("`{word}` in a pure source: {instead}")));
                }
            }
        }
    }
    findings
}

fn impure_dependencies(tree: &Tree) -> Vec<Finding> {
    let text = tree.text(MANIFEST).unwrap_or_default();
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(MANIFEST, 0, error.to_string())],
    };
    let mut findings = Vec::new();
    for (section, allowed) in
        [("dependencies", DEPENDENCIES), ("dev-dependencies", DEV_DEPENDENCIES), ("build-dependencies", &[])]
    {
        let names = manifest.get(section).and_then(toml::Value::as_table);
        for name in names.into_iter().flat_map(toml::Table::keys) {
            if !allowed.contains(&name.as_str()) {
                let line = text.lines().position(|l| l.starts_with(name.as_str())).map_or(0, |n| n + 1);
                let change = format!("`{name}` is not in the list of pure {section} (tests/tidy/purity.rs)");
                findings.push(Finding::new(MANIFEST, line, change));
            }
        }
    }
    findings
}

#[test]
fn protocols_know_no_clock_socket_task_or_chance() {
    let tree = Tree::of_workspace();
    assert!(PURE.iter().all(|folder| tree.under(folder, ".rs").next().is_some()), "a pure folder is empty");
    assert!(IMPURE.iter().all(|file| tree.holds(file)), "an exception names a file that is gone");
    assert_clean(&impure_sources(&tree));
}

#[test]
fn protocols_depend_on_nothing_impure() {
    assert_clean(&impure_dependencies(&Tree::of_workspace()));
}

#[test]
fn a_planted_clock_and_a_planted_hash_map_are_found() {
    let tree = Tree::planted([
        ("middleware/protocols/src/a.rs", "// Instant::now() in a comment is fine\nlet t = Instant::now();"),
        ("middleware/protocols/src/b/c.rs", "\n\nuse std::collections::HashMap;"),
        ("middleware/src/free.rs", "use std::time::Instant;"),
    ]);
    assert_findings(
        &impure_sources(&tree),
        [
            ("middleware/protocols/src/a.rs:2", "time is an argument"),
            ("middleware/protocols/src/b/c.rs:3", "use `BTreeMap`"),
        ],
    );
}

#[test]
fn a_planted_dependency_is_found() {
    let tree = Tree::planted([(MANIFEST, "[dependencies]\nbytes = \"1\"\ntokio = \"1\"\n")]);
    assert_findings(&impure_dependencies(&tree), [("middleware/protocols/Cargo.toml:3", "`tokio`")]);
}
