//! Message passing in a company: the moment at which each mode returns, and operations that all work out together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::Node;
use quorate::socket::{CollectiveError, Communicator, Options, PassError, SendError};

use crate::support::{Net, everywhere, nets, within};

const LONG: Duration = Duration::from_secs(30);

async fn company(net: &Net, size: u32, options: &Options) -> Vec<(Communicator, Node)> {
    let mut nodes = Vec::new();
    for id in 0..size {
        nodes.push(net.node(u64::from(id) + 1).await);
    }
    let members: Arc<[_]> = nodes.iter().map(|node| node.addresses()[0].clone()).collect();
    let mut joining = Vec::new();
    for (rank, node) in nodes.into_iter().enumerate() {
        let mut options = options.clone();
        options.connect_wait = LONG;
        let members = members.clone();
        joining.push(tokio::spawn(async move {
            let joined = Communicator::join(&node, "company", &members, rank as u32, options).await;
            (joined.unwrap(), node)
        }));
    }
    let mut company = Vec::new();
    for joined in joining {
        company.push(within(joined).await.unwrap());
    }
    company
}

/// True when the future is not ready although the other side had every chance to do what it does by itself.
async fn waits<F: Future + Unpin>(future: &mut F) -> bool {
    tokio::time::timeout(Duration::from_millis(30), future).await.is_err()
}

#[tokio::test]
async fn s04_each_mode_returns_at_its_own_moment() {
    for net in nets() {
        let mut small = Options::default();
        small.window_messages = 4;
        small.queue_messages = 10;
        let company = company(&net, 2, &small).await;
        let (one, two) = (&company[0].0, &company[1].0);

        // Standard: as long as the other side has room. Nobody receives yet.
        for n in 0..4_u32 {
            within(one.send(1, 7, &n.to_le_bytes())).await.unwrap();
        }
        let mut fifth = Box::pin(one.send(1, 7, "one more"));
        assert!(waits(&mut fifth).await, "send waits for room at the other side");
        drop(fifth);
        // Buffered: as long as there is room here.
        for n in 4..14_u32 {
            one.bsend(1, 7, &n.to_le_bytes()).unwrap();
        }
        assert_eq!(one.bsend(1, 7, "too much"), Err(PassError::NotSent(SendError::Full)));
        for n in 0..13_u32 {
            assert_eq!(within(two.recv(Some(0), Some(7))).await.unwrap().body, n.to_le_bytes()[..]);
        }
        // Immediate: at once; its handle waits for the moment of send.
        let last = within(two.recv(None, None)).await.unwrap();
        assert_eq!((last.from, last.tag, last.body), (0, 7, Bytes::copy_from_slice(&13_u32.to_le_bytes())));
        let sending = one.isend(1, 8, "immediate".into()).unwrap();
        within(sending.wait()).await.unwrap();

        // Synchronous: when a receive has taken it, not when it has arrived.
        let mut ssend = Box::pin(one.ssend(1, 9, "synchronous"));
        assert!(waits(&mut ssend).await, "ssend waits for the receive");
        let issend = one.issend(1, 10, "both".into()).unwrap();
        let mut issend = Box::pin(issend.wait());
        assert!(waits(&mut issend).await, "issend's handle waits for the receive");
        let letter = within(two.recv(None, Some(9))).await.unwrap();
        within(ssend).await.unwrap();
        assert!(waits(&mut issend).await, "another receive is not the one");
        within(two.recv(None, Some(10))).await.unwrap();
        within(issend).await.unwrap();
        assert_eq!(within(two.reply(letter, "?")).await, Err(PassError::NoReplyWanted));

        // With a reply: when the other side has worked on it, not when it was received.
        let mut asking = Box::pin(one.sendrecv(1, 11, "question"));
        assert!(waits(&mut asking).await);
        let letter = within(two.recv(None, Some(11))).await.unwrap();
        assert!(waits(&mut asking).await, "received is not processed");
        within(two.reply(letter, "answer")).await.unwrap();
        assert_eq!(&within(asking).await.unwrap()[..], b"answer");

        // Ready: only for a receive that waits.
        assert_eq!(within(one.rsend(1, 12, "nobody")).await, Err(PassError::NotReady { rank: 1 }));
        let mut posted = two.irecv(Some(0), Some(12)).unwrap();
        assert!(posted.test().is_none());
        within(one.rsend(1, 12, "ready")).await.unwrap();
        assert_eq!(&posted.test().unwrap().body[..], b"ready");

        // The one of the immediate send was there all the time: tags choose.
        assert_eq!(&within(two.recv(Some(0), Some(8))).await.unwrap().body[..], b"immediate");
    }
}

#[tokio::test]
async fn s04_receives_choose_by_source_and_tag_or_take_any() {
    for net in nets() {
        let company = company(&net, 3, &Options::default()).await;
        let all: Vec<_> = company.iter().map(|(communicator, _)| communicator).collect();
        for from in [1, 2, 0] {
            for tag in 0..3 {
                within(all[from].send(0, tag, format!("{from}.{tag}"))).await.unwrap();
            }
        }
        let text = |letter: quorate::socket::Letter| String::from_utf8(letter.body.to_vec()).unwrap();
        assert_eq!(text(within(all[0].recv(Some(2), Some(1))).await.unwrap()), "2.1");
        assert_eq!(text(within(all[0].recv(Some(1), None)).await.unwrap()), "1.0");
        // A receive that is given up gives its message to the next one.
        let given_up = all[0].irecv(Some(1), Some(2)).unwrap();
        drop(given_up);
        let mut rest = Vec::new();
        for _ in 0..7 {
            rest.push(text(within(all[0].recv(None, None)).await.unwrap()));
        }
        rest.sort();
        assert_eq!(rest, ["0.0", "0.1", "0.2", "1.1", "1.2", "2.0", "2.2"]);
        let nobody = all[0].recv(Some(3), None).await;
        assert_eq!(nobody, Err(PassError::NoMember { rank: 3 }));
        assert_eq!(within(all[0].send(3, 0, "?")).await, Err(PassError::NoMember { rank: 3 }));
    }
}

async fn together(net: Net) {
    let company = company(&net, 5, &Options::default()).await;
    let mut working = Vec::new();
    for (communicator, node) in company {
        working.push(tokio::spawn(async move {
            let rank = communicator.rank();
            let own = Bytes::from(format!("{rank};"));
            let join = |one: &[u8], two: &[u8]| Bytes::from([one, two].concat());
            communicator.barrier().await.unwrap();
            let told = communicator.broadcast(3, own.clone()).await.unwrap();
            assert_eq!(&told[..], b"3;");
            let parts = (0..5).map(|to| format!("{rank}>{to}").into()).collect::<Vec<Bytes>>();
            let part = communicator.scatter(1, parts.clone()).await.unwrap();
            assert_eq!(part, format!("1>{rank}"));
            let all: Vec<_> = (0..5).map(|rank| Bytes::from(format!("{rank};"))).collect();
            let gathered = communicator.gather(4, own.clone()).await.unwrap();
            assert_eq!(gathered, if rank == 4 { all.clone() } else { vec![] });
            assert_eq!(communicator.all_gather(own.clone()).await.unwrap(), all);
            let reduced = communicator.reduce(2, own.clone(), join).await.unwrap();
            assert_eq!(reduced, (rank == 2).then(|| "0;1;2;3;4;".into()));
            assert_eq!(&communicator.all_reduce(own.clone(), join).await.unwrap()[..], b"0;1;2;3;4;");
            let upto = all[..=rank as usize].concat();
            assert_eq!(communicator.scan(own, join).await.unwrap(), upto);
            let exchanged = communicator.all_to_all(parts).await.unwrap();
            assert_eq!(exchanged, (0..5).map(|from| format!("{from}>{rank}")).collect::<Vec<_>>());
            communicator.barrier().await.unwrap();
            (communicator, node)
        }));
    }
    let mut company = Vec::new();
    for done in working {
        company.push(within(done).await.unwrap());
    }
    // One dies: all others get an error, and get it again.
    let (dead, node) = company.remove(3);
    drop((dead, node));
    for (communicator, _) in &company {
        let failed = within(communicator.barrier()).await;
        assert_eq!(failed, Err(CollectiveError::Gone { rank: 3 }));
        assert!(within(communicator.all_gather(Bytes::new())).await.is_err());
    }
}

#[tokio::test]
async fn s05_all_members_work_operations_out_together() {
    everywhere(nets(), together).await;
}
