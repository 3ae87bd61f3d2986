//! Formats of content: each reads into the common form and writes from it, so n formats need no n * n converters.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use super::csv::Csv;
use crate::codec::Codec;

/// A way to write content.
pub trait Format: Send + Sync + 'static {
    /// The content of these bytes.
    ///
    /// # Errors
    /// [`FormatError`] when they are not of this format.
    fn read(&self, bytes: &[u8]) -> Result<Value, FormatError>;

    /// The bytes of this content.
    ///
    /// # Errors
    /// [`FormatError`] when it has no form in this format.
    fn write(&self, content: &Value) -> Result<Vec<u8>, FormatError>;
}

/// Why content cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct FormatError {
    /// What is wrong.
    pub reason: String,
}

impl FormatError {
    /// What is wrong, in a few words.
    pub fn new(reason: impl ToString) -> Self {
        Self { reason: reason.to_string() }
    }
}

/// Formats by their names.
#[derive(Clone)]
pub struct Formats {
    by_name: BTreeMap<String, Arc<dyn Format>>,
}

impl Formats {
    /// `json` ([`Json`]), `csv` ([`Csv`], with commas), `text` ([`Text`]).
    pub fn new() -> Self {
        Self { by_name: BTreeMap::new() }.with(JSON, Json).with("csv", Csv::new()).with("text", Text)
    }

    /// One more, or another one of a name.
    pub fn with(mut self, name: impl Into<String>, format: impl Format) -> Self {
        self.by_name.insert(name.into(), Arc::new(format));
        self
    }

    pub(super) fn check(&self, name: &str) -> Result<(), String> {
        self.by_name.contains_key(name).then_some(()).ok_or_else(|| format!("there is no format {name:?}"))
    }

    pub(super) fn read(&self, name: &str, bytes: &[u8]) -> Result<Value, FormatError> {
        self.of(name)?.read(bytes)
    }

    pub(super) fn write(&self, name: &str, content: &Value) -> Result<Bytes, FormatError> {
        self.of(name)?.write(content).map(Bytes::from)
    }

    fn of(&self, name: &str) -> Result<&Arc<dyn Format>, FormatError> {
        self.by_name.get(name).ok_or_else(|| FormatError::new(format_args!("there is no format {name:?}")))
    }
}

impl Default for Formats {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

/// JSON, compact, at most 128 levels deep.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

impl Format for Json {
    fn read(&self, bytes: &[u8]) -> Result<Value, FormatError> {
        serde_json::from_slice(bytes).map_err(FormatError::new)
    }

    fn write(&self, content: &Value) -> Result<Vec<u8>, FormatError> {
        serde_json::to_vec(content).map_err(FormatError::new)
    }
}

/// Text as it is: the content is one text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Text;

impl Format for Text {
    fn read(&self, bytes: &[u8]) -> Result<Value, FormatError> {
        std::str::from_utf8(bytes).map(Value::from).map_err(FormatError::new)
    }

    fn write(&self, content: &Value) -> Result<Vec<u8>, FormatError> {
        match content {
            Value::String(text) => Ok(text.clone().into_bytes()),
            Value::Number(_) | Value::Bool(_) => Ok(content.to_string().into_bytes()),
            _ => Err(FormatError::new("lists, objects and null are no text")),
        }
    }
}

/// A type of the user's, in the bytes of a codec: `Typed::<Order, Postcard>::new()`. Such bytes say nothing of their fields;
/// the type does.
pub struct Typed<T, C> {
    of: PhantomData<fn() -> (T, C)>,
}

impl<T, C> Typed<T, C> {
    /// Values of `T`, written by `C`.
    pub fn new() -> Self {
        Self { of: PhantomData }
    }
}

impl<T, C> Default for Typed<T, C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, C> fmt::Debug for Typed<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Typed<{}>", std::any::type_name::<T>())
    }
}

impl<T, C> Format for Typed<T, C>
where
    T: Serialize + DeserializeOwned + 'static,
    C: Codec,
{
    fn read(&self, bytes: &[u8]) -> Result<Value, FormatError> {
        let value: T = C::decode(bytes).map_err(FormatError::new)?;
        serde_json::to_value(value).map_err(FormatError::new)
    }

    fn write(&self, content: &Value) -> Result<Vec<u8>, FormatError> {
        let value: T = serde_json::from_value(content.clone()).map_err(FormatError::new)?;
        let mut out = BytesMut::new();
        C::encode(&value, &mut out).map_err(FormatError::new)?;
        Ok(out.into())
    }
}

/// The format where none is named.
pub(super) const JSON: &str = "json";
