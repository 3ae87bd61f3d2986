//! Many seeds, one verdict: sweeping, replaying, shrinking, reporting.
//!
//! Environment  `QUORATE_SIM_SEED` runs only that seed (decimal or 0x...); `QUORATE_SIM_SEEDS` runs so many seeds from
//!              the first one on instead of the test's own number.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use quorate_protocols::{Time, Violation};
use quorate_transports::fault::model::Rng;

use super::fault::{Kind, Plan};
use super::scenario::Scenario;
use super::world::{Counts, Ended, Engine};

/// How long a run is, what may go wrong in it, and when it is a storm.
#[derive(Debug, Clone)]
pub struct Config {
    /// Virtual time with faults. Default 20 s.
    pub active: Duration,
    /// Virtual time without, in which everything must come to an end. Default 5 s.
    pub calm: Duration,
    /// The kinds of faults to draw from. Default: all but [`Kind::Lie`].
    pub kinds: Vec<Kind>,
    /// At most so many nodes are down at a time; further crashes do not happen. Default: no limit.
    pub down_max: usize,
    /// At most so many crashes in a run; further ones do not happen. Default: no limit.
    pub crashes_max: u64,
    /// More events than this are a storm, which is a failure. Default 300,000.
    pub events_max: u64,
    /// How many runs shrinking may take; zero reports the failing seed as it is. Default 300.
    pub shrink_runs_max: usize,
    /// How many of the last events a failure shows. Default 60.
    pub lines: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            active: Duration::from_secs(20),
            calm: Duration::from_secs(5),
            kinds: Kind::ALL.iter().copied().filter(|kind| *kind != Kind::Lie).collect(),
            down_max: usize::MAX,
            crashes_max: u64::MAX,
            events_max: 300_000,
            shrink_runs_max: 300,
            lines: 60,
        }
    }
}

/// What was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Breach {
    /// The scenario or a machine found an invariant broken.
    #[error("invariant broken: {0}")]
    Invariant(Violation),
    /// The event budget is spent: machines answer each other without end, or a deadline stays in the past.
    #[error("storm: more than {events} events")]
    Storm {
        /// The budget.
        events: u64,
    },
    /// Something panicked.
    #[error("panic: {0}")]
    Panic(String),
    /// A message or record did not survive its own byte layout.
    #[error("codec: {0}")]
    Codec(String),
    /// Two runs of the same seed differ.
    #[error("not deterministic: trace hash {first:#018x}, then {second:#018x}")]
    NotDeterministic {
        /// The first run's hash.
        first: u64,
        /// The second run's.
        second: u64,
    },
}

impl Breach {
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// A failing seed, shrunk, with all that is needed to see it again. Displays as a report.
#[non_exhaustive]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was broken.
    pub breach: Breach,
    /// When, in virtual time.
    pub at: Time,
    /// The shrunk plan: what must go wrong for the failure to show.
    pub plan: Plan,
    /// How many faults the seed had drawn.
    pub faults_drawn: usize,
    /// The trace hash of the shrunk run.
    pub hash: u64,
    /// The faults, crashes and restarts of the shrunk run.
    pub notes: Vec<String>,
    /// The last events of the shrunk run.
    pub lines: Vec<String>,
    /// How many seeds had passed before.
    pub passed: u64,
    /// What to type to see it again.
    pub command: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {:#x} fails after {} that passed: {} (at {})",
            self.seed, self.passed, self.breach, self.at
        )?;
        writeln!(f, "weather: {}", self.plan.weather.describe())?;
        writeln!(f, "faults: {} of {} are enough:", self.plan.faults.len(), self.faults_drawn)?;
        for fault in &self.plan.faults {
            writeln!(f, "    {fault:?},")?;
        }
        writeln!(f, "what went wrong when:")?;
        for note in &self.notes {
            writeln!(f, "    {note}")?;
        }
        writeln!(f, "last {} events (trace hash {:#018x}):", self.lines.len(), self.hash)?;
        for line in &self.lines {
            writeln!(f, "    {line}")?;
        }
        write!(f, "see it again: {}", self.command)
    }
}

/// The report again, so that `unwrap` and `?` in a test print it readably.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}\n")
    }
}

impl std::error::Error for Failure {}

/// What a sweep without failure did.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Totals over all seeds.
    pub counts: Counts,
    /// Real time that it took.
    pub elapsed: Duration,
    /// A hash over the trace hashes of all seeds.
    pub hash: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        write!(
            f,
            "{} seeds in {:.2} s ({:.0} seeds/s, {:.0} ns an event), {} events a seed, {} crashes, {} strikes hit",
            self.seeds,
            seconds,
            self.seeds as f64 / seconds,
            seconds * 1e9 / self.counts.events.max(1) as f64,
            self.counts.events / self.seeds.max(1),
            self.counts.crashes,
            self.counts.strikes,
        )
    }
}

/// Runs every seed, each with its own plan, until one fails. `make` gets chance of its own to draw a workload from.
///
/// Every 64th seed runs twice, and the two must agree to the bit.
///
/// # Errors
/// The first failing seed, run again to see that it repeats, and shrunk.
pub fn sweep<S: Scenario>(
    config: &Config,
    seeds: Range<u64>,
    mut make: impl FnMut(&mut Rng) -> S,
) -> Result<Summary, Box<Failure>> {
    let started = Instant::now();
    let mut summary = Summary::default();
    for seed in wanted(seeds) {
        let plan = plan(config, seed, &mut make);
        let ended = attempt(config, seed, &plan, &mut make, 0);
        let breach = match ended.outcome {
            Err(breach) => Some(breach),
            Ok(()) if summary.seeds % REPEAT_EVERY == 0 => {
                let again = attempt(config, seed, &plan, &mut make, 0);
                (again.hash != ended.hash)
                    .then_some(Breach::NotDeterministic { first: ended.hash, second: again.hash })
            }
            Ok(()) => None,
        };
        if let Some(breach) = breach {
            return Err(Box::new(investigate(
                config,
                seed,
                plan,
                breach,
                ended.hash,
                summary.seeds,
                &mut make,
            )));
        }
        summary.seeds += 1;
        summary.counts.add(&ended.counts);
        summary.hash = summary.hash.rotate_left(7) ^ ended.hash;
    }
    summary.elapsed = started.elapsed();
    Ok(summary)
}

/// Runs one seed with an explicit plan: a regression, or a directed scenario.
///
/// # Errors
/// The failure, not shrunk.
pub fn replay<S: Scenario>(
    config: &Config,
    seed: u64,
    plan: &Plan,
    mut make: impl FnMut(&mut Rng) -> S,
) -> Result<Counts, Box<Failure>> {
    let ended = attempt(config, seed, plan, &mut make, config.lines);
    match ended.outcome {
        Ok(()) => Ok(ended.counts),
        Err(breach) => Err(Box::new(Failure {
            seed,
            breach,
            at: ended.at,
            plan: plan.clone(),
            faults_drawn: plan.faults.len(),
            hash: ended.hash,
            notes: ended.notes,
            lines: ended.lines,
            passed: 0,
            command: command(seed),
        })),
    }
}

/// What a hunt found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Found {
    /// The seed that failed.
    pub seed: u64,
    /// How many seeds ran, this one included.
    pub tried: u64,
    /// How it failed.
    pub breach: Breach,
}

/// Looks for a failing seed and does not shrink it: for planted bugs, which must be found.
pub fn hunt<S: Scenario>(
    config: &Config,
    seeds: Range<u64>,
    mut make: impl FnMut(&mut Rng) -> S,
) -> Option<Found> {
    let first = seeds.start;
    for seed in seeds {
        let plan = plan(config, seed, &mut make);
        if let Err(breach) = attempt(config, seed, &plan, &mut make, 0).outcome {
            return Some(Found { seed, tried: seed - first + 1, breach });
        }
    }
    None
}

fn plan<S: Scenario>(config: &Config, seed: u64, make: &mut impl FnMut(&mut Rng) -> S) -> Plan {
    let scenario = make(&mut Rng::labelled(seed, MAKE_STREAM));
    Plan::draw(seed, config, scenario.nodes(), scenario.promise_classes())
}

fn attempt<S: Scenario>(
    config: &Config,
    seed: u64,
    plan: &Plan,
    make: &mut impl FnMut(&mut Rng) -> S,
    lines: usize,
) -> Ended {
    let scenario = make(&mut Rng::labelled(seed, MAKE_STREAM));
    let mut engine = Engine::new(scenario, seed, plan, config, lines);
    // The engine is thrown away after a panic, only its trace is read: nothing half-changed is used again.
    let outcome = catch_unwind(AssertUnwindSafe(|| engine.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        Err(Breach::Panic(text.to_owned()))
    });
    engine.end(outcome)
}

/// Runs a failing seed again: it must fail in the same way with the same trace. Then drops what is not needed.
fn investigate<S: Scenario>(
    config: &Config,
    seed: u64,
    plan: Plan,
    breach: Breach,
    hash: u64,
    passed: u64,
    make: &mut impl FnMut(&mut Rng) -> S,
) -> Failure {
    let faults_drawn = plan.faults.len();
    let again = attempt(config, seed, &plan, make, config.lines);
    let repeats = again.hash == hash && again.outcome.as_ref().err().is_some_and(|b| b.is_like(&breach));
    let (plan, ended, breach) = if repeats {
        let plan = shrink(config, seed, plan, &breach, make);
        let ended = attempt(config, seed, &plan, make, config.lines);
        let breach = ended.outcome.as_ref().err().cloned().unwrap_or(breach);
        (plan, ended, breach)
    } else if matches!(breach, Breach::NotDeterministic { .. }) {
        (plan, again, breach)
    } else {
        let second = again.hash;
        (plan, again, Breach::NotDeterministic { first: hash, second })
    };
    let (at, hash) = (ended.at, ended.hash);
    Failure {
        seed,
        breach,
        at,
        plan,
        faults_drawn,
        hash,
        notes: ended.notes,
        lines: ended.lines,
        passed,
        command: command(seed),
    }
}

/// Delta debugging: drops ever smaller runs of faults, then calms the weather, as long as the failure stays.
fn shrink<S: Scenario>(
    config: &Config,
    seed: u64,
    mut plan: Plan,
    breach: &Breach,
    make: &mut impl FnMut(&mut Rng) -> S,
) -> Plan {
    let mut runs = 0;
    let mut still_fails = |plan: &Plan| {
        runs += 1;
        runs <= config.shrink_runs_max
            && attempt(config, seed, plan, make, 0).outcome.err().is_some_and(|found| found.is_like(breach))
    };
    let mut size = plan.faults.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        let mut dropped = false;
        while from < plan.faults.len() {
            let mut smaller = plan.clone();
            smaller.faults.drain(from..(from + size).min(plan.faults.len()));
            if still_fails(&smaller) {
                plan = smaller;
                dropped = true;
            } else {
                from += size;
            }
        }
        // Dropping one fault may make another superfluous: the last size repeats until nothing changes.
        if size > 1 || !dropped {
            size /= 2;
        }
    }
    loop {
        let candidates = plan.weather.simpler();
        let simpler = candidates.into_iter().map(|weather| Plan { weather, faults: plan.faults.clone() });
        match simpler.into_iter().find(|candidate| still_fails(candidate)) {
            Some(calmer) => plan = calmer,
            None => return plan,
        }
    }
}

/// The seeds to run, as the environment or the test says.
fn wanted(seeds: Range<u64>) -> Range<u64> {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        let text = text.trim();
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    };
    if let Some(seed) = number("QUORATE_SIM_SEED") {
        return seed..seed.saturating_add(1);
    }
    match number("QUORATE_SIM_SEEDS") {
        Some(count) => seeds.start..seeds.start.saturating_add(count),
        None => seeds,
    }
}

/// Test harnesses name the thread after the test, and cargo tells the package.
fn command(seed: u64) -> String {
    let package = std::env::var("CARGO_PKG_NAME").map(|name| format!(" -p {name}")).unwrap_or_default();
    match std::thread::current().name() {
        Some(test) if test != "main" => {
            format!("QUORATE_SIM_SEED={seed:#x} cargo test{package} -- --exact {test} --nocapture")
        }
        _ => format!("QUORATE_SIM_SEED={seed:#x}, and the same program"),
    }
}

/// One seed in so many runs twice.
const REPEAT_EVERY: u64 = 64;
const MAKE_STREAM: u64 = 5;
