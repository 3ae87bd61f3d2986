//! Peers that break the rules of sockets, or vanish at bad moments, as a node can that writes its frames itself.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quorate::Node;
use quorate::node::{Channel, ChannelGuard, ChannelHandler, Identity, Lane, Limits};
use quorate::socket::{
    Options, Pair, Publisher, Pull, Push, ReceiveError, Replier, Requester, SendError, Subscriber, Surveyor,
    WhenFull,
};
use quorate_transports::mem::Mem;

use crate::support::{nets, until, within};

const LONG: Duration = Duration::from_secs(30);
const PULL: u8 = 3;
const PUSH: u8 = 2;
const REPLIER: u8 = 7;
const RESPONDENT: u8 = 11;
pub(crate) const WELCOME: u8 = 4;
pub(crate) const REJECT: u8 = 5;
const CLOSE: u8 = 7;

/// The frames that came.
#[derive(Default)]
struct Heard(Mutex<Vec<Bytes>>);

impl ChannelHandler for Heard {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        self.0.lock().unwrap().append(frames);
        Poll::Ready(())
    }
}

/// The end of a link whose frames are written by hand.
pub(crate) struct Raw {
    node: Node,
    to: Identity,
    name: &'static str,
    own: Channel,
    heard: Arc<Heard>,
    _guard: ChannelGuard,
    /// The other side's number for the link.
    link: u32,
}

impl Raw {
    /// Says hello to a bound socket; the kind of its answer.
    pub(crate) async fn hello(node: &Node, to: &Node, name: &'static str, role: u8, own: u64) -> (Self, u8) {
        let identity = node.connect(&to.addresses()[0]).await.unwrap();
        let (own, heard) = (Channel(own), Arc::new(Heard::default()));
        let guard = node.open(own, heard.clone()).unwrap();
        let mut raw = Self { node: node.clone(), to: identity, name, own, heard, _guard: guard, link: 0 };
        let window = [&(1_u64 << 16).to_le_bytes()[..], &(1_u64 << 20).to_le_bytes()].concat();
        let own = raw.own.0.to_le_bytes();
        raw.say(&[&[3, 1, role], &own[..], &7_u32.to_le_bytes(), &window, &window, &[0, 0]].concat());
        until(|| raw.heard(WELCOME).or(raw.heard(REJECT)).is_some()).await;
        let answer = raw.heard(WELCOME).or(raw.heard(REJECT)).unwrap();
        if answer[0] == WELCOME {
            raw.link = u32::from_le_bytes(answer[5..9].try_into().unwrap());
        }
        (raw, answer[0])
    }

    fn say(&self, frame: &[u8]) {
        let channel = Channel::named("socket", self.name);
        self.node.send_to_life(self.to, Lane::Ordinary, channel, &[frame], Bytes::new()).unwrap();
    }

    /// A data frame that begins at message `messages` and byte `bytes`, as it says.
    pub(crate) fn data(&self, messages: u64, bytes: u64, items: &[u8]) {
        let place = [messages.to_le_bytes(), bytes.to_le_bytes()].concat();
        self.say(&[&[1], &self.link.to_le_bytes()[..], &place, items].concat());
    }

    /// Says that it has sent so many messages and wants the link to end.
    pub(crate) fn close(&self, sent: u64) {
        let counts = [sent.to_le_bytes(), [0; 8]].concat();
        self.say(&[&[CLOSE], &self.link.to_le_bytes()[..], &counts].concat());
    }

    /// A frame of any kind, for the own link or for none.
    pub(crate) fn lie(&self, kind: u8, is_own: bool, rest: &[u8]) {
        let link = if is_own { self.link } else { self.link.wrapping_add(1) };
        self.say(&[&[kind], &link.to_le_bytes()[..], rest].concat());
    }

    /// The first frame of a kind.
    fn heard(&self, kind: u8) -> Option<Bytes> {
        self.heard.0.lock().unwrap().iter().find(|frame| frame[0] == kind).cloned()
    }
}

pub(crate) fn item(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

fn options(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    change(&mut options);
    options
}

#[tokio::test]
async fn s03_a_writer_that_lies_about_its_place_fills_no_more_than_its_window() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "work", options(|o| o.window_bytes = 10_000)).unwrap();
        let (liar, answer) = Raw::hello(&there, &here, "work", PUSH, 1).await;
        assert_eq!(answer, WELCOME);
        for _ in 0..100 {
            // Each says that it is the first.
            liar.data(0, 0, &item(&[0; 1_000]));
        }
        until(|| pull.stats().malformed == 1).await;
        assert_eq!(pull.stats().links, 0);
        // The first counts; the others come too late.
        assert!(pull.try_receive().is_ok() && pull.try_receive().is_err());
        assert_eq!((pull.stats().received, pull.stats().late), (1, 9));
        until(|| pull.stats().stale > 0).await;
    }
}

#[tokio::test]
async fn s03_a_writer_that_claims_to_be_far_ahead_is_cut_and_disturbs_no_count() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
        let push = Push::connect(&there, "work", &here.addresses()[0], Options::default()).await.unwrap();
        for own in 1..=3 {
            let (liar, _) = Raw::hello(&there, &here, "work", PUSH, own).await;
            liar.data(u64::MAX, u64::MAX, &[]);
            until(|| pull.stats().malformed == own).await;
        }
        assert_eq!((pull.stats().links, pull.stats().lost), (1, 0));
        within(push.send("still here")).await.unwrap();
        assert_eq!(&within(pull.receive()).await.unwrap().body[..], b"still here");
    }
}

#[tokio::test]
async fn s03_a_peer_that_comes_sends_and_goes_again_and_again_is_turned_away_until_it_is_read() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "work", options(|o| o.links_max = 4)).unwrap();
        let mut rounds = 0;
        loop {
            let (raw, answer) = Raw::hello(&there, &here, "work", PUSH, rounds + 1).await;
            if answer == REJECT {
                break;
            }
            rounds += 1;
            // Every second one makes no sense, which its reader finds.
            raw.data(0, 0, if rounds % 2 == 0 { &[1] } else { &[0, 0, 0, 0] });
            raw.close(0);
            until(|| pull.stats().links_lost == rounds).await;
        }
        assert_eq!(rounds, 16);
        while pull.try_receive().is_ok() {}
        assert_eq!((pull.stats().received, pull.stats().malformed), (8, 8));
        let (_raw, answer) = Raw::hello(&there, &here, "work", PUSH, 100).await;
        assert_eq!(answer, WELCOME);
    }
}

#[tokio::test]
async fn s03_closing_never_takes_silence_for_arrival() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        // The other side's window is not this one's.
        for (own, goes) in [(1, false), (2, true)] {
            let push = Push::bind(&here, "work", options(|o| o.window_messages = 10)).unwrap();
            let (raw, _) = Raw::hello(&there, &here, "work", PULL, own).await;
            for _ in 0..5 {
                within(push.send("work")).await.unwrap();
            }
            let closing = tokio::spawn(push.close(if goes { LONG } else { Duration::from_millis(20) }));
            until(|| raw.heard(CLOSE).is_some()).await;
            if goes {
                there.shutdown(LONG).await;
            }
            let left = within(closing).await.unwrap();
            assert_eq!((left.unsent, left.unconfirmed, left.links.len()), (0, 5, 1));
        }
    }
}

#[tokio::test]
async fn s03_both_ends_may_close_at_once_and_both_know_that_all_arrived() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        for _ in 0..20 {
            let one = Pair::bind(&here, "pair", Options::default()).unwrap();
            let two = Pair::connect(&there, "pair", &here.addresses()[0], Options::default()).await.unwrap();
            within(one.send("to two")).await.unwrap();
            within(two.send("to one")).await.unwrap();
            let (first, second) = within(async { tokio::join!(one.close(LONG), two.close(LONG)) }).await;
            assert!(first.is_nothing() && second.is_nothing(), "{first:?} {second:?}");
        }
    }
}

#[tokio::test]
async fn s03_a_publisher_that_waited_for_a_full_lane_goes_on_when_it_has_room() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let publisher =
            Publisher::bind(&here, "news", options(|o| o.when_full = Some(WhenFull::Wait))).unwrap();
        // So large that no grant is due.
        let wide = options(|o| o.window_bytes = 1 << 40);
        let mut subscriber = Subscriber::connect(&there, "news", &here.addresses()[0], wide).await.unwrap();
        within(subscriber.subscribe("")).await.unwrap();
        let body = Bytes::from(vec![0; 700_000]);
        let publishing = async {
            for _ in 0..40 {
                publisher.publish("", body.clone()).await.unwrap();
            }
        };
        let reading = async {
            for _ in 0..40 {
                assert_eq!(subscriber.receive().await.unwrap().body.len(), body.len());
            }
        };
        within(async { tokio::join!(publishing, reading) }).await;
    }
}

#[tokio::test]
async fn s03_only_who_was_asked_can_answer() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let asking = Requester::bind(&here, "ask", Options::default()).unwrap();
        let surveyor = Surveyor::bind(&here, "survey", Options::default()).unwrap();
        let address = &here.addresses()[0];
        // Requests go to the links in turn: the first one to the second.
        let (forger, _) = Raw::hello(&there, &here, "ask", REPLIER, 1).await;
        let mut replier = Replier::connect(&there, "ask", address, Options::default()).await.unwrap();
        let asked = async { within(asking.request("?")).await.unwrap() };
        let answered = async {
            let request = within(replier.receive()).await.unwrap();
            // Numbers of requests are easy to guess.
            let ids = (0..8_u64).flat_map(|turn| item(&[&(turn << 32).to_le_bytes()[..], b"lie"].concat()));
            forger.data(0, 0, &ids.collect::<Vec<_>>());
            until(|| asking.stats().received == 8).await;
            request.reply("truth").await.unwrap();
        };
        assert_eq!(&tokio::join!(asked, answered).0[..], b"truth");

        let mut survey = surveyor.survey("nobody is there yet", LONG).unwrap();
        let (forger, _) = Raw::hello(&there, &here, "survey", RESPONDENT, 2).await;
        forger.data(0, 0, &item(&[&1_u64.to_le_bytes()[..], b"lie"].concat()));
        until(|| surveyor.stats().received == 1).await;
        assert_eq!(within(survey.next()).await, None);
    }
}

#[tokio::test]
async fn s03_who_takes_small_messages_only_does_not_keep_large_ones_from_others() {
    for net in [Mem::new(), Mem::new()] {
        let builder = |id: u64| Node::builder().id(id).listen("mem://").transport(net.clone());
        let (here, there) = (builder(1).start().await.unwrap(), builder(2).start().await.unwrap());
        let mut limits = Limits::default();
        limits.connection.message_bytes_max = 2_000;
        let small = builder(3).limits(limits).start().await.unwrap();
        let publisher = Publisher::bind(&here, "news", Options::default()).unwrap();
        let push = Push::bind(&here, "work", Options::default()).unwrap();
        let address = &here.addresses()[0];
        let narrow = Subscriber::connect(&small, "news", address, Options::default()).await.unwrap();
        let wide = Subscriber::connect(&there, "news", address, Options::default()).await.unwrap();
        within(narrow.subscribe("")).await.unwrap();
        assert!(publisher.publish("", vec![0; 10_000]).await.is_err());
        within(wide.subscribe("")).await.unwrap();
        assert_eq!(publisher.publish("", vec![0; 10_000]).await, Ok(1));
        let _narrow = Pull::connect(&small, "work", address, Options::default()).await.unwrap();
        assert!(matches!(within(push.send(vec![0; 10_000])).await, Err(SendError::TooLarge { .. })));
        let _wide = Pull::connect(&there, "work", address, Options::default()).await.unwrap();
        for _ in 0..4 {
            within(push.send(vec![0; 10_000])).await.unwrap();
        }
    }
}

#[tokio::test]
async fn s03_whoever_waits_on_a_socket_is_told_when_its_node_stops() {
    for net in nets() {
        let (here, there) = (net.node(1).await, net.node(2).await);
        let mut pull = Pull::bind(&here, "work", options(|o| o.window_messages = 1)).unwrap();
        let forever = options(|o| o.connect_wait = Duration::MAX);
        let push = Push::connect(&there, "work", &here.addresses()[0], forever).await.unwrap();
        within(push.send("one")).await.unwrap();
        let sending = tokio::spawn(async move { push.send("two").await });
        until(|| !pull.links().is_empty()).await;
        there.shutdown(LONG).await;
        assert_eq!(within(sending).await.unwrap(), Err(SendError::Closed));
        // What came before is there still.
        assert_eq!(&within(pull.receive()).await.unwrap().body[..], b"one");
        let receiving = tokio::spawn(async move { pull.receive().await });
        here.shutdown(LONG).await;
        assert_eq!(within(receiving).await.unwrap(), Err(ReceiveError::Closed));
    }
}

#[tokio::test]
async fn s03_small_messages_in_a_row_stay_within_what_the_other_node_takes() {
    for net in nets() {
        let mut limits = Limits::default();
        limits.connection.message_bytes_max = 1_100;
        let here = net.builder(1).limits(limits).start().await.unwrap();
        let there = net.node(2).await;
        let mut pull = Pull::bind(&here, "work", Options::default()).unwrap();
        let push = Push::connect(&there, "work", &here.addresses()[0], Options::default()).await.unwrap();
        let refused = push.try_send(vec![0; 1_100]).unwrap_err();
        assert!(matches!(refused, SendError::TooLarge { .. }), "{refused:?}");
        for n in 0..500_u64 {
            let mut body = n.to_le_bytes().to_vec();
            body.resize(8 + n as usize % 300, 0);
            push.send(&body).await.unwrap();
            // Not even behind one that has not left.
            let refused = push.try_send(vec![0; 1_100]).unwrap_err();
            assert!(matches!(refused, SendError::TooLarge { .. } | SendError::Full), "{refused:?}");
        }
        for n in 0..500 {
            let body = within(pull.receive()).await.unwrap().body;
            assert_eq!(body[..8], u64::to_le_bytes(n));
        }
        assert_eq!(push.stats().links_lost, 0);
    }
}
