//! A message whose predecessor has died with all who held it, by hand: chance seldom kills two at the right moment.

use bytes::Bytes;
use quorate_protocols::multicast::causal::Causal;
use quorate_protocols::planted::{Plant, Planted};
use quorate_protocols::stack::{Cast, Down, Flow, Headers, Layer, Up, View, ViewId};
use quorate_protocols::{ProcessId, Time};

/// The first one's message reaches the second one only, whose answer reaches the third one; then both are dead. Another
/// member may have neither, so nobody may deliver the answer.
#[test]
fn g05_a_message_without_its_predecessor_is_delivered_by_nobody() {
    assert!(left_over(Plant::default()).is_empty());
    let planted = left_over(Plant::of(Planted::CausalDeliversOrphans));
    assert_eq!(planted, ["answer"], "a planted delivery is noticed");
}

/// What the third member delivers.
fn left_over(plant: Plant) -> Vec<Bytes> {
    let mut flow = Flow::new();
    let [mut first, mut second, mut third] = [0, 1, 2].map(|node| Causal::new(id(node), plant));
    for member in [&mut first, &mut second, &mut third] {
        member.up(Time::ZERO, Up::View(view(1)), &mut flow);
    }
    let asked = cast(&mut first, "question");
    second.up(Time::ZERO, Up::Deliver { sender: 0, first: 0, casts: asked }, &mut flow);
    let answered = cast(&mut second, "answer");
    assert_eq!(answered.len(), 2, "what it comes after, and the answer");

    let mut flow = Flow::new();
    third.up(Time::ZERO, Up::Deliver { sender: 1, first: 0, casts: answered }, &mut flow);
    third.up(Time::ZERO, Up::View(view(2)), &mut flow);
    let delivered = flow.drain_ups().filter_map(|event| match event {
        Up::Deliver { casts, .. } => Some(casts.into_iter().map(|cast| cast.payload)),
        _ => None,
    });
    delivered.flatten().collect()
}

/// What a member multicasts when it casts `text`.
fn cast(member: &mut Causal, text: &'static str) -> Vec<Cast> {
    let mut flow = Flow::new();
    let payload = Bytes::from_static(text.as_bytes());
    member.down(Time::ZERO, Down::Cast(Cast { headers: Headers::default(), payload }), &mut flow);
    let sent = flow.drain_downs().filter_map(|request| match request {
        Down::Cast(cast) => Some(cast),
        _ => None,
    });
    sent.collect()
}

fn view(number: u64) -> View {
    let members = (0..4).map(id).collect();
    View { id: ViewId { group: 1, number }, members, synced: vec![true; 4].into(), quorum_min: 1 }
}

fn id(node: u64) -> ProcessId {
    ProcessId { node, incarnation: 1 }
}
