//! Known bugs, one switch each, so that the simulation can prove that it finds them.
//!
//! Guarantee   outside this crate's own tests every test of a switch is a constant `false` that the compiler removes.

/// A bug; each names the rule that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planted {
    /// Bytes that came twice are given out twice.
    DeliversTwice,
    /// Bytes are given out as they come.
    SkipsGaps,
    /// The end of the stream is given out when it comes, before what is missing.
    EndsEarly,
    /// What was lost is not sent again.
    ForgetsLostPieces,
    /// The end of the stream is not sent again.
    ForgetsLostEnd,
    /// Everything up to the largest number counts as received.
    AcksWhatIsMissing,
    /// Damaged packets are believed.
    IgnoresChecksum,
    /// Credit binds nobody.
    IgnoresCredit,
    /// A hello without proof of its address makes a connection.
    IgnoresCookie,
    /// A packet from elsewhere moves the connection there at once.
    MovesUnproved,
    /// A reset is believed whoever it names.
    BelievesAnyReset,
    /// The pause between probes does not grow.
    ProbesWithoutPause,
    /// A silent peer is waited for without end.
    WaitsForEver,
    /// That nobody reads any more is not said again when it got lost.
    ForgetsLostStop,
    /// Nor that nothing more will be written.
    ForgetsLostAbort,
    /// Losses do not make the window smaller.
    NeverYields,
}

/// Which bug is planted; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Plant {
    #[cfg(test)]
    pub(super) bug: Option<Planted>,
}

impl Plant {
    /// True when `bug` is planted.
    #[cfg(test)]
    pub(super) fn has(self, bug: Planted) -> bool {
        self.bug == Some(bug)
    }

    /// True when `bug` is planted: never, in this build.
    #[cfg(not(test))]
    pub(super) const fn has(self, _: Planted) -> bool {
        false
    }
}
