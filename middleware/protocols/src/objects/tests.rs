//! The machine of references, step by step.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Change, Objects, ObjectsCommand, ObjectsConfig, ObjectsEvent, ObjectsMessage, Reference, Standing,
};
use crate::machine::{Input, Machine, Output, Outputs, ProcessId};
use crate::time::Time;
use crate::wire::Wire;

const OWNER: ProcessId = ProcessId { node: 1, incarnation: 1 };
const HOLDER: ProcessId = ProcessId { node: 2, incarnation: 1 };
const OBJECT: Reference = Reference { owner: OWNER, number: 7 };

/// Two processes and what is on its way between them.
struct Pair {
    owner: Objects,
    holder: Objects,
    now: Time,
    events: Vec<ObjectsEvent>,
}

impl Pair {
    fn new(config: &ObjectsConfig) -> Self {
        let machine = |me| Objects::new(me, 0, config.clone());
        Self { owner: machine(OWNER), holder: machine(HOLDER), now: Time::ZERO, events: Vec::new() }
    }

    /// Gives an input to one of them, and what follows to whoever it is for, as long as `arrives`.
    fn step(&mut self, who: ProcessId, input: Input<Objects>, arrives: bool) {
        let mut inputs = vec![(who, input)];
        while let Some((who, input)) = inputs.pop() {
            let machine = if who == OWNER { &mut self.owner } else { &mut self.holder };
            let mut out = Outputs::new();
            machine.handle(self.now, input, &mut out);
            assert_eq!(machine.check(), Ok(()));
            for output in out.drain() {
                match output {
                    Output::Send { to, message, .. } if arrives => {
                        inputs.extend(
                            to.as_slice()
                                .iter()
                                .map(|to| (*to, Input::Received { from: who, message: message.clone() })),
                        );
                    }
                    Output::Event(event) => self.events.push(event),
                    _ => {}
                }
            }
        }
    }

    fn tell(&mut self, who: ProcessId, command: ObjectsCommand) {
        self.step(who, Input::Command(command), true);
    }

    fn tick(&mut self, after: Duration, arrives: bool) {
        self.now = self.now + after;
        for who in [HOLDER, OWNER] {
            self.step(who, Input::Tick, arrives);
        }
    }

    /// The owner exports and passes on an object, and lets go of it itself.
    fn hand_over(&mut self) {
        self.tell(OWNER, ObjectsCommand::Export { number: OBJECT.number });
        self.tell(OWNER, ObjectsCommand::Depart { reference: OBJECT, to: HOLDER, pin: 9 });
        self.tell(OWNER, ObjectsCommand::Release(OBJECT));
        self.tell(HOLDER, ObjectsCommand::Arrive { reference: OBJECT, from: OWNER, pin: 9 });
        assert_eq!(self.holder.standing(self.now, OBJECT), Standing::Arriving);
        assert_eq!(self.owner.in_transit(), 1);
        self.tick(Duration::ZERO, true);
        assert_eq!(self.holder.standing(self.now, OBJECT), Standing::Held);
        assert_eq!((self.owner.in_transit(), self.owner.exported()), (0, 1));
    }
}

#[test]
fn an_object_lives_as_long_as_its_holder_renews_and_goes_when_it_lets_go() {
    let config = ObjectsConfig::default();
    let mut pair = Pair::new(&config);
    pair.hand_over();
    for _ in 0..20 {
        pair.tick(config.lease / 4, true);
        assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::Held);
    }
    pair.tell(HOLDER, ObjectsCommand::Release(OBJECT));
    pair.tick(Duration::ZERO, true);
    assert_eq!(pair.events, [ObjectsEvent::Collected { number: OBJECT.number }]);
    assert_eq!(pair.holder.deadline(), None, "nothing is held of anybody");
}

#[test]
fn a_silent_holder_knows_that_its_lease_is_over_before_the_owner_acts_on_it() {
    let config = ObjectsConfig::default();
    let mut pair = Pair::new(&config);
    pair.hand_over();
    pair.tick(config.lease * 9 / 10, false);
    assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::OwnerSilent);
    assert_eq!(pair.owner.exported(), 1, "a tenth is left for clocks that differ");
    // The owner still knew: it is held again.
    pair.tick(Duration::from_secs(1), true);
    assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::Held);

    pair.tick(config.lease, false);
    assert_eq!(pair.owner.exported(), 0);
    pair.tick(Duration::from_secs(1), true);
    pair.tick(Duration::ZERO, true);
    assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::ObjectGone);
}

#[test]
fn a_holder_that_was_forgotten_claims_again_what_is_still_there() {
    let config = ObjectsConfig::default();
    let mut pair = Pair::new(&config);
    pair.hand_over();
    // Somebody else holds it, too: here the owner itself.
    pair.tell(HOLDER, ObjectsCommand::Depart { reference: OBJECT, to: OWNER, pin: 11 });
    pair.tell(OWNER, ObjectsCommand::Arrive { reference: OBJECT, from: HOLDER, pin: 11 });
    pair.tick(config.lease * 2, false);
    assert_eq!(pair.owner.stats().leases_expired, 1);
    pair.tick(Duration::from_secs(1), true);
    pair.tick(Duration::ZERO, true);
    assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::Held);
    pair.tell(OWNER, ObjectsCommand::Release(OBJECT));
    assert_eq!(pair.owner.exported(), 1);
}

#[test]
fn a_new_life_ends_what_the_one_before_held_and_offered() {
    let config = ObjectsConfig::default();
    let mut pair = Pair::new(&config);
    pair.hand_over();
    pair.step(HOLDER, Input::Reachable(ProcessId { incarnation: 2, ..OWNER }), true);
    assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::OwnerEnded);
    assert_eq!(pair.events, [ObjectsEvent::Dangling(OBJECT)]);
    pair.step(OWNER, Input::Reachable(ProcessId { incarnation: 2, ..HOLDER }), true);
    assert_eq!(pair.owner.exported(), 0);
}

#[test]
fn a_holder_gets_no_more_than_it_may_have() {
    let config = ObjectsConfig { holder_max: 1, ..ObjectsConfig::default() };
    let mut pair = Pair::new(&config);
    pair.hand_over();
    assert!(!pair.owner.may_give(HOLDER));
    let second = Reference { number: 8, ..OBJECT };
    pair.tell(OWNER, ObjectsCommand::Export { number: second.number });
    pair.tell(HOLDER, ObjectsCommand::Arrive { reference: second, from: OWNER, pin: 10 });
    pair.tick(Duration::ZERO, true);
    assert_eq!(pair.holder.standing(pair.now, second), Standing::Refused);
    assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::Held);
}

#[test]
fn an_answer_to_older_claims_confirms_nothing_that_they_did_not_say() {
    let config = ObjectsConfig::default();
    let mut pair = Pair::new(&config);
    pair.hand_over();
    let change = |number| Change { number, is_held: true };
    let claims = |changes| ObjectsMessage::Claims { epoch: 1, stamp: 0, first: 2, changes };
    let mut answer = |message| {
        let mut out = Outputs::new();
        pair.owner.handle(pair.now, Input::Received { from: HOLDER, message }, &mut out);
        let sent = out.drain().find_map(|output| match output {
            Output::Send { message: ObjectsMessage::Known { next, gone, .. }, .. } => Some((next, gone)),
            _ => None,
        });
        sent.unwrap()
    };
    assert_eq!(answer(claims(vec![change(98), change(99)])), (4, vec![98, 99]));
    // It was overtaken: of 99 it does not speak.
    assert_eq!(answer(claims(vec![change(98)])), (3, vec![98]));
}

#[test]
fn nothing_that_a_peer_says_makes_the_owner_forget_or_panic() {
    let config = ObjectsConfig::default();
    let mut pair = Pair::new(&config);
    pair.hand_over();
    let changes = vec![Change { number: OBJECT.number, is_held: false }; 3];
    for (epoch, first) in [(0, 1), (u64::MAX, 5), (1, u64::MAX), (1, 77)] {
        let message = ObjectsMessage::Claims { epoch, stamp: u64::MAX, first, changes: changes.clone() };
        pair.step(OWNER, Input::Received { from: HOLDER, message }, false);
    }
    let stranger = ProcessId { node: 3, incarnation: 1 };
    let message = ObjectsMessage::Arrived { pins: vec![9, u64::MAX] };
    pair.step(OWNER, Input::Received { from: stranger, message }, false);
    let message =
        ObjectsMessage::Known { epoch: 1, stamp: u64::MAX, next: u64::MAX, gone: vec![7], refused: vec![7] };
    pair.step(HOLDER, Input::Received { from: OWNER, message }, false);
    assert_eq!(pair.owner.exported(), 1);
    assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::Held);
}

#[test]
fn messages_survive_their_layout_and_damaged_ones_are_refused() {
    let change = |number, is_held| Change { number, is_held };
    let messages = [
        ObjectsMessage::Claims {
            epoch: 1,
            stamp: 2,
            first: 3,
            changes: vec![change(4, true), change(5, false)],
        },
        ObjectsMessage::Known { epoch: 1, stamp: 2, next: 3, gone: vec![4], refused: vec![5, 6] },
        ObjectsMessage::Unknown { epoch: 1 },
        ObjectsMessage::Arrived { pins: vec![1, 2] },
    ];
    for message in messages {
        let bytes = message.to_bytes();
        assert_eq!(ObjectsMessage::from_bytes(bytes.clone()), Ok(message));
        for length in 0..bytes.len() {
            assert!(ObjectsMessage::from_bytes(bytes.slice(..length)).is_err());
        }
    }
    assert!(ObjectsMessage::from_bytes(Bytes::from_static(&[9])).is_err());
}
