//! The failure detectors beside each other: how soon is a death noticed, and how often is somebody suspected who lives?

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_protocols::membership::detector::{Detection, Detector};
use quorate_protocols::membership::heartbeat::{Config, Judge};
use quorate_protocols::stack::{Down, Flow, Layer, Up, View, ViewId};
use quorate_protocols::{ProcessId, Time};

const MEMBERS: usize = 6;
const MANNERS: [(&str, Detection); 5] = [
    ("heartbeat, time-out", Detection::Heartbeat(Judge::Timeout)),
    ("heartbeat, phi 8", Detection::Heartbeat(Judge::Phi(8.0))),
    ("probes, no helper", Detection::Swim { helpers: 0 }),
    ("probes, 3 helpers", Detection::Swim { helpers: 3 }),
    ("gossip", Detection::Gossip),
];

/// What happens to messages and processes.
#[derive(Clone, Copy)]
struct Weather {
    name: &'static str,
    /// Of a hundred messages so many are lost.
    lost: u64,
    /// A member stands still for so long, one every second.
    pause_ms: u64,
    /// What the first one sends to the second one is lost, and nothing else.
    is_deaf: bool,
}

const CALM: Weather = Weather { name: "calm", lost: 0, pause_ms: 0, is_deaf: false };
const WEATHERS: [Weather; 5] = [
    CALM,
    Weather { name: "5 % lost", lost: 5, ..CALM },
    Weather { name: "30 % lost", lost: 30, ..CALM },
    Weather { name: "pauses of 0.6 s", pause_ms: 600, ..CALM },
    Weather { name: "one path broken", is_deaf: true, ..CALM },
];

/// Prints the table; what must hold of every manner is checked.
#[test]
fn g02_detectors_beside_each_other_by_detection_time_false_suspicions_and_messages() {
    let config = Config::default();
    println!("{:20} {:16} {:>12} {:>18} {:>12}", "", "", "noticed ms", "false suspicions", "messages/s");
    let mut table = BTreeMap::new();
    for (manner, detection) in MANNERS {
        for weather in WEATHERS {
            let (mut wrong, mut sent, mut late) = (0, 0, Vec::new());
            for seed in 1..=RUNS {
                let mut field = Field::new(detection, weather, seed);
                field.run(ALIVE);
                (wrong, sent) = (wrong + field.wrong, sent + field.sent);
                late.push(field.kill_last());
            }
            late.sort_unstable();
            let (middle, worst) = (late[late.len() / 2], late[late.len() - 1]);
            println!(
                "{manner:20} {:16} {:>12} {wrong:>18} {:>12}",
                weather.name,
                format!("{middle}..{worst}"),
                sent / RUNS / ALIVE.as_secs()
            );
            // When the word of a doubt is lost, whoever did not get it finds out by itself.
            let timeouts = if weather.lost == 0 { 1 } else { 3 };
            // A word takes three turns to all six, and the last one of the dead is still on its way.
            let spread = if matches!(detection, Detection::Gossip) { 4 } else { 0 };
            let bound = config.timeout * timeouts + config.interval * (3 + spread);
            assert!(u128::from(worst) <= bound.as_millis(), "{manner}, {}: {worst} ms", weather.name);
            table.insert((manner, weather.name), (wrong, middle, sent));
        }
    }
    let of = |manner: usize, weather: usize| table[&(MANNERS[manner].0, WEATHERS[weather].name)];
    for (name, _) in MANNERS {
        assert_eq!(table[&(name, CALM.name)].0, 0, "{name}: somebody is suspected on a calm network");
    }
    assert!(of(1, 0).1 < of(0, 0).1, "who beats regularly is missed sooner");
    assert!(of(3, 2).0 < of(2, 2).0, "helpers prevent suspicions when messages are lost");
    assert_eq!(of(3, 1).0, 0, "a message lost now and then makes nobody a suspect");
    assert!(of(3, 0).2 * 2 < of(0, 0).2, "probes cost less than everybody's beats");
    assert_eq!(of(4, 1).0, 0, "a message lost now and then makes nobody a suspect");
    assert!(of(4, 0).2 * 2 < of(0, 0).2, "gossip costs less than everybody's beats");
}

/// A member that stood still does not blame the others, whoever watches.
#[test]
fn g02_who_slept_blames_nobody() {
    for (manner, detection) in MANNERS {
        let mut field = Field::new(detection, CALM, 1);
        field.run(Duration::from_secs(5));
        for member in 0..MEMBERS {
            field.asleep_until[member] = field.now + Duration::from_secs(60);
        }
        field.run(Duration::from_secs(70));
        assert_eq!(field.wrong, 0, "{manner}");
    }
}

const RUNS: u64 = 20;
const ALIVE: Duration = Duration::from_secs(30);

/// Detectors alone, on a network of this test.
struct Field {
    now: Time,
    weather: Weather,
    chance: u64,
    detectors: Vec<Option<Detector>>,
    asleep_until: Vec<Time>,
    mail: BTreeMap<(Time, u64), (usize, usize, <Detector as Layer>::Message)>,
    sent: u64,
    wrong: u64,
    /// `suspects[one][other]`: the one suspects the other.
    suspects: [[bool; MEMBERS]; MEMBERS],
}

impl Field {
    fn new(detection: Detection, weather: Weather, seed: u64) -> Self {
        let start = Time::from_nanos(1_000_000_000);
        let detector = |node| Some(Detector::new(id(node), Config::default(), detection));
        let mut field = Self {
            now: start,
            weather,
            chance: seed,
            detectors: (0..MEMBERS).map(detector).collect(),
            asleep_until: vec![start; MEMBERS],
            mail: BTreeMap::new(),
            sent: 0,
            wrong: 0,
            suspects: Default::default(),
        };
        let members = (0..MEMBERS).map(id).collect();
        let view = View {
            id: ViewId { group: 1, number: 1 },
            members,
            synced: vec![true; MEMBERS].into(),
            quorum_min: 1,
        };
        for node in 0..MEMBERS {
            // They do not begin at one moment.
            field.now = field.now + Duration::from_millis(field.draw(40));
            let view = view.clone();
            field.work(node, |detector, now, flow| {
                detector.down(now, Down::Install { view, cut: None }, flow);
            });
        }
        field
    }

    /// Below `limit`, evenly: xorshift.
    fn draw(&mut self, limit: u64) -> u64 {
        let mut x = self.chance.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.chance = self.chance.wrapping_add(x | 1);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit.max(1)
    }

    fn work(&mut self, node: usize, work: impl FnOnce(&mut Detector, Time, &mut Flow<Message>)) {
        let Some(detector) = &mut self.detectors[node] else { return };
        let mut flow = Flow::new();
        work(detector, self.now, &mut flow);
        for event in flow.drain_ups() {
            match event {
                Up::Suspect(peer) => {
                    self.suspects[node][peer.node as usize] = true;
                    self.wrong += u64::from(self.detectors[peer.node as usize].is_some());
                }
                Up::Trust(peer) => self.suspects[node][peer.node as usize] = false,
                _ => {}
            }
        }
        let sends: Vec<_> = flow.drain_sends().collect();
        for (to, _, message) in sends {
            for peer in to.as_slice() {
                self.sent += 1;
                let at = self.now + Duration::from_micros(100 + self.draw(900));
                let is_broken = self.weather.is_deaf && (node, peer.node) == (0, 1);
                if self.draw(100) >= self.weather.lost && !is_broken {
                    self.mail.insert((at, self.sent), (node, peer.node as usize, message.clone()));
                }
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut pause_at = self.now + Duration::from_secs(1);
        while self.now < end {
            self.now = self.now + Duration::from_millis(1);
            if self.weather.pause_ms > 0 && pause_at <= self.now {
                pause_at = self.now + Duration::from_secs(1);
                let node = self.draw(MEMBERS as u64) as usize;
                self.asleep_until[node] = self.now + Duration::from_millis(self.weather.pause_ms);
            }
            self.step();
        }
    }

    /// One millisecond.
    fn step(&mut self) {
        let awake: Vec<_> = (0..MEMBERS).map(|node| self.asleep_until[node] <= self.now).collect();
        let due: Vec<_> = self
            .mail
            .range(..=(self.now, u64::MAX))
            .filter(|(_, (_, to, _))| awake[*to])
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let Some((from, to, message)) = self.mail.remove(&key) else { continue };
            self.work(to, |detector, now, flow| detector.receive(now, id(from), message, flow));
        }
        for node in (0..MEMBERS).filter(|node| awake[*node]) {
            let deadline = self.detectors[node].as_ref().and_then(Layer::deadline);
            if deadline.is_some_and(|at| at <= self.now) {
                self.work(node, |detector, now, flow| detector.tick(now, flow));
            }
        }
    }

    /// The last member dies: the milliseconds until all others suspect it, whom nothing befalls meanwhile.
    fn kill_last(&mut self) -> u64 {
        let dead = MEMBERS - 1;
        self.detectors[dead] = None;
        self.weather.pause_ms = 0;
        let died_at = self.now.max(self.asleep_until.iter().copied().max().unwrap_or_default());
        let died_at = if self.weather.name == CALM.name { self.now } else { died_at };
        let has_noticed = |field: &Self| (0..dead).all(|node| field.suspects[node][dead]);
        while !has_noticed(self) {
            self.step();
            self.now = self.now + Duration::from_millis(1);
            assert!(self.now.since(died_at) < Duration::from_secs(60), "nobody notices");
        }
        u64::try_from(self.now.since(died_at).as_millis()).unwrap_or(u64::MAX)
    }
}

type Message = <Detector as Layer>::Message;

fn id(node: usize) -> ProcessId {
    ProcessId { node: node as u64, incarnation: 1 }
}
