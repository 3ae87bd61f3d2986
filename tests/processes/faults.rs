//! A bad network between two processes, over every medium: one of them wraps its transport, the other one knows nothing.

use std::time::Duration;

use bytes::Bytes;
use quorate::Address;
use quorate::node::Limits;
use quorate::socket::{Options, Replier, RequestOptions, Requester};
use quorate_transports::fault::model::{Chance, LatencyModel, LinkModel, LossModel};
use quorate_transports::fault::{ELSEWHERE, FaultHandle, Manner};
use tests::{Net, Orders, Worker, everywhere, nets_between_processes, until, within};

use crate::work;

const HERE: u64 = 2;

fn limits() -> Limits {
    let mut limits = Limits::default();
    // Longer than a cut of the tests, so that a link which stalls is not given up.
    limits.connection.silence_max = Duration::from_secs(60);
    (limits.backoff_min, limits.backoff_max) = (Duration::from_millis(5), Duration::from_millis(50));
    limits
}

/// The other process: it answers, and ends when its input does.
#[test]
fn answering() {
    work(async |orders: Orders| {
        let node = orders.net.builder(1).limits(limits()).start().await.expect("the node starts");
        let _serving = Replier::serve(&node, "echo", Options::default(), Bytes::copy_from_slice);
        orders.say(node.addresses()[0].as_str());
        while let Some(order) = orders.next().await {
            assert_eq!(order, "breaks");
            orders.say(&node.stats().breaks.to_string());
        }
    });
}

async fn breaks(worker: &mut Worker) -> u64 {
    worker.tell("breaks").await;
    worker.hear().await.parse().expect("a number")
}

async fn is_answered(requester: &Requester, count: u32) {
    for number in 0..count {
        let reply = within(requester.request(&number.to_le_bytes())).await.expect("an answer");
        assert_eq!(reply[..], number.to_le_bytes());
    }
}

async fn bad_network(net: Net) {
    let mut worker = Worker::start("faults::answering", &net, "");
    let address: Address = worker.hear().await.parse().expect("an address");
    let faults = FaultHandle::new(7);
    let node = quorate::Node::builder().id(HERE).transport(faults.wrap(HERE, net.transport()));
    let node = node.limits(limits()).start().await.expect("the node starts");
    let requester = Requester::connect(&node, "echo", &address, Options::default()).await;
    let mut patient = RequestOptions::default();
    (patient.reply_wait, patient.tries_max) = (Duration::from_secs(50), 1);
    let requester = requester.expect("the other process answers").with(patient);
    is_answered(&requester, 1).await;

    // Late, out of step, and some of it only after it was said again: a stream hides all that.
    let slow = LinkModel {
        latency: LatencyModel::Uniform { min: Duration::ZERO, max: Duration::from_millis(1) },
        loss: LossModel::Independent(Chance::percent(5)),
        duplication: Chance::percent(5),
        reordering: Chance::percent(5),
        reordering_delay: Duration::from_millis(1),
        ..LinkModel::PERFECT
    };
    faults.change(|network| network.set_default(slow));
    is_answered(&requester, 100).await;
    assert!(faults.stats().delayed > 0, "{net:?}: {:?}", faults.stats());

    // A cut, and what was asked meanwhile is answered after it.
    faults.change(|network| {
        network.set_default(LinkModel::PERFECT);
        network.partition(&[&[HERE], &[ELSEWHERE]]);
    });
    let mut asked = Box::pin(requester.request(b"beyond the cut"));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut asked).await;
    assert!(early.is_err(), "{net:?}: {early:?} through a cut");
    faults.change(|network| network.heal_all());
    assert_eq!(&within(asked).await.expect("an answer")[..], b"beyond the cut");
    assert_eq!(
        (breaks(&mut worker).await, node.stats().breaks),
        (0, 0),
        "{net:?}: a fault that streams hide"
    );

    // Links that break under both processes; they meet again.
    let many_tries = {
        let mut options = RequestOptions::default();
        (options.reply_wait, options.tries_max) = (Duration::from_secs(1), 50);
        options
    };
    let requester = requester.with(many_tries);
    faults
        .change(|network| network.set_default(LinkModel { reset: Chance::percent(3), ..LinkModel::PERFECT }));
    let before = faults.stats().resets;
    while faults.stats().resets < before + 3 {
        is_answered(&requester, 1).await;
    }

    // Frames lost, doubled and damaged, which no medium here does by itself: the other process may hang up, and goes on.
    faults.set_manner(Manner::Frames);
    let damaging = LinkModel {
        loss: LossModel::Independent(Chance::percent(10)),
        duplication: Chance::percent(10),
        corruption: Chance::percent(10),
        ..LinkModel::PERFECT
    };
    faults.change(|network| network.set_default(damaging));
    let before = faults.stats();
    within(async {
        // What comes back is not believed, so it is not looked at.
        while faults.stats().corrupted < before.corrupted + 5 || faults.stats().lost < before.lost + 5 {
            let _ = tokio::time::timeout(Duration::from_millis(20), requester.request(&[7; 64])).await;
        }
    })
    .await;
    // What a link lost, only another link makes good.
    faults.set_manner(Manner::Stream);
    faults.change(|network| network.set_default(LinkModel { reset: Chance::ALWAYS, ..LinkModel::PERFECT }));
    let before = faults.stats().resets;
    until(|| faults.stats().resets > before || node.peers().is_empty()).await;
    faults.change(|network| network.set_default(LinkModel::PERFECT));
    is_answered(&requester, 10).await;
    // And whoever comes now is served as well.
    let late = net.dialler(3).start().await.expect("the node starts");
    let late = Requester::connect(&late, "echo", &address, Options::default()).await.expect("it is there");
    is_answered(&late, 10).await;
    worker.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t06_a_bad_network_between_processes_is_survived_by_both_over_every_medium() {
    everywhere(nets_between_processes(), bad_network).await;
}
