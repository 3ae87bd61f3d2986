//! What is asked of the machines, and what must hold.
//!
//! Oracle      an exactly-once operation takes effect at most once over all lives of the service, once if its caller was
//!             answered, never if its caller was told that it is not executed; nobody is told "perhaps" unless the
//!             service was too small to remember its client; what is asked in calm weather is answered; nothing is left
//!             in any table.

use std::time::Duration;

use quorate::sim::{Boot, Chance, Config, Observed, Rng, Scenario, World};
use quorate_protocols::planted::Plant;
use quorate_protocols::rpc::{
    Client, ClientConfig, ClientEvent, CompletionRecord, CompletionsConfig, Doubt, Message, Outcome,
    Semantics, ServerConfig,
};
use quorate_protocols::{Output, Outputs, ProcessId, Violation};

use crate::service::{Command, Event, Node, Service, reply_to};

/// One call, as its caller knows it.
struct Operation {
    semantics: Semantics,
    caller: ProcessId,
    ended: bool,
    replied: bool,
    /// The caller was told that it was not and will not be executed.
    ruled_out: bool,
    /// Nobody waits for it any more.
    given_up: bool,
}

pub(crate) struct Once {
    plant: Plant,
    clients: usize,
    operations: Vec<Operation>,
    /// Calls of each client that it waits for.
    waited_for: Vec<u32>,
    limits: CompletionsConfig,
    executing_max: u32,
    reply_bytes_max: usize,
    call_every: Duration,
    service_time: Duration,
    budget: Duration,
    /// Restarts find a snapshot instead of all records.
    snapshots: bool,
    calm_from: Option<usize>,
    /// What a boot has found.
    broken: Option<Violation>,
}

impl Once {
    pub(crate) fn new(rng: &mut Rng, plant: Plant) -> Self {
        let clients = rng.between(1, 3) as usize;
        let contested = rng.chance(Chance::percent(20));
        Self {
            plant,
            clients,
            operations: Vec::new(),
            waited_for: vec![0; clients + 1],
            limits: CompletionsConfig {
                seats_max: if contested { 1 } else { 16 },
                slots_max: if rng.chance(Chance::percent(30)) { rng.between(2, 64) as usize } else { 4_096 },
                reply_bytes_max: if rng.chance(Chance::percent(20)) { 200 } else { 1 << 20 },
                lease: Duration::from_millis(rng.between(1, 2_000)),
                plant,
            },
            executing_max: if rng.chance(Chance::percent(20)) { 2 } else { 4_096 },
            reply_bytes_max: if rng.chance(Chance::percent(30)) { 200 } else { 1 << 20 },
            call_every: Duration::from_micros(rng.between(5_000, 400_000)),
            service_time: Duration::from_micros(rng.between(1, 400_000)),
            budget: Duration::from_millis(rng.between(500, 10_000)),
            snapshots: rng.chance(Chance::percent(50)),
            calm_from: None,
            broken: None,
        }
    }

    /// Clients may lose their seats to others.
    fn is_contested(&self) -> bool {
        self.limits.seats_max < self.clients
    }

    fn violated(&self, index: usize, what: &str) -> Violation {
        Violation(format!("operation {index} ({:?}): {what}", self.operations[index].semantics))
    }

    fn call(&mut self, node: usize, world: &mut World<Node>) {
        let semantics = match world.rng().below(10) {
            _ if self.calm_from.is_some() => Semantics::ExactlyOnce,
            0..8 => Semantics::ExactlyOnce,
            8 => Semantics::AtMostOnce,
            _ => Semantics::Idempotent,
        };
        let operation = self.operations.len() as u32;
        self.waited_for[node] += 1;
        self.operations.push(Operation {
            semantics,
            caller: world.id(node),
            ended: false,
            replied: false,
            ruled_out: false,
            given_up: false,
        });
        let budget = if self.calm_from.is_some() { CALM - Duration::from_secs(2) } else { self.budget };
        world.command(node, Command::Call { operation, semantics, budget });
        if self.calm_from.is_none() && world.rng().chance(Chance::percent(5)) {
            self.operations[operation as usize].given_up = true;
            self.waited_for[node] -= 1;
            world.command(node, Command::Cancel);
        }
    }

    /// Whether what the service has kept is right.
    fn check(&self, service: &Service) -> Result<(), Violation> {
        for (index, operation) in self.operations.iter().enumerate() {
            let effects = service.effects.get(&(index as u32)).copied().unwrap_or(0);
            if operation.semantics != Semantics::ExactlyOnce {
                continue;
            }
            if effects > 1 {
                return Err(self.violated(index, &format!("took effect {effects} times")));
            }
            if operation.replied && effects == 0 {
                return Err(self.violated(index, "was answered, and its effect is lost"));
            }
            if operation.ruled_out && effects > 0 {
                return Err(self.violated(index, "took effect although its caller was told that it did not"));
            }
        }
        Ok(())
    }

    fn ended(&mut self, who: Observed, index: usize, outcome: &Outcome) -> Result<(), Violation> {
        let contested = self.is_contested();
        let generous =
            self.executing_max > 2 && self.limits.slots_max > 64 && self.limits.reply_bytes_max > 200;
        let is_calm = self.calm_from.is_some_and(|from| index >= from);
        let operation = &mut self.operations[index];
        if std::mem::replace(&mut operation.ended, true) {
            return Err(self.violated(index, "ended again"));
        }
        if operation.caller != who.id {
            return Err(self.violated(index, "ended in another life of its caller"));
        }
        if !operation.given_up {
            self.waited_for[who.node] -= 1;
        }
        if operation.semantics != Semantics::ExactlyOnce {
            return Ok(());
        }
        match outcome {
            Outcome::Replied(body) => {
                operation.replied = true;
                if body[..] != reply_to(index as u32).to_le_bytes() {
                    return Err(self.violated(index, "got the reply to another call"));
                }
            }
            Outcome::TooManyCalls { .. }
            | Outcome::NotExecuted(_)
            | Outcome::DeadlinePassed { sent: false }
            | Outcome::Closed { sent: false } => operation.ruled_out = true,
            Outcome::MaybeExecuted(Doubt::RecordForgotten) if contested => {}
            Outcome::MaybeExecuted(_) => {
                return Err(self.violated(index, &format!("left its caller in doubt: {outcome:?}")));
            }
            Outcome::DeadlinePassed { sent: true } | Outcome::Closed { sent: true } => {}
        }
        if is_calm && generous && !contested && !self.operations[index].replied {
            return Err(self.violated(index, &format!("in calm weather it ended with {outcome:?}")));
        }
        Ok(())
    }
}

impl Scenario for Once {
    type Machine = Node;

    fn nodes(&self) -> usize {
        self.clients + 1
    }

    fn boot(&mut self, boot: Boot<Node>) -> Node {
        if boot.node > 0 {
            let mut config = ClientConfig::new(7, 1, boot.seed);
            config.exactly_once = true;
            config.plant = self.plant;
            let client = Client::new(ProcessId::any_life(0), config);
            return Node::Client(Box::new(client), Outputs::new());
        }
        let mut config = ServerConfig::new(1, boot.seed);
        config.exactly_once = true;
        config.executing_max = self.executing_max;
        config.reply_bytes_max = self.reply_bytes_max;
        config.plant = self.plant;
        let service = Service::new(boot.now, config, self.limits.clone(), &boot.records, self.snapshots);
        self.broken = self.broken.take().or_else(|| self.check(&service).err());
        Node::Service(Box::new(service))
    }

    fn start(&mut self, world: &mut World<Node>) {
        for node in 1..=self.clients {
            world.wake_in(self.call_every, node as u64);
        }
    }

    fn wake(&mut self, token: u64, world: &mut World<Node>) -> Result<(), Violation> {
        if self.calm_from.is_some() {
            return Ok(());
        }
        let node = token as usize;
        let burst = if world.rng().chance(Chance::percent(10)) { 6 } else { 1 };
        if world.is_up(node) {
            for _ in 0..burst {
                if self.waited_for[node] < WAITED_FOR_MAX {
                    self.call(node, world);
                }
            }
        }
        world.wake_in(self.call_every, token);
        self.broken.take().map_or(Ok(()), Err)
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Node>) -> Result<(), Violation> {
        match event {
            Event::Execute { execution, operation } => {
                let most = self.service_time.as_micros() as u64;
                let delay = Duration::from_micros(world.rng().between(0, most));
                let done = Command::Complete { execution: *execution, operation: *operation };
                world.command_in(delay, 0, done);
                Ok(())
            }
            Event::Client(ClientEvent::Ended { token, outcome }) => self.ended(who, *token as usize, outcome),
            Event::Abort(_) | Event::Client(ClientEvent::Bound(_) | ClientEvent::Rejected(_)) => Ok(()),
        }
    }

    fn crashed(&mut self, node: usize, world: &mut World<Node>) {
        let id = world.id(node);
        self.waited_for[node] = 0;
        for operation in self.operations.iter_mut().filter(|operation| operation.caller == id) {
            operation.given_up = true; // nobody is left to be told
        }
    }

    /// A crash at these moments is where exactly-once is lost, if anywhere.
    fn promise(&self, output: &Output<Node>) -> Option<u8> {
        match output {
            Output::Persist(CompletionRecord::Done { .. } | CompletionRecord::Change(_)) => Some(0),
            Output::Send { message: Message::Reply { .. }, .. } => Some(1),
            Output::Send { message: Message::Request { .. }, .. } => Some(2),
            Output::Event(Event::Execute { .. }) => Some(3),
            Output::Persist(CompletionRecord::Seat { .. })
            | Output::Send { message: Message::Bound { .. }, .. } => Some(4),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        5
    }

    fn calm(&mut self, world: &mut World<Node>) {
        self.calm_from = Some(self.operations.len());
        for node in 1..=self.clients {
            self.call(node, world);
        }
    }

    fn finish(&mut self, world: &mut World<Node>) -> Result<(), Violation> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        let Some(Node::Service(service)) = world.machine(0) else {
            return Err(Violation("the service is down".into()));
        };
        self.check(service)?;
        if service.executing() > 0 {
            return Err(Violation(format!("{} executions never ended", service.executing())));
        }
        match self.operations.iter().position(|operation| !operation.ended && !operation.given_up) {
            Some(index) => Err(self.violated(index, "never ended")),
            None => Ok(()),
        }
    }
}

pub(crate) fn config() -> Config {
    Config { active: Duration::from_secs(20), calm: CALM, ..Config::default() }
}

/// Calls that a client waits for at once. In some weather every record needs a sync of its own, and what was asked before
/// the calm must be done well before its end.
const WAITED_FOR_MAX: u32 = 64;
/// Longer than any backoff, any call of before and any service time.
const CALM: Duration = Duration::from_secs(14);
