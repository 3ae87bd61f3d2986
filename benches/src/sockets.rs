//! How many messages a second go one way, and how long is a round trip, beside the peers' sockets?

use crate::Settings;
use crate::contest::{Asked, contest};
use crate::worker::{Kind, Outcome};

const TABLES: [Asked; 6] = [
    ("one way, TCP, 64 B", Kind::OneWay, 64, true),
    ("one way, TCP, 1 KiB", Kind::OneWay, 1 << 10, true),
    ("one way, TCP, 64 KiB", Kind::OneWay, 64 << 10, true),
    ("round trip, TCP, 64 B", Kind::RoundTrip, 64, true),
    ("one way, in process, 64 B", Kind::OneWay, 64, false),
    ("round trip, in process, 64 B", Kind::RoundTrip, 64, false),
];

pub fn run(settings: &Settings) -> Outcome<()> {
    contest(settings, &TABLES, &[])
}
