//! What is registered, and how it is asked for.

use std::collections::BTreeMap;

use quorate_transports::Address;
use serde::{Deserialize, Serialize};

use super::error::NameError;

/// The longest name, in bytes. Longer than a host name.
pub const NAME_BYTES_MAX: usize = 255;

/// All of one entry, name, addresses and attributes together, in bytes: what describes a service, not its data. Every
/// address and every attribute counts 16 bytes beside its text.
pub const ENTRY_BYTES_MAX: usize = 4096;

/// What every address and every attribute counts beside its text: its place in memory, or empty ones would be free.
pub(super) const PART_BYTES: usize = 16;

/// What a name stands for: where it is, and attributes to find it by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entry {
    addresses: Vec<String>,
    attributes: BTreeMap<String, String>,
}

impl Entry {
    /// Something that is reached at `addresses`, in the order in which they are to be tried. May be none: a name with
    /// attributes alone.
    pub fn at<'a>(addresses: impl IntoIterator<Item = &'a Address>) -> Self {
        let addresses = addresses.into_iter().map(Address::to_string).collect();
        Self { addresses, attributes: BTreeMap::new() }
    }

    /// The same with an attribute, which replaces one of the same key.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// What only somebody who speaks for himself would send.
    #[cfg(test)]
    pub(super) fn with_texts(addresses: Vec<String>) -> Self {
        Self { addresses, attributes: BTreeMap::new() }
    }

    /// Refuses what is too large, before it is sent and again before it is kept.
    pub(super) fn check(&self, name: &str) -> Result<(), NameError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(NameError::Name { bytes: name.len() });
        }
        let addresses: usize = self.addresses.iter().map(|address| PART_BYTES + address.len()).sum();
        let attribute = |(key, value): (&String, &String)| PART_BYTES + key.len() + value.len();
        let attributes: usize = self.attributes.iter().map(attribute).sum();
        let bytes = name.len() + addresses + attributes;
        if bytes > ENTRY_BYTES_MAX { Err(NameError::TooLarge { bytes }) } else { Ok(()) }
    }
}

/// One registration that answers a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Under which name.
    pub name: String,
    /// Where it is, in the order in which the addresses are to be tried.
    pub addresses: Vec<Address>,
    /// What else its owner says of it.
    pub attributes: BTreeMap<String, String>,
    /// The directory's version at which this registration was made or last changed. Of two registrations the later
    /// has the larger one, so it serves as a fencing token: who keeps the largest that it saw can refuse older owners.
    /// A directory that has lost everything counts from the start again.
    pub version: u64,
}

/// Which registrations are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Query {
    pub(super) name: Option<String>,
    pub(super) attributes: BTreeMap<String, String>,
}

impl Query {
    /// Those under this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), attributes: BTreeMap::new() }
    }

    /// Those under any name. The directory looks at every entry that it has.
    pub fn any() -> Self {
        Self::default()
    }

    /// Only those with this attribute.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    pub(super) fn finds(&self, kept: &Kept) -> bool {
        self.name.as_ref().is_none_or(|name| *name == kept.name) && self.accepts(&kept.entry)
    }

    pub(super) fn accepts(&self, entry: &Entry) -> bool {
        self.attributes.iter().all(|(key, value)| entry.attributes.get(key) == Some(value))
    }
}

/// An entry on its way to who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) entry: Entry,
    pub(super) version: u64,
}

impl From<Kept> for Found {
    fn from(kept: Kept) -> Self {
        let Kept { name, entry, version } = kept;
        // An address of a newer kind than this side knows is no use to it; the others are.
        let addresses = entry.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        Self { name, addresses, attributes: entry.attributes, version }
    }
}
