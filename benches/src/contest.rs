//! Who takes part, and one run of one rival: its processes are started, heard and ended.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::Settings;
use crate::report::{self, Table};
use crate::worker::{self, Argument, Kind, Outcome};
use crate::{by_hand, inline_loop, ours};

/// What a run may take beyond the time that it measures.
const PATIENCE: Duration = Duration::from_secs(30);
/// All that the peers' package can build in.
const PEERS: [&str; 6] = ["libzmq", "zmq.rs", "nng", "zenoh", TARPC, TONIC];
const TARPC: &str = "tarpc";
const TONIC: &str = "tonic";

/// The figures of one run, by name.
pub type Figures = BTreeMap<String, f64>;

/// Whether messages a second are asked for, and not the time of one.
pub fn is_rate(kind: Kind) -> bool {
    match kind {
        Kind::OneWay => true,
        Kind::RoundTrip => false,
        Kind::Calls(calls) => calls.in_flight > 1,
    }
}

/// Somebody who can be measured here.
#[derive(Clone)]
pub struct Rival {
    pub name: String,
    pub version: String,
    program: PathBuf,
    is_peer: bool,
}

/// What is measured.
#[derive(Clone, Copy)]
pub struct Question {
    pub kind: Kind,
    pub bytes: usize,
    /// Between two processes, or inside one.
    pub is_apart: bool,
    pub time: Duration,
}

/// What a table asks: a name, what is sent, bytes of a message, between two processes or inside one.
pub type Asked = (&'static str, Kind, usize, bool);

/// Asks everybody everything, one after the other in every round; and of our own, those that are named, what is `among`
/// ourselves.
pub fn contest(settings: &Settings, asked: &[Asked], among: &[(Asked, &[&str])]) -> Outcome<()> {
    let rounds = settings.rounds.unwrap_or(if settings.quick { 3 } else { 7 });
    let time = Duration::from_millis(if settings.quick { 300 } else { 1_000 });
    let rivals = rivals(settings.build_peers)?;
    let peers = rivals.iter().filter(|rival| rival.is_peer);
    let versions: Vec<String> = peers.map(|rival| format!("{} {}", rival.name, rival.version)).collect();
    println!("{rounds} rounds of {:.1} s each; {}\n", time.as_secs_f64(), versions.join(", "));

    let mut tables = Vec::new();
    let everybody = asked.iter().map(|asked| (*asked, None));
    for ((name, kind, bytes, is_apart), ours) in everybody.chain(among.iter().map(|(a, o)| (*a, Some(*o)))) {
        if settings.only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let question = Question { kind, bytes, is_apart, time };
        let able: Vec<Rival> = match ours {
            Some(names) => names.iter().map(|name| Rival::own(name)).collect::<Outcome<_>>()?,
            None => rivals.iter().filter(|rival| rival.can(&question)).cloned().collect(),
        };
        let rows = able.into_iter().map(|rival| (rival, Vec::new())).collect();
        let mut table = Table { name: name.to_owned(), kind, bytes, rows };
        for _ in 0..rounds {
            for (rival, runs) in &mut table.rows {
                match rival.run(&question) {
                    Ok(figures) => runs.push(figures),
                    Err(error) => eprintln!("{}, {name}: {error}", rival.name),
                }
            }
        }
        table.print();
        tables.push(table);
    }
    if let Some(path) = &settings.json {
        report::write_json(&tables, path)?;
    }
    if let Some(folder) = &settings.svg {
        report::draw(&tables, folder)?;
    }
    Ok(())
}

/// Everybody who is there, and says who is not.
fn rivals(build_peers: bool) -> Outcome<Vec<Rival>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let manifest = folder.join("Cargo.toml");
    if build_peers {
        let mut cargo = Command::new(env!("CARGO"));
        let status = cargo.args(["build", "--release", "--manifest-path"]).arg(&manifest).status()?;
        if !status.success() {
            return Err(
                "the peers do not build; `--no-default-features --features ...` leaves some out".into()
            );
        }
    }
    let names = [
        by_hand::NAME,
        inline_loop::NAME,
        ours::NAME,
        ours::MANY,
        by_hand::TWO_THREADS,
        ours::TWO_THREADS,
        by_hand::ONE_THREAD,
        ours::ONE_THREAD,
    ];
    let mut rivals = names.into_iter().map(Rival::own).collect::<Outcome<Vec<_>>>()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| folder.join("target"), PathBuf::from);
    let program = target.join("release").join("peers");
    if let Ok(listed) = Command::new(&program).arg("list").output() {
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            if let Some((name, version)) = line.split_once(' ') {
                let (name, version) = (name.to_owned(), version.to_owned());
                rivals.push(Rival { name, version, program: program.clone(), is_peer: true });
            }
        }
    }
    let missing: Vec<&str> =
        PEERS.into_iter().filter(|name| rivals.iter().all(|rival| rival.name != *name)).collect();
    if !missing.is_empty() {
        println!("missing: {}; --build-peers builds them\n", missing.join(", "));
    }
    Ok(rivals)
}

impl Rival {
    /// One that this program holds itself.
    fn own(name: &str) -> Outcome<Self> {
        let (version, program) = (env!("CARGO_PKG_VERSION").to_owned(), std::env::current_exe()?);
        Ok(Self { name: name.to_owned(), version, program, is_peer: false })
    }

    pub fn can(&self, question: &Question) -> bool {
        let Kind::Calls(calls) = question.kind else {
            return match self.name.as_str() {
                TARPC | TONIC | inline_loop::NAME => false,
                "zmq.rs" | "zenoh" | by_hand::NAME | ours::NAME => question.is_apart,
                ours::MANY => question.is_apart && question.kind == Kind::OneWay,
                by_hand::TWO_THREADS | by_hand::ONE_THREAD | ours::TWO_THREADS | ours::ONE_THREAD => {
                    !question.is_apart
                }
                _ => true,
            };
        };
        match self.name.as_str() {
            by_hand::NAME => question.is_apart && calls.in_flight == 1,
            inline_loop::NAME => calls.argument == Argument::Bytes,
            ours::NAME | TARPC => true,
            TONIC => question.is_apart && calls.argument == Argument::Bytes,
            _ => false,
        }
    }

    /// One run.
    pub fn run(&self, question: &Question) -> Outcome<Figures> {
        if !question.is_apart {
            let mut both = self.start(worker::BOTH, question, None)?;
            return Ok(self.figures(question, &[both.result(question.time)?]));
        }
        let mut server = self.start(worker::SERVER, question, None)?;
        let address = server.line("at ", question.time)?;
        let mut client = self.start(worker::CLIENT, question, Some(&address))?;
        let sent = client.result(question.time)?;
        // Who answers calls hears of no last one.
        drop(server.child.stdin.take());
        let received = server.result(question.time)?;
        Ok(self.figures(question, &[sent, received]))
    }

    fn figures(&self, question: &Question, sides: &[Figures]) -> Figures {
        let mut figures: Figures =
            sides.iter().flatten().map(|(name, value)| (name.clone(), *value)).collect();
        let messages = figures.get("messages").copied().unwrap_or(f64::NAN);
        let cpu: f64 = sides.iter().filter_map(|side| side.get("cpu")).sum();
        figures.insert("cpu_us".into(), cpu * 1e6 / messages);
        if is_rate(question.kind) {
            let seconds = figures.get("seconds").copied().unwrap_or(f64::NAN);
            figures.insert("rate".into(), messages / seconds);
        }
        figures
    }

    fn start(&self, side: &str, question: &Question, address: Option<&str>) -> Outcome<Running> {
        let mut command = Command::new(&self.program);
        if !self.is_peer {
            command.arg("worker");
        }
        command.args([&self.name, side, &question.kind.to_string(), &question.bytes.to_string()]);
        command.arg(question.time.as_secs_f64().to_string()).args(address);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().ok_or("its output is not piped")?;
        Ok(Running { name: format!("{} {side}", self.name), child, lines: listen(out) })
    }
}

/// A process that ends with this value.
struct Running {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

fn listen(out: ChildStdout) -> Receiver<String> {
    let (lines, heard) = channel();
    std::thread::spawn(move || {
        BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
    });
    heard
}

impl Running {
    /// The rest of the next line that begins like this.
    fn line(&mut self, begin: &str, time: Duration) -> Outcome<String> {
        loop {
            let line = self
                .lines
                .recv_timeout(time + PATIENCE)
                .map_err(|_| format!("{} says nothing", self.name))?;
            if let Some(rest) = line.strip_prefix(begin) {
                return Ok(rest.to_owned());
            }
        }
    }

    fn result(&mut self, time: Duration) -> Outcome<Figures> {
        let line = self.line("result", time)?;
        line.split_whitespace()
            .map(|pair| {
                let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair} is no figure"))?;
                Ok((name.to_owned(), value.parse()?))
            })
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has said all that it had to say, or never will; an error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
