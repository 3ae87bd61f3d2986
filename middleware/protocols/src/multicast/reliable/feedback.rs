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
    /// Members stand in a tree below the sender, and each asks the one above it, which answers from what it holds, or asks for
    /// itself first: no member, the sender neither, is asked by more than `fanout` others, and what was lost on a far branch is
    /// repaired there. Who is not answered asks the next one up, and in the end the sender.
    /// Source: the tree of coordinators of van Steen & Tanenbaum, hierarchical feedback control; Paul, Sabnani, Lin &
    /// Bhattacharyya 1997 (RMTP).
    Tree {
        /// How many members are below each. Four are usual; with one, members stand in a row. Zero is taken for one.
        fanout: u16,
    },
}

impl Feedback {
    /// Whom a member asks for messages of `sender`, one after the other, of so many members by rank.
    pub(super) fn line(self, rank: usize, sender: usize, members: usize) -> Vec<usize> {
        let Self::Tree { fanout } = self else { return vec![sender] };
        // Places count from the sender, so that each sender has a tree of its own.
        let mut place = (rank + members - sender) % members;
        let mut line = Vec::new();
        while place > 0 {
            place = (place - 1) / usize::from(fanout.max(1));
            line.push((place + sender) % members);
        }
        line
    }

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
    fn g03_in_the_tree_of_each_sender_nobody_is_above_more_than_so_many_and_the_sender_is_above_all() {
        for (members, fanout) in [(2, 4), (7, 1), (100, 3), (256, 4)] {
            let feedback = Feedback::Tree { fanout };
            for sender in [0, 1, members - 1] {
                let mut below = vec![0; members];
                for rank in (0..members).filter(|rank| *rank != sender) {
                    let line = feedback.line(rank, sender, members);
                    assert_eq!(line.last(), Some(&sender), "{rank} of {members}");
                    assert!(!line.contains(&rank));
                    below[line[0]] += 1;
                }
                assert!(below.iter().all(|count| *count <= fanout), "{below:?}");
            }
        }
    }

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
