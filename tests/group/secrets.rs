//! Groups that keep strangers out: by a secret, by certificates.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quorate::group::{Builder, Causal, Fifo, JoinError, Limits, Secret, Total};
use quorate::node::{Address, Credentials, Node};
use quorate::transports::tls::Tls;
use tests::{certificates_for, nets, tcp, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{group, messages, until_members};

fn secret(byte: u8) -> Secret {
    Secret::new(&[byte; 32]).expect("it is long enough")
}

/// Who tries for less than a second.
fn hasty() -> Limits {
    let mut limits = Limits::default();
    limits.join_within = Duration::from_millis(700);
    limits
}

#[tokio::test(flavor = "multi_thread")]
async fn g11_a_group_with_a_secret_lives_as_any_other_and_strangers_stay_outside() {
    for net in nets() {
        let builder = Builder::<Total>::total("room").secret(secret(1));
        let (nodes, groups, mut events) = group(&net, builder.clone(), 3).await;
        for (number, group) in groups.iter().enumerate() {
            group.cast(format!("word {number}").into()).await.expect("the group takes it");
        }
        let first = messages(&mut events[0], 3).await;
        assert_eq!(messages(&mut events[1], 3).await, first, "{net:?}");
        assert_eq!(messages(&mut events[2], 3).await, first, "{net:?}");

        let stranger = net.node(10).await;
        let contacts = nodes[0].addresses();
        for wrong in [Builder::<Total>::total("room"), Builder::total("room").secret(secret(2))] {
            let refused = within(wrong.limits(hasty()).join(&stranger, &contacts)).await.map(drop);
            assert!(matches!(refused, Err(JoinError::Deadline { .. })), "{net:?}: {refused:?}");
        }
        let refused = within(builder.open().create(&stranger)).await.map(drop);
        assert!(matches!(refused, Err(JoinError::Limit { name: "open", .. })), "{refused:?}");

        // Views change as anywhere.
        nodes[0].shutdown(Duration::ZERO).await;
        for events in &mut events[1..] {
            until_members(events, 2).await;
        }
        groups[2].cast("of two".into()).await.expect("the group takes it");
        assert_eq!(messages(&mut events[1], 1).await, ["of two"], "{net:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g11_who_reads_the_cable_reads_no_message_of_a_group_with_a_secret() {
    for (sealed, is_read) in [(true, false), (false, true)] {
        let builder = || {
            let builder = Builder::<Causal>::causal("room").stateless();
            if sealed { builder.secret(secret(1)) } else { builder }
        };
        let net = tcp();
        let founder = net.node(1).await;
        let (group, mut events) = within(builder().create(&founder)).await.expect("founds the group");
        let (tap, heard) = tapped(&founder.addresses()[0]).await;
        let joiner = net.dialler(2).start().await.expect("the node starts");
        let (_joined, mut theirs) = within(builder().join(&joiner, &[tap])).await.expect("joins");
        until_members(&mut events, 2).await;
        group.cast("a word among friends".into()).await.expect("the group takes it");
        assert_eq!(messages(&mut theirs, 1).await, ["a word among friends"]);
        let heard = heard.lock().expect("nobody panics").clone();
        assert!(!heard.is_empty(), "the cable was tapped");
        assert_eq!(heard.windows(20).any(|window| window == b"a word among friends"), is_read);
    }
}

/// A cable to `there` that somebody listens to, in both directions.
async fn tapped(there: &Address) -> (Address, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("tcp://{}", listener.local_addr().expect("it has one"));
    let (heard, place) = (Arc::new(Mutex::new(Vec::new())), there.rest().to_owned());
    let taps = heard.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&place).await.expect("somebody listens there");
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                let taps = taps.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(count @ 1..) = from.read(&mut buffer).await {
                        taps.lock().expect("nobody panics").extend_from_slice(&buffer[..count]);
                        if to.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (address.parse().expect("an address"), heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn g11_a_group_admits_only_the_certificates_that_its_policy_names() {
    let mut nodes = Vec::new();
    for (id, certificates) in (1..).zip(certificates_for(&["member.room", "member.room", "guest.room"])) {
        let builder = Node::builder().id(id).transport(Tls::new(certificates)).listen("tls://127.0.0.1:0");
        nodes.push(builder.start().await.expect("the node starts"));
    }
    let [founder, member, guest] = &nodes[..] else { unreachable!("three certificates") };
    let builder = || {
        Builder::<Fifo>::fifo("room").stateless().admit(|_, credentials| match credentials {
            Some(Credentials::Certificate(certificate)) => {
                certificate.names().iter().any(|name| name == "member.room")
            }
            _ => false,
        })
    };
    let (group, mut events) = within(builder().create(founder)).await.expect("founds the group");
    let contacts = founder.addresses();
    let anybody = Builder::<Fifo>::fifo("room").stateless();
    let refused = within(anybody.limits(hasty()).join(guest, &contacts)).await.map(drop);
    assert!(matches!(refused, Err(JoinError::Deadline { .. })), "{refused:?}");
    assert!(group.stats().refused > 0);
    let (_joined, mut theirs) = within(builder().join(member, &contacts)).await.expect("joins");
    until_members(&mut events, 2).await;
    group.cast("hello".into()).await.expect("the group takes it");
    assert_eq!(messages(&mut theirs, 1).await, [Bytes::from("hello")]);
}
