//! How things are written: for people, or one JSON object a line.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use quorate::queue::{QueueStats, RecordView, Standing, View};
use serde_json::{Map, Value, json};

/// A message's bytes: text where they are text.
pub(crate) fn payload(payload: &[u8]) -> (&'static str, String) {
    match std::str::from_utf8(payload) {
        Ok(text) => ("payload", text.to_owned()),
        Err(_) => ("payload_hex", payload.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

pub(crate) fn queue(out: &mut impl Write, json: bool, name: &str, stats: &QueueStats) -> io::Result<()> {
    let age = stats.oldest.and_then(|oldest| SystemTime::now().duration_since(oldest).ok());
    if json {
        let object = json!({
            "queue": name, "messages": stats.messages, "bytes": stats.bytes, "ready": stats.ready,
            "kept": stats.kept, "oldest_seconds": age.map(|age| age.as_secs_f64()),
        });
        return writeln!(out, "{object}");
    }
    let age = age.map_or_else(|| "-".to_owned(), rough);
    writeln!(
        out,
        "{name:<32} {:>9} messages {:>12} bytes {:>9} ready {:>9} kept  oldest {age}",
        stats.messages, stats.bytes, stats.ready, stats.kept
    )
}

pub(crate) fn message(out: &mut impl Write, json: bool, view: &View) -> io::Result<()> {
    let (field, text) = payload(&view.payload);
    let standing = match view.standing {
        Standing::Ready => "ready",
        Standing::Delayed => "delayed",
        Standing::Delivered => "delivered",
        Standing::Leaving => "leaving",
        Standing::Kept => "kept",
        _ => "other",
    };
    if !json {
        return writeln!(out, "{}\t{standing}\t{text}", view.id);
    }
    let mut object = Map::new();
    object.insert("id".to_owned(), view.id.as_u64().into());
    object.insert("standing".to_owned(), standing.into());
    object.insert("priority".to_owned(), view.priority.into());
    object.insert("deliveries".to_owned(), view.deliveries.into());
    object.insert("put_at".to_owned(), unix(view.put_at).into());
    if let Some(key) = &view.key {
        let (field, key) = payload(key);
        object.insert(field.replace("payload", "key"), key.into());
    }
    if let Some(expires) = view.expires_at {
        object.insert("expires_at".to_owned(), unix(expires).into());
    }
    object.insert(field.to_owned(), text.into());
    writeln!(out, "{}", Value::Object(object))
}

pub(crate) fn record(out: &mut impl Write, json: bool, record: &RecordView) -> io::Result<()> {
    let id = record.id.map(|id| id.as_u64());
    if json {
        let object = json!({
            "position": record.position.as_u64(), "what": record.what, "queue": record.queue, "id": id,
            "bytes": record.bytes,
        });
        return writeln!(out, "{object}");
    }
    let queue = record.queue.as_deref().unwrap_or("-");
    let id = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    writeln!(out, "{}\t{}\t{queue}\t{id}\t{} bytes", record.position, record.what, record.bytes)
}

/// Seconds since 1970.
fn unix(moment: SystemTime) -> f64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn rough(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
