//! The files that the checkers read, from the disk or planted by a test, and what a checker answers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Text files by their path from the workspace's root, with `/` between the parts.
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// The workspace that this test was built from.
    pub(crate) fn of_workspace() -> Self {
        let root = workspace_root();
        let mut files = BTreeMap::new();
        collect(&root, &root, &mut files);
        assert!(files.contains_key("Cargo.toml"), "no workspace at {}", root.display());
        Self { files }
    }

    /// A small tree for planting a violation.
    pub(crate) fn planted<const N: usize>(files: [(&str, &str); N]) -> Self {
        Self { files: files.map(|(path, text)| (path.to_owned(), text.to_owned())).into() }
    }

    /// The text of one file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// True when `path` is a file, or a folder that holds one.
    pub(crate) fn holds(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        self.files.contains_key(path) || self.files.keys().any(|file| file.starts_with(&folder))
    }

    /// All files under a folder (`""`: all) whose name ends with `suffix`.
    pub(crate) fn under(&self, folder: &str, suffix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.starts_with(folder) && path.ends_with(suffix))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

/// One broken rule: where, and what to change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    file: String,
    line: usize,
    change: String,
}

impl Finding {
    /// `line` counts from 1; 0 stands for the file as a whole.
    pub(crate) fn new(file: &str, line: usize, change: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, change: change.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line.max(1), self.change)
    }
}

/// Fails with every finding on a line of its own.
#[track_caller]
pub(crate) fn assert_clean(findings: &[Finding]) {
    let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(findings.is_empty(), "{} findings\n{}", list.len(), list.join("\n"));
}

/// Fails unless the findings are exactly these, each as `file:line: ...part of the text`.
#[track_caller]
pub(crate) fn assert_findings<const N: usize>(findings: &[Finding], expected: [(&str, &str); N]) {
    let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
    let all = list.len() == N
        && list
            .iter()
            .zip(expected)
            .all(|(found, (place, part))| found.starts_with(&format!("{place}: ")) && found.contains(part));
    assert!(all, "expected {expected:#?}, found {list:#?}");
}

/// The folder above this package.
pub(crate) fn workspace_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|e| panic!("{}: {e}", folder.display())).path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let built_or_private = name == "target" || (name.starts_with('.') && name != ".ci");
            if !built_or_private {
                collect(root, &path, files);
            }
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            // Files that are not UTF-8 text are none of the checkers' business.
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            files.insert(relative, text);
        }
    }
}
