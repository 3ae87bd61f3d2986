//! Failure detectors over nodes: each of them finds the dead, and takes back what it said of the living.

use std::time::Duration;

use quorate::group::{Builder, Detection, Event, Events, Group, Judge, Limits, Total};
use quorate::node::Node;
use quorate_transports::fault::FaultHandle;
use tests::{Net, everywhere, memory, tcp, within};

use crate::until_members;

const MANNERS: [Detection; 4] = [
    Detection::Heartbeat(Judge::Timeout),
    Detection::Heartbeat(Judge::Phi(8.0)),
    Detection::Swim { helpers: 3 },
    Detection::Gossip,
];

async fn three(net: &Net, faults: &FaultHandle, detection: Detection) -> Vec<(Node, Group<Total>, Events)> {
    let mut limits = Limits::default();
    limits.detection = detection;
    // Longer than a busy machine keeps a member from running, also as phi judges it.
    limits.suspect_after = Duration::from_secs(4);
    let builder = Builder::total("room").stateless().limits(limits);
    let mut members = Vec::<(Node, Group<Total>, Events)>::new();
    for id in 1..=3 {
        let node = Node::builder().id(id).listen(net.listen()).transport(faults.wrap(id, net.transport()));
        let node = node.start().await.expect("the node starts");
        let builder = builder.clone();
        let (group, events) = match members.first() {
            None => within(builder.create(&node)).await.expect("founds the group"),
            Some((first, ..)) => {
                within(builder.join(&node, &first.addresses())).await.expect("joins the group")
            }
        };
        members.push((node, group, events));
    }
    for (_, _, events) in &mut members {
        until_members(events, 3).await;
    }
    members
}

async fn until(events: &mut Events, is_it: fn(&Event) -> bool) {
    while !is_it(&within(events.next()).await.expect("the membership goes on")) {}
}

/// Everybody is alone for a while: all suspect all, and nobody has a quorum to go on with.
async fn all_are_alone((net, detection): (Net, Detection)) {
    let faults = FaultHandle::new(3);
    let mut members = three(&net, &faults, detection).await;
    faults.change(|network| network.partition(&[&[1], &[2], &[3]]));
    for (_, _, events) in &mut members {
        until(events, |event| matches!(event, Event::QuorumLost)).await;
    }
    faults.change(|network| network.heal_all());
    // Two are enough to go on, and the third one may come too late for them.
    for (_, _, events) in &mut members {
        until(events, |event| matches!(event, Event::QuorumRegained | Event::View(_) | Event::Ended(_)))
            .await;
    }
    let least = members.iter().map(|(_, group, _)| group.stats().suspicions).min();
    assert!(least >= Some(2), "{net:?} {detection:?}");
    // Counted in the same turn in which the event is told.
    tests::until(|| members.iter().any(|(_, group, _)| group.stats().false_suspicions >= 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g02_false_suspicions_are_taken_back_and_counted() {
    everywhere(each_manner(), all_are_alone).await;
}

/// Its connections stand, and nothing comes out of it any more.
async fn one_falls_silent((net, detection): (Net, Detection)) {
    let faults = FaultHandle::new(3);
    let mut members = three(&net, &faults, detection).await;
    faults.change(|network| network.isolate(3));
    for (_, group, events) in &mut members[..2] {
        let (view, _) = until_members(events, 2).await;
        assert_eq!(view.members.iter().map(|member| member.node).collect::<Vec<_>>(), [1, 2]);
        assert!(group.stats().suspicions >= 1, "{net:?} {detection:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g02_each_detector_finds_a_member_that_fell_silent() {
    everywhere(each_manner(), one_falls_silent).await;
}

fn each_manner() -> Vec<(Net, Detection)> {
    [memory(), tcp()].into_iter().flat_map(|net| MANNERS.map(|manner| (net.clone(), manner))).collect()
}
