//! Back-pressure: nobody can make a member keep more than its limits say, not even itself.

use std::time::Duration;

use bytes::Bytes;
use quorate::group::{Builder, CastError, Ended, Event, Events, Group, Limits, SlowReader, Total};
use tests::{memory, nets, within};

use crate::{group, messages};

/// Longer than anything that still moves needs to come to rest, shorter than a test may hang. In virtual time, which
/// only passes when nothing moves.
const LONG: Duration = Duration::from_secs(20);

/// What the machines may have under way from one sender: their window.
const WINDOW: usize = 8192;

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.outstanding_max = 50;
    limits.events_waiting_max = 20;
    limits
}

/// Casts numbers for as long as it is let.
async fn cast_numbers(group: Group<Total>, count: u32) {
    for number in 0..count {
        group.cast(number.to_string().into()).await.expect("the group takes it");
    }
}

fn numbers(count: u32) -> Vec<Bytes> {
    (0..count).map(|number| number.to_string().into()).collect()
}

#[tokio::test(start_paused = true)]
async fn g09_a_member_that_does_not_read_waits_with_its_own_messages() {
    let net = memory();
    let node = net.node(1).await;
    let (group, mut events) =
        Builder::total("room").limits(limits()).create(&node).await.expect("founds the group");
    let sending = tokio::spawn(cast_numbers(group.clone(), 1000));
    tokio::time::sleep(LONG).await;
    assert!(!sending.is_finished());
    let waiting = group.stats().waiting;
    assert!((21..=20 + 50).contains(&waiting), "{waiting} events wait");
    assert_eq!(messages(&mut events, 1000).await, numbers(1000));
    within(sending).await.expect("the sender ends well");
}

#[tokio::test(start_paused = true)]
async fn g09_a_member_that_does_not_read_makes_the_others_wait_and_loses_nothing() {
    const COUNT: u32 = 40_000;
    let net = memory();
    let (_nodes, groups, mut events) = group(&net, Builder::total("room").limits(limits()), 2).await;
    let (mut slow, mut fast) = (events.pop().expect("two members"), events.pop().expect("two members"));
    let sending = tokio::spawn(cast_numbers(groups[0].clone(), COUNT));
    let reading = tokio::spawn(async move { (messages(&mut fast, COUNT as usize).await, fast) });
    tokio::time::sleep(LONG).await;
    assert!(!sending.is_finished());
    let waiting = groups[1].stats().waiting;
    assert!((20..=20 + WINDOW).contains(&waiting), "{waiting} events wait");
    let all = messages(&mut slow, COUNT as usize).await;
    assert!(all == numbers(COUNT), "something is lost or out of order");
    within(sending).await.expect("the sender ends well");
    let (first, _fast) = within(reading).await.expect("the reader ends well");
    assert!(first == all, "the two saw different orders");
}

#[tokio::test(flavor = "multi_thread")]
async fn g09_a_slow_reader_gets_everything_in_gulps() {
    const COUNT: u32 = 5000;
    for net in nets() {
        let mut limits = limits();
        limits.payload_bytes_max = 100;
        let builder = Builder::total("room").limits(limits);
        let (_nodes, groups, mut events) = group(&net, builder, 2).await;
        let refused = groups[0].cast(vec![0; 101].into()).await;
        assert_eq!(refused, Err(CastError::TooLarge { size: 101, limit: 100 }));
        let sending = tokio::spawn(cast_numbers(groups[0].clone(), COUNT));
        let (mut slow, mut fast) = (events.pop().expect("two members"), events.pop().expect("two members"));
        let (first, second) = tokio::join!(messages(&mut fast, COUNT as usize), gulps(&mut slow, COUNT));
        within(sending).await.expect("the sender ends well");
        assert!(first == numbers(COUNT) && second == first, "{net:?}");
    }
}

/// Reads with the queue overfull in between.
async fn gulps(events: &mut Events, count: u32) -> Vec<Bytes> {
    let mut all = Vec::new();
    while all.len() < count as usize {
        all.extend(messages(events, 500).await);
        tokio::task::yield_now().await;
    }
    all
}

#[tokio::test(start_paused = true)]
async fn g09_a_cast_that_is_dropped_while_it_waits_sends_nothing_and_takes_no_room() {
    let net = memory();
    let node = net.node(1).await;
    let (group, mut events) =
        Builder::total("room").limits(limits()).create(&node).await.expect("founds the group");
    let mut taken = 0_u32;
    // Until one has to wait, which is then dropped; several times, to see that no room is lost.
    for _ in 0..3 {
        loop {
            let cast = group.cast(taken.to_string().into());
            match tokio::time::timeout(LONG, cast).await {
                Ok(cast) => cast.expect("the group takes it"),
                Err(_) => break,
            }
            taken += 1;
        }
        // Ten rounds of the window in one go would not fit if a dropped cast kept its place.
        let read = messages(&mut events, taken as usize).await;
        assert_eq!(read, numbers(taken));
        taken = 0;
    }
    assert!(events.try_next().is_none(), "a dropped cast was sent");
}

#[tokio::test(start_paused = true)]
async fn g09_a_member_that_does_not_read_leaves_by_its_policy_and_the_others_go_on() {
    const COUNT: u32 = 40_000;
    let net = memory();
    let mut limits = limits();
    limits.slow_reader = SlowReader::LeavesAfter(Duration::from_secs(3));
    let (_nodes, groups, mut events) = group(&net, Builder::total("room").limits(limits), 3).await;
    let mut slow = events.pop().expect("three members");
    let sending = tokio::spawn(cast_numbers(groups[0].clone(), COUNT));
    for mut events in events {
        tokio::spawn(async move { while events.next().await.is_some() {} });
    }
    within(sending).await.expect("the sender is not held up for ever");
    let mut why = None;
    while let Some(event) = within(slow.next()).await {
        if let Event::Ended(ended) = event {
            why = ended;
        }
    }
    assert_eq!(why, Some(Ended::TooSlow));
    assert_eq!(groups[0].view().map(|view| view.members.len()), Some(2));
}

#[tokio::test(start_paused = true)]
async fn g09_what_waits_is_bounded_in_bytes_too() {
    const EACH: usize = 1000;
    let net = memory();
    let node = net.node(1).await;
    let mut limits = Limits::default();
    (limits.events_waiting_bytes_max, limits.outstanding_bytes_max) = (20 * EACH, 30 * EACH);
    let builder = Builder::<Total>::total("room").limits(limits);
    let (group, mut events) = builder.create(&node).await.expect("founds the group");
    let casting = group.clone();
    let sending = tokio::spawn(async move {
        for _ in 0..1000 {
            casting.cast(vec![7; EACH].into()).await.expect("the group takes it");
        }
        // Larger than all that may be outstanding: it goes alone.
        casting.cast(vec![7; 100 * EACH].into()).await.expect("the group takes it");
    });
    tokio::time::sleep(LONG).await;
    assert!(!sending.is_finished());
    let waiting = group.stats().waiting_bytes;
    assert!((21 * EACH..=51 * EACH).contains(&waiting), "{waiting} bytes wait");
    assert_eq!(messages(&mut events, 1001).await.last().map(Bytes::len), Some(100 * EACH));
    within(sending).await.expect("the sender ends well");
    assert_eq!(group.stats().waiting_bytes, 0);
}
