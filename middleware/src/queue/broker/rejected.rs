//! What the broker could do nothing with, and why: a JSON object in the queue of the rejected.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A message that was rejected, with the reason. It stands in the queue of the broker's name with `.rejected` behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejected {
    /// Why, for people.
    pub reason: String,
    /// The revision of the rules by which it was.
    pub revision: u64,
    /// Its bytes as they came.
    pub payload: Bytes,
}

/// How it is written: bytes that are a text as such, others as hexadecimal digits.
#[derive(Serialize, Deserialize)]
struct Written {
    reason: String,
    revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl Rejected {
    /// Reads one from the bytes of a message of that queue; `None` when they are none.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let Written { reason, revision, text, hex } = serde_json::from_slice(payload).ok()?;
        let payload = match (text, hex) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(digits)) => {
                let pairs = digits.as_bytes().chunks(2);
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                pairs.map(byte).collect::<Option<Vec<u8>>>()?.into()
            }
            _ => return None,
        };
        Some(Self { reason, revision, payload })
    }

    pub(super) fn write(&self) -> Bytes {
        let (text, hex) = match std::str::from_utf8(&self.payload) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(self.payload.iter().map(|byte| format!("{byte:02x}")).collect())),
        };
        let written = Written { reason: self.reason.clone(), revision: self.revision, text, hex };
        // Texts and a number have a form in JSON.
        serde_json::to_vec(&written).unwrap_or_default().into()
    }
}
