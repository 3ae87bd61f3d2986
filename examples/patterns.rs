//! Every way in which sockets talk, one after the other: run it to see them, read it to copy them.
//!
//! ```text
//! cargo run --example patterns
//! ```
//! Prints one line for each; the last one is `all is said`. The address alone chooses the transport: with
//! `-- mem://` or another one that nodes listen on, everything else stays as it is.

use std::time::Duration;

use bytes::Bytes;
use quorate::Node;
use quorate::socket::{
    Communicator, Dealer, Options, Pair, Publisher, Pull, Push, Replier, Requester, Respondent, Router,
    Socket, Subscriber, Surveyor, WhenFull,
};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:0".to_owned());
    let here = Node::builder().listen(&*listen).start().await?;
    let there = Node::builder().listen(&*listen).start().await?;
    pipeline(&here, &there).await?;
    publish_subscribe(&here, &there).await?;
    request_reply(&here, &there).await?;
    router_dealer(&here, &there).await?;
    survey(&here, &there).await?;
    pair(&here, &there).await?;
    primitives(&here, &there).await?;
    company(&here, &there).await?;
    println!("all is said");
    Ok(())
}

/// Work for whoever has room.
async fn pipeline(here: &Node, there: &Node) -> Outcome {
    let push = Push::bind(here, "work", Options::default())?;
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(Pull::connect(there, "work", &here.addresses()[0], Options::default()).await?);
    }
    push.linked(2).await?;
    for job in ["dig", "carry", "fill", "rest"] {
        push.send(job).await?;
    }
    for (number, worker) in workers.iter_mut().enumerate() {
        let jobs = [worker.receive().await?.body, worker.receive().await?.body];
        println!("pipeline: worker {number} got {jobs:?}");
    }
    // Everything that was sent has arrived, or it is said what has not.
    assert!(push.close(Duration::from_secs(5)).await.is_nothing());
    Ok(())
}

/// News for whoever wants them; a subscriber that is too slow misses some, and nobody waits for it.
async fn publish_subscribe(here: &Node, there: &Node) -> Outcome {
    let mut options = Options::default();
    options.when_full = Some(WhenFull::DropOldest);
    let publisher = Publisher::bind(here, "news", options)?;
    let mut chess = Subscriber::connect(there, "news", &here.addresses()[0], Options::default()).await?;
    // When this returns the publisher knows.
    chess.subscribe("sports/chess").await?;
    publisher.publish("weather/north", "rain").await?;
    let got = publisher.publish("sports/chess/final", "draw").await?;
    let news = chess.receive().await?;
    println!("publish/subscribe: {got} subscriber got {:?} about {:?}", news.body, news.topic);
    Ok(())
}

/// A question and its answer. The handler runs where the question arrives, so it must be quick.
async fn request_reply(here: &Node, there: &Node) -> Outcome {
    let shout = |body: &[u8]| Bytes::from(body.to_ascii_uppercase());
    let _serving = Replier::serve(here, "shout", Options::default(), shout)?;
    let requester = Requester::connect(there, "shout", &here.addresses()[0], Options::default()).await?;
    println!("request/reply: {:?}", requester.request("louder").await?);
    Ok(())
}

/// Questions and answers without lock-step: the router answers whom it likes, when it likes.
async fn router_dealer(here: &Node, there: &Node) -> Outcome {
    let mut router = Router::bind(here, "desk", Options::default())?;
    let mut dealer = Dealer::connect(there, "desk", &here.addresses()[0], Options::default()).await?;
    for question in ["one", "two"] {
        dealer.send(question).await?;
    }
    let (first, second) = (router.receive().await?, router.receive().await?);
    router.send_to(second.from, second.body).await?;
    router.send_to(first.from, first.body).await?;
    let answers = [dealer.receive().await?.body, dealer.receive().await?.body];
    println!("router/dealer: answered in the order {answers:?}");
    Ok(())
}

/// A question to everybody.
async fn survey(here: &Node, there: &Node) -> Outcome {
    let surveyor = Surveyor::bind(here, "poll", Options::default())?;
    for number in 0..3 {
        let mut respondent =
            Respondent::connect(there, "poll", &here.addresses()[0], Options::default()).await?;
        tokio::spawn(async move {
            while let Ok(asked) = respondent.receive().await {
                if asked.reply(format!("respondent {number}")).await.is_err() {
                    return;
                }
            }
        });
    }
    surveyor.linked(3).await?;
    let mut survey = surveyor.survey("who is there?", Duration::from_secs(5))?;
    let mut count = 0;
    while let Some(answer) = survey.next().await {
        count += usize::from(answer.body.starts_with(b"respondent"));
    }
    println!("survey: {count} answered");
    Ok(())
}

/// Two, and nobody else.
async fn pair(here: &Node, there: &Node) -> Outcome {
    let mut one = Pair::bind(here, "tube", Options::default())?;
    let mut two = Pair::connect(there, "tube", &here.addresses()[0], Options::default()).await?;
    two.send("ping").await?;
    let ping = one.receive().await?.body;
    one.send("pong").await?;
    println!("pair: {ping:?}, {:?}", two.receive().await?.body);
    Ok(())
}

/// Bind, listen, accept, connect, send, receive, close; and a message that overtakes.
async fn primitives(here: &Node, there: &Node) -> Outcome {
    let mut listener = Socket::new(here, Options::default()).bind("door")?.listen(16);
    let caller = Socket::new(there, Options::default()).connect("door", &here.addresses()[0]).await?;
    let mut called = listener.accept().await?;
    for part in 0..50_u8 {
        caller.send(vec![part; 10_000]).await?;
    }
    caller.send_urgent("stop").await?;
    let (mut ordinary, mut before) = (0, None);
    while ordinary < 50 || before.is_none() {
        match called.receive().await? {
            received if received.is_urgent => before = Some(ordinary),
            _ => ordinary += 1,
        }
    }
    println!("primitives: the urgent message came, and {ordinary} parts of the transfer, whole");
    assert!(caller.close(Duration::from_secs(5)).await.is_nothing());
    Ok(())
}

/// A company of two: every mode has its own moment, and some things all do together.
async fn company(here: &Node, there: &Node) -> Outcome {
    let members = [here.addresses()[0].clone(), there.addresses()[0].clone()];
    let mut options = Options::default();
    options.connect_wait = Duration::from_secs(5);
    let (zero, one) = tokio::try_join!(
        Communicator::join(here, "company", &members, 0, options.clone()),
        Communicator::join(there, "company", &members, 1, options.clone()),
    )?;
    // Returns when the receive has taken it.
    let (sent, letter) = tokio::join!(zero.ssend(1, 7, "a letter"), one.recv(Some(0), Some(7)));
    sent?;
    println!("message passing: {:?} with tag {}", letter?.body, 7);
    let longer =
        |one: &[u8], two: &[u8]| Bytes::copy_from_slice(if two.len() > one.len() { two } else { one });
    let (at_zero, at_one) =
        tokio::join!(zero.all_reduce("short".into(), longer), one.all_reduce("much longer".into(), longer),);
    println!("collective: the longest is {:?}, for everybody: {}", at_zero.clone()?, at_zero? == at_one?);
    Ok(())
}
