//! What reads say about the order of writes, and whether one order can hold all of it.
//!
//! Method      a read tells that its source comes before it, and of every other write of the key that it comes before the
//!             source or after the read. Where an order already excludes one of the two, the other one is added. What is
//!             still open then is tried one way and, where that fails, the other way.

use super::order::{Circle, Order, Reason};
use super::verdict::{Limits, Model, Rejection, Undecided, Verdict, violated};

/// `reader` found what `source` wrote, or nothing, and not what any of the others wrote.
pub(super) struct Fact<'a> {
    pub(super) reader: usize,
    pub(super) source: Option<usize>,
    /// All that wrote what was read.
    pub(super) writers: &'a [usize],
}

impl Fact<'_> {
    fn rivals(&self) -> impl Iterator<Item = usize> {
        let others = self.writers.iter().copied();
        others.filter(|writer| Some(*writer) != self.source && *writer != self.reader)
    }
}

/// Adds what follows from the facts until nothing does. `is_one_order`: all readers see one order of writes, so that a
/// write after a read's source is also after the read; else the facts must all be those of one process.
pub(super) fn grow(order: &mut Order, facts: &[Fact<'_>], is_one_order: bool) -> Result<(), Circle> {
    loop {
        let mut has_grown = false;
        for fact in facts {
            for rival in fact.rivals() {
                has_grown |= match fact.source {
                    Some(source) if order.is_before(rival, fact.reader) => {
                        order.add(rival, source, Reason::Overwritten)?
                    }
                    Some(source) if is_one_order && order.is_before(source, rival) => {
                        order.add(fact.reader, rival, Reason::Unseen)?
                    }
                    None if is_one_order || order.is_before(rival, fact.reader) => {
                        order.add(fact.reader, rival, Reason::Unseen)?
                    }
                    _ => false,
                };
            }
        }
        if !has_grown {
            return Ok(());
        }
    }
}

/// Whether there is one order of all things that holds what `order` and the facts say.
pub(super) fn one_order(model: Model, mut order: Order, facts: &[Fact<'_>], limits: &Limits) -> Verdict {
    // Orders in which a choice was not yet made the second way, with that way.
    let mut others: Vec<(Order, usize, usize)> = Vec::new();
    let mut choices = 0;
    loop {
        let circle = match grow(&mut order, facts, true) {
            Ok(()) => {
                let Some((rival, source, reader)) = open_choice(&order, facts) else { return Ok(()) };
                choices += 1;
                if choices > limits.steps_max || others.len() * order.bytes() > CHOICES_BYTES_MAX {
                    return Err(Rejection::Undecided(Undecided::Steps(choices)));
                }
                others.push((order.clone(), reader, rival));
                match order.add(rival, source, Reason::Overwritten) {
                    Ok(_) => continue,
                    Err(circle) => circle,
                }
            }
            Err(circle) => circle,
        };
        if choices == 0 {
            return Err(refuse(model, &circle));
        }
        let mut last = circle;
        loop {
            let Some((before, reader, rival)) = others.pop() else {
                let why = format!("whatever the order of what is open; in the last one {}", last.text());
                return Err(violated(model, last.things(), why));
            };
            order = before;
            match order.add(reader, rival, Reason::Unseen) {
                Ok(_) => break,
                Err(circle) => last = circle,
            }
        }
    }
}

/// A rival that may still come before the source or after the reader.
fn open_choice(order: &Order, facts: &[Fact<'_>]) -> Option<(usize, usize, usize)> {
    facts.iter().find_map(|fact| {
        let source = fact.source?;
        let is_open =
            |rival: &usize| !order.is_before(*rival, source) && !order.is_before(fact.reader, *rival);
        fact.rivals().find(is_open).map(|rival| (rival, source, fact.reader))
    })
}

pub(super) fn refuse(model: Model, circle: &Circle) -> Rejection {
    violated(model, circle.things(), format!("each would have to come before the next: {}", circle.text()))
}

/// What the orders of choices that may be taken back occupy.
const CHOICES_BYTES_MAX: usize = 1 << 28;
