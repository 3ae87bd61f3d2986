//! Who takes part, and one run of one rival: its processes are started, heard and ended.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::worker::{self, Kind, Outcome};
use crate::{by_hand, ours};

/// What a run may take beyond the time that it measures.
const PATIENCE: Duration = Duration::from_secs(30);
/// All that the peers' package can build in.
const PEERS: [&str; 4] = ["libzmq", "zmq.rs", "nng", "zenoh"];

/// The figures of one run, by name.
pub type Figures = BTreeMap<String, f64>;

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

/// Everybody who is there, and says who is not.
pub fn rivals(build_peers: bool) -> Outcome<Vec<Rival>> {
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
    let me = std::env::current_exe()?;
    let own = |name: &str| Rival {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        program: me.clone(),
        is_peer: false,
    };
    let mut rivals = vec![own(by_hand::NAME), own(ours::NAME)];
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
    pub fn can(&self, question: &Question) -> bool {
        question.is_apart || !matches!(self.name.as_str(), "zmq.rs" | "zenoh")
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
        let received = server.result(question.time)?;
        Ok(self.figures(question, &[sent, received]))
    }

    fn figures(&self, question: &Question, sides: &[Figures]) -> Figures {
        let mut figures: Figures =
            sides.iter().flatten().map(|(name, value)| (name.clone(), *value)).collect();
        let messages = figures.get("messages").copied().unwrap_or(f64::NAN);
        let cpu: f64 = sides.iter().filter_map(|side| side.get("cpu")).sum();
        figures.insert("cpu_us".into(), cpu * 1e6 / messages);
        if question.kind == Kind::OneWay {
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
        let kind = if question.kind == Kind::OneWay { worker::ONE_WAY } else { worker::ROUND_TRIP };
        command.args([&self.name, side, kind, &question.bytes.to_string()]);
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
