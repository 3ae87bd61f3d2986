//! Two schemas compared: which change breaks whom.
//!
//! Purpose     the schema of the last release is kept as text, as [`Schema`] prints it, and a test compares it with the
//!             schema of today.
//! Guarantee   what is said to break nobody needs no care in the order in which clients and servers are updated. The
//!             insides of users' own types are not seen: they are between the two sides' codecs.

use std::fmt;
use std::str::FromStr;

use super::schema::Schema;

/// A schema without its code: what its text says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    service: String,
    methods: Vec<MethodOutline>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct MethodOutline {
    name: String,
    arguments: Vec<String>,
    /// Types only: their names are not sent.
    added: Vec<String>,
    result: String,
    id: u32,
    signature: u32,
    /// Semantics and deadline, as printed.
    manner: String,
}

impl From<&Schema> for Outline {
    fn from(schema: &Schema) -> Self {
        let methods = schema.methods.iter().map(|method| {
            let types = |is_added| {
                let arguments = method.arguments.iter().filter(move |argument| argument.is_added == is_added);
                arguments.map(|argument| argument.ty.to_owned()).collect()
            };
            MethodOutline {
                name: method.name.to_owned(),
                arguments: types(false),
                added: types(true),
                result: method.result.to_owned(),
                id: method.id,
                signature: method.signature,
                manner: method.manner(),
            }
        });
        Self { service: schema.service.to_owned(), methods: methods.collect() }
    }
}

/// Reads what [`Schema`] prints.
impl FromStr for Outline {
    type Err = OutlineError;

    fn from_str(text: &str) -> Result<Self, OutlineError> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let error = |(line, text): (usize, &str)| OutlineError { line: line + 1, text: text.to_owned() };
        let first = lines.next().ok_or_else(|| error((0, "")))?;
        let service = first.1.trim().strip_prefix("service ").and_then(|rest| rest.split(' ').next());
        let service = service.ok_or_else(|| error(first))?.to_owned();
        let methods = lines.map(|line| MethodOutline::read(line.1.trim()).ok_or_else(|| error(line)));
        Ok(Self { service, methods: methods.collect::<Result<_, _>>()? })
    }
}

/// A line that no schema prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is none of a schema: {text:?}")]
pub struct OutlineError {
    /// Which line, counted from one.
    pub line: usize,
    /// What it says.
    pub text: String,
}

impl MethodOutline {
    fn read(line: &str) -> Option<Self> {
        let (front, back) = line.rsplit_once("   id ")?;
        let mut words = back.splitn(4, ' ');
        let id = u32::from_str_radix(words.next()?, 16).ok()?;
        words.next().filter(|word| *word == "types")?;
        let signature = u32::from_str_radix(words.next()?, 16).ok()?;
        let manner = words.next().unwrap_or_default().to_owned();
        let (name, rest) = front.split_once('(')?;
        let (mut arguments, mut added, mut start, mut depth) = (Vec::new(), Vec::new(), 0, 0);
        let mut end = None;
        for (at, c) in rest.char_indices() {
            let is_arrow = c == '>' && rest[..at].ends_with('-');
            match c {
                '(' | '<' | '[' => depth += 1,
                '>' | ']' if !is_arrow => depth -= 1,
                ',' | ')' if depth == 0 => {
                    let argument = rest[start..at].trim();
                    if !argument.is_empty() {
                        let (name, ty) = argument.split_once(": ")?;
                        let list = if name.starts_with("added ") { &mut added } else { &mut arguments };
                        list.push(ty.to_owned());
                    }
                    start = at + 1;
                    if c == ')' {
                        end = Some(at);
                        break;
                    }
                }
                ')' => depth -= 1,
                _ => {}
            }
        }
        let result = rest[end? + 1..].strip_prefix(" -> ")?.to_owned();
        Some(Self { name: name.to_owned(), arguments, added, result, id, signature, manner })
    }

    fn types(&self) -> String {
        format!("({}) -> {}", self.arguments.join(", "), self.result)
    }
}

/// One difference between two schemas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The method; `None` when it is about the service.
    pub method: Option<String>,
    /// What changed.
    pub what: Difference,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The trait has another name. It does not travel.
    Renamed {
        /// What it was.
        old: String,
        /// What it is.
        new: String,
    },
    /// The method is new.
    MethodAdded,
    /// The method is gone, or has another name.
    MethodRemoved,
    /// Required arguments, their order or the result have other types.
    Types {
        /// What they were.
        old: String,
        /// What they are.
        new: String,
    },
    /// The types are the same; how often a request may be executed is not, or how long a caller waits.
    Manner {
        /// What it was.
        old: String,
        /// What it is.
        new: String,
        /// Only the deadline, which is the caller's business.
        is_deadline_only: bool,
    },
    /// Optional arguments were added behind all others.
    ArgumentsAdded {
        /// How many.
        count: usize,
    },
    /// Optional arguments were taken from the end.
    ArgumentsRemoved {
        /// How many.
        count: usize,
    },
    /// An added argument has another type or another place.
    AddedTypes {
        /// What they were.
        old: String,
        /// What they are.
        new: String,
    },
}

impl Change {
    /// Calls of old clients fail at a new server.
    pub const fn breaks_old_clients(&self) -> bool {
        match &self.what {
            Difference::MethodRemoved | Difference::Types { .. } | Difference::AddedTypes { .. } => true,
            Difference::Manner { is_deadline_only, .. } => !*is_deadline_only,
            Difference::Renamed { .. }
            | Difference::MethodAdded
            | Difference::ArgumentsAdded { .. }
            | Difference::ArgumentsRemoved { .. } => false,
        }
    }

    /// Calls of new clients fail at an old server.
    pub const fn breaks_new_clients(&self) -> bool {
        match &self.what {
            Difference::MethodAdded | Difference::Types { .. } | Difference::AddedTypes { .. } => true,
            Difference::Manner { is_deadline_only, .. } => !*is_deadline_only,
            Difference::Renamed { .. }
            | Difference::MethodRemoved
            | Difference::ArgumentsAdded { .. }
            | Difference::ArgumentsRemoved { .. } => false,
        }
    }
}

/// Reads like `transfer: types were (u64) -> (), are (u32) -> (): breaks old clients at new servers and new clients at
/// old servers`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method}: ")?;
        }
        let manner =
            |manner: &str| if manner.is_empty() { "at most once".to_owned() } else { manner.to_owned() };
        match &self.what {
            Difference::Renamed { old, new } => write!(f, "service {old} is called {new}")?,
            Difference::MethodAdded => f.write_str("new")?,
            Difference::MethodRemoved => f.write_str("gone")?,
            Difference::Types { old, new } => write!(f, "types were {old}, are {new}")?,
            Difference::Manner { old, new, .. } => write!(f, "was {}, is {}", manner(old), manner(new))?,
            Difference::ArgumentsAdded { count } => {
                write!(f, "{count} more optional arguments, which old servers do not see")?
            }
            Difference::ArgumentsRemoved { count } => {
                write!(f, "{count} optional arguments less, which new servers do not see")?
            }
            Difference::AddedTypes { old, new } => write!(f, "added arguments were {old}, are {new}")?,
        }
        f.write_str(match (self.breaks_old_clients(), self.breaks_new_clients()) {
            (false, false) => ": breaks nobody",
            (true, false) => ": breaks old clients at new servers",
            (false, true) => ": breaks new clients at old servers",
            (true, true) => ": breaks old clients at new servers and new clients at old servers",
        })
    }
}

/// What is different in `new`, method by method.
pub fn check(old: &Outline, new: &Outline) -> Vec<Change> {
    let mut changes = Vec::new();
    if old.service != new.service {
        let what = Difference::Renamed { old: old.service.clone(), new: new.service.clone() };
        changes.push(Change { method: None, what });
    }
    for method in &old.methods {
        let name = Some(method.name.clone());
        match new.methods.iter().find(|other| other.id == method.id) {
            None => changes.push(Change { method: name, what: Difference::MethodRemoved }),
            Some(other) => {
                let found = differences(method, other);
                changes.extend(found.into_iter().map(|what| Change { method: name.clone(), what }));
            }
        }
    }
    for method in &new.methods {
        if old.methods.iter().all(|other| other.id != method.id) {
            changes.push(Change { method: Some(method.name.clone()), what: Difference::MethodAdded });
        }
    }
    changes
}

fn differences(old: &MethodOutline, new: &MethodOutline) -> Vec<Difference> {
    let mut found = Vec::new();
    if (&old.arguments, &old.result) != (&new.arguments, &new.result) {
        found.push(Difference::Types { old: old.types(), new: new.types() });
    }
    if old.manner != new.manner {
        // Semantics are in the signature, deadlines are not.
        let is_deadline_only = found.is_empty() && old.signature == new.signature;
        let (old, new) = (old.manner.clone(), new.manner.clone());
        found.push(Difference::Manner { old, new, is_deadline_only });
    }
    let shared = old.added.len().min(new.added.len());
    if old.added[..shared] != new.added[..shared] {
        found.push(Difference::AddedTypes { old: old.added.join(", "), new: new.added.join(", ") });
    } else if new.added.len() > shared {
        found.push(Difference::ArgumentsAdded { count: new.added.len() - shared });
    } else if old.added.len() > shared {
        found.push(Difference::ArgumentsRemoved { count: old.added.len() - shared });
    }
    found
}
