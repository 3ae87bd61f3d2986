//! The rule machine: what becomes of a message, as a pure function of the rules and the message.
//!
//! Guarantee   equal rules, formats and messages give equal decisions, whatever was decided before. A decision is about the whole
//!             message: where one of several results cannot be made, none is.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::field::{self, Field};
use super::format::Formats;
use super::rules::{Change, Condition, Rule, RuleBase, RulesError, Target, Test};

/// Code of the user's that changes content, or says why it cannot.
pub(super) type Code = Arc<dyn Fn(&mut Value) -> Result<(), String> + Send + Sync>;

/// Rules, and what they are carried out with.
#[derive(Clone)]
pub struct Machine {
    base: Arc<RuleBase>,
    formats: Formats,
    code: BTreeMap<String, Code>,
}

/// A message as rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// The queue that it was taken from.
    pub queue: &'a str,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its name.
    pub name: Option<&'a [u8]>,
    /// Its priority.
    pub priority: u8,
    /// How often it was delivered.
    pub deliveries: u32,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// A message that a rule makes. Of the one that it was made from it keeps key, priority and what is left of its time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outgoing {
    /// The queue that it is for.
    pub queue: String,
    /// The node that has it; none is this one.
    pub node: Option<u64>,
    /// Whether the queue must be there already: its name comes from the message.
    pub is_named_by_content: bool,
    /// Its bytes.
    pub payload: Bytes,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// These take its place; none: it is done with.
    Send(Vec<Outgoing>),
    /// It is rejected.
    Reject(Reason),
}

/// Why a message is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// No rule matches it.
    #[error("no rule matches")]
    NoRule,
    /// No rule matches it, and for some it could not be read.
    #[error("no rule matches, and it is not {format}: {reason}")]
    Unreadable {
        /// The format of the first of these.
        format: String,
        /// What is wrong.
        reason: String,
    },
    /// A change of the rule that matches cannot be made.
    #[error("rule {rule:?}, change {change}: {reason}")]
    Change {
        /// The rule.
        rule: String,
        /// Which of its changes, counted from 1.
        change: usize,
        /// What is wrong.
        reason: String,
    },
    /// The result has no form in the format of its target, or the target cannot be told.
    #[error("rule {rule:?}, target {target}: {reason}")]
    Target {
        /// The rule.
        rule: String,
        /// Which of its targets, counted from 1.
        target: usize,
        /// What is wrong.
        reason: String,
    },
    /// More than [`RESULTS_MAX`] messages would come of it.
    #[error("more than {limit} messages of one")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// A format or code of the user's panicked.
    #[error("it makes the broker's code panic")]
    Panicked,
    /// What was made of it cannot be put.
    #[error("cannot be put: {reason}")]
    Put {
        /// Why.
        reason: String,
    },
}

impl Machine {
    /// A machine for rules of which all is there.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn new(base: RuleBase, input: &str, formats: Formats) -> Result<Self, RulesError> {
        Self::with_code(base, input, formats, BTreeMap::new())
    }

    pub(super) fn with_code(
        base: RuleBase,
        input: &str,
        formats: Formats,
        code: BTreeMap<String, Code>,
    ) -> Result<Self, RulesError> {
        let names: BTreeSet<&str> = code.keys().map(String::as_str).collect();
        base.check(input, &formats, &names)?;
        Ok(Self { base: Arc::new(base), formats, code })
    }

    /// Other rules, with the same formats and code.
    pub(super) fn with_rules(&self, base: RuleBase, input: &str) -> Result<Self, RulesError> {
        Self::with_code(base, input, self.formats.clone(), self.code.clone())
    }

    /// The rules.
    pub fn base(&self) -> &Arc<RuleBase> {
        &self.base
    }

    /// What becomes of a message.
    pub fn decide(&self, incoming: &Incoming<'_>) -> Decision {
        // Formats and code may be the user's, and must not end the broker. Nothing of ours is changed by then.
        match catch_unwind(AssertUnwindSafe(|| self.try_rules(incoming))) {
            Ok(Ok(results)) => Decision::Send(results),
            Ok(Err(reason)) => Decision::Reject(reason),
            Err(_) => Decision::Reject(Reason::Panicked),
        }
    }

    fn try_rules(&self, incoming: &Incoming<'_>) -> Result<Vec<Outgoing>, Reason> {
        let mut read: BTreeMap<&str, Result<Value, String>> = BTreeMap::new();
        let mut unread = None;
        let mut results = Vec::new();
        let mut has_matched = false;
        for rule in &self.base.rules {
            // Metadata first: what it rules out need not be read.
            if !rule.when.iter().all(|condition| may_hold(condition, incoming)) {
                continue;
            }
            let content = read.entry(&rule.read).or_insert_with(|| {
                self.formats.read(&rule.read, incoming.payload).map_err(|error| error.to_string())
            });
            let content = match content {
                Ok(content) => &*content,
                Err(reason) => {
                    unread.get_or_insert((rule.read.clone(), reason.clone()));
                    continue;
                }
            };
            if !rule.when.iter().all(|condition| holds(condition, incoming, content)) {
                continue;
            }
            has_matched = true;
            self.apply(rule, incoming, content.clone(), &mut results)?;
            if !rule.goes_on {
                break;
            }
        }
        match (has_matched, unread) {
            (true, _) => Ok(results),
            (false, Some((format, reason))) => Err(Reason::Unreadable { format, reason }),
            (false, None) => Err(Reason::NoRule),
        }
    }

    fn apply(
        &self,
        rule: &Rule,
        incoming: &Incoming<'_>,
        content: Value,
        results: &mut Vec<Outgoing>,
    ) -> Result<(), Reason> {
        let mut contents = vec![content];
        for (n, change) in rule.change.iter().enumerate() {
            let failed = |reason: String| Reason::Change { rule: rule.name.clone(), change: n + 1, reason };
            if let Change::Split { field } = change {
                contents = split(contents, field, failed)?;
                continue;
            }
            for content in &mut contents {
                self.change(change, incoming, content).map_err(failed)?;
            }
        }
        for content in &contents {
            for (n, target) in rule.to.iter().enumerate() {
                let failed =
                    |reason: String| Reason::Target { rule: rule.name.clone(), target: n + 1, reason };
                self.aim(target, incoming, content, results).map_err(failed)?;
                if results.len() > RESULTS_MAX {
                    return Err(Reason::TooMany { limit: RESULTS_MAX });
                }
            }
        }
        Ok(())
    }

    fn change(&self, change: &Change, incoming: &Incoming<'_>, content: &mut Value) -> Result<(), String> {
        match change {
            Change::Set { field, value } => field::write(content, field, value.clone()),
            Change::Copy { from, to } => {
                let value = read(from, incoming, content)?;
                field::write(content, to, value)
            }
            Change::Remove { field } => {
                field::remove(content, field);
                Ok(())
            }
            Change::Number { field } => {
                let value = read(field, incoming, content)?;
                let number = match &value {
                    Value::String(text) => text.trim().parse::<serde_json::Number>().ok().map(Value::Number),
                    Value::Number(_) => return Ok(()),
                    _ => None,
                };
                let number = number.ok_or_else(|| format!("{field:?} is no number"))?;
                field::write(content, field, number)
            }
            Change::LookUp { table, key, to, otherwise } => {
                let value = read(key, incoming, content)?;
                let text = field::as_text(&value).ok_or_else(|| format!("{key:?} is no text"))?;
                let found = self.base.tables.get(table).and_then(|table| table.get(&text));
                let found = found.or(otherwise.as_ref());
                let found = found.ok_or_else(|| format!("the table {table:?} has no {text:?}"))?;
                field::write(content, to, found.clone())
            }
            Change::Call { code } => match self.code.get(code) {
                Some(code) => code(content),
                None => Err(format!("there is no code {code:?}")),
            },
            // Done with all contents at once.
            Change::Split { .. } => Ok(()),
        }
    }

    fn aim(
        &self,
        target: &Target,
        incoming: &Incoming<'_>,
        content: &Value,
        results: &mut Vec<Outgoing>,
    ) -> Result<(), String> {
        let written = |format: &str| self.formats.write(format, content).map_err(|error| error.to_string());
        let here = |queue: &str, is_named_by_content, payload| Outgoing {
            queue: queue.to_owned(),
            node: None,
            is_named_by_content,
            payload,
        };
        match target {
            Target::Queue { name, node, format } => {
                results.push(Outgoing { node: *node, ..here(name, false, written(format)?) });
            }
            Target::Named { field, format } => {
                let name = read_text(field, incoming, content)?;
                if name == incoming.queue {
                    return Err("it names the broker's own queue".to_owned());
                }
                results.push(here(&name, true, written(format)?));
            }
            Target::Publish { topic } => {
                let topic = read_text(topic, incoming, content)?;
                let subscribed = self.base.subscriptions.iter();
                for subscription in subscribed.filter(|one| field::is_among(&topic, &one.topics)) {
                    results.push(here(&subscription.queue, false, written(&subscription.format)?));
                }
            }
        }
        Ok(())
    }
}

/// Whether a condition may hold, as far as metadata tell.
fn may_hold(condition: &Condition, incoming: &Incoming<'_>) -> bool {
    match Field::parse(&condition.field) {
        Ok(Field::Content(_)) => true,
        Ok(field) => passes(&condition.test, field.read(incoming, None).as_ref()),
        Err(_) => false,
    }
}

fn holds(condition: &Condition, incoming: &Incoming<'_>, content: &Value) -> bool {
    Field::parse(&condition.field)
        .is_ok_and(|field| passes(&condition.test, field.read(incoming, Some(content)).as_ref()))
}

fn passes(test: &Test, found: Option<&Value>) -> bool {
    let number = || found.and_then(Value::as_f64);
    match test {
        Test::Present => found.is_some(),
        Test::Absent => found.is_none(),
        Test::Is(value) => found.is_some_and(|found| is_same(found, value)),
        Test::IsNot(value) => found.is_none_or(|found| !is_same(found, value)),
        Test::OneOf(values) => found.is_some_and(|found| values.iter().any(|value| is_same(found, value))),
        Test::Like(pattern) => {
            found.and_then(Value::as_str).is_some_and(|text| field::is_like(text, pattern))
        }
        Test::Above(limit) => number().is_some_and(|number| number > *limit),
        Test::Below(limit) => number().is_some_and(|number| number < *limit),
    }
}

/// Numbers are the same when their values are: 3 and 3.0.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(_), Value::Number(_)) => one == other || one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

fn read(field: &str, incoming: &Incoming<'_>, content: &Value) -> Result<Value, String> {
    let value = Field::parse(field)?.read(incoming, Some(content));
    value.ok_or_else(|| format!("there is no {field:?}"))
}

fn read_text(field: &str, incoming: &Incoming<'_>, content: &Value) -> Result<String, String> {
    let value = read(field, incoming, content)?;
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{field:?} is no text"))
}

fn split(contents: Vec<Value>, field: &str, failed: impl Fn(String) -> Reason) -> Result<Vec<Value>, Reason> {
    let mut parts = Vec::new();
    for mut content in contents {
        let list = match content.pointer_mut(field) {
            Some(Value::Array(list)) => std::mem::take(list),
            Some(_) => return Err(failed(format!("{field:?} is no list"))),
            None => return Err(failed(format!("there is no {field:?}"))),
        };
        if parts.len() + list.len() > RESULTS_MAX {
            return Err(Reason::TooMany { limit: RESULTS_MAX });
        }
        for element in list {
            let mut part = content.clone();
            field::write(&mut part, field, element).map_err(&failed)?;
            parts.push(part);
        }
    }
    Ok(parts)
}

/// Messages that come of one: all of them are stored at once.
pub const RESULTS_MAX: usize = 1000;
