//! The workload and the judge: random transactions over random participants, and what must hold of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate::sim::{Boot, Chance, Observed, Rng, Scenario, World};
use quorate_protocols::commit::{
    AbortReason, Command, Config, Decision, Event, Manager, Message, Outcome, Record, TxnId, Vote, Work,
};
use quorate_protocols::{Output, Violation};

/// Every node coordinates and takes part; its resource answers at random.
pub(crate) struct Bank {
    nodes: usize,
    config: Config,
    /// Where records go through a snapshot before a restart.
    compacts: bool,
    /// Participants of each wish, and whether it was made when all was calm and settled.
    wishes: Vec<(Vec<u64>, bool)>,
    txns: BTreeMap<TxnId, Txn>,
}

/// Everything that is known of one transaction.
#[derive(Default)]
struct Txn {
    participants: Vec<u64>,
    yes: BTreeSet<u64>,
    no: BTreeSet<u64>,
    read_only: BTreeSet<u64>,
    committed: BTreeSet<u64>,
    aborted: BTreeSet<u64>,
    outcome: Option<Outcome>,
    settled: bool,
}

impl Bank {
    pub(crate) fn new(rng: &mut Rng, plant: quorate_protocols::planted::Plant) -> Self {
        let config = Config {
            prepare_timeout: rng.duration(Duration::from_millis(300)..Duration::from_secs(3)),
            retry_min: rng.duration(Duration::from_millis(50)..Duration::from_millis(400)),
            retry_max: Duration::from_secs(1),
            plant,
            ..Config::default()
        };
        Self {
            nodes: rng.between(2, 5) as usize,
            config,
            compacts: rng.chance(Chance::percent(50)),
            wishes: Vec::new(),
            txns: BTreeMap::new(),
        }
    }

    fn begin(&mut self, settled: bool, world: &mut World<Manager>) {
        let mut nodes: Vec<u64> = (0..self.nodes as u64).collect();
        world.rng().shuffle(&mut nodes);
        nodes.truncate(world.rng().between(1, self.nodes as u64) as usize);
        let token = self.wishes.len() as u64;
        let work = nodes.iter().map(|node| Work { node: *node, payload: payload(token, *node) }).collect();
        self.wishes.push((nodes, settled));
        let coordinator = world.rng().below(self.nodes as u64) as usize;
        world.command(coordinator, Command::Begin { token, work });
    }

    fn decided(&mut self, txn: TxnId, outcome: &Outcome) -> Result<(), Violation> {
        let known = self.txns.get_mut(&txn).ok_or_else(|| broken(txn, "decided and never begun"))?;
        if known.outcome.as_ref().is_some_and(|before| before != outcome) {
            return Err(broken(txn, "decided twice, differently"));
        }
        if *outcome == Outcome::Committed {
            let agreed = |node: &u64| known.yes.contains(node) || known.read_only.contains(node);
            if !known.participants.iter().all(agreed) {
                return Err(broken(txn, "committed without everyone's vote"));
            }
        }
        known.outcome = Some(outcome.clone());
        known.agree(txn)
    }
}

impl Txn {
    /// All or nothing, at every moment.
    fn agree(&self, txn: TxnId) -> Result<(), Violation> {
        let committed = !self.committed.is_empty() || self.outcome == Some(Outcome::Committed);
        let aborted = !self.aborted.is_empty() || matches!(self.outcome, Some(Outcome::Aborted(_)));
        if committed && aborted {
            let (at, not) = (&self.committed, &self.aborted);
            return Err(broken(
                txn,
                &format!("committed at {at:?}, aborted at {not:?}, decided {:?}", self.outcome),
            ));
        }
        Ok(())
    }
}

impl Scenario for Bank {
    type Machine = Manager;

    fn nodes(&self) -> usize {
        self.nodes
    }

    fn boot(&mut self, boot: Boot<Manager>) -> Manager {
        if self.compacts {
            let snapshot = Manager::new(boot.id, boot.now, self.config, boot.records).snapshot();
            Manager::new(boot.id, boot.now, self.config, snapshot)
        } else {
            Manager::new(boot.id, boot.now, self.config, boot.records)
        }
    }

    fn start(&mut self, world: &mut World<Manager>) {
        world.wake_in(Duration::ZERO, 0);
    }

    fn wake(&mut self, token: u64, world: &mut World<Manager>) -> Result<(), Violation> {
        self.begin(token > 0, world);
        if !world.is_calm() {
            let pause = world.rng().duration(Duration::from_millis(5)..Duration::from_millis(400));
            world.wake_in(pause, token);
        }
        Ok(())
    }

    fn calm(&mut self, world: &mut World<Manager>) {
        // What was left over first ends; then a few that nothing disturbs.
        for token in 1..=5 {
            world.wake_in(Duration::from_secs(1), token);
        }
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Manager>) -> Result<(), Violation> {
        let node = who.node as u64;
        match event {
            Event::Begun { token, txn } => {
                let (participants, settled) = self.wishes[*token as usize].clone();
                let new = Txn { participants, settled, ..Txn::default() };
                if self.txns.insert(*txn, new).is_some() {
                    return Err(broken(*txn, "named twice"));
                }
                if !settled && world.rng().chance(Chance::percent(3)) {
                    let soon = world.rng().duration(Duration::ZERO..Duration::from_millis(50));
                    world.command_in(soon, who.node, Command::Cancel(*txn));
                }
            }
            Event::Refused { token, reason } => {
                return Err(Violation(format!("wish {token} refused: {reason}")));
            }
            Event::Decided { txn, outcome } => self.decided(*txn, outcome)?,
            Event::Prepare { txn, payload: found } => {
                let known = self.txns.get_mut(txn).ok_or_else(|| broken(*txn, "prepared and never begun"))?;
                if known.committed.contains(&node) {
                    return Err(broken(*txn, &format!("prepared again after its commit at {node}")));
                }
                if found.len() != 16 || found[8..] != node.to_le_bytes() {
                    return Err(broken(*txn, "another participant's payload"));
                }
                // A resource that answers at once, soon, or after the coordinator has lost patience.
                let delay = match world.rng().below(20) {
                    0 if !world.is_calm() => Duration::from_secs(2),
                    1..=9 => world.rng().duration(Duration::ZERO..Duration::from_millis(20)),
                    _ => Duration::ZERO,
                };
                let vote = match world.rng().below(20) {
                    0 => Vote::No,
                    1 | 2 => Vote::ReadOnly,
                    _ => Vote::Yes,
                };
                match vote {
                    Vote::Yes => known.yes.insert(node),
                    Vote::No => known.no.insert(node),
                    Vote::ReadOnly => known.read_only.insert(node),
                };
                world.command_in(delay, who.node, Command::Vote { txn: *txn, vote });
            }
            Event::Commit(txn) => {
                let known =
                    self.txns.get_mut(txn).ok_or_else(|| broken(*txn, "committed and never begun"))?;
                known.committed.insert(node);
                known.agree(*txn)?;
                let delay = world.rng().duration(Duration::ZERO..Duration::from_millis(10));
                world.command_in(delay, who.node, Command::Applied(*txn));
            }
            Event::Abort(txn) => {
                let known = self.txns.get_mut(txn).ok_or_else(|| broken(*txn, "aborted and never begun"))?;
                known.aborted.insert(node);
                known.agree(*txn)?;
                world.command(who.node, Command::Applied(*txn));
            }
            Event::InDoubt { txn, .. } => {
                let known = self.txns.get(txn).ok_or_else(|| broken(*txn, "in doubt and never begun"))?;
                if !known.yes.contains(&node) {
                    return Err(broken(*txn, "in doubt without a yes vote"));
                }
            }
        }
        Ok(())
    }

    fn promise(&self, output: &Output<Manager>) -> Option<u8> {
        match output {
            Output::Persist(Record::Prepared { .. }) => Some(0),
            Output::Send { message: Message::Vote { vote: Vote::Yes | Vote::ReadOnly, .. }, .. } => Some(1),
            Output::Persist(Record::Committed { .. }) => Some(2),
            Output::Send { message: Message::Decided { decision: Decision::Commit, .. }, .. } => Some(3),
            Output::Persist(Record::Finished { .. }) => Some(4),
            Output::Send { message: Message::Acknowledged(_), .. } => Some(5),
            Output::Send { message: Message::Decided { decision: Decision::Abort, .. }, .. } => Some(6),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        7
    }

    fn finish(&mut self, world: &mut World<Manager>) -> Result<(), Violation> {
        for (txn, known) in &self.txns {
            known.agree(*txn)?;
            // Durability: a yes vote of a committed transaction ends in a commit, whatever was forgotten.
            if known.outcome == Some(Outcome::Committed) {
                let voted = known.participants.iter().filter(|node| known.yes.contains(node));
                if let Some(lost) = voted
                    .filter(|node| !known.read_only.contains(node))
                    .find(|node| !known.committed.contains(node))
                {
                    return Err(broken(
                        *txn,
                        &format!("committed, and participant {lost} never heard of it"),
                    ));
                }
            }
            if known.settled {
                match &known.outcome {
                    Some(Outcome::Committed) => {}
                    Some(Outcome::Aborted(AbortReason::VotedNo(node))) if known.no.contains(node) => {}
                    other => return Err(broken(*txn, &format!("begun in calm and {other:?}"))),
                }
            }
        }
        for node in 0..self.nodes {
            let manager =
                world.machine(node).ok_or_else(|| Violation(format!("node {node} is down in calm")))?;
            let (load, in_doubt) = (manager.load(), manager.in_doubt());
            if load != Default::default() || !in_doubt.is_empty() {
                return Err(Violation(format!("node {node} is left with {load:?}, in doubt {in_doubt:?}")));
            }
        }
        Ok(())
    }
}

fn payload(token: u64, node: u64) -> Bytes {
    [token.to_le_bytes(), node.to_le_bytes()].concat().into()
}

fn broken(txn: TxnId, what: &str) -> Violation {
    Violation(format!("{txn}: {what}"))
}
