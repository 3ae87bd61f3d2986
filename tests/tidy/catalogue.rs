//! docs/catalogue.md says truthfully what is there: every row, real files, tests that exist.

use std::collections::BTreeSet;

use crate::facts::resolve;
use crate::source::{code_only, word_places};
use crate::tree::{Finding, Tree, assert_clean, assert_findings};

const TABLE: &str = "docs/catalogue.md";

/// The rows of the catalogue, in its order: the letter of an area and how many rows it has.
const AREAS: &[(&str, usize)] = &[
    ("T", 8),
    ("S", 6),
    ("P", 6),
    ("R", 11),
    ("Q", 9),
    ("M", 7),
    ("G", 12),
    ("E", 6),
    ("O", 4),
    ("C", 3),
    ("X", 4),
    ("L", 4),
    ("D", 8),
    ("K", 4),
    ("F", 4),
    ("V", 4),
    ("A", 5),
];

/// What a row may be.
const STATES: &[&str] = &["done", "partly", "missing"];

/// The columns: id, capability, state, code, tests, example, what is missing.
const COLUMNS: usize = 7;

fn ids() -> Vec<String> {
    AREAS.iter().flat_map(|(area, rows)| (1..=*rows).map(move |row| format!("{area}{row}"))).collect()
}

struct Row<'a> {
    line: usize,
    cells: Vec<&'a str>,
}

/// The table's rows: lines whose first cell is an id.
fn rows(text: &str) -> Vec<Row<'_>> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('|'))
        .map(|(n, line)| Row {
            line: n + 1,
            cells: line.trim_matches('|').split('|').map(str::trim).collect(),
        })
        .filter(|row| {
            let mut letters = row.cells[0].chars();
            letters.next().is_some_and(|c| c.is_ascii_uppercase())
                && letters.next().is_some_and(|c| c.is_ascii_digit())
        })
        .collect()
}

fn untrue_rows(tree: &Tree, ids: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let text = tree.text(TABLE).unwrap_or_default();
    let rows = rows(text);
    let found: Vec<&str> = rows.iter().map(|row| row.cells[0]).collect();
    for id in ids {
        if !found.contains(&id.as_str()) {
            findings.push(Finding::new(TABLE, 0, format!("row {id} is not there")));
        }
    }
    if findings.is_empty() && found != ids.iter().map(String::as_str).collect::<Vec<_>>() {
        findings.push(Finding::new(TABLE, 0, "rows are out of order, repeated, or not in the catalogue"));
    }
    let tests = test_names(tree);
    for row in &rows {
        let mut add = |change: String| findings.push(Finding::new(TABLE, row.line, change));
        let [id, _, state, code, proofs, example, left] = row.cells[..] else {
            add(format!("a row has {COLUMNS} cells, this one {}", row.cells.len()));
            continue;
        };
        for name in code_spans(proofs) {
            if !tests.contains(name) {
                add(format!("{id}: no test is called `{name}`"));
            }
        }
        for span in code_spans(example) {
            if resolve("", &format!("examples/{span}.rs")).is_none_or(|path| !tree.holds(&path)) {
                add(format!("{id}: no example is called `{span}`"));
            }
        }
        let (has_code, has_proof) = (code.contains("]("), code_spans(proofs).next().is_some());
        match state {
            "done" if left != "-" => add(format!("{id} is done, so nothing is missing: write `-`")),
            "partly" if left == "-" => add(format!("{id} is partly there: say what is missing")),
            "done" | "partly" if !has_code || !has_proof => {
                add(format!("{id} is {state}: link its code and name a test, or call it missing"));
            }
            "missing" if has_code || has_proof => {
                add(format!("{id} has code or a test: call it partly, or empty the cells"));
            }
            "done" | "partly" | "missing" => {}
            other => add(format!("{id}: state is one of {STATES:?}, not `{other}`")),
        }
    }
    findings
}

/// Names of all functions under a test attribute.
fn test_names(tree: &Tree) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for (_, text) in tree.under("", ".rs") {
        let code = code_only(text);
        let lines: Vec<&str> = text.lines().collect();
        for (line, _) in word_places(&code, "fn ") {
            // The attributes stand on the lines right above, or in a macro such as proptest's.
            let is_test = (1..=6)
                .map_while(|up| (line - 1).checked_sub(up).and_then(|n| lines.get(n)))
                .map(|l| l.trim())
                .take_while(|l| {
                    l.starts_with('#') || l.starts_with("//") || l.ends_with(')') || l.ends_with(']')
                })
                .any(|l| l.starts_with("#[") && l.contains("test"));
            let name =
                lines[line - 1].split("fn ").nth(1).and_then(|rest| rest.split(['(', '<', ' ']).next());
            if let Some(name) = name.filter(|_| is_test) {
                names.insert(name);
            }
        }
    }
    names
}

/// The texts between back-ticks of a cell.
fn code_spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn the_catalogue_has_every_row_and_names_only_what_exists() {
    let tree = Tree::of_workspace();
    assert!(tree.text(TABLE).is_some(), "{TABLE} is missing");
    assert_clean(&untrue_rows(&tree, &ids()));
}

#[test]
fn planted_untruths_in_the_catalogue_are_found() {
    let head = "| id | capability | state | code | tests | example | missing |\n| --- | --- | --- | --- | --- | --- | --- |\n";
    let tests = (
        "tests/a/main.rs",
        "#[tokio::test(start_paused = true)]\nasync fn t01_real() {}\nfn t01_helper() {}\n",
    );
    let wanted: Vec<String> = ["T1", "T2", "T3", "T4", "T5"].map(str::to_owned).into();
    let check = |table: &str| {
        let table = format!("{head}{table}");
        untrue_rows(&Tree::planted([(TABLE, table.as_str()), tests, ("examples/bank.rs", "")]), &wanted)
    };
    assert_clean(&check(
        "| T1 | a | partly | [x](../y.rs) | `t01_real` | `bank` | much |\n| T2 | b | missing | - | - | - | all |\n| T3 | b | missing | - | - | - | all |\n| T4 | b | missing | - | - | - | all |\n| T5 | b | missing | - | - | - | all |\n",
    ));
    assert_findings(
        &check(
            "| T1 | a | done | [x](../y.rs) | `t01_helper` | - | - |\n| T2 | b | done | - | - | - | - |\n| T3 | b | partly | [x](../y.rs) | `t01_real` | `moon` | - |\n| T4 | b | missing | - | `t01_real` | - | all |\n| T5 | b | soon | - | - | - | all |\n",
        ),
        [
            ("docs/catalogue.md:3", "no test is called `t01_helper`"),
            ("docs/catalogue.md:4", "link its code"),
            ("docs/catalogue.md:5", "no example is called `moon`"),
            ("docs/catalogue.md:5", "say what is missing"),
            ("docs/catalogue.md:6", "has code or a test"),
            ("docs/catalogue.md:7", "`soon`"),
        ],
    );
    assert_findings(
        &check("| T2 | b | missing | - | - | - | all |\n"),
        [
            ("docs/catalogue.md:1", "row T1"),
            ("docs/catalogue.md:1", "row T3"),
            ("docs/catalogue.md:1", "row T4"),
            ("docs/catalogue.md:1", "row T5"),
        ],
    );
}
