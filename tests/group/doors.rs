//! Who may send to a group from outside, and how members are found whom nobody has named.

use std::time::Duration;

use bytes::Bytes;
#[cfg(target_os = "linux")]
use quorate::group::{Beacon, JoinError};
use quorate::group::{Builder, Event, Events, Fifo, Limits, Total, VisitError, Visitor};
use quorate::naming::{Directory, Entry, Names};
use quorate::{Node, NodeId};
use quorate_transports::fault::FaultHandle;
use quorate_transports::fault::model::{LatencyModel, LinkModel};
#[cfg(target_os = "linux")]
use tests::{in_namespace, ip};
use tests::{memory, nets, tcp, within};

use super::{group, until_members};

const LONG: Duration = Duration::from_secs(20);

/// Reads until a message from outside comes.
async fn until_outside(events: &mut Events) -> (NodeId, u64, Bytes) {
    loop {
        match within(events.next()).await.expect("the membership goes on") {
            Event::Outside { from, via, payload } => return (from, via.node, payload),
            Event::StateWanted(request) => request.answer(Bytes::new()),
            Event::Message { .. } => panic!("a member's message"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_an_open_group_hears_outsiders_in_its_order_and_a_closed_one_refuses_them() {
    for net in nets() {
        let builder = Builder::<Total>::total("room").open();
        let (nodes, groups, mut events) = group(&net, builder, 3).await;
        let stranger = net.node(10).await;
        // One that is no member is passed over.
        let other = net.node(11).await;
        let contacts: Vec<_> = [&other, &nodes[1]].iter().flat_map(|node| node.addresses()).collect();
        let visitor = Visitor::new(&stranger, "room", &contacts).expect("the name is free");
        for number in 0..20 {
            within(visitor.cast(format!("knock {number}").into(), LONG)).await.expect("the group hears it");
        }
        for events in &mut events {
            for number in 0..20 {
                let expected = (NodeId(10), 2, Bytes::from(format!("knock {number}")));
                assert_eq!(until_outside(events).await, expected, "{net:?}");
            }
        }
        let large = Bytes::from(vec![0; Limits::default().payload_bytes_max + 1]);
        let refused = within(visitor.cast(large, LONG)).await;
        assert!(matches!(refused, Err(VisitError::TooLarge { .. })), "{refused:?}");
        let refused = Visitor::new(&nodes[0], "room", &contacts).map(drop);
        assert!(matches!(refused, Err(VisitError::Taken { .. })), "a member is no visitor: {refused:?}");

        let (_group, _events) =
            within(Builder::<Fifo>::fifo("closed").create(&nodes[0])).await.expect("founds it");
        let visitor = Visitor::new(&stranger, "closed", &nodes[0].addresses()).expect("the name is free");
        let refused = within(visitor.cast("knock".into(), LONG)).await;
        assert!(matches!(refused, Err(VisitError::Closed { .. })), "{net:?}: {refused:?}");
        let visitor = Visitor::new(&stranger, "nobody's", &nodes[0].addresses()).expect("the name is free");
        let refused = within(visitor.cast("knock".into(), LONG)).await;
        assert!(matches!(refused, Err(VisitError::NoMember { .. })), "{net:?}: {refused:?}");
        drop(groups);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_what_a_visitor_sent_to_a_member_that_died_has_an_unknown_outcome() {
    for net in nets() {
        // Alone of three, the member takes the message and cannot deliver it.
        let (nodes, _groups, mut events) = group(&net, Builder::<Total>::total("room").open(), 3).await;
        for node in &nodes[1..] {
            node.shutdown(Duration::ZERO).await;
        }
        while !matches!(within(events[0].next()).await, Some(Event::QuorumLost)) {}
        let stranger = net.node(10).await;
        let visitor = Visitor::new(&stranger, "room", &nodes[0].addresses()).expect("the name is free");
        let casting = visitor.cast("knock".into(), LONG);
        let dying = async {
            tests::until(|| stranger.peer_stats(NodeId(1)).is_some()).await;
            nodes[0].shutdown(Duration::ZERO).await;
        };
        let (outcome, ()) = within(async { tokio::join!(casting, dying) }).await;
        assert!(
            matches!(outcome, Err(VisitError::Unknown | VisitError::NoMember { .. })),
            "{net:?}: {outcome:?}"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn g01_members_are_found_by_a_beacon_on_the_local_network() {
    in_namespace("doors::g01_members_are_found_by_a_beacon_on_the_local_network", async {
        ip(&["link", "set", "lo", "multicast", "on"]);
        ip(&["route", "add", "239.0.0.0/8", "dev", "lo"]);
        let net = tcp();
        let founder = net.node(1).await;
        let builder = || Builder::<Fifo>::fifo("room").stateless();
        let (_group, mut events) = within(builder().create(&founder)).await.expect("founds the group");
        let beacon = Beacon::at("udp://239.255.77.77:7400".parse().unwrap());
        let joiner = net.node(2).await;
        let mut hasty = Limits::default();
        hasty.join_within = Duration::from_millis(700);
        let refused = within(builder().limits(hasty).join_found(&joiner, &beacon)).await.map(drop);
        assert!(matches!(refused, Err(JoinError::Deadline { .. })), "nobody answers yet: {refused:?}");
        let _other = within(beacon.answer(&joiner, "another room")).await.expect("places are shared");
        let _answering = within(beacon.answer(&founder, "room")).await.expect("places are shared");
        let (_group, _events) =
            within(builder().join_found(&joiner, &beacon)).await.expect("finds the founder");
        until_members(&mut events, 2).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_members_are_found_in_the_directory_under_the_name_of_their_group() {
    let net = tcp();
    let (founder, joiner) = (net.node(1).await, net.node(2).await);
    let builder = || Builder::<Fifo>::fifo("room").stateless();
    let (_group, mut events) = within(builder().create(&founder)).await.expect("founds the group");
    let _directory = within(Directory::found(&founder)).await.expect("founds the directory");
    let names = within(Names::connect(&founder, &founder.addresses())).await.expect("it answers");
    let _entry = within(names.register("room", Entry::at(&founder.addresses()))).await.expect("registers");
    let looking = within(Names::connect(&joiner, &founder.addresses())).await.expect("it answers");
    let (_group, _events) = within(builder().join_found(&joiner, &looking)).await.expect("finds the founder");
    until_members(&mut events, 2).await;
}

#[tokio::test(start_paused = true)]
async fn g01_a_joiner_is_let_in_over_a_path_on_which_one_handshake_takes_long() {
    let (net, faults) = (memory(), FaultHandle::new(1));
    let latency = LatencyModel::Constant(Duration::from_millis(700));
    faults.change(|network| network.set_default(LinkModel { latency, ..LinkModel::PERFECT }));
    let mut nodes = Vec::new();
    for id in 1..=2 {
        let node = Node::builder().id(id).listen(net.listen()).transport(faults.wrap(id, net.transport()));
        nodes.push(node.start().await.expect("the node starts"));
    }
    let mut limits = Limits::default();
    limits.suspect_after = Duration::from_secs(10);
    limits.join_within = LONG;
    let builder = Builder::<Total>::total("room").stateless().limits(limits);
    let (_group, _events) = within(builder.clone().create(&nodes[0])).await.expect("founds the group");
    let joined = within(builder.join(&nodes[1], &nodes[0].addresses())).await;
    assert_eq!(joined.expect("joins the group").0.view().expect("is in a view").members.len(), 2);
}
