//! What keeps out at a resource who does not know yet that another one has taken over.
//!
//! Guarantee   once somebody of an epoch was let in, nobody of an earlier one is. No clock and no time-out is trusted: who
//!             was paused for an hour between checking its lease and writing is kept out, too.
//! Source      Burrows 2006 (Chubby: sequencers); Gray & Cheriton 1989 (leases).
//! Limits      one number; who keeps it across restarts stores [`Fence::epoch`] with the resource.

use std::sync::atomic::{AtomicU64, Ordering};

/// The newest epoch that a resource has seen.
#[derive(Debug, Default)]
pub struct Fence(AtomicU64);

/// Kept out: somebody of a later epoch was here. Who gets this leads no more and holds no lease, whatever it thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("epoch {epoch} is over, this is epoch {newest}")]
pub struct Stale {
    /// The one that was presented.
    pub epoch: u64,
    /// The newest that was.
    pub newest: u64,
}

impl Fence {
    /// One that has seen `epoch`, and lets it in.
    pub fn new(epoch: u64) -> Self {
        Self(AtomicU64::new(epoch))
    }

    /// Lets in who presents the newest epoch so far or a newer one. What it does then and the check must be one step for
    /// others: hold the resource's own lock around both.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn admit(&self, epoch: u64) -> Result<(), Stale> {
        let newest = self.0.fetch_max(epoch, Ordering::SeqCst);
        if newest > epoch { Err(Stale { epoch, newest }) } else { Ok(()) }
    }

    /// The newest so far.
    pub fn epoch(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_late_is_kept_out() {
        let fence = Fence::new(3);
        assert_eq!(fence.admit(3), Ok(()));
        assert_eq!(fence.admit(5), Ok(()));
        assert_eq!(fence.admit(4), Err(Stale { epoch: 4, newest: 5 }));
        assert_eq!((fence.admit(5), fence.epoch()), (Ok(()), 5));
    }
}
