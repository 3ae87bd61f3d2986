//! Who hears whom: what members report of each other, and which of them can go on together.
//!
//! Guarantee   of members of whom some do not hear some others, a part is found in which nobody misses anybody. With
//!             equal reports all members find the same part.
//! Method      a suspicion is an edge from the one who does not hear to the one who is not heard. The member with the
//!             most edges is given up, of several the youngest, until no edge is left: one deaf member costs the group
//!             that one member and not all those that it does not hear.
//! Source      greedy vertex cover; the least number of members cannot be found cheaply, and rarely differs.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::ProcessId;
use crate::time::Time;

/// What the members last reported, one report each.
#[derive(Debug, Default)]
pub(super) struct Reports(BTreeMap<ProcessId, Report>);

#[derive(Debug)]
struct Report {
    suspects: BTreeSet<ProcessId>,
    until: Time,
}

impl Reports {
    /// Replaces what `reporter` said before; it counts until `until`.
    pub(super) fn insert(&mut self, reporter: ProcessId, suspects: BTreeSet<ProcessId>, until: Time) {
        if suspects.is_empty() {
            self.0.remove(&reporter);
        } else {
            self.0.insert(reporter, Report { suspects, until });
        }
    }

    /// Forgets what nobody has repeated for long.
    pub(super) fn expire(&mut self, now: Time) {
        self.0.retain(|_, report| report.until > now);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first one expires.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.0.values().map(|report| report.until).min()
    }

    /// Every report as pairs of who does not hear and who is not heard.
    pub(super) fn edges(&self) -> impl Iterator<Item = (ProcessId, ProcessId)> + '_ {
        self.0
            .iter()
            .flat_map(|(reporter, report)| report.suspects.iter().map(|suspect| (*reporter, *suspect)))
    }
}

/// The part of `members`, longest-standing first, in which nobody misses anybody. Edges to and from others do not count.
pub(super) fn mutual(
    members: &[ProcessId],
    edges: impl Iterator<Item = (ProcessId, ProcessId)>,
) -> Vec<ProcessId> {
    let rank = |process: ProcessId| members.iter().position(|member| *member == process);
    // Two that miss each other are one edge, as is one of two that misses the other.
    let mut missed: BTreeSet<(usize, usize)> = edges
        .filter_map(|(one, other)| Some((rank(one)?, rank(other)?)))
        .filter(|(one, other)| one != other)
        .map(|(one, other)| (one.min(other), one.max(other)))
        .collect();
    let mut stays = vec![true; members.len()];
    while !missed.is_empty() {
        let mut degrees = vec![0_u32; members.len()];
        for (one, other) in &missed {
            degrees[*one] += 1;
            degrees[*other] += 1;
        }
        // Of equal ones the last, which is the youngest.
        let Some((given_up, _)) = degrees.iter().enumerate().max_by_key(|(_, degree)| **degree) else {
            break;
        };
        stays[given_up] = false;
        missed.retain(|(one, other)| *one != given_up && *other != given_up);
    }
    members.iter().zip(stays).filter(|(_, stays)| *stays).map(|(member, _)| *member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: u64) -> ProcessId {
        ProcessId { node, incarnation: 1 }
    }

    /// Members by number, edges as "who does not hear whom", and who is left.
    fn check(count: u64, edges: &[(u64, u64)], left: &[u64]) {
        let members: Vec<_> = (0..count).map(id).collect();
        let edges = edges.iter().map(|(one, other)| (id(*one), id(*other)));
        let found: Vec<_> = mutual(&members, edges).iter().map(|member| member.node).collect();
        assert_eq!(found, left);
    }

    #[test]
    fn the_member_that_misses_or_is_missed_most_is_given_up() {
        check(4, &[], &[0, 1, 2, 3]);
        check(5, &[(4, 1), (4, 2), (4, 3)], &[0, 1, 2, 3]);
        check(5, &[(1, 0), (2, 0), (3, 0), (4, 0)], &[1, 2, 3, 4]);
        check(5, &[(0, 1), (0, 2)], &[1, 2, 3, 4]);
    }

    #[test]
    fn of_two_that_miss_each_other_the_younger_is_given_up() {
        check(3, &[(0, 1)], &[0, 2]);
        check(3, &[(1, 0)], &[0, 2]);
        check(5, &[(2, 3), (3, 2)], &[0, 1, 2, 4]);
    }

    #[test]
    fn strangers_and_oneself_are_no_matter() {
        check(3, &[(0, 9), (9, 1), (2, 2)], &[0, 1, 2]);
    }
}
