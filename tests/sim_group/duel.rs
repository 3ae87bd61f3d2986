//! Two leaders at once, by hand: members report to each other whom they do not hear, and so agree on who leads so soon
//! that chance seldom makes two compete.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_protocols::group::{Command, Config, Event, TotalGroup};
use quorate_protocols::multicast::total::Total;
use quorate_protocols::planted::{Plant, Planted};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time};

use crate::scenario::{PROPOSED, classify};

type Message = <TotalGroup as Machine>::Message;
type Mail = Vec<(usize, usize, Message)>;

/// Five members; the last one dies.
const MEMBERS: usize = 5;
const DEAD: usize = 4;
const MILLISECOND: u64 = 1_000_000;
const FORMING_MS: u64 = 5_000;
const DUEL_MS: u64 = 20_000;

/// The old leader is heard by nobody once it has proposed; the others promise a new one, and only then the old
/// proposal reaches two of them. Their promise must bind, or both leaders have a majority.
#[test]
fn g07_a_promise_to_a_newer_leader_binds() {
    assert_eq!(duel(Plant::default()), BTreeMap::new(), "every view is one view");
    let planted = duel(Plant::of(Planted::ViewAcceptsOldBallot));
    assert!(!planted.is_empty(), "a promise that does not bind is noticed");
}

/// The views that share their number with another one.
fn duel(plant: Plant) -> BTreeMap<u64, BTreeSet<String>> {
    let config = Config { plant, ..Config::default() };
    let mut ring = Ring {
        now: MILLISECOND,
        members: (0..MEMBERS).map(|node| Some(TotalGroup::total(id(node), config))).collect(),
        mail: Mail::new(),
        views: BTreeMap::new(),
    };
    ring.feed(0, Input::Command(Command::Create { group: 1 }));
    for node in 1..MEMBERS {
        ring.feed(node, Input::Command(Command::Join { contacts: vec![id(0)] }));
    }
    for _ in 0..FORMING_MS {
        ring.pass(|_, _, _| true);
    }
    let formed = ring.members.iter().flatten().all(|m| m.view().is_some_and(|v| v.members.len() == MEMBERS));
    assert!(formed, "the group forms");
    ring.members[DEAD] = None;

    let (mut held, mut is_released) = (Mail::new(), false);
    let mut is_cut = false;
    for _ in 0..DUEL_MS {
        ring.pass(|from, to, message| {
            let is_proposal = classify::<Total>(message) == Some(PROPOSED);
            if is_proposal && from == 0 && !is_cut {
                // Kept for two of them, lost for the third.
                held.extend([(from, 2, message.clone()), (from, 3, message.clone())]);
                is_cut = true;
            }
            is_released |= is_proposal && from == 1;
            !(is_cut && (from == 0 || (from, to) == (1, 0)))
        });
        if is_released {
            // Ahead of what the new leader has proposed in the same moment.
            let late = std::mem::take(&mut held);
            ring.mail.splice(0..0, late);
            for (from, to, message) in std::mem::take(&mut ring.mail) {
                ring.feed(to, Input::Received { from: id(from), message });
            }
            is_released = false;
        }
    }
    assert!(is_cut && held.is_empty(), "both have led");
    ring.views.into_iter().filter(|(_, views)| views.len() > 1).collect()
}

/// Members whose messages take one millisecond.
struct Ring {
    now: u64,
    members: Vec<Option<TotalGroup>>,
    mail: Mail,
    views: BTreeMap<u64, BTreeSet<String>>,
}

impl Ring {
    /// One millisecond; a message of which `arrives` says no is lost.
    fn pass(&mut self, mut arrives: impl FnMut(usize, usize, &Message) -> bool) {
        self.now += MILLISECOND;
        let mail = std::mem::take(&mut self.mail);
        for (from, to, message) in mail.into_iter().filter(|(from, to, message)| arrives(*from, *to, message))
        {
            self.feed(to, Input::Received { from: id(from), message });
        }
        for node in 0..MEMBERS {
            let due = self.members[node].as_ref().and_then(Machine::deadline);
            if due.is_some_and(|due| due <= Time::from_nanos(self.now)) {
                self.feed(node, Input::Tick);
            }
        }
    }

    fn feed(&mut self, node: usize, input: Input<TotalGroup>) {
        let mut outputs = Outputs::new();
        let Some(member) = &mut self.members[node] else { return };
        member.handle(Time::from_nanos(self.now), input, &mut outputs);
        let outputs: Vec<_> = outputs.drain().collect();
        for output in outputs {
            match output {
                Output::Send { to, message, .. } => {
                    let to = to.as_slice().iter().map(|to| to.node as usize);
                    self.mail.extend(to.map(|to| (node, to, message.clone())));
                }
                Output::Event(Event::StateWanted(view)) => {
                    let state = Bytes::from_static(b"state");
                    self.feed(node, Input::Command(Command::State { view, state }));
                }
                Output::Event(Event::View(view)) => {
                    self.views.entry(view.id.number).or_default().insert(view.to_string());
                }
                _ => {}
            }
        }
    }
}

fn id(node: usize) -> ProcessId {
    ProcessId { node: node as u64, incarnation: 1 }
}
