//! Sockets that meet between processes, over every medium: primitives, urgent messages, patterns whose other side is killed
//! and comes back, modes of sending, operations of all together.

use std::time::Duration;

use bytes::Bytes;
use quorate::node::Limits;
use quorate::socket::{
    CollectiveError, Communicator, Options, Publisher, Pull, Push, Replier, RequestOptions, Requester,
    Socket, Subscriber,
};
use quorate::{Address, Node};
use tests::{Net, Orders, Worker, everywhere, nets_between_processes, until, within};

use crate::work;

const LONG: Duration = Duration::from_secs(60);

/// A node that finds out soon when the other process is dead: not every medium says so by itself.
async fn node(net: &Net, id: u64, listen: &str) -> Node {
    let mut limits = Limits::default();
    (limits.connection.heartbeat, limits.connection.silence_max) =
        (Duration::from_millis(250), Duration::from_secs(3));
    (limits.backoff_min, limits.backoff_max) = (Duration::from_millis(10), Duration::from_millis(100));
    net.dialler(id).listen(listen).limits(limits).start().await.expect("the node starts")
}

fn options(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    options.connect_wait = LONG;
    change(&mut options);
    options
}

fn number(body: &[u8]) -> u64 {
    u64::from_le_bytes(body[..8].try_into().expect("a number"))
}

/// Starts a worker that plays a part; returns it with its address.
async fn start(net: &Net, words: &str) -> (Worker, Address) {
    let mut worker = Worker::start("sockets::player", net, words);
    let address = worker.hear().await.parse().expect("an address");
    (worker, address)
}

/// The program of all workers here. Their words: a node id, where to listen, the part to play.
#[test]
fn player() {
    work(async |orders| {
        let words: Vec<&str> = orders.words.split(' ').collect();
        let [id, listen, part] = words[..] else { panic!("{words:?}") };
        let listen = if listen == "anywhere" { orders.net.listen() } else { listen };
        let node = node(&orders.net, id.parse().expect("a number"), listen).await;
        orders.say(node.addresses()[0].as_str());
        match part {
            "listener" => listen_and_echo(&orders, &node).await,
            "reader" => read_when_told(&orders, &node).await,
            "publisher" => publish(&orders, &node).await,
            "puller" => pull(&orders, &node).await,
            "replier" => reply(&orders, &node).await,
            "subscriber" => subscribe(&orders, &node).await,
            "member" => receive_when_told(&orders, &node).await,
            "company" => work_together(&orders, &node).await,
            other => panic!("no part {other:?}"),
        }
        // Until the parent is gone, or kills.
        while orders.next().await.is_some() {}
    });
}

async fn listen_and_echo(orders: &Orders, node: &Node) {
    let bound = Socket::new(node, options(|_| ())).bind("door").expect("a free name");
    let mut listener = bound.listen(4);
    orders.say("listening");
    let mut messages = listener.accept().await.expect("somebody comes");
    let mut count = 0;
    while let Ok(received) = messages.receive().await {
        assert_eq!(number(&received.body), count);
        messages.send(received.body).await.expect("the caller reads");
        count += 1;
    }
    orders.say(&format!("{count} messages and the end"));
    let mut bytes = listener.accept().await.expect("somebody comes").into_bytes();
    let (mut buffer, mut length, mut sum) = ([0; 10_000], 0, 0_u64);
    loop {
        match bytes.read(&mut buffer).await.expect("it ends well") {
            0 => break,
            got => {
                length += got;
                sum += buffer[..got].iter().map(|byte| u64::from(*byte)).sum::<u64>();
            }
        }
    }
    orders.say(&format!("{length} bytes, sum {sum}"));
}

async fn primitives(net: Net) {
    let (mut worker, address) = start(&net, "1 anywhere listener").await;
    let node = node(&net, 2, net.listen()).await;
    assert_eq!(worker.hear().await, "listening");
    let connect = || Socket::new(&node, options(|_| ())).connect("door", &address);
    let mut caller = within(connect()).await.expect("it listens");
    for n in 0..1_000_u64 {
        caller.send(&n.to_le_bytes()).await.expect("it reads");
        assert_eq!(number(&within(caller.receive()).await.expect("an echo").body), n);
    }
    assert!(within(caller.close(LONG)).await.is_nothing());
    assert_eq!(worker.hear().await, "1000 messages and the end");
    let writer = within(connect()).await.expect("it listens").into_bytes();
    let text: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for piece in text.chunks(170_001) {
        within(writer.write(piece)).await.expect("it reads");
    }
    assert!(within(writer.close(LONG)).await.is_nothing());
    let sum: u64 = text.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(worker.hear().await, format!("{} bytes, sum {sum}", text.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_primitives_carry_messages_and_bytes_between_processes_until_the_close() {
    everywhere(nets_between_processes(), primitives).await;
}

const BULK: u64 = 400;
const BULK_BYTES: usize = 50_000;

async fn read_when_told(orders: &Orders, node: &Node) {
    let roomy = options(|o| o.window_bytes = 64 << 20);
    let bound = Socket::new(node, roomy).bind("door").expect("a free name");
    let mut listener = bound.listen(1);
    let mut reader = listener.accept().await.expect("somebody comes");
    orders.say("accepted");
    // Twice: nothing is read before the urgent one is here; everything is read as it comes.
    for round in 0..2 {
        assert_eq!(orders.next().await.as_deref(), Some("read"));
        if round == 0 {
            until(|| reader.is_urgent_waiting()).await;
        }
        let (mut next, mut before_urgent, mut urgent) = (0, 0, 0);
        while next < BULK || urgent == 0 {
            let is_here = reader.is_urgent_waiting();
            let received = reader.receive().await.expect("the sender goes on");
            if received.is_urgent {
                urgent += 1;
            } else {
                assert_eq!((number(&received.body), received.body.len()), (next, BULK_BYTES));
                next += 1;
                before_urgent += if is_here { BULK_BYTES } else { 0 };
            }
        }
        orders.say(&format!("{next} in order, {urgent} urgent, {}", before_urgent <= 64 << 10));
    }
}

async fn out_of_band(net: Net) {
    let (mut worker, address) = start(&net, "1 anywhere reader").await;
    let node = node(&net, 2, net.listen()).await;
    let roomy = options(|o| o.window_bytes = 64 << 20);
    let sender = within(Socket::new(&node, roomy).connect("door", &address)).await.expect("it listens");
    assert_eq!(worker.hear().await, "accepted");
    for round in 0..2 {
        if round == 1 {
            worker.tell("read").await;
        }
        for n in 0..BULK {
            let body = [&n.to_le_bytes()[..], &vec![n as u8; BULK_BYTES - 8]].concat();
            within(sender.send(Bytes::from(body))).await.expect("there is room");
            if n == BULK / 2 {
                within(sender.send_urgent("stop")).await.expect("there is room");
            }
        }
        if round == 0 {
            worker.tell("read").await;
        }
        assert_eq!(worker.hear().await, format!("{BULK} in order, 1 urgent, true"), "{net:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_an_urgent_message_overtakes_a_transfer_between_processes() {
    everywhere(nets_between_processes(), out_of_band).await;
}

async fn publish(_: &Orders, node: &Node) {
    let publisher = Publisher::bind(node, "ticks", options(|_| ())).expect("a free name");
    let life = u64::from(std::process::id());
    for tick in 0_u64.. {
        let body = [tick.to_le_bytes(), life.to_le_bytes()].concat();
        publisher.publish("tick/even", &body).await.expect("it is open");
        publisher.publish("odd", "nobody wants this").await.expect("it is open");
        // A pace that everybody can keep: nothing is dropped.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn subscribe(orders: &Orders, node: &Node) {
    let address = orders.next().await.expect("the publisher's address");
    let mut subscriber =
        Subscriber::connect(node, "ticks", &*address, options(|_| ())).await.expect("it is there");
    subscriber.subscribe("tick/").await.expect("it is there");
    orders.say(&number(&subscriber.receive().await.expect("a tick").body).to_string());
    while subscriber.receive().await.is_ok() {}
}

async fn late_subscribers(net: Net) {
    let (publisher, address) = start(&net, "1 anywhere publisher").await;
    let here = node(&net, 2, net.listen()).await;
    let connect = || Subscriber::connect(&here, "ticks", &address, options(|_| ()));
    let mut early = within(connect()).await.expect("the publisher is there");
    within(early.subscribe("tick/")).await.expect("the publisher is there");
    let tick = within(early.receive()).await.expect("a tick").body;
    let (mut next, life) = (number(&tick) + 1, number(&tick[8..]));
    // Somebody else subscribes, and is killed: nobody here notices.
    let (mut other, _) = start(&net, "3 anywhere subscriber").await;
    other.tell(address.as_str()).await;
    let first: u64 = other.hear().await.parse().expect("a number");
    other.kill().await;
    // Who comes late gets what is published from then on.
    let mut late = within(connect()).await.expect("the publisher is there");
    within(late.subscribe("tick/even")).await.expect("the publisher is there");
    let mut next_late = number(&within(late.receive()).await.expect("a tick").body);
    assert!(next_late > first, "{net:?}: {next_late} after {first}");
    next_late += 1;
    for _ in 0..200 {
        assert_eq!(number(&within(early.receive()).await.expect("a tick").body), next, "{net:?}");
        next += 1;
        assert_eq!(number(&within(late.receive()).await.expect("a tick").body), next_late, "{net:?}");
        next_late += 1;
    }
    publisher.kill().await;
    until(|| early.stats().links == 0).await;
    // Its next life is found, and told what is wanted.
    let (_publisher, _) = start(&net, &format!("1 {address} publisher")).await;
    within(async {
        // Ticks of the first life may still have been under way.
        while number(&early.receive().await.expect("a tick").body[8..]) == life {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_subscribers_come_late_are_killed_and_outlive_their_publisher() {
    everywhere(nets_between_processes(), late_subscribers).await;
}

async fn pull(orders: &Orders, node: &Node) {
    let mut pull = Pull::bind(node, "work", options(|o| o.window_messages = WINDOW)).expect("a free name");
    let mut last = None;
    let mut count = 0;
    while let Ok(message) = pull.receive().await {
        let n = number(&message.body);
        assert!(last.is_none_or(|last| n == last + 1), "{n} after {last:?}");
        last = Some(n);
        count += 1;
        // Now and then, so that the parent knows how far it is.
        if count % 1_000 == 0 || n == u64::MAX {
            orders.say(&n.to_string());
        }
    }
}

/// Messages that may be under way to a puller.
const WINDOW: u64 = 100;
const LIVES: u64 = 3;

async fn killed_pullers(net: Net) {
    let (mut puller, address) = start(&net, "1 anywhere puller").await;
    let here = node(&net, 2, net.listen()).await;
    let push = within(Push::connect(&here, "work", &address, options(|_| ()))).await.expect("it is there");
    let pushing = tokio::spawn(async move {
        for n in 0_u64.. {
            if push.send(&n.to_le_bytes()).await.is_err() {
                return;
            }
        }
    });
    let mut last = 0;
    for life in 0..LIVES {
        // Each life gets numbers without a gap (it would say so), all of them later than the one before.
        for _ in 0..3 {
            let heard: u64 = puller.hear().await.parse().expect("a number");
            assert!(heard > last, "{net:?}: life {life} got {heard} after {last}");
            last = heard;
        }
        puller.kill().await;
        (puller, _) = start(&net, &format!("1 {address} puller")).await;
    }
    let heard: u64 = puller.hear().await.parse().expect("a number");
    assert!(heard > last, "{net:?}");
    pushing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_a_pusher_finds_every_life_of_a_puller_that_is_killed_and_nothing_comes_twice_or_out_of_order() {
    everywhere(nets_between_processes(), killed_pullers).await;
}

async fn reply(_: &Orders, node: &Node) {
    let mut replier = Replier::bind(node, "ask", options(|_| ())).expect("a free name");
    while let Ok(asked) = replier.receive().await {
        let answer = (number(asked.body()) * 2).to_le_bytes();
        // Who asked may be gone.
        let _ = asked.reply(&answer).await;
    }
}

async fn killed_repliers(net: Net) {
    let (one, first) = start(&net, "1 anywhere replier").await;
    let (_two, second) = start(&net, "2 anywhere replier").await;
    let here = node(&net, 3, net.listen()).await;
    let requester =
        within(Requester::connect(&here, "ask", &first, options(|_| ()))).await.expect("it is there");
    within(requester.link("ask", &second)).await.expect("it is there");
    let mut patient = RequestOptions::default();
    (patient.reply_wait, patient.tries_max) = (Duration::from_secs(10), 4);
    let requester = requester.with(patient);
    let mut one = Some(one);
    for n in 0..2_000_u64 {
        let reply = within(requester.request(&n.to_le_bytes())).await.expect("somebody answers");
        assert_eq!(number(&reply), 2 * n);
        if n == 1_000 {
            one.take().expect("it is killed once").kill().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_a_killed_replier_is_replaced_by_the_other_one_and_every_request_is_answered() {
    everywhere(nets_between_processes(), killed_repliers).await;
}

async fn join(node: &Node, members: &str, rank: u32, options: Options) -> Communicator {
    let members: Vec<Address> = members.split(' ').map(|text| text.parse().expect("an address")).collect();
    Communicator::join(node, "company", &members, rank, options).await.expect("all come")
}

async fn receive_when_told(orders: &Orders, node: &Node) {
    let members = orders.next().await.expect("the members");
    let small = options(|o| o.window_messages = 4);
    let communicator = join(node, &members, 1, small).await;
    let mut held = None;
    while let Some(order) = orders.next().await {
        match order.split_once(' ') {
            Some(("receive", tag)) => {
                let tag = tag.parse().expect("a number");
                let letter = communicator.recv(Some(0), Some(tag)).await.expect("a member");
                orders.say(&String::from_utf8_lossy(&letter.body));
                held = Some(letter);
            }
            Some(("reply", text)) => {
                let letter = held.take().expect("something was received");
                communicator.reply(letter, text).await.expect("it is waited for");
            }
            _ => panic!("{order}"),
        }
    }
}

/// True when the future is not ready although the other side had every chance to do what it does by itself.
async fn waits<F: Future + Unpin>(future: &mut F) -> bool {
    tokio::time::timeout(Duration::from_millis(100), future).await.is_err()
}

async fn modes(net: Net) {
    let (mut worker, address) = start(&net, "1 anywhere member").await;
    let node = node(&net, 2, net.listen()).await;
    let members = format!("{} {address}", node.addresses()[0]);
    worker.tell(&members).await;
    let one = within(join(&node, &members, 0, options(|o| o.queue_messages = 10))).await;

    // Standard: at receipt, as long as the other side has room; buffered: at submission.
    for n in 0..4 {
        within(one.send(1, 7, format!("send {n}"))).await.expect("there is room");
    }
    let mut fifth = Box::pin(one.send(1, 7, "too early"));
    assert!(waits(&mut fifth).await, "{net:?}: the other process has no room");
    drop(fifth);
    one.bsend(1, 7, "buffered").expect("there is room here");
    for expected in ["send 0", "send 1", "send 2", "send 3", "buffered"] {
        worker.tell("receive 7").await;
        assert_eq!(worker.hear().await, expected);
    }
    let sending = one.isend(1, 7, "immediate".into()).expect("there is room here");
    within(sending.wait()).await.expect("there is room there");
    worker.tell("receive 7").await;
    assert_eq!(worker.hear().await, "immediate");

    // Synchronous: at delivery, when a receive of the other process has taken it.
    let mut ssend = Box::pin(one.ssend(1, 8, "synchronous"));
    assert!(waits(&mut ssend).await);
    let issend = one.issend(1, 9, "both".into()).expect("there is room here");
    let mut issend = Box::pin(issend.wait());
    assert!(waits(&mut issend).await);
    worker.tell("receive 8").await;
    assert_eq!(worker.hear().await, "synchronous");
    within(ssend).await.expect("it is received");
    assert!(waits(&mut issend).await, "{net:?}: another receive is not the one");
    worker.tell("receive 9").await;
    assert_eq!(worker.hear().await, "both");
    within(issend).await.expect("it is received");

    // With a reply: after processing.
    let mut asking = Box::pin(one.sendrecv(1, 10, "question"));
    assert!(waits(&mut asking).await);
    worker.tell("receive 10").await;
    assert_eq!(worker.hear().await, "question");
    assert!(waits(&mut asking).await, "{net:?}: received is not processed");
    worker.tell("reply answer").await;
    assert_eq!(&within(asking).await.expect("a reply")[..], b"answer");

    // And what waits when the other process dies is told.
    let mut asking = Box::pin(one.sendrecv(1, 11, "nobody will answer"));
    assert!(waits(&mut asking).await);
    worker.kill().await;
    assert_eq!(within(asking).await, Err(quorate::socket::PassError::Gone { rank: 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_each_mode_returns_at_its_own_moment_also_between_processes() {
    everywhere(nets_between_processes(), modes).await;
}

const MEMBERS: u32 = 4;

/// Every operation once; what it gave, as text.
async fn operations(communicator: &Communicator) -> Result<String, CollectiveError> {
    let rank = communicator.rank();
    let own = Bytes::from(format!("{rank};"));
    let join = |one: &[u8], two: &[u8]| Bytes::from([one, two].concat());
    let parts = || (0..MEMBERS).map(|to| format!("{rank}>{to} ").into()).collect::<Vec<Bytes>>();
    let mut given = vec![Bytes::from_static(b"|")];
    communicator.barrier().await?;
    given.push(communicator.broadcast(2, own.clone()).await?);
    given.push(communicator.scatter(1, parts()).await?);
    given.extend(communicator.gather(3, own.clone()).await?);
    given.push("|".into());
    given.extend(communicator.all_gather(own.clone()).await?);
    given.push("|".into());
    given.extend(communicator.reduce(0, own.clone(), join).await?);
    given.push("|".into());
    given.push(communicator.all_reduce(own.clone(), join).await?);
    given.push("|".into());
    given.push(communicator.scan(own, join).await?);
    given.push("|".into());
    given.extend(communicator.all_to_all(parts()).await?);
    Ok(String::from_utf8_lossy(&given.concat()).into_owned())
}

/// What [`operations`] must give to a member.
fn expected(rank: u32) -> String {
    let all = "0;1;2;3;";
    let gathered = if rank == 3 { all } else { "" };
    let reduced = if rank == 0 { all } else { "" };
    let upto = &all[..2 * (rank as usize + 1)];
    let exchanged: String = (0..MEMBERS).map(|from| format!("{from}>{rank} ")).collect();
    format!("|2;1>{rank} {gathered}|{all}|{reduced}|{all}|{upto}|{exchanged}")
}

async fn work_together(orders: &Orders, node: &Node) {
    let members = orders.next().await.expect("the members");
    let rank = node.identity().node.0 as u32 - 1;
    let communicator = join(node, &members, rank, options(|_| ())).await;
    while let Some(order) = orders.next().await {
        assert_eq!(order, "operate");
        match operations(&communicator).await {
            Ok(given) => orders.say(&given),
            Err(error) => orders.say(&error.to_string()),
        }
    }
}

async fn collectives(net: Net) {
    let here = node(&net, 1, net.listen()).await;
    let mut members = here.addresses()[0].to_string();
    let mut workers = Vec::new();
    for id in 2..=MEMBERS {
        let (worker, address) = start(&net, &format!("{id} anywhere company")).await;
        members.push_str(&format!(" {address}"));
        workers.push(worker);
    }
    for worker in &mut workers {
        worker.tell(&members).await;
    }
    let communicator = within(join(&here, &members, 0, options(|_| ()))).await;
    for _ in 0..3 {
        for worker in &mut workers {
            worker.tell("operate").await;
        }
        assert_eq!(within(operations(&communicator)).await.expect("all live"), expected(0), "{net:?}");
        for (worker, rank) in workers.iter_mut().zip(1..) {
            assert_eq!(worker.hear().await, expected(rank), "{net:?}");
        }
    }
    // One is killed while the others wait for it.
    let dead = workers.remove(1);
    for worker in &mut workers {
        worker.tell("operate").await;
    }
    let waiting = async { within(operations(&communicator)).await };
    let (failed, ()) = tokio::join!(waiting, dead.kill());
    assert_eq!(failed, Err(CollectiveError::Gone { rank: 2 }), "{net:?}");
    for worker in &mut workers {
        assert_eq!(worker.hear().await, "member 2 is gone", "{net:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_four_processes_work_operations_out_together_and_all_others_are_told_of_a_dead_one() {
    everywhere(nets_between_processes(), collectives).await;
}
