//! House rules that the compiler does not check: headers, nothing half-finished, nothing unbounded.

use crate::source::{code_only, word_places};
use crate::tree::{Finding, Tree, assert_clean, assert_findings};

/// What never stays in the tree, wherever it stands, and what to do instead.
const NEVER: &[(&str, &str)] = &[
    ("todo!", "finish it, or leave it out and say so in docs/catalogue.md"),
    ("unimplemented!", "finish it, or leave it out and say so in docs/catalogue.md"),
    ("dbg!", "remove it"),
    ("#[ignore", "a test that is not run proves nothing: mend it or remove it"),
    ("unsafe", "forbidden; a real need goes into UNSAFE in tests/tidy/habits.rs with its proof"),
    ("unbounded_channel", "give the channel a bound with a name and a reason"),
    ("mpsc::unbounded", "give the channel a bound with a name and a reason"),
];

/// Files that may say `unsafe`, each with its proof in its header.
const UNSAFE: &[&str] = &[];

/// Files that may have a channel without a bound, because something else bounds it.
const UNBOUNDED: &[&str] = &[
    // One answer for each view.
    "middleware/src/group/events.rs",
];

/// Folders whose files open with a `//!` header: purpose, guarantee, source, limits.
const HEADED: &[&str] = &["transports/", "middleware/", "examples/", "tests/", "benches/"];

/// What library code does not do, outside its tests: a peer, a file or a user could end the process by it.
const PANICS: &[&str] = &[".unwrap()", ".expect(\"", "panic!"];

/// Library files that may panic: their callers are tests.
const MAY_PANIC: &[&str] = &["middleware/src/sim/", "transports/src/conformance/"];

/// Sources that are a compiler's input, not ours to read: what the macro must refuse.
fn is_compile_case(file: &str) -> bool {
    file.contains("/compile_fail/") || file.contains("/compile_pass/") || file.contains("/ui/")
}

fn broken_habits(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.under("", ".rs").filter(|(file, _)| !is_compile_case(file)) {
        let code = code_only(text);
        for (word, instead) in NEVER {
            let allowed = match *word {
                "unsafe" => UNSAFE,
                word if word.contains("unbounded") => UNBOUNDED,
                _ => &[],
            };
            if allowed.contains(&file) {
                continue;
            }
            for (line, _) in word_places(&code, word) {
                findings.push(Finding::new(file, line, format!("`{word}`: {instead}")));
            }
        }
        if HEADED.iter().any(|folder| file.starts_with(folder)) && !text.starts_with("//!") {
            findings.push(Finding::new(
                file,
                1,
                "open the file with a `//!` header: purpose, guarantee, source, limits",
            ));
        }
    }
    findings
}

fn panics(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.under("", ".rs") {
        let is_library = (file.starts_with("middleware/") || file.starts_with("transports/"))
            && file.contains("/src/")
            && !file.ends_with("/tests.rs")
            && !file.contains("/src/tests/")
            && !MAY_PANIC.iter().any(|folder| file.starts_with(folder));
        if !is_library {
            continue;
        }
        // The tests of a file stand at its end.
        let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
        let code = code_only(&text[..end]);
        for pattern in PANICS {
            // A literal is blank in the code, so the quote is looked up in the text.
            for (line, at) in word_places(&code, pattern.trim_end_matches('"')) {
                if text[at..].starts_with(pattern) {
                    let change = format!(
                        "`{pattern}`: return a typed error; what cannot fail is written so that it cannot"
                    );
                    findings.push(Finding::new(file, line, change));
                }
            }
        }
    }
    findings
}

#[test]
fn library_code_does_not_panic_by_unwrapping() {
    assert_clean(&panics(&Tree::of_workspace()));
}

#[test]
fn a_planted_panic_is_found() {
    let tree = Tree::planted([
        (
            "middleware/src/a.rs",
            "fn f() {\n    x.unwrap();\n    y.expect(\"never\"); z.expect(4)?; \"panic!\";\n}\n#[cfg(test)]\nmod tests { fn t() { x.unwrap() } }\n",
        ),
        ("transports/src/tcp/tests.rs", "fn t() { panic!() }\n"),
        ("transports/src/tcp/mod.rs", "fn t() { panic!() }\n"),
        ("examples/a.rs", "fn t() { panic!() }\n"),
    ]);
    assert_findings(
        &panics(&tree),
        [
            ("middleware/src/a.rs:2", "`.unwrap()`"),
            ("middleware/src/a.rs:3", "`.expect(\"`"),
            ("transports/src/tcp/mod.rs:1", "`panic!`"),
        ],
    );
}

#[test]
fn nothing_half_finished_unsafe_or_unbounded_stays_and_every_file_opens_with_its_purpose() {
    assert_clean(&broken_habits(&Tree::of_workspace()));
}

#[test]
fn planted_bad_habits_are_found() {
    let tree = Tree::planted([
        ("middleware/src/a.rs", "//! Purpose.\nfn f() { todo!() } // todo! in words\n"),
        ("middleware/src/b.rs", "use x;\n"),
        ("tests/c/main.rs", "//! Purpose.\n#[test]\n#[ignore = \"slow\"]\nfn t() { unsafe {} }\n"),
        ("tests/rpc/compile_fail/d.rs", "fn main() { todo!() }\n"),
    ]);
    assert_findings(
        &broken_habits(&tree),
        [
            ("middleware/src/a.rs:2", "todo!"),
            ("middleware/src/b.rs:1", "header"),
            ("tests/c/main.rs:3", "not run"),
            ("tests/c/main.rs:4", "unsafe"),
        ],
    );
}
