//! What was measured, as a table, as JSON and as a picture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::contest::{Figures, Rival, is_rate};
use crate::promises;
use crate::worker::{Kind, Outcome};

/// The rows that others are compared with: there is one of these in a table, or it comes first.
const REFERENCES: [&str; 4] =
    [crate::ours::NAME, crate::ours::TWO_THREADS, promises::AT_MOST_ONCE, promises::EXACTLY_ONCE];

/// All runs of all rivals at one question.
pub struct Table {
    pub name: String,
    pub kind: Kind,
    pub bytes: usize,
    pub rows: Vec<(Rival, Vec<Figures>)>,
}

impl Table {
    /// The figure that a table is about.
    fn main_figure(&self) -> &'static str {
        if is_rate(self.kind) { "rate" } else { "p50" }
    }

    pub fn print(&self) {
        // Where there are several rows of ours, the one that is set up as the peers are.
        let ours = self.rows.iter().find(|(rival, _)| REFERENCES.contains(&&*rival.name));
        let ours = ours.map_or(f64::NAN, |(_, runs)| spread(runs, self.main_figure()).median);
        println!("{}", self.name);
        match is_rate(self.kind) {
            true => {
                let what = if self.kind == Kind::OneWay { "messages/s" } else { "calls/s" };
                println!(
                    "{:<22} {:>12} {:>25} {:>9} {:>10} {:>11}",
                    "", what, "least and greatest", "MiB/s", "CPU us", "quorate is"
                );
                for (rival, runs) in &self.rows {
                    let rate = spread(runs, "rate");
                    println!(
                        "{:<22} {:>12.0} {:>12.0} {:>12.0} {:>9.0} {:>10.3} {:>10.2}x",
                        rival.name,
                        rate.median,
                        rate.least,
                        rate.greatest,
                        rate.median * self.bytes as f64 / f64::from(1 << 20),
                        spread(runs, "cpu_us").median,
                        ours / rate.median
                    );
                }
            }
            false => {
                println!(
                    "{:<22} {:>9} {:>19} {:>9} {:>9} {:>10} {:>11}",
                    "", "p50 us", "least and greatest", "p99 us", "p99.9 us", "CPU us", "quorate is"
                );
                for (rival, runs) in &self.rows {
                    let p50 = spread(runs, "p50");
                    println!(
                        "{:<22} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>10.2} {:>10.2}x",
                        rival.name,
                        p50.median,
                        p50.least,
                        p50.greatest,
                        spread(runs, "p99").median,
                        spread(runs, "p999").median,
                        spread(runs, "cpu_us").median,
                        ours / p50.median
                    );
                }
            }
        }
        println!();
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(rival, runs)| json!({ "name": rival.name, "version": rival.version, "runs": runs }))
            .collect();
        json!({ "table": self.name, "main_figure": self.main_figure(), "bytes": self.bytes, "rows": rows })
    }

    /// A bar for each rival's median, a line from its least to its greatest.
    fn svg(&self) -> String {
        const LEFT: usize = 150;
        const WIDTH: f64 = 480.0;
        const BAR: usize = 26;
        let figure = self.main_figure();
        let spreads: Vec<Spread> = self.rows.iter().map(|(_, runs)| spread(runs, figure)).collect();
        let most = spreads.iter().map(|spread| spread.greatest).fold(f64::MIN_POSITIVE, f64::max);
        let height = 40 + BAR * self.rows.len();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"13\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"8\" y=\"20\" \
             font-weight=\"bold\">{}, {}</text>",
            self.name,
            match self.kind {
                Kind::OneWay => "messages per second",
                kind if is_rate(kind) => "calls per second",
                _ => "median in microseconds",
            }
        );
        for (place, ((rival, _), spread)) in self.rows.iter().zip(&spreads).enumerate() {
            let (top, x) = (34 + BAR * place, |value: f64| LEFT as f64 + value / most * WIDTH);
            let (text, middle) = (top + 15, top + 10);
            let colour = if rival.name.starts_with(crate::ours::NAME) { "#1a7f5a" } else { "#9fb4c7" };
            // Writing to a string cannot fail.
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{top}\" \
                 width=\"{:.1}\" height=\"20\" fill=\"{colour}\"/><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" \
                 y2=\"{middle}\" stroke=\"black\"/><text x=\"{:.1}\" y=\"{text}\">{}</text>",
                LEFT - 8,
                rival.name,
                x(spread.median) - LEFT as f64,
                x(spread.least),
                x(spread.greatest),
                x(spread.greatest) + 8.0,
                readable(spread.median)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Writes all tables to one file.
pub fn write_json(tables: &[Table], path: &Path) -> Outcome<()> {
    let system = fs::read_to_string("/proc/version").unwrap_or_default();
    let cores = std::thread::available_parallelism()?.get();
    let tables: Vec<Value> = tables.iter().map(Table::json).collect();
    let all = json!({ "system": system.trim(), "cores": cores, "tables": tables });
    Ok(fs::write(path, serde_json::to_string_pretty(&all)?)?)
}

/// Draws every table into a file named after it.
pub fn draw(tables: &[Table], folder: &Path) -> Outcome<()> {
    fs::create_dir_all(folder)?;
    for table in tables {
        let name: String = table.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        fs::write(folder.join(format!("{}.svg", name.to_lowercase())), table.svg())?;
    }
    Ok(())
}

struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

fn spread(runs: &[Figures], figure: &str) -> Spread {
    let values = runs.iter().filter_map(|run| run.get(figure).copied()).collect();
    let [least, median, greatest] = spread_of(values);
    Spread { least, median, greatest }
}

/// The least of them, their median and the greatest.
pub fn spread_of(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

fn readable(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value => format!("{value:.1}"),
    }
}
