//! What happened to every line, how fast, and whether the books prove it.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::accounts::BRANCHES;
use super::branch::opening_total_cents;
use super::input::Transfer;
use super::processes::Place;
use super::proof::{Books, money};

/// Lines shown for each kind of refusal; `--refused FILE` has them all.
const EXAMPLES: usize = 2;

/// What became of the lines so far.
pub struct Tally {
    /// Lines of the file after the header.
    pub lines: u64,
    /// Transfers that were executed, as the clients were told.
    pub acknowledged: Vec<Transfer>,
    /// Transfers that were executed within one branch: how long each took from the first try, in microseconds.
    pub within: Histogram<u64>,
    /// Transfers that were executed between two branches.
    pub between: Histogram<u64>,
    /// Transfers of which nobody knows whether they were executed: the clients' patience ended.
    pub unknown: Vec<(u64, String)>,
    /// Transfers that nobody was asked for any more, because one was without an answer.
    pub unsent: u64,
    /// How often a client had to ask again.
    pub retries: u64,
    refused: BTreeMap<&'static str, Refused>,
}

#[derive(Default)]
struct Refused {
    lines: Vec<(u64, String)>,
}

impl Tally {
    /// Nothing has happened.
    pub fn new() -> Self {
        Self {
            lines: 0,
            acknowledged: Vec::new(),
            within: latencies(),
            between: latencies(),
            unknown: Vec::new(),
            unsent: 0,
            retries: 0,
            refused: BTreeMap::new(),
        }
    }

    /// Counts a line that was not executed.
    pub fn refuse(&mut self, line: u64, kind: &'static str, reason: &dyn Display) {
        self.refused.entry(kind).or_default().lines.push((line, reason.to_string()));
    }

    /// Counts an executed transfer.
    pub fn execute(&mut self, order: &Transfer, took: Duration) {
        self.acknowledged.push(*order);
        let is_between = order.from.branch != order.to.branch;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let latencies = if is_between { &mut self.between } else { &mut self.within };
        latencies.saturating_record(micros);
    }

    /// Transfers that were executed.
    pub fn executed(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// Lines that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.values().map(|r| r.lines.len() as u64).sum()
    }

    /// Lines of which the fate is known or was asked for in vain.
    pub fn answered(&self) -> u64 {
        self.executed() + self.refused() + self.unknown.len() as u64
    }

    /// Writes every refused line with its number and reason, in the file's order.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_refused(&self, out: &mut impl Write) -> io::Result<()> {
        let mut all: Vec<&(u64, String)> = self.refused.values().flat_map(|r| &r.lines).collect();
        all.sort();
        all.into_iter().try_for_each(|(line, reason)| writeln!(out, "line {line}: {reason}"))
    }
}

/// One process was killed and came back.
pub struct Recovery {
    /// Who.
    pub who: Place,
    /// How many lines were finished when it was killed.
    pub after_lines: u64,
    /// From the kill to the moment when the new process served with the state of its group.
    pub took: Duration,
    /// The longest time from then on in which its branch gave no answer to anybody.
    pub longest_silence: Duration,
}

/// Everything that the last page says.
pub struct Report<'a> {
    /// What became of the lines.
    pub tally: &'a Tally,
    /// From the first transfer to the last answer.
    pub took: Duration,
    /// The kills.
    pub recoveries: Vec<Recovery>,
    /// The books.
    pub books: Books,
}

impl Report<'_> {
    /// Each way in which the proof fails; empty when it holds.
    pub fn flaws(&self) -> Vec<String> {
        let tally = self.tally;
        let mut flaws = self.books.flaws(&tally.acknowledged);
        if !tally.unknown.is_empty() {
            let (line, why) = &tally.unknown[0];
            flaws.push(format!(
                "{} transfers have no answer, the first on line {line}: {why}; {} more were not sent",
                tally.unknown.len(),
                tally.unsent
            ));
        }
        let finished = tally.answered() + tally.unsent;
        if finished != tally.lines {
            flaws.push(format!("{} lines were read, {finished} were counted", tally.lines));
        }
        flaws
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = self.tally;
        let (executed, seconds) = (tally.executed(), self.took.as_secs_f64());
        writeln!(f, "lines        {} read: {executed} executed, {} refused", tally.lines, tally.refused())?;
        for (kind, refused) in &tally.refused {
            writeln!(f, "  {:>6}  {kind}", refused.lines.len())?;
            for (line, reason) in refused.lines.iter().take(EXAMPLES) {
                writeln!(f, "          line {line}: {reason}")?;
            }
        }
        let rate = executed as f64 / seconds.max(f64::MIN_POSITIVE);
        writeln!(
            f,
            "rate         {rate:.0} transfers/s ({seconds:.2} s; {} repeated requests)",
            tally.retries
        )?;
        for (what, latencies) in [("within     ", &tally.within), ("between    ", &tally.between)] {
            let at = |q: f64| latencies.value_at_quantile(q) as f64 / 1000.0;
            let (p50, p99, max) = (at(0.5), at(0.99), latencies.max() as f64 / 1000.0);
            let count = latencies.len();
            writeln!(f, "{what}  {count} transfers, p50 {p50:.2} ms, p99 {p99:.2} ms, slowest {max:.2} ms")?;
        }
        if self.recoveries.is_empty() {
            writeln!(f, "kill         none")?;
        }
        for r in &self.recoveries {
            writeln!(
                f,
                "kill         {} after {} lines; serving again after {:.2} s; its branch was silent for at most {:.3} s",
                r.who,
                r.after_lines,
                r.took.as_secs_f64(),
                r.longest_silence.as_secs_f64()
            )?;
        }
        for branch in 1..=BRANCHES {
            let mut hashes: Vec<String> =
                self.books.of(branch).map(|(_, s)| format!("{:016x}", s.audit.state_hash)).collect();
            let count = hashes.len();
            hashes.dedup();
            let cents = self.books.of(branch).next().map_or(0, |(_, s)| s.audit.cents);
            writeln!(
                f,
                "branch {branch}     {}, state of its {count} replicas {}",
                money(cents),
                hashes.join(" ")
            )?;
        }
        writeln!(
            f,
            "money        {} now, {} at opening",
            money(self.books.total_cents()),
            money(opening_total_cents())
        )?;
        let flaws = self.flaws();
        if flaws.is_empty() {
            writeln!(
                f,
                "proof        holds: each of {executed} acknowledged transfers stands once in the books of both ends, \
                 and nothing else does; no cent was lost or made; all replicas agree"
            )
        } else {
            flaws.iter().try_for_each(|flaw| writeln!(f, "proof        FAILS: {flaw}"))
        }
    }
}

/// Microseconds up to two minutes, beyond any client's patience, to three digits.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are constants in range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_an_answer_are_a_flaw() {
        let flaws = |tally: &Tally| {
            let books = Books(BTreeMap::new());
            Report { tally, took: Duration::from_secs(1), recoveries: Vec::new(), books }.flaws().join("; ")
        };
        let mut tally = Tally::new();
        tally.lines = 1;
        assert!(flaws(&tally).contains("1 lines were read, 0 were counted"));
        tally.unknown.push((7, "no answer".to_owned()));
        assert!(flaws(&tally).contains("1 transfers have no answer, the first on line 7: no answer"));
        assert!(!flaws(&tally).contains("were read"));
    }

    #[test]
    fn refused_lines_are_written_in_the_order_of_the_file() {
        let mut tally = Tally::new();
        tally.refuse(9, "b", &"late");
        tally.refuse(3, "a", &"early");
        let mut out = Vec::new();
        tally.write_refused(&mut out).expect("memory takes everything");
        assert_eq!(String::from_utf8_lossy(&out), "line 3: early\nline 9: late\n");
    }
}
