//! A fact stands once; its copies in README, CONTRIBUTING, the check script and the documents are compared with it.

use crate::source::line_of;
use crate::tree::{Finding, Tree, assert_clean, assert_findings};

/// The check that the project runs on itself.
const CHECK: &str = ".ci/run";

/// Documents that a reader follows by hand: each must name the toolchain, and each of its commands must be run by
/// the check.
const FOLLOWED: &[&str] = &["README.md", "CONTRIBUTING.md"];

/// The README's program, and how many lines it may have, blank ones not counted.
const PROGRAM: &str = "examples/hello.rs";
const PROGRAM_LINES_MAX: usize = 20;

fn drifted_versions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let root = tree.text("Cargo.toml").unwrap_or_default();
    let (Some(rust), Some(version)) =
        (quoted_after(root, "\nrust-version = "), quoted_after(root, "\nversion = "))
    else {
        return vec![Finding::new(
            "Cargo.toml",
            0,
            "[workspace.package] states `version` and `rust-version`",
        )];
    };
    for (file, text) in tree.under("", "Cargo.toml") {
        let copies = text.match_indices("rust-version = \"").count();
        if file != "Cargo.toml" && copies > 0 {
            findings.push(Finding::new(file, 0, "`rust-version` stands once, in the root manifest"));
        }
    }
    for line_with in
        root.lines().enumerate().filter(|(_, l)| l.starts_with("quorate") && l.contains("path = "))
    {
        if !line_with.1.contains(&format!("version = \"={version}\"")) {
            let change = format!("the workspace's crates are released together: write `={version}`");
            findings.push(Finding::new("Cargo.toml", line_with.0 + 1, change));
        }
    }
    for file in FOLLOWED {
        let text = tree.text(file).unwrap_or_default();
        if !text.contains(&format!("Rust {rust}")) {
            findings.push(Finding::new(file, 0, format!("name the oldest toolchain: `Rust {rust}`")));
        }
    }
    let prose = tree.under("", ".md").chain(tree.under(CHECK, ""));
    for (file, text) in prose {
        for (at, _) in text.match_indices("Rust 1.") {
            let named = &text[at + "Rust ".len()..];
            let named =
                &named[..named.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(named.len())];
            if named.trim_end_matches('.') != rust {
                let change = format!("`Rust {named}` differs from `rust-version = \"{rust}\"` in Cargo.toml");
                findings.push(Finding::new(file, line_of(text, at), change));
            }
        }
        for (at, _) in text.match_indices("quorate = \"") {
            let named = quoted_after(&text[at..], "quorate = ").unwrap_or_default();
            if !version.starts_with(named) || named.is_empty() {
                let change = format!("`quorate = \"{named}\"` differs from version {version} in Cargo.toml");
                findings.push(Finding::new(file, line_of(text, at), change));
            }
        }
    }
    let changelog = tree.text("CHANGELOG.md").unwrap_or_default();
    if !changelog.contains(&format!("## {version}")) {
        findings.push(Finding::new("CHANGELOG.md", 0, format!("add a section `## {version}`")));
    }
    findings
}

fn drifted_program(tree: &Tree) -> Vec<Finding> {
    let program = tree.text(PROGRAM).unwrap_or_default();
    let body: Vec<&str> = program.lines().skip_while(|l| l.starts_with("//!") || l.is_empty()).collect();
    let readme = tree.text("README.md").unwrap_or_default();
    let Some(block) = blocks(readme).into_iter().find(|b| b.language == "rust") else {
        return vec![Finding::new("README.md", 0, format!("show {PROGRAM} in a ```rust block"))];
    };
    let mut findings = Vec::new();
    let count = body.iter().filter(|line| !line.trim().is_empty()).count();
    if count > PROGRAM_LINES_MAX {
        let change = format!("the README's program has at most {PROGRAM_LINES_MAX} lines, not {count}");
        findings.push(Finding::new(PROGRAM, PROGRAM_LINES_MAX, change));
    }
    let longest = body.len().max(block.lines.len());
    if let Some(first) = (0..longest).find(|i| body.get(*i) != block.lines.get(*i)) {
        let change = format!("differs from {PROGRAM}: {:?}", body.get(first).unwrap_or(&"(ends before)"));
        findings.push(Finding::new("README.md", block.first_line + first, change));
    }
    findings
}

fn commands_that_no_check_runs(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let check = tree.text(CHECK).unwrap_or_default();
    for file in FOLLOWED {
        for block in blocks(tree.text(file).unwrap_or_default()) {
            if !matches!(block.language, "sh" | "console") {
                continue;
            }
            for (offset, line) in block.lines.iter().enumerate() {
                let command = line.trim_start_matches("$ ").split(" #").next().unwrap_or_default();
                // The program's own arguments may differ: a reader has a terminal, the check has a pipe.
                let command = command.split(" -- ").next().unwrap_or_default().trim();
                let wanted = command.starts_with("cargo ") || command.starts_with("RUSTDOCFLAGS");
                if wanted && !runs(check, command) {
                    let change =
                        format!("`{command}` is not run by {CHECK}: run it there, or remove it here");
                    findings.push(Finding::new(file, block.first_line + offset, change));
                }
            }
        }
    }
    findings
}

/// True when the script has the command as a whole, not only as the beginning of another.
fn runs(script: &str, command: &str) -> bool {
    script.lines().filter(|line| !line.trim_start().starts_with('#')).any(|line| {
        line.match_indices(command).any(|(at, _)| {
            let rest = line[at + command.len()..].trim_start();
            rest.is_empty()
                || rest.starts_with("--  ")
                || rest.starts_with("-- ")
                || rest.starts_with(['|', ';', '&', '>', '<'])
        })
    })
}

fn broken_links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.under("", ".md") {
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, target) in links(text) {
            let outside = target.contains("://") || target.starts_with("mailto:");
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if outside {
                continue;
            }
            let resolved = if path.is_empty() { Some(file.to_owned()) } else { resolve(folder, path) };
            match resolved {
                Some(found) if tree.holds(&found) => {
                    let linked = tree.text(&found).unwrap_or_default();
                    if !anchor.is_empty() && found.ends_with(".md") && !headings(linked).any(|h| h == anchor)
                    {
                        findings.push(Finding::new(
                            file,
                            line,
                            format!("{found} has no heading `#{anchor}`"),
                        ));
                    }
                }
                _ => findings.push(Finding::new(file, line, format!("`{target}` leads nowhere"))),
            }
        }
    }
    findings
}

/// Only the public registry: no git dependency, no second source.
fn foreign_sources(tree: &Tree) -> Vec<Finding> {
    let text = tree.text("Cargo.lock").unwrap_or_default();
    text.lines()
        .enumerate()
        .filter(|(_, l)| {
            l.starts_with("source = ") && !l.contains("registry+https://github.com/rust-lang/crates.io-index")
        })
        .map(|(n, l)| Finding::new("Cargo.lock", n + 1, format!("only crates.io is a source, not {l}")))
        .collect()
}

/// Links `[text](target)` of a document, outside code blocks, with their lines.
pub(crate) fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (n, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = &line[at + 2..];
            if let Some(end) = target.find(')') {
                found.push((n + 1, &target[..end]));
            }
        }
    }
    found
}

/// The workspace path that `path` means in a document of `folder`; `None` when it leaves the workspace.
pub(crate) fn resolve(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

struct Block<'a> {
    language: &'a str,
    /// The line, from 1, of the first line inside.
    first_line: usize,
    lines: Vec<&'a str>,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut found: Vec<Block<'_>> = Vec::new();
    let mut open = false;
    for (n, line) in text.lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(language) if !open => {
                found.push(Block { language: language.trim(), first_line: n + 2, lines: Vec::new() });
                open = true;
            }
            Some(_) => open = false,
            None => {
                if let Some(block) = found.last_mut().filter(|_| open) {
                    block.lines.push(line);
                }
            }
        }
    }
    found
}

/// The anchors of a document's headings, as the usual renderers make them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|l| l.starts_with('#')).map(|l| {
        l.trim_start_matches('#')
            .trim()
            .to_lowercase()
            .chars()
            .filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            })
            .collect()
    })
}

fn quoted_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let rest = &text[text.find(key)? + key.len()..];
    rest.strip_prefix('"')?.split('"').next()
}

#[test]
fn versions_and_toolchain_are_the_same_wherever_they_are_named() {
    assert_clean(&drifted_versions(&Tree::of_workspace()));
}

#[test]
fn the_program_of_the_readme_is_the_one_that_runs() {
    assert_clean(&drifted_program(&Tree::of_workspace()));
}

#[test]
fn every_command_that_a_reader_is_told_is_run_by_the_check() {
    assert_clean(&commands_that_no_check_runs(&Tree::of_workspace()));
}

#[test]
fn every_relative_link_leads_somewhere() {
    assert_clean(&broken_links(&Tree::of_workspace()));
}

#[test]
fn every_dependency_comes_from_the_public_registry() {
    let tree = Tree::of_workspace();
    assert!(tree.text("Cargo.lock").is_some(), "Cargo.lock is part of the tree: examples are applications");
    assert_clean(&foreign_sources(&tree));
}

#[test]
fn planted_version_drift_is_found() {
    let root = "[workspace.package]\nversion = \"0.1.0\"\nrust-version = \"1.95\"\n[workspace.dependencies]\nquorate = { version = \"=0.1.0\", path = \"m\" }\n";
    let good = [
        ("Cargo.toml", root),
        ("README.md", "Rust 1.95.\nquorate = \"0.1\"\n"),
        ("CONTRIBUTING.md", "Rust 1.95 and\n"),
        ("CHANGELOG.md", "## 0.1.0\n"),
    ];
    assert_clean(&drifted_versions(&Tree::planted(good)));
    let bad = [
        (
            "Cargo.toml",
            "[workspace.package]\nversion = \"0.1.0\"\nrust-version = \"1.95\"\n[workspace.dependencies]\nquorate = { version = \"=0.0.9\", path = \"m\" }\n",
        ),
        ("README.md", "\nRust 1.90\nquorate = \"0.2\"\n"),
        ("CONTRIBUTING.md", "Rust 1.95"),
        ("middleware/Cargo.toml", "rust-version = \"1.95\""),
        ("CHANGELOG.md", "## Unreleased\n"),
    ];
    assert_findings(
        &drifted_versions(&Tree::planted(bad)),
        [
            ("middleware/Cargo.toml:1", "stands once"),
            ("Cargo.toml:5", "=0.1.0"),
            ("README.md:1", "name the oldest toolchain"),
            ("README.md:2", "`Rust 1.90` differs"),
            ("README.md:3", "`quorate = \"0.2\"` differs"),
            ("CHANGELOG.md:1", "## 0.1.0"),
        ],
    );
}

#[test]
fn a_planted_difference_between_readme_and_program_is_found() {
    let program = (PROGRAM, "//! Header.\n\nfn main() {\n    one();\n}\n");
    let good = Tree::planted([program, ("README.md", "# x\n```rust\nfn main() {\n    one();\n}\n```\n")]);
    assert_clean(&drifted_program(&good));
    let other = Tree::planted([program, ("README.md", "# x\n```rust\nfn main() {\n    two();\n}\n```\n")]);
    assert_findings(&drifted_program(&other), [("README.md:4", "one();")]);
    let longer = Tree::planted([program, ("README.md", "```rust\nfn main() {\n    one();\n}\nmore\n```\n")]);
    assert_findings(&drifted_program(&longer), [("README.md:5", "ends before")]);
}

#[test]
fn a_planted_command_that_nobody_runs_is_found() {
    let readme = (
        "README.md",
        "```sh\ncargo test --workspace   # all\ncargo run --example chat -- --name ann\ncargo run --example moon\n```\n",
    );
    let tree = Tree::planted([
        readme,
        (
            CHECK,
            "step test cargo test --workspace\n# cargo run --example moon\ncargo run --example chat -- --name bob | cat\ncargo run --example moonlight\n",
        ),
    ]);
    assert_findings(&commands_that_no_check_runs(&tree), [("README.md:4", "cargo run --example moon`")]);
}

#[test]
fn planted_dead_links_are_found() {
    let tree = Tree::planted([
        (
            "README.md",
            "[a](docs/a.md) [b](docs/b.md)\n[c](docs/a.md#the-top) [d](docs/a.md#no)\n```\n[x](code)\n```\n[w](https://x.example)",
        ),
        ("docs/a.md", "# The top!\n[up](../README.md) [out](../../etc/passwd)"),
    ]);
    assert_findings(
        &broken_links(&tree),
        [
            ("README.md:1", "`docs/b.md` leads nowhere"),
            ("README.md:2", "no heading `#no`"),
            ("docs/a.md:2", "leads nowhere"),
        ],
    );
}

#[test]
fn a_planted_foreign_source_is_found() {
    let tree = Tree::planted([("Cargo.lock", "[[package]]\nsource = \"git+https://example.org/x\"\n")]);
    assert_findings(&foreign_sources(&tree), [("Cargo.lock:2", "only crates.io")]);
}
