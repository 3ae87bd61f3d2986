//! How members ask for what they miss, so that a loss which many share does not make all of them ask at once.

use std::time::Duration;

/// How members ask for messages that they miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Feedback {
    /// Each asks for itself, and one holder answers it. As many questions as members that miss something: right while
    /// that is one or two.
    #[default]
    Direct,
    /// A member waits for a random time, then asks all; whoever hears that and misses the same keeps silent, and the sender
    /// answers all at once. A question that stays unanswered is repeated directly.
    /// Source: Floyd, Jacobson, Liu, McCanne & Zhang 1997 (SRM).
    Suppressed {
        /// The longest wait. Some eight times the time that a message travels; shorter lets more ask at the same time,
        /// longer delays the repair.
        spread: Duration,
    },
}

impl Feedback {
    /// The wait of one of so many members, of the random number `chance`: for nearly all of them most of the spread, and
    /// none at all for one in so many. So the number of questions hardly depends on the number of members.
    ///
    /// Source: the truncated exponential distribution of Nonnenmacher & Biersack 1998, used by RFC 5740.
    pub(super) fn wait(self, chance: u64, members: usize) -> Duration {
        let Self::Suppressed { spread } = self else { return Duration::ZERO };
        // How often a number between 0 and 1 must be doubled to reach 1, in parts of 256.
        let zeros = chance.leading_zeros();
        let fraction = chance.checked_shl(zeros + 1).unwrap_or(0) >> 56;
        let doublings = (u64::from(zeros) + 1) * 256 - fraction;
        let most = u64::from(members.max(2).ilog2()) * 256;
        let share = most.saturating_sub(doublings);
        spread.saturating_mul(share as u32) / most as u32
    }
}

/// Well-mixed numbers (splitmix64) of numbers that are not.
pub(super) fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |mixed, number| {
        let mut z = (mixed ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g03_few_of_many_ask_early_and_nobody_later_than_the_spread() {
        let spread = Duration::from_millis(30);
        let feedback = Feedback::Suppressed { spread };
        for members in [2, 10, 100, 1000] {
            let waits = (0..members as u64).map(|number| feedback.wait(mix(&[number, 7]), members));
            let waits: Vec<_> = waits.collect();
            assert!(waits.iter().all(|wait| *wait <= spread));
            let early = waits.iter().filter(|wait| **wait < spread / 4).count();
            assert!(early <= 2 + members / 4, "{early} of {members}");
        }
        assert_eq!(Feedback::Direct.wait(0, 10), Duration::ZERO);
        assert_eq!(feedback.wait(0, 10), Duration::ZERO);
    }
}
