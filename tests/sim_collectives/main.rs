//! Collective operations as machines in the simulator: right results under loss, repetition, reordering and partitions,
//! and no member that hangs when others die.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate::sim::{self, Boot, Config, Observed, Scenario, World};
use quorate_protocols::collectives::{
    CollectiveConfig, CollectiveEnd, CollectiveError, Collectives, Operation,
};
use quorate_protocols::{ProcessId, Violation};

/// A company that runs through all operations several times, each member at its own pace.
struct Company {
    size: usize,
    members: Arc<[ProcessId]>,
    /// What each member was told, by number; of its first life.
    ends: BTreeMap<(usize, u64), Result<Vec<Bytes>, CollectiveError>>,
    has_crashed: Vec<bool>,
    /// Nothing happens that would excuse an error.
    must_succeed: bool,
}

const KINDS: u64 = 9;
const ROUNDS: u64 = 4;

impl Company {
    fn new(size: usize, must_succeed: bool) -> Self {
        let id = |node: usize| ProcessId { node: node as u64, incarnation: 1 };
        let members: Vec<_> = (0..size).map(id).collect();
        Self {
            size,
            members: members.into(),
            ends: BTreeMap::new(),
            has_crashed: vec![false; size],
            must_succeed,
        }
    }

    fn root(&self, number: u64) -> u32 {
        (number * 5 % self.size as u64) as u32
    }

    fn body(number: u64, rank: usize) -> Bytes {
        format!("{number}.{rank};").into()
    }

    /// Joining texts tells the order.
    fn join(one: &[u8], two: &[u8]) -> Bytes {
        [one, two].concat().into()
    }

    fn operation(&self, number: u64, rank: usize) -> Operation {
        let root = self.root(number);
        let body = Self::body(number, rank);
        let combine = Arc::new(Self::join);
        let parts = (0..self.size).map(|to| format!("{number}:{rank}>{to}").into()).collect();
        match number % KINDS {
            0 => Operation::Barrier,
            1 => Operation::Broadcast { root, body },
            2 => Operation::Scatter { root, parts },
            3 => Operation::Gather { root, body },
            4 => Operation::AllGather { body },
            5 => Operation::Reduce { root, body, combine },
            6 => Operation::AllReduce { body, combine },
            7 => Operation::Scan { body, combine },
            _ => Operation::AllToAll { parts },
        }
    }

    fn expected(&self, number: u64, rank: usize) -> Vec<Bytes> {
        let root = self.root(number) as usize;
        let all = || (0..self.size).map(|from| Self::body(number, from)).collect::<Vec<_>>();
        let joined = |upto: usize| vec![all()[..upto].concat().into()];
        match number % KINDS {
            0 => vec![],
            1 => vec![Self::body(number, root)],
            2 => vec![format!("{number}:{root}>{rank}").into()],
            3 if rank == root => all(),
            4 => all(),
            5 if rank == root => joined(self.size),
            6 => joined(self.size),
            7 => joined(rank + 1),
            8 => (0..self.size).map(|from| format!("{number}:{from}>{rank}").into()).collect(),
            _ => vec![],
        }
    }
}

impl Scenario for Company {
    type Machine = Collectives;

    fn nodes(&self) -> usize {
        self.size
    }

    fn boot(&mut self, boot: Boot<Collectives>) -> Collectives {
        let give_up_after = Duration::from_secs(if self.must_succeed { 20 } else { 3 });
        let config = CollectiveConfig { give_up_after, ..CollectiveConfig::default() };
        // A later life is nobody in the company of the earlier ones: nobody listens to it.
        Collectives::new(config, self.members.clone(), boot.node as u32).unwrap()
    }

    fn start(&mut self, world: &mut World<Collectives>) {
        for node in 0..self.size {
            let delay = Duration::from_millis(world.rng().below(300));
            let operation = self.operation(0, node);
            world.command_in(delay, node, operation);
        }
    }

    fn crashed(&mut self, node: usize, _: &mut World<Collectives>) {
        self.has_crashed[node] = true;
    }

    fn observe(
        &mut self,
        who: Observed,
        event: &CollectiveEnd,
        world: &mut World<Collectives>,
    ) -> Result<(), Violation> {
        let node = who.node;
        if self.has_crashed[node] {
            return Ok(());
        }
        if let Ok(result) = &event.result
            && *result != self.expected(event.number, node)
        {
            return Err(Violation(format!("{} on {node} gave {result:?}", event.number)));
        }
        if self.ends.insert((node, event.number), event.result.clone()).is_some() {
            return Err(Violation(format!("{} on {node} ended twice", event.number)));
        }
        if event.number + 1 < KINDS * ROUNDS {
            let next = self.operation(event.number + 1, node);
            let delay = Duration::from_millis(world.rng().below(40));
            world.command_in(delay, node, next);
        }
        Ok(())
    }

    fn finish(&mut self, _: &mut World<Collectives>) -> Result<(), Violation> {
        for node in (0..self.size).filter(|node| !self.has_crashed[*node]) {
            for number in 0..KINDS * ROUNDS {
                match self.ends.get(&(node, number)) {
                    None => return Err(Violation(format!("{number} hangs on {node}"))),
                    Some(Err(error)) if self.must_succeed => {
                        return Err(Violation(format!("{number} on {node}: {error}")));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// Loss, repetition and reordering, and nothing that takes longer than the members' patience.
fn weather_only() -> Config {
    Config {
        kinds: Vec::new(),
        active: Duration::from_secs(30),
        calm: Duration::from_secs(30),
        ..Config::default()
    }
}

#[test]
fn s05_results_are_right_whatever_the_network_does_with_the_messages() {
    for size in [1, 2, 3, 5, 8, 13] {
        let summary = sim::sweep(&weather_only(), 0..40, |_| Company::new(size, true));
        let summary = summary.unwrap_or_else(|failure| panic!("{size} members: {failure}"));
        assert_eq!(summary.seeds, 40);
    }
}

#[test]
fn s05_a_dead_member_gives_an_error_on_all_others_and_not_a_hang() {
    let config = Config { calm: Duration::from_secs(40), ..Config::default() };
    let summary = sim::sweep(&config, 1_000..1_150, |_| Company::new(6, false));
    summary.unwrap_or_else(|failure| panic!("{failure}"));
}
