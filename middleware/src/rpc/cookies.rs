//! Cookies: state that the client holds for a server which keeps nothing.
//!
//! Purpose     a *stateless* server gives what it needs to know next time to the client, who brings it along. The server
//!             may crash, be replaced, or be one of many: whoever has the key understands the cookie.
//! Guarantee   what is opened is what was sealed, for the same purpose, and has not run out: a cookie that was changed, or
//!             made by somebody without the key, is refused. It is readable by its holder unless the jar is
//!             [private](Cookies::private). It can be shown again and again until it runs out: a cookie is no proof that
//!             something happens for the first time.
//! Method      HMAC-SHA-256 over purpose, header and body; private ones ChaCha20-Poly1305 with a random nonce. Each from
//!             a key of its own, derived from the one that the user gives. Keys have numbers, so that a new one can be
//!             used while the cookies of the old ones are still understood.
//! Limits      [`COOKIE_BYTES_MAX`]. The clock is the system's; it must not differ between servers by more than the
//!             lifetime allows. At most 2^32 private cookies a key, so that nonces do not meet.
//! Source      Tanenbaum & van Steen, stateless servers and cookies; Fu, Sit, Smith & Feamster 2001, "Dos and Don'ts of
//!             Client Authentication on the Web".
//!
//! ```
//! use quorate::rpc::cookies::{ClientState, CookieKey, Cookies};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Cart(Vec<String>);
//!
//! impl ClientState for Cart {
//!     const VERSION: u16 = 1;
//! }
//!
//! let cookies = Cookies::new("cart", CookieKey::random(1)?);
//! let cookie = cookies.seal(&Cart(vec!["pen".to_owned()]))?; // to the client, and back
//! let Cart(cart) = cookies.open(&cookie)?;
//! assert_eq!(cart, ["pen"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, BytesMut};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{Codec, DecodeError, EncodeError, Payload, Postcard};

/// The longest cookie: it travels with every call.
pub const COOKIE_BYTES_MAX: usize = 4096;

/// What a client holds. An argument and a result like any other; its bytes may be stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cookie(Payload);

impl Cookie {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Cookie {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// What can be put into a cookie.
pub trait ClientState: Serialize + DeserializeOwned {
    /// Changes when the meaning or the shape of the state changes: older cookies are then refused, not misread.
    const VERSION: u16;
}

/// What cookies are made with. All servers of a service share it; whoever has it can make cookies.
#[derive(Clone)]
pub struct CookieKey {
    number: u32,
    signing: hmac::Key,
    sealing: LessSafeKey,
}

impl CookieKey {
    /// A key of 32 random bytes that its user keeps. Different keys have different numbers.
    ///
    /// # Errors
    /// [`KeyError`]; with bytes of this length none is known.
    pub fn new(number: u32, secret: &[u8; 32]) -> Result<Self, KeyError> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derive = |purpose: &[u8]| hmac::sign(&secret, purpose);
        let signing = hmac::Key::new(hmac::HMAC_SHA256, derive(b"quorate cookie, signing").as_ref());
        let sealing = UnboundKey::new(&CHACHA20_POLY1305, derive(b"quorate cookie, sealing").as_ref());
        Ok(Self { number, signing, sealing: LessSafeKey::new(sealing.map_err(|_| KeyError)?) })
    }

    /// A fresh key, for a service whose cookies need not outlive its process.
    ///
    /// # Errors
    /// [`KeyError`] when the system gives no random bytes.
    pub fn random(number: u32) -> Result<Self, KeyError> {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).map_err(|_| KeyError)?;
        Self::new(number, &secret)
    }
}

/// Without the key.
impl fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cookie key {}", self.number)
    }
}

/// No key, or no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct KeyError;

/// Makes and reads the cookies of one purpose.
#[derive(Debug, Clone)]
pub struct Cookies {
    purpose: String,
    /// The first one makes; all are understood.
    keys: Vec<CookieKey>,
    lifetime: Duration,
    is_private: bool,
}

impl Cookies {
    /// Cookies for `purpose`, such as the name of the service: those of another purpose are refused. They live for a day
    /// and can be read by their holders.
    pub fn new(purpose: impl Into<String>, key: CookieKey) -> Self {
        let lifetime = Duration::from_secs(24 * 3600);
        Self { purpose: purpose.into(), keys: vec![key], lifetime, is_private: false }
    }

    /// The same that also understands the cookies of an older key. To change keys without refusing anybody: give the new
    /// one to all servers as understood, then make cookies with it, and drop the old one a lifetime later.
    #[must_use]
    pub fn understanding(mut self, older: CookieKey) -> Self {
        self.keys.push(older);
        self
    }

    /// The same with another lifetime, counted from when a cookie is made.
    #[must_use]
    pub const fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// The same whose cookies nobody can read who has not the key. Cookies that can be read are then refused.
    #[must_use]
    pub const fn private(mut self) -> Self {
        self.is_private = true;
        self
    }

    /// Makes a cookie.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal<T: ClientState>(&self, state: &T) -> Result<Cookie, SealError> {
        self.seal_at(state, SystemTime::now())
    }

    /// As [`seal`](Self::seal), at another time.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal_at<T: ClientState>(&self, state: &T, now: SystemTime) -> Result<Cookie, SealError> {
        let key = &self.keys[0];
        let ends = millis(now).saturating_add(u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX));
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u8(u8::from(self.is_private));
        out.put_u16_le(T::VERSION);
        out.put_u32_le(key.number);
        out.put_u64_le(ends);
        debug_assert_eq!(out.len(), HEADER_BYTES);
        if self.is_private {
            let mut body = BytesMut::new();
            Postcard::encode(state, &mut body).map_err(SealError::Encode)?;
            let mut nonce = [0; NONCE_LEN];
            SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Random)?;
            let aad = Aad::from(self.context(&out));
            let tag = key
                .sealing
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body)
                .map_err(|_| SealError::TooLarge { bytes: body.len() })?;
            out.put_slice(&nonce);
            out.put_slice(&body);
            out.put_slice(tag.as_ref());
        } else {
            Postcard::encode(state, &mut out).map_err(SealError::Encode)?;
            let tag = hmac::sign(&key.signing, &self.context(&out));
            out.put_slice(tag.as_ref());
        }
        if out.len() > COOKIE_BYTES_MAX {
            return Err(SealError::TooLarge { bytes: out.len() });
        }
        Ok(Cookie(out.freeze().into()))
    }

    /// What was put into a cookie.
    ///
    /// # Errors
    /// [`CookieError`].
    pub fn open<T: ClientState>(&self, cookie: &Cookie) -> Result<T, CookieError> {
        self.open_at(cookie, SystemTime::now())
    }

    /// As [`open`](Self::open), at another time.
    ///
    /// # Errors
    /// [`CookieError`].
    pub fn open_at<T: ClientState>(&self, cookie: &Cookie, now: SystemTime) -> Result<T, CookieError> {
        let bytes = cookie.as_bytes();
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(CookieError::Malformed)?;
        let mut fields = header;
        let (format, is_private) = (fields.get_u8(), fields.get_u8());
        let (version, number, ends) = (fields.get_u16_le(), fields.get_u32_le(), fields.get_u64_le());
        if bytes.len() > COOKIE_BYTES_MAX || format != FORMAT || is_private != u8::from(self.is_private) {
            return Err(CookieError::Malformed);
        }
        let key = self.keys.iter().find(|key| key.number == number);
        let key = key.ok_or(CookieError::UnknownKey { number })?;
        // First of all it must be ours: whatever else it says is only then worth an answer.
        let mut opened;
        let body: &[u8] = if self.is_private {
            let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(CookieError::Malformed)?;
            opened = sealed.to_vec();
            let aad = Aad::from(self.context(header));
            let nonce = Nonce::assume_unique_for_key(*nonce);
            key.sealing.open_in_place(nonce, aad, &mut opened).map_err(|_| CookieError::Forged)?
        } else {
            let (body, tag) = rest
                .len()
                .checked_sub(TAG_BYTES)
                .map(|at| rest.split_at(at))
                .ok_or(CookieError::Malformed)?;
            let signed = &bytes[..HEADER_BYTES + body.len()];
            hmac::verify(&key.signing, &self.context(signed), tag).map_err(|_| CookieError::Forged)?;
            body
        };
        let late = millis(now).saturating_sub(ends);
        if late > 0 || millis(now) == ends {
            return Err(CookieError::Expired { since: Duration::from_millis(late) });
        }
        if version != T::VERSION {
            return Err(CookieError::Version { found: version, expected: T::VERSION });
        }
        Postcard::decode(body)
            .map_err(|error: DecodeError| CookieError::Undecodable { reason: error.to_string() })
    }

    /// What is authenticated: for what, and the bytes themselves.
    fn context(&self, bytes: &[u8]) -> Vec<u8> {
        // The length keeps purpose and bytes apart.
        let length = (self.purpose.len() as u64).to_le_bytes();
        [&length, self.purpose.as_bytes(), bytes].concat()
    }
}

/// Why there is no cookie.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The state has no encoding.
    #[error("{0}")]
    Encode(EncodeError),
    /// The state is too large for something that travels with every call: keep it, in a session or a store.
    #[error("a cookie of {bytes} bytes; at most {COOKIE_BYTES_MAX} travel")]
    TooLarge {
        /// What it would have had.
        bytes: usize,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// Why a cookie is refused. The client begins without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum CookieError {
    /// It is no cookie of this kind.
    #[error("not a cookie of this kind")]
    Malformed,
    /// It was made with a key that is not, or no longer, understood.
    #[error("made with key {number}, which is not understood")]
    UnknownKey {
        /// The key's number.
        number: u32,
    },
    /// It was changed, is for another purpose, or was made by somebody else.
    #[error("changed, or not made here")]
    Forged,
    /// It has run out.
    #[error("ran out {since:?} ago")]
    Expired {
        /// How long ago.
        since: Duration,
    },
    /// It holds the state of another version of the service.
    #[error("of version {found}, and {expected} is understood")]
    Version {
        /// Its version.
        found: u16,
        /// The one that is understood.
        expected: u16,
    },
    /// It holds something else than its version promises: a version was changed without a new number.
    #[error("its state is not understood: {reason}")]
    Undecodable {
        /// What the codec said.
        reason: String,
    },
}

/// Milliseconds since 1970.
fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The layout: format, kind, version (u16), key (u32), end in milliseconds since 1970 (u64), all little-endian; then the
/// body and its HMAC, or nonce, sealed body and tag.
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 16;
const TAG_BYTES: usize = 32;
