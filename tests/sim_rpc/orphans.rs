//! Executions whose caller has died, under each of the treatments of orphans.
//!
//! Oracle      at the end nothing executes for a life that is over: because its process came back and was heard of, or
//!             because its silence was noticed, when it came back without anything to say. In calm weather nothing is
//!             ended that somebody waits for, however long it takes.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::sim::{Boot, Chance, Config, Kind, Observed, Rng, Scenario, World};
use quorate_protocols::planted::Plant;
use quorate_protocols::rpc::{
    Client, ClientConfig, ClientEvent, CompletionsConfig, Execution, Message, Orphans, Outcome, Semantics,
    ServerConfig,
};
use quorate_protocols::{Output, Outputs, ProcessId, Violation};

use crate::service::{Command, Event, Node, Service};

pub(crate) struct Abandoned {
    plant: Plant,
    clients: usize,
    orphans: Orphans,
    /// Whether a process that died comes back as a caller; else it comes back, connects to nobody and says nothing.
    returns: bool,
    semantics: Semantics,
    call_every: Duration,
    service_time: Duration,
    /// Who called, and whether it still waits.
    operations: Vec<(ProcessId, bool)>,
    running: BTreeMap<Execution, u32>,
    calm_from: Option<usize>,
}

impl Abandoned {
    pub(crate) fn new(rng: &mut Rng, plant: Plant) -> Self {
        let orphans = match rng.below(3) {
            0 => Orphans::Reincarnation,
            1 => Orphans::Gentle { grace: Duration::from_millis(rng.between(500, 3_000)) },
            _ => Orphans::Expiration { quantum: Duration::from_millis(rng.between(1_000, 4_000)) },
        };
        Self {
            plant,
            clients: rng.between(1, 3) as usize,
            orphans,
            returns: orphans == Orphans::Reincarnation || rng.chance(Chance::percent(40)),
            semantics: if rng.chance(Chance::percent(30)) {
                Semantics::ExactlyOnce
            } else {
                Semantics::AtMostOnce
            },
            call_every: Duration::from_millis(rng.between(100, 2_000)),
            service_time: Duration::from_millis(rng.between(10, 20_000)),
            operations: Vec::new(),
            running: BTreeMap::new(),
            calm_from: None,
        }
    }

    fn call(&mut self, node: usize, world: &mut World<Node>) {
        let operation = self.operations.len() as u32;
        self.operations.push((world.id(node), true));
        let (semantics, budget) = (self.semantics, Duration::from_secs(60));
        world.command(node, Command::Call { operation, semantics, budget });
    }

    fn is_calling(&self, node: usize, world: &World<Node>) -> bool {
        matches!(world.machine(node), Some(Node::Client(..)))
    }
}

impl Scenario for Abandoned {
    type Machine = Node;

    fn nodes(&self) -> usize {
        self.clients + 1
    }

    fn boot(&mut self, boot: Boot<Node>) -> Node {
        if boot.node > 0 {
            if boot.id.incarnation > 1 && !self.returns {
                return Node::Idle;
            }
            let mut config = ClientConfig::new(7, 1, boot.seed);
            config.exactly_once = true;
            config.plant = self.plant;
            let client = Client::new(ProcessId::any_life(0), config);
            return Node::Client(Box::new(client), Outputs::new());
        }
        let mut config = ServerConfig::new(1, boot.seed);
        config.exactly_once = true;
        config.orphans = self.orphans;
        config.plant = self.plant;
        let limits = CompletionsConfig::default();
        let mut service = Service::new(boot.now, config, limits, &boot.records, false);
        service.hears_of_returns = self.returns;
        Node::Service(Box::new(service))
    }

    fn start(&mut self, world: &mut World<Node>) {
        for node in 1..=self.clients {
            world.wake_in(self.call_every, node as u64);
        }
    }

    fn wake(&mut self, token: u64, world: &mut World<Node>) -> Result<(), Violation> {
        let node = token as usize;
        if self.calm_from.is_none() {
            if self.is_calling(node, world) {
                self.call(node, world);
            }
            world.wake_in(self.call_every, token);
        }
        Ok(())
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Node>) -> Result<(), Violation> {
        match event {
            Event::Execute { execution, operation } => {
                self.running.insert(*execution, *operation);
                let most = self.service_time.as_micros() as u64;
                let calm = self.calm_from.is_some_and(|from| *operation as usize >= from);
                // Longer than any quantum, and over before the end.
                let delay = if calm { CALM - Duration::from_secs(5) } else { Duration::ZERO };
                let delay = delay.max(Duration::from_micros(world.rng().between(0, most.min(9_000_000))));
                let done = Command::Complete { execution: *execution, operation: *operation };
                // Some never end by themselves.
                if calm || world.rng().chance(Chance::percent(60)) {
                    world.command_in(delay, 0, done);
                }
            }
            Event::Abort(execution) => {
                if let Some(operation) = self.running.remove(execution)
                    && self.calm_from.is_some_and(|from| operation as usize >= from)
                    && self.operations[operation as usize].1
                {
                    return Err(Violation(format!("call {operation} is ended, and its caller waits for it")));
                }
            }
            Event::Client(ClientEvent::Ended { token, outcome }) => {
                let (caller, waits) = &mut self.operations[*token as usize];
                if *caller != who.id || !std::mem::replace(waits, false) {
                    return Err(Violation(format!("call {token} ended in another life or again")));
                }
                // A restart that the caller had not noticed is the only thing that may stand between in calm weather.
                let calm = self.calm_from.is_some_and(|from| *token as usize >= from);
                if calm && !matches!(outcome, Outcome::Replied(_) | Outcome::MaybeExecuted(_)) {
                    return Err(Violation(format!("call {token} ended with {outcome:?} in calm weather")));
                }
            }
            Event::Client(_) => {}
        }
        Ok(())
    }

    fn crashed(&mut self, node: usize, world: &mut World<Node>) {
        if node == 0 {
            self.running.clear();
            return;
        }
        let id = world.id(node);
        self.operations.iter_mut().filter(|(caller, _)| *caller == id).for_each(|(_, waits)| *waits = false);
    }

    fn promise(&self, output: &Output<Node>) -> Option<u8> {
        match output {
            Output::Event(Event::Execute { .. }) => Some(0),
            Output::Send { message: Message::Request { .. }, .. } => Some(1),
            Output::Send { message: Message::Renew { .. } | Message::Ask { .. }, .. } => Some(2),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        3
    }

    fn calm(&mut self, world: &mut World<Node>) {
        self.calm_from = Some(self.operations.len());
        for node in 1..=self.clients {
            if self.is_calling(node, world) {
                self.call(node, world);
            }
            // What a transport says when it finds a connection broken, be it true or not.
            let last = world.id(node);
            for incarnation in 1..=last.incarnation {
                let peer = ProcessId { incarnation, ..last };
                // More than once: what was delayed may arrive late.
                for seconds in [1, 6, 11] {
                    world.command_in(Duration::from_secs(seconds), 0, Command::Suspect(peer));
                }
            }
        }
    }

    fn finish(&mut self, world: &mut World<Node>) -> Result<(), Violation> {
        let Some(Node::Service(service)) = world.machine(0) else {
            return Err(Violation("the service is down".into()));
        };
        if !service.is_executing_for_nobody(|process| {
            let node = process.node as usize;
            world.id(node) == process && self.is_calling(node, world)
        }) {
            return Ok(());
        }
        Err(Violation(format!("something executes for a caller that is gone, under {:?}", self.orphans)))
    }
}

pub(crate) fn config() -> Config {
    Config {
        active: Duration::from_secs(20),
        calm: CALM,
        kinds: Kind::ALL.iter().copied().filter(|kind| !matches!(kind, Kind::Lie | Kind::Clock)).collect(),
        ..Config::default()
    }
}

/// Longer than any quantum, grace and backoff together.
const CALM: Duration = Duration::from_secs(20);
