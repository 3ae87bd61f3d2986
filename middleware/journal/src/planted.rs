//! Known bugs, one switch each, so that the simulated disk can prove that it finds them.
//!
//! Guarantee   outside of this crate's own tests no bug can be planted and every look at a switch is a constant `false`.

/// A bug that can be planted. Each names the rule that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// A commit writes and does not sync.
    CommitDoesNotSync,
    /// A record of a file's earlier life is taken for one of its new life.
    StaleRecordIsTaken,
    /// A footer of a file's earlier life is taken for one of its new life.
    StaleFooterIsTaken,
    /// A segment begins although the end of the one before it is not synced.
    SealDoesNotSync,
    /// A new file gets its name before its bytes are synced.
    NewFileIsNotSynced,
    /// A name is changed and the directory not synced.
    DirectoryIsNotSynced,
    /// A spare file is used although an older crash has left it its old name as well.
    SpareKeepsItsOldName,
    /// Opening syncs what it found and does not write it again.
    RecoveryOnlySyncs,
    /// An append whose end is missing is kept.
    HalfAnAppendIsKept,
    /// Damage is taken for a torn tail although a later record proves that it had been durable.
    ProofIsIgnored,
}

#[cfg(test)]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Planted>> = const { std::cell::Cell::new(None) };
}

/// True where the bug is to be made.
#[cfg(test)]
pub(crate) fn has(bug: Planted) -> bool {
    PLANTED.get() == Some(bug)
}

/// True where the bug is to be made: never.
#[cfg(not(test))]
pub(crate) const fn has(_: Planted) -> bool {
    false
}

/// Plants a bug for this thread, or none.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Planted>) {
    PLANTED.set(bug);
}
