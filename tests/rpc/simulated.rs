//! Clients and a server as machines, under loss, repetition, reordering, partitions, crashes at every promise.
//!
//! Oracle      every execution and every end of a call is written down. An at-most-once call is never executed twice,
//!             in however many lives of the server; what is said not to be executed never is; a reply is the reply to
//!             its own call; every call ends once; nothing is left in any table at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use quorate::sim::{self, Boot, Chance, Config, Kind, Observed, Rng, Scenario, World};
use quorate_protocols::planted::{Plant, Planted};
use quorate_protocols::rpc::{
    Client, ClientCommand, ClientConfig, ClientEvent, Execution, Message, Outcome, Semantics, Server,
    ServerCommand, ServerConfig, ServerEvent, Verdict,
};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Violation};

/// A node of the simulation: number 0 serves, the others call.
enum Node {
    Client(Client, Outputs<Client>),
    Server(Server, Outputs<Server>),
}

#[derive(Debug, Clone)]
enum Command {
    Call {
        operation: u32,
        semantics: Semantics,
        budget: Duration,
    },
    /// Cancel the newest call.
    Cancel,
    Complete {
        execution: Execution,
        operation: u64,
    },
}

#[derive(Debug)]
enum Event {
    Client(ClientEvent),
    Server(ServerEvent),
}

impl Machine for Node {
    type Command = Command;
    type Event = Event;
    type Message = Message;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match self {
            Self::Client(client, outputs) => {
                let input = match input {
                    Input::Tick => Input::Tick,
                    Input::Received { from, message } => Input::Received { from, message },
                    Input::Reachable(peer) => Input::Reachable(peer),
                    Input::Unreachable(peer) => Input::Unreachable(peer),
                    Input::Command(Command::Call { operation, semantics, budget }) => {
                        Input::Command(ClientCommand::Call {
                            token: operation,
                            method: 1,
                            signature: 2,
                            semantics,
                            deadline: now + budget,
                            body: Bytes::copy_from_slice(&operation.to_le_bytes()),
                        })
                    }
                    Input::Command(Command::Cancel) => {
                        // The newest call: what a caller that has just begun and is dropped does.
                        let mut id = client.upcoming();
                        id.sequence -= 1;
                        for slot in 0..8 {
                            let id = quorate_protocols::rpc::CallId { slot, ..id };
                            client.handle(now, Input::Command(ClientCommand::Cancel(id)), outputs);
                        }
                        forward(outputs, out, Event::Client);
                        return;
                    }
                    Input::Command(Command::Complete { .. }) => return,
                };
                client.handle(now, input, outputs);
                forward(outputs, out, Event::Client);
            }
            Self::Server(server, outputs) => {
                let input = match input {
                    Input::Tick => Input::Tick,
                    Input::Received { from, message } => Input::Received { from, message },
                    Input::Reachable(peer) => Input::Reachable(peer),
                    Input::Unreachable(peer) => Input::Unreachable(peer),
                    Input::Command(Command::Complete { execution, operation }) => {
                        let verdict =
                            Verdict::Done(Bytes::copy_from_slice(&reply_to(operation).to_le_bytes()));
                        Input::Command(ServerCommand::Complete { execution, verdict })
                    }
                    Input::Command(_) => return,
                };
                server.handle(now, input, outputs);
                forward(outputs, out, Event::Server);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        match self {
            Self::Client(client, _) => client.deadline(),
            Self::Server(server, _) => server.deadline(),
        }
    }

    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::Client(client, _) => client.check(),
            Self::Server(server, _) => server.check(),
        }
    }
}

fn forward<M: Machine<Message = Message>>(
    from: &mut Outputs<M>,
    to: &mut Outputs<Node>,
    wrap: impl Fn(M::Event) -> Event,
) {
    for output in from.drain() {
        match output {
            Output::Send { to: targets, lane, message } => {
                for target in targets.as_slice() {
                    to.send(*target, lane, message.clone());
                }
            }
            Output::Event(event) => to.event(wrap(event)),
            Output::Persist(_) | Output::Barrier => {}
        }
    }
}

/// What the service computes: a caller can tell that the reply is the one to its own call.
const fn reply_to(operation: u64) -> u64 {
    operation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1
}

/// One call, from its caller's side and from the service's.
#[derive(Default)]
struct Operation {
    semantics: Option<Semantics>,
    executed: u32,
    ended: u32,
    /// The caller was told that it was not and will not be executed.
    ruled_out: bool,
    cancelled: bool,
    caller: Option<ProcessId>,
}

struct Calls {
    plant: Plant,
    clients: usize,
    operations: Vec<Operation>,
    /// Executing now, in the server's present life.
    running: BTreeSet<Execution>,
    clients_max: usize,
    executing_max: u32,
    reply_bytes_max: usize,
    call_every: Duration,
    service_time: Duration,
    budget: Duration,
    calm_from: Option<usize>,
}

impl Calls {
    fn new(rng: &mut Rng, plant: Plant) -> Self {
        let clients = rng.between(1, 3) as usize;
        Self {
            plant,
            clients,
            operations: Vec::new(),
            running: BTreeSet::new(),
            clients_max: if rng.chance(Chance::percent(30)) { 1 } else { 16 },
            executing_max: if rng.chance(Chance::percent(40)) { 2 } else { 4_096 },
            reply_bytes_max: if rng.chance(Chance::percent(30)) { 200 } else { 1 << 20 },
            call_every: Duration::from_micros(rng.between(5_000, 400_000)),
            service_time: Duration::from_micros(rng.between(1, 600_000)),
            budget: Duration::from_millis(rng.between(100, 6_000)),
            calm_from: None,
        }
    }

    fn violated(&self, operation: usize, what: &str) -> Violation {
        let call = &self.operations[operation];
        Violation(format!(
            "call {operation} ({:?}): {what}; executed {} times, ended {} times",
            call.semantics, call.executed, call.ended
        ))
    }

    fn call(&mut self, node: usize, world: &mut World<Node>) {
        let semantics = match world.rng().below(10) {
            0..6 => Semantics::AtMostOnce,
            6..9 => Semantics::Idempotent,
            _ => Semantics::OneWay,
        };
        let operation = self.operations.len() as u32;
        let caller = Some(world.id(node));
        self.operations.push(Operation { semantics: Some(semantics), caller, ..Operation::default() });
        let budget = if self.calm_from.is_some() { Duration::from_secs(8) } else { self.budget };
        world.command(node, Command::Call { operation, semantics, budget });
        if self.calm_from.is_none() && world.rng().chance(Chance::percent(5)) {
            self.operations[operation as usize].cancelled = true;
            world.command(node, Command::Cancel);
        }
    }
}

impl Scenario for Calls {
    type Machine = Node;

    fn nodes(&self) -> usize {
        self.clients + 1
    }

    fn boot(&mut self, boot: Boot<Node>) -> Node {
        if boot.node == 0 {
            let mut config = ServerConfig::new(1, boot.seed);
            config.clients_max = self.clients_max;
            config.executing_max = self.executing_max;
            config.reply_bytes_max = self.reply_bytes_max;
            config.plant = self.plant;
            Node::Server(Server::new(config), Outputs::new())
        } else {
            let mut config = ClientConfig::new(7, 1, boot.seed);
            config.plant = self.plant;
            Node::Client(Client::new(ProcessId::any_life(0), config), Outputs::new())
        }
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
                self.call(node, world);
            }
        }
        world.wake_in(self.call_every, token);
        Ok(())
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Node>) -> Result<(), Violation> {
        match event {
            Event::Server(ServerEvent::Execute { execution, body, .. }) => {
                let index = body[..].try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX) as usize;
                let call = &mut self.operations[index];
                call.executed += 1;
                if call.executed > 1 && call.semantics != Some(Semantics::Idempotent) {
                    return Err(self.violated(index, "executed again"));
                }
                if call.ruled_out {
                    return Err(self.violated(index, "executed although its caller was told that it is not"));
                }
                if call.caller != Some(execution.from) {
                    return Err(self.violated(index, "executed in the name of another process"));
                }
                self.running.insert(*execution);
                let most = self.service_time.as_micros() as u64;
                let delay = Duration::from_micros(world.rng().between(0, most));
                world.command_in(
                    delay,
                    0,
                    Command::Complete { execution: *execution, operation: index as u64 },
                );
            }
            Event::Server(ServerEvent::Abort(execution)) => {
                if execution.one_way || !self.running.remove(execution) {
                    return Err(Violation(format!("{execution:?} aborted, but it does not run")));
                }
            }
            Event::Client(ClientEvent::Ended { token, outcome }) => {
                let index = *token as usize;
                let call = &mut self.operations[index];
                call.ended += 1;
                if call.ended > 1 {
                    return Err(self.violated(index, "ended again"));
                }
                if call.caller != Some(who.id) {
                    return Err(self.violated(index, "ended in another life of its caller"));
                }
                match outcome {
                    Outcome::Replied(_) if call.semantics == Some(Semantics::OneWay) => {}
                    Outcome::Replied(body) => {
                        if body[..] != reply_to(index as u64).to_le_bytes() {
                            return Err(self.violated(index, "got the reply to another call"));
                        }
                        if call.executed == 0 {
                            return Err(self.violated(index, "has a reply without having been executed"));
                        }
                    }
                    Outcome::TooManyCalls { .. }
                    | Outcome::DeadlinePassed { sent: false }
                    | Outcome::Closed { sent: false } => {
                        call.ruled_out = true;
                    }
                    Outcome::NotExecuted(_) => {
                        // An idempotent call may have been executed in a session that was lost.
                        call.ruled_out = call.semantics == Some(Semantics::AtMostOnce);
                    }
                    Outcome::MaybeExecuted(_)
                    | Outcome::DeadlinePassed { sent: true }
                    | Outcome::Closed { sent: true } => {}
                }
                // With room for everybody and no fault left, only a restart that the client had not noticed may
                // stand between a call and its reply.
                if self.calm_from.is_some_and(|from| index >= from)
                    && self.clients_max > self.clients
                    && self.executing_max > 2
                    && !matches!(outcome, Outcome::Replied(_) | Outcome::MaybeExecuted(_))
                {
                    return Err(self.violated(index, &format!("in calm weather it ended with {outcome:?}")));
                }
                if call.ruled_out && call.executed > 0 {
                    return Err(
                        self.violated(index, &format!("executed, but its caller is told {outcome:?}"))
                    );
                }
            }
            Event::Client(ClientEvent::Bound(_) | ClientEvent::Rejected(_))
            | Event::Server(ServerEvent::SeatWanted { .. }) => {}
        }
        Ok(())
    }

    fn crashed(&mut self, node: usize, world: &mut World<Node>) {
        if node == 0 {
            self.running.clear();
        } else {
            let id = world.id(node);
            for call in self.operations.iter_mut().filter(|call| call.caller == Some(id) && call.ended == 0) {
                call.cancelled = true; // nobody is left to be told
            }
        }
    }

    /// A crash at these moments is where at-most-once is lost, if anywhere.
    fn promise(&self, output: &Output<Node>) -> Option<u8> {
        match output {
            Output::Event(Event::Server(ServerEvent::Execute { .. })) => Some(0),
            Output::Send { message: Message::Reply { .. }, .. } => Some(1),
            Output::Send { message: Message::Request { .. }, .. } => Some(2),
            Output::Send { message: Message::Bound { .. }, .. } => Some(3),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        4
    }

    fn calm(&mut self, world: &mut World<Node>) {
        self.calm_from = Some(self.operations.len());
        for node in 1..=self.clients {
            self.call(node, world);
        }
    }

    fn finish(&mut self, world: &mut World<Node>) -> Result<(), Violation> {
        for node in 1..=self.clients {
            let Some(Node::Client(client, _)) = world.machine(node) else {
                return Err(Violation(format!("client {node} is down")));
            };
            if client.outstanding() > 0 {
                return Err(Violation(format!(
                    "{} calls of client {node} never ended",
                    client.outstanding()
                )));
            }
        }
        for (index, call) in self.operations.iter().enumerate() {
            if call.ended == 0 && !call.cancelled {
                return Err(self.violated(index, "never ended"));
            }
        }
        if let Some(Node::Server(server, _)) = world.machine(0)
            && server.executing() > 0
        {
            return Err(Violation(format!("{} executions never ended", server.executing())));
        }
        Ok(())
    }
}

fn config() -> Config {
    Config {
        active: Duration::from_secs(20),
        calm: Duration::from_secs(10),
        // There is no disk to fail; hints about reachability may lie.
        kinds: Kind::ALL.iter().copied().filter(|kind| *kind != Kind::Disk).collect(),
        ..Config::default()
    }
}

#[test]
fn r08_no_request_is_executed_twice_under_any_weather_and_crash() {
    let summary = sim::sweep(&config(), 0..300, |rng| Calls::new(rng, Plant::NONE)).unwrap();
    println!("{summary}");
}

#[test]
fn r08_planted_bugs_of_the_duplicate_filter_are_found() {
    let bugs = [
        Planted::RpcExecutesDuplicates,
        Planted::RpcSlotIgnoresSequence,
        Planted::RpcForgetsRefusals,
        Planted::RpcReissuesAfterRestart,
    ];
    for bug in bugs {
        let found = sim::hunt(&config(), 0..2_000, |rng| Calls::new(rng, Plant::of(bug)));
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: seed {} of {}, {}", found.seed, found.tried, found.breach);
    }
}
