//! Groups whose members have a secret: who has it not neither joins nor speaks nor reads.
//!
//! Guarantee   that of [`Guard`](quorate_protocols::guard::Guard), over any transport: see there what is promised and what not.
//! Method      X25519 between each two members, proofs by HMAC-SHA-256, keys by HKDF-SHA-256 with the group's name and secret,
//!             messages sealed by ChaCha20-Poly1305. The mathematics are ring's.
//! Introduced  what members tell each other of addresses carries a proof too, but can be read.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quorate_protocols::guard::{Crypto, Number, Proof, PublicKey};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::rand::SystemRandom;
use ring::{hkdf, hmac};

use crate::node::Channel;

/// What all members of a group know and nobody else: at least [`SECRET_BYTES_MIN`] bytes of chance.
///
/// No password: who hears two processes meet may try guesses at leisure. Whoever has it may join; who has left and must
/// not come back needs the others to change it, which is another group.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

/// A secret that can be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret of {size} bytes is shorter than {SECRET_BYTES_MIN}")]
pub struct SecretTooShort {
    /// Its size.
    pub size: usize,
}

impl Secret {
    /// Takes it. Where it comes from, and how it is kept, is the caller's.
    ///
    /// # Errors
    /// [`SecretTooShort`].
    pub fn new(bytes: &[u8]) -> Result<Self, SecretTooShort> {
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(SecretTooShort { size: bytes.len() });
        }
        Ok(Self(bytes.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The mathematics of one member of one group.
#[derive(Clone)]
pub(super) struct Seals {
    random: SystemRandom,
    /// Of this group and of this secret.
    salt: Arc<hkdf::Salt>,
    proofs: hmac::Key,
}

impl Seals {
    pub(super) fn new(secret: &Secret, channel: Channel) -> Self {
        let mut bound = Vec::from(&secret.0[..]);
        bound.extend_from_slice(&channel.0.to_le_bytes());
        // Two uses of one secret: what one gives away says nothing about the other.
        let derived = |label: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, label), &bound);
        Self {
            random: SystemRandom::new(),
            salt: Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, derived(b"quorate group keys 1").as_ref())),
            proofs: hmac::Key::new(hmac::HMAC_SHA256, derived(b"quorate group proofs 1").as_ref()),
        }
    }
}

impl Crypto for Seals {
    type Private = EphemeralPrivateKey;
    type Key = LessSafeKey;

    fn fresh(&mut self) -> Option<(EphemeralPrivateKey, PublicKey)> {
        let private = EphemeralPrivateKey::generate(&X25519, &self.random).ok()?;
        let public = private.compute_public_key().ok()?;
        Some((private, public.as_ref().try_into().ok()?))
    }

    fn agree(
        &mut self,
        own: EphemeralPrivateKey,
        other: &PublicKey,
        purposes: [&[u8]; 2],
    ) -> Option<[LessSafeKey; 2]> {
        let derive = |shared: &[u8]| {
            let extracted = self.salt.extract(shared);
            let key = |purpose: &[u8]| {
                let parts = [purpose];
                let expanded = extracted.expand(&parts, &CHACHA20_POLY1305).ok()?;
                Some(LessSafeKey::new(UnboundKey::from(expanded)))
            };
            Some([key(purposes[0])?, key(purposes[1])?])
        };
        agree_ephemeral(own, &UnparsedPublicKey::new(&X25519, other), derive).ok()?
    }

    fn vouch(&self, statement: &[u8]) -> Proof {
        let mut proof = [0; 32];
        proof.copy_from_slice(hmac::sign(&self.proofs, statement).as_ref());
        proof
    }

    fn believes(&self, statement: &[u8], proof: &Proof) -> bool {
        hmac::verify(&self.proofs, statement, proof).is_ok()
    }

    fn seal(&self, key: &LessSafeKey, number: Number, body: &mut BytesMut) {
        let nonce = Nonce::assume_unique_for_key(number);
        // It refuses only messages of hundreds of gigabytes; one that is not sealed must not leave.
        if key.seal_in_place_append_tag(nonce, Aad::empty(), body).is_err() {
            body.clear();
        }
    }

    fn open(&self, key: &LessSafeKey, number: Number, mut sealed: BytesMut) -> Option<Bytes> {
        let length =
            key.open_in_place(Nonce::assume_unique_for_key(number), Aad::empty(), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed.freeze())
    }
}

/// Bytes of the shortest secret.
pub const SECRET_BYTES_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_with_the_secret_of_one_group_open_what_the_other_seals_and_nobody_else_does() {
        let secret = |byte: u8| Secret::new(&[byte; 32]).unwrap();
        let (room, hall) = (Channel::named("group", "room"), Channel::named("group", "hall"));
        assert_eq!(Secret::new(&[1; 31]).map(drop), Err(SecretTooShort { size: 31 }));
        for (two, is_same) in [
            (Seals::new(&secret(1), room), true),
            (Seals::new(&secret(2), room), false),
            (Seals::new(&secret(1), hall), false),
        ] {
            let (mut one, mut two) = (Seals::new(&secret(1), room), two);
            assert_eq!(two.believes(b"so it is", &one.vouch(b"so it is")), is_same);
            assert!(!two.believes(b"so it was", &one.vouch(b"so it is")));
            let ((mine, here), (theirs, there)) = (one.fresh().unwrap(), two.fresh().unwrap());
            let [key, _] = one.agree(mine, &there, [b"there", b"back"]).unwrap();
            let [_, back] = two.agree(theirs, &here, [b"back", b"there"]).unwrap();
            let mut sealed = BytesMut::from(&b"a word"[..]);
            one.seal(&key, [1; 12], &mut sealed);
            assert!(!sealed.windows(6).any(|window| window == b"a word"));
            assert_eq!(two.open(&back, [2; 12], sealed.clone()), None, "another number");
            let mut damaged = sealed.clone();
            damaged[3] ^= 1;
            assert_eq!(two.open(&back, [1; 12], damaged), None);
            assert_eq!(two.open(&back, [1; 12], sealed).is_some(), is_same);
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let mut seals = Seals::new(&Secret::new(&[1; 32]).unwrap(), Channel(1));
        let (own, _) = seals.fresh().unwrap();
        assert!(seals.agree(own, &[0; 32], [b"there", b"back"]).is_none());
    }
}
