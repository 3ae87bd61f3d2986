//! One side of a comparison as a process of its own: what its command line asks, what its standard output answers.
//!
//! Ask      `RIVAL SIDE KIND BYTES SECONDS [ADDRESS]`, as [`Task`] has them.
//! Answer   a server first says `at ADDRESS`; each side ends with one line `result name=value ...`. A client of a one-way
//!          run then lives on until its standard input is closed, so that what it has sent can arrive; a server's
//!          input is closed when its client has said its result.
//! Shared   by this package and by `peers/`, which is built apart because of what the peers depend on.

use std::fmt::{self, Write as _};
use std::io::{Read as _, Write as _};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The length of the message that ends a one-way run; all others are longer.
pub const END_BYTES: usize = 1;

/// How many messages a sender sends between two looks at the clock.
pub const BURST: usize = 64;

pub const SERVER: &str = "server";
pub const CLIENT: &str = "client";
pub const BOTH: &str = "both";
const ONE_WAY: &str = "one-way";
const ROUND_TRIP: &str = "round-trip";
const CALLS: &str = "calls";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Listens, and counts or echoes.
    Server,
    /// Connects, and sends.
    Client,
    /// Both, in one process.
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The client sends as fast as it can.
    OneWay,
    /// The client waits for each answer.
    RoundTrip,
    /// Typed calls that return what they are given.
    Calls(Calls),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Calls {
    /// Callers that each wait for their own answer.
    pub in_flight: usize,
    pub argument: Argument,
}

/// What a call carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// What the rival offers for a run of bytes.
    Bytes,
    /// `Vec<u8>`, as somebody writes who has not read the manual.
    Vector,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneWay => f.write_str(ONE_WAY),
            Self::RoundTrip => f.write_str(ROUND_TRIP),
            Self::Calls(calls) => {
                let argument = if calls.argument == Argument::Bytes { "bytes" } else { "vector" };
                write!(f, "{CALLS}-{}-{argument}", calls.in_flight)
            }
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.splitn(3, '-');
        match (text, words.next(), words.next(), words.next()) {
            (ONE_WAY, ..) => Ok(Self::OneWay),
            (ROUND_TRIP, ..) => Ok(Self::RoundTrip),
            (_, Some(CALLS), Some(in_flight), Some(argument)) => Ok(Self::Calls(Calls {
                in_flight: in_flight.parse().map_err(|_| format!("{in_flight} is no number"))?,
                argument: if argument == "bytes" { Argument::Bytes } else { Argument::Vector },
            })),
            _ => Err(format!("{text} is no kind")),
        }
    }
}

/// What a process is to do.
#[derive(Clone, Debug)]
pub struct Task {
    pub rival: String,
    pub side: Side,
    pub kind: Kind,
    pub bytes: usize,
    pub time: Duration,
    /// Where the server is; only a client has one.
    pub address: Option<String>,
}

impl Task {
    pub fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut next = |what: &str| arguments.next().ok_or_else(|| format!("no {what} given"));
        let rival = next("rival")?;
        let side = match next("side")?.as_str() {
            SERVER => Side::Server,
            CLIENT => Side::Client,
            BOTH => Side::Both,
            other => return Err(format!("{other} is no side").into()),
        };
        let kind = next("kind")?.parse()?;
        let bytes = usize::from_str(&next("bytes")?)?;
        if bytes <= END_BYTES {
            return Err(format!("a message has more than {END_BYTES} B").into());
        }
        let time = Duration::from_secs_f64(f64::from_str(&next("seconds")?)?);
        Ok(Self { rival, side, kind, bytes, time, address: next("address").ok() })
    }

    pub fn address(&self) -> Outcome<&str> {
        self.address.as_deref().ok_or_else(|| "a client needs an address".into())
    }

    pub fn payload(&self) -> Vec<u8> {
        vec![7; self.bytes]
    }
}

/// Tells the caller where the server listens.
pub fn say_address(address: &str) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "at {address}")?;
    Ok(out.flush()?)
}

/// Tells the caller the figures of this side, and what processor time its process took.
pub fn say_result(figures: &[(&str, f64)]) -> Outcome<()> {
    let mut line = "result".to_owned();
    for (name, value) in figures.iter().copied().chain([("cpu", cpu_seconds()?)]) {
        write!(line, " {name}={value}")?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Blocks until the caller has closed our standard input.
pub fn wait_for_caller() -> Outcome<()> {
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Counts what comes in, from the first message to the end mark.
#[derive(Default)]
pub struct Count {
    messages: u64,
    first: Option<Instant>,
}

impl Count {
    /// Says whether this was the last.
    #[inline]
    pub fn take(&mut self, message: &[u8]) -> bool {
        if message.len() == END_BYTES {
            return true;
        }
        if self.first.is_none() {
            self.first = Some(Instant::now());
        }
        self.messages += 1;
        false
    }

    pub fn say(&self) -> Outcome<()> {
        let seconds = self.first.ok_or("no message came")?.elapsed().as_secs_f64();
        say_result(&[("messages", self.messages as f64), ("seconds", seconds)])
    }
}

/// Times of round trips.
pub struct Trips {
    times: Histogram<u64>,
    began: Instant,
    until: Instant,
}

impl Trips {
    pub fn new(task: &Task) -> Outcome<Self> {
        let began = Instant::now();
        Ok(Self { times: Histogram::new(3)?, began, until: began + task.time })
    }

    pub fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    pub fn took(&mut self, start: Instant) -> Outcome<()> {
        Ok(self.times.record(u64::try_from(start.elapsed().as_nanos())?)?)
    }

    pub fn say(&self) -> Outcome<()> {
        let micros = |quantile| self.times.value_at_quantile(quantile) as f64 / 1e3;
        say_result(&[
            ("messages", self.times.len() as f64),
            ("seconds", self.began.elapsed().as_secs_f64()),
            ("p50", micros(0.5)),
            ("p99", micros(0.99)),
            ("p999", micros(0.999)),
        ])
    }
}

/// User and system time of this process; the kernel counts it in hundredths of a second.
fn cpu_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in parentheses, may hold blanks; eleven fields lie between it and the two times.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks = fields.map(u64::from_str).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / 100.0)
}
