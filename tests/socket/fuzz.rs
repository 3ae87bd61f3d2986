//! Whatever a node says to a socket, the socket goes on for others.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use quorate::Node;
use quorate::socket::{Options, Publisher, Pull, Push, Replier, Requester, Router, Socket, Subscriber};
use quorate_transports::mem::Mem;

use crate::hostile::Raw;
use crate::support::within;

/// Tries a property on a few values, or on new ones for the seconds of `QUORATE_FUZZ_SECONDS`.
fn fuzz<S: Strategy>(values: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let seconds = std::env::var("QUORATE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let config = Config { source_file: Some(file!()), cases: 32, ..Config::default() };
    loop {
        let outcome = TestRunner::new(config.clone()).run(&values, &property);
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
        if Instant::now() >= end {
            return;
        }
    }
}

/// The role of a liar, the kinds of its frames, and what is in each behind the number of its link.
fn lies() -> impl Strategy<Value = (u8, Vec<(u8, bool, Vec<u8>)>)> {
    let number = prop_oneof![4 => 0u64..4, 1 => any::<u64>()];
    let numbers = prop::collection::vec(number.prop_map(|number| number.to_le_bytes().to_vec()), 0..4);
    let items = prop::collection::vec((0u32..6, prop::collection::vec(any::<u8>(), 0..6)), 0..4);
    let items = items.prop_map(|items| {
        let item = |(length, body): (u32, Vec<u8>)| [&length.to_le_bytes()[..], &body].concat();
        items.into_iter().map(item).collect::<Vec<_>>()
    });
    let rest = (numbers, items).prop_map(|(numbers, items)| [numbers.concat(), items.concat()].concat());
    let garbage = prop::collection::vec(any::<u8>(), 0..40);
    let frame = (0u8..13, any::<bool>(), prop_oneof![3 => rest, 1 => garbage]);
    (1u8..14, prop::collection::vec(frame, 0..40))
}

#[test]
fn s03_any_frames_of_a_peer_harm_no_socket_and_nobody_who_uses_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    fuzz(lies(), |(role, frames)| {
        runtime.block_on(async {
            let world = Mem::new();
            let node = |id| Node::builder().id(id).listen("mem://").transport(world.clone()).start();
            let (here, liar, honest) =
                (node(1).await.unwrap(), node(2).await.unwrap(), node(3).await.unwrap());
            let options = Options::default();
            let mut pull = Pull::bind(&here, "work", options.clone()).unwrap();
            let publisher = Publisher::bind(&here, "news", options.clone()).unwrap();
            let mut replier = Replier::bind(&here, "questions", options.clone()).unwrap();
            let _router = Router::bind(&here, "letters", options.clone()).unwrap();
            let mut listener = Socket::new(&here, options.clone()).bind("door").unwrap().listen(4);
            let mut raws = Vec::new();
            for (own, name) in ["work", "news", "questions", "letters", "door"].into_iter().enumerate() {
                let (raw, _) = Raw::hello(&liar, &here, name, role, own as u64 + 1).await;
                for (kind, is_own, rest) in &frames {
                    raw.lie(*kind, *is_own, rest);
                }
                raws.push(raw);
            }
            let address = &here.addresses()[0];
            let push = Push::connect(&honest, "work", address, options.clone()).await.unwrap();
            push.send("work").await.unwrap();
            // What the liar pushed comes too.
            while within(pull.receive()).await.unwrap().from.node().0 != 3 {}
            let mut subscriber =
                Subscriber::connect(&honest, "news", address, options.clone()).await.unwrap();
            within(subscriber.subscribe("news")).await.unwrap();
            publisher.publish("news", "news").await.unwrap();
            assert_eq!(&within(subscriber.receive()).await.unwrap().body[..], b"news");
            let requester = Requester::connect(&honest, "questions", address, options.clone()).await.unwrap();
            let answering = async {
                loop {
                    let asked = replier.receive().await.unwrap();
                    let body = asked.body().clone();
                    // A liar may be gone already.
                    let _ = asked.reply(body).await;
                }
            };
            let reply = tokio::select! {
                reply = within(requester.request("question")) => reply.unwrap(),
                () = answering => unreachable!("it goes on"),
            };
            assert_eq!(&reply[..], b"question");
            let caller = Socket::new(&honest, options).connect("door", address).await.unwrap();
            caller.send("knock").await.unwrap();
            loop {
                let mut called = within(listener.accept()).await.unwrap();
                if called.remote().node().0 == 3 {
                    assert_eq!(&within(called.receive()).await.unwrap().body[..], b"knock");
                    break;
                }
            }
        });
        Ok(())
    });
}
