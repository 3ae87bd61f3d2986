//! The textbook's figures on consistency models get the textbook's verdicts.

use quorate::history::{
    Bounds, ConitLog, Limits, LockKind, LockTrace, Model, Rejection, ReplicaLog, Trace, Verdict, WriteId,
    causal, continuous, entry, eventual, fifo, monotonic_reads, monotonic_writes, read_your_writes,
    sequential_trace, writes_follow_reads,
};

/// What the models say to a trace: sequential, causal, FIFO.
fn verdicts(text: &str) -> [bool; 3] {
    let trace: Trace<String, String> = text.parse().unwrap();
    let limits = Limits::default();
    let all = [sequential_trace(&trace, &limits), causal(&trace, &limits), fifo(&trace, &limits)];
    all.map(|verdict| {
        assert!(!matches!(verdict, Err(Rejection::Undecided(_))), "{verdict:?}");
        verdict.is_ok()
    })
}

fn refused(verdict: Verdict, model: Model) -> Vec<usize> {
    match verdict {
        Err(Rejection::Violated(violation)) if violation.model == model => violation.operations,
        other => panic!("{other:?}"),
    }
}

#[test]
fn d02_sequential_consistency_has_the_textbooks_verdicts() {
    // The write may take its time.
    assert_eq!(verdicts("P1: W(x)a\nP2: R(x)NIL R(x)a"), [true; 3]);
    // All see the same order of writes, though not that of time.
    let same = "P1: W(x)a\nP2: W(x)b\nP3: R(x)b R(x)a\nP4: R(x)b R(x)a";
    assert_eq!(verdicts(same), [true; 3]);
    // Two see two orders.
    let different = "P1: W(x)a\nP2: W(x)b\nP3: R(x)b R(x)a\nP4: R(x)a R(x)b";
    assert_eq!(verdicts(different), [false, true, true]);
    // Each key alone is sequentially consistent, both together are not: the model is not local.
    let together = "P1: W(x)a R(y)NIL\nP2: W(y)a R(x)NIL";
    assert_eq!(verdicts(together), [false, true, true]);
    for key in ["x", "y"] {
        let mut alone: Trace<String, String> = together.parse().unwrap();
        alone.accesses.retain(|access| access.key() == key);
        sequential_trace(&alone, &Limits::default()).unwrap();
    }
}

#[test]
fn d02_causal_consistency_has_the_textbooks_verdicts() {
    let concurrent = "P1: W(x)a W(x)c\nP2: R(x)a W(x)b\nP3: R(x)a R(x)c R(x)b\nP4: R(x)a R(x)b R(x)c";
    assert_eq!(verdicts(concurrent), [false, true, true]);
    let dependent = "P1: W(x)a\nP2: R(x)a W(x)b\nP3: R(x)b R(x)a\nP4: R(x)a R(x)b";
    assert_eq!(verdicts(dependent), [false, false, true]);
    let independent = "P1: W(x)a\nP2: W(x)b\nP3: R(x)b R(x)a\nP4: R(x)a R(x)b";
    assert_eq!(verdicts(independent), [false, true, true]);
}

#[test]
fn d02_fifo_consistency_has_the_textbooks_verdicts() {
    let each_in_order = "P1: W(x)a\nP2: R(x)a W(x)b W(x)c\nP3: R(x)b R(x)a R(x)c\nP4: R(x)a R(x)b R(x)c";
    assert_eq!(verdicts(each_in_order), [false, false, true]);
    let out_of_order = "P1: W(x)a W(x)b\nP2: R(x)b R(x)a";
    assert_eq!(verdicts(out_of_order), [false; 3]);
}

#[test]
fn d02_a_verdict_names_the_accesses_that_do_not_fit() {
    let trace: Trace<String, String> =
        "P1: W(z)q W(x)a\nP2: R(x)a W(x)b\nP3: R(z)q R(x)b R(x)a".parse().unwrap();
    let operations = refused(causal(&trace, &Limits::default()), Model::Causal);
    // That P3 read b and then a: the writes of both and the reads, and nothing of z.
    assert!(operations.iter().all(|index| trace.accesses[*index].key() == "x"), "{operations:?}");
    assert!(operations.contains(&1) && operations.contains(&3), "{operations:?}");

    let unwritten: Trace<String, String> = "P1: W(x)a\nP2: R(x)b".parse().unwrap();
    assert_eq!(refused(fifo(&unwritten, &Limits::default()), Model::Fifo), [1]);
    let twice: Trace<String, String> = "P1: W(x)a\nP2: W(x)a".parse().unwrap();
    assert!(matches!(causal(&twice, &Limits::default()), Err(Rejection::Undecided(_))));
}

#[test]
fn d02_eventual_consistency_wants_agreement_when_all_is_quiet() {
    let check = |text: &str| eventual(&text.parse::<Trace<String, String>>().unwrap(), &Limits::default());
    let before = "P1: W(x)a W(x)b\nP2: W(x)c R(x)a\nquiet\n";
    check(&format!("{before}P1: R(x)c\nP2: R(x)c\nP3: R(x)c")).unwrap();
    check(&format!("{before}P1: R(x)b\nP2: R(x)b\nP3: R(y)NIL")).unwrap();
    assert_eq!(refused(check(&format!("{before}P1: R(x)b\nP2: R(x)c")), Model::Eventual), [5, 4]);
    // Its own writer has overwritten it.
    assert_eq!(refused(check(&format!("{before}P1: R(x)a")), Model::Eventual)[0], 4);
    assert_eq!(refused(check(&format!("{before}P1: R(x)NIL")), Model::Eventual)[0], 4);
    assert_eq!(refused(check(&format!("{before}P1: W(x)d")), Model::Eventual), [4]);
}

#[test]
fn d02_entry_consistency_has_the_textbooks_verdicts() {
    use LockKind::{Exclusive, Shared};
    let mut figure = LockTrace::default();
    figure.locked(1, "x", Exclusive);
    figure.wrote(1, "x", "a");
    figure.locked(1, "y", Exclusive);
    figure.wrote(1, "y", "b");
    figure.unlocked(1, "x");
    figure.unlocked(1, "y");
    figure.locked(2, "x", Exclusive);
    figure.read(2, "x", Some("a"));
    // Without the lock of y, nothing need have arrived.
    figure.read(2, "y", None);
    figure.locked(3, "y", Shared);
    figure.read(3, "y", Some("b"));
    entry(&figure).unwrap();

    let mut stale = figure.clone();
    stale.locked(2, "y", Shared);
    stale.read(2, "y", None);
    assert_eq!(refused(entry(&stale), Model::Entry), [12, 3]);
    let mut crowded = figure.clone();
    crowded.locked(2, "y", Exclusive);
    assert_eq!(refused(entry(&crowded), Model::Entry), [11, 9]);
    let mut unguarded = figure;
    unguarded.wrote(3, "y", "c");
    assert_eq!(refused(entry(&unguarded), Model::Entry), [11]);
}

/// The textbook's two replicas of a conit: A has not seen one write of B, B has not seen three of A.
fn conit() -> ConitLog<&'static str> {
    let (a, b, both) = (1, 2, "x and y");
    let mut log = ConitLog::default();
    log.accepted(5, b, both, WriteId(5), 2.0);
    log.taken_in(6, a, WriteId(5));
    log.committed(7, a, WriteId(5));
    log.accepted(8, a, both, WriteId(8), 2.0);
    log.accepted(10, b, both, WriteId(10), 5.0);
    log.accepted(12, a, both, WriteId(12), 1.0);
    log.accepted(14, a, both, WriteId(14), 3.0);
    log
}

#[test]
fn d02_continuous_consistency_measures_the_textbooks_deviations() {
    let mut log = conit();
    let at_a = log.deviation(1, &"x and y");
    assert_eq!((at_a.unseen, at_a.weight, at_a.tentative, at_a.staleness), (1, 5.0, 3, 4));
    let at_b = log.deviation(2, &"x and y");
    assert_eq!((at_b.unseen, at_b.weight, at_b.tentative, at_b.staleness), (3, 6.0, 2, 6));

    log.read(15, 1, "x and y");
    let bounds =
        Bounds { weight_max: Some(5.0), unseen_max: Some(1), tentative_max: Some(3), staleness_max: Some(5) };
    continuous(&log, &bounds).unwrap();
    let refused_by = |bounds: Bounds| refused(continuous(&log, &bounds), Model::Continuous);
    assert_eq!(refused_by(Bounds { weight_max: Some(4.9), ..bounds }), [7, 4]);
    assert_eq!(refused_by(Bounds { unseen_max: Some(0), ..bounds }), [7, 4]);
    assert_eq!(refused_by(Bounds { staleness_max: Some(4), ..bounds }), [7, 4]);
    assert_eq!(refused_by(Bounds { tentative_max: Some(2), ..bounds }), [7, 3, 5, 6]);
}

const X1: WriteId = WriteId(1);
const X2: WriteId = WriteId(2);

/// Client 1 is at replica 1 and moves to replica 2.
#[test]
fn d02_session_guarantees_have_the_textbooks_verdicts() {
    for arrives in [true, false] {
        let mut reads = ReplicaLog::default();
        reads.wrote(9, 1, "x", X1);
        reads.read(1, 1, "x");
        if arrives {
            reads.taken_in(2, X1);
        }
        reads.wrote(9, 2, "x", X2);
        reads.read(1, 2, "x");
        assert_eq!(monotonic_reads(&reads).is_ok(), arrives);

        let mut writes = ReplicaLog::default();
        writes.wrote(1, 1, "x", X1);
        if arrives {
            writes.taken_in(2, X1);
        }
        writes.wrote(1, 2, "x", X2);
        assert_eq!(monotonic_writes(&writes).is_ok(), arrives);
        // Another client's write need not wait.
        let mut others = ReplicaLog::default();
        others.wrote(1, 1, "x", X1);
        others.wrote(2, 2, "x", X2);
        monotonic_writes(&others).unwrap();

        let mut own = ReplicaLog::default();
        own.wrote(1, 1, "x", X1);
        own.wrote(9, 2, "x", X2);
        if arrives {
            own.taken_in(2, X1);
        }
        own.read(1, 2, "x");
        assert_eq!(read_your_writes(&own).is_ok(), arrives);

        let mut follow = ReplicaLog::default();
        follow.wrote(9, 1, "x", X1);
        follow.read(1, 1, "x");
        if arrives {
            follow.taken_in(2, X1);
        }
        follow.wrote(1, 2, "x", X2);
        assert_eq!(writes_follow_reads(&follow).is_ok(), arrives);
    }
}

#[test]
fn d02_session_guarantees_hold_at_replicas_that_the_client_never_saw() {
    let mut log = ReplicaLog::default();
    log.wrote(1, 1, "x", X1);
    log.wrote(1, 1, "x", X2);
    log.taken_in(3, X2);
    log.taken_in(3, X1);
    assert_eq!(refused(monotonic_writes(&log), Model::MonotonicWrites), [2, 0]);
}
