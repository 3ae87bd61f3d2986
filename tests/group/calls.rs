//! Calls to all members of a group: everybody answers from the same state, and nobody waits for the dead.

use std::time::Duration;

use quorate::group::{Asked, Builder, CallError, Caller, Calls, CastError, Event, Total, Wanted};
use quorate::node::Node;
use tests::{Net, everywhere, memory, nets, within};
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(50);

/// What a member does with calls.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Adds what it is told to its sum, and answers the sum.
    Adds,
    /// Says nothing.
    IsSilent,
    /// Says more than a message may be.
    Rambles,
}

/// A member that reads what comes, and tells how many members its view has.
async fn serve(mut calls: Calls<Total>, manner: Manner, seen: watch::Sender<usize>) {
    let (mut sum, mut kept) = (0_u64, Vec::new());
    while let Some(asked) = calls.next().await {
        match asked {
            Asked::Call(call) if manner == Manner::Adds => {
                let number: [u8; 8] = call.body()[..].try_into().expect("eight bytes");
                sum += u64::from_le_bytes(number);
                call.answer(&sum.to_le_bytes()).expect("it is small");
            }
            Asked::Call(call) if manner == Manner::Rambles => {
                let said = call.answer(&vec![0; 2 << 20]);
                assert!(matches!(said, Err(CastError::TooLarge { .. })), "{said:?}");
            }
            Asked::Call(call) => kept.push(call),
            Asked::Event(Event::View(view)) => {
                seen.send_replace(view.members.len());
            }
            Asked::Event(Event::StateWanted(request)) => {
                request.answer(sum.to_le_bytes().to_vec().into());
            }
            Asked::Event(Event::State(state)) => {
                sum = u64::from_le_bytes(state[..].try_into().expect("eight bytes"));
            }
            Asked::Event(_) => {}
        }
    }
}

struct Member {
    node: Node,
    caller: Caller<Total>,
    seen: watch::Receiver<usize>,
}

async fn members(net: &Net, manners: &[Manner]) -> Vec<Member> {
    let mut members = Vec::<Member>::new();
    for (place, manner) in manners.iter().enumerate() {
        let node = net.node(place as u64 + 1).await;
        let builder = Builder::<Total>::total("sums");
        let (group, events) = match members.first() {
            None => within(builder.create(&node)).await.expect("founds the group"),
            Some(first) => {
                within(builder.join(&node, &first.node.addresses())).await.expect("joins the group")
            }
        };
        let (caller, calls) = Calls::over(group, events);
        let (seeing, seen) = watch::channel(0);
        tokio::spawn(serve(calls, *manner, seeing));
        members.push(Member { node, caller, seen });
    }
    for member in &mut members {
        within(member.seen.wait_for(|count| *count == manners.len())).await.expect("it lives");
    }
    members
}

async fn everybody_adds(net: Net) {
    let mut members = members(&net, &[Manner::Adds; 3]).await;
    let mut last = 0;
    for number in 1..=30_u64 {
        let caller = &members[number as usize % 3].caller;
        let answers = caller.call(&number.to_le_bytes(), Wanted::All, LONG).await.expect("all answer");
        last += number;
        let mut who: Vec<_> = answers.iter().map(|(member, _)| member.node).collect();
        who.sort_unstable();
        assert_eq!(who, [1, 2, 3], "{net:?}");
        assert!(answers.iter().all(|(_, sum)| sum[..] == last.to_le_bytes()), "{net:?}: {answers:?}");
    }
    for (wanted, count) in [(Wanted::First, 1), (Wanted::Majority, 2), (Wanted::AtLeast(2), 2)] {
        let answers = members[0].caller.call(&[0; 8], wanted, LONG).await.expect("enough answer");
        assert!(answers.len() >= count, "{net:?}: {wanted:?} gives {}", answers.len());
    }
    // One dies without a word: soon all are two.
    members[2].node.shutdown(Duration::ZERO).await;
    within(members[0].seen.wait_for(|count| *count == 2)).await.expect("it lives");
    let answers = members[0].caller.call(&[0; 8], Wanted::All, LONG).await.expect("both answer");
    assert_eq!(answers.len(), 2, "{net:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g10_a_call_to_a_group_is_answered_by_every_member_from_the_same_state() {
    everywhere(nets(), everybody_adds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g10_whoever_dies_before_it_answers_is_not_waited_for() {
    for net in nets() {
        let members = members(&net, &[Manner::Adds, Manner::Adds, Manner::IsSilent]).await;
        let silent = members[2].node.clone();
        let calling = members[0].caller.call(&[0; 8], Wanted::All, LONG);
        let dying = async {
            // It has the call before it dies, for another one that came later has been answered by the others.
            let later = members[1].caller.call(&[0; 8], Wanted::AtLeast(2), LONG).await;
            later.expect("two answer");
            silent.shutdown(Duration::ZERO).await;
        };
        let (called, ()) = tokio::join!(calling, dying);
        let Err(CallError::NotEnough { wanted, answers }) = called else { panic!("{net:?}: {called:?}") };
        assert_eq!((wanted, answers.len()), (3, 2), "{net:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g10_a_call_ends_with_its_deadline_and_says_who_has_answered() {
    let members = members(&memory(), &[Manner::Adds, Manner::IsSilent]).await;
    let called = members[0].caller.call(&[0; 8], Wanted::All, Duration::from_secs(3)).await;
    let Err(CallError::Deadline { answers, .. }) = called else { panic!("{called:?}") };
    assert_eq!(answers.iter().map(|(member, _)| member.node).collect::<Vec<_>>(), [1]);
    let answers = members[0].caller.call(&[0; 8], Wanted::First, LONG).await.expect("the first one answers");
    assert_eq!(answers.len(), 1);
    // A member that has gone asks nobody.
    let gone = members[1].caller.clone();
    gone.group().leave(Duration::from_secs(5)).await.expect("leaves in good order");
    assert!(matches!(gone.call(&[0; 8], Wanted::First, LONG).await, Err(CallError::Cast(_))));
}

#[tokio::test(start_paused = true)]
async fn g10_whoever_answers_more_than_a_message_is_told_so_and_not_waited_for() {
    let members = members(&memory(), &[Manner::Adds, Manner::Rambles]).await;
    let called = members[0].caller.call(&[0; 8], Wanted::All, Duration::from_secs(1 << 30)).await;
    let Err(CallError::NotEnough { wanted: 2, answers }) = called else { panic!("{called:?}") };
    assert_eq!(answers.len(), 1);
}
