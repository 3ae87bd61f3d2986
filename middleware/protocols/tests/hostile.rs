//! Whatever a peer sends: groups decode it or refuse it, and live on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_protocols::group::{Command, Config, Event, TotalGroup};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Wire};

type Message = <TotalGroup as Machine>::Message;

/// Three members that talk without loss, and everything they ever said.
struct Pump {
    now: Time,
    ids: Vec<ProcessId>,
    machines: Vec<TotalGroup>,
    said: Vec<(ProcessId, Bytes)>,
    delivered: Vec<usize>,
}

impl Pump {
    fn new() -> Self {
        let ids: Vec<_> = (1..=3).map(|node| ProcessId { node, incarnation: 1 }).collect();
        let machines = ids.iter().map(|id| TotalGroup::total(*id, Config::default())).collect();
        let mut pump = Self { now: Time::ZERO, ids, machines, said: Vec::new(), delivered: vec![0; 3] };
        pump.give(0, Input::Command(Command::Create { group: 9 }));
        for joiner in 1..3 {
            pump.give(joiner, Input::Command(Command::Join { contacts: vec![pump.ids[0]] }));
            pump.run(Duration::from_millis(500));
        }
        pump
    }

    fn give(&mut self, to: usize, input: Input<TotalGroup>) {
        let mut out = Outputs::new();
        self.machines[to].handle(self.now, input, &mut out);
        self.machines[to].check().expect("the invariants hold");
        let outputs: Vec<_> = out.drain().collect();
        for output in outputs {
            match output {
                Output::Send { to: targets, message, .. } => {
                    for peer in targets.as_slice() {
                        let bytes = message.to_bytes();
                        self.said.push((self.ids[to], bytes.clone()));
                        let message = Message::from_bytes(bytes).expect("what is sent can be read");
                        if let Some(index) = self.ids.iter().position(|id| id == peer) {
                            self.give(index, Input::Received { from: self.ids[to], message });
                        }
                    }
                }
                Output::Event(Event::StateWanted(view)) => {
                    let state = Bytes::from_static(b"state");
                    self.give(to, Input::Command(Command::State { view, state }));
                }
                Output::Event(Event::Deliver { .. }) => self.delivered[to] += 1,
                _ => {}
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(5);
            for index in 0..3 {
                for _ in 0..20 {
                    if self.machines[index].deadline().is_some_and(|at| at <= self.now) {
                        self.give(index, Input::Tick);
                    }
                }
            }
        }
    }

    fn cast(&mut self, from: usize) {
        self.give(from, Input::Command(Command::Cast(Bytes::from_static(b"payload"))));
    }
}

#[test]
fn three_members_without_faults_deliver_everything() {
    let mut pump = Pump::new();
    for round in 0..30 {
        pump.cast(round % 3);
    }
    pump.run(Duration::from_secs(1));
    assert_eq!(pump.delivered, [30, 30, 30]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_a_message_or_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::from_bytes(Bytes::from(bytes)) {
            prop_assert_eq!(Message::from_bytes(message.to_bytes()).map(|again| again.to_bytes()), Ok(message.to_bytes()));
        }
    }

    #[test]
    fn a_count_that_the_input_does_not_back_is_refused(kind in 0_u8..2, count in 1000_u32.., tail in prop::collection::vec(any::<u8>(), 0..64)) {
        // The path to reliable multicast's Data, then a view, a number, and a vector that is too long.
        let mut bytes = vec![1, 1, 1, 1, 0, kind];
        bytes.extend([0; 24]);
        bytes.extend(count.to_le_bytes());
        bytes.extend(tail);
        prop_assert!(Message::from_bytes(Bytes::from(bytes)).is_err());
    }
}

/// Changes of one message that was really sent.
#[derive(Debug, Clone)]
struct Forgery {
    which: prop::sample::Index,
    from: u64,
    incarnation: u64,
    to: usize,
    flips: Vec<(prop::sample::Index, u8)>,
}

fn forgery() -> impl Strategy<Value = Forgery> {
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (any::<prop::sample::Index>(), 1_u64..5, 0_u64..3, 0_usize..3, flips)
        .prop_map(|(which, from, incarnation, to, flips)| Forgery { which, from, incarnation, to, flips })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A member that lies may stop the group, but panics nobody and breaks no invariant of a single machine.
    #[test]
    fn forged_messages_break_no_member(forgeries in prop::collection::vec(forgery(), 1..60)) {
        let mut pump = Pump::new();
        for round in 0..6 {
            pump.cast(round % 3);
        }
        pump.run(Duration::from_millis(300));
        let said: Arc<[(ProcessId, Bytes)]> = pump.said.clone().into();
        for forgery in forgeries {
            let mut bytes = forgery.which.get(&said).1.to_vec();
            for (place, value) in &forgery.flips {
                *place.get_mut(&mut bytes) = *value;
            }
            if let Ok(message) = Message::from_bytes(Bytes::from(bytes)) {
                let from = ProcessId { node: forgery.from, incarnation: forgery.incarnation };
                pump.give(forgery.to, Input::Received { from, message });
            }
            pump.run(Duration::from_millis(30));
        }
        pump.run(Duration::from_millis(1500));
    }
}
