//! Looking again before going to sleep.
//!
//! Why         where answers come within microseconds, most of a round trip is waking up: a thread that sleeps in the
//!             system is told, scheduled, and finds its caches cold. A driver that has just moved something therefore
//!             yields and looks again for a while, and sleeps when nothing came.
//! Limits      [`ConnectionConfig::looks_max`](super::ConnectionConfig::looks_max) looks after whatever moved. Looking in
//!             vain costs the next chances, twice as many each time, so that a connection on which answers take long
//!             hardly ever does it. Of all connections that a thread drives only the one that moved last looks.

use std::cell::Cell;
use std::pin::pin;
use std::task::Context;

/// When one driver looks again.
pub(super) struct Looks {
    max: u32,
    /// Looks that are left before it sleeps; 0 when it does not look.
    left: u32,
    /// Times in a row that it looked in vain.
    vain: u32,
    /// Chances to look that it passes over.
    passes: u32,
}

impl Looks {
    pub(super) fn new(max: u32) -> Self {
        Self { max, left: 0, vain: 0, passes: 0 }
    }

    /// Nothing is left to be done; `has_moved` when something was. Looks again if it is worth it: then `cx` is woken
    /// when the others of this thread and the system have had their turn.
    pub(super) fn before_sleep(&mut self, cx: &mut Context<'_>, has_moved: bool) {
        let me = std::ptr::from_ref(self).addr();
        if has_moved {
            if self.left > 0 {
                self.vain = 0;
            }
            self.left = 0;
            if self.passes > 0 {
                self.passes -= 1;
            } else {
                LAST_MOVED.set(me);
                self.left = self.max;
            }
        } else if self.left > 0 {
            self.left = if LAST_MOVED.get() == me { self.left - 1 } else { 0 };
            if self.left == 0 {
                self.vain = (self.vain + 1).min(VAIN_MAX);
                self.passes = 1 << self.vain;
            }
        }
        if self.left > 0 {
            // It wakes after the runtime has looked at the system, which is what this is about.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
        }
    }
}

thread_local! {
    /// The address of who moved last among those that may look.
    static LAST_MOVED: Cell<usize> = const { Cell::new(0) };
}

/// At most 64 chances are passed over.
const VAIN_MAX: u32 = 6;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn t08_looking_in_vain_costs_chances_and_only_who_moved_last_looks() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let look = |looks: &mut Looks, has_moved| {
            looks.before_sleep(&mut Context::from_waker(&waker), has_moved);
            woken.0.swap(0, Ordering::Relaxed)
        };
        let (mut one, mut two) = (Looks::new(3), Looks::new(3));
        // Three looks, all in vain, and two chances passed over.
        assert_eq!([true, false, false, false, false].map(|moved| look(&mut one, moved)), [1, 1, 1, 0, 0]);
        assert_eq!([true, true].map(|moved| look(&mut one, moved)), [0, 0]);
        // Something comes while it looks: it goes on, and has all chances again.
        assert_eq!([true, false, true, true, false].map(|moved| look(&mut one, moved)), [1; 5]);
        assert_eq!(one.vain, 0);
        assert_eq!((look(&mut two, true), look(&mut one, false), look(&mut two, false)), (1, 0, 1));
        assert_eq!(look(&mut Looks::new(0), true), 0);
    }
}
