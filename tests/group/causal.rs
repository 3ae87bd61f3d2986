//! Causal order over nodes: a reply never comes before what it replies to, whichever way is the shorter one.

use std::time::Duration;

use quorate::group::{Builder, Causal, CausalTotal, Events, FifoTotal, Group, Order, UnorderedTotal};
use quorate::node::Node;
use quorate_transports::fault::FaultHandle;
use quorate_transports::fault::model::{LatencyModel, LinkModel};
use tests::{Net, everywhere, nets, within};

use crate::{messages, until_members};

const QUESTIONS: usize = 30;

/// Three members; what the first one sends reaches the third one late.
async fn triangle<O: Order>(
    net: &Net,
    builder: Builder<O>,
) -> (Vec<Node>, FaultHandle, Vec<(Group<O>, Events)>)
where
    Builder<O>: Clone,
{
    let faults = FaultHandle::new(7);
    let (mut nodes, mut members) = (Vec::<Node>::new(), Vec::new());
    for id in 1..=3 {
        let node = Node::builder().id(id).listen(net.listen()).transport(faults.wrap(id, net.transport()));
        let node = node.start().await.expect("the node starts");
        let builder = builder.clone();
        let member = match nodes.first() {
            None => within(builder.create(&node)).await.expect("founds the group"),
            Some(first) => within(builder.join(&node, &first.addresses())).await.expect("joins the group"),
        };
        nodes.push(node);
        members.push(member);
    }
    for (_, events) in &mut members {
        until_members(events, 3).await;
    }
    let latency = LatencyModel::Constant(Duration::from_millis(50));
    faults.change(|network| network.set_link(1, 3, LinkModel { latency, ..LinkModel::PERFECT }));
    (nodes, faults, members)
}

async fn asks_and_answers<O: Order>(net: Net, builder: Builder<O>)
where
    Builder<O>: Clone,
{
    let (_nodes, _faults, mut members) = triangle(&net, builder).await;
    let (_third, mut third_events) = members.pop().expect("three members");
    let (second, mut second_events) = members.pop().expect("three members");
    let (first, _first_events) = members.pop().expect("three members");
    let asking = async {
        for number in 0..QUESTIONS {
            first.cast(format!("{number}?").into()).await.expect("the group takes it");
        }
    };
    let answering = async {
        for question in 0..QUESTIONS {
            let mut asked = messages(&mut second_events, 1).await;
            while !asked[0].ends_with(b"?") {
                asked = messages(&mut second_events, 1).await;
            }
            assert_eq!(asked, [format!("{question}?")]);
            second.cast(format!("{question}!").into()).await.expect("the group takes it");
        }
    };
    let reading = messages(&mut third_events, 2 * QUESTIONS);
    let (_, _, heard) = tokio::join!(asking, answering, reading);
    for number in 0..QUESTIONS {
        let place = |text: String| heard.iter().position(|heard| *heard == text);
        let (question, answer) = (place(format!("{number}?")), place(format!("{number}!")));
        assert!(question.is_some() && question < answer, "{net:?}: {heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g05_an_answer_never_comes_before_its_question() {
    everywhere(nets(), |net| asks_and_answers(net, Builder::<Causal>::causal("room").stateless())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g07_each_total_order_of_the_textbooks_table_is_causal() {
    everywhere(nets().into_iter().take(2), |net| async move {
        asks_and_answers(net.clone(), Builder::<CausalTotal>::total("causal").stateless()).await;
        asks_and_answers(net.clone(), Builder::<FifoTotal>::total("fifo").stateless()).await;
        asks_and_answers(net, Builder::<UnorderedTotal>::total("unordered").stateless()).await;
    })
    .await;
}
