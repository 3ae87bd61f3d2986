//! What happened to every line, how fast, and whether the books prove it.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::branch::{Audit, opening_total_cents};
use super::processes::Place;

/// Lines shown for each kind of refusal; `--refused FILE` has them all.
const EXAMPLES: usize = 2;

/// What became of the lines so far.
pub struct Tally {
    /// Lines of the file after the header.
    pub lines: u64,
    /// Transfers that were executed within one branch, and how long each took from the first try, in microseconds.
    pub within: Histogram<u64>,
    /// Transfers that were executed between two branches.
    pub between: Histogram<u64>,
    /// Transfers of which nobody knows whether they were executed: the clients' patience ended.
    pub unknown: Vec<(u64, String)>,
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
            within: latencies(),
            between: latencies(),
            unknown: Vec::new(),
            retries: 0,
            refused: BTreeMap::new(),
        }
    }

    /// Counts a line that was not executed.
    pub fn refuse(&mut self, line: u64, kind: &'static str, reason: &dyn Display) {
        self.refused.entry(kind).or_default().lines.push((line, reason.to_string()));
    }

    /// Counts an executed transfer.
    pub fn execute(&mut self, is_between: bool, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let latencies = if is_between { &mut self.between } else { &mut self.within };
        latencies.saturating_record(micros);
    }

    /// Transfers that were executed.
    pub fn executed(&self) -> u64 {
        self.within.len() + self.between.len()
    }

    /// Lines that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.values().map(|r| r.lines.len() as u64).sum()
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

/// What the replicas' auditors saw at the end, by branch.
pub struct Books(pub Vec<(u8, Vec<Audit>)>);

/// Everything that the last page says.
pub struct Report<'a> {
    /// What became of the lines.
    pub tally: &'a Tally,
    /// From the first transfer to the last answer.
    pub took: Duration,
    /// The kill, if there was one.
    pub recovery: Option<Recovery>,
    /// The books.
    pub books: Books,
}

impl Report<'_> {
    /// Each way in which the proof fails; empty when it holds.
    pub fn flaws(&self) -> Vec<String> {
        let mut flaws = self.books.flaws();
        let tally = self.tally;
        if !tally.unknown.is_empty() {
            let (line, why) = &tally.unknown[0];
            flaws.push(format!(
                "{} transfers have no answer, the first on line {line}: {why}",
                tally.unknown.len()
            ));
        }
        let answered = tally.executed() + tally.refused() + tally.unknown.len() as u64;
        if answered != tally.lines {
            flaws.push(format!("{} lines were read, {answered} were answered", tally.lines));
        }
        flaws
    }
}

impl Books {
    fn flaws(&self) -> Vec<String> {
        let mut flaws = Vec::new();
        for (branch, audits) in &self.0 {
            let Some(first) = audits.first() else {
                flaws.push(format!("branch {branch} has no replica"));
                continue;
            };
            if let Some(other) = audits.iter().find(|a| *a != first) {
                flaws.push(format!("branch {branch}: replicas differ: {first:?}, {other:?}"));
            }
            if first.open > 0 {
                flaws.push(format!("branch {branch}: {} transactions are still open", first.open));
            }
        }
        let (total, opening) = (self.total_cents(), opening_total_cents());
        if total != opening {
            flaws.push(format!("the branches hold {} instead of {}", money(total), money(opening)));
        }
        flaws
    }

    fn total_cents(&self) -> u64 {
        self.0.iter().filter_map(|(_, audits)| audits.first()).map(|a| a.cents + a.held_cents).sum()
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
        match &self.recovery {
            None => writeln!(f, "kill         none")?,
            Some(r) => writeln!(
                f,
                "kill         {} after {} lines; serving again after {:.2} s; its branch was silent for at most {:.3} s",
                r.who,
                r.after_lines,
                r.took.as_secs_f64(),
                r.longest_silence.as_secs_f64()
            )?,
        }
        for (branch, audits) in &self.books.0 {
            let hashes: Vec<String> = audits.iter().map(|a| format!("{:016x}", a.state_hash)).collect();
            let cents = audits.first().map_or(0, |a| a.cents);
            writeln!(f, "branch {branch}     {}, state of its replicas {}", money(cents), hashes.join(" "))?;
        }
        writeln!(
            f,
            "money        {} now, {} at opening",
            money(self.books.total_cents()),
            money(opening_total_cents())
        )?;
        let flaws = self.flaws();
        if flaws.is_empty() {
            writeln!(f, "proof        holds: no cent was lost or made, and all replicas agree")
        } else {
            flaws.iter().try_for_each(|flaw| writeln!(f, "proof        FAILS: {flaw}"))
        }
    }
}

/// Cents as whole money.
pub fn money(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// Microseconds up to two minutes, beyond any client's patience, to three digits.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are constants in range")
}

#[cfg(test)]
mod tests {
    use super::super::branch::Branch;
    use super::*;

    fn books() -> Books {
        Books((1..=3).map(|branch| (branch, vec![Branch::open(branch).audit(); 3])).collect())
    }

    fn flaws(tally: &Tally, books: Books) -> Vec<String> {
        Report { tally, took: Duration::from_secs(1), recovery: None, books }.flaws()
    }

    #[test]
    fn the_proof_holds_for_untouched_books() {
        assert_eq!(flaws(&Tally::new(), books()), Vec::<String>::new());
    }

    #[test]
    fn the_proof_fails_for_a_lost_cent_a_different_replica_an_open_hold_and_an_unanswered_line() {
        let mut lost = books();
        lost.0[0].1.iter_mut().for_each(|a| a.cents -= 1);
        assert!(flaws(&Tally::new(), lost)[0].contains("instead of"));
        let mut differs = books();
        differs.0[1].1[2].state_hash += 1;
        assert!(flaws(&Tally::new(), differs)[0].contains("replicas differ"));
        let mut open = books();
        open.0[2].1.iter_mut().for_each(|a| a.open = 1);
        assert!(flaws(&Tally::new(), open)[0].contains("still open"));
        let mut tally = Tally::new();
        tally.lines = 1;
        assert!(flaws(&tally, books())[0].contains("0 were answered"));
        tally.unknown.push((7, "no answer".to_owned()));
        assert!(flaws(&tally, books())[0].contains("line 7"));
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
