//! One node of the simulation: a client, or a service with its duplicate filter, its completion records and its state.
//!
//! Method      what the async face does with tasks and a journal is done here with outputs: records are persisted, and
//!             what must not leave before they are durable stands behind a barrier.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::rpc::{
    Begun, CallId, Client, ClientCommand, ClientEvent, CompletionRecord, Completions, CompletionsConfig,
    Doubt, Execution, Message, Refusal, Request, Semantics, Server, ServerCommand, ServerConfig, ServerEvent,
    Verdict,
};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Violation};

pub(crate) enum Node {
    Client(Box<Client>, Outputs<Client>),
    Service(Box<Service>),
    /// A process that came back without anything to do.
    Idle,
}

#[derive(Debug, Clone)]
pub(crate) enum Command {
    Call {
        operation: u32,
        semantics: Semantics,
        budget: Duration,
    },
    /// Cancel the newest call.
    Cancel,
    Complete {
        execution: Execution,
        operation: u32,
    },
    /// The transport believes that a peer is gone.
    Suspect(ProcessId),
}

#[derive(Debug)]
pub(crate) enum Event {
    Client(ClientEvent),
    /// The service's own code begins.
    Execute {
        execution: Execution,
        operation: u32,
    },
    /// The service's own code is stopped.
    Abort(Execution),
}

/// A service that counts how often each operation took effect.
pub(crate) struct Service {
    server: Server,
    heard: Outputs<Server>,
    completions: Completions,
    records: Vec<CompletionRecord>,
    /// How often each operation took effect, over all lives.
    pub(crate) effects: BTreeMap<u32, u32>,
    /// Copies of requests that execute already.
    copies: Vec<(Request, Execution, u32)>,
    /// Everything that was begun and not ended.
    running: BTreeSet<Execution>,
    /// Whether it hears of processes that came back before they have said anything: it does not of those that never
    /// connect again.
    pub(crate) hears_of_returns: bool,
}

impl Service {
    /// A new life, from the records that are durable. `snapshot`: as if they had been replaced by a snapshot before.
    pub(crate) fn new(
        now: Time,
        config: ServerConfig,
        limits: CompletionsConfig,
        records: &[CompletionRecord],
        snapshot: bool,
    ) -> Self {
        let mut completions = Completions::new(limits.clone());
        let mut effects = BTreeMap::new();
        for record in records {
            completions.replay(now, record);
            if let CompletionRecord::Done { change, .. } | CompletionRecord::Change(change) = record
                && !change.is_empty()
            {
                *effects.entry(number(change)).or_default() += 1;
            }
        }
        if snapshot {
            let records = completions.snapshot();
            completions = Completions::new(limits);
            for record in &records {
                completions.replay(now, record);
            }
        }
        Self {
            server: Server::new(config),
            heard: Outputs::new(),
            completions,
            records: Vec::new(),
            effects,
            copies: Vec::new(),
            running: BTreeSet::new(),
            hears_of_returns: true,
        }
    }

    pub(crate) fn executing(&self) -> u32 {
        self.server.executing()
    }

    /// Whether something executes for a process of which `lives` says no.
    pub(crate) fn is_executing_for_nobody(&self, lives: impl Fn(ProcessId) -> bool) -> bool {
        self.running.iter().any(|execution| self.server.is_executing(execution) && !lives(execution.from))
    }

    fn step(&mut self, now: Time, input: Input<Server>, out: &mut Outputs<Node>) {
        let mut heard = std::mem::take(&mut self.heard);
        self.server.handle(now, input, &mut heard);
        for output in heard.drain() {
            match output {
                Output::Send { to, lane, message } => {
                    for to in to.as_slice() {
                        out.send(*to, lane, message.clone());
                    }
                }
                Output::Event(ServerEvent::Execute { execution, body, acknowledged, unless, .. }) => {
                    self.running.insert(execution);
                    self.execute(now, execution, number(&body), acknowledged, unless, out);
                }
                Output::Event(ServerEvent::Abort(execution)) => {
                    self.running.remove(&execution);
                    self.copies.retain(|(_, copy, _)| *copy != execution);
                    if let Some(request) = execution.request() {
                        self.completions.abandon(request);
                    }
                    out.event(Event::Abort(execution));
                }
                Output::Event(ServerEvent::SeatWanted { from, client }) => {
                    let seat = self.completions.take_seat(now, from, client, &mut self.records);
                    if let Some((_, stable)) = seat {
                        self.keep(stable, out);
                    }
                    let seat = seat.map(|(seat, _)| seat);
                    self.step(now, Input::Command(ServerCommand::Seated { from, client, seat }), out);
                }
                Output::Persist(()) | Output::Barrier => {}
            }
        }
        self.heard = heard;
    }

    /// Writes the records, and holds what follows until so many are durable.
    fn keep(&mut self, stable: u64, out: &mut Outputs<Node>) {
        for record in self.records.drain(..) {
            out.persist(record);
        }
        if stable > 0 {
            out.barrier();
        }
    }

    fn execute(
        &mut self,
        now: Time,
        execution: Execution,
        operation: u32,
        acknowledged: u64,
        unless: Option<Refusal>,
        out: &mut Outputs<Node>,
    ) {
        let Some(request) = execution.request() else {
            out.event(Event::Execute { execution, operation });
            return;
        };
        let verdict = match self.completions.begin(now, request, acknowledged, unless) {
            Begun::Execute => {
                out.event(Event::Execute { execution, operation });
                return;
            }
            Begun::Running => {
                self.copies.push((request, execution, operation));
                return;
            }
            Begun::Recorded { reply, stable } => {
                self.keep(stable, out);
                Verdict::Done(reply)
            }
            Begun::Refused(refusal) => Verdict::Refused(refusal),
            Begun::Forgotten => Verdict::Doubtful(Doubt::RecordForgotten),
            Begun::Stale => Verdict::Doubtful(Doubt::Abandoned),
        };
        self.answer(now, execution, verdict, out);
    }

    fn answer(&mut self, now: Time, execution: Execution, verdict: Verdict, out: &mut Outputs<Node>) {
        self.running.remove(&execution);
        self.step(now, Input::Command(ServerCommand::Complete { execution, verdict }), out);
    }

    /// The service's own code has ended.
    fn complete(&mut self, now: Time, execution: Execution, operation: u32, out: &mut Outputs<Node>) {
        let reply = Bytes::copy_from_slice(&reply_to(operation).to_le_bytes());
        let Some(request) = execution.request() else {
            return self.answer(now, execution, Verdict::Done(reply), out);
        };
        let change = Bytes::copy_from_slice(&operation.to_le_bytes());
        let stable = self.completions.complete(request, reply.clone(), change, &mut self.records);
        let verdict = match stable {
            Some(stable) => {
                *self.effects.entry(operation).or_default() += 1;
                self.keep(stable, out);
                Verdict::Done(reply)
            }
            None => Verdict::Doubtful(Doubt::Abandoned),
        };
        self.answer(now, execution, verdict, out);
        let (again, others) = std::mem::take(&mut self.copies)
            .into_iter()
            .partition::<Vec<_>, _>(|(copied, ..)| *copied == request);
        self.copies = others;
        for (_, execution, operation) in again {
            self.execute(now, execution, operation, 0, None, out);
        }
    }
}

impl Machine for Node {
    type Command = Command;
    type Event = Event;
    type Message = Message;
    type Record = CompletionRecord;

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
                        let sequence = client.upcoming().sequence - 1;
                        for slot in 0..8 {
                            let id = CallId { slot, sequence };
                            client.handle(now, Input::Command(ClientCommand::Cancel(id)), outputs);
                        }
                        return forward(outputs, out);
                    }
                    Input::Command(Command::Complete { .. } | Command::Suspect(_)) => return,
                };
                client.handle(now, input, outputs);
                forward(outputs, out);
            }
            Self::Service(service) => {
                let input = match input {
                    Input::Tick => Input::Tick,
                    Input::Received { from, message } => Input::Received { from, message },
                    Input::Reachable(_) if !service.hears_of_returns => return,
                    Input::Reachable(peer) => Input::Reachable(peer),
                    Input::Unreachable(peer) => Input::Unreachable(peer),
                    Input::Command(Command::Complete { execution, operation }) => {
                        return service.complete(now, execution, operation, out);
                    }
                    Input::Command(Command::Suspect(peer)) => Input::Unreachable(peer),
                    Input::Command(_) => return,
                };
                service.step(now, input, out);
            }
            Self::Idle => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        match self {
            Self::Client(client, _) => client.deadline(),
            Self::Service(service) => service.server.deadline(),
            Self::Idle => None,
        }
    }

    fn check(&self) -> Result<(), Violation> {
        match self {
            Self::Client(client, _) => client.check(),
            Self::Service(service) => service.server.check().and_then(|()| service.completions.check()),
            Self::Idle => Ok(()),
        }
    }
}

fn forward(from: &mut Outputs<Client>, to: &mut Outputs<Node>) {
    for output in from.drain() {
        match output {
            Output::Send { to: targets, lane, message } => {
                for target in targets.as_slice() {
                    to.send(*target, lane, message.clone());
                }
            }
            Output::Event(event) => to.event(Event::Client(event)),
            Output::Persist(()) | Output::Barrier => {}
        }
    }
}

/// What the service computes: a caller can tell that the reply is the one to its own call.
pub(crate) const fn reply_to(operation: u32) -> u64 {
    (operation as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1
}

fn number(bytes: &Bytes) -> u32 {
    bytes[..].try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX)
}
