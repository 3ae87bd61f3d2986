//! Groups whose network is cut: the side with a quorum goes on, the other one stops and learns that it is out.

use std::time::Duration;

use bytes::Bytes;
use quorate::group::{Builder, Ended, Event, Events, Group, Limits, Total};
use quorate::node::Node;
use quorate_transports::fault::FaultHandle;
use tests::{Net, everywhere, nets, within};

struct Member {
    node: Node,
    group: Group<Total>,
    events: Events,
}

impl Member {
    /// Reads until `wanted` says that it was that event.
    async fn until(&mut self, mut wanted: impl FnMut(&Event) -> bool) -> Vec<Event> {
        let mut seen = Vec::new();
        loop {
            match within(self.events.next()).await.expect("the events go on") {
                Event::StateWanted(request) => request.answer(Bytes::new()),
                event => {
                    let done = wanted(&event);
                    seen.push(event);
                    if done {
                        return seen;
                    }
                }
            }
        }
    }
}

fn members(count: usize) -> impl FnMut(&Event) -> bool {
    move |event| matches!(event, Event::View(view) if view.members.len() == count)
}

fn message(text: &'static str) -> impl FnMut(&Event) -> bool {
    move |event| matches!(event, Event::Message { payload, .. } if payload == text)
}

async fn cut_and_heal(net: Net) {
    let faults = FaultHandle::new(1);
    let mut limits = Limits::default();
    // Longer than a busy machine keeps any of the members from running: nobody else may be suspected.
    limits.suspect_after = Duration::from_secs(6);
    // And for as long as that may take there.
    limits.join_within = Duration::from_secs(55);
    let mut all: Vec<Member> = Vec::new();
    for id in 1..=5_u64 {
        let node = Node::builder().id(id).listen(net.listen()).transport(faults.wrap(id, net.transport()));
        let node = node.start().await.expect("the node starts");
        let builder = Builder::total("room").limits(limits.clone());
        let (group, events) = if id == 1 {
            builder.create(&node).await.expect("founds the group")
        } else {
            let contacts = all[0].node.addresses();
            let joining = builder.join(&node, &contacts);
            let donating = async {
                all[0].until(members(id as usize)).await;
                match within(all[0].events.next()).await {
                    Some(Event::StateWanted(request)) => request.answer(Bytes::new()),
                    other => panic!("expected a wish for the state, got {other:?}"),
                }
            };
            let (joined, ()) = tokio::join!(joining, donating);
            joined.expect("joins the group")
        };
        all.push(Member { node, group, events });
    }
    for member in &mut all[1..] {
        member.until(members(5)).await;
    }

    faults.change(|network| network.partition(&[&[1, 2, 3], &[4, 5]]));
    all[3].group.cast("of the minority".into()).await.expect("it waits in the window");
    for member in &mut all[..3] {
        member.until(members(3)).await;
    }
    all[1].group.cast("of the majority".into()).await.expect("the group takes it");
    for member in &mut all[..3] {
        let seen = member.until(message("of the majority")).await;
        assert!(!seen.iter().any(message("of the minority")), "{net:?}: a minority was heard");
    }
    for member in &mut all[3..] {
        let seen = member.until(|event| matches!(event, Event::QuorumLost)).await;
        assert!(!seen.iter().any(|event| matches!(event, Event::Message { .. })), "{net:?}: {seen:?}");
    }

    faults.change(|network| network.heal_all());
    for member in &mut all[3..] {
        let seen = member.until(|event| matches!(event, Event::Ended(_))).await;
        assert!(matches!(seen.last(), Some(Event::Ended(Some(Ended::Expelled)))), "{net:?}: {seen:?}");
        assert!(!seen.iter().any(|event| matches!(event, Event::Message { .. })), "{net:?}: {seen:?}");
        assert!(member.events.next().await.is_none());
        // Although the old handle is still there.
        within(Builder::<Total>::total("room").create(&member.node)).await.expect("the name is free again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_a_minority_stops_and_is_told_that_it_is_out() {
    everywhere(nets(), cut_and_heal).await;
}
