//! What each pattern does when nothing goes wrong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::socket::{
    Dealer, Options, Pair, Publisher, Pull, Push, Replier, RequestOptions, Requester, Respondent, Router,
    SendError, Subscriber, Surveyor, WhenFull,
};

use crate::support::{Net, everywhere, nets, within};

const LONG: Duration = Duration::from_secs(30);

fn number(body: &[u8]) -> u64 {
    u64::from_le_bytes(body[..8].try_into().unwrap())
}

#[tokio::test]
async fn s03_work_is_pushed_in_turn_and_pulled_whole_and_in_order() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let push = Push::bind(&here, "work", Options::default()).unwrap();
        let mut pulls = Vec::new();
        // Room for everything, or whoever is read last would be passed over.
        let mut roomy = Options::default();
        roomy.window_bytes = 64 << 20;
        for _ in 0..3 {
            let address = &here.addresses()[0];
            pulls.push(Pull::connect(&there, "work", address, roomy.clone()).await.unwrap());
        }
        push.linked(3).await.unwrap();
        // Small ones, large ones, empty ones.
        const COUNT: u64 = 3_000;
        let sending = async {
            for n in 0..COUNT {
                let size = [0, 1, 100, 9_000][n as usize / 3 % 4] + if n % 100 == 99 { 200_000 } else { 0 };
                let body = [&n.to_le_bytes()[..], &vec![n as u8; size]].concat();
                match n % 2 {
                    0 => push.send(&body).await.unwrap(),
                    _ => push.send(Bytes::from(body)).await.unwrap(),
                }
            }
        };
        let receiving = async {
            let mut all = BTreeSet::new();
            for (index, pull) in pulls.iter_mut().enumerate() {
                let mut last = None;
                for _ in 0..COUNT / 3 {
                    let message = pull.receive().await.unwrap();
                    let n = number(&message.body);
                    assert_eq!(message.from.identity(), here.identity());
                    assert!(message.body[8..].iter().all(|byte| *byte == n as u8));
                    assert!(last < Some(n), "{n} after {last:?} at {index}");
                    last = Some(n);
                    all.insert(n);
                }
            }
            assert_eq!(all.len() as u64, COUNT);
        };
        within(async { tokio::join!(sending, receiving) }).await;
        let figures: Vec<_> = push.links().iter().map(|link| link.sent).collect();
        assert_eq!(figures, [COUNT / 3; 3]);
        assert!(within(push.close(LONG)).await.is_nothing());
    }
}

#[tokio::test]
async fn s03_many_messages_of_one_call_arrive_in_order_and_a_refusal_says_how_many_went() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let address = &here.addresses()[0];
        let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
        let push = Push::connect(&there, "work", address, Options::default()).await.unwrap();
        const COUNT: u64 = 5_000;
        let body = |n: u64| [&n.to_le_bytes()[..], &vec![n as u8; n as usize % 3_000]].concat();
        let sending = async { push.send_many((0..COUNT).map(body)).await.unwrap() };
        let receiving = async {
            for n in 0..COUNT {
                assert_eq!(pull.receive().await.unwrap().body, body(n));
            }
        };
        within(async { tokio::join!(sending, receiving) }).await;
        assert_eq!(push.stats().sent, COUNT);

        let mut small = Options::default();
        small.window_messages = 10;
        let mut pull = Pull::bind(&here, "few", small).unwrap();
        let mut options = Options::default();
        options.when_full = Some(WhenFull::DropNewest);
        let push = Push::connect(&there, "few", address, options).await.unwrap();
        let refused = within(push.send_many((0..30).map(body))).await.unwrap_err();
        assert_eq!((refused.sent, refused.source), (10, SendError::Full));
        for n in 0..10 {
            assert_eq!(within(pull.receive()).await.unwrap().body, body(n));
        }
    }
}

#[tokio::test]
async fn s03_a_puller_takes_from_all_pushers_in_turn_also_in_borrowed_batches() {
    for net in nets() {
        let here = net.node(1).await;
        let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
        let mut pushes = Vec::new();
        for id in 2..4_u64 {
            let node = net.node(id).await;
            let push = Push::connect(&node, "work", &here.addresses()[0], Options::default()).await.unwrap();
            for n in 0..10_000_u64 {
                push.send(&[id.to_le_bytes(), n.to_le_bytes()].concat()).await.unwrap();
            }
            pushes.push((push, node));
        }
        // Both have far more under way than one frame, so neither comes before the other is done.
        within(pull.linked(2)).await.unwrap();
        let mut next = [0_u64; 4];
        let mut kept = Bytes::new();
        let mut turns = Vec::new();
        while next != [0, 0, 10_000, 10_000] {
            let mut batch = within(pull.receive_batch()).await.unwrap();
            let id = batch.from().node().0 as usize;
            turns.push(id);
            while let Some(body) = batch.next() {
                assert_eq!((number(body), number(&body[8..])), (id as u64, next[id]));
                next[id] += 1;
                if next[id] == 5_000 {
                    kept = batch.keep(body);
                }
            }
        }
        assert_eq!(number(&kept[8..]), 4_999);
        assert_eq!(pull.stats().received, 20_000);
    }
}

#[tokio::test]
async fn s03_a_socket_of_the_same_node_is_linked_by_the_nodes_own_address() {
    for net in nets() {
        let node = net.node(1).await;
        let mut pull = Pull::bind(&node, "work", Options::default()).unwrap();
        let push = Push::connect(&node, "work", &node.addresses()[0], Options::default()).await.unwrap();
        for n in 0..100_000_u64 {
            push.send(&n.to_le_bytes()).await.unwrap();
            if n % 1_000 == 999 {
                for expected in n - 999..=n {
                    assert_eq!(number(&within(pull.receive()).await.unwrap().body), expected);
                }
            }
        }
    }
}

#[tokio::test]
async fn s03_a_pair_talks_both_ways_and_turns_a_third_away() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut bound = Pair::bind(&here, "tube", Options::default()).unwrap();
        let connected =
            Pair::connect(&there, "tube", &here.addresses()[0], Options::default()).await.unwrap();
        let third = Pair::connect(&there, "tube", &here.addresses()[0], Options::default()).await;
        let error = third.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        let (sender, mut receiver) = connected.split();
        let talking = async {
            for n in 0..100_u64 {
                bound.send(&n.to_le_bytes()).await.unwrap();
                assert_eq!(number(&bound.receive().await.unwrap().body), n + 1);
            }
        };
        let answering = async {
            for _ in 0..100 {
                let n = number(&receiver.receive().await.unwrap().body);
                sender.send(&(n + 1).to_le_bytes()).await.unwrap();
            }
        };
        within(async { tokio::join!(talking, answering) }).await;
        drop((sender, receiver));
        // The place is free again.
        let patient = {
            let mut options = Options::default();
            options.connect_wait = LONG;
            options
        };
        within(Pair::connect(&there, "tube", &here.addresses()[0], patient)).await.unwrap();
    }
}

#[tokio::test]
async fn s03_filters_are_applied_at_the_publisher() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let publisher = Publisher::bind(&here, "news", Options::default()).unwrap();
        let address = &here.addresses()[0];
        let mut sports = Subscriber::connect(&there, "news", address, Options::default()).await.unwrap();
        let mut all = Subscriber::connect(&there, "news", address, Options::default()).await.unwrap();
        assert_eq!(publisher.publish("sports/chess", "nobody wants this yet").await.unwrap(), 0);
        within(sports.subscribe("sports/")).await.unwrap();
        within(sports.subscribe("sports/chess")).await.unwrap();
        within(all.subscribe("")).await.unwrap();
        // Sent is what travels: the filter is not at the receiver.
        assert_eq!(publisher.publish("weather", "rain").await.unwrap(), 1);
        assert_eq!(publisher.publish("sports/chess", "e4").await.unwrap(), 2);
        let got = within(sports.receive()).await.unwrap();
        assert_eq!((&got.topic[..], &got.body[..]), (&b"sports/chess"[..], &b"e4"[..]));
        within(sports.unsubscribe("sports/chess")).await.unwrap();
        assert_eq!(publisher.publish("sports/chess", "e5").await.unwrap(), 2, "sports/ is still wanted");
        within(sports.unsubscribe("sports/")).await.unwrap();
        assert_eq!(publisher.publish("sports/chess", vec![7; 100_000]).await.unwrap(), 1);
        assert_eq!(&within(sports.receive()).await.unwrap().body[..], b"e5");
        let mut bodies = Vec::new();
        while bodies.len() < 4 {
            let batch = within(all.receive_batch()).await.unwrap();
            bodies.extend(batch.map(|(topic, body)| (topic.to_vec(), body.len())));
        }
        let chess = b"sports/chess".to_vec();
        assert_eq!(
            bodies,
            [(b"weather".to_vec(), 4), (chess.clone(), 2), (chess.clone(), 2), (chess, 100_000)]
        );
        assert_eq!(publisher.stats().sent, 6);
    }
}

#[tokio::test]
async fn s03_a_subscriber_that_comes_late_gets_what_is_published_from_then_on() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let publisher = Publisher::bind(&here, "ticks", Options::default()).unwrap();
        let address = &here.addresses()[0];
        let mut subscribers = Vec::new();
        for n in 0..10_u64 {
            let subscriber = Subscriber::connect(&there, "ticks", address, Options::default()).await.unwrap();
            within(subscriber.subscribe("")).await.unwrap();
            subscribers.push(subscriber);
            assert_eq!(publisher.publish("tick", &n.to_le_bytes()).await.unwrap(), n as usize + 1);
        }
        for (first, subscriber) in subscribers.iter_mut().enumerate() {
            for expected in first as u64..10 {
                assert_eq!(number(&within(subscriber.receive()).await.unwrap().body), expected);
            }
        }
    }
}

#[tokio::test]
async fn s03_requests_are_answered_each_with_its_own_reply() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut replier = Replier::bind(&here, "double", Options::default()).unwrap();
        let requester = Requester::connect(&there, "double", &here.addresses()[0], Options::default()).await;
        let requester = requester.unwrap();
        let serving = async {
            let mut held = Vec::new();
            for _ in 0..100 {
                held.push(replier.receive().await.unwrap());
            }
            // The last one first.
            while let Some(asked) = held.pop() {
                assert_eq!(asked.tries_before(), 0);
                let reply = (number(asked.body()) * 2).to_le_bytes();
                asked.reply(&reply).await.unwrap();
            }
        };
        let asking = async {
            let requests: Vec<_> = (0..100_u64)
                .map(|n| {
                    let requester = &requester;
                    async move { (n, number(&requester.request(&n.to_le_bytes()).await.unwrap())) }
                })
                .collect();
            for (n, reply) in join_all(requests).await {
                assert_eq!(reply, 2 * n);
            }
        };
        within(async { tokio::join!(serving, asking) }).await;
    }
}

#[tokio::test]
async fn s03_a_handler_answers_in_the_task_of_the_connection() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let serving =
            Replier::serve(&here, "upper", Options::default(), |body| Bytes::from(body.to_ascii_uppercase()));
        let serving = serving.unwrap();
        let requester = Requester::connect(&there, "upper", &here.addresses()[0], Options::default()).await;
        let requester = requester.unwrap();
        for _ in 0..1_000 {
            assert_eq!(&within(requester.request("shout")).await.unwrap()[..], b"SHOUT");
        }
        assert_eq!(within(requester.request(vec![b'a'; 300_000])).await.unwrap(), vec![b'A'; 300_000]);
        assert_eq!(serving.stats().received, 1_001);
        assert!(within(serving.close(LONG)).await.is_nothing());
        let options = {
            let mut o = RequestOptions::default();
            o.reply_wait = Duration::from_millis(10);
            o
        };
        let waiting = requester.with(options);
        assert!(tokio::time::timeout(Duration::from_millis(100), waiting.request("?")).await.is_err());
    }
}

#[tokio::test]
async fn s03_a_router_answers_whom_it_chooses_and_dealers_take_turns() {
    for net in nets() {
        let mut routers = Vec::new();
        let there = net.node(9).await;
        let dealer = {
            let mut dealer: Option<Dealer> = None;
            for id in 1..4 {
                let node = net.node(id).await;
                let router = Router::bind(&node, "desk", Options::default()).unwrap();
                let address = node.addresses()[0].clone();
                match &dealer {
                    Some(dealer) => drop(dealer.link("desk", address).await.unwrap()),
                    None => {
                        let made = Dealer::connect(&there, "desk", address, Options::default());
                        dealer = Some(made.await.unwrap());
                    }
                }
                routers.push((router, node));
            }
            dealer.unwrap()
        };
        let (sender, mut receiver) = dealer.split();
        let mut turns = Vec::new();
        for n in 0..9_u64 {
            turns.push(sender.send(&n.to_le_bytes()).await.unwrap().node());
        }
        assert_eq!(turns[..3].iter().collect::<BTreeSet<_>>().len(), 3);
        assert_eq!((&turns[..3], &turns[3..6]), (&turns[3..6], &turns[6..]));
        for (router, _) in &mut routers {
            for _ in 0..3 {
                let message = within(router.receive()).await.unwrap();
                // More than one answer, and none, are both fine here.
                if number(&message.body).is_multiple_of(2) {
                    router.send_to(message.from, message.body.clone()).await.unwrap();
                    router.send_to(message.from, message.body).await.unwrap();
                }
            }
        }
        let mut answers = Vec::new();
        for _ in 0..10 {
            answers.push(number(&within(receiver.receive()).await.unwrap().body));
        }
        answers.sort_unstable();
        assert_eq!(answers, [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]);
    }
}

async fn gathering(net: Net) {
    let here = net.node(1).await;
    let surveyor = Surveyor::bind(&here, "poll", Options::default()).unwrap();
    let mut respondents = Vec::new();
    for id in 2..6 {
        let node = net.node(id).await;
        let respondent = Respondent::connect(&node, "poll", &here.addresses()[0], Options::default()).await;
        respondents.push((respondent.unwrap(), node));
    }
    surveyor.linked(4).await.unwrap();
    let mut survey = surveyor.survey("who are you", LONG).unwrap();
    for (respondent, node) in &mut respondents {
        let asked = within(respondent.receive()).await.unwrap();
        asked.reply(&node.identity().node.0.to_le_bytes()).await.unwrap();
    }
    let mut names = BTreeSet::new();
    while let Some(answer) = within(survey.next()).await {
        assert_eq!(answer.from.node().0, number(&answer.body));
        names.insert(number(&answer.body));
    }
    assert_eq!(names, (2..6).collect());
    drop(survey);
    // One answers, one goes, two are silent.
    let mut survey = surveyor.survey("again", Duration::from_secs(2)).unwrap();
    let asked = within(respondents[0].0.receive()).await.unwrap();
    asked.reply("here").await.unwrap();
    drop(respondents.remove(1));
    assert_eq!(&within(survey.next()).await.unwrap().body[..], b"here");
    assert!(within(survey.next()).await.is_none());
    assert_eq!(survey.missing(), 2);
}

#[tokio::test]
async fn s03_a_survey_gathers_answers_until_all_have_come_or_the_deadline_has() {
    everywhere(nets(), gathering).await;
}

/// All results, in the order of the futures.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut is_done = true;
        for (future, result) in &mut futures {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => is_done = false,
                }
            }
        }
        if is_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    futures.into_iter().filter_map(|(_, result)| result).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn s03_small_messages_of_many_senders_arrive_once_in_the_order_of_each() {
    const SENDERS: u64 = 3;
    const COUNT: u64 = 2_000;
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
        let push = Push::connect(&there, "work", &here.addresses()[0], Options::default()).await.unwrap();
        let push = Arc::new(push);
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let push = push.clone();
                tokio::spawn(async move {
                    for n in 0..COUNT {
                        // Among small ones some that take other ways.
                        let size = if n % 53 == 52 {
                            9_000
                        } else if n % 31 == 30 {
                            300
                        } else {
                            n % 40
                        };
                        let mut body = [sender.to_le_bytes(), n.to_le_bytes()].concat();
                        body.resize(16 + size as usize, n as u8);
                        match n % 3 {
                            0 => push.send(Bytes::from(body)).await.unwrap(),
                            1 => push.send(&body).await.unwrap(),
                            _ => push.send_many([&body]).await.unwrap(),
                        }
                        if n % 97 == 96 {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; SENDERS as usize];
        within(async {
            for _ in 0..SENDERS * COUNT {
                let body = pull.receive().await.unwrap().body;
                let next = &mut next[number(&body) as usize];
                let n = number(&body[8..]);
                assert_eq!(n, *next);
                assert!(body[16..].iter().all(|byte| *byte == n as u8));
                *next += 1;
            }
        })
        .await;
        for sender in senders {
            within(sender).await.unwrap();
        }
        assert_eq!((push.stats().sent, push.links()[0].sent), (SENDERS * COUNT, SENDERS * COUNT));
        assert_eq!((pull.stats().lost, next), (0, [COUNT; SENDERS as usize]));
        // What was sent just before the end is there, too.
        for n in 0..100_u64 {
            push.send(&n.to_le_bytes()).await.unwrap();
        }
        let push = Arc::into_inner(push).expect("its senders are done");
        let closing = tokio::spawn(async move { push.close(LONG).await });
        for n in 0..100 {
            assert_eq!(number(&within(pull.receive()).await.unwrap().body), n);
        }
        assert!(within(closing).await.unwrap().is_nothing());
    }
}
