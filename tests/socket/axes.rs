//! The guide's table of the three axes: every cell is there, and names calls that exist.

const GUIDE: &str = include_str!("../../docs/guide.md");

/// Where the types of the table are.
const SOURCES: [(&str, &str); 7] = [
    ("Communicator", include_str!("../../middleware/src/socket/communicator/mod.rs")),
    ("Requester", include_str!("../../middleware/src/socket/request.rs")),
    ("Push", include_str!("../../middleware/src/socket/pipeline.rs")),
    ("Publisher", include_str!("../../middleware/src/socket/publish.rs")),
    ("ByteStream", include_str!("../../middleware/src/socket/stream.rs")),
    ("Connected", include_str!("../../middleware/src/socket/stream.rs")),
    ("queue::Queue", include_str!("../../middleware/src/queue/face.rs")),
];

/// True when the type has such a method.
fn exists(call: &str) -> bool {
    let Some((kind, method)) = call.rsplit_once("::") else { return false };
    let Some((_, source)) = SOURCES.iter().find(|(known, _)| *known == kind) else { return false };
    let body = source.split(&format!("impl {} {{", kind.trim_start_matches("queue::"))).nth(1);
    let body = body.and_then(|body| body.split("\n}\n").next()).unwrap_or_default();
    ["(", "<"].iter().any(|next| body.contains(&format!("fn {method}{next}")))
}

#[test]
fn s06_the_guide_places_every_cell_of_the_three_axes_and_names_what_is_there() {
    let table = GUIDE.split("### Which call is where").nth(1).expect("the guide has the table");
    let table = table.split("\n## ").next().unwrap_or_default();
    assert!(table.contains("| | synchronous | asynchronous |"));
    let rows =
        ["transient, discrete", "transient, streaming", "persistent, discrete", "persistent, streaming"];
    for row in rows {
        let line = table.lines().find(|line| line.starts_with(&format!("| {row} |"))).expect(row);
        let cells: Vec<_> = line.trim_matches('|').split('|').skip(1).collect();
        assert_eq!(cells.len(), 2, "{row}");
        for cell in cells {
            let mut calls = cell.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).peekable();
            assert!(calls.peek().is_some(), "{row}: {cell}");
            calls.for_each(|call| assert!(exists(call), "{row}: {call} is no call"));
        }
    }
    assert!(!exists("Push::receive") && !exists("Nobody::send"));
}
