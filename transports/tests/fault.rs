//! Faults on real transports (catalogue T6): memory under paused time, and TCP. No assertion depends on how fast anything
//! is; the only waits are for things that must happen.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::fault::model::{Bandwidth, Chance, LatencyModel, LinkModel, LossModel};
use quorate_transports::fault::{FaultConfig, FaultHandle, Faulty, Manner};
use quorate_transports::mem::Mem;
use quorate_transports::{Address, Inbox, Link, LinkError, Outbox, Transport, TransportError};
use tokio::time::Instant;

const MAX: usize = 1 << 20;
const FRAMES: u32 = 1_000;

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

struct End {
    link: Link,
    outbox: Outbox,
    inbox: Inbox,
}

impl End {
    fn new(link: Link) -> Self {
        Self { link, outbox: Outbox::new(MAX), inbox: Inbox::new(MAX) }
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        self.outbox.push(&[frame]).unwrap();
        poll_fn(|cx| self.link.sender.poll_send(cx, &mut self.outbox)).await
    }

    /// Sends `FRAMES` numbered frames and closes.
    async fn send_numbers(&mut self) {
        for number in 0..FRAMES {
            self.send(&number.to_le_bytes()).await.unwrap();
        }
        poll_fn(|cx| self.link.sender.poll_close(cx)).await.unwrap();
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            if let Some(frame) = self.inbox.next_frame().unwrap() {
                return Ok(Some(frame));
            }
            if !poll_fn(|cx| self.link.receiver.poll_receive(cx, &mut self.inbox)).await? {
                return Ok(None);
            }
        }
    }

    /// Everything up to the clean end, as numbers.
    async fn receive_numbers(&mut self) -> Vec<u32> {
        let mut numbers = Vec::new();
        while let Some(frame) = self.receive().await.unwrap() {
            numbers.push(u32::from_le_bytes(frame[..].try_into().unwrap()));
        }
        numbers
    }
}

/// A link from site 1 to site 2.
async fn linked<T: Transport>(one: &Faulty<T>, two: &Faulty<T>, place: &str) -> (End, End) {
    let mut listener = two.listen(&address(place)).await.unwrap();
    let target = listener.local_address();
    let (dialled, accepted) = tokio::join!(one.connect(&target), poll_fn(|cx| listener.poll_accept(cx)));
    (End::new(dialled.unwrap()), End::new(accepted.unwrap()))
}

async fn over_memory(faults: &FaultHandle) -> (End, End) {
    let world = Mem::new();
    linked(&faults.wrap(1, world.clone()), &faults.wrap(2, world), "mem://").await
}

#[cfg(feature = "tcp")]
async fn over_tcp(faults: &FaultHandle) -> (End, End) {
    use quorate_transports::tcp::Tcp;
    linked(&faults.wrap(1, Tcp::new()), &faults.wrap(2, Tcp::new()), "tcp://127.0.0.1:0").await
}

/// Numbers through a link with these faults.
async fn numbers(faults: &FaultHandle, model: LinkModel, (mut a, mut b): (End, End)) -> Vec<u32> {
    faults.change(|network| network.set_default(model));
    let (_, received) = tokio::join!(a.send_numbers(), b.receive_numbers());
    received
}

fn lossy() -> LinkModel {
    LinkModel {
        loss: LossModel::Independent(Chance::percent(20)),
        duplication: Chance::percent(10),
        ..LinkModel::PERFECT
    }
}

/// Loss and duplication by frames: about so many, the others in order.
fn assert_lossy(received: &[u32], faults: &FaultHandle) {
    let mut distinct = received.to_vec();
    distinct.dedup();
    assert!(distinct.is_sorted());
    let stats = faults.stats();
    assert_eq!(stats.frames, u64::from(FRAMES));
    assert_eq!(distinct.len() as u64, stats.frames - stats.lost);
    assert_eq!(received.len() - distinct.len(), stats.duplicated as usize);
    assert!((150..250).contains(&stats.lost) && (50..120).contains(&stats.duplicated), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn t06_frames_are_lost_and_doubled_over_memory() {
    let faults = FaultHandle::new(1);
    faults.set_manner(Manner::Frames);
    let ends = over_memory(&faults).await;
    assert_lossy(&numbers(&faults, lossy(), ends).await, &faults);
}

#[tokio::test(start_paused = true)]
async fn t06_the_first_frames_of_a_link_may_be_spared() {
    let mut config = FaultConfig::default();
    config.frames_spared = 2;
    let faults = FaultHandle::with_config(1, config);
    faults.set_manner(Manner::Frames);
    let loss = LossModel::Independent(Chance::percent(100));
    let ends = over_memory(&faults).await;
    assert_eq!(numbers(&faults, LinkModel { loss, ..LinkModel::PERFECT }, ends).await, [0, 1]);
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t06_frames_are_lost_and_doubled_over_tcp() {
    let faults = FaultHandle::new(1);
    faults.set_manner(Manner::Frames);
    let ends = over_tcp(&faults).await;
    assert_lossy(&numbers(&faults, lossy(), ends).await, &faults);
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t06_delayed_and_reordered_frames_all_arrive_over_tcp() {
    let faults = FaultHandle::new(2);
    faults.set_manner(Manner::Frames);
    let ends = over_tcp(&faults).await;
    let model = LinkModel {
        latency: LatencyModel::Uniform { min: Duration::ZERO, max: Duration::from_millis(20) },
        ..LinkModel::PERFECT
    };
    let mut received = numbers(&faults, model, ends).await;
    assert!(!received.is_sorted(), "none was overtaken");
    received.sort_unstable();
    assert_eq!(received, (0..FRAMES).collect::<Vec<_>>());
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t06_stream_faults_keep_order_and_content_over_tcp() {
    let faults = FaultHandle::new(3);
    let ends = over_tcp(&faults).await;
    let model = LinkModel {
        latency: LatencyModel::Uniform { min: Duration::ZERO, max: Duration::from_millis(5) },
        retransmission_timeout: Duration::from_millis(1),
        reordering: Chance::percent(50),
        ..lossy()
    };
    assert_eq!(numbers(&faults, model, ends).await, (0..FRAMES).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn t06_a_throttled_link_takes_its_time() {
    let faults = FaultHandle::new(4);
    let ends = over_memory(&faults).await;
    let bandwidth = Some(Bandwidth { bytes_per_second: 1_000, queue: Duration::ZERO });
    let start = Instant::now();
    let received = numbers(&faults, LinkModel { bandwidth, ..LinkModel::PERFECT }, ends).await;
    assert_eq!(received.len(), FRAMES as usize);
    // 4,000 bytes of frames at 1,000 bytes a second, in virtual time.
    assert_eq!(start.elapsed(), Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn t06_corruption_flips_one_bit_of_a_frame() {
    let faults = FaultHandle::new(5);
    let (mut a, mut b) = over_memory(&faults).await;
    faults.change(|network| {
        network.set_default(LinkModel { corruption: Chance::ALWAYS, ..LinkModel::PERFECT })
    });
    a.send(&[0; 100]).await.unwrap();
    let got = b.receive().await.unwrap().unwrap();
    assert_eq!(got.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    assert_eq!(faults.stats().corrupted, 1);
}

/// A partition stalls a stream in both directions, and healing lets it go on.
async fn partition_and_heal(faults: FaultHandle, (mut a, mut b): (End, End)) {
    a.send(b"before").await.unwrap();
    assert_eq!(b.receive().await.unwrap().unwrap(), "before");
    faults.change(|network| network.partition(&[&[1], &[2]]));
    let sending = tokio::spawn(async move {
        a.send(b"during").await.unwrap();
        a
    });
    let receiving = tokio::spawn(async move {
        let got = b.receive().await.unwrap().unwrap();
        (got, b)
    });
    // Whatever could run has run; nothing came through.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!sending.is_finished() && !receiving.is_finished());
    faults.change(|network| network.heal_all());
    let (got, mut b) = receiving.await.unwrap();
    assert_eq!(got, "during");
    let mut a = sending.await.unwrap();
    b.send(b"back").await.unwrap();
    assert_eq!(a.receive().await.unwrap().unwrap(), "back");
}

#[tokio::test(start_paused = true)]
async fn t06_a_partition_stalls_a_stream_until_it_heals_over_memory() {
    let faults = FaultHandle::new(6);
    let ends = over_memory(&faults).await;
    partition_and_heal(faults, ends).await;
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t06_a_partition_stalls_a_stream_until_it_heals_over_tcp() {
    let faults = FaultHandle::new(6);
    let ends = over_tcp(&faults).await;
    partition_and_heal(faults, ends).await;
}

#[tokio::test(start_paused = true)]
async fn t06_a_one_way_cut_loses_frames_of_that_way_only() {
    let faults = FaultHandle::new(7);
    faults.set_manner(Manner::Frames);
    let (mut a, mut b) = over_memory(&faults).await;
    faults.change(|network| network.partition_one_way(&[1], &[2]));
    a.send(b"lost").await.unwrap();
    b.send(b"heard").await.unwrap();
    assert_eq!(a.receive().await.unwrap().unwrap(), "heard");
    faults.change(|network| network.heal_all());
    a.send(b"found").await.unwrap();
    assert_eq!(b.receive().await.unwrap().unwrap(), "found");
    assert_eq!(faults.stats().cut, 1);
}

#[tokio::test(start_paused = true)]
async fn t06_a_cut_outlives_the_listener_of_its_links() {
    let faults = FaultHandle::new(8);
    // The listener is gone when `linked` returns; the sites of its links are not forgotten.
    let (mut a, mut b) = over_memory(&faults).await;
    faults.set_manner(Manner::Frames);
    faults.change(|network| network.cut_one_way(2, 1));
    b.send(b"lost").await.unwrap();
    assert_eq!(faults.stats().cut, 1);
    a.send(b"heard").await.unwrap();
    assert_eq!(b.receive().await.unwrap().unwrap(), "heard");
}

#[tokio::test(start_paused = true)]
async fn t06_connecting_through_a_cut_times_out_or_waits_for_the_heal() {
    let faults = FaultHandle::new(9);
    let world = Mem::new();
    let (one, two) = (faults.wrap(1, world.clone()), faults.wrap(2, world));
    let listener = two.listen(&address("mem://two")).await.unwrap();
    faults.change(|network| network.cut_one_way(2, 1));
    let error = one.connect(&listener.local_address()).await.unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { limit_ms: 1_000, .. }), "{error}");
    let target = listener.local_address();
    let (connected, ()) = tokio::join!(one.connect(&target), async {
        tokio::task::yield_now().await;
        faults.change(|network| network.heal_all());
    });
    connected.unwrap();
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t06_a_reset_breaks_both_sides_of_a_tcp_link() {
    let faults = FaultHandle::new(10);
    let (mut a, mut b) = over_tcp(&faults).await;
    faults.change(|network| network.set_default(LinkModel { reset: Chance::ALWAYS, ..LinkModel::PERFECT }));
    a.send(b"x").await.unwrap();
    assert!(matches!(b.receive().await, Err(LinkError::Broken { .. })));
    assert!(matches!(b.send(b"y").await, Err(LinkError::Broken { .. })));
    drop(b);
    assert!(!matches!(a.receive().await, Ok(Some(_))));
    assert_eq!(faults.stats().resets, 1);
}

#[tokio::test(start_paused = true)]
async fn t06_what_is_held_back_is_bounded() {
    let faults = FaultHandle::new(11);
    let (mut a, mut b) = over_memory(&faults).await;
    let latency = LatencyModel::Constant(Duration::from_secs(3_600));
    faults.change(|network| network.set_default(LinkModel { latency, ..LinkModel::PERFECT }));
    let frame = vec![1; 64 * 1024];
    let sending = async {
        let mut sent = 0;
        // The timeout passes as soon as nobody can go on: time is paused.
        while tokio::time::timeout(Duration::from_secs(1), a.send(&frame)).await.is_ok() {
            sent += frame.len();
        }
        sent
    };
    let sent = tokio::select! {
        biased;
        sent = sending => sent,
        got = b.receive() => panic!("an hour too early: {got:?}"),
    };
    assert!(sent < 6 << 20, "{sent} bytes were taken");
    assert!(sent > 3 << 20, "{sent} bytes only");
}

#[tokio::test(start_paused = true)]
async fn t06_datagrams_suffer_the_same_faults() {
    let faults = FaultHandle::new(12);
    let world = Mem::new();
    let mut one = faults.wrap(1, world.clone()).bind(&address("mem://one")).await.unwrap();
    let mut two = faults.wrap(2, world).bind(&address("mem://two")).await.unwrap();
    faults.change(|network| network.set_default(lossy()));
    let mut received = 0;
    for number in 0..FRAMES {
        poll_fn(|cx| one.poll_send_to(cx, &address("mem://two"), &number.to_le_bytes())).await.unwrap();
        while let Ok(got) =
            tokio::time::timeout(Duration::from_millis(1), poll_fn(|cx| two.poll_receive_from(cx))).await
        {
            assert_eq!(got.unwrap().0, address("mem://one"));
            received += 1;
        }
    }
    let stats = faults.stats();
    assert_eq!(received, u64::from(FRAMES) - stats.lost + stats.duplicated);
    assert!(stats.lost > 100 && stats.duplicated > 50, "{stats:?}");
    faults.change(|network| network.isolate(2));
    poll_fn(|cx| one.poll_send_to(cx, &address("mem://two"), b"x")).await.unwrap();
    assert_eq!(faults.stats().cut, 1);
}
