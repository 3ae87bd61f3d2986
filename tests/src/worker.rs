//! Other processes of a test: the test program itself, started again to run one function of its own.
//!
//! Method      the function is a `#[test]` that returns at once unless [`Orders::of_this_process`] finds what its parent
//!             gave it in the environment. Both ends then exchange lines; lines of the test harness are skipped.
//! End         a worker does not outlive its handle: it is killed with SIGKILL, as a crash would.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::{Net, within};

/// Another process, of which this one is the parent.
pub struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
}

impl Worker {
    /// Starts `function`, named with the modules that it stands in, with words of the test's choice.
    ///
    /// # Panics
    /// When the process does not start.
    pub fn start(function: &str, net: &Net, words: &str) -> Self {
        Self::run(Command::new(this_program()), function, net, words)
    }

    /// As [`start`](Self::start), in a network namespace of its own, which has no link but the loopback interface, and
    /// that is down.
    ///
    /// # Panics
    /// When the process does not start.
    pub fn start_apart(function: &str, net: &Net, words: &str) -> Self {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(this_program());
        Self::run(command, function, net, words)
    }

    fn run(mut command: Command, function: &str, net: &Net, words: &str) -> Self {
        let mut child = command
            .args(["--exact", function, "--nocapture", "--test-threads=1"])
            .env(NET_VARIABLE, net.description())
            .env(WORDS_VARIABLE, words)
            // What a daemon among them would log.
            .env("QUORATE_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this program starts again");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let input = child.stdin.take().expect("piped");
        Self { child, lines, input }
    }

    /// The number of the process.
    ///
    /// # Panics
    /// When it has ended.
    pub fn process(&self) -> u32 {
        self.child.id().expect("the worker lives")
    }

    /// The next thing that it says.
    ///
    /// # Panics
    /// When it ends, or says nothing for a minute.
    pub async fn hear(&mut self) -> String {
        within(async {
            loop {
                let line = self.lines.next_line().await.expect("text").expect("the worker lives");
                // The harness does not end its own line before the first of ours.
                if let Some((_, said)) = line.split_once(MARK) {
                    return said.to_owned();
                }
            }
        })
        .await
    }

    /// Gives it an order.
    ///
    /// # Panics
    /// When it is dead.
    pub async fn tell(&mut self, order: &str) {
        self.input.write_all(format!("{order}\n").as_bytes()).await.expect("the worker lives");
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it lives for another minute.
    pub async fn ended(mut self) {
        within(self.child.wait()).await.expect("its end");
    }

    /// SIGKILL, and waits until it is dead.
    ///
    /// # Panics
    /// When it was dead already: a worker that gave up is a failure of its own.
    pub async fn kill(mut self) {
        assert_eq!(self.child.try_wait().expect("its state"), None, "the worker ended by itself");
        self.child.kill().await.expect("it is killed");
    }
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("this program")
}

/// What a worker was started for.
pub struct Orders {
    /// The network of the test.
    pub net: Net,
    /// The words of the test.
    pub words: String,
}

impl Orders {
    /// What this process is to do; `None` when it is no worker.
    pub fn of_this_process() -> Option<Self> {
        let net = std::env::var(NET_VARIABLE).ok()?;
        Some(Self { net: Net::found(&net), words: std::env::var(WORDS_VARIABLE).ok()? })
    }

    /// Tells the parent.
    ///
    /// # Panics
    /// When the parent is gone.
    pub fn say(&self, what: &str) {
        // One write per line: it is there whole or not at all.
        let line = format!("{MARK}{what}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).expect("the parent listens");
    }

    /// The next order; `None` when the parent is gone. Blocks a thread that may be blocked.
    ///
    /// # Panics
    /// When what comes is no text.
    pub async fn next(&self) -> Option<String> {
        let line = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().next());
        line.await.expect("reading does not panic").transpose().expect("text")
    }
}

/// Before everything that a worker says.
const MARK: &str = "worker says: ";
const NET_VARIABLE: &str = "QUORATE_TEST_NET";
const WORDS_VARIABLE: &str = "QUORATE_TEST_WORDS";
