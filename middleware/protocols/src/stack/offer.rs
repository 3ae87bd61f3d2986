//! What layers offer to those above them: so that a stack that cannot work is refused with the reason.

use std::fmt;

/// What the layers up to some height of a stack offer together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offer(u16);

impl Offer {
    /// What the network gives: messages that may be lost.
    pub const NOTHING: Self = Self(0);
    /// Members that are silent are told of.
    pub const SUSPICIONS: Self = Self(1);
    /// Multicast that is reliable and in each sender's order.
    pub const FIFO: Self = Self(2);
    /// Delivery can be stopped, and what was received be levelled among members.
    pub const CUT: Self = Self(4);
    /// What a quorum holds is told.
    pub const SAFE: Self = Self(8);
    /// Members agree on who they are, and on the messages between two such views.
    pub const VIEWS: Self = Self(16);
    /// Messages come after those that their senders had delivered.
    pub const CAUSAL: Self = Self(32);
    /// Messages come in one order for all.
    pub const TOTAL: Self = Self(64);
    /// Joiners are given the state.
    pub const STATE: Self = Self(128);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The one without the other: what a layer uses up.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The same, if it includes what `layer` needs.
    ///
    /// # Errors
    /// [`Impossible::Missing`].
    pub fn with_all(self, layer: &'static str, needed: Self) -> Result<Self, Impossible> {
        let missing = needed.without(self);
        if missing == Self::NOTHING { Ok(self) } else { Err(Impossible::Missing { layer, missing }) }
    }

    /// The same, if it includes nothing of what must not be below `layer`.
    ///
    /// # Errors
    /// [`Impossible::Misplaced`].
    pub fn with_none(self, layer: &'static str, unwanted: Self) -> Result<Self, Impossible> {
        let there = Self(self.0 & unwanted.0);
        if there == Self::NOTHING { Ok(self) } else { Err(Impossible::Misplaced { layer, there }) }
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::SUSPICIONS, "suspicions"),
            (Self::FIFO, "reliable FIFO multicast"),
            (Self::CUT, "a cut of what was received"),
            (Self::SAFE, "word of what a quorum holds"),
            (Self::VIEWS, "agreed views"),
            (Self::CAUSAL, "causal order"),
            (Self::TOTAL, "total order"),
            (Self::STATE, "state for joiners"),
        ];
        let mut is_first = true;
        for (_, name) in names.into_iter().filter(|(one, _)| self.0 & one.0 != 0) {
            f.write_str(if is_first { "" } else { ", " })?;
            f.write_str(name)?;
            is_first = false;
        }
        if is_first { f.write_str("nothing") } else { Ok(()) }
    }
}

/// Why layers cannot stand on each other in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Impossible {
    /// A layer needs what none below it offers.
    #[error("{layer} needs {missing} below it")]
    Missing {
        /// The layer.
        layer: &'static str,
        /// What is not there.
        missing: Offer,
    },
    /// A layer stands above one that must be above it, or twice.
    #[error("{layer} cannot stand above a layer that gives {there}")]
    Misplaced {
        /// The layer.
        layer: &'static str,
        /// What is there.
        there: Offer,
    },
}
