//! How each operation goes, step by step: down the tree, up the tree, across in doubling strides, and directly.

use std::sync::Arc;

use bytes::Bytes;

use super::message::Kind;
use super::operation::{CollectiveError, Combine, Operation};
use super::tree::{children, parent, span};
use super::{Collectives, Running};
use crate::machine::Outputs;
use crate::time::Time;

/// What a step of an operation came to.
pub(super) enum Step {
    /// Something has not come yet.
    Wait,
    Done(Vec<Bytes>),
}

impl Collectives {
    /// Does the next step that can be done; `Wait` after one, or when there is none.
    pub(super) fn step(&mut self, now: Time, operation: &Operation, out: &mut Outputs<Self>) -> Step {
        match operation {
            Operation::Broadcast { root, body } => self.down(now, *root, 0, vec![body.clone()], out),
            Operation::Scatter { root, parts } => self.scatter(now, *root, parts, out),
            Operation::Gather { root, body } => self.gather(now, *root, body, false, out),
            Operation::AllGather { body } => self.gather(now, 0, body, true, out),
            Operation::Barrier => match self.reduce(now, 0, &Bytes::new(), &nothing(), true, out) {
                Step::Done(_) => Step::Done(Vec::new()),
                Step::Wait => Step::Wait,
            },
            Operation::Reduce { root, body, combine } => self.reduce(now, *root, body, combine, false, out),
            Operation::AllReduce { body, combine } => self.reduce(now, 0, body, combine, true, out),
            Operation::Scan { body, combine } => self.scan(now, body, combine, out),
            Operation::AllToAll { parts } => self.exchange(now, parts, out),
            Operation::GiveUp { .. } => Step::Wait,
        }
    }

    /// Passes what the root has down the tree in the phase; done with it.
    fn down(&mut self, now: Time, root: u32, phase: u8, own: Vec<Bytes>, out: &mut Outputs<Self>) -> Step {
        let items = match parent(self.rank, root, self.size()) {
            None => own,
            Some(from) => match self.take(phase, from) {
                Some(items) => items,
                None => return Step::Wait,
            },
        };
        // The largest subtree first: it has the longest way.
        for (child, _) in children(self.rank, root, self.size()).into_iter().rev() {
            self.send(now, child, phase, items.clone(), out);
        }
        Step::Done(items)
    }

    /// Each subtree's parts go to its topmost member, in the order of the tree.
    fn scatter(&mut self, now: Time, root: u32, parts: &[Bytes], out: &mut Outputs<Self>) -> Step {
        let size = self.size();
        let items = match parent(self.rank, root, size) {
            None => (0..size).map(|at| parts[((at + root) % size) as usize].clone()).collect(),
            Some(from) => match self.take(0, from) {
                Some(items) => items,
                None => return Step::Wait,
            },
        };
        if items.len() != span(self.rank, root, size) as usize {
            return self.wrong(parent(self.rank, root, size).unwrap_or(self.rank), out);
        }
        for (child, offset) in children(self.rank, root, size).into_iter().rev() {
            let count = span(child, root, size) as usize;
            let own = items[offset as usize..offset as usize + count].to_vec();
            self.send(now, child, 0, own, out);
        }
        Step::Done(items[..1].to_vec())
    }

    /// Collects the subtree, child by child, and passes it up; with `is_for_all` the whole then goes down again.
    fn gather(
        &mut self,
        now: Time,
        root: u32,
        body: &Bytes,
        is_for_all: bool,
        out: &mut Outputs<Self>,
    ) -> Step {
        let size = self.size();
        let children = children(self.rank, root, size);
        if let Some((child, _)) = self.upward(&children) {
            if self.held_mut().is_empty() {
                self.held_mut().push(body.clone());
            }
            let Some(items) = self.take(0, child) else { return Step::Wait };
            if items.len() != span(child, root, size) as usize {
                return self.wrong(child, out);
            }
            self.held_mut().extend(items);
            return self.stepped();
        }
        if self.held_mut().is_empty() {
            self.held_mut().push(body.clone());
        }
        let above = parent(self.rank, root, size);
        if self.steps() == children.len() {
            self.stepped();
            if let Some(above) = above {
                let held = std::mem::take(self.held_mut());
                self.send(now, above, 0, held, out);
            }
        }
        let mut all = std::mem::take(self.held_mut());
        if above.is_none() {
            // From the order of the tree to that of the ranks.
            all.rotate_right(root as usize);
        }
        if !is_for_all {
            return Step::Done(if above.is_none() { all } else { Vec::new() });
        }
        let step = self.down(now, 0, 1, all.clone(), out);
        if matches!(step, Step::Wait) {
            *self.held_mut() = all;
        }
        step
    }

    /// Combines the subtree and passes it up to rank 0, so that the order of the ranks is kept; then on to the root.
    fn reduce(
        &mut self,
        now: Time,
        root: u32,
        body: &Bytes,
        combine: &Combine,
        is_for_all: bool,
        out: &mut Outputs<Self>,
    ) -> Step {
        let children = children(self.rank, 0, self.size());
        if self.held_mut().is_empty() && self.steps() == 0 {
            self.held_mut().push(body.clone());
        }
        if let Some((child, _)) = self.upward(&children) {
            let Some(items) = self.take(0, child) else { return Step::Wait };
            let [item] = &items[..] else { return self.wrong(child, out) };
            if let Some(own) = self.held_mut().first_mut() {
                *own = combine(own, item);
            }
            return self.stepped();
        }
        if self.steps() == children.len() {
            self.stepped();
            let held = std::mem::take(self.held_mut());
            match parent(self.rank, 0, self.size()) {
                Some(above) => self.send(now, above, 0, held, out),
                None if !is_for_all && root != 0 => self.send(now, root, 1, held, out),
                None => *self.held_mut() = held,
            }
        }
        if is_for_all {
            let held = self.held_mut().clone();
            return self.down(now, 0, 1, held, out);
        }
        if self.rank != root {
            return Step::Done(Vec::new());
        }
        if root == 0 {
            return Step::Done(std::mem::take(self.held_mut()));
        }
        self.take(1, 0).map_or(Step::Wait, Step::Done)
    }

    /// In each round a member tells the one twice as far away what it has, and puts what it hears before that.
    fn scan(&mut self, now: Time, body: &Bytes, combine: &Combine, out: &mut Outputs<Self>) -> Step {
        if self.steps() == 0 {
            self.held_mut().push(body.clone());
        }
        // Even steps tell, odd ones hear.
        let (round, is_hearing) = (self.steps() / 2, self.steps() % 2 == 1);
        let Some(reach) = 1_u32.checked_shl(round as u32).filter(|reach| *reach < self.size()) else {
            return Step::Done(std::mem::take(self.held_mut()));
        };
        if !is_hearing {
            let own = self.held_mut().clone();
            if let Some(to) = self.rank.checked_add(reach).filter(|to| *to < self.size()) {
                self.send(now, to, round as u8, own, out);
            }
            return self.stepped();
        }
        if let Some(from) = self.rank.checked_sub(reach) {
            let Some(items) = self.take(round as u8, from) else { return Step::Wait };
            let [item] = &items[..] else { return self.wrong(from, out) };
            if let Some(own) = self.held_mut().first_mut() {
                *own = combine(item, own);
            }
        }
        self.stepped()
    }

    fn exchange(&mut self, now: Time, parts: &[Bytes], out: &mut Outputs<Self>) -> Step {
        let others: Vec<u32> = self.others().collect();
        if self.steps() == 0 {
            for to in &others {
                self.send(now, *to, 0, vec![parts[*to as usize].clone()], out);
            }
            self.stepped();
        }
        if others.iter().any(|from| !self.heard.contains_key(&(self.next, 0, *from))) {
            return Step::Wait;
        }
        let mut all = Vec::with_capacity(parts.len());
        for from in 0..self.size() {
            let item = if from == self.rank {
                parts.get(from as usize).cloned()
            } else {
                self.take(0, from).and_then(|items| items.into_iter().next())
            };
            let Some(item) = item else { return self.wrong(from, out) };
            all.push(item);
        }
        Step::Done(all)
    }

    /// The child whose turn it is to be heard.
    fn upward(&self, children: &[(u32, u32)]) -> Option<(u32, u32)> {
        children.get(self.steps()).copied()
    }

    fn steps(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.step.into())
    }

    fn stepped(&mut self) -> Step {
        if let Some(running) = &mut self.running {
            running.step = running.step.saturating_add(1);
        }
        Step::Wait
    }

    fn held_mut(&mut self) -> &mut Vec<Bytes> {
        // Without an operation nothing is held, and nothing of it is looked at.
        &mut self.running.get_or_insert_with(Running::idle).held
    }

    /// A member sends what does not fit the operation.
    fn wrong(&mut self, from: u32, out: &mut Outputs<Self>) -> Step {
        self.fail(CollectiveError::Mismatch { rank: from }, out);
        Step::Wait
    }
}

impl Running {
    fn idle() -> Self {
        Self {
            operation: Operation::Barrier,
            kind: Kind::Barrier,
            give_up_at: Time::ZERO,
            step: 0,
            held: Vec::new(),
        }
    }
}

fn nothing() -> Combine {
    Arc::new(|_, _| Bytes::new())
}
