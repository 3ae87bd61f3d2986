//! Whole connections over a simulated network under drawn plans of faults, with programs that are killed and started anew
//! (catalogue T5, T7, T8): what a connection delivers is a gapless beginning of what was sent, lane by lane; a healed network
//! lets everybody through; and the same seed is the same run.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quorate_transports::connection::{
    CodecId, Connection, ConnectionConfig, Deliver, Hello, Lane, Verdict, answer, dial,
};
use quorate_transports::fault::FaultHandle;
use quorate_transports::fault::model::{Chance, LatencyModel, LinkModel, LossModel, Rng};
use quorate_transports::mem::Mem;
use quorate_transports::sim::{SimNetwork, plan};
use quorate_transports::{Address, Identity, Incarnation, Listener, NodeId, Transport};
use tokio::sync::Notify;
use tokio::task::JoinSet;

const HOSTS: [&str; 3] = ["a", "b", "c"];

/// What was received: by connection (dialler's host, its life, its attempt) and lane, the next number expected.
#[derive(Default)]
struct Log {
    next: BTreeMap<(u64, u64, u64, usize), u64>,
    messages: u64,
    breaches: Vec<String>,
}

#[derive(Clone, Default)]
struct Checker(Arc<Mutex<Log>>, Arc<Notify>);

impl Checker {
    fn messages(&self) -> u64 {
        self.0.lock().unwrap().messages
    }

    /// Messages by the program that sent them.
    fn by_sender(&self) -> [u64; HOSTS.len()] {
        let mut counts = [0; HOSTS.len()];
        for (key, next) in &self.0.lock().unwrap().next {
            counts[key.0 as usize] += next;
        }
        counts
    }

    /// Waits for so many further messages of every sender for which `wanted` is true.
    async fn further(&self, count: u64, wanted: [bool; HOSTS.len()]) {
        let before = self.by_sender();
        loop {
            let arrival = self.1.notified();
            let now = self.by_sender();
            if (0..HOSTS.len()).all(|index| !wanted[index] || now[index] >= before[index] + count) {
                return;
            }
            arrival.await;
        }
    }
}

impl Deliver for Checker {
    fn poll_deliver(&mut self, _: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        let mut log = self.0.lock().unwrap();
        for message in messages.drain(..) {
            let word = |at: usize| u64::from_le_bytes(message[at * 8..at * 8 + 8].try_into().unwrap());
            let (connection, lane, number, size) = ((word(0), word(1), word(2)), word(3), word(4), word(5));
            let next = log.next.entry((connection.0, connection.1, connection.2, lane as usize)).or_default();
            let expected = *next;
            *next += 1;
            if number != expected || message.len() as u64 != HEAD + size {
                log.breaches.push(format!(
                    "{connection:?} lane {lane}: number {number} instead of {expected}, {} bytes for {size}",
                    message.len()
                ));
            }
            log.messages += 1;
        }
        self.1.notify_waiters();
        Poll::Ready(())
    }
}

/// Six words.
const HEAD: u64 = 48;

/// One life of one program on the simulated network.
async fn simulated(network: SimNetwork, index: usize, life: u64, seed: u64, checker: Checker) {
    let transport = network.transport(HOSTS[index]);
    let place: Address = format!("sim://{}:1", HOSTS[index]).parse().unwrap();
    let next: Address = format!("sim://{}:1", HOSTS[(index + 1) % HOSTS.len()]).parse().unwrap();
    let listener = transport.listen(&place).await.unwrap();
    program(transport, listener, next, (index, life), seed, checker).await;
}

/// One life of one program: accepts connections, and keeps one to the next program, over which it sends.
async fn program(
    transport: impl Transport,
    mut listener: Box<dyn Listener>,
    next: Address,
    (index, life): (usize, u64),
    seed: u64,
    checker: Checker,
) {
    let mut rng = Rng::labelled(seed, index as u64 * 1_000 + life);
    let identity = Identity::new(NodeId(index as u64), Incarnation(life));
    let hello = Hello::new(identity, CodecId(0), 1 << 20, &[listener.local_address()]);
    let config = ConnectionConfig::default();
    let accepting = {
        let (hello, config, checker) = (hello.clone(), config.clone(), checker.clone());
        async move {
            let mut serving = JoinSet::new();
            loop {
                let link = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
                let (hello, config, checker) = (hello.clone(), config.clone(), checker.clone());
                serving.spawn(async move {
                    if let Ok(established) = answer(link, &hello, &config, |_| Verdict::Accept).await {
                        let (_connection, driver) = established.start(&config, checker);
                        driver.await;
                    }
                });
                while serving.try_join_next().is_some() {}
            }
        }
    };
    let dialling = async {
        for attempt in 0.. {
            if let Ok(link) = transport.connect(&next).await
                && let Ok(established) = dial(link, &hello, &config).await
            {
                let (connection, driver) = established.start(&config, Checker::default());
                let sending = send(&connection, (index as u64, life, attempt), &mut rng);
                tokio::select! {
                    biased;
                    _ = driver => {}
                    () = sending => {}
                }
            }
            tokio::time::sleep(rng.duration(Duration::from_millis(10)..Duration::from_millis(300))).await;
        }
    };
    tokio::join!(accepting, dialling);
}

/// Sends numbered messages in all lanes until the connection ends.
async fn send(connection: &Connection, id: (u64, u64, u64), rng: &mut Rng) {
    let mut numbers = [0_u64; Lane::COUNT];
    loop {
        let lane = Lane::ALL[rng.below(4) as usize];
        let size = if rng.below(20) == 0 { rng.below(300_000) } else { rng.below(500) };
        let number = numbers[lane as usize];
        let head = [id.0, id.1, id.2, lane as u64, number, size].map(u64::to_le_bytes).concat();
        match connection.send(lane, &[&head], vec![3; size as usize].into()) {
            Ok(()) => numbers[lane as usize] += 1,
            Err(_) if connection.ready(lane).await.is_err() => return,
            Err(_) => {}
        }
        tokio::time::sleep(rng.duration(Duration::ZERO..Duration::from_millis(20))).await;
    }
}

/// One run. Returns the trace's hash and the messages that were received.
fn story(seed: u64) -> (u64, u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let network = SimNetwork::new(seed);
        let mut rng = Rng::labelled(seed, u64::MAX);
        network.set_default_link(LinkModel::drawn(&mut rng));
        let checker = Checker::default();
        let mut lives = [0; HOSTS.len()];
        let start =
            |index: usize, life| tokio::spawn(simulated(network.clone(), index, life, seed, checker.clone()));
        let mut programs: Vec<_> = (0..HOSTS.len()).map(|index| start(index, 0)).collect();
        let plan = plan::draw(seed, &HOSTS, Duration::from_secs(20));
        let killing = async {
            for _ in 0..3 {
                tokio::time::sleep(rng.duration(Duration::from_secs(1)..Duration::from_secs(8))).await;
                let index = rng.below(HOSTS.len() as u64) as usize;
                let is_kill = rng.below(2) == 0;
                if is_kill {
                    network.kill(HOSTS[index])
                } else {
                    network.crash(HOSTS[index])
                }
                programs[index].abort();
                if !is_kill {
                    tokio::time::sleep(rng.duration(Duration::from_millis(1)..Duration::from_secs(5))).await;
                    network.restart(HOSTS[index]);
                }
                lives[index] += 1;
                programs[index] = start(index, lives[index]);
            }
        };
        tokio::join!(network.carry_out(&plan), killing);
        network.set_default_link(LinkModel::LOCAL);
        // Silence is noticed within 8 s, attempts end within 10: then everybody has got through.
        tokio::time::sleep(Duration::from_secs(40)).await;
        let before = checker.0.lock().unwrap().next.clone();
        tokio::time::sleep(Duration::from_secs(5)).await;
        {
            let log = checker.0.lock().unwrap();
            assert!(log.breaches.is_empty(), "seed {seed}: {:#?}\n{plan:?}", log.breaches);
            for index in 0..HOSTS.len() as u64 {
                let moved = log
                    .next
                    .iter()
                    .any(|(key, next)| key.0 == index && before.get(key).is_none_or(|before| next > before));
                assert!(moved, "seed {seed}: {} does not get through\n{plan:?}", HOSTS[index as usize]);
            }
        }
        programs.iter().for_each(|program| program.abort());
        (network.trace_hash(), checker.messages())
    })
}

#[test]
fn t05_connections_keep_their_promises_under_every_drawn_plan() {
    for seed in 0..30 {
        let (_, messages) = story(seed);
        assert!(messages > 1_000, "seed {seed} moved {messages} messages only");
    }
}

#[test]
fn t05_a_run_of_whole_connections_repeats_bit_for_bit() {
    for seed in 1_000..1_005 {
        assert_eq!(story(seed), story(seed), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn t06_connections_over_faulty_memory_keep_their_promises() {
    let world = Mem::new();
    restless(|| world.clone(), "mem://").await;
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn t06_connections_over_faulty_tcp_keep_their_promises() {
    restless(quorate_transports::tcp::Tcp::new, "tcp://127.0.0.1:0").await;
}

/// Programs over a transport with losses, delays, resets and a partition as a stream has them.
async fn restless<T: Transport>(make: impl Fn() -> T, place: &str) {
    let faults = FaultHandle::new(6);
    let checker = Checker::default();
    let transports: Vec<_> = (0..HOSTS.len()).map(|index| faults.wrap(index as u64, make())).collect();
    let mut listeners = Vec::new();
    for transport in &transports {
        listeners.push(transport.listen(&place.parse().unwrap()).await.unwrap());
    }
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_address()).collect();
    let mut programs = JoinSet::new();
    for (index, (transport, listener)) in transports.into_iter().zip(listeners).enumerate() {
        let next = addresses[(index + 1) % HOSTS.len()].clone();
        programs.spawn(program(transport, listener, next, (index, 0), 6, checker.clone()));
    }
    let everybody = [true; HOSTS.len()];
    let story = async {
        checker.further(50, everybody).await;
        let restless = LinkModel {
            latency: LatencyModel::Uniform { min: Duration::ZERO, max: Duration::from_millis(5) },
            loss: LossModel::Independent(Chance::percent(5)),
            retransmission_timeout: Duration::from_millis(2),
            reset: Chance::ppm(5_000),
            ..LinkModel::PERFECT
        };
        faults.change(|network| network.set_default(restless));
        checker.further(200, everybody).await;
        // The way from 0 to 1 is closed: 1 and 2 go on to send to 2 and 0.
        faults.change(|network| network.cut(0, 1));
        checker.further(50, [false, true, true]).await;
        faults.change(|network| {
            network.heal_all();
            network.set_default(LinkModel::PERFECT);
        });
        checker.further(50, everybody).await;
    };
    tokio::time::timeout(Duration::from_secs(120), story).await.expect("somebody does not get through");
    let breaches = std::mem::take(&mut checker.0.lock().unwrap().breaches);
    assert!(breaches.is_empty(), "{breaches:#?}");
    assert!(faults.stats().resets > 0);
}
