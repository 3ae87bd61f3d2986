//! Replicated state machines over a group in total order.

use std::time::Duration;

use bytes::Bytes;
use quorate::group::{Builder, Group, Total};
use quorate::node::Node;
use quorate::replication::{ApplyError, Replicated, RestoreError, StateMachine};
use serde::{Deserialize, Serialize};
use tests::{Net, nets, within};

/// Adds up, and remembers in which order.
#[derive(Default, Serialize, Deserialize)]
struct Ledger {
    entries: Vec<(String, i64)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Add {
    who: String,
    amount: i64,
}

impl StateMachine for Ledger {
    type Command = Add;
    type Response = i64;

    fn apply(&mut self, command: Add) -> i64 {
        self.entries.push((command.who, command.amount));
        self.entries.iter().map(|(_, amount)| amount).sum()
    }

    fn snapshot(&self) -> Bytes {
        let text: Vec<_> = self.entries.iter().map(|(who, amount)| format!("{who} {amount}\n")).collect();
        text.concat().into()
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError> {
        let bad = |_| RestoreError("not a ledger".into());
        let text = std::str::from_utf8(&snapshot).map_err(|error| RestoreError(error.to_string()))?;
        let entry = |line: &str| {
            let (who, amount) = line.split_once(' ').unwrap_or((line, ""));
            Ok((who.to_owned(), amount.parse().map_err(bad)?))
        };
        self.entries = text.lines().map(entry).collect::<Result<_, RestoreError>>()?;
        Ok(())
    }
}

type Replica = Replicated<Ledger, Group<Total>>;

async fn replica(net: &Net, id: u64, contacts: &[&Node]) -> (Node, Replica) {
    let node = net.node(id).await;
    let builder = Builder::total("ledger");
    let (group, events) = if contacts.is_empty() {
        builder.create(&node).await.expect("founds the group")
    } else {
        let addresses: Vec<_> = contacts.iter().flat_map(|contact| contact.addresses()).collect();
        within(builder.join(&node, &addresses)).await.expect("joins the group")
    };
    let replica = Replica::start(group, events, Ledger::default());
    assert!(within(replica.wait_state()).await, "the replica gets the state");
    (node, replica)
}

fn add(who: &str, amount: i64) -> Add {
    Add { who: who.into(), amount }
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_replicas_agree_while_one_dies_and_comes_back() {
    for net in nets() {
        let (first_node, first) = replica(&net, 1, &[]).await;
        assert_eq!(within(first.apply(&add("early", 5))).await, Ok(5));
        let (second_node, second) = replica(&net, 2, &[&first_node]).await;
        let (third_node, third) = replica(&net, 3, &[&first_node, &second_node]).await;
        assert_eq!(third.read(|ledger| ledger.entries.len()), 1, "a joiner starts with the state");

        let load = |replica: Replica, name: &'static str| {
            tokio::spawn(async move {
                let mut acknowledged = 0;
                for number in 0..400 {
                    let name = format!("{name}{number}");
                    match replica.apply(&Add { who: name, amount: 1 }).await {
                        Ok(_) => acknowledged += 1,
                        Err(ApplyError::Unknown | ApplyError::Ended | ApplyError::Cast(_)) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                acknowledged
            })
        };
        let loads = [load(first.clone(), "a"), load(second.clone(), "b"), load(third.clone(), "c")];
        // The sequencer dies in the middle.
        let mut watch = second.watch();
        within(async {
            while second.applied() < 300 {
                tokio::task::yield_now().await
            }
        })
        .await;
        first_node.shutdown(Duration::ZERO).await;
        let gone =
            watch.wait_for(|progress| progress.view.as_ref().is_some_and(|view| view.members.len() == 2));
        within(gone).await.expect("the survivors agree on a view");
        let mut acknowledged = Vec::new();
        for load in loads {
            acknowledged.push(within(load).await.expect("the load ends well"));
        }
        assert_eq!(acknowledged[1..], [400, 400], "{net:?}: the survivors lose nothing");

        let (_fourth_node, fourth) = replica(&net, 4, &[&second_node, &third_node]).await;
        let total = within(fourth.apply(&add("end", 0))).await.expect("the group goes on");
        within(second.read_latest(|_| ())).await.expect("the group goes on");
        within(third.read_latest(|_| ())).await.expect("the group goes on");
        let of_second = second.read(|ledger| ledger.entries.clone());
        assert_eq!(of_second, third.read(|ledger| ledger.entries.clone()), "{net:?}");
        assert_eq!(of_second, fourth.read(|ledger| ledger.entries.clone()), "{net:?}");
        assert_eq!(of_second.iter().map(|(_, amount)| amount).sum::<i64>(), total);
        for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
            let kept = of_second.iter().filter(|(who, _)| who.starts_with(name)).count();
            assert!(kept >= acknowledged[index], "{net:?}: {kept} of {} of {name}", acknowledged[index]);
        }
        within(third.leave(Duration::from_secs(5))).await.expect("leaves in good order");
        assert_eq!(
            within(third.apply(&add("late", 1))).await.map_err(|error| error.is_not_applied()),
            Err(true)
        );
    }
}

/// A ledger with a flaw of its own replica.
#[derive(Default)]
struct Flawed {
    ledger: Ledger,
    refuses_snapshots: bool,
    panics_at: Option<i64>,
}

impl StateMachine for Flawed {
    type Command = Add;
    type Response = i64;

    fn apply(&mut self, command: Add) -> i64 {
        assert_ne!(Some(command.amount), self.panics_at, "the flaw that this test is about");
        self.ledger.apply(command)
    }

    fn snapshot(&self) -> Bytes {
        self.ledger.snapshot()
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError> {
        if self.refuses_snapshots {
            return Err(RestoreError("none will do".into()));
        }
        self.ledger.restore(snapshot)
    }
}

type FlawedReplica = Replicated<Flawed, Group<Total>>;

async fn flawed(node: &Node, contact: Option<&Node>, machine: Flawed) -> FlawedReplica {
    let builder = Builder::total("ledger");
    let (group, events) = match contact {
        None => within(builder.create(node)).await.expect("founds the group"),
        Some(contact) => within(builder.join(node, &contact.addresses())).await.expect("joins the group"),
    };
    FlawedReplica::start(group, events, machine)
}

/// Waits until the replica is in a view of these nodes.
async fn until_nodes(replica: &FlawedReplica, nodes: &[u64]) {
    let mut watch = replica.watch();
    let there = watch.wait_for(|progress| {
        progress
            .view
            .as_ref()
            .is_some_and(|view| view.members.iter().map(|member| member.node).eq(nodes.iter().copied()))
    });
    within(there).await.expect("the replica goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_a_replica_that_cannot_restore_is_no_member_and_no_donor() {
    for net in nets() {
        let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
        let first = flawed(&one, None, Flawed::default()).await;
        within(first.apply(&add("early", 5))).await.expect("the group goes on");
        let useless = Flawed { refuses_snapshots: true, ..Flawed::default() };
        let second = flawed(&two, Some(&one), useless).await;
        assert!(!within(second.wait_state()).await);
        assert_eq!(within(second.apply(&add("late", 1))).await, Err(ApplyError::Ended));
        until_nodes(&first, &[1]).await;
        within(second.leave(Duration::from_secs(5))).await.expect("it was on its way out already");
        // Its name is free although the handle is still there, and others get the state.
        let again = flawed(&two, Some(&one), Flawed::default()).await;
        assert!(within(again.wait_state()).await);
        let third = flawed(&three, Some(&two), Flawed::default()).await;
        assert!(within(third.wait_state()).await);
        assert_eq!(within(third.apply(&add("end", 1))).await, Ok(6), "{net:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_a_replica_that_panics_is_no_member_any_more() {
    for net in nets() {
        let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
        // The founder orders the messages and gives the state.
        let first = flawed(&one, None, Flawed { panics_at: Some(13), ..Flawed::default() }).await;
        let second = flawed(&two, Some(&one), Flawed::default()).await;
        let third = flawed(&three, Some(&one), Flawed::default()).await;
        for replica in [&second, &third] {
            assert!(within(replica.wait_state()).await);
        }
        assert_eq!(within(first.apply(&add("unlucky", 13))).await, Err(ApplyError::Unknown));
        for replica in [&second, &third] {
            until_nodes(replica, &[2, 3]).await;
        }
        assert_eq!(within(third.apply(&add("end", 1))).await, Ok(14), "{net:?}");
        // The others may know it sooner than its own node.
        within(first.leave(Duration::from_secs(5))).await.expect("it was on its way out already");
        let again = flawed(&one, Some(&three), Flawed::default()).await;
        assert!(within(again.wait_state()).await);
        assert_eq!(within(again.read_latest(|flawed| flawed.ledger.entries.len())).await, Ok(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_dropping_the_last_handle_ends_the_replica() {
    for net in nets() {
        let (one, two, three) = (net.node(1).await, net.node(2).await, net.node(3).await);
        let first = flawed(&one, None, Flawed::default()).await;
        let second = flawed(&two, Some(&one), Flawed::default()).await;
        let third = flawed(&three, Some(&one), Flawed::default()).await;
        until_nodes(&first, &[1, 2, 3]).await;
        let mut watch = second.watch();
        let clone = second.clone();
        drop(second);
        assert!(within(clone.apply(&add("by the clone", 1))).await.is_ok());
        drop(clone);
        // The name is free at once; that the task has ended, and dropped the state with it, is told a little later.
        let again = Builder::<Total>::total("ledger").create(&two).await;
        again.expect("the name is free");
        within(watch.wait_for(|progress| progress.is_over)).await.expect("the end is told");
        within(async { while watch.changed().await.is_ok() {} }).await;
        for replica in [&first, &third] {
            until_nodes(replica, &[1, 3]).await;
        }
        assert_eq!(within(third.apply(&add("end", 1))).await, Ok(2), "{net:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d05_a_command_whose_caller_went_away_is_applied_once_all_the_same() {
    for net in nets() {
        let (_node, replica) = replica(&net, 1, &[]).await;
        for number in 0..100 {
            let command = add("gone", number);
            let mut applying = Box::pin(replica.apply(&command));
            // Polled once it is under way; then nobody waits for the result.
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(applying.as_mut().poll(cx))).await;
            drop(applying);
            drop(polled);
            tokio::task::yield_now().await;
        }
        within(replica.read_latest(|_| ())).await.expect("the group goes on");
        let amounts: Vec<_> =
            replica.read(|ledger| ledger.entries.iter().map(|(_, amount)| *amount).collect());
        assert!(amounts.iter().copied().eq(0..100), "{net:?}: {amounts:?}");
    }
}

#[test]
fn d05_a_replica_ends_with_its_runtime_also_one_that_has_not_begun() {
    for net in nets() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (begun, fresh) = runtime.block_on(async {
            let (_node, begun) = replica(&net, 1, &[]).await;
            let node = net.node(2).await;
            let fresh = flawed(&node, None, Flawed::default()).await;
            (begun, fresh)
        });
        drop(runtime);
        let another = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        another.block_on(async {
            assert!(!within(begun.wait_state()).await);
            assert!(!within(fresh.wait_state()).await);
            assert_eq!(within(begun.apply(&add("late", 1))).await, Err(ApplyError::Ended));
            assert_eq!(within(fresh.apply(&add("late", 1))).await, Err(ApplyError::Ended));
        });
    }
}
