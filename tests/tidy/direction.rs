//! Dependencies point down only: between the crates of the workspace, and between the modules of `quorate`.

use std::collections::BTreeMap;

use crate::source::{code_only, line_of, paths, word_places};
use crate::tree::{Finding, Tree, assert_clean, assert_findings};

/// What each member may depend on within the workspace, bottom-up: also the order of `members`.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("transports", "quorate-transports", &[]),
    ("middleware/journal", "quorate-journal", &[]),
    ("middleware/protocols", "quorate-protocols", &[]),
    ("middleware/macros", "quorate-macros", &[]),
    (
        "middleware",
        "quorate",
        &["quorate-transports", "quorate-journal", "quorate-protocols", "quorate-macros"],
    ),
    ("daemon", "quorate-superd", &["quorate"]),
    ("tool", "quorate-tool", &["quorate"]),
    // An example sees what a user sees.
    ("examples", "examples", &["quorate", "quorate-superd"]),
    (
        "tests",
        "tests",
        &[
            "quorate-transports",
            "quorate-journal",
            "quorate-protocols",
            "quorate-macros",
            "quorate",
            "quorate-superd",
        ],
    ),
    (
        "benches",
        "benches",
        &["quorate-transports", "quorate-journal", "quorate-protocols", "quorate-macros", "quorate"],
    ),
];

/// The modules of `middleware/src`, lowest layer first. A module may use the layers below its own, not its
/// neighbours: what two neighbours share belongs below them.
const LAYERS: &[&[&str]] = &[
    &["clock", "codec"],
    &["node"],
    &["driver"],
    &["socket", "rpc", "queue", "stream", "group"],
    &["replication", "commit", "recovery"],
    &["naming", "coordination"],
    &["host"],
];

/// Modules that stand apart: they use none of the layers and none of the layers uses them.
const APART: &[&str] = &["history", "sim"];

const FACE: &str = "middleware/src/";

fn wrong_crates(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let members = table(tree, "Cargo.toml")
        .get("workspace")
        .and_then(|w| w.get("members"))
        .and_then(toml::Value::as_array)
        .map(|list| list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect::<Vec<_>>())
        .unwrap_or_default();
    let expected: Vec<&str> = CRATES.iter().map(|(folder, ..)| *folder).collect();
    if members != expected {
        let change = format!("members must be, bottom-up, {expected:?} (or change tests/tidy/direction.rs)");
        findings.push(Finding::new("Cargo.toml", 0, change));
    }
    for (folder, name, allowed) in CRATES {
        let path = format!("{folder}/Cargo.toml");
        let text = tree.text(&path).unwrap_or_default();
        for (dependency, _) in dependencies(&table(tree, &path)) {
            // A crate may depend on itself for its tests, to switch a feature on.
            let ours = dependency != *name && CRATES.iter().any(|(_, name, _)| *name == dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                let change = format!("`{name}` must not depend on `{dependency}`: arrows go down only");
                findings.push(Finding::new(&path, line_starting(text, &dependency), change));
            }
        }
    }
    findings
}

fn wrong_modules(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let root_names = reexports(tree.text("middleware/src/lib.rs").unwrap_or_default());
    for (file, text) in tree.under(FACE, ".rs") {
        let inner = file.trim_start_matches(FACE).trim_end_matches(".rs");
        let mut place: Vec<&str> = inner.split('/').collect();
        if place.last() == Some(&"mod") {
            place.pop();
        }
        let own = place[0];
        if own == "lib" {
            continue;
        }
        if rank(own).is_none() && !APART.contains(&own) {
            let change =
                format!("module `{own}` has no place yet: add it to LAYERS in tests/tidy/direction.rs");
            findings.push(Finding::new(file, 0, change));
            continue;
        }
        let code = code_only(text);
        for (line, used) in used_modules(&code, place.len(), &root_names) {
            if used != own && !may_use(own, &used) {
                let change = format!("`{own}` must not use `{used}`: it is not in a layer below");
                findings.push(Finding::new(file, line, change));
            }
        }
    }
    findings
}

fn may_use(own: &str, used: &str) -> bool {
    match (rank(own), rank(used)) {
        (Some(own), Some(used)) => used < own,
        // Names that are no modules of ours, such as macros at the root, bind nobody.
        (_, None) => !APART.contains(&used),
        (None, Some(_)) => false,
    }
}

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The top-level modules that the code names by `crate::` or by climbing out with `super::`.
fn used_modules(code: &str, depth: usize, root_names: &BTreeMap<String, String>) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    for (line, at) in word_places(code, "crate::") {
        let tree = &code[at + "crate::".len()..];
        for path in paths(tree) {
            let module = root_names.get(&path[0]).unwrap_or(&path[0]);
            used.push((line, module.clone()));
        }
    }
    for (line, at) in word_places(code, "super::") {
        if at >= 2 && &code[at - 2..at] == "::" {
            continue;
        }
        for path in paths(&code[at..]) {
            let climbs = path.iter().take_while(|part| *part == "super").count();
            // Inline modules, `mod tests` above all, climb one more: a known module's name decides.
            if let Some(name) = path.get(climbs)
                && climbs >= depth
                && (rank(name).is_some() || APART.contains(&name.as_str()))
            {
                used.push((line, name.clone()));
            }
        }
    }
    used
}

/// Names that the root re-exports, each with the module it comes from.
fn reexports(lib: &str) -> BTreeMap<String, String> {
    let code = code_only(lib);
    let mut names = BTreeMap::new();
    for (_, at) in word_places(&code, "pub use ") {
        for path in paths(&code[at + "pub use ".len()..]) {
            let path: Vec<&String> = path.iter().filter(|part| *part != "crate" && *part != "self").collect();
            if let (Some(first), Some(last)) = (path.first(), path.last()) {
                names.insert((*last).clone(), (*first).clone());
            }
        }
    }
    names
}

/// Every dependency of a manifest, of whatever section, with its value.
fn dependencies(manifest: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut found = Vec::new();
    for (key, value) in manifest {
        let Some(section) = value.as_table() else { continue };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => {
                found.extend(section.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            "target" => {
                for target in section.values().filter_map(toml::Value::as_table) {
                    found.extend(dependencies(target));
                }
            }
            _ => {}
        }
    }
    found
}

/// What every member's manifest must say: facts come from the workspace, packages without a reader stay home.
fn wrong_manifests(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, name, _) in CRATES {
        let path = format!("{folder}/Cargo.toml");
        let text = tree.text(&path).unwrap_or_default();
        let manifest = table(tree, &path);
        let package = manifest.get("package").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let inherits = |value: Option<&toml::Value>| {
            value.and_then(|v| v.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
        };
        if package.get("name").and_then(toml::Value::as_str) != Some(name) {
            findings.push(Finding::new(&path, 0, format!("the package's name is `{name}`")));
        }
        for field in ["version", "edition", "rust-version", "license"] {
            if !inherits(package.get(field)) {
                findings.push(Finding::new(
                    &path,
                    line_starting(text, field),
                    format!("write `{field}.workspace = true`"),
                ));
            }
        }
        if !inherits(manifest.get("lints")) {
            findings.push(Finding::new(
                &path,
                line_starting(text, "[lints]"),
                "write `[lints] workspace = true`",
            ));
        }
        let published = name.starts_with("quorate");
        if published && !package.contains_key("description") {
            findings.push(Finding::new(&path, 0, "a published crate has a `description`"));
        }
        if !published && package.get("publish").and_then(toml::Value::as_bool) != Some(false) {
            findings.push(Finding::new(&path, 0, "write `publish = false`: only the library is published"));
        }
        for (dependency, value) in dependencies(&manifest) {
            if dependency != *name && !inherits(Some(&value)) {
                let change =
                    format!("`{dependency}`: its version stands in the workspace; write `workspace = true`");
                findings.push(Finding::new(&path, line_starting(text, &dependency), change));
            }
        }
    }
    findings
}

fn table(tree: &Tree, path: &str) -> toml::Table {
    tree.text(path).unwrap_or_default().parse().unwrap_or_default()
}

/// The line of the first entry of this name, 0 when there is none.
fn line_starting(text: &str, name: &str) -> usize {
    word_places(text, name)
        .into_iter()
        .find(|(_, at)| *at == 0 || text.as_bytes()[at - 1] == b'\n')
        .map_or(0, |(_, at)| line_of(text, at))
}

#[test]
fn crates_depend_downwards_only() {
    assert_clean(&wrong_crates(&Tree::of_workspace()));
}

#[test]
fn modules_of_the_face_depend_downwards_only() {
    assert_clean(&wrong_modules(&Tree::of_workspace()));
}

#[test]
fn every_member_takes_its_facts_and_lints_from_the_workspace() {
    assert_clean(&wrong_manifests(&Tree::of_workspace()));
}

#[test]
fn a_planted_upward_crate_is_found() {
    let root = "[workspace]\nmembers = [\"transports\", \"middleware/journal\", \"middleware/protocols\", \"middleware/macros\", \"middleware\", \"daemon\", \"tool\", \"examples\", \"tests\", \"benches\"]";
    let tree = Tree::planted([
        ("Cargo.toml", root),
        (
            "transports/Cargo.toml",
            "[dependencies]\nbytes = \"1\"\n[target.'cfg(unix)'.dependencies]\nquorate-journal.workspace = true\n",
        ),
        ("examples/Cargo.toml", "[dependencies]\nquorate-transports.workspace = true\n"),
    ]);
    assert_findings(
        &wrong_crates(&tree),
        [
            ("transports/Cargo.toml:4", "must not depend on `quorate-journal`"),
            ("examples/Cargo.toml:2", "must not depend on `quorate-transports`"),
        ],
    );
    let tree = Tree::planted([("Cargo.toml", "[workspace]\nmembers = [\"middleware\", \"transports\"]")]);
    assert_findings(&wrong_crates(&tree), [("Cargo.toml:1", "bottom-up")]);
}

#[test]
fn planted_upward_modules_are_found() {
    let tree = Tree::planted([
        ("middleware/src/lib.rs", "pub mod node;\npub use replication::{Replicated, state::Shape};\n"),
        ("middleware/src/codec.rs", "// crate::rpc is only named\nuse crate::codec::Inner;"),
        ("middleware/src/driver/mod.rs", "use crate::{node::Node, group::Group};\n"),
        ("middleware/src/node/mod.rs", "use crate::Replicated;\n"),
        ("middleware/src/node/link.rs", "fn f() { super::super::rpc::call() }\n"),
        ("middleware/src/queue/mod.rs", "use crate::node::Node;\nuse crate::rpc::Call;\n"),
        ("middleware/src/rpc/mod.rs", "use super::codec;\nuse crate::sim::Fault;\n"),
        ("middleware/src/sim/mod.rs", "use crate::node::Node;\n"),
        ("middleware/src/attic.rs", ""),
        (
            "middleware/src/commit/mod.rs",
            "use crate::{codec::Codec, rpc};\nmod tests { use super::super::group::View; }",
        ),
    ]);
    assert_findings(
        &wrong_modules(&tree),
        [
            ("middleware/src/attic.rs:1", "no place yet"),
            ("middleware/src/driver/mod.rs:1", "`driver` must not use `group`"),
            ("middleware/src/node/link.rs:1", "`node` must not use `rpc`"),
            ("middleware/src/node/mod.rs:1", "`node` must not use `replication`"),
            ("middleware/src/queue/mod.rs:2", "`queue` must not use `rpc`"),
            ("middleware/src/rpc/mod.rs:2", "`rpc` must not use `sim`"),
            ("middleware/src/sim/mod.rs:1", "`sim` must not use `node`"),
        ],
    );
}

#[test]
fn a_planted_private_version_and_missing_lints_are_found() {
    let good = |name: &str, more: &str| {
        format!(
            "[package]\nname = \"{name}\"\ndescription = \"d\"\npublish = false\nversion.workspace = true\nedition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n{more}"
        )
    };
    let lints = "[lints]\nworkspace = true\n";
    let manifests: Vec<(String, String)> =
        CRATES.iter().map(|(folder, name, _)| (format!("{folder}/Cargo.toml"), good(name, lints))).collect();
    let mut planted: [(&str, &str); 10] =
        std::array::from_fn(|i| (manifests[i].0.as_str(), manifests[i].1.as_str()));
    assert_clean(&wrong_manifests(&Tree::planted(planted)));
    let own_version =
        good("quorate-transports", "[lints]\nworkspace = true\n[dependencies]\nbytes = \"1\"\n");
    let no_lints = good("examples", "").replace("publish = false\n", "");
    planted[0].1 = &own_version;
    planted[7].1 = &no_lints;
    assert_findings(
        &wrong_manifests(&Tree::planted(planted)),
        [
            ("transports/Cargo.toml:12", "`bytes`"),
            ("examples/Cargo.toml:1", "[lints]"),
            ("examples/Cargo.toml:1", "publish = false"),
        ],
    );
}
