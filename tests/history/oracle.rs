//! Other checkers agree: all orders tried one by one on small traces, and a model checker's tester on random histories.

use proptest::prelude::*;
use quorate::history::{
    Access, History, Limits, Operation, Register, RegisterCall, RegisterReturn, Trace, causal, fifo,
    linearizable, sequential, sequential_trace,
};
use stateright::semantics::register::{Register as TheirRegister, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialConsistencyTester};

type Small = Trace<u8, u8>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn d02_verdicts_on_small_traces_are_those_of_trying_every_order(trace in small_traces()) {
        let limits = Limits::default();
        let processes = trace.accesses.iter().map(Access::process).collect::<std::collections::BTreeSet<_>>();
        let all: Vec<usize> = (0..trace.accesses.len()).collect();
        let program = program_order(&trace);
        prop_assert_eq!(sequential_trace(&trace, &limits).is_ok(), has_order(&trace, &all, &program));

        let of_one = |process: u64| -> Vec<usize> {
            let own = |index: &usize| {
                trace.accesses[*index].process() == process || matches!(trace.accesses[*index], Access::Write { .. })
            };
            all.iter().copied().filter(own).collect()
        };
        let by_all = processes.iter().all(|process| has_order(&trace, &of_one(*process), &program));
        prop_assert_eq!(fifo(&trace, &limits).is_ok(), by_all);

        let causality = closure(program.into_iter().chain(sources(&trace)).collect(), trace.accesses.len());
        let by_all = processes.iter().all(|process| has_order(&trace, &of_one(*process), &causality));
        prop_assert_eq!(causal(&trace, &limits).is_ok(), by_all);
    }

    #[test]
    fn d02_verdicts_on_random_histories_are_those_of_a_model_checkers_testers(events in random_events()) {
        let mut line = LinearizabilityTester::new(TheirRegister(0));
        let mut order = SequentialConsistencyTester::new(TheirRegister(0));
        let mut history = History::<RegisterCall<u8>, RegisterReturn<u8>>::default();
        let mut open = std::collections::BTreeMap::new();
        // Their registers begin with a value, ours with none.
        let call = RegisterCall::Write(0);
        history.push(Operation { process: 99, call, called: 0, returned: Some((1, RegisterReturn::Written)) });
        for (now, (process, write, value)) in (2_u64..).zip(events) {
            if let Some((at, is_write)) = open.remove(&process) {
                let operation: &mut Operation<_, _> = &mut history.operations[at];
                let (answer, theirs) = if is_write {
                    (RegisterReturn::Written, RegisterRet::WriteOk)
                } else {
                    (RegisterReturn::Value(Some(value)), RegisterRet::ReadOk(value))
                };
                operation.returned = Some((now, answer));
                line.on_return(process, theirs.clone()).unwrap();
                order.on_return(process, theirs).unwrap();
            } else {
                let (call, theirs) = if write {
                    (RegisterCall::Write(value), RegisterOp::Write(value))
                } else {
                    (RegisterCall::Read, RegisterOp::Read)
                };
                line.on_invoke(process, theirs.clone()).unwrap();
                order.on_invoke(process, theirs).unwrap();
                open.insert(process, (history.push(Operation { process, call, called: now, returned: None }), write));
            }
        }
        let limits = Limits::default();
        prop_assert_eq!(linearizable(&Register::new(), &history, &limits).is_ok(), line.is_consistent());
        // Without an order in time, nothing would put the write of the first value first.
        let ours = sequential(&Begun, &without_first(&history), &limits).is_ok();
        prop_assert_eq!(ours, order.is_consistent());
    }
}

/// A register that begins with 0.
struct Begun;

impl quorate::history::Specification for Begun {
    type State = u8;
    type Call = RegisterCall<u8>;
    type Return = RegisterReturn<u8>;

    fn initial(&self) -> u8 {
        0
    }

    fn step(&self, state: &u8, call: &RegisterCall<u8>, returned: Option<&RegisterReturn<u8>>) -> Option<u8> {
        match (call, returned) {
            (RegisterCall::Write(value), _) => Some(*value),
            (_, Some(RegisterReturn::Value(value))) => (*value == Some(*state)).then_some(*state),
            _ => Some(*state),
        }
    }
}

fn without_first(
    history: &History<RegisterCall<u8>, RegisterReturn<u8>>,
) -> History<RegisterCall<u8>, RegisterReturn<u8>> {
    History { operations: history.operations[1..].to_vec() }
}

/// Who, whether it writes, and what: a call if the process has none under way, else its return.
fn random_events() -> impl Strategy<Value = Vec<(u64, bool, u8)>> {
    prop::collection::vec((0_u64..3, any::<bool>(), 0_u8..3), 0..16)
}

/// Up to seven accesses of three processes on two keys; each write with a value of its own.
fn small_traces() -> impl Strategy<Value = Small> {
    prop::collection::vec((0_u64..3, 0_u8..2, any::<bool>(), 0_u8..5), 0..8).prop_map(|drawn| {
        let mut trace = Small::default();
        for (number, (process, key, is_write, value)) in (1..).zip(&drawn) {
            if *is_write {
                trace.write(*process, *key, number);
            } else {
                // Mostly something that is written at some time, so that orders decide and not the values.
                let written: Vec<u8> = (1..)
                    .zip(&drawn)
                    .filter(|(_, (_, of, write, _))| of == key && *write)
                    .map(|(n, _)| n)
                    .collect();
                let found = written.get(usize::from(*value) % (written.len() + 1)).copied();
                trace.read(*process, *key, found);
            }
        }
        trace
    })
}

fn program_order(trace: &Small) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for (other, later) in trace.accesses.iter().enumerate() {
        let earlier = trace.accesses[..other].iter().enumerate();
        pairs
            .extend(earlier.filter(|(_, one)| one.process() == later.process()).map(|(one, _)| (one, other)));
    }
    pairs
}

fn sources(trace: &Small) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for (reader, access) in trace.accesses.iter().enumerate() {
        let Access::Read { value: Some(value), .. } = access else { continue };
        let wrote =
            |one: &Access<u8, u8>| matches!(one, Access::Write { value: written, .. } if written == value);
        pairs.extend(trace.accesses.iter().position(wrote).map(|writer| (writer, reader)));
    }
    pairs
}

fn closure(mut pairs: Vec<(usize, usize)>, count: usize) -> Vec<(usize, usize)> {
    for middle in 0..count {
        let into: Vec<_> = pairs.iter().filter(|pair| pair.1 == middle).map(|pair| pair.0).collect();
        let out: Vec<_> = pairs.iter().filter(|pair| pair.0 == middle).map(|pair| pair.1).collect();
        pairs.extend(into.iter().flat_map(|one| out.iter().map(move |other| (*one, *other))));
    }
    pairs
}

/// Whether the accesses can be put into one order that keeps these pairs and explains the reads: tries all.
fn has_order(trace: &Small, members: &[usize], pairs: &[(usize, usize)]) -> bool {
    fn go(trace: &Small, left: &[usize], pairs: &[(usize, usize)], store: [Option<u8>; 2]) -> bool {
        left.is_empty()
            || left.iter().any(|next| {
                let waits = |other: &usize| pairs.contains(&(*other, *next));
                if left.iter().any(waits) {
                    return false;
                }
                let mut store = store;
                match &trace.accesses[*next] {
                    Access::Read { key, value, .. } if store[usize::from(*key)] != *value => return false,
                    Access::Read { .. } => {}
                    Access::Write { key, value, .. } => store[usize::from(*key)] = Some(*value),
                }
                let rest: Vec<usize> = left.iter().copied().filter(|other| other != next).collect();
                go(trace, &rest, pairs, store)
            })
    }
    go(trace, members, pairs, [None; 2])
}
