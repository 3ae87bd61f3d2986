//! Histories of objects: linearizability with overlaps, unknown outcomes, and many operations.

use quorate::history::{
    Fifo, FifoCall, History, Limits, Model, Operation, Recorder, Register, RegisterCall, RegisterReturn,
    Rejection, Trace, linearizable, linearizable_by_key, sequential,
};
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

type Registers = History<RegisterCall<u64>, RegisterReturn<u64>>;

fn write(
    process: u64,
    called: u64,
    returned: Option<u64>,
    value: u64,
) -> Operation<RegisterCall<u64>, RegisterReturn<u64>> {
    let returned = returned.map(|at| (at, RegisterReturn::Written));
    Operation { process, call: RegisterCall::Write(value), called, returned }
}

fn read(
    process: u64,
    called: u64,
    returned: u64,
    value: Option<u64>,
) -> Operation<RegisterCall<u64>, RegisterReturn<u64>> {
    let returned = Some((returned, RegisterReturn::Value(value)));
    Operation { process, call: RegisterCall::Read, called, returned }
}

fn check(operations: Vec<Operation<RegisterCall<u64>, RegisterReturn<u64>>>) -> [bool; 2] {
    let history = Registers { operations };
    let limits = Limits::default();
    let register = Register::new();
    [linearizable(&register, &history, &limits).is_ok(), sequential(&register, &history, &limits).is_ok()]
}

#[test]
fn d02_time_tells_linearizable_from_sequential() {
    assert_eq!(check(vec![write(1, 1, Some(2), 7), read(2, 3, 4, Some(7))]), [true, true]);
    // An old value after the write has returned.
    assert_eq!(check(vec![write(1, 1, Some(2), 7), read(2, 3, 4, None)]), [false, true]);
    // While it overlaps, either; but once new, not old again.
    assert_eq!(
        check(vec![write(1, 1, Some(9), 7), read(2, 2, 3, None), read(2, 4, 5, Some(7))]),
        [true, true]
    );
    assert_eq!(
        check(vec![write(1, 1, Some(9), 7), read(2, 2, 3, Some(7)), read(3, 4, 5, None)]),
        [false, true]
    );
    assert_eq!(
        check(vec![write(1, 1, Some(9), 7), read(2, 2, 3, Some(7)), read(2, 4, 5, None)]),
        [false, false]
    );
}

#[test]
fn d02_an_operation_of_unknown_outcome_may_take_effect_late_or_never() {
    assert_eq!(check(vec![write(1, 1, None, 7), read(2, 2, 3, None), read(2, 4, 5, Some(7))]), [true, true]);
    assert_eq!(check(vec![write(1, 1, None, 7), read(2, 2, 3, None)]), [true, true]);
    assert_eq!(
        check(vec![write(1, 1, None, 7), read(2, 2, 3, Some(7)), read(2, 4, 5, None)]),
        [false, false]
    );
    // Not before it was called.
    assert_eq!(check(vec![read(2, 1, 2, Some(7)), write(1, 3, None, 7)]), [false, true]);
}

#[test]
fn d02_a_verdict_names_the_operation_that_cannot_be_explained_and_what_it_overlaps() {
    let operations =
        vec![write(1, 1, Some(2), 7), read(2, 3, 6, Some(7)), read(3, 4, 5, None), write(1, 8, Some(9), 8)];
    let Err(Rejection::Violated(violation)) =
        linearizable(&Register::new(), &Registers { operations }, &Limits::default())
    else {
        panic!("it is accepted");
    };
    assert_eq!((violation.model, violation.operations), (Model::Linearizable, vec![2, 1]));
}

#[test]
fn d02_a_queue_that_gives_something_out_twice_or_out_of_order_is_refused() {
    let put = |at, value| Operation {
        process: at,
        call: FifoCall::Put(value),
        called: at,
        returned: Some((at, None)),
    };
    let take =
        |at, value| Operation { process: at, call: FifoCall::Take, called: at, returned: Some((at, value)) };
    let check = |operations| linearizable(&Fifo::new(), &History { operations }, &Limits::default()).is_ok();
    assert!(check(vec![put(1, 'a'), put(2, 'b'), take(3, Some('a')), take(4, Some('b')), take(5, None)]));
    assert!(!check(vec![put(1, 'a'), put(2, 'b'), take(3, Some('b'))]));
    assert!(!check(vec![put(1, 'a'), take(3, Some('a')), take(4, Some('a'))]));
    assert!(!check(vec![put(1, 'a'), take(3, None)]));
}

#[test]
fn d02_what_takes_too_long_is_undecided_and_not_accepted() {
    // Sixteen overlapping writes, and a read of something that nobody wrote.
    let mut operations: Vec<_> = (0..16).map(|value| write(value, 1, Some(50), value)).collect();
    operations.push(read(99, 51, 52, Some(99)));
    let history = Registers { operations };
    let mut limits = Limits::default();
    limits.steps_max = 1_000;
    let verdict = linearizable(&Register::new(), &history, &limits);
    assert!(matches!(verdict, Err(Rejection::Undecided(_))), "{verdict:?}");
}

#[test]
fn d02_a_recorder_keeps_what_returned_what_may_have_happened_and_not_what_was_refused() {
    let recorder = Recorder::new();
    let one = recorder.called(1, RegisterCall::Write(1));
    let two = recorder.called(2, RegisterCall::Write(2));
    let three = recorder.called(3, RegisterCall::Write(3));
    recorder.returned(one, RegisterReturn::Written);
    recorder.refused(two);
    drop(three);
    let four = recorder.called(4, RegisterCall::Read);
    recorder.returned(four, RegisterReturn::Value(Some(3)));
    let history = recorder.history();
    assert_eq!(history.operations.len(), 3);
    linearizable(&Register::new(), &history, &Limits::default()).unwrap();
    let trace = Trace::from_register(&'x', &history).unwrap();
    assert_eq!(trace.accesses.len(), 3, "a write of unknown outcome counts when it was read");
}

/// Clients that overlap on registers; `planted` answers a read with what was overwritten long before.
fn long(
    seed: u64,
    operations: u64,
    keys: u64,
    planted: bool,
) -> History<(u64, RegisterCall<u64>), RegisterReturn<u64>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut draw = move |below: u64| random.next_u64() % below;
    let mut values = vec![None; keys as usize];
    let mut history = History::default();
    for number in 0..operations {
        // Each takes effect at a moment of its own, and is called and returns up to 30 before and after: 8 overlap.
        let moment = 1_000 + number * 10;
        let (called, returned) = (moment - draw(40), moment + draw(40));
        let key = draw(keys);
        let (call, answer) = if draw(2) == 0 {
            values[key as usize] = Some(number);
            (RegisterCall::Write(number), RegisterReturn::Written)
        } else {
            let is_wrong = planted && number == operations / 2;
            let value = if is_wrong { Some(u64::MAX) } else { values[key as usize] };
            (RegisterCall::Read, RegisterReturn::Value(value))
        };
        let unknown = draw(200) == 0 && matches!(call, RegisterCall::Write(_));
        let returned = (!unknown).then_some((returned, answer));
        history.push(Operation { process: number, call: (key, call), called, returned });
    }
    history
}

/// A register for each key.
struct Keyed;

impl quorate::history::Specification for Keyed {
    type State = Option<u64>;
    type Call = (u64, RegisterCall<u64>);
    type Return = RegisterReturn<u64>;

    fn initial(&self) -> Self::State {
        None
    }

    fn step(
        &self,
        state: &Self::State,
        call: &Self::Call,
        returned: Option<&Self::Return>,
    ) -> Option<Self::State> {
        Register::new().step(state, &call.1, returned)
    }

    fn is_read(&self, call: &Self::Call) -> bool {
        Register::new().is_read(&call.1)
    }
}

#[test]
fn d02_long_histories_are_decided_key_by_key() {
    for seed in 0..50 {
        let history = long(seed, 2_000, 3, false);
        linearizable_by_key(&Keyed, &history, |call| call.0, &Limits::default()).unwrap();
    }
    let history = long(50, 100_000, 100, false);
    linearizable_by_key(&Keyed, &history, |call| call.0, &Limits::default()).unwrap();
    for seed in 0..20 {
        let history = long(seed, 2_000, 3, true);
        let at = 1_000;
        let verdict = linearizable_by_key(&Keyed, &history, |call| call.0, &Limits::default());
        if !matches!(history.operations[at].call.1, RegisterCall::Read) {
            continue;
        }
        let Err(Rejection::Violated(violation)) = verdict else { panic!("seed {seed}: {verdict:?}") };
        // Another one may have returned at the same moment.
        assert!(violation.operations.contains(&at), "seed {seed}: {violation}");
    }
}
