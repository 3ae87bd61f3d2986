//! Reliable multicast, one member at a time.

use bytes::Bytes;

use super::*;
use crate::stack::Headers;

const A: ProcessId = ProcessId { node: 1, incarnation: 1 };
const B: ProcessId = ProcessId { node: 2, incarnation: 1 };
const C: ProcessId = ProcessId { node: 3, incarnation: 1 };

fn view() -> View {
    let id = ViewId { group: 7, number: 1 };
    View { id, members: [A, B, C].into(), synced: [true; 3].into(), quorum_min: 1 }
}

fn member(me: ProcessId) -> (Reliable, Flow<Message>) {
    let (mut layer, mut flow) = (Reliable::new(me, Config::default(), Plant::NONE), Flow::new());
    layer.down(Time::ZERO, Down::Install { view: view(), cut: None }, &mut flow);
    flow.ups.clear();
    (layer, flow)
}

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn cast(text: &'static str) -> Cast {
    Cast { headers: Headers::default(), payload: Bytes::from_static(text.as_bytes()) }
}

fn data(first: u64, texts: &[&'static str]) -> Message {
    let casts = texts.iter().copied().map(cast).collect();
    Message::Data { view: view().id, first, casts, received: vec![first + texts.len() as u64, 0, 0] }
}

/// Who is asked for what, in order.
fn naks(flow: &mut Flow<Message>) -> Vec<(ProcessId, u64, u64)> {
    let asked = flow.sends.drain(..).filter_map(|(to, _, message)| match message {
        Message::Nak { first, end, .. } => Some((to.as_slice()[0], first, end)),
        _ => None,
    });
    asked.collect()
}

fn delivered(flow: &mut Flow<Message>) -> Vec<(u64, usize)> {
    let runs = flow.ups.drain(..).filter_map(|up| match up {
        Up::Deliver { first, casts, .. } => Some((first, casts.len())),
        _ => None,
    });
    runs.collect()
}

#[test]
fn a_gap_is_asked_for_after_a_while_at_one_member_after_the_other() {
    let (mut b, mut flow) = member(B);
    b.receive(at(0), A, data(2, &["three"]), &mut flow);
    assert_eq!(delivered(&mut flow), []);
    b.tick(at(10), &mut flow);
    assert_eq!(naks(&mut flow), [], "messages may overtake each other for a moment");
    let mut asked = Vec::new();
    for millis in [20, 80, 140] {
        b.tick(at(millis), &mut flow);
        asked.extend(naks(&mut flow));
    }
    assert_eq!(asked, [(A, 0, 2), (C, 0, 2), (A, 0, 2)]);
    b.receive(at(150), A, data(0, &["one", "two"]), &mut flow);
    assert_eq!(delivered(&mut flow), [(0, 3)], "the early one follows without a second copy");
    b.receive(at(151), A, data(0, &["one", "two", "three"]), &mut flow);
    assert_eq!(delivered(&mut flow), [], "nothing twice");
}

/// A leader repeats its proposal, and with it the wish to fill, every 100 ms. Each repetition once began the search
/// for a holder anew, so that the third one was never asked and the view change never ended.
#[test]
fn the_same_wish_to_fill_does_not_begin_the_search_for_a_holder_anew() {
    let (mut b, mut flow) = member(B);
    b.down(at(0), Down::Freeze, &mut flow);
    let mut asked = Vec::new();
    for round in 0..3 {
        b.down(at(100 * round), Down::Fill { cut: vec![0, 0, 5] }, &mut flow);
        for millis in [0, 60] {
            b.tick(at(100 * round + millis), &mut flow);
            asked.extend(naks(&mut flow).into_iter().map(|(to, _, _)| to));
        }
    }
    // C itself is the first choice, and A the second.
    assert!(asked.contains(&A) && asked.contains(&C), "{asked:?}");
    let repair =
        Message::Repair { view: view().id, sender: 2, first: 0, casts: vec![cast("x"); 5], more: false };
    b.receive(at(300), A, repair, &mut flow);
    assert_eq!(delivered(&mut flow), [], "what fills the cut waits for the decision");
    let next = View { id: view().id.next(), members: [A, B].into(), synced: [true; 2].into(), quorum_min: 1 };
    b.down(at(301), Down::Install { view: next, cut: Some(vec![0, 0, 5]) }, &mut flow);
    assert_eq!(delivered(&mut flow), [(0, 5)]);
}

#[test]
fn a_saturated_member_takes_messages_and_acknowledges_none() {
    let (mut b, mut flow) = member(B);
    b.down(at(0), Down::Saturated(true), &mut flow);
    b.receive(at(1), A, data(0, &["one"]), &mut flow);
    b.tick(at(1), &mut flow);
    assert_eq!(delivered(&mut flow), [(0, 1)]);
    assert!(flow.sends.is_empty(), "{:?}", flow.sends);
    b.down(at(2), Down::Saturated(false), &mut flow);
    b.tick(at(2), &mut flow);
    assert!(matches!(&flow.sends[..], [(_, _, Message::Ack { received, .. })] if *received == [1, 0, 0]));
}

#[test]
fn early_messages_are_kept_up_to_two_windows_of_bytes() {
    let (mut b, mut flow) = member(B);
    b.config.window_bytes = 10;
    b.receive(at(0), A, data(1, &["12345", "12345", "12345", "12345", "12345"]), &mut flow);
    b.receive(at(1), A, data(1, &["12345"]), &mut flow);
    b.receive(at(1), A, data(0, &["one"]), &mut flow);
    assert_eq!(delivered(&mut flow), [(0, 5)], "the last one must come again");
}

/// The answer to one request comes in several packets: only the last one, or silence, makes the next request due.
#[test]
fn a_holder_that_answers_is_asked_for_the_rest_at_once_and_a_silent_one_no_more() {
    let (mut b, mut flow) = member(B);
    b.receive(at(0), A, data(5, &["six"]), &mut flow);
    b.tick(at(20), &mut flow);
    assert_eq!(naks(&mut flow), [(A, 0, 5)]);
    let repair =
        |first, more| Message::Repair { view: view().id, sender: 0, first, casts: vec![cast("x")], more };
    b.receive(at(21), A, repair(0, true), &mut flow);
    b.tick(at(21), &mut flow);
    assert_eq!(naks(&mut flow), [], "more is on its way");
    b.receive(at(22), A, repair(1, false), &mut flow);
    b.tick(at(22), &mut flow);
    assert_eq!(naks(&mut flow), [(A, 2, 5)]);
    b.tick(at(82), &mut flow);
    assert_eq!(naks(&mut flow), [(C, 2, 5)], "A is silent");
}
