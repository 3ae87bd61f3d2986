//! Replicas on a log over whole nodes and a simulated network, in virtual time: under drawn plans of faults, with members
//! that come and go, what all clients saw is linearizable, everything ends once the network is whole, and a seed repeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate::history::{Limits, Recorder, RegisterCall, RegisterReturn, linearizable_by_key};
use quorate::replication::log::{Config, Logged, Outcome, Storage};
use quorate::sim::Rng;
use quorate::{Incarnation, Node, NodeId};
use quorate_transports::fault::model::LinkModel;
use quorate_transports::sim::{SimNetwork, plan};
use tokio::task::JoinSet;

use crate::registers::{Ask, Registers};
use tests::registers::{Call, Keyed};

const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
const FOUNDERS: usize = 3;
const KEYS: u64 = 6;

struct Client {
    number: u64,
    replica: Logged<Registers>,
    recorder: Recorder<Call, RegisterReturn<u64>>,
    is_enough: Arc<AtomicBool>,
    rng: Rng,
}

impl Client {
    async fn work(mut self) {
        let mut count = 0;
        while !self.is_enough.load(Ordering::Relaxed) {
            count += 1;
            let value = self.number << 32 | count;
            self.ask(value).await;
            tokio::time::sleep(self.rng.duration(Duration::ZERO..Duration::from_millis(300))).await;
        }
    }

    async fn ask(&mut self, value: u64) {
        let key = self.rng.below(KEYS);
        let call = match self.rng.below(5) {
            0 | 1 => RegisterCall::Write(value),
            2 => {
                let expected = self.replica.read(|registers| registers.0.get(&key).copied());
                RegisterCall::CompareAndSet { expected, new: value }
            }
            _ => RegisterCall::Read,
        };
        let pending = self.recorder.called(self.number, (key, call.clone()));
        let answer = match call {
            RegisterCall::Write(value) => {
                self.replica.apply(&Ask::Write { key, value }).await.map(|_| RegisterReturn::Written)
            }
            RegisterCall::CompareAndSet { expected, new } => {
                let set = self.replica.apply(&Ask::CompareAndSet { key, expected, new }).await;
                set.map(RegisterReturn::Set)
            }
            RegisterCall::Read => {
                let found = self.replica.read_latest(|registers| registers.0.get(&key).copied()).await;
                found.map(RegisterReturn::Value)
            }
        };
        match answer {
            Ok(answer) => self.recorder.returned(pending, answer),
            Err(error) if error.outcome() == Outcome::Rejected => self.recorder.refused(pending),
            Err(_) => {}
        }
    }
}

/// Lets members come and go, as far as whoever leads agrees.
async fn change_members(replicas: &[Logged<Registers>], rng: &mut Rng) {
    let leads = |at: &usize| replicas[*at].progress().leader == Some(NodeId(*at as u64));
    if let Some(at) = (0..replicas.len()).find(leads) {
        let node = NodeId(rng.below(HOSTS.len() as u64));
        let progress = replicas[at].progress();
        let change = async {
            if progress.learners.contains(&node) {
                replicas[at].promote(node).await
            } else if progress.voters.contains(&node) && progress.voters.len() > 2 {
                replicas[at].remove(node).await
            } else {
                replicas[at].add_learner(node).await
            }
        };
        // Refused or not, answered or not: the next one is another try.
        drop(tokio::time::timeout(Duration::from_secs(1), change).await);
    }
}

/// One run. Returns the trace's hash, and how much was done.
fn story(seed: u64) -> (u64, usize) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let network = SimNetwork::new(seed);
        let mut rng = Rng::labelled(seed, u64::MAX);
        network.set_default_link(LinkModel::drawn(&mut rng));
        let config = Config {
            log_entries_max: rng.between(10, 200) as usize,
            log_entries_kept: rng.between(0, 20) as usize,
            chunk_bytes: rng.between(20, 200) as usize,
            election: rng.duration(Duration::from_millis(200)..Duration::from_millis(800)),
            ..Config::default()
        };
        let mut nodes = Vec::new();
        let mut replicas: Vec<Logged<Registers>> = Vec::new();
        for (index, host) in HOSTS.iter().enumerate() {
            let node = Node::builder()
                .id(index as u64)
                .incarnation(Incarnation(1))
                .seed(seed ^ (index as u64) << 8)
                .listen(format!("sim://{host}:1").parse::<quorate::Address>().unwrap())
                .transport(network.transport(host));
            let node = node.start().await.unwrap();
            for (other, host) in HOSTS.iter().enumerate().filter(|(other, _)| *other != index) {
                node.add_address(NodeId(other as u64), format!("sim://{host}:1").parse().unwrap());
            }
            let founders = (0..FOUNDERS as u64).map(NodeId).filter(|_| index < FOUNDERS);
            let opening =
                Logged::open(&node, "registers", Storage::Memory, Registers::default(), founders, config);
            replicas.push(opening.await.unwrap());
            nodes.push(node);
        }
        let (recorder, is_enough) = (Recorder::new(), Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for number in 0..8 {
            let client = Client {
                number,
                // Nobody asks the one that may never become a member.
                replica: replicas[number as usize % FOUNDERS].clone(),
                recorder: recorder.clone(),
                is_enough: is_enough.clone(),
                rng: Rng::labelled(seed, number),
            };
            clients.spawn(client.work());
        }
        let plan = plan::draw(seed, &HOSTS, Duration::from_secs(20));
        let changing = async {
            for _ in 0..20 {
                tokio::time::sleep(rng.duration(Duration::from_millis(100)..Duration::from_secs(2))).await;
                change_members(&replicas, &mut rng).await;
            }
        };
        tokio::join!(network.carry_out(&plan), changing);
        network.set_default_link(LinkModel::LOCAL);
        // All founders are members in the end, so that each can end what it has begun.
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let leads = |at: &usize| replicas[*at].progress().leader == Some(NodeId(*at as u64));
            let newest = (0..replicas.len()).filter(leads).max_by_key(|at| replicas[*at].progress().term);
            let Some(at) = newest else { continue };
            let members = replicas[at].progress();
            let is_out = |node: &NodeId| !members.voters.contains(node) && !members.learners.contains(node);
            match (0..FOUNDERS as u64).map(NodeId).find(is_out) {
                Some(node) => {
                    drop(tokio::time::timeout(Duration::from_secs(1), replicas[at].add_learner(node)).await);
                }
                None => break,
            }
        }
        is_enough.store(true, Ordering::Relaxed);
        let all = async { while clients.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(Duration::from_secs(60), all).await;
        assert!(ended.is_ok(), "seed {seed}: something does not end: {replicas:?}\n{plan:?}");
        let mut states: BTreeMap<usize, BTreeMap<u64, u64>> = BTreeMap::new();
        for (at, replica) in replicas.iter().enumerate().take(FOUNDERS) {
            let state = replica.read_latest(|registers| registers.0.clone());
            states.insert(at, tokio::time::timeout(Duration::from_secs(60), state).await.unwrap().unwrap());
        }
        assert!(states.values().all(|state| *state == states[&0]), "seed {seed}: {states:?}");
        let history = recorder.history();
        linearizable_by_key(&Keyed, &history, |call| call.0, &Limits::default())
            .unwrap_or_else(|rejection| panic!("seed {seed}: {rejection}\n{plan:?}"));
        (network.trace_hash(), history.operations.len())
    })
}

/// How many seeds: `QUORATE_LOG_SEEDS`, or a few.
fn seeds() -> u64 {
    std::env::var("QUORATE_LOG_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(10)
}

#[test]
fn d05_replicas_over_whole_nodes_answer_like_one_register_under_every_drawn_plan() {
    let done: usize = (0..seeds()).map(|seed| story(seed).1).sum();
    assert!(done as u64 > 100 * seeds(), "{done} operations only");
}

#[test]
fn d05_a_run_of_replicas_over_whole_nodes_repeats_bit_for_bit() {
    assert_eq!(story(1_000), story(1_000));
}
