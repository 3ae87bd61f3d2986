//! The bank's processes: starting them, speaking with them, killing one.
//!
//! Protocol    every process prints one line when it listens, `ready ADDRESS`. A replica prints one more when it serves,
//!             `serving`. It is told the others by lines `peer BRANCH INDEX ADDRESS`, at any time, and once what to do:
//!             `found` its branch's group, or `join` it. A customer is told `stop`, and prints `done` and its count.
//! Guarantee   no process outlives the main one: dropping the handle kills it, and a process whose standard input ends,
//!             for whatever reason, ends itself.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, Write as _, stdin, stdout};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a replica may take to listen, or to serve after it was told to go. On a loaded machine joining takes a few
/// seconds.
pub const START_SECONDS_MAX: u64 = 60;

/// Which replica of which branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The branch, from 1.
    pub branch: u8,
    /// The replica, from 0.
    pub index: u8,
}

impl Place {
    /// The replica's node id: readable in every log.
    pub fn node(self) -> u64 {
        u64::from(self.branch) * 100 + u64::from(self.index)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "branch {} replica {}", self.branch, self.index)
    }
}

/// A part of the bank in a process of its own.
pub struct Process {
    /// For messages.
    name: String,
    /// Where it listens, as it said itself; empty when it does not.
    pub address: String,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// Why a process is not there.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The operating system refused.
    #[error("{name}: {doing} failed")]
    Io {
        /// Which process.
        name: String,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It said something else, or nothing.
    #[error("{name}: expected {expected:?}, but it {found}")]
    Unexpected {
        /// Which process.
        name: String,
        /// The word waited for.
        expected: &'static str,
        /// What came instead.
        found: String,
    },
}

impl Process {
    /// Starts a replica on its directory and waits until it listens.
    ///
    /// # Errors
    /// [`ProcessError`]; a child that was started is killed.
    pub async fn start(place: Place, directory: &Path) -> Result<Self, ProcessError> {
        let (branch, index) = (place.branch.to_string(), place.index.to_string());
        let arguments = ["replica", "--branch", &branch, "--index", &index, "--directory"];
        let arguments = arguments.map(OsStr::new).into_iter().chain([directory.as_os_str()]);
        Self::spawn(place.to_string(), arguments).await
    }

    /// Starts a part of the bank and waits until it is ready; `name` is for messages.
    ///
    /// # Errors
    /// [`ProcessError`]; a child that was started is killed.
    pub async fn spawn(
        name: String,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self, ProcessError> {
        let io = |doing| {
            let name = name.clone();
            move |source| ProcessError::Io { name, doing, source }
        };
        let program = std::env::current_exe().map_err(io("finding the own program"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io("starting"))?;
        let broken = || io("opening a pipe")(io::Error::from(io::ErrorKind::BrokenPipe));
        let input = child.stdin.take().ok_or_else(broken)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(broken)?).lines();
        let mut process = Self { name, address: String::new(), child, input, output };
        process.address = process.expect("ready").await?;
        Ok(process)
    }

    /// Tells the replica where another one listens.
    ///
    /// # Errors
    /// [`ProcessError::Io`] when the process is gone.
    pub async fn introduce(&mut self, other: Place, address: &str) -> Result<(), ProcessError> {
        self.tell(&format!("peer {} {} {address}", other.branch, other.index)).await
    }

    /// Writes one line to the replica.
    ///
    /// # Errors
    /// [`ProcessError::Io`] when the process is gone.
    pub async fn tell(&mut self, line: &str) -> Result<(), ProcessError> {
        let told = async {
            self.input.write_all(format!("{line}\n").as_bytes()).await?;
            self.input.flush().await
        };
        let name = || self.name.clone();
        told.await.map_err(|source| ProcessError::Io { name: name(), doing: "speaking to it", source })
    }

    /// Waits until the replica serves.
    ///
    /// # Errors
    /// [`ProcessError::Unexpected`] when it ends or takes more than [`START_SECONDS_MAX`].
    pub async fn serving(&mut self) -> Result<(), ProcessError> {
        self.expect("serving").await.map(drop)
    }

    /// Ends the process as the power does: SIGKILL, no last word.
    ///
    /// # Errors
    /// [`ProcessError::Io`] when the system refuses.
    pub async fn kill(mut self) -> Result<(), ProcessError> {
        let name = self.name;
        self.child.kill().await.map_err(|source| ProcessError::Io { name, doing: "killing", source })
    }

    /// The rest of the next line, which must begin with `word`.
    ///
    /// # Errors
    /// [`ProcessError::Unexpected`] when it does not, or takes more than [`START_SECONDS_MAX`].
    pub async fn expect(&mut self, word: &'static str) -> Result<String, ProcessError> {
        let name = self.name.clone();
        let unexpected = |found: String| ProcessError::Unexpected { name, expected: word, found };
        match timeout(Duration::from_secs(START_SECONDS_MAX), self.output.next_line()).await {
            Err(_) => Err(unexpected(format!("said nothing for {START_SECONDS_MAX} s"))),
            Ok(Err(error)) => Err(unexpected(format!("could not be read: {error}"))),
            Ok(Ok(None)) => Err(unexpected("ended".to_owned())),
            Ok(Ok(Some(line))) => match line.strip_prefix(word) {
                Some(rest) => Ok(rest.trim().to_owned()),
                None => Err(unexpected(format!("said {line:?}"))),
            },
        }
    }
}

/// What the main process says, line by line, read on a thread of its own. The channel ends with the standard input, that
/// is with the main process.
pub fn lines_told() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    // Not tokio's standard input: its blocked thread would keep the process alive at the end.
    std::thread::spawn(move || {
        for line in stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Tells the main process.
///
/// # Errors
/// When it is gone.
pub fn say(line: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// How many lines may wait; the main process sends a few per start of a process.
const LINES_MAX: usize = 64;
