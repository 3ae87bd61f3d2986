//! What a guard knows of one other process.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Crypto, PublicKey};
use crate::machine::Lane;
use crate::time::Time;

/// Another process, in one life.
pub(super) struct Pair<C: Crypto> {
    /// The own half for this meeting, until the other's is known.
    pub(super) private: Option<C::Private>,
    pub(super) public: PublicKey,
    /// For what goes there, and for what comes from there.
    pub(super) keys: Option<[C::Key; 2]>,
    /// When to say hello again.
    pub(super) hello_at: Time,
    pub(super) heard_at: Time,
    /// What waits for keys.
    pub(super) held: VecDeque<(Lane, Bytes)>,
    /// By lane: how many were sealed.
    pub(super) sent: [u64; LANES],
    /// By lane: which were opened.
    pub(super) windows: [Window; LANES],
}

impl<C: Crypto> Pair<C> {
    pub(super) fn new(now: Time, private: C::Private, public: PublicKey) -> Self {
        Self {
            private: Some(private),
            public,
            keys: None,
            hello_at: now,
            heard_at: now,
            held: VecDeque::new(),
            sent: [0; LANES],
            windows: [Window::default(); LANES],
        }
    }
}

/// Which numbers were taken: all below a window of 64 count as taken.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    /// One past the largest.
    end: u64,
    /// Bit 0 is the largest, bit 1 the one before.
    taken: u64,
}

impl Window {
    pub(super) fn is_new(&self, number: u64) -> bool {
        match self.end.checked_sub(number.saturating_add(1)) {
            None => true,
            Some(age) => age < 64 && self.taken >> age & 1 == 0,
        }
    }

    pub(super) fn take(&mut self, number: u64) {
        let end = number.saturating_add(1);
        if let Some(ahead) = end.checked_sub(self.end).filter(|ahead| *ahead > 0) {
            self.taken = if ahead < 64 { self.taken << ahead | 1 } else { 1 };
            self.end = end;
        } else if self.end - end < 64 {
            self.taken |= 1 << (self.end - end);
        }
    }
}

const LANES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once_and_never_when_it_is_far_behind() {
        let mut window = Window::default();
        for number in [0, 2, 1, 70, 69, 7, 200, 137] {
            assert!(window.is_new(number), "{number}");
            window.take(number);
            assert!(!window.is_new(number), "{number}");
        }
        assert!(!window.is_new(136), "64 behind");
        assert!(window.is_new(138) && window.is_new(u64::MAX));
        window.take(u64::MAX);
        assert!(!window.is_new(u64::MAX) && !window.is_new(200));
    }
}
