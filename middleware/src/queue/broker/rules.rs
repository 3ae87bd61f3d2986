//! What a rule base says, as data: JSON in the journal and in the hands of who edits it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::config::check_name;
use super::field::Field;
use super::format::Formats;

/// All rules of a broker. The order of [`rules`](Self::rules) counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RuleBase {
    /// How often it was edited; counted by the broker.
    pub revision: u64,
    /// Tried in this order; the first one that matches does it, and the next ones only if it [goes on](Rule::goes_on).
    pub rules: Vec<Rule>,
    /// Who gets what is published.
    pub subscriptions: Vec<Subscription>,
    /// What [`Change::LookUp`] looks into: by the table's name, then by the text that is looked up.
    pub tables: BTreeMap<String, BTreeMap<String, Value>>,
}

/// One rule: which messages, what is made of them, and where that goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Rule {
    /// Its name, for people; no two have the same.
    pub name: String,
    /// All of them hold, or it does not match.
    #[serde(default)]
    pub when: Vec<Condition>,
    /// The format of the messages that it is for; of another one it does not match.
    #[serde(default = "json")]
    pub read: String,
    /// Done one after the other.
    #[serde(default)]
    pub change: Vec<Change>,
    /// Where the result goes; nowhere: the message is done with.
    #[serde(default)]
    pub to: Vec<Target>,
    /// Whether the rules behind it are tried as well, with the message as it came.
    #[serde(default)]
    pub goes_on: bool,
}

/// What must hold. A field is a place in the content, as a JSON pointer (`/lines/0/article`), or `$key`, `$queue`, `$name`,
/// `$priority`, `$deliveries`; key and name are texts, and null when there is none or it is no text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Which field.
    pub field: String,
    /// What must be true of it.
    pub test: Test,
}

/// What can be asked of a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Test {
    /// It is there.
    Present,
    /// It is not there.
    Absent,
    /// It is there and equal.
    Is(Value),
    /// It is not there, or differs.
    IsNot(Value),
    /// It is one of them.
    OneOf(Vec<Value>),
    /// It is a text of this pattern, in which `*` stands for anything.
    Like(String),
    /// It is a number above.
    Above(f64),
    /// It is a number below.
    Below(f64),
}

/// What is done to content. Fields that are written must be places in the content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Change {
    /// Writes a value; objects on the way are made where they are missing.
    Set {
        /// Where.
        field: String,
        /// What.
        value: Value,
    },
    /// Writes what another field has, metadata as well. Fails when that is not there.
    Copy {
        /// From where.
        from: String,
        /// To where.
        to: String,
    },
    /// Takes a field out, if it is there.
    Remove {
        /// Which.
        field: String,
    },
    /// Makes a number of a text, which CSV has only.
    Number {
        /// Of which.
        field: String,
    },
    /// Writes what a table has for the text or number of a field: enriches.
    LookUp {
        /// Which table of [`RuleBase::tables`].
        table: String,
        /// What is looked up.
        key: String,
        /// Where it is written.
        to: String,
        /// What is written when the table does not have it; else it fails then.
        #[serde(default)]
        otherwise: Option<Value>,
    },
    /// Makes a message of each element of a list: the content, with the element in the place of the list. An empty list makes
    /// none.
    Split {
        /// The list; the empty pointer is the content as a whole.
        field: String,
    },
    /// Calls [code of yours](super::BrokerBuilder::code).
    Call {
        /// Its name.
        code: String,
    },
}

/// Where a result goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Target {
    /// Into a queue, which is created if there is none.
    Queue {
        /// Its name.
        name: String,
        /// The node that has it; none is this one.
        #[serde(default)]
        node: Option<u64>,
        /// In which format.
        #[serde(default = "json")]
        format: String,
    },
    /// Into the queue of this node that a field names, and that is there.
    Named {
        /// The field.
        field: String,
        /// In which format.
        #[serde(default = "json")]
        format: String,
    },
    /// To all who [subscribed](RuleBase::subscriptions) to a topic, perhaps nobody.
    Publish {
        /// The field that has the topic: words with `/` between them.
        topic: String,
    },
}

/// What is published under certain topics goes into a queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// The topics: words with `/` between them, where `*` stands for any word and a `#` at the end for any rest, also none.
    pub topics: String,
    /// The queue, which is created if there is none.
    pub queue: String,
    /// In which format.
    #[serde(default = "json")]
    pub format: String,
}

/// Why rules were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// It is not the JSON of a rule base.
    #[error("not a rule base: {reason}")]
    Unreadable {
        /// What is wrong, and where.
        reason: String,
    },
    /// There is more than may be.
    #[error("{what}: {count} exceed the limit of {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Two rules have one name.
    #[error("two rules are called {name:?}")]
    Twice {
        /// It.
        name: String,
    },
    /// A rule speaks of something that is not there, or that is not what it should be.
    #[error("rule {rule:?}: {reason}")]
    Rule {
        /// Its name; of a subscription its topics.
        rule: String,
        /// What is wrong.
        reason: String,
    },
}

impl RuleBase {
    /// Reads one from JSON; what is left out is empty. See [`Rule`], [`Condition`], [`Change`], [`Target`] for the parts.
    ///
    /// # Errors
    /// [`RulesError::Unreadable`], [`RulesError::TooMany`].
    pub fn parse(json: &str) -> Result<Self, RulesError> {
        if json.len() > BASE_BYTES_MAX {
            return Err(RulesError::TooMany { what: "bytes", count: json.len(), limit: BASE_BYTES_MAX });
        }
        serde_json::from_str(json).map_err(|error| RulesError::Unreadable { reason: error.to_string() })
    }

    /// As JSON, for people.
    pub fn to_json(&self) -> String {
        // Everything in it has a form in JSON.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Looks whether all that is spoken of is there. `input` is the queue that the broker takes from.
    ///
    /// # Errors
    /// [`RulesError`], for the first thing that is wrong.
    pub(super) fn check(
        &self,
        input: &str,
        formats: &Formats,
        code: &BTreeSet<&str>,
    ) -> Result<(), RulesError> {
        let count = self.rules.len() + self.subscriptions.len();
        if count > RULES_MAX {
            return Err(RulesError::TooMany { what: "rules and subscriptions", count, limit: RULES_MAX });
        }
        let size = self.to_json().len();
        if size > BASE_BYTES_MAX {
            return Err(RulesError::TooMany { what: "bytes", count: size, limit: BASE_BYTES_MAX });
        }
        let mut names = BTreeSet::new();
        for rule in &self.rules {
            if !names.insert(&rule.name) {
                return Err(RulesError::Twice { name: rule.name.clone() });
            }
            let wrong = |reason: String| RulesError::Rule { rule: rule.name.clone(), reason };
            self.check_rule(rule, input, formats, code).map_err(wrong)?;
        }
        for subscription in &self.subscriptions {
            let wrong = |reason: String| RulesError::Rule { rule: subscription.topics.clone(), reason };
            check_queue(&subscription.queue, input).map_err(wrong)?;
            formats.check(&subscription.format).map_err(wrong)?;
            let words: Vec<&str> = subscription.topics.split('/').collect();
            if words.iter().rev().skip(1).any(|word| *word == "#") {
                return Err(wrong("`#` stands at the end only".to_owned()));
            }
        }
        Ok(())
    }

    fn check_rule(
        &self,
        rule: &Rule,
        input: &str,
        formats: &Formats,
        code: &BTreeSet<&str>,
    ) -> Result<(), String> {
        formats.check(&rule.read)?;
        for condition in &rule.when {
            Field::parse(&condition.field)?;
        }
        for change in &rule.change {
            match change {
                Change::Set { field, .. } | Change::Remove { field } | Change::Split { field } => {
                    Field::content(field)?;
                }
                Change::Number { field } => Field::content(field).map(drop)?,
                Change::Copy { from, to } => {
                    Field::parse(from)?;
                    Field::content(to)?;
                }
                Change::LookUp { table, key, to, .. } => {
                    Field::parse(key)?;
                    Field::content(to)?;
                    if !self.tables.contains_key(table) {
                        return Err(format!("there is no table {table:?}"));
                    }
                }
                Change::Call { code: name } => {
                    if !code.contains(name.as_str()) {
                        return Err(format!("there is no code {name:?}"));
                    }
                }
            }
        }
        for target in &rule.to {
            match target {
                Target::Queue { name, node, format } => {
                    check_queue(name, if node.is_none() { input } else { "" })?;
                    formats.check(format)?;
                }
                Target::Named { field, format } => {
                    Field::parse(field)?;
                    formats.check(format)?;
                }
                Target::Publish { topic } => Field::parse(topic).map(drop)?,
            }
        }
        Ok(())
    }
}

fn check_queue(name: &str, input: &str) -> Result<(), String> {
    check_name(name).map_err(|error| error.to_string())?;
    if name == input {
        return Err("what goes into the broker's own queue would go round for ever".to_owned());
    }
    Ok(())
}

fn json() -> String {
    super::format::JSON.to_owned()
}

/// Rules and subscriptions together; each message is compared with them one after the other.
pub const RULES_MAX: usize = 1000;
/// Of a rule base as JSON, tables included; each edit stores all of it.
pub const BASE_BYTES_MAX: usize = 1 << 20;
