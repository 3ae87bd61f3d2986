//! The bank's processes: starting them, speaking with them, killing one.
//!
//! Protocol    a replica prints one line when it listens, `ready ADDRESS`, and one when it serves, `serving`. It is
//!             told the others by lines `peer BRANCH INDEX ADDRESS`, at any time, and once what to do: `found` its
//!             branch's group, or `join` it.
//! Guarantee   no replica outlives the main process: dropping the handle kills it, and a replica whose standard input
//!             ends, for whatever reason, ends itself.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
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

/// A replica in a process of its own.
pub struct Process {
    /// Which one.
    pub place: Place,
    /// Where it listens, as it said itself.
    pub address: String,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// Why a replica is not there.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The operating system refused.
    #[error("{place}: {doing} failed")]
    Io {
        /// Which replica.
        place: Place,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It said something else, or nothing.
    #[error("{place}: expected {expected:?}, but it {found}")]
    Unexpected {
        /// Which replica.
        place: Place,
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
    pub async fn start(place: Place, directory: PathBuf) -> Result<Self, ProcessError> {
        let io = |doing| move |source| ProcessError::Io { place, doing, source };
        let program = std::env::current_exe().map_err(io("finding the own program"))?;
        let mut child = Command::new(program)
            .arg("replica")
            .args(["--branch", &place.branch.to_string(), "--index", &place.index.to_string()])
            .arg("--directory")
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io("starting"))?;
        let broken = || io("opening a pipe")(io::Error::from(io::ErrorKind::BrokenPipe));
        let input = child.stdin.take().ok_or_else(broken)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(broken)?).lines();
        let mut process = Self { place, address: String::new(), child, input, output };
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
        let place = self.place;
        let io = |source| ProcessError::Io { place, doing: "speaking to it", source };
        self.input.write_all(format!("{line}\n").as_bytes()).await.map_err(io)?;
        self.input.flush().await.map_err(io)
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
        let place = self.place;
        self.child.kill().await.map_err(|source| ProcessError::Io { place, doing: "killing", source })
    }

    /// The rest of the next line, which must begin with `word`.
    async fn expect(&mut self, word: &'static str) -> Result<String, ProcessError> {
        let unexpected =
            |found: String| ProcessError::Unexpected { place: self.place, expected: word, found };
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
