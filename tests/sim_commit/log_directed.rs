//! Stories of a replicated log that chance finds too seldom: entries of an earlier term that a majority holds, and that are
//! overruled all the same (Ongaro & Ousterhout 2014, their figure 8); and majorities of members that have nobody in common.

use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::agreement::{Change, Command, Config, Content, Event, Members, Message, Replica};
use quorate_protocols::planted::{Plant, Planted};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time};

/// Three replicas whose messages arrive as the story wants.
struct Trio {
    replicas: Vec<Replica>,
    now: Time,
    messages: Vec<(u64, u64, Message)>,
    /// Who delivered which place.
    delivered: Vec<(u64, u64)>,
}

impl Trio {
    fn new(plant: Plant) -> Self {
        // One entry at a time, so that an old one travels alone.
        let config = Config { batch_entries_max: 1, window_entries_max: 1, plant, ..Config::default() };
        let make = |node| {
            let founders = Members::of_voters((0..3).map(ProcessId::any_life));
            Replica::new(ProcessId { node, incarnation: 1 }, Time::ZERO, node, config, founders, []).unwrap()
        };
        let replicas = (0..3).map(make).collect();
        Self { replicas, now: Time::ZERO, messages: Vec::new(), delivered: Vec::new() }
    }

    fn feed(&mut self, node: u64, input: Input<Replica>) {
        let mut out = Outputs::new();
        let replica = &mut self.replicas[node as usize];
        replica.handle(self.now, input, &mut out);
        while replica.deadline() == Some(self.now) {
            replica.handle(self.now, Input::Tick, &mut out);
        }
        for output in out.drain() {
            match output {
                Output::Send { to, message, .. } => {
                    self.messages.extend(to.as_slice().iter().map(|to| (node, to.node, message.clone())));
                }
                Output::Event(Event::Delivered(run)) => {
                    self.delivered.extend(run.iter().map(|delivered| (node, delivered.index)));
                }
                _ => {}
            }
        }
    }

    /// Messages between these two arrive, all others are lost, until nothing is on its way or `until` holds.
    fn exchange(&mut self, pair: [u64; 2], until: impl Fn(&Self) -> bool) {
        while !until(self) && !self.messages.is_empty() {
            let (from, to, message) = self.messages.remove(0);
            if pair.contains(&from) && pair.contains(&to) {
                let from = ProcessId { node: from, incarnation: 1 };
                self.feed(to, Input::Received { from, message });
            }
        }
        self.messages.clear();
    }

    /// Time passes in which nobody hears anybody, then `leader` is elected by `voter`; nobody hears that it was.
    fn elect(&mut self, leader: u64, voter: u64) {
        for _ in 0..100 {
            self.now = self.now + Duration::from_secs(2);
            self.feed(leader, Input::Tick);
            self.exchange([leader, voter], |trio| trio.leads(leader));
            if self.leads(leader) {
                return;
            }
        }
        panic!("{leader} is not elected: {:?}", self.replicas);
    }

    /// 0 leads, and its first entry is chosen.
    fn begin(&mut self) {
        self.elect(0, 1);
        self.spread();
        self.exchange([0, 1], |trio| trio.replicas[0].delivered() == 1);
        assert_eq!(self.replicas[0].delivered(), 1);
    }

    /// So much time passes that 0 sends again what was lost, and not so much that it gives up.
    fn spread(&mut self) {
        self.now = self.now + Duration::from_millis(200);
        self.feed(0, Input::Tick);
    }

    /// 0 takes a command, which nobody else hears of.
    fn propose(&mut self) {
        let payload = Bytes::from_static(b"command");
        self.feed(0, Input::Command(Command::Propose { token: 0, fence: 0, payload }));
        self.messages.clear();
    }

    /// Whether there is a command in its log.
    fn holds_command(&self, node: u64) -> bool {
        let replica = &self.replicas[node as usize];
        let mut entries = replica.places().filter_map(|place| replica.entry(place));
        entries.any(|entry| matches!(entry.content, Content::Command(_)))
    }

    fn leads(&self, node: u64) -> bool {
        self.replicas[node as usize].is_leader()
    }
}

/// Whether 0 delivers a command of its first term in its second one, and whether 2 then leads with it.
fn an_old_entry_is_spread(plant: Plant) -> (bool, bool) {
    let mut trio = Trio::new(plant);
    trio.begin();
    trio.propose();
    assert!(trio.holds_command(0) && !trio.holds_command(1));
    trio.elect(2, 1);
    trio.elect(0, 1);
    // 1 is given the command, and not yet what follows it.
    trio.spread();
    trio.exchange([0, 1], |trio| trio.holds_command(1) && trio.messages.iter().all(|(_, to, _)| *to != 0));
    assert!(trio.replicas[1].entry(3).is_none(), "{:?}", trio.replicas[1]);
    let is_delivered = !trio.delivered.is_empty();
    trio.elect(2, 1);
    (is_delivered, trio.holds_command(2))
}

/// Whether 0 delivers a command alone after it has asked for two changes, and whether 2 then leads with it.
fn members_change_twice(plant: Plant) -> (bool, bool) {
    let mut trio = Trio::new(plant);
    trio.begin();
    for (token, node) in [(1, 1), (2, 2)] {
        let change = Change::Gone(ProcessId::any_life(node));
        trio.feed(0, Input::Command(Command::Reconfigure { token, change }));
    }
    trio.propose();
    let is_delivered = !trio.delivered.is_empty();
    trio.elect(2, 1);
    (is_delivered, trio.holds_command(2))
}

#[test]
fn d05_an_entry_of_an_earlier_term_is_not_chosen_by_counting_who_holds_it() {
    assert_eq!(an_old_entry_is_spread(Plant::NONE), (false, false));
}

#[test]
fn entries_of_old_terms_chosen_by_counting_are_found() {
    let story = an_old_entry_is_spread(Plant::of(Planted::LogChoosesOldTerms));
    assert_eq!(story, (true, false), "delivered, and lost");
}

#[test]
fn d05_members_change_by_steps_whose_majorities_meet() {
    assert_eq!(members_change_twice(Plant::NONE), (false, false));
}

#[test]
fn two_changes_of_members_at_once_are_found() {
    let story = members_change_twice(Plant::of(Planted::LogChangesTwoAtOnce));
    assert_eq!(story, (true, false), "delivered, and lost");
}
