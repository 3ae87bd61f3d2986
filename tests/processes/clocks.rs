//! Clocks of several processes: what was heard of over sockets is never later than what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::clock::{Clock, Hybrid, HybridStamp, Lamport, LamportStamp, Relation, Vector, VectorClock};
use quorate::protocols::Wire;
use quorate::protocols::clock::Logical;
use quorate::socket::{Options, Replier, Requester};
use quorate::{Address, Bytes, Identity};
use tests::{Net, Orders, Worker, everywhere, nets_between_processes, within};

use crate::work;

const LONG: Duration = Duration::from_secs(60);
const ROUNDS: usize = 20;
/// More than two clocks of one machine differ by.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// All kinds of clocks of one process, and what they said of each of its events.
struct Clocks {
    lamport: Clock<Lamport>,
    vector: Clock<Vector>,
    hybrid: Clock<Hybrid>,
    log: Vec<(LamportStamp, VectorClock, HybridStamp)>,
}

impl Clocks {
    fn of(me: Identity) -> Self {
        let (lamport, vector) = (Clock::lamport(me), Clock::vector(me));
        Self { lamport, vector, hybrid: Clock::hybrid(me, AHEAD_MAX), log: Vec::new() }
    }

    fn event(&mut self) {
        self.log.push((self.lamport.event(), self.vector.event(), self.hybrid.event()));
    }

    /// A message within a message within a message, one for each clock.
    fn stamp(&mut self, payload: &[u8]) -> Bytes {
        let (lamport, message) = self.lamport.stamp(payload);
        let (vector, message) = self.vector.stamp(&message);
        let (hybrid, message) = self.hybrid.stamp(&message);
        self.log.push((lamport, vector, hybrid));
        message
    }

    fn take(&mut self, message: Bytes) -> Bytes {
        let hybrid = self.hybrid.take(message).expect("a stamp");
        let vector = self.vector.take(hybrid.payload).expect("a stamp");
        let lamport = self.lamport.take(vector.payload).expect("a stamp");
        self.log.push((lamport.received, vector.received, hybrid.received));
        lamport.payload
    }
}

fn stamp_of<K: Logical>(text: &str) -> K::Stamp {
    let byte = |place: usize| u8::from_str_radix(&text[place..place + 2], 16).expect("hexadecimal");
    let bytes: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect();
    K::Stamp::from_bytes(bytes.into()).expect("a stamp")
}

fn text_of(stamp: &impl Wire) -> String {
    stamp.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The program of the workers: answers what it is told with what it was told before, does something by itself in between, and
/// shows its log in the end.
#[test]
fn clerk() {
    work(async |orders: Orders| {
        let node = orders.net.node(orders.words.parse().expect("a number")).await;
        let mut replier = Replier::bind(&node, "clerk", Options::default()).expect("a free name");
        let mut clocks = Clocks::of(node.identity());
        // Of this one nobody knows before the first answer.
        clocks.event();
        orders.say(node.addresses()[0].as_str());
        let mut before = Bytes::from_static(b"nothing");
        for _ in 0..ROUNDS {
            let request = replier.receive().await.expect("the parent asks");
            let heard = clocks.take(request.body().clone());
            (0..heard.len() % 3).for_each(|_| clocks.event());
            let answer = clocks.stamp(&before);
            before = heard;
            request.reply(&answer[..]).await.expect("the parent waits");
        }
        for (lamport, vector, hybrid) in &clocks.log {
            orders.say(&format!("{} {} {}", text_of(lamport), text_of(vector), text_of(hybrid)));
        }
        orders.say("done");
        while orders.next().await.is_some() {}
    });
}

async fn causes_come_first(net: Net) {
    let node = net.node(1).await;
    let mut clocks = Clocks::of(node.identity());
    let mut clerks = Vec::new();
    for id in 2..=3_u64 {
        let mut worker = Worker::start("clocks::clerk", &net, &id.to_string());
        let address: Address = worker.hear().await.parse().expect("an address");
        let requester = Requester::connect(&node, "clerk", &address, Options::default());
        clerks.push((worker, within(requester).await.expect("it listens")));
    }
    let mut word = Bytes::from_static(b"begin");
    for round in 0..ROUNDS {
        // What one says is passed on to the other.
        for (_, clerk) in &mut clerks {
            let asked = clocks.stamp(&word);
            let answer = tokio::time::timeout(LONG, clerk.request(&asked[..])).await.expect("in time");
            word = clocks.take(answer.expect("an answer"));
        }
        (0..round % 2).for_each(|_| clocks.event());
    }
    let mut logs = vec![clocks.log];
    for (worker, _) in &mut clerks {
        let mut log = Vec::new();
        loop {
            let line = worker.hear().await;
            let words: Vec<&str> = line.split(' ').collect();
            let [lamport, vector, hybrid] = words[..] else { break };
            log.push((stamp_of::<Lamport>(lamport), stamp_of::<Vector>(vector), stamp_of::<Hybrid>(hybrid)));
        }
        assert!(log.len() >= 2 * ROUNDS, "each question and each answer");
        logs.push(log);
    }
    // All events by Lamport's order: no two at one place, and none before what it came of.
    let all: BTreeMap<_, _> =
        logs.iter().flatten().map(|(at, vector, hybrid)| (at, (vector, hybrid))).collect();
    assert_eq!(all.len(), logs.iter().map(Vec::len).sum::<usize>(), "{net:?}");
    let ordered: Vec<_> = all.values().collect();
    let mut concurrent = 0;
    for (place, (vector, hybrid)) in ordered.iter().enumerate() {
        for (later, later_hybrid) in &ordered[place + 1..] {
            match vector.relation(later) {
                Relation::Before => assert!(hybrid < later_hybrid, "{net:?}: {hybrid} and {later_hybrid}"),
                Relation::Concurrent => concurrent += 1,
                other => panic!("{net:?}: {other:?}, and the count says before"),
            }
        }
    }
    assert!(concurrent > 0, "{net:?}: the clerks began without each other");
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_events_of_several_processes_are_sorted_so_that_causes_come_first() {
    everywhere(nets_between_processes(), causes_come_first).await;
}
