//! A turn of the token that has died with all who held it, by hand: chance seldom kills two at the right moment.

use bytes::Bytes;
use quorate_protocols::multicast::total_token::TotalToken;
use quorate_protocols::planted::{Plant, Planted};
use quorate_protocols::stack::{Cast, Down, Flow, Headers, Layer, Up, View, ViewId};
use quorate_protocols::{ProcessId, Time};

/// The first member passes the token to the second one, and only that one hears of it; the second one's turn and message
/// reach the others. The two die: the others do not know where the second one's message comes. So it must not have been
/// delivered anywhere.
#[test]
fn g06_nothing_is_delivered_behind_a_turn_that_may_be_lost() {
    assert!(delivered_by_second(Plant::default()).is_empty());
    let planted = delivered_by_second(Plant::of(Planted::TokenTrustsEmptyTurns));
    assert_eq!(planted, ["second"], "a planted delivery is noticed");
}

/// What the second of five members delivers once a quorum holds all that it sent, and nothing that the first one sent.
fn delivered_by_second(plant: Plant) -> Vec<Bytes> {
    let [mut first, mut second] = [0, 1].map(|node| TotalToken::new(id(node), plant));
    for member in [&mut first, &mut second] {
        member.up(Time::ZERO, Up::View(view()), &mut Flow::new());
    }
    let cast = Cast { headers: Headers::default(), payload: Bytes::from_static(b"second") };
    let mut flow = Flow::new();
    second.down(Time::ZERO, Down::Cast(cast), &mut flow);
    let message = multicast(&mut flow);
    let mut flow = Flow::new();
    for member in [&mut first, &mut second] {
        member.up(Time::ZERO, Up::Deliver { sender: 1, first: 0, casts: message.clone() }, &mut flow);
    }
    first.tick(Time::ZERO, &mut flow);
    let passed = multicast(&mut flow);
    assert_eq!(passed.len(), 1, "the first one passes the token on");
    second.up(Time::ZERO, Up::Deliver { sender: 0, first: 0, casts: passed }, &mut flow);
    second.tick(Time::ZERO, &mut flow);
    let turn = multicast(&mut flow);
    assert_eq!(turn.len(), 1, "the second one says where its message comes");
    second.up(Time::ZERO, Up::Deliver { sender: 1, first: 1, casts: turn }, &mut flow);
    second.up(Time::ZERO, Up::Safe(vec![0, 2, 0, 0, 0]), &mut flow);
    let delivered = flow.drain_ups().filter_map(|event| match event {
        Up::Deliver { casts, .. } => Some(casts.into_iter().map(|cast| cast.payload)),
        _ => None,
    });
    delivered.flatten().collect()
}

fn multicast(flow: &mut Flow<()>) -> Vec<Cast> {
    let sent = flow.drain_downs().filter_map(|request| match request {
        Down::Cast(cast) | Down::CastFirst(cast) => Some(cast),
        _ => None,
    });
    sent.collect()
}

fn view() -> View {
    let members = (0..5).map(id).collect();
    View { id: ViewId { group: 1, number: 1 }, members, synced: vec![true; 5].into(), quorum_min: 1 }
}

fn id(node: u64) -> ProcessId {
    ProcessId { node, incarnation: 1 }
}
