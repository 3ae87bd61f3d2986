//! Addresses as text: `scheme://rest`, where the scheme picks the transport and only that transport reads the rest.
//!
//! Guarantee   a parsed address is short, printable and has a well-formed scheme; whether the rest makes sense is
//!             found out by the transport, with a typed error.
//! Limits      [`Address::BYTES_MAX`] bytes.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where a listener stands: `tcp://127.0.0.1:7000`, `mem://a`. Cheap to clone, ordered by its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    text: Arc<str>,
    scheme_bytes: u16,
}

impl Address {
    /// The longest address, in bytes. Longer than any host name with a port, short enough for a handshake.
    pub const BYTES_MAX: usize = 512;

    /// Puts an address together.
    ///
    /// # Errors
    /// As for parsing the text `scheme://rest`.
    pub fn new(scheme: &str, rest: &str) -> Result<Self, AddressError> {
        format!("{scheme}://{rest}").parse()
    }

    /// What stands before `://`.
    pub fn scheme(&self) -> &str {
        &self.text[..usize::from(self.scheme_bytes)]
    }

    /// What stands behind `://`; only the transport knows its meaning.
    pub fn rest(&self) -> &str {
        &self.text[usize::from(self.scheme_bytes) + SEPARATOR.len()..]
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > Self::BYTES_MAX {
            return Err(AddressError::TooLong { size: text.len(), limit: Self::BYTES_MAX });
        }
        let (scheme, rest) =
            text.split_once(SEPARATOR).ok_or_else(|| AddressError::NoScheme { text: text.to_owned() })?;
        let mut letters = scheme.bytes();
        let well_formed = letters.next().is_some_and(|first| first.is_ascii_lowercase())
            && letters
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.'));
        if !well_formed {
            return Err(AddressError::BadScheme { text: text.to_owned() });
        }
        if let Some(bad) = rest.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(AddressError::BadCharacter { text: text.to_owned(), character: bad });
        }
        // Bounded by `BYTES_MAX`, which fits.
        let scheme_bytes = scheme.len() as u16;
        Ok(Self { text: text.into(), scheme_bytes })
    }
}

impl TryFrom<&str> for Address {
    type Error = AddressError;
    fn try_from(text: &str) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl TryFrom<&Address> for Address {
    type Error = AddressError;
    fn try_from(address: &Address) -> Result<Self, AddressError> {
        Ok(address.clone())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is no `://` in it.
    #[error("{text:?} has no scheme, such as tcp://")]
    NoScheme {
        /// The text.
        text: String,
    },
    /// The scheme is not a lower-case letter followed by lower-case letters, digits, `+`, `-` or `.`.
    #[error("{text:?} has a malformed scheme")]
    BadScheme {
        /// The text.
        text: String,
    },
    /// White space or a control character behind the scheme.
    #[error("{text:?} contains {character:?}")]
    BadCharacter {
        /// The text.
        text: String,
        /// The first offender.
        character: char,
    },
    /// Longer than [`Address::BYTES_MAX`].
    #[error("address of {size} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length.
        size: usize,
        /// The limit.
        limit: usize,
    },
}

impl From<Infallible> for AddressError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

const SEPARATOR: &str = "://";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t01_an_address_is_a_scheme_and_a_rest() {
        let address: Address = "tcp://[::1]:80".parse().unwrap();
        assert_eq!((address.scheme(), address.rest()), ("tcp", "[::1]:80"));
        assert_eq!(address.to_string(), "tcp://[::1]:80");
        let empty: Address = "mem://".parse().unwrap();
        assert_eq!((empty.scheme(), empty.rest()), ("mem", ""));
    }

    #[test]
    fn t01_a_text_that_is_no_address_is_a_typed_error_naming_it() {
        assert!(
            matches!("localhost:80".parse::<Address>(), Err(AddressError::NoScheme { text }) if text == "localhost:80")
        );
        for text in ["://x", "TCP://x", "1a://x", "t_p://x"] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::BadScheme { .. })), "{text}");
        }
        assert!(matches!(
            "tcp://a b".parse::<Address>(),
            Err(AddressError::BadCharacter { character: ' ', .. })
        ));
        let long = format!("mem://{}", "a".repeat(600));
        assert!(matches!(long.parse::<Address>(), Err(AddressError::TooLong { size: 606, limit: 512 })));
    }
}
