//! Known bugs, so that the simulation can prove that it finds them. Outside of tests none can be planted.

/// A bug, named after the rule that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// The next message of a key is given while the acknowledgement of the one before is still on its way.
    #[cfg(test)]
    KeyOpensBeforeTheAcknowledgementIsStored,
    /// Users are told before it is durable.
    #[cfg(test)]
    ToldBeforeItIsStored,
    /// A message is written again although its acknowledgement is on its way.
    MovesWhatIsBeingAcknowledged,
    /// A message is written again although all of them are being purged.
    MovesWhatIsBeingPurged,
    /// The parts of a unit of work are stored one after the other.
    #[cfg(test)]
    UnitFallsApart,
    /// The journal is cut although it tells names of the window.
    CutsNames,
    /// The journal is cut although it tells the application's state.
    CutsCells,
    /// The journal is cut although it tells messages that are kept.
    CutsKept,
    /// The journal is cut although messages that are far lie there only.
    CutsWhatIsFar,
    /// A checkpoint claims to cover what was not done yet: an acknowledgement on its way, say.
    CheckpointCoversWhatIsNotDone,
    /// A checkpoint is taken although the journal was cut behind it.
    StaleCheckpointIsTaken,
    /// A checkpoint has not what is far.
    CheckpointForgetsWhatIsFar,
    /// The journal is cut although what it tells was not done yet.
    CutsWhatIsNotDone,
    /// After a restart ids are given again.
    IdsStartAgain,
    /// A name is only known when its message is stored, so two puts at once are both stored.
    NamesUnderWayAreForgotten,
    /// A message that expired is delivered.
    ExpiredIsDelivered,
}

#[cfg(test)]
impl Bug {
    pub(super) const ALL: &[Self] = &[
        Self::KeyOpensBeforeTheAcknowledgementIsStored,
        Self::ToldBeforeItIsStored,
        Self::MovesWhatIsBeingAcknowledged,
        Self::MovesWhatIsBeingPurged,
        Self::UnitFallsApart,
        Self::CutsNames,
        Self::CutsCells,
        Self::CutsKept,
        Self::CutsWhatIsFar,
        Self::CheckpointCoversWhatIsNotDone,
        Self::StaleCheckpointIsTaken,
        Self::CheckpointForgetsWhatIsFar,
        Self::CutsWhatIsNotDone,
        Self::IdsStartAgain,
        Self::NamesUnderWayAreForgotten,
        Self::ExpiredIsDelivered,
    ];
}
