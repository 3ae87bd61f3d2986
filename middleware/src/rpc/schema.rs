//! What a service offers, as data: printable, comparable, made by `#[service]`.

use std::fmt;
use std::time::Duration;

pub use quorate_protocols::rpc::Semantics;

/// A service: its methods and a fingerprint over all that both sides must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// The trait's name.
    pub service: &'static str,
    /// Equal for equal names, types (as written) and semantics of all methods, in order.
    pub fingerprint: u64,
    /// The methods in the order of the trait.
    pub methods: &'static [MethodSchema],
}

/// One method. Two sides understand each other on a method when `id` and `signature` agree; other methods may
/// differ, so methods can be added on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodSchema {
    /// The method's name.
    pub name: &'static str,
    /// A stable hash of the name: what travels.
    pub id: u32,
    /// A stable hash of the types of arguments and result, as written, and of the semantics. The insides of a user's own type are not
    /// seen: changing those is for the codec to notice.
    pub signature: u32,
    /// The arguments.
    pub arguments: &'static [ArgumentSchema],
    /// The type of the result, as written.
    pub result: &'static str,
    /// How often a request may be executed.
    pub semantics: Semantics,
    /// Streams travel with it or with its answer: without a deadline of its own it has none.
    pub is_streaming: bool,
    /// References to objects travel with it or with its answer.
    pub has_references: bool,
    /// What `#[deadline]` says.
    pub deadline: Option<Duration>,
}

/// One argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArgumentSchema {
    /// Its name.
    pub name: &'static str,
    /// Its type, as written.
    pub ty: &'static str,
    /// `#[added]`: it is sent only when it says something, and older servers do not see it.
    pub is_added: bool,
}

impl Schema {
    /// The method with this id.
    pub fn method(&self, id: u32) -> Option<&'static MethodSchema> {
        self.methods.iter().find(|method| method.id == id)
    }
}

impl MethodSchema {
    /// Something travels with it or its answer that needs to know between whom.
    pub(super) const fn has_port(&self) -> bool {
        self.is_streaming || self.has_references
    }

    /// Semantics and deadline for people; empty for what needs no word.
    pub(super) fn manner(&self) -> String {
        let semantics = match self.semantics {
            Semantics::AtMostOnce => None,
            Semantics::Idempotent => Some("idempotent".to_owned()),
            Semantics::OneWay => Some("one way".to_owned()),
            Semantics::ExactlyOnce => Some("exactly once".to_owned()),
        };
        let deadline = self.deadline.map(|deadline| format!("deadline {deadline:?}"));
        let streaming = self.is_streaming.then(|| "streaming".to_owned());
        semantics.into_iter().chain(streaming).chain(deadline).collect::<Vec<_>>().join(" ")
    }
}

/// Reads like the trait:
///
/// ```text
/// service Bank 5d1f..
///   transfer(from: u64, to: u64, cents: u64) -> Result<Receipt, BankError>   id 1b2c.. types 77aa..
/// ```
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {} {:016x}", self.service, self.fingerprint)?;
        for method in self.methods {
            write!(f, "\n  {method}")?;
        }
        Ok(())
    }
}

impl fmt::Display for MethodSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        for (index, argument) in self.arguments.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let added = if argument.is_added { "added " } else { "" };
            write!(f, "{comma}{added}{}: {}", argument.name, argument.ty)?;
        }
        write!(f, ") -> {}   id {:08x} types {:08x}", self.result, self.id, self.signature)?;
        let manner = self.manner();
        if !manner.is_empty() {
            write!(f, " {manner}")?;
        }
        Ok(())
    }
}
