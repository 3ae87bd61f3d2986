//! The reference itself: what the user holds, and how it travels.
//!
//! Layout      in the codec of the call: node, incarnation, number, codec of the object, pin, and the addresses at which
//!             the owner can be dialled.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use quorate_protocols::ProcessId;
use quorate_protocols::objects::{Reference, Standing};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::super::client::Client;
use super::super::port;
use super::{Dangling, Home, Stub, Target, Use};
use crate::codec::Codec as _;
use crate::node::{Identity, identity_of};

/// A reference to an object that somebody exports: its methods are those of the generated client `K`.
///
/// A clone is another reference to the same object; two references are equal when they are to the same object. Dropping the
/// last one lets go of the object. The reference itself has no methods, so that none stands in the way of the object's:
/// what is asked of a reference is a function, as with [`Arc`].
pub struct Remote<K>(K);

/// The name of an object: the life of the node that exports it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Who exports it.
    pub owner: Identity,
    /// Which of the owner's objects it is.
    pub number: u64,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.number, self.owner)
    }
}

impl<K: Stub> Remote<K> {
    /// Which object it is.
    pub fn id(this: &Self) -> ObjectId {
        let Reference { owner, number } = this.reference();
        ObjectId { owner: identity_of(owner), number }
    }

    /// What is known of the object without asking: calls would fail with the same.
    ///
    /// # Errors
    /// [`Dangling`].
    pub fn check(this: &Self) -> Result<(), Dangling> {
        let Some(target) = this.target() else { return Err(Dangling::ObjectGone) };
        if target.home.is_closed() {
            return Err(Dangling::NodeGone);
        }
        match target.home.standing(target.reference) {
            Standing::Held | Standing::Arriving => Ok(()),
            Standing::ObjectGone | Standing::Refused | Standing::Unknown => Err(Dangling::ObjectGone),
            Standing::OwnerSilent => Err(Dangling::NodeGone),
            Standing::OwnerEnded => Err(Dangling::OtherLife),
        }
    }

    /// What it is called by, which is a reference, too.
    pub fn stub(this: &Self) -> &K {
        &this.0
    }

    /// The reference of which one use has begun; `None` when its owner cannot be called from here.
    pub(super) fn of_use(home: &Arc<Home>, reference: Reference) -> Option<Self> {
        let target = Arc::new(Target::Object(Use { home: Arc::clone(home), reference }));
        let core = home.core(identity_of(reference.owner).node)?;
        let local = if reference.owner == home.me() { home.local(reference.number) } else { None };
        let local = local.filter(|local| local.codec == K::Codec::ID);
        Some(Self(K::by(Client::of_object(core, local, target))))
    }

    pub(super) fn reference(&self) -> Reference {
        // Made with a target, always.
        const NOTHING: Reference = Reference { owner: ProcessId::any_life(0), number: 0 };
        self.target().map_or(NOTHING, |target| target.reference)
    }

    fn target(&self) -> Option<&Use> {
        self.0.client().target()?.as_object()
    }
}

impl<K> Deref for Remote<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.0
    }
}

impl<K: Clone> Clone for Remote<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Stub> PartialEq for Remote<K> {
    fn eq(&self, other: &Self) -> bool {
        self.reference() == other.reference()
    }
}

impl<K: Stub> Eq for Remote<K> {}

impl<K: Stub> PartialOrd for Remote<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K: Stub> Ord for Remote<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.reference().cmp(&other.reference())
    }
}

impl<K: Stub> Hash for Remote<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.reference().hash(state);
    }
}

impl<K: Stub> fmt::Debug for Remote<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "remote {}", self.reference())
    }
}

/// A reference as it travels.
#[derive(serde::Serialize, serde::Deserialize)]
struct Ticket {
    node: u64,
    incarnation: u64,
    number: u64,
    codec: u8,
    pin: u64,
    addresses: Vec<String>,
}

impl<K: Stub> Serialize for Remote<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (home, to) = port::references().ok_or_else(|| S::Error::custom(NO_WAY))?;
        let reference = self.reference();
        let target = self
            .0
            .client()
            .target()
            .filter(|target| target.as_object().is_some_and(|object| Arc::ptr_eq(&object.home, &home)));
        let Some(target) = target else {
            return Err(S::Error::custom("a reference travels from the node that holds it"));
        };
        let pin = home.depart(reference, to).ok_or_else(|| S::Error::custom(TOO_MANY))?;
        port::note_reference(Arc::clone(target), pin);
        let Reference { owner, number } = reference;
        let addresses = match owner == home.me() {
            true => home.node.addresses(),
            false => home.node.addresses_of(identity_of(owner).node),
        };
        Ticket {
            node: owner.node,
            incarnation: owner.incarnation,
            number,
            codec: K::Codec::ID,
            pin,
            addresses: addresses.iter().take(ADDRESSES_MAX).map(ToString::to_string).collect(),
        }
        .serialize(serializer)
    }
}

impl<'de, K: Stub> Deserialize<'de> for Remote<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Ticket { node, incarnation, number, codec, pin, addresses } = Ticket::deserialize(deserializer)?;
        let (home, from) = port::references().ok_or_else(|| D::Error::custom(NO_WAY))?;
        if codec != K::Codec::ID {
            return Err(D::Error::custom("the object uses another codec than its reference says"));
        }
        let reference = Reference { owner: ProcessId { node, incarnation }, number };
        if !home.arrive(reference, from, pin) {
            return Err(D::Error::custom(TOO_MANY));
        }
        let owner = identity_of(reference.owner);
        if node != home.me().node {
            // Beside what is known: whoever was told something wrong first can still be told better.
            let known = home.node.addresses_of(owner.node);
            let is_news = |text: &&String| known.iter().all(|known| known.as_str() != text.as_str());
            let news = addresses.iter().take(ADDRESSES_MAX).filter(is_news);
            for address in news.filter_map(|text| text.parse().ok()) {
                home.node.hear_address(owner.node, address);
            }
        }
        Self::of_use(&home, reference).ok_or_else(|| D::Error::custom("the node is shut down"))
    }
}

const NO_WAY: &str = "a reference travels with a method that has `Remote` in its types or says `#[references]`, between \
                      nodes that have `Objects`";
const TOO_MANY: &str = "too many references";
/// Of one owner.
const ADDRESSES_MAX: usize = 8;
