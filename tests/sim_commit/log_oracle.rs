//! Registers on a replicated log, their clients, and the judge: the log's own invariants at every step, and in the end
//! whether what the clients saw is linearizable.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use quorate::history::{
    History, Limits, Operation, RegisterCall, RegisterReturn, Rejection, linearizable_by_key,
};
use quorate::sim::{Boot, Chance, Observed, Rng, Scenario, World};
use quorate_protocols::agreement::{
    Change, Command, Config, Content, Delivered, Entry, Event, Members, Message, Record, Refusal, Replica,
};
use quorate_protocols::planted::Plant;
use quorate_protocols::{Output, ProcessId, Violation, Wire};

use crate::log_registers::{State, decode, encode};
use tests::registers::{Call, Keyed};

/// Founders with registers, and others that join; clients at every node.
pub(crate) struct Registers {
    founders: Members,
    config: Config,
    /// Where records are replaced by what a replica says that they say, before a restart.
    compacts: bool,
    /// How often members change.
    restless: bool,
    states: Vec<State>,
    clients: Vec<Client>,
    /// Counts calls and returns: two operations overlap exactly when neither had returned before the other's call.
    clock: u64,
    /// Commands by place: their term, and one that had begun when they were found chosen.
    chosen: BTreeMap<u64, (u64, Bytes, u64)>,
    /// The term of what stands at each place, by whoever had delivered up to there.
    settled: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, ProcessId>,
    /// By place and term.
    entries: BTreeMap<(u64, u64), Known>,
}

/// What stands at some place.
struct Known {
    entry: Bytes,
    /// The term of the entry before it.
    before: Option<u64>,
    /// The only node at which it was seen: it may be in that one's memory alone, and gone with it.
    only: Option<usize>,
}

/// One operation; its place is its token.
struct Client {
    node: usize,
    call: Call,
    called: u64,
    /// The last place that had been delivered anywhere: a read must see it.
    floor: u64,
    fence: u64,
    /// Which place its command has, or the state that it read.
    place: Option<u64>,
    returned: Option<(u64, RegisterReturn<u64>)>,
    is_refused: bool,
    /// It must have ended when the run has.
    is_calm: bool,
}

impl Client {
    fn is_read(&self) -> bool {
        matches!(self.call.1, RegisterCall::Read)
    }
}

impl Registers {
    pub(crate) fn new(rng: &mut Rng, plant: Plant) -> Self {
        let nodes = rng.between(3, 5) as usize;
        let founders = rng.between(2, nodes as u64);
        let heartbeat = rng.duration(Duration::from_millis(20)..Duration::from_millis(60));
        let config = Config {
            heartbeat,
            election: heartbeat * rng.between(3, 8) as u32,
            outstanding_max: 64,
            batch_bytes_max: rng.between(1, 2_000) as usize,
            batch_entries_max: if rng.chance(Chance::percent(50)) {
                rng.between(1, 3) as usize
            } else {
                4_096
            },
            window_entries_max: rng.between(1, 40) as usize,
            log_entries_max: rng.between(8, 120) as usize,
            log_entries_kept: rng.between(0, 20) as usize,
            chunk_bytes: rng.between(16, 200) as usize,
            plant,
            ..Config::default()
        };
        Self {
            founders: Members::of_voters((0..founders).map(ProcessId::any_life)),
            config,
            compacts: rng.chance(Chance::percent(50)),
            restless: rng.chance(Chance::percent(50)),
            states: (0..nodes).map(|_| State::default()).collect(),
            clients: Vec::new(),
            clock: 0,
            chosen: BTreeMap::new(),
            settled: BTreeMap::new(),
            leaders: BTreeMap::new(),
            entries: BTreeMap::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Some client does something at some node.
    fn act(&mut self, is_calm: bool, world: &mut World<Replica>) {
        let node = world.rng().below(self.states.len() as u64) as usize;
        let Some(machine) = world.machine(node) else { return };
        let (term, is_member) = (machine.term(), machine.members().name_of(world.id(node)).is_some());
        let token = self.clients.len() as u64;
        let key = world.rng().below(KEYS);
        // Values differ, so that the checker can tell them apart.
        let call = match world.rng().below(5) {
            0 | 1 => RegisterCall::Write(token),
            2 => {
                let expected = self.states[node].values.get(&key).copied();
                RegisterCall::CompareAndSet { expected, new: token }
            }
            _ => RegisterCall::Read,
        };
        let is_fenced = term > 0 && !is_calm && world.rng().chance(Chance::percent(10));
        let fence = if is_fenced { term } else { 0 };
        let command = match &call {
            RegisterCall::Read => Command::Read { token },
            _ => Command::Propose { token, fence, payload: encode(token, &(key, call.clone())) },
        };
        let called = self.tick();
        self.clients.push(Client {
            node,
            call: (key, call),
            called,
            floor: self.chosen.last_key_value().map_or(0, |(place, _)| *place),
            fence,
            place: None,
            returned: None,
            is_refused: false,
            is_calm: is_calm && is_member,
        });
        world.command(node, command);
    }

    /// Whoever leads is asked to change the members by a step.
    fn change_members(&mut self, world: &mut World<Replica>) {
        let leads = |node: &usize| world.machine(*node).is_some_and(Replica::is_leader);
        let Some(leader) = (0..self.states.len()).find(leads) else { return };
        let Some(present) = world.machine(leader).map(|machine| machine.members().clone()) else { return };
        let name = ProcessId::any_life(world.rng().below(self.states.len() as u64));
        let change = if present.learners.contains(&name) {
            Change::Voter(name)
        } else if present.voters.contains(&name) && world.rng().chance(Chance::percent(50)) {
            Change::Gone(name)
        } else {
            Change::Learner(name)
        };
        let token = CHANGES + self.clock;
        world.command(leader, Command::Reconfigure { token, change });
    }

    /// What the logs in memory say must fit together: one entry for one place and term, after one term.
    fn compare_logs(&mut self, world: &World<Replica>) -> Result<(), Violation> {
        for node in 0..self.states.len() {
            let Some(machine) = world.machine(node) else { continue };
            for index in machine.places() {
                let Some(entry) = machine.entry(index) else { continue };
                let before = machine.entry(index - 1).map(|entry| entry.term);
                let bytes = entry.to_bytes();
                let new = || Known { entry: bytes.clone(), before, only: Some(node) };
                let known = self.entries.entry((index, entry.term)).or_insert_with(new);
                let follows = before.is_none() || known.before.is_none() || known.before == before;
                if known.entry != bytes || !follows {
                    return Err(Violation(format!(
                        "log matching: {node} has another entry {entry:?} at {index}"
                    )));
                }
                known.before = known.before.or(before);
                known.only = known.only.filter(|only| *only == node);
            }
        }
        Ok(())
    }

    /// Up to where replicas have delivered, the same stands in their logs, also where it is no command.
    fn settle(&mut self, node: usize, last: u64, world: &World<Replica>) -> Result<(), Violation> {
        let Some(machine) = world.machine(node) else { return Ok(()) };
        let from = self.states[node].delivered.max(*machine.places().start());
        for index in from..=last {
            let Some(entry) = machine.entry(index) else { continue };
            let known = *self.settled.entry(index).or_insert(entry.term);
            if known != entry.term {
                return Err(Violation(format!(
                    "{node} has settled on term {} at {index}, and others on {known}",
                    entry.term
                )));
            }
        }
        Ok(())
    }

    /// The order of the log, with each read where its state was, is one in which everything happened: nothing stands before
    /// what had returned when it was called, and each returned what it returns in that order. So what the clients saw is
    /// linearizable, however long the checker would have to search.
    fn order_explains_all(&self) -> Result<(), Violation> {
        let placed = |client: &&Client| client.place.is_some();
        let mut clients: Vec<&Client> = self.clients.iter().filter(placed).collect();
        // At the same place reads come after the command, in any order.
        clients.sort_by_key(|client| (client.place, client.is_read()));
        let mut state = State::default();
        let mut latest_call = 0;
        for client in clients {
            latest_call = latest_call.max(client.called);
            let expected = state.apply(&client.call);
            if let Some((returned_at, returned)) = &client.returned
                && (*returned_at < latest_call || *returned != expected)
            {
                return Err(Violation(format!(
                    "{:?} returned {returned:?} at place {:?}, where it returns {expected:?}, or before an earlier one was called",
                    client.call, client.place
                )));
            }
        }
        Ok(())
    }

    fn leads(&mut self, who: Observed, term: u64, world: &World<Replica>) -> Result<(), Violation> {
        if let Some(other) = self.leaders.insert(term, who.id)
            && other != who.id
        {
            return Err(Violation(format!("{other} and {} lead term {term}", who.id)));
        }
        let Some(machine) = world.machine(who.node) else { return Ok(()) };
        if machine.term() != term || !machine.is_leader() {
            return Ok(());
        }
        for (index, (entry_term, payload, chosen_in)) in &self.chosen {
            let is_there = match machine.entry(*index) {
                Some(Entry { term, content: Content::Command(proposal) }) => {
                    term == entry_term && proposal.payload == *payload
                }
                Some(_) => false,
                None => machine.snapshot().index >= *index,
            };
            if !is_there && *chosen_in < term {
                return Err(Violation(format!(
                    "leader {} of term {term} lacks what is chosen at {index}",
                    who.id
                )));
            }
        }
        Ok(())
    }

    /// What must hold after a time without faults. Of a planted bug it is not asked: that must break more than this.
    fn must_have_come_to_an_end(&self, world: &World<Replica>) -> Result<(), Violation> {
        let machines = (0..self.states.len()).filter_map(|node| world.machine(node));
        let leaders = machines.filter(|machine| machine.is_leader());
        let Some(leader) = leaders.max_by_key(|leader| leader.term()) else {
            return Err(Violation("nobody leads in the end".into()));
        };
        let (members, all) = (leader.members(), leader.delivered());
        for name in members.voters.iter().chain(&members.learners) {
            let delivered = world.machine(name.node as usize).map(Replica::delivered);
            if delivered != Some(all) {
                return Err(Violation(format!("{name} has delivered {delivered:?} of {all}")));
            }
        }
        let is_member = |client: &Client| members.name_of(world.id(client.node)).is_some();
        let open = |client: &Client| client.is_calm && client.returned.is_none() && is_member(client);
        match self.clients.iter().position(open) {
            Some(token) => {
                Err(Violation(format!("operation {token} at {} has not ended", self.clients[token].node)))
            }
            None => Ok(()),
        }
    }

    fn deliver(&mut self, node: usize, now_in: u64, delivered: &Delivered) -> Result<(), Violation> {
        let Delivered { index, term, token, payload } = delivered;
        let state = &mut self.states[node];
        if *index <= state.delivered || *term < state.term {
            return Err(Violation(format!("{node} delivers {index} of term {term} out of order")));
        }
        (state.delivered, state.term) = (*index, *term);
        let known = self.chosen.entry(*index).or_insert_with(|| (*term, payload.clone(), now_in));
        if (known.0, &known.1) != (*term, payload) {
            return Err(Violation(format!("{node} delivers another command at {index}")));
        }
        let (id, call) = decode(payload);
        let returned = state.apply(&call);
        let now = self.tick();
        let client = &mut self.clients[id as usize];
        if *client.place.get_or_insert(*index) != *index {
            return Err(Violation(format!("command {id} is delivered at {index}, and before")));
        }
        if client.is_refused || (client.fence != 0 && client.fence != *term) {
            return Err(Violation(format!("command {id}, which was refused, is delivered at {index}")));
        }
        if let Some(token) = token {
            if *token != id || client.returned.is_some() {
                return Err(Violation(format!("token {token} comes for command {id}, or twice")));
            }
            client.returned = Some((now, returned));
        }
        Ok(())
    }
}

impl Scenario for Registers {
    type Machine = Replica;

    fn nodes(&self) -> usize {
        self.states.len()
    }

    fn boot(&mut self, boot: Boot<Replica>) -> Replica {
        let make = |records| {
            let is_founder = self.founders.name_of(boot.id).is_some();
            let founders = if is_founder { self.founders.clone() } else { Members::default() };
            Replica::new(boot.id, boot.now, boot.seed, self.config, founders, records).unwrap()
        };
        let mut replica = make(boot.records);
        if self.compacts {
            replica = make(replica.records());
        }
        self.entries.retain(|_, known| known.only != Some(boot.node));
        let snapshot = replica.snapshot();
        self.states[boot.node] = State::of(snapshot.index, snapshot.term, snapshot.data.clone());
        replica
    }

    fn start(&mut self, world: &mut World<Replica>) {
        world.wake_in(Duration::from_millis(300), ACT);
        world.wake_in(Duration::from_millis(500), COMPARE);
        if self.restless {
            world.wake_in(Duration::from_secs(1), CHANGE);
        }
    }

    fn wake(&mut self, token: u64, world: &mut World<Replica>) -> Result<(), Violation> {
        match token {
            COMPARE => {
                self.compare_logs(world)?;
                world.wake_in(Duration::from_millis(400), COMPARE);
            }
            CHANGE if !world.is_calm() => {
                self.change_members(world);
                let pause = world.rng().duration(Duration::from_millis(20)..Duration::from_millis(1_500));
                world.wake_in(pause, CHANGE);
            }
            ACT if !world.is_calm() => {
                for _ in 0..=world.rng().below(3) {
                    self.act(false, world);
                }
                let pause = world.rng().duration(Duration::from_millis(1)..Duration::from_millis(250));
                world.wake_in(pause, ACT);
            }
            ACT_CALMLY => self.act(true, world),
            _ => {}
        }
        Ok(())
    }

    fn calm(&mut self, world: &mut World<Replica>) {
        for tenth in 20..35 {
            world.wake_in(Duration::from_millis(100 * tenth), ACT_CALMLY);
        }
    }

    fn observe(&mut self, who: Observed, event: &Event, world: &mut World<Replica>) -> Result<(), Violation> {
        match event {
            Event::Delivered(run) => {
                let last = run.last().map_or(0, |delivered| delivered.index);
                self.settle(who.node, last, world)?;
                let now_in = world.machine(who.node).map_or(u64::MAX, Replica::term);
                run.iter().try_for_each(|delivered| self.deliver(who.node, now_in, delivered))?
            }
            Event::Readable { token } => {
                let (floor, seen) = (self.clients[*token as usize].floor, self.states[who.node].delivered);
                if seen < floor {
                    return Err(Violation(format!("read {token} sees {seen} and is to see {floor}")));
                }
                let returned = self.states[who.node].apply(&self.clients[*token as usize].call);
                let now = self.tick();
                // A snapshot's place may be one without a command.
                let place = self.chosen.range(..=seen).next_back().map_or(0, |(place, _)| *place);
                let client = &mut self.clients[*token as usize];
                (client.place, client.returned) = (Some(place), Some((now, returned)));
            }
            Event::Refused { token, reason } => {
                if *token < CHANGES {
                    let client = &mut self.clients[*token as usize];
                    if client.place.is_some() || client.returned.is_some() {
                        return Err(Violation(format!("{token} was delivered and is refused: {reason}")));
                    }
                    client.is_refused = true;
                    if !matches!(reason, Refusal::Fenced { .. } | Refusal::Full { .. }) {
                        return Err(Violation(format!("{token} refused: {reason}")));
                    }
                }
            }
            Event::Restore { index, data } => {
                self.states[who.node] = State::of(*index, self.states[who.node].term, data.clone());
            }
            Event::SnapshotWanted { index } => {
                let data = self.states[who.node].snapshot();
                let delay = world.rng().duration(Duration::ZERO..Duration::from_millis(30));
                world.command_in(delay, who.node, Command::Snapshot { index: *index, data });
            }
            Event::Leader { term, leader } if *leader == Some(who.id) => self.leads(who, *term, world)?,
            // It is done, and nobody here knows what came of it: the checker takes it for unknown.
            Event::Missed { token } if *token < CHANGES => self.clients[*token as usize].is_calm = false,
            Event::Missed { .. } | Event::Reconfigured { .. } | Event::Leader { .. } | Event::Members(_) => {}
        }
        Ok(())
    }

    fn promise(&self, output: &Output<Replica>) -> Option<u8> {
        match output {
            Output::Persist(Record::Promise { .. }) => Some(0),
            Output::Persist(Record::Entries { .. }) => Some(1),
            Output::Persist(Record::Part { .. }) => Some(2),
            Output::Send { message: Message::Answer { granted: true, .. }, .. } => Some(3),
            Output::Send { message: Message::Appended { held: Ok(_), .. }, .. } => Some(4),
            Output::Send { message: Message::Append { entries, .. }, .. } if !entries.is_empty() => Some(5),
            Output::Send { message: Message::Ask { is_vote: true, .. }, .. } => Some(6),
            Output::Event(Event::Delivered(_)) => Some(7),
            _ => None,
        }
    }

    fn promise_classes(&self) -> u8 {
        8
    }

    fn finish(&mut self, world: &mut World<Replica>) -> Result<(), Violation> {
        self.compare_logs(world)?;
        if self.config.plant == Plant::NONE {
            self.must_have_come_to_an_end(world)?;
        }
        self.order_explains_all()?;
        let mut history = History::default();
        // What has no answer and no place in the log had no effect; to leave it out saves the checker many attempts.
        let counts = |client: &Client| client.returned.is_some() || client.place.is_some();
        for (process, client) in self.clients.iter().enumerate().filter(|(_, client)| counts(client)) {
            history.push(Operation {
                process: process as u64,
                call: client.call.clone(),
                called: client.called,
                returned: client.returned.clone(),
            });
        }
        let mut limits = Limits::default();
        limits.steps_max = 50_000;
        match linearizable_by_key(&Keyed, &history, |call| call.0, &limits) {
            // The log's own order has proved it already.
            Ok(()) | Err(Rejection::Undecided(_)) => Ok(()),
            Err(rejection) => Err(Violation(rejection.to_string())),
        }
    }
}

const KEYS: u64 = 6;
const ACT: u64 = 0;
const ACT_CALMLY: u64 = 1;
const COMPARE: u64 = 2;
const CHANGE: u64 = 3;
/// Tokens of changes of members begin here.
const CHANGES: u64 = 1 << 40;
