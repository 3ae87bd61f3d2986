//! One call to many: how many answers are enough, and whose are still to come.
//!
//! Guarantee   an answer counts once for each member, and only of those who were asked; whoever goes is not waited for.
//! Method      the call is a message of a group: asked are the members of the view in which it is delivered.
//! Source      van Steen & Tanenbaum, multicast RPC; Birman & Joseph 1987 (group calls that wait for so many replies).

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::machine::ProcessId;

/// How many answers are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// One.
    First,
    /// More than half of those who were asked.
    Majority,
    /// Everybody's.
    All,
    /// So many.
    AtLeast(usize),
}

impl Wanted {
    /// Of so many who were asked.
    pub const fn of(self, asked: usize) -> usize {
        match self {
            Self::First => 1,
            Self::Majority => asked / 2 + 1,
            Self::All => asked,
            Self::AtLeast(count) => count,
        }
    }
}

/// What has come of one call to a group.
#[derive(Debug, Clone)]
pub struct Gather {
    wanted: Wanted,
    /// How many were asked; `None` before the call was delivered.
    asked: Option<usize>,
    /// Those of them who are here and have not answered.
    silent: BTreeSet<ProcessId>,
    answers: Vec<(ProcessId, Bytes)>,
}

/// How a call to a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// More answers are wanted, and may come.
    Open,
    /// Enough have come.
    Enough,
    /// Those who have not answered are too few.
    Impossible,
}

impl Gather {
    /// A call of which nothing is known yet.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, asked: None, silent: BTreeSet::new(), answers: Vec::new() }
    }

    /// The call was delivered to these members.
    pub fn on_asked(&mut self, members: &[ProcessId]) {
        self.asked = Some(members.len());
        self.silent = members.iter().copied().collect();
    }

    /// A member has answered.
    pub fn on_answer(&mut self, from: ProcessId, answer: Bytes) {
        if self.silent.remove(&from) {
            self.answers.push((from, answer));
        }
    }

    /// A member has said that it will not answer.
    pub fn on_refusal(&mut self, from: ProcessId) {
        self.silent.remove(&from);
    }

    /// Only these members are left.
    pub fn on_view(&mut self, members: &[ProcessId]) {
        self.silent.retain(|member| members.contains(member));
    }

    /// How many answers are wanted, as far as that is known.
    pub fn wanted(&self) -> usize {
        self.wanted.of(self.asked.unwrap_or(0))
    }

    /// Whether it is over.
    pub fn standing(&self) -> Standing {
        let Some(asked) = self.asked else { return Standing::Open };
        let wanted = self.wanted.of(asked);
        if self.answers.len() >= wanted {
            Standing::Enough
        } else if self.answers.len() + self.silent.len() < wanted {
            Standing::Impossible
        } else {
            Standing::Open
        }
    }

    /// The answers so far, in the order of their arrival.
    pub fn into_answers(self) -> Vec<(ProcessId, Bytes)> {
        self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: u64) -> ProcessId {
        ProcessId { node, incarnation: 1 }
    }

    fn asked(wanted: Wanted) -> Gather {
        let mut gather = Gather::new(wanted);
        assert_eq!(gather.standing(), Standing::Open, "nobody was asked yet");
        gather.on_asked(&[id(1), id(2), id(3)]);
        gather
    }

    #[test]
    fn g10_enough_is_as_many_as_were_wanted_each_member_once() {
        let wishes = [(Wanted::First, 1), (Wanted::Majority, 2), (Wanted::All, 3), (Wanted::AtLeast(2), 2)];
        for (wanted, count) in wishes {
            let mut gather = asked(wanted);
            for node in 1..=3 {
                let expected = if node > count { Standing::Enough } else { Standing::Open };
                assert_eq!(gather.standing(), expected, "{wanted:?} before the answer of {node}");
                gather.on_answer(id(node), Bytes::from_static(b"yes"));
                gather.on_answer(id(node), Bytes::from_static(b"again"));
                gather.on_answer(id(9), Bytes::from_static(b"a stranger's"));
            }
            assert!(gather.into_answers().iter().all(|(_, answer)| answer == "yes"));
        }
    }

    #[test]
    fn g10_who_goes_is_not_waited_for() {
        let mut gather = asked(Wanted::All);
        gather.on_answer(id(1), Bytes::new());
        gather.on_view(&[id(1), id(2)]);
        assert_eq!(gather.standing(), Standing::Impossible, "all three were asked");
        let mut gather = asked(Wanted::Majority);
        gather.on_view(&[id(1), id(2)]);
        assert_eq!(gather.standing(), Standing::Open);
        gather.on_view(&[id(1)]);
        assert_eq!(gather.standing(), Standing::Impossible);
        assert_eq!(asked(Wanted::AtLeast(4)).standing(), Standing::Impossible);
        let mut gather = asked(Wanted::Majority);
        gather.on_refusal(id(3));
        assert_eq!(gather.standing(), Standing::Open, "two others may answer");
        gather.on_refusal(id(2));
        assert_eq!(gather.standing(), Standing::Impossible);
    }
}
