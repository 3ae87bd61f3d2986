//! The contract of transports as a suite of checks that anybody can run (catalogue T2; feature `conformance`).
//!
//! Purpose     proves that a transport keeps what [`transport`](crate::transport) promises, one promise per check, so that
//!             everything above runs over it unchanged.
//! Method      every check makes a fresh [`Subject`], runs in a task of its own under [`CHECK_SECONDS`], and ends with
//!             a verdict in words. A panic or a hang of the transport fails the check, not the run.
//! Limits      needs a tokio runtime with time, and with IO where the transport needs it. Says nothing about speed and
//!             nothing about faults: a transport that loses frames on purpose fails, as it should.
//!
//! ```
//! use quorate_transports::conformance::{self, Subject};
//! use quorate_transports::mem::Mem;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let report = conformance::run(|| Subject::new(Mem::new(), "mem://")).await;
//! println!("{report}");
//! report.into_result()?;
//! # Ok(()) }
//! ```

mod checks;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::transport::{BoxFuture, Transport};

/// How long a check may take before it counts as a hang, on the runtime's clock.
pub const CHECK_SECONDS: u64 = 30;

/// A transport to be checked, and where it can listen.
#[derive(Clone)]
pub struct Subject {
    pub(crate) listening: Arc<dyn Transport>,
    pub(crate) dialling: Arc<dyn Transport>,
    pub(crate) place: String,
}

impl Subject {
    /// One transport that listens and dials. `place` must leave the choice of the exact address to the transport, like
    /// `tcp://127.0.0.1:0`: several checks listen more than once.
    pub fn new(transport: impl Transport, place: &str) -> Self {
        let transport: Arc<dyn Transport> = Arc::new(transport);
        Self { listening: transport.clone(), dialling: transport, place: place.to_owned() }
    }

    /// Different transports for the two sides, as for two hosts of a simulated network.
    pub fn pair(listening: impl Transport, dialling: impl Transport, place: &str) -> Self {
        Self { listening: Arc::new(listening), dialling: Arc::new(dialling), place: place.to_owned() }
    }
}

/// Runs every check against fresh subjects from `make`, one after the other.
pub async fn run(make: impl Fn() -> Subject) -> Report {
    run_where(|_| true, make).await
}

/// Runs the checks of these names only: for a transport that has datagrams and no links, or the other way round. A name
/// of no check is ignored.
pub async fn run_named(names: &[&str], make: impl Fn() -> Subject) -> Report {
    run_where(|name| names.contains(&name), make).await
}

async fn run_where(is_wanted: impl Fn(&str) -> bool, make: impl Fn() -> Subject) -> Report {
    let mut checks = Vec::new();
    for &(name, check) in checks::ALL.iter().filter(|(name, _)| is_wanted(name)) {
        let task = tokio::spawn(tokio::time::timeout(Duration::from_secs(CHECK_SECONDS), check(make())));
        let failure = match task.await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(failure))) => Some(failure.0),
            Ok(Err(_)) => Some(format!("nothing happened for {CHECK_SECONDS} s")),
            Err(panic) => Some(format!("panicked: {panic}")),
        };
        checks.push(Check { name, failure });
    }
    Report { checks }
}

/// One promise and whether it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The promise, as an identifier that does not change.
    pub name: &'static str,
    /// What went wrong; `None` when the promise was kept.
    pub failure: Option<String>,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    checks: Vec<Check>,
}

impl Report {
    /// All checks, in the order in which they ran.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> Vec<&'static str> {
        self.checks.iter().filter(|check| check.failure.is_some()).map(|check| check.name).collect()
    }

    /// The report again when every promise was kept.
    ///
    /// # Errors
    /// [`NotConforming`] with the whole report.
    pub fn into_result(self) -> Result<Self, NotConforming> {
        if self.checks.iter().all(|check| check.failure.is_none()) {
            Ok(self)
        } else {
            Err(NotConforming(self))
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            match &check.failure {
                None => writeln!(f, "kept    {}", check.name)?,
                Some(failure) => writeln!(f, "BROKEN  {}: {failure}", check.name)?,
            }
        }
        Ok(())
    }
}

/// The transport breaks promises.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the transport breaks its contract\n{0}")]
pub struct NotConforming(pub Report);

// `unwrap` prints errors by `Debug`: show what a reader wants to see.
impl fmt::Debug for NotConforming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a check failed, in words.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Any error of the transport where none is expected.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self(text)
    }
}

pub(crate) type Verdict = Result<(), Failure>;
pub(crate) type CheckFn = fn(Subject) -> BoxFuture<'static, Verdict>;
