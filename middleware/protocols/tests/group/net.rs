//! A handful of members on a network that does exactly what a test says: no chance, every message takes as long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::group::{Command, Config, Event, TotalGroup};
use quorate_protocols::stack::{Ended, View};
use quorate_protocols::{Input, Lane, Machine, Output, Outputs, ProcessId, Time, Wire};

type Message = <TotalGroup as Machine>::Message;

/// Members of one group in total order, node `n` being the `n`-th to have joined.
pub(crate) struct Net {
    now: Time,
    pub(crate) members: Vec<Option<TotalGroup>>,
    /// What each was told, beside views.
    pub(crate) told: Vec<Vec<Told>>,
    /// Who does not hear whom: nothing from the first reaches the second.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// From the first to the second no ordinary message gets through.
    pub(crate) lossy: BTreeSet<(usize, usize)>,
    /// Messages that were sent, to each receiver one.
    pub(crate) sent: u64,
    /// Messages for which a lane had no room.
    pub(crate) overflown: u64,
    ids: Vec<ProcessId>,
    mail: BTreeMap<(Time, u64), (usize, usize, Message)>,
    /// Until when each link's ordinary lane is busy with what it took.
    busy: BTreeMap<(usize, usize), Time>,
}

/// What the application of a member saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Delivered(usize, Bytes),
    Ended(Ended),
    QuorumLost,
}

impl Net {
    /// A group of `count` members, all with the state.
    pub(crate) fn new(count: usize, config: Config) -> Self {
        let mut net = Self {
            now: Time::from_nanos(1_000_000_000),
            members: (0..count).map(|node| Some(TotalGroup::total(id(node), config))).collect(),
            told: vec![Vec::new(); count],
            cut: BTreeSet::new(),
            lossy: BTreeSet::new(),
            sent: 0,
            overflown: 0,
            ids: (0..count).map(id).collect(),
            mail: BTreeMap::new(),
            busy: BTreeMap::new(),
        };
        net.command(0, Command::Create { group: 1 });
        for node in 1..count {
            net.join(node);
            net.run(Duration::from_millis(500));
        }
        net
    }

    pub(crate) fn join(&mut self, node: usize) {
        self.command(node, Command::Join { contacts: vec![id(0)] });
    }

    /// One more node joins.
    pub(crate) fn add(&mut self, node: usize, config: Config) {
        self.ids.push(id(node));
        self.members.push(Some(TotalGroup::total(id(node), config)));
        self.told.push(Vec::new());
        self.join(node);
    }

    /// The node joins anew, in its next life.
    pub(crate) fn be_reborn(&mut self, node: usize, config: Config) {
        self.ids[node].incarnation += 1;
        self.members[node] = Some(TotalGroup::total(self.ids[node], config));
        self.join(node);
    }

    pub(crate) fn command(&mut self, node: usize, command: Command) {
        self.feed(node, Input::Command(command));
    }

    pub(crate) fn cast(&mut self, node: usize, payload: impl Into<Bytes>) {
        self.command(node, Command::Cast(payload.into()));
    }

    /// Nothing passes between the two for a while.
    pub(crate) fn part(&mut self, one: usize, other: usize) {
        self.cut.extend([(one, other), (other, one)]);
    }

    pub(crate) fn view(&self, node: usize) -> Option<&View> {
        self.members[node].as_ref()?.view()
    }

    /// The nodes in the member's view.
    pub(crate) fn nodes(&self, node: usize) -> Vec<usize> {
        let members = self.view(node).into_iter().flat_map(|view| view.members.iter());
        members.map(|member| member.node as usize).collect()
    }

    pub(crate) fn delivered(&self, node: usize) -> Vec<(usize, Bytes)> {
        let delivered = self.told[node].iter().filter_map(|told| match told {
            Told::Delivered(from, payload) => Some((*from, payload.clone())),
            _ => None,
        });
        delivered.collect()
    }

    pub(crate) fn has_ended(&self, node: usize) -> Option<Ended> {
        self.told[node].iter().find_map(|told| match told {
            Told::Ended(why) => Some(*why),
            _ => None,
        })
    }

    /// Lets time pass, in the order in which messages arrive and members are due.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.step(end) {}
        self.now = end;
    }

    fn step(&mut self, end: Time) -> bool {
        let due = |node: usize| Some((self.members[node].as_ref()?.deadline()?.max(self.now), node));
        let tick = (0..self.members.len()).filter_map(due).min().filter(|(at, _)| *at <= end);
        let mail = self.mail.first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= end);
        match (mail, tick) {
            (Some(key), tick) if tick.is_none_or(|(at, _)| key.0 <= at) => {
                let Some((from, to, message)) = self.mail.remove(&key) else { return false };
                self.now = self.now.max(key.0);
                self.feed(to, Input::Received { from: self.ids[from], message });
            }
            (_, Some((at, node))) => {
                self.now = at;
                self.feed(node, Input::Tick);
            }
            _ => return false,
        }
        true
    }

    fn feed(&mut self, node: usize, input: Input<TotalGroup>) {
        let Some(member) = self.members[node].as_mut() else { return };
        let mut out = Outputs::new();
        member.handle(self.now, input, &mut out);
        member.check().expect("the invariants hold");
        let outputs: Vec<_> = out.drain().collect();
        for output in outputs {
            match output {
                Output::Send { to, lane, message } => {
                    for peer in to.as_slice() {
                        let index = peer.node as usize;
                        if *peer == self.ids[index] || peer.incarnation == ProcessId::ANY_LIFE {
                            self.send(node, index, lane, message.clone());
                        }
                    }
                }
                Output::Event(Event::StateWanted(view)) => {
                    let state = Bytes::from_static(b"state");
                    self.command(node, Command::State { view, state });
                }
                Output::Event(Event::Deliver { from, payload }) => {
                    self.told[node].push(Told::Delivered(from.node as usize, payload));
                }
                Output::Event(Event::Ended(why)) => self.told[node].push(Told::Ended(why)),
                Output::Event(Event::QuorumLost) => self.told[node].push(Told::QuorumLost),
                Output::Event(Event::Rejected(_) | Event::RejectedOutside(_)) => {
                    panic!("{node} rejects a message")
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, lane: Lane, message: Message) {
        self.sent += 1;
        let link = (from, to);
        let ordinary = lane == Lane::Ordinary;
        if self.cut.contains(&link) || (ordinary && self.lossy.contains(&link)) {
            return;
        }
        let mut at = self.now;
        if ordinary {
            // The lane takes so much and no more, and passes it on as fast as it can.
            let free = self.busy.get(&link).copied().unwrap_or_default().max(self.now);
            let took = Duration::from_nanos(message.to_bytes().len() as u64 * NANOS_A_BYTE);
            if free.since(self.now) + took > Duration::from_nanos(LANE_BYTES * NANOS_A_BYTE) {
                self.overflown += 1;
                return;
            }
            at = free + took;
            self.busy.insert(link, at);
        }
        self.mail.insert((at + LATENCY, self.sent), (from, to, message));
    }
}

fn id(node: usize) -> ProcessId {
    ProcessId { node: node as u64, incarnation: 1 }
}

const LATENCY: Duration = Duration::from_micros(100);

/// As much as a node's ordinary lane takes by default.
const LANE_BYTES: u64 = 4 << 20;

/// One gigabit a second.
const NANOS_A_BYTE: u64 = 8;
