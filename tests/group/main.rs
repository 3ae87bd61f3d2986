//! Groups and replicas over real nodes: views, orders, state for joiners, death in the middle.

mod calls;
mod causal;
mod detection;
mod doors;
mod endings;
mod large;
mod lego;
mod merging;
mod partition;
mod pressure;
mod replicas;
mod secrets;
#[cfg(target_os = "linux")]
mod storm;

use std::time::Duration;

use bytes::Bytes;
use quorate::group::{
    Builder, CastError, Event, Events, Fifo, Group, JoinError, Limits, Order, Total, TotalBy, View,
};
use quorate::node::Node;
use tests::{Net, nets, within};

/// Reads events until a view with `count` members, giving back the messages before it.
async fn until_members(events: &mut Events, count: usize) -> (View, Vec<Bytes>) {
    let mut messages = Vec::new();
    loop {
        match within(events.next()).await.expect("the membership goes on") {
            Event::View(view) if view.members.len() == count => return (view, messages),
            Event::Message { payload, .. } => messages.push(payload),
            Event::StateWanted(request) => request.answer(Bytes::new()),
            _ => {}
        }
    }
}

/// Reads `count` messages, answering wishes for the state with nothing.
async fn messages(events: &mut Events, count: usize) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while messages.len() < count {
        match within(events.next()).await.expect("the membership goes on") {
            Event::Message { payload, .. } => messages.push(payload),
            Event::StateWanted(request) => request.answer(Bytes::new()),
            _ => {}
        }
    }
    messages
}

/// Nodes in a group, the first of which founded it; all see all.
async fn group<O: Order>(
    net: &Net,
    builder: Builder<O>,
    count: u64,
) -> (Vec<Node>, Vec<Group<O>>, Vec<Events>)
where
    Builder<O>: Clone,
{
    let (mut nodes, mut groups, mut all_events) = (Vec::<Node>::new(), Vec::new(), Vec::<Events>::new());
    for id in 1..=count {
        let node = net.node(id).await;
        let (group, mut events) = if id == 1 {
            builder.clone().create(&node).await.expect("founds the group")
        } else {
            let contacts = nodes[0].addresses();
            let joining = builder.clone().join(&node, &contacts);
            // The founder is asked for its state while the joiner waits.
            let donating = async {
                until_members(&mut all_events[0], id as usize).await;
                match within(all_events[0].next()).await {
                    Some(Event::StateWanted(request)) => request.answer(Bytes::from_static(b"state")),
                    other => panic!("expected a wish for the state, got {other:?}"),
                }
            };
            let (joined, ()) = tokio::join!(joining, donating);
            joined.expect("joins the group")
        };
        if id > 1 {
            until_members(&mut events, id as usize).await;
            assert!(matches!(within(events.next()).await, Some(Event::State(state)) if state == "state"));
            for earlier in &mut all_events[1..] {
                until_members(earlier, id as usize).await;
            }
        }
        nodes.push(node);
        groups.push(group);
        all_events.push(events);
    }
    (nodes, groups, all_events)
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_a_member_that_leaves_or_dies_is_missed_by_all() {
    for net in nets() {
        let (nodes, groups, mut events) = group(&net, Builder::<Total>::total("room"), 4).await;
        let view = groups[0].view().expect("a view");
        let ids: Vec<_> = view.members.iter().map(|member| member.node).collect();
        assert_eq!(ids, [1, 2, 3, 4], "{net:?}");

        within(groups[1].leave(Duration::from_secs(5))).await.expect("leaves in good order");
        for member in [0, 2, 3] {
            let (view, _) = until_members(&mut events[member], 3).await;
            assert_eq!(view.members.iter().map(|member| member.node).collect::<Vec<_>>(), [1, 3, 4]);
        }
        assert!(matches!(groups[1].cast("too late".into()).await, Err(CastError::Ended(_))));

        // The founder, which orders the messages, dies without a word.
        nodes[0].shutdown(Duration::ZERO).await;
        for events in &mut events[2..] {
            let (view, _) = until_members(events, 2).await;
            assert_eq!(view.members.iter().map(|member| member.node).collect::<Vec<_>>(), [3, 4]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g06_three_senders_at_once_are_delivered_in_one_order() {
    const EACH: u64 = 1200;
    let ways = [TotalBy::Sequencer, TotalBy::Lamport, TotalBy::Token];
    for (net, by) in nets().iter().flat_map(|net| ways.map(|by| (net, by))) {
        let (_nodes, groups, mut events) = group(net, Builder::<Total>::total("room").by(by), 3).await;
        let senders: Vec<_> = groups
            .iter()
            .cloned()
            .map(|group| {
                tokio::spawn(async move {
                    for number in 0..EACH {
                        let text = format!("{}:{number}", group.me().node);
                        group.cast(text.into()).await.expect("the group takes it");
                    }
                })
            })
            .collect();
        let mut orders = Vec::new();
        let readers = events.iter_mut().map(|events| messages(events, 3 * EACH as usize));
        for order in within(join_all(readers)).await {
            orders.push(order);
        }
        for sender in senders {
            sender.await.expect("the sender ends well");
        }
        assert_eq!(orders[0], orders[1], "{net:?}");
        assert_eq!(orders[1], orders[2], "{net:?}");
        for node in 1..=3 {
            let of_one = orders[0].iter().filter(|text| text.starts_with(format!("{node}:").as_bytes()));
            let expected = (0..EACH).map(|number| Bytes::from(format!("{node}:{number}")));
            assert!(of_one.cloned().eq(expected), "{net:?}: the messages of {node} are out of order");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_a_majority_below_the_configured_quorum_stops_and_those_that_leave_do_not_count() {
    for net in nets() {
        let builder = Builder::<Total>::total("room").quorum(3);
        let (nodes, groups, mut events) = group(&net, builder, 4).await;
        within(groups[3].leave(Duration::from_secs(10))).await.expect("leaves in good order");
        for events in &mut events[..3] {
            until_members(events, 3).await;
        }
        groups[1].cast("of three".into()).await.expect("the group takes it");
        for events in &mut events[..3] {
            assert_eq!(messages(events, 1).await, ["of three"], "{net:?}");
        }
        // Two of three are a majority.
        nodes[2].shutdown(Duration::ZERO).await;
        groups[0].cast("of two".into()).await.expect("it waits in the window");
        for events in &mut events[..2] {
            loop {
                match within(events.next()).await.expect("the membership goes on") {
                    Event::QuorumLost => break,
                    event => assert!(
                        !matches!(event, Event::View(_) | Event::Message { .. }),
                        "{net:?}: {event:?}"
                    ),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g04_each_senders_messages_come_in_its_order() {
    for net in nets() {
        let (_nodes, groups, mut events) = group(&net, Builder::<Fifo>::fifo("room"), 3).await;
        for number in 0..500 {
            for group in &groups {
                group.cast(format!("{}:{number}", group.me().node).into()).await.expect("the group takes it");
            }
        }
        for events in &mut events {
            let all = messages(events, 1500).await;
            for node in 1..=3 {
                let of_one = all.iter().filter(|text| text.starts_with(format!("{node}:").as_bytes()));
                let expected = (0..500).map(|number| Bytes::from(format!("{node}:{number}")));
                assert!(of_one.cloned().eq(expected), "{net:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_joining_where_nobody_is_a_member_is_a_typed_error() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        let mut limits = Limits::default();
        limits.join_within = Duration::from_millis(300);
        let builder = Builder::<Total>::total("room").limits(limits);
        let refused = within(builder.clone().join(&two, &one.addresses())).await;
        assert!(matches!(refused, Err(JoinError::Deadline { .. })), "{refused:?}");
        let refused = within(builder.clone().join(&two, &[])).await;
        assert!(matches!(refused, Err(JoinError::NoContact { .. })), "{refused:?}");
        // Nothing is left behind: the same name can be used at once.
        let (_group, _events) = within(builder.clone().create(&two)).await.expect("founds the group");
        let refused = within(builder.create(&two)).await;
        assert!(matches!(refused, Err(JoinError::Taken { .. })), "{refused:?}");
    }
}

async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}
