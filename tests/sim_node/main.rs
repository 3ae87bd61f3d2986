//! Whole nodes over a simulated network (catalogue T5): under drawn plans of faults, with nodes that are killed and started
//! anew, nothing is heard twice, events come in pairs and enclose what is heard, a healed network lets everybody
//! through, and a seed repeats bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quorate::node::{Channel, ChannelGuard, ChannelHandler, PeerEvent};
use quorate::{Address, Identity, Incarnation, Lane, Node, NodeId};
use quorate_transports::fault::model::{LinkModel, Rng};
use quorate_transports::sim::{SimNetwork, plan};

const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
const CHANNEL: Channel = Channel::named("test", "swarm");

/// What one life of one node was told.
#[derive(Default)]
struct Heard {
    up: BTreeSet<Identity>,
    /// The numbers that came from each sender's life and lane.
    numbers: BTreeMap<(Identity, u64), BTreeSet<u64>>,
    messages: u64,
    breaches: Vec<String>,
}

#[derive(Default)]
struct Ear(Mutex<Heard>);

impl ChannelHandler for Ear {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let mut heard = self.0.lock().unwrap();
        for frame in frames.drain(..) {
            let word = |at: usize| u64::from_le_bytes(frame[at * 8..at * 8 + 8].try_into().unwrap());
            let (lane, number, size) = (word(0), word(1), word(2));
            if frame.len() as u64 != 24 + size {
                heard.breaches.push(format!("{from}: {} bytes instead of {}", frame.len(), 24 + size));
            }
            if !heard.up.contains(&from) {
                heard.breaches.push(format!("{from} speaks and is not up"));
            }
            if !heard.numbers.entry((from, lane)).or_default().insert(number) {
                heard.breaches.push(format!("{from} lane {lane}: {number} again"));
            }
            heard.messages += 1;
        }
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        let mut heard = self.0.lock().unwrap();
        let breach = match event {
            PeerEvent::Up(peer) => {
                let others = heard.up.iter().filter(|other| other.node == peer.node).count();
                heard.up.insert(peer);
                (others > 0).then(|| format!("{peer} is up although one of its lives is"))
            }
            PeerEvent::Down(peer) => {
                (!heard.up.remove(&peer)).then(|| format!("{peer} is down and was not up"))
            }
        };
        heard.breaches.extend(breach);
    }
}

/// One life of one node.
struct Life {
    node: Node,
    ear: Arc<Ear>,
    _channel: ChannelGuard,
    sending: tokio::task::JoinHandle<()>,
}

impl Life {
    async fn start(network: &SimNetwork, index: usize, life: u64, seed: u64) -> Self {
        let node = Node::builder()
            .id(index as u64)
            .incarnation(Incarnation(life))
            .seed(seed ^ (index as u64) << 8 ^ life)
            .listen(place(index))
            .transport(network.transport(HOSTS[index]))
            .start()
            .await
            .unwrap();
        for other in (0..HOSTS.len()).filter(|&other| other != index) {
            node.add_address(NodeId(other as u64), place(other));
        }
        let ear = Arc::new(Ear::default());
        let channel = node.open(CHANNEL, ear.clone()).unwrap();
        let sending =
            tokio::spawn(send(node.clone(), index, Rng::labelled(seed, index as u64 * 1_000 + life)));
        Self { node, ear, _channel: channel, sending }
    }

    /// Ends it without a goodbye; what is left of the process is gone with its handles.
    fn kill(self) -> Arc<Ear> {
        self.sending.abort();
        self.ear
    }
}

fn place(index: usize) -> Address {
    format!("sim://{}:1", HOSTS[index]).parse().unwrap()
}

/// Sends numbered messages to everybody in all lanes, for ever.
async fn send(node: Node, index: usize, mut rng: Rng) {
    let mut numbers: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    loop {
        let to = rng.below(HOSTS.len() as u64);
        let lane = Lane::ALL[rng.below(4) as usize];
        if to != index as u64 {
            let size = if rng.below(30) == 0 { rng.below(200_000) } else { rng.below(300) };
            let number = numbers.entry((to, lane as u64)).or_default();
            *number += 1;
            let head = [lane as u64, *number, size].map(u64::to_le_bytes).concat();
            // Refused when nobody is there: the numbers show the gap, and gaps are allowed.
            let _ = node.send(NodeId(to), lane, CHANNEL, &[&head], vec![1; size as usize].into());
        }
        tokio::time::sleep(rng.duration(Duration::from_millis(1)..Duration::from_millis(30))).await;
    }
}

/// One run. Returns the trace's hash and how many messages were heard.
fn story(seed: u64) -> (u64, u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let network = SimNetwork::new(seed);
        let mut rng = Rng::labelled(seed, u64::MAX);
        network.set_default_link(LinkModel::drawn(&mut rng));
        let mut lives = Vec::new();
        for index in 0..HOSTS.len() {
            lives.push(Life::start(&network, index, 1, seed).await);
        }
        let plan = plan::draw(seed, &HOSTS, Duration::from_secs(20));
        let mut dead = Vec::new();
        let killing = async {
            for life in 2..5 {
                tokio::time::sleep(rng.duration(Duration::from_secs(1)..Duration::from_secs(8))).await;
                let index = rng.below(HOSTS.len() as u64) as usize;
                let is_kill = rng.below(2) == 0;
                if is_kill {
                    network.kill(HOSTS[index])
                } else {
                    network.crash(HOSTS[index])
                }
                dead.push(lives.remove(index).kill());
                if !is_kill {
                    tokio::time::sleep(rng.duration(Duration::from_millis(1)..Duration::from_secs(5))).await;
                    network.restart(HOSTS[index]);
                }
                lives.insert(index, Life::start(&network, index, life, seed).await);
            }
        };
        tokio::join!(network.carry_out(&plan), killing);
        network.set_default_link(LinkModel::LOCAL);
        // Silence is noticed within 8 s, attempts end within 10 and pause for 2 at most.
        tokio::time::sleep(Duration::from_secs(40)).await;
        let count = |life: &Life| -> BTreeMap<u64, u64> {
            let heard = life.ear.0.lock().unwrap();
            let mut sums = BTreeMap::new();
            for ((from, _), numbers) in &heard.numbers {
                *sums.entry(from.node.0).or_default() += numbers.len() as u64;
            }
            sums
        };
        let before: Vec<_> = lives.iter().map(count).collect();
        tokio::time::sleep(Duration::from_secs(5)).await;
        for (index, life) in lives.iter().enumerate() {
            let now = count(life);
            for from in (0..HOSTS.len() as u64).filter(|&from| from != index as u64) {
                assert!(
                    now.get(&from) > before[index].get(&from),
                    "seed {seed}: {} does not hear {}\n{plan:?}",
                    HOSTS[index],
                    HOSTS[from as usize]
                );
            }
            assert_eq!(life.node.peers().len(), HOSTS.len() - 1, "seed {seed}");
        }
        let mut messages = 0;
        for ear in lives.iter().map(|life| &life.ear).chain(&dead) {
            let heard = ear.0.lock().unwrap();
            assert!(heard.breaches.is_empty(), "seed {seed}: {:#?}\n{plan:?}", heard.breaches);
            messages += heard.messages;
        }
        lives.into_iter().for_each(|life| drop(life.kill()));
        (network.trace_hash(), messages)
    })
}

#[test]
fn t05_nodes_keep_their_promises_under_every_drawn_plan() {
    // 18, 37, 64 and 73 once heard a peer that was not up: its connection had outlived the one beside it.
    for seed in (0..20).chain([37, 64, 73]) {
        let (_, messages) = story(seed);
        assert!(messages > 1_000, "seed {seed}: {messages} messages only");
    }
}

#[test]
fn t05_a_run_of_whole_nodes_repeats_bit_for_bit() {
    for seed in 1_000..1_005 {
        assert_eq!(story(seed), story(seed), "seed {seed}");
    }
}
