//! How memberships end: asked, dropped, shut down, cancelled; and what is left of them: nothing.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use quorate::group::{Builder, CastError, Ended, Event, JoinError, Limits, Total};
use quorate::node::Node;
use tests::{memory, nets, within};

use crate::until_members;

fn room() -> Builder<Total> {
    Builder::total("room").stateless()
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_the_name_is_free_again_as_soon_as_a_membership_has_ended() {
    for net in nets() {
        let node = net.node(1).await;
        for round in 0..50 {
            let (group, events) = within(room().create(&node)).await.expect("the name is free");
            match round % 4 {
                0 => drop((group, events)),
                1 => drop((events, group)),
                2 => within(group.leave(Duration::from_secs(5))).await.expect("leaves in good order"),
                _ => {
                    // The last event means that it is over, although the handle is still there.
                    let leaving = group.clone();
                    let leaving = tokio::spawn(async move { leaving.leave(Duration::from_secs(5)).await });
                    assert!(matches!(ended(events).await, Some(Ended::Left)));
                    let again = within(room().create(&node)).await.expect("the name is free");
                    drop(again);
                    within(leaving).await.expect("the task ends").expect("leaves in good order");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_a_join_that_is_dropped_midway_leaves_nothing_behind() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        // Nobody is a member there: the join tries and tries.
        let contacts = one.addresses();
        let mut joining = Box::pin(room().join(&two, &contacts));
        for _ in 0..3 {
            let polled = poll_fn(|cx| Poll::Ready(joining.as_mut().poll(cx))).await;
            assert!(polled.is_pending());
            tokio::task::yield_now().await;
        }
        drop(joining);
        within(room().create(&two)).await.expect("the name is free");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_a_node_that_shuts_down_ends_its_memberships_also_a_lone_one() {
    for net in nets() {
        let node = net.node(1).await;
        let (group, events) = within(room().create(&node)).await.expect("founds the group");
        within(node.shutdown(Duration::from_secs(5))).await;
        assert!(ended(events).await.is_none(), "{net:?}");
        assert_eq!(within(group.cast("late".into())).await, Err(CastError::Ended(None)));
        let refused = within(room().create(&node)).await;
        assert!(matches!(refused, Err(JoinError::ShutDown)), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g01_a_member_that_drops_its_events_leaves() {
    for net in nets() {
        let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
        let stateful = || Builder::<Total>::total("room");
        let (first, mut first_events) = within(stateful().create(&one)).await.expect("founds the group");
        let contacts = one.addresses();
        let donating = async {
            loop {
                if let Some(Event::StateWanted(request)) = first_events.next().await {
                    return request.answer("state".into());
                }
            }
        };
        let joining = stateful();
        let (joined, ()) = within(async { tokio::join!(joining.join(&two, &contacts), donating) }).await;
        let (_second, mut second_events) = joined.expect("joins the group");

        // The founder would be the one that is asked for the state.
        drop(first_events);
        until_members(&mut second_events, 2).await;
        let (view, _) = until_members(&mut second_events, 1).await;
        assert_eq!(view.members[0].node, 2, "{net:?}");
        let over = within(async {
            loop {
                match first.cast("nobody reads".into()).await {
                    Ok(()) => tokio::task::yield_now().await,
                    Err(error) => return error,
                }
            }
        });
        assert_eq!(over.await, CastError::Ended(Some(Ended::Left)));
        let contacts = two.addresses();
        let donating = async {
            loop {
                if let Some(Event::StateWanted(request)) = second_events.next().await {
                    return request.answer("state".into());
                }
            }
        };
        let joining = stateful();
        let (joined, ()) = within(async { tokio::join!(joining.join(&three, &contacts), donating) }).await;
        joined.expect("somebody answers");
    }
}

/// In virtual time: what comes first is certain.
#[tokio::test(start_paused = true)]
async fn g02_a_member_that_is_dropped_is_missed_long_before_its_silence_would_tell() {
    let net = memory();
    let mut limits = Limits::default();
    limits.suspect_after = Duration::from_secs(3600);
    let builder = room().limits(limits.clone());
    let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
    let (_first, mut events) = builder.clone().create(&one).await.expect("founds the group");
    let contacts = one.addresses();
    let (second, _second_events) = builder.clone().join(&two, &contacts).await.expect("joins the group");
    let (_third, _third_events) = builder.join(&three, &contacts).await.expect("joins the group");
    until_members(&mut events, 3).await;
    // Without a goodbye; its node and the connections stay.
    drop(second);
    let missed = async {
        loop {
            match events.next().await.expect("the membership goes on") {
                Event::View(view) if view.members.len() == 2 => return,
                _ => {}
            }
        }
    };
    let at_once = tokio::time::timeout(limits.suspect_after, missed).await;
    assert!(at_once.is_ok(), "the others waited for its silence");
}

#[test]
fn g01_memberships_end_with_their_runtime() {
    for net in nets() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (group, events, other, node) = runtime.block_on(async {
            let (one, two) = (net.node(1).await, net.node(2).await);
            let (first, mut first_events) = room().create(&one).await.expect("founds the group");
            let other = room().join(&two, &one.addresses()).await.expect("joins the group");
            until_members(&mut first_events, 2).await;
            let casting = first.clone();
            tokio::spawn(async move { while casting.cast("more".into()).await.is_ok() {} });
            (first, first_events, other, one)
        });
        runtime.shutdown_timeout(Duration::from_secs(10));
        let another = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        another.block_on(async {
            assert!(ended(events).await.is_none());
            assert_eq!(group.cast("late".into()).await, Err(CastError::Ended(None)));
            within(group.leave(Duration::from_secs(5))).await.expect("it has left already");
        });
        drop(another);
        drop((node, group, other));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g08_a_joiner_whose_donor_dies_gets_the_state_from_another() {
    for net in nets() {
        let builder = || Builder::<Total>::total("room");
        let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
        let (_first, mut first_events) = within(builder().create(&one)).await.expect("founds the group");
        let contacts = one.addresses();
        let joining = builder();
        let donating = async {
            loop {
                if let Some(Event::StateWanted(request)) = first_events.next().await {
                    return request.answer("of the first".into());
                }
            }
        };
        let (joined, ()) = within(async { tokio::join!(joining.join(&two, &contacts), donating) }).await;
        let (_second, mut second_events) = joined.expect("joins the group");

        let both: Vec<_> = [&one, &two].into_iter().flat_map(Node::addresses).collect();
        let joining = builder();
        let dying = async {
            loop {
                if let Some(Event::StateWanted(_request)) = first_events.next().await {
                    // In the middle: it was asked and has not answered.
                    return one.shutdown(Duration::ZERO).await;
                }
            }
        };
        let taking_over = async {
            loop {
                if let Some(Event::StateWanted(request)) = second_events.next().await {
                    return request.answer("of the second".into());
                }
            }
        };
        let all = async { tokio::join!(joining.join(&three, &both), dying, taking_over) };
        let (joined, ..) = within(all).await;
        let (_third, mut events) = joined.expect("joins the group");
        let view = within(events.next()).await;
        assert!(matches!(&view, Some(Event::View(view)) if view.members.len() == 2), "{net:?}: {view:?}");
        let state = within(events.next()).await;
        assert!(matches!(&state, Some(Event::State(state)) if state == "of the second"), "{state:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g08_a_group_without_state_asks_nobody_and_gives_nothing() {
    for net in nets() {
        let (one, two) = (net.node(1).await, net.node(2).await);
        let (first, mut first_events) = within(room().create(&one)).await.expect("founds the group");
        let (_second, mut events) =
            within(room().join(&two, &one.addresses())).await.expect("nobody has to answer");
        first.cast("hello".into()).await.expect("the group takes it");
        for (events, views) in [(&mut first_events, 2), (&mut events, 1)] {
            for _ in 0..views {
                assert!(matches!(within(events.next()).await, Some(Event::View(_))));
            }
            let message = within(events.next()).await;
            assert!(
                matches!(&message, Some(Event::Message { payload, .. }) if payload == "hello"),
                "{message:?}"
            );
        }
    }
}

/// Reads to the end; how it ended.
async fn ended(mut events: quorate::group::Events) -> Option<Ended> {
    let mut why = None;
    while let Some(event) = within(events.next()).await {
        if let Event::Ended(ended) = event {
            why = Some(ended);
        }
    }
    why.expect("the last event says why")
}

#[tokio::test]
async fn g01_a_time_that_no_clock_can_count_is_an_error_and_no_panic() {
    let net = memory();
    let node = net.node(1).await;
    for never in [Duration::MAX, Duration::from_secs(u64::MAX / 8)] {
        let mut limits = Limits::default();
        limits.suspect_after = never;
        let founded = room().limits(limits).create(&node).await;
        assert!(matches!(founded, Err(JoinError::Limit { name: "suspect_after", .. })));
    }
    let mut limits = Limits::default();
    limits.suspect_after = Duration::from_secs(24 * 60 * 60);
    room().limits(limits).create(&node).await.expect("a day is long, and can be waited for");
}
