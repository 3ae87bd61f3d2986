//! How many messages a second go one way, and how long is a round trip, beside the peers' sockets?

use std::time::Duration;

use crate::Settings;
use crate::contest::{Question, rivals};
use crate::report::{self, Table};
use crate::worker::{Kind, Outcome};

/// What is asked: a name, one way or a round trip, bytes of a message, between two processes or inside one.
const TABLES: [(&str, Kind, usize, bool); 6] = [
    ("one way, TCP, 64 B", Kind::OneWay, 64, true),
    ("one way, TCP, 1 KiB", Kind::OneWay, 1 << 10, true),
    ("one way, TCP, 64 KiB", Kind::OneWay, 64 << 10, true),
    ("round trip, TCP, 64 B", Kind::RoundTrip, 64, true),
    ("one way, in process, 64 B", Kind::OneWay, 64, false),
    ("round trip, in process, 64 B", Kind::RoundTrip, 64, false),
];

pub fn run(settings: &Settings) -> Outcome<()> {
    let rounds = settings.rounds.unwrap_or(if settings.quick { 3 } else { 7 });
    let time = Duration::from_millis(if settings.quick { 300 } else { 1_000 });
    let rivals = rivals(settings.build_peers)?;
    let versions: Vec<String> =
        rivals.iter().map(|rival| format!("{} {}", rival.name, rival.version)).collect();
    println!("{rounds} rounds of {:.1} s each; {}\n", time.as_secs_f64(), versions.join(", "));

    let mut tables = Vec::new();
    for (name, kind, bytes, is_apart) in TABLES {
        let question = Question { kind, bytes, is_apart, time };
        let able = rivals.iter().filter(|rival| rival.can(&question));
        let mut table = Table {
            name: name.to_owned(),
            kind,
            bytes,
            rows: able.map(|r| (r.clone(), Vec::new())).collect(),
        };
        for _ in 0..rounds {
            for (rival, runs) in &mut table.rows {
                match rival.run(&question) {
                    Ok(figures) => runs.push(figures),
                    Err(error) => eprintln!("{}, {name}: {error}", rival.name),
                }
            }
        }
        table.print();
        tables.push(table);
    }
    if let Some(path) = &settings.json {
        report::write_json(&tables, path)?;
    }
    if let Some(folder) = &settings.svg {
        report::draw(&tables, folder)?;
    }
    Ok(())
}
