//! Members that are processes on machines of their own, killed, stopped and cut off: what they saw is judged by the oracle of
//! the simulation.
//!
//! `QUORATE_STORM_SECONDS` makes each storm longer, with faults drawn from `QUORATE_STORM_SEED`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate::group::{Builder, Event, Events, Fifo, Group, JoinError, Order, Total, View, ViewId};
use quorate::node::{Address, Node};
use quorate::sim::Rng;
use quorate_protocols::{ProcessId, Violation};
use tests::oracle::{Oracle, Promise, State, ensure};
use tests::{Orders, Worker, in_namespace, ip, tcp, try_ip};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

#[test]
fn g07_total_order_survives_members_that_are_killed_and_stopped_and_cut_off() {
    let faults = [Fault::Kill(1), Fault::Stop(2), Fault::Cut(3)];
    storm(
        "storm::g07_total_order_survives_members_that_are_killed_and_stopped_and_cut_off",
        "total",
        &faults,
    );
}

#[test]
fn g04_fifo_order_survives_members_that_are_killed_and_stopped_and_cut_off() {
    let faults = [Fault::Cut(1), Fault::Kill(2)];
    storm("storm::g04_fifo_order_survives_members_that_are_killed_and_stopped_and_cut_off", "fifo", &faults);
}

/// What befalls members, the first of them by this number.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL, and a new process.
    Kill(u64),
    /// SIGSTOP for this one and the next, for longer than silence is trusted.
    Stop(u64),
    /// Its link is down for longer than silence is trusted.
    Cut(u64),
}

fn place(number: u64) -> Address {
    format!("tcp://10.2.0.{number}:7000").parse().unwrap()
}

/// The end of a member's link at the bridge.
fn port(number: u64) -> String {
    format!("member{number}")
}

/// The program of a member. Does nothing unless a test above starts it.
#[tokio::test]
async fn member_in_a_storm() {
    let Some(orders) = Orders::of_this_process() else { return };
    let words: Vec<&str> = orders.words.split(' ').collect();
    let [number, founds, order, directory] = words[..] else { panic!("{words:?}") };
    let number: u64 = number.parse().unwrap();
    assert_eq!(orders.next().await.as_deref(), Some("connected"));
    ip(&["link", "set", "lo", "up"]);
    ip(&["addr", "add", &format!("10.2.0.{number}/24"), "dev", "eth0"]);
    ip(&["link", "set", "eth0", "up"]);
    let node = orders.net.dialler(number).listen(place(number)).start().await.unwrap();
    let member = Member { node, number, directory: directory.into(), founds: founds == "found" };
    match order {
        "total" => member.live(Builder::<Total>::total, true, orders).await,
        _ => member.live(Builder::<Fifo>::fifo, false, orders).await,
    }
}

struct Member {
    node: Node,
    number: u64,
    directory: String,
    founds: bool,
}

impl Member {
    /// One membership after the other, until the parent has enough.
    async fn live<O: Order>(
        mut self,
        builder: impl Fn(&'static str) -> Builder<O>,
        is_ordered: bool,
        orders: Orders,
    ) {
        let (sender, mut wishes) = mpsc::channel(8);
        let orders = std::sync::Arc::new(orders);
        let hearing = orders.clone();
        tokio::spawn(async move {
            while let Some(order) = hearing.next().await {
                let _ = sender.send(order).await;
            }
        });
        let mut casts = true;
        loop {
            let (group, events) = self.enter(&builder).await;
            let mut life = Life::new(&group, &self.directory, is_ordered);
            if !life.live(&group, events, &mut wishes, &orders, &mut casts).await {
                return;
            }
        }
    }

    async fn enter<O: Order>(&mut self, builder: &impl Fn(&'static str) -> Builder<O>) -> (Group<O>, Events) {
        let contacts: Vec<_> = (1..=MEMBERS).filter(|other| *other != self.number).map(place).collect();
        loop {
            let entered = if std::mem::take(&mut self.founds) {
                builder("storm").create(&self.node).await
            } else {
                builder("storm").join(&self.node, &contacts).await
            };
            match entered {
                Ok(entered) => return entered,
                Err(JoinError::Deadline { .. } | JoinError::Ended(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// One membership, and what it wrote down.
struct Life {
    me: ProcessId,
    log: File,
    is_ordered: bool,
    state: State,
    view: Option<View>,
    sent: u64,
}

impl Life {
    fn new<O: Order>(group: &Group<O>, directory: &str, is_ordered: bool) -> Self {
        let me = group.me();
        let path = Path::new(directory).join(format!("{}.{}", me.node, me.incarnation));
        let log = File::create_new(path).unwrap();
        Self { me, log, is_ordered, state: State::default(), view: None, sent: 0 }
    }

    /// One write a line: it is there whole or not at all.
    fn note(&mut self, line: String) {
        self.log.write_all(line.as_bytes()).unwrap();
    }

    /// False when the parent has enough.
    async fn live<O: Order>(
        &mut self,
        group: &Group<O>,
        mut events: Events,
        wishes: &mut mpsc::Receiver<String>,
        orders: &Orders,
        casts: &mut bool,
    ) -> bool {
        let mut ticks = tokio::time::interval(CAST_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return true };
                    self.on_event(event);
                }
                wish = wishes.recv() => match wish.as_deref() {
                    None => return false,
                    Some("calm") => *casts = false,
                    Some(_) => orders.say(&self.status()),
                },
                _ = ticks.tick(), if *casts && self.view.is_some() => {
                    self.sent += 1;
                    let mut payload = BytesMut::new();
                    for part in [self.me.node, self.me.incarnation, self.sent] {
                        payload.put_u64_le(part);
                    }
                    self.note("C\n".into());
                    // Nobody reads the events meanwhile: there is room for more than are cast while a view changes.
                    if group.cast(payload.freeze()).await.is_err() {
                        return true;
                    }
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::View(view) => {
                let mut line = format!("V {} {}", view.id.number, view.quorum_min);
                for (member, synced) in view.members.iter().zip(view.synced.iter()) {
                    write!(line, " {} {} {}", member.node, member.incarnation, u8::from(*synced)).unwrap();
                }
                self.note(line + "\n");
                self.view = Some(view);
            }
            Event::Message { from, payload } => {
                let number = (&payload[16..]).get_u64_le();
                self.note(format!("D {} {} {number}\n", from.node, from.incarnation));
                self.state.apply(from, number, self.is_ordered);
            }
            Event::StateWanted(request) => request.answer(self.state.encode(0)),
            Event::State(bytes) => {
                let words: Vec<_> = bytes.chunks(8).map(|mut word| word.get_u64_le().to_string()).collect();
                self.note(format!("S {}\n", words.join(" ")));
                self.state = State::decode(bytes);
            }
            _ => {}
        }
    }

    /// The view and its size, whether all own messages are here, and the state.
    fn status(&self) -> String {
        let (number, size) = self.view.as_ref().map_or((0, 0), |view| (view.id.number, view.members.len()));
        let is_settled = self.state.last.get(&self.me).copied().unwrap_or(0) == self.sent;
        let mut state = self.state.encode(0);
        format!("{number} {size} {is_settled} {}", state.get_u64_le())
    }
}

fn storm(test: &'static str, order: &'static str, faults: &[Fault]) {
    let long = std::env::var("QUORATE_STORM_SECONDS").ok().and_then(|text| text.parse().ok());
    let seed = std::env::var("QUORATE_STORM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    in_namespace(test, async {
        if let Err(refused) = try_ip(&["link", "add", "bridge", "type", "bridge"]) {
            return println!("{test} skipped: no bridges: {refused}");
        }
        ip(&["link", "set", "bridge", "up"]);
        let directory = tempfile::tempdir().unwrap();
        let mut sea =
            Sea { order, directory: directory.path().to_str().unwrap().into(), members: BTreeMap::new() };
        for number in 1..=MEMBERS {
            sea.launch(number, if number == 1 { "found" } else { "join" }).await;
        }
        sea.gather(false).await;
        for fault in faults {
            sea.befall(*fault).await;
        }
        let (mut rng, until) = (Rng::new(seed), Instant::now() + Duration::from_secs(long.unwrap_or(0)));
        while Instant::now() < until {
            let number = 1 + rng.below(MEMBERS);
            let fault = [Fault::Kill, Fault::Stop, Fault::Cut][rng.below(3) as usize](number);
            sea.befall(fault).await;
        }
        for member in sea.members.values_mut() {
            member.tell("calm").await;
        }
        sea.gather(true).await;
        drop(sea);
        let logs = read(directory.path());
        let deliveries = judge(&logs, order).unwrap_or_else(|breach| panic!("{breach}"));
        println!("{} memberships delivered {deliveries} messages", logs.len());
        assert!(deliveries > 100 && logs.len() > MEMBERS as usize, "the storm was none");
        // The judge is awake: what a member saw twice is noticed.
        let mut doctored = logs;
        let seen = doctored.values_mut().find(|log| log.iter().any(|line| line.starts_with('D'))).unwrap();
        let at = seen.iter().position(|line| line.starts_with('D')).unwrap();
        seen.insert(at, seen[at].clone());
        assert!(judge(&doctored, order).is_err(), "a delivery that was repeated went unnoticed");
    });
}

/// The members that live.
struct Sea {
    order: &'static str,
    directory: String,
    members: BTreeMap<u64, Worker>,
}

impl Sea {
    async fn launch(&mut self, number: u64, way: &str) {
        let words = format!("{number} {way} {} {}", self.order, self.directory);
        let mut member = Worker::start_apart("storm::member_in_a_storm", &tcp(), &words);
        let (port, process) = (port(number), member.process().to_string());
        // The last one's end went with its namespace, or does so soon.
        let _ = try_ip(&["link", "del", &port]);
        ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &process]);
        ip(&["link", "set", &port, "master", "bridge", "up"]);
        member.tell("connected").await;
        self.members.insert(number, member);
    }

    async fn befall(&mut self, fault: Fault) {
        println!("{fault:?}");
        match fault {
            Fault::Kill(number) => {
                if let Some(member) = self.members.remove(&number) {
                    member.kill().await;
                }
                self.launch(number, "join").await;
            }
            Fault::Stop(number) => {
                let both = [number, number % MEMBERS + 1].map(|number| self.members[&number].process());
                both.iter().for_each(|process| signal("STOP", *process));
                tokio::time::sleep(SILENCE).await;
                both.iter().for_each(|process| signal("CONT", *process));
            }
            Fault::Cut(number) => {
                ip(&["link", "set", &port(number), "nomaster"]);
                tokio::time::sleep(SILENCE).await;
                ip(&["link", "set", &port(number), "master", "bridge"]);
            }
        }
        self.gather(false).await;
    }

    /// Waits until all are in one view; in the end with one state, too.
    async fn gather(&mut self, in_the_end: bool) {
        let start = Instant::now();
        loop {
            let mut seen = Vec::new();
            for member in self.members.values_mut() {
                member.tell("status").await;
                seen.push(member.hear().await);
            }
            let parts: Vec<Vec<&str>> = seen.iter().map(|status| status.split(' ').collect()).collect();
            let all = MEMBERS.to_string();
            let is_whole = parts.iter().all(|part| part[0] == parts[0][0] && part[1] == all);
            let is_settled = parts.iter().all(|part| part[2] == "true" && part[3] == parts[0][3]);
            if is_whole && (is_settled || !in_the_end) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "the members do not come together: {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {process}")).status().unwrap();
    assert!(sent.success());
}

type Logs = BTreeMap<ProcessId, Vec<String>>;

fn read(directory: &Path) -> Logs {
    let files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let log = |path: std::path::PathBuf| {
        let (node, incarnation) = path.file_name().unwrap().to_str().unwrap().split_once('.').unwrap();
        let id = ProcessId { node: node.parse().unwrap(), incarnation: incarnation.parse().unwrap() };
        (id, std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect())
    };
    files.map(log).collect()
}

/// How many deliveries there were, when all was as promised.
fn judge(logs: &Logs, order: &str) -> Result<usize, Violation> {
    let is_total = order == "total";
    let mut oracle = Oracle::new(Promise { uniform_total: is_total, causal: is_total });
    let mut deliveries = 0;
    let numbers =
        |line: &str| line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect::<Vec<u64>>();
    // What was sent, and after what, is known before anybody is told to have delivered it.
    for (id, log) in logs {
        let mut past = State::default();
        for line in log {
            match (line.as_bytes()[0], &numbers(line)[..]) {
                (b'C', _) => {
                    oracle.on_send_after(*id, &past);
                }
                (b'D', [node, incarnation, number]) => {
                    past.apply(ProcessId { node: *node, incarnation: *incarnation }, *number, is_total);
                }
                (b'S', words) => {
                    past = State::decode(words.iter().flat_map(|word| word.to_le_bytes()).collect())
                }
                _ => {}
            }
        }
    }
    for (id, log) in logs {
        for line in log {
            match (line.as_bytes()[0], &numbers(line)[..]) {
                (b'V', [number, quorum_min, members @ ..]) => {
                    let member = |part: &[u64]| ProcessId { node: part[0], incarnation: part[1] };
                    let view = View {
                        id: ViewId { group: 1, number: *number },
                        members: members.chunks(3).map(member).collect(),
                        synced: members.chunks(3).map(|part| part[2] == 1).collect(),
                        quorum_min: *quorum_min as u16,
                    };
                    oracle.on_view(*id, &view)?;
                }
                (b'D', [node, incarnation, number]) => {
                    let mut payload = BytesMut::new();
                    for part in [node, incarnation, number] {
                        payload.put_u64_le(*part);
                    }
                    let from = ProcessId { node: *node, incarnation: *incarnation };
                    oracle.on_deliver(*id, from, payload.freeze())?;
                    deliveries += 1;
                }
                (b'S', words) => {
                    let bytes: Bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                    oracle.on_state(*id, State::decode(bytes))?;
                }
                (kind, _) => ensure(kind == b'C', || format!("{id} wrote {line:?}"))?,
            }
        }
    }
    Ok(deliveries)
}

const MEMBERS: u64 = 5;

/// Half as long again as silence is trusted.
const SILENCE: Duration = Duration::from_millis(1500);

const CAST_EVERY: Duration = Duration::from_millis(5);
