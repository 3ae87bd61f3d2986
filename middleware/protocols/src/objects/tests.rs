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
fn an_owner_that_was_silent_for_ever_so_long_is_as_good_as_before_when_it_is_heard_again() {
    let config = ObjectsConfig::default();
    let sign_of_life: [fn(&mut Pair); 4] = [
        |pair| pair.step(HOLDER, Input::Reachable(OWNER), true),
        |pair| pair.tell(HOLDER, ObjectsCommand::Want(OBJECT)),
        |pair| {
            let message = ObjectsMessage::Arrived { pins: vec![] };
            pair.step(HOLDER, Input::Received { from: OWNER, message }, true);
        },
        // A reference comes that the owner has given out meanwhile.
        |pair| {
            let fresh = Reference { number: 8, ..OBJECT };
            pair.tell(OWNER, ObjectsCommand::Export { number: fresh.number });
            pair.tell(HOLDER, ObjectsCommand::Arrive { reference: fresh, from: OWNER, pin: 10 });
            assert_eq!(pair.holder.standing(pair.now, fresh), Standing::Arriving, "it can be called at once");
            pair.tick(Duration::ZERO, true);
            assert_eq!(pair.holder.standing(pair.now, fresh), Standing::Held);
        },
    ];
    for sign in sign_of_life {
        let mut pair = Pair::new(&config);
        pair.hand_over();
        // The owner keeps it for a use of its own.
        pair.tell(HOLDER, ObjectsCommand::Depart { reference: OBJECT, to: OWNER, pin: 11 });
        pair.tell(OWNER, ObjectsCommand::Arrive { reference: OBJECT, from: HOLDER, pin: 11 });
        for _ in 0..100 {
            pair.tick(config.lease / 4, false);
        }
        assert_eq!(pair.holder.deadline(), None, "it is told no more");
        assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::OwnerSilent);
        assert_eq!(pair.events, []);
        sign(&mut pair);
        pair.tick(Duration::ZERO, true);
        assert_eq!(pair.holder.standing(pair.now, OBJECT), Standing::Held);
        pair.tell(OWNER, ObjectsCommand::Release(OBJECT));
        assert!(pair.owner.is_exported(OBJECT.number), "the holder has it");
    }
}

const STRANGER: ProcessId = ProcessId { node: 3, incarnation: 1 };

fn invented(number: u64) -> Reference {
    Reference { owner: ProcessId { node: 1_000 + number, incarnation: 1 }, number: 1 }
}

#[test]
fn owners_that_were_invented_leave_room_for_the_others_and_are_forgotten_when_nothing_of_them_is_held() {
    let config = ObjectsConfig { owners_max: 40, ..ObjectsConfig::default() };
    let mut pair = Pair::new(&config);
    let mut taken = 0;
    for number in 0..1_000 {
        let reference = invented(number);
        if pair.holder.may_take(reference, STRANGER) {
            pair.tell(HOLDER, ObjectsCommand::Arrive { reference, from: STRANGER, pin: number });
            pair.tick(Duration::ZERO, false);
            pair.tell(HOLDER, ObjectsCommand::Release(reference));
            taken += 1;
        }
    }
    assert_eq!((taken, pair.holder.stats().owners), (10, 10));
    assert!(pair.holder.may_take(invented(5_000), OWNER), "others bring theirs");
    pair.hand_over();
    for _ in 0..10 {
        pair.tick(config.lease / 4, true);
    }
    assert_eq!(pair.holder.stats().owners, 1, "whoever keeps nothing for long need not be told so for long");
    assert!(pair.holder.may_take(invented(5_000), STRANGER));
}

#[test]
fn what_was_never_told_need_not_be_taken_back() {
    let mut pair = Pair::new(&ObjectsConfig::default());
    for number in 0..1_000 {
        let reference = invented(number);
        pair.tell(HOLDER, ObjectsCommand::Arrive { reference, from: STRANGER, pin: number });
        pair.tell(HOLDER, ObjectsCommand::Release(reference));
    }
    assert_eq!((pair.holder.stats().owners, pair.holder.deadline()), (0, None));
}

#[test]
fn an_owner_that_answers_and_confirms_nothing_costs_bounded_memory_and_is_given_up() {
    let config = ObjectsConfig::default();
    let mut pair = Pair::new(&config);
    let object = |number| Reference { number, ..OBJECT };
    pair.tell(HOLDER, ObjectsCommand::Arrive { reference: object(1), from: OWNER, pin: 1 });
    let mut taken = 0;
    while pair.holder.may_take(object(taken + 2), OWNER) {
        let reference = object(taken + 2);
        pair.tell(HOLDER, ObjectsCommand::Arrive { reference, from: OWNER, pin: taken });
        pair.tell(HOLDER, ObjectsCommand::Release(reference));
        taken += 1;
        assert!(taken < 10_000);
    }
    assert!(pair.holder.may_take(object(1), OWNER), "what is held already needs no room");
    for _ in 0..100 {
        pair.tick(config.lease / 4, false);
        let stamp = pair.now.as_nanos();
        let message = ObjectsMessage::Known { epoch: 1, stamp, next: 1, gone: vec![], refused: vec![] };
        pair.step(HOLDER, Input::Received { from: OWNER, message }, false);
    }
    // Told anew since then, and only what is held.
    assert!(pair.holder.may_take(object(2), OWNER));
}

#[test]
fn a_copy_of_a_reference_that_comes_again_and_again_releases_the_one_before() {
    let mut pair = Pair::new(&ObjectsConfig::default());
    for pin in 0..100 {
        let mut out = Outputs::new();
        let arrive = ObjectsCommand::Arrive { reference: OBJECT, from: STRANGER, pin };
        pair.holder.handle(pair.now, Input::Command(arrive), &mut out);
        let told: Vec<_> = out
            .drain()
            .filter_map(|output| match output {
                Output::Send { message: ObjectsMessage::Arrived { pins }, .. } => Some(pins),
                _ => None,
            })
            .collect();
        let earlier: Vec<_> = pin.checked_sub(1).map(|earlier| vec![earlier]).into_iter().collect();
        assert_eq!(told, earlier, "the last one is what its sender still keeps");
    }
}

#[test]
fn whoever_confirms_no_reference_takes_nobody_elses_place_on_the_way() {
    let config = ObjectsConfig { pins_max: 40, ..ObjectsConfig::default() };
    let mut pair = Pair::new(&config);
    pair.tell(OWNER, ObjectsCommand::Export { number: OBJECT.number });
    let mut pin = 0;
    while pair.owner.may_give(STRANGER) {
        pin += 1;
        pair.tell(OWNER, ObjectsCommand::Depart { reference: OBJECT, to: STRANGER, pin });
    }
    assert_eq!((pin, pair.owner.in_transit()), (10, 10));
    assert!(pair.owner.may_give(HOLDER));
    // What belongs to others is passed on even so, at the cost of what went to the same one before.
    let mut pair = Pair::new(&config);
    pair.hand_over();
    pair.tell(HOLDER, ObjectsCommand::Depart { reference: OBJECT, to: OWNER, pin: 1 });
    for pin in 2..1_000 {
        pair.tell(HOLDER, ObjectsCommand::Depart { reference: OBJECT, to: STRANGER, pin });
    }
    assert_eq!(pair.holder.in_transit(), 11);
    let lost = pair.holder.stats().lost_in_transit;
    pair.tell(OWNER, ObjectsCommand::Arrive { reference: OBJECT, from: HOLDER, pin: 1 });
    assert_eq!(pair.holder.in_transit(), 10, "the honest one's was still on its way");
    assert_eq!(pair.holder.stats().lost_in_transit, lost);
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
