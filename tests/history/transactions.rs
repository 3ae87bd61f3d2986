//! Transactions: the classic anomalies are refused, and random serial runs accepted.

use proptest::prelude::*;
use quorate::history::{
    Limits, Model, Rejection, Transaction, Transactions, Verdict, serializable, strictly_serializable,
};

type Plain = Transaction<char, u32>;

fn transaction(began: u64, committed: u64, reads: &[(char, Option<u32>)], writes: &[(char, u32)]) -> Plain {
    Transaction { began, committed: Some(committed), reads: reads.to_vec(), writes: writes.to_vec() }
}

fn both(transactions: Vec<Plain>) -> [Verdict; 2] {
    let history = Transactions { transactions };
    [serializable(&history, &Limits::default()), strictly_serializable(&history, &Limits::default())]
}

fn is_refused(transactions: Vec<Plain>) {
    for verdict in both(transactions) {
        assert!(matches!(verdict, Err(Rejection::Violated(_))), "{verdict:?}");
    }
}

#[test]
fn d02_anomalies_of_transactions_are_refused() {
    let begin = || transaction(0, 1, &[], &[('x', 1), ('y', 1)]);
    // Lost update: both raised what both had read.
    is_refused(vec![
        begin(),
        transaction(2, 9, &[('x', Some(1))], &[('x', 2)]),
        transaction(2, 9, &[('x', Some(1))], &[('x', 3)]),
    ]);
    // Write skew: each read what the other one changed.
    is_refused(vec![
        begin(),
        transaction(2, 9, &[('x', Some(1)), ('y', Some(1))], &[('x', 2)]),
        transaction(2, 9, &[('x', Some(1)), ('y', Some(1))], &[('y', 3)]),
    ]);
    // Long fork: two see two writes in two orders.
    is_refused(vec![
        begin(),
        transaction(2, 9, &[], &[('x', 2)]),
        transaction(2, 9, &[], &[('y', 3)]),
        transaction(2, 9, &[('x', Some(2)), ('y', Some(1))], &[]),
        transaction(2, 9, &[('x', Some(1)), ('y', Some(3))], &[]),
    ]);
    // Half of a transaction.
    is_refused(vec![
        begin(),
        transaction(2, 9, &[], &[('x', 2), ('y', 2)]),
        transaction(2, 9, &[('x', Some(2)), ('y', Some(1))], &[]),
    ]);
    // Of one that aborted.
    is_refused(vec![begin(), transaction(2, 9, &[('x', Some(7))], &[])]);
}

#[test]
fn d02_only_the_strict_model_knows_time() {
    let stale = vec![transaction(1, 2, &[], &[('x', 1)]), transaction(3, 4, &[('x', None)], &[])];
    let [loose, strict] = both(stale);
    loose.unwrap();
    let Err(Rejection::Violated(violation)) = strict else { panic!("{strict:?}") };
    assert_eq!(violation.model, Model::StrictlySerializable);
    let mut operations = violation.operations;
    operations.sort_unstable();
    assert_eq!(operations, [0, 1]);
}

#[test]
fn d02_a_transaction_of_unknown_outcome_counts_when_it_was_read() {
    let unknown = Transaction { began: 1, committed: None, reads: vec![], writes: vec![('x', 1), ('y', 1)] };
    let [loose, strict] = both(vec![
        unknown.clone(),
        transaction(2, 3, &[('x', None)], &[]),
        transaction(4, 5, &[('y', Some(1))], &[]),
    ]);
    loose.unwrap();
    strict.unwrap();
    is_refused(vec![unknown, transaction(2, 3, &[('x', None), ('y', Some(1))], &[])]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn d02_verdicts_on_few_transactions_are_those_of_trying_every_order(drawn in few()) {
        let history = Transactions { transactions: drawn };
        let limits = Limits::default();
        prop_assert_eq!(serializable(&history, &limits).is_ok(), has_order(&history.transactions, false));
        prop_assert_eq!(strictly_serializable(&history, &limits).is_ok(), has_order(&history.transactions, true));
    }
}

fn few() -> impl Strategy<Value = Vec<Plain>> {
    let one = (0_u64..8, 0_u64..8, [0_u8..3, 0_u8..3, 0_u8..3], [any::<u8>(), any::<u8>(), any::<u8>()]);
    prop::collection::vec(one, 0..6).prop_map(|drawn| {
        let keys = ['x', 'y', 'z'];
        let value = |number: usize, key: usize| (number * 3 + key + 1) as u32;
        let wrote = |uses: &[u8; 3], key: usize| uses[key] == 1;
        let mut all = Vec::new();
        for (number, (began, length, uses, found)) in drawn.iter().enumerate() {
            let mut transaction = transaction(*began, began + length, &[], &[]);
            for (key, name) in keys.iter().enumerate() {
                if wrote(uses, key) {
                    transaction.writes.push((*name, value(number, key)));
                }
                if uses[key] == 2 || found[key] > 200 {
                    let others = drawn
                        .iter()
                        .enumerate()
                        .filter(|(other, one)| *other != number && wrote(&one.2, key));
                    let values: Vec<u32> = others.map(|(other, _)| value(other, key)).collect();
                    transaction
                        .reads
                        .push((*name, values.get(usize::from(found[key]) % (values.len() + 1)).copied()));
                }
            }
            all.push(transaction);
        }
        all
    })
}

/// Tries all.
fn has_order(all: &[Plain], is_strict: bool) -> bool {
    fn go(all: &[Plain], left: &[usize], store: [Option<u32>; 3], is_strict: bool) -> bool {
        let place = |key: char| key as usize - 'x' as usize;
        left.is_empty()
            || left.iter().any(|next| {
                let one = &all[*next];
                let waits = |other: &usize| all[*other].committed.is_some_and(|end| end < one.began);
                if is_strict && left.iter().any(waits)
                    || one.reads.iter().any(|(key, value)| store[place(*key)] != *value)
                {
                    return false;
                }
                let mut store = store;
                one.writes.iter().for_each(|(key, value)| store[place(*key)] = Some(*value));
                let rest: Vec<usize> = left.iter().copied().filter(|other| other != next).collect();
                go(all, &rest, store, is_strict)
            })
    }
    let all_of_them: Vec<usize> = (0..all.len()).collect();
    go(all, &all_of_them, [None; 3], is_strict)
}
