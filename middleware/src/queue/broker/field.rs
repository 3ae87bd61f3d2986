//! Places in a message: of its metadata, or in its content (JSON pointers, RFC 6901).

use serde_json::{Map, Value};

use super::machine::Incoming;

/// A place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field<'a> {
    Content(&'a str),
    Key,
    Queue,
    Name,
    Priority,
    Deliveries,
}

impl<'a> Field<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        Ok(match text {
            "$key" => Self::Key,
            "$queue" => Self::Queue,
            "$name" => Self::Name,
            "$priority" => Self::Priority,
            "$deliveries" => Self::Deliveries,
            pointer => Self::Content(Self::content(pointer)?),
        })
    }

    /// A place in the content.
    pub(super) fn content(text: &'a str) -> Result<&'a str, String> {
        if text.is_empty() || text.starts_with('/') {
            Ok(text)
        } else {
            Err(format!("{text:?} is no place in the content, which begins with `/`"))
        }
    }

    /// What is there.
    pub(super) fn read(self, incoming: &Incoming<'_>, content: Option<&Value>) -> Option<Value> {
        let text =
            |bytes: Option<&[u8]>| bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).map(Value::from);
        match self {
            Self::Content(pointer) => content?.pointer(pointer).cloned(),
            Self::Key => text(incoming.key),
            Self::Queue => Some(incoming.queue.into()),
            Self::Name => text(incoming.name),
            Self::Priority => Some(incoming.priority.into()),
            Self::Deliveries => Some(incoming.deliveries.into()),
        }
    }
}

/// Writes `value` at `pointer`; objects that are missing on the way are made.
pub(super) fn write(content: &mut Value, pointer: &str, value: Value) -> Result<(), String> {
    let mut place = content;
    for word in pointer.split('/').skip(1) {
        let word = word.replace("~1", "/").replace("~0", "~");
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        place = match place {
            Value::Object(fields) => fields.entry(word).or_insert(Value::Null),
            Value::Array(elements) => {
                let element = word.parse::<usize>().ok().and_then(|index| elements.get_mut(index));
                element.ok_or_else(|| format!("{pointer:?}: the list has no element {word:?}"))?
            }
            _ => return Err(format!("{pointer:?} leads through a plain value")),
        };
    }
    *place = value;
    Ok(())
}

/// Takes out what is at `pointer`, if it is there.
pub(super) fn remove(content: &mut Value, pointer: &str) {
    let Some((parent, word)) = pointer.rsplit_once('/') else {
        *content = Value::Null;
        return;
    };
    let word = word.replace("~1", "/").replace("~0", "~");
    match content.pointer_mut(parent) {
        Some(Value::Object(fields)) => drop(fields.remove(&word)),
        Some(Value::Array(elements)) => {
            if let Some(index) = word.parse::<usize>().ok().filter(|index| *index < elements.len()) {
                elements.remove(index);
            }
        }
        _ => {}
    }
}

/// What a table is looked into by: texts, and what is written like one.
pub(super) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// Whether `text` is of the pattern, in which `*` stands for anything.
pub(super) fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    // The earliest place is right for all but the last part, which must stand at the end.
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether a topic is among those of a subscription.
pub(super) fn is_among(topic: &str, topics: &str) -> bool {
    let (mut words, mut wanted) = (topic.split('/'), topics.split('/'));
    loop {
        match (words.next(), wanted.next()) {
            (_, Some("#")) | (None, None) => return true,
            (Some(word), Some(want)) if want == "*" || want == word => {}
            _ => return false,
        }
    }
}
