//! Whether the play-out buffer is as good as the best: our rule, known ones and the offline optimum on recorded delays.
//!
//! Run       `cargo run --release -p quorate-protocols --example playout -- FOLDER [PICTURE.svg]`
//! Reads     every `*.txt` of FOLDER: one unit a line, when it was sent and how long it took in milliseconds, a negative
//!           delay for a lost one, and an empty line between independent runs.
//! Model     continuous play: who is late is lost; the delay changes by at most a tenth of the time that passes; a decision
//!           knows only what has arrived. A unit that took 2 s more than the least of its run is left out. Delays
//!           count from the least of their run and are averaged over all units.
//! Prints    mean delay as a multiple of the offline optimum, with the part that was late. Ours is told the budget and
//!           nothing else; all others are tuned in hindsight, trace by trace, to just keep it.

#![allow(clippy::disallowed_methods, reason = "a measuring program may look at the clock")]

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use quorate_protocols::Time;
use quorate_protocols::stream::playout::{Playout, Policy};

/// A run: when each unit was sent, and how long it took; infinite when it was lost or is left out.
struct Run {
    sent: Vec<f64>,
    delay: Vec<f64>,
    is_left_out: Vec<bool>,
    least: f64,
    /// Indices in the order of arrival.
    arrivals: Vec<usize>,
}

/// What a rule came to: mean delay in milliseconds and the part of the units that was late.
#[derive(Clone, Copy)]
struct Score {
    delay: f64,
    late: f64,
}

#[derive(Default)]
struct Sum {
    delay: f64,
    units: f64,
    late: f64,
    arrived: f64,
}

impl Sum {
    fn add(&mut self, run: &Run, unit: usize, delay: f64, is_late: bool) {
        if !run.is_left_out[unit] {
            self.delay += delay - run.least;
            self.units += 1.0;
        }
        if run.delay[unit].is_finite() {
            self.arrived += 1.0;
            self.late += f64::from(u8::from(is_late));
        }
    }

    fn score(&self) -> Score {
        Score { delay: self.delay / self.units, late: self.late / self.arrived }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("which folder are the traces in?")?;
    let mut files: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    let paths =
        files.iter().map(std::fs::DirEntry::path).filter(|path| path.extension().is_some_and(|e| e == "txt"));
    let mut traces = Vec::new();
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        traces.push((name, load(&path)?));
    }
    let mut picture = Picture::new(&traces);
    for budget in BUDGETS {
        println!(
            "\nlate loss of {} %: mean delay in ms, as a multiple of the optimum (late %)\n",
            budget * 100.0
        );
        println!("| trace | optimum | ours | fixed | exponential | percentile | histogram |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        let mut products = [0.0; 5];
        let mut kept = 0;
        for (number, (name, runs)) in traces.iter().enumerate() {
            let best = optimum(runs, budget);
            let ours = ours(runs, budget);
            let mut line = format!("| {name} | {best:.1}");
            kept += usize::from((0.7..=1.3).contains(&(ours.late / budget)));
            let scores = [
                Some(ours),
                hindsight(runs, budget, &grid(1.0, 1.02, 385), fixed),
                hindsight(runs, budget, &grid(0.3, 1.05, 160), exponential),
                hindsight(runs, budget, &parts(), percentile),
                hindsight(runs, budget, &parts(), histogram),
            ];
            for (score, product) in scores.iter().zip(&mut products) {
                let multiple = score.map_or(f64::NAN, |score| score.delay / best);
                *product += multiple.ln();
                let late = score.map_or(f64::NAN, |score| score.late * 100.0);
                write!(line, " | {multiple:.2} ({late:.2})")?;
            }
            println!("{line} |");
            picture.optimum(number, budget, best);
        }
        let mean = products.map(|product| format!("{:.2}", (product / traces.len() as f64).exp()));
        println!("| S, the geometric mean | 1 | {} |", mean.join(" | "));
        println!("\nours kept the budget within 30 % on {kept} of {} traces", traces.len());
    }
    if let Some(path) = arguments.next() {
        for (number, (_, runs)) in traces.iter().enumerate() {
            picture.curve(number, 0, grid(0.0025, 1.3, 16).into_iter().map(|budget| ours(runs, budget)));
            picture.curve(number, 1, grid(2.0, 1.15, 50).into_iter().map(|knob| fixed(runs, knob)));
            picture.curve(number, 2, grid(0.5, 1.2, 32).into_iter().map(|knob| exponential(runs, knob)));
            picture.curve(number, 3, parts().into_iter().map(|knob| percentile(runs, knob)));
        }
        std::fs::write(path, picture.finish())?;
    }
    decision_cost(&traces);
    Ok(())
}

const BUDGETS: [f64; 3] = [0.01, 0.02, 0.05];

/// What one decision costs: all calls for all units of all traces.
fn decision_cost(traces: &[(String, Vec<Run>)]) {
    let units: usize = traces.iter().flat_map(|(_, runs)| runs).map(|run| run.sent.len()).sum();
    let began = Instant::now();
    for (_, runs) in traces {
        std::hint::black_box(ours(runs, 0.01));
    }
    println!(
        "\n{:.2} us per unit, all calls of the buffer together",
        began.elapsed().as_secs_f64() * 1e6 / units as f64
    );
}

fn load(path: &Path) -> Result<Vec<Run>, Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    let mut runs = Vec::new();
    let (mut sent, mut delay) = (Vec::new(), Vec::new());
    for line in text.lines().chain([""]) {
        let mut numbers = line.split_whitespace().map(str::parse::<f64>);
        match (numbers.next(), numbers.next()) {
            (Some(at), Some(took)) => {
                sent.push(at?);
                delay.push(took?);
            }
            _ if sent.is_empty() => {}
            _ => runs.push(run(std::mem::take(&mut sent), std::mem::take(&mut delay))),
        }
    }
    Ok(runs)
}

fn run(sent: Vec<f64>, delay: Vec<f64>) -> Run {
    let least = delay.iter().copied().filter(|delay| *delay >= 0.0).fold(f64::INFINITY, f64::min);
    let is_left_out: Vec<bool> = delay.iter().map(|delay| *delay - least > 2_000.0).collect();
    let delay: Vec<f64> = delay
        .iter()
        .zip(&is_left_out)
        .map(|(d, out)| if *d < 0.0 || *out { f64::INFINITY } else { *d })
        .collect();
    let mut arrivals: Vec<usize> = (0..sent.len()).filter(|unit| delay[*unit].is_finite()).collect();
    arrivals.sort_by(|a, b| (sent[*a] + delay[*a]).total_cmp(&(sent[*b] + delay[*b])));
    Run { sent, delay, is_left_out, least, arrivals }
}

/// The machine itself, driven as a receiver would.
fn ours(runs: &[Run], late_max: f64) -> Score {
    let mut sum = Sum::default();
    let time = |ms: f64| Time::from_nanos((ms * 1e6).round() as u64);
    for run in runs {
        let mut playout = Playout::new(Policy::Adaptive { late_max }, Duration::from_secs(2));
        let mut arrivals =
            run.arrivals.iter().map(|unit| (*unit, time(run.sent[*unit] + run.delay[*unit]))).peekable();
        if let Some((unit, at)) = arrivals.next() {
            playout.handle_arrival(time(run.sent[unit]), at);
        }
        for unit in 0..run.sent.len() {
            let sent = time(run.sent[unit]);
            // All that has come before this unit may be played at all.
            while let Some((early, at)) = arrivals.next_if(|(_, at)| *at <= playout.window(sent).earliest) {
                playout.handle_arrival(time(run.sent[early]), at);
            }
            let arrived = Some(run.delay[unit])
                .filter(|delay| delay.is_finite())
                .map(|delay| time(run.sent[unit] + delay));
            let arrived = arrived.filter(|at| *at <= playout.window(sent).latest);
            let decision = playout.play(sent, arrived);
            sum.add(run, unit, decision.play_at.as_nanos() as f64 / 1e6 - run.sent[unit], !decision.is_there);
        }
    }
    sum.score()
}

/// Plays runs by a rule that says how long units wait above the least delay, as every other receiver does: the rule hears of
/// arrivals, the delay follows it at the slope, nobody is waited for.
fn rule<R>(
    runs: &[Run],
    begin: impl Fn() -> R,
    hear: impl Fn(&mut R, f64),
    want: impl Fn(&R) -> f64,
) -> Score {
    let mut sum = Sum::default();
    for run in runs {
        let mut state = begin();
        let mut arrivals = run.arrivals.iter().peekable();
        let mut delay = None::<f64>;
        for unit in 0..run.sent.len() {
            let step = if unit == 0 { 0.0 } else { 0.1 * (run.sent[unit] - run.sent[unit - 1]) };
            let until = delay.map_or(f64::INFINITY, |delay| run.sent[unit] + delay - step);
            let mut is_first = delay.is_none();
            while let Some(heard) =
                arrivals.next_if(|heard| is_first || run.sent[**heard] + run.delay[**heard] <= until)
            {
                hear(&mut state, run.delay[*heard]);
                if std::mem::take(&mut is_first) {
                    break;
                }
            }
            let wanted = want(&state);
            let now = delay.map_or(wanted, |delay| wanted.clamp(delay - step, delay + step));
            delay = Some(now);
            sum.add(run, unit, now, run.delay[unit] > now);
        }
    }
    sum.score()
}

/// A constant distance from the least delay so far.
fn fixed(runs: &[Run], distance: f64) -> Score {
    rule(runs, || f64::INFINITY, |least, delay| *least = least.min(delay), |least| least + distance)
}

/// Mean and `factor` deviations, both averaged exponentially: Ramjee et al. 1994, algorithm 1, which has a factor of 4.
fn exponential(runs: &[Run], factor: f64) -> Score {
    const KEEP: f64 = 0.998_002;
    let hear = |state: &mut Option<(f64, f64)>, delay: f64| {
        let (mean, deviation) = state.unwrap_or((delay, 0.0));
        let mean = KEEP * mean + (1.0 - KEEP) * delay;
        *state = Some((mean, KEEP * deviation + (1.0 - KEEP) * (delay - mean).abs()));
    };
    rule(runs, || None, hear, |state| state.map_or(0.0, |(mean, deviation)| mean + factor * deviation))
}

/// A percentile of the last 10,000 delays: Moon, Kurose & Towsley 1998.
fn percentile(runs: &[Run], part: f64) -> Score {
    const WINDOW: usize = 10_000;
    let hear = |(window, sorted): &mut (std::collections::VecDeque<f64>, Vec<f64>), delay: f64| {
        if window.len() == WINDOW
            && let Some(old) = window.pop_front()
        {
            sorted.remove(sorted.partition_point(|other| *other < old));
        }
        window.push_back(delay);
        sorted.insert(sorted.partition_point(|other| *other < delay), delay);
    };
    let want = |(_, sorted): &(_, Vec<f64>)| {
        let rank = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        sorted.get(rank).copied().unwrap_or(0.0)
    };
    rule(runs, Default::default, hear, want)
}

/// A quantile of a histogram of 20 ms that forgets by 0.983 a packet, above the least delay, as NetEQ has it.
fn histogram(runs: &[Run], part: f64) -> Score {
    const KEEP: f64 = 0.983;
    let begin = || (f64::INFINITY, vec![0.0; 101]);
    let hear = |(least, bins): &mut (f64, Vec<f64>), delay: f64| {
        *least = least.min(delay);
        for bin in bins.iter_mut() {
            *bin *= KEEP;
        }
        let last = bins.len() - 1;
        bins[(((delay - *least) / 20.0) as usize).min(last)] += 1.0 - KEEP;
    };
    let want = |(least, bins): &(f64, Vec<f64>)| {
        let all: f64 = bins.iter().sum();
        let mut below = 0.0;
        let bin = bins.iter().position(|bin| {
            below += bin;
            below >= part * all
        });
        least + 20.0 * (bin.unwrap_or(0) + 1) as f64
    };
    rule(runs, begin, hear, want)
}

/// The least delay with which a rule kept the budget, over all of its knob; between two settings as their mixture.
fn hindsight(runs: &[Run], budget: f64, knobs: &[f64], rule: impl Fn(&[Run], f64) -> Score) -> Option<Score> {
    // Losses fall as the knob rises: look by halves.
    let (mut low, mut high) = (0, knobs.len() - 1);
    let mut kept = Some(rule(runs, knobs[high])).filter(|score| score.late <= budget)?;
    while low < high {
        let middle = usize::midpoint(low, high);
        let score = rule(runs, knobs[middle]);
        if score.late <= budget {
            (high, kept) = (middle, score);
        } else {
            low = middle + 1;
        }
    }
    Some(kept)
}

fn grid(from: f64, factor: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(from), |value| Some(value * factor)).take(count).collect()
}

fn parts() -> Vec<f64> {
    grid(0.3, 0.85, 48).into_iter().map(|rest| 1.0 - rest).chain([1.0]).collect()
}

/// The least mean delay of all paths of delays that keep slope and budget, knowing everything: a dynamic programme over
/// delays for a price of lateness, and the dearest price by duality.
fn optimum(runs: &[Run], budget: f64) -> f64 {
    let units: f64 = runs.iter().map(|run| run.is_left_out.iter().filter(|out| !**out).count() as f64).sum();
    let arrived: f64 = runs.iter().map(|run| run.arrivals.len() as f64).sum();
    let bound = |price: f64| {
        let cost: f64 = runs.iter().map(|run| cheapest_path(run, price)).sum();
        (cost - price * budget * arrived) / units
    };
    // The bound is concave in the price: golden section over its logarithm.
    let (mut low, mut high) = (1.0f64.ln(), 1e6f64.ln());
    for _ in 0..12 {
        let (a, b) = (low + 0.382 * (high - low), low + 0.618 * (high - low));
        if bound(a.exp()) < bound(b.exp()) {
            low = a;
        } else {
            high = b;
        }
    }
    bound(f64::midpoint(low, high).exp())
}

fn cheapest_path(run: &Run, price: f64) -> f64 {
    let largest =
        run.delay.iter().copied().filter(|delay| delay.is_finite()).fold(run.least, f64::max) - run.least;
    let grain = (largest / 2_000.0).max(0.1);
    let states = (largest / grain) as usize + 2;
    let mut cost = vec![0.0; states];
    let mut spare = cost.clone();
    let mut slack = 0.0;
    for unit in (0..run.sent.len()).rev() {
        if !run.is_left_out[unit] {
            for (state, cost) in cost.iter_mut().enumerate() {
                *cost += state as f64 * grain;
            }
        }
        if run.delay[unit].is_finite() {
            let late = (((run.delay[unit] - run.least) / grain).ceil() as usize).min(states);
            for cost in &mut cost[..late] {
                *cost += price;
            }
        }
        if unit > 0 {
            slack += 0.1 * (run.sent[unit] - run.sent[unit - 1]) / grain;
            let steps = slack as usize;
            slack -= steps as f64;
            reach(&mut cost, &mut spare, steps);
        }
    }
    cost.into_iter().fold(f64::INFINITY, f64::min)
}

/// Each becomes the least of its neighbours within so many steps: of one side and then of the other, by runs that double.
fn reach(cost: &mut [f64], spare: &mut [f64], steps: usize) {
    let mut width = 1;
    while width <= steps {
        // Runs of `width` to the right become runs of up to twice that, and of `steps + 1` in the end.
        let shift = width.min(steps + 1 - width);
        spare.copy_from_slice(cost);
        for (cost, other) in cost.iter_mut().zip(&spare[shift.min(spare.len())..]) {
            *cost = cost.min(*other);
        }
        width += shift;
    }
    let mut width = 1;
    while width <= steps {
        let shift = width.min(steps + 1 - width);
        spare.copy_from_slice(cost);
        for (cost, other) in cost[shift.min(spare.len())..].iter_mut().zip(&*spare) {
            *cost = cost.min(*other);
        }
        width += shift;
    }
}

/// Mean delay against late loss, a panel for each trace; both axes are logarithmic.
struct Picture {
    names: Vec<String>,
    panels: Vec<String>,
}

const COLOURS: [&str; 4] = ["#d62728", "#7f7f7f", "#1f77b4", "#2ca02c"];
const LEGEND: [&str; 4] = ["ours", "fixed", "exponential", "percentile"];
const WIDTH: f64 = 280.0;
const HEIGHT: f64 = 200.0;

impl Picture {
    fn new(traces: &[(String, Vec<Run>)]) -> Self {
        Self {
            names: traces.iter().map(|(name, _)| name.clone()).collect(),
            panels: vec![String::new(); traces.len()],
        }
    }

    /// 0.2 % to 20 % from left to right, 1 ms to 3 s upwards.
    fn place(score: Score) -> (f64, f64) {
        let x = (score.late.max(1e-9) / 0.002).ln() / 100f64.ln();
        let y = score.delay.max(1e-9).ln() / 3_000f64.ln();
        (x.clamp(0.0, 1.0) * WIDTH, (1.0 - y.clamp(0.0, 1.0)) * HEIGHT)
    }

    fn optimum(&mut self, panel: usize, budget: f64, delay: f64) {
        let (x, y) = Self::place(Score { delay, late: budget });
        self.panels[panel] += &format!("<circle cx='{x:.1}' cy='{y:.1}' r='4' fill='black'/>\n");
    }

    fn curve(&mut self, panel: usize, colour: usize, scores: impl Iterator<Item = Score>) {
        let inside = scores.filter(|score| (0.002..0.2).contains(&score.late)).map(Self::place);
        let points: Vec<_> = inside.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let (points, colour) = (points.join(" "), COLOURS[colour]);
        self.panels[panel] +=
            &format!("<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.8'/>\n");
    }

    fn finish(self) -> String {
        let rows = self.panels.len().div_ceil(3);
        let (all_width, all_height) = (3.0 * (WIDTH + 60.0) + 20.0, rows as f64 * (HEIGHT + 70.0) + 40.0);
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{all_width}' height='{all_height}' font-family='sans-serif' font-size='11'>\n\
             <rect width='100%' height='100%' fill='white'/>\n"
        );
        for (i, (name, colour)) in LEGEND.iter().zip(COLOURS).chain([(&"optimum", "black")]).enumerate() {
            let x = 50 + 130 * i;
            svg += &format!(
                "<rect x='{x}' y='12' width='14' height='4' fill='{colour}'/><text x='{}' y='18'>{name}</text>\n",
                x + 20
            );
        }
        for (i, (name, panel)) in self.names.iter().zip(&self.panels).enumerate() {
            let (x, y) = ((i % 3) as f64 * (WIDTH + 60.0) + 50.0, (i / 3) as f64 * (HEIGHT + 70.0) + 50.0);
            svg += &format!(
                "<g transform='translate({x},{y})'>\n<rect width='{WIDTH}' height='{HEIGHT}' fill='none' stroke='#ccc'/>\n"
            );
            svg += &format!("<text x='0' y='-6' font-weight='bold'>{name}</text>\n");
            for late in [0.002, 0.01, 0.05, 0.2] {
                let (x, _) = Self::place(Score { delay: 1.0, late });
                svg += &format!(
                    "<path d='M{x:.1} 0V{HEIGHT}' stroke='#eee'/><text x='{x:.1}' y='{}' text-anchor='middle'>{} %</text>\n",
                    HEIGHT + 14.0,
                    late * 100.0
                );
            }
            for delay in [1.0, 10.0, 100.0, 1_000.0] {
                let (_, y) = Self::place(Score { delay, late: 0.01 });
                svg += &format!(
                    "<path d='M0 {y:.1}H{WIDTH}' stroke='#eee'/><text x='-4' y='{:.1}' text-anchor='end'>{delay} ms</text>\n",
                    y + 4.0
                );
            }
            svg += panel;
            svg += "</g>\n";
        }
        svg + "</svg>\n"
    }
}
