//! Three replicas of registers on a log, as processes of their own with clients in them, killed and cut off at random
//! moments and started again. What all clients saw together must be linearizable.
//!
//! The processes are this test program again, running [`replica_of_registers`] with a role in their environment. Each
//! life notes its operations in a file of its own, with moments of the clock that all processes of a machine share.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::NodeId;
use quorate::history::{Limits, Operation, RegisterCall, RegisterReturn, linearizable_by_key};
use quorate::replication::log::{Config, Logged, Outcome, Storage};
use quorate::sim::Rng;
use quorate_transports::fault::{ELSEWHERE, FaultHandle};
use quorate_transports::tcp::Tcp;

use crate::killed::{Crewman, DIRECTORY, ROLE, arrive, heard, home, journal, meet, say};
use crate::registers::{Ask, History, Registers};
use tests::registers::{Call, Keyed};

const KILLS: u32 = 12;
const KEYS: u64 = 8;
const CLIENTS: u64 = 4;

#[test]
fn d05_clients_of_replicas_that_are_killed_and_cut_off_see_one_register() {
    let directory = tempfile::tempdir().unwrap();
    let seed = u64::from(std::process::id());
    let mut rng = Rng::new(seed);
    println!("seed {seed}");
    let hire = |role| Crewman::hire(directory.path(), role, "log_killed::replica_of_registers");
    let mut crew: Vec<Crewman> = (1..=3).map(hire).collect();
    for _ in 0..KILLS {
        // The time at which a kill comes is the point of the test, and not waited for by anything.
        std::thread::sleep(rng.duration(Duration::from_millis(100)..Duration::from_millis(700)));
        let victim = rng.below(3) as usize;
        crew[victim].kill();
        std::thread::sleep(rng.duration(Duration::ZERO..Duration::from_millis(400)));
        crew[victim] = hire(victim as u64 + 1);
    }
    say(directory.path(), "go");
    for replica in &mut crew {
        replica.see_off();
    }

    let mut history = History::default();
    for role in 1..=3 {
        for entry in std::fs::read_dir(home(directory.path(), role)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "seen") {
                read_notes(&std::fs::read_to_string(path).unwrap(), &mut history);
            }
        }
    }
    let all = history.operations.len();
    let unknown = history.operations.iter().filter(|operation| operation.returned.is_none()).count();
    println!("{all} operations, the outcome of {unknown} is unknown");
    assert!(all > 200, "the clients did something: {all} operations");
    linearizable_by_key(&Keyed, &history, |call| call.0, &Limits::default())
        .unwrap_or_else(|rejection| panic!("seed {seed}: {rejection}"));
}

/// Not a test of its own: what the processes run.
#[test]
fn replica_of_registers() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let directory = std::path::PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let role: u64 = role.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let faults = FaultHandle::new(role);
        let node = arrive(&directory, role, faults.wrap(role, Tcp::new())).await;
        let weather = tokio::spawn(cut_off_now_and_again(directory.clone(), faults, role));
        let meeting = tokio::spawn(meet(directory.clone(), role, node.clone()));
        // Snapshots come often, so that lives begin with one and followers are given one.
        let config = Config { log_entries_max: 50, log_entries_kept: 10, ..Config::default() };
        let storage = Storage::Journal(journal(&directory, role));
        let founders = [1, 2, 3].map(NodeId);
        let replica: Logged<Registers> =
            Logged::open(&node, "registers", storage, Registers::default(), founders, config).await.unwrap();
        let notes = Notes::open(&directory, role);
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            let rng = Rng::labelled(u64::from(std::process::id()), client);
            clients.spawn(work(directory.clone(), replica.clone(), notes.clone(), rng));
        }
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        // Others may still need this one for a majority.
        std::fs::write(home(&directory, role).join("done"), "").unwrap();
        for other in 1..=3 {
            heard(&home(&directory, other), "done").await;
        }
        weather.await.unwrap();
        meeting.abort();
        replica.stop().await;
        node.shutdown(Duration::from_secs(5)).await;
    });
}

/// Now and again nobody hears this process and it hears nobody, until the end begins.
async fn cut_off_now_and_again(directory: std::path::PathBuf, faults: FaultHandle, role: u64) {
    let mut rng = Rng::labelled(u64::from(std::process::id()), CLIENTS);
    while !directory.join("go").exists() {
        tokio::time::sleep(rng.duration(Duration::from_millis(200)..Duration::from_millis(2_500))).await;
        faults.change(|network| network.partition(&[&[role], &[ELSEWHERE]]));
        tokio::time::sleep(rng.duration(Duration::from_millis(50)..Duration::from_millis(900))).await;
        faults.change(|network| network.heal_all());
    }
}

async fn work(directory: std::path::PathBuf, replica: Logged<Registers>, notes: Notes, mut rng: Rng) {
    while !directory.join("go").exists() {
        // Unlike any other value of any life.
        let value = rng.next_u64() >> 1;
        let key = rng.below(KEYS);
        let number = value;
        let answer = match rng.below(4) {
            0 => {
                notes.note(&format!("{number} {key} write {value} called {}", now()));
                replica.apply(&Ask::Write { key, value }).await.map(|_| "written".to_owned())
            }
            1 => {
                let expected = replica.read(|registers| registers.0.get(&key).copied());
                let shown = expected.map_or("-".to_owned(), |value| value.to_string());
                notes.note(&format!("{number} {key} set {shown} {value} called {}", now()));
                let set = replica.apply(&Ask::CompareAndSet { key, expected, new: value }).await;
                set.map(|is_set| if is_set { "set" } else { "unset" }.to_owned())
            }
            _ => {
                notes.note(&format!("{number} {key} read called {}", now()));
                let found = replica.read_latest(|registers| registers.0.get(&key).copied()).await;
                found.map(|found| found.map_or("-".to_owned(), |value| value.to_string()))
            }
        };
        match answer {
            Ok(answer) => notes.note(&format!("{number} returned {answer} {}", now())),
            // It stays unknown, for the checker too.
            Err(error) => assert_ne!(error.outcome(), Outcome::Rejected, "{error}"),
        }
        tokio::time::sleep(rng.duration(Duration::ZERO..Duration::from_millis(20))).await;
    }
}

/// Nanoseconds on the clock that all processes of this machine share.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[derive(Clone)]
struct Notes(Arc<Mutex<std::fs::File>>);

impl Notes {
    fn open(directory: &Path, role: u64) -> Self {
        let path = home(directory, role).join(format!("{}.seen", std::process::id()));
        Self(Arc::new(Mutex::new(std::fs::File::create(path).unwrap())))
    }

    fn note(&self, line: &str) {
        // One write, so that a kill leaves the line or not.
        self.0.lock().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

fn read_notes(text: &str, history: &mut History) {
    let mut places = BTreeMap::new();
    let parse = |word: &str| word.parse::<u64>().ok();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = parse(words[0]).unwrap();
        let (called, call): (&str, Call) = match words[1..] {
            ["returned", answer, at] => {
                let answer = match answer {
                    "written" => RegisterReturn::Written,
                    "set" => RegisterReturn::Set(true),
                    "unset" => RegisterReturn::Set(false),
                    value => RegisterReturn::Value(parse(value)),
                };
                let place: usize = places[&number];
                history.operations[place].returned = Some((parse(at).unwrap(), answer));
                continue;
            }
            [key, "write", value, "called", at] => {
                (at, (parse(key).unwrap(), RegisterCall::Write(parse(value).unwrap())))
            }
            [key, "set", expected, new, "called", at] => {
                let (expected, new) = (parse(expected), parse(new).unwrap());
                (at, (parse(key).unwrap(), RegisterCall::CompareAndSet { expected, new }))
            }
            [key, "read", "called", at] => (at, (parse(key).unwrap(), RegisterCall::Read)),
            _ => panic!("{line}"),
        };
        let operation = Operation { process: number, call, called: parse(called).unwrap(), returned: None };
        places.insert(number, history.push(operation));
    }
}
