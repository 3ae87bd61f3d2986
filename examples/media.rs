//! Sound over a bad network, with and without quality of service: two WAV files to listen to, and a picture of what happened.
//!
//! ```text
//! cargo run --example media [IN.wav] [FOLDER]
//! ```
//! Without IN.wav (16 bits a sample) a tune of thirty seconds is played; the results go to FOLDER, else to the temporary one.
//! Prints one line for each way, the last of which begins with `with    :` and has the better figures.
//!
//! The network is simulated, the same every time: 30 ms and more, spikes of up to 250 ms, 3 % lost in bursts. Without: whatever
//! has not come 20 ms after it was due is silence. With: parity units in a `Protection` that the losses ask for, a `Playout`
//! that keeps 1 % late, and the last sound again, fading, where one is missing. Stretching in time is left to players.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::protocols::Time;
use quorate::protocols::stream::{LossMeter, Playout, Policy, Protection, Protector, Repairer};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A unit of sound is 20 ms long.
const UNIT_MS: f64 = 20.0;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let sound = arguments.next().map_or_else(|| Ok(Sound::tune()), |path| Sound::read(Path::new(&path)))?;
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    std::fs::create_dir_all(&folder)?;

    let without = without(&sound)?;
    let with = with(&sound)?;
    for (way, played) in [("without", &without), ("with", &with)] {
        let heard = sound.heard(played, way == "with");
        println!("{way:8}: {}, {:.1} dB of signal over noise", played.score(), sound.quality(&heard));
        heard.write(&folder.join(format!("media-{way}.wav")))?;
    }
    std::fs::write(folder.join("media.svg"), picture(&without, &with)?)?;
    println!("listen to media-without.wav and media-with.wav, look at media.svg in {}", folder.display());
    Ok(())
}

/// What came of each unit, in milliseconds after it was sent.
struct Played {
    /// When it was there, by itself or repaired.
    came: Vec<Option<f64>>,
    is_repaired: Vec<bool>,
    /// When it was played, or something in its place, and whether it was there.
    at: Vec<(f64, bool)>,
    /// Bytes sent for each byte of sound.
    cost: f64,
}

impl Played {
    fn score(&self) -> String {
        let gaps = self.at.iter().filter(|(_, is_there)| !is_there).count();
        let longest = self.at.split(|(_, is_there)| *is_there).map(<[_]>::len).max().unwrap_or(0);
        let delay = self.at.iter().map(|(delay, _)| delay).sum::<f64>() / self.at.len().max(1) as f64;
        let percent = 100.0 * gaps as f64 / self.at.len().max(1) as f64;
        let longest = longest as f64 * UNIT_MS;
        format!(
            "{percent:4.1} % missing, longest gap {longest:3.0} ms, delay {delay:3.0} ms, {:.2} times the bytes",
            self.cost
        )
    }
}

/// Every unit is played 20 ms after the first one's delay, or never.
fn without(sound: &Sound) -> Outcome<Played> {
    let mut network = Network::new();
    let units = sound.units();
    let came: Vec<_> = (0..units.len()).map(|unit| network.carry(unit as f64 * UNIT_MS)).collect();
    let due = came.iter().flatten().next().ok_or("nothing came")? + UNIT_MS;
    let at = came.iter().map(|delay| (due, delay.is_some_and(|delay| delay <= due))).collect();
    Ok(Played { is_repaired: vec![false; units.len()], came, at, cost: 1.0 })
}

fn with(sound: &Sound) -> Outcome<Played> {
    let units = sound.units();
    // What the receiver of an earlier stream has measured.
    let (mut meter, mut earlier) = (LossMeter::default(), Network::new());
    (0..5_000).for_each(|unit| meter.handle_unit(earlier.carry(f64::from(unit) * UNIT_MS).is_none()));
    let (interval, delay) = (Duration::from_millis(20), Duration::from_millis(400));
    let shape = Protection::choose(meter.losses(), 0.005, interval, delay)
        .ok_or("such losses cannot be repaired in time")?;
    let mut protector = Protector::new(shape.data, shape.parity, shape.depth)?;
    let mut repairer = Repairer::new(shape.data, shape.parity, shape.depth)?;

    // Sending: units when they are there, parity in the gaps between them.
    let mut network = Network::new();
    let (mut on_the_way, mut bytes) = (Vec::new(), 0);
    for (number, unit) in units.iter().enumerate() {
        let now = number as f64 * UNIT_MS;
        on_the_way.extend(network.carry(now).map(|delay| (now + delay, Packet::Unit(number))));
        let is_last = number + 1 == units.len();
        let mut parity = protector.handle_unit(unit)?;
        parity.extend(if is_last { protector.finish()? } else { Vec::new() });
        for (gap, parity) in (1..).zip(parity) {
            bytes += parity.bytes.len();
            let now = now + f64::from(gap);
            on_the_way.extend(network.carry(now).map(|delay| (now + delay, Packet::Parity(parity))));
        }
        bytes += unit.len();
    }
    on_the_way.sort_by(|a, b| a.0.total_cmp(&b.0));

    // Receiving: a unit is there when it comes or when enough of its block has come.
    let mut came = vec![None; units.len()];
    let mut is_repaired = vec![false; units.len()];
    let mut arrivals = Vec::new();
    for (now, packet) in on_the_way {
        let made = match packet {
            Packet::Unit(unit) => {
                arrivals.push((now, unit));
                repairer.handle_unit(unit as u64, &units[unit])
            }
            Packet::Parity(parity) => repairer.handle_parity(parity),
        };
        for (unit, bytes) in made {
            let unit = usize::try_from(unit)?;
            assert_eq!(bytes, units[unit], "a repaired unit is what was sent");
            is_repaired[unit] = true;
            arrivals.push((now, unit));
        }
    }
    for (now, unit) in &arrivals {
        came[*unit].get_or_insert(now - *unit as f64 * UNIT_MS);
    }

    // Playing.
    let mut playout = Playout::new(Policy::Adaptive { late_max: 0.01 }, Duration::from_secs(1));
    let time = |ms: f64| Time::from_nanos((ms * 1e6) as u64);
    let mut arrivals =
        arrivals.into_iter().map(|(now, unit)| (time(now), time(unit as f64 * UNIT_MS))).peekable();
    if let Some((arrived, sent)) = arrivals.next() {
        playout.handle_arrival(sent, arrived);
    }
    let mut at = Vec::new();
    for (unit, came) in came.iter().enumerate() {
        let ms = unit as f64 * UNIT_MS;
        let sent = time(ms);
        while let Some((arrived, early)) =
            arrivals.next_if(|(arrived, _)| *arrived <= playout.window(sent).earliest)
        {
            playout.handle_arrival(early, arrived);
        }
        let latest = playout.window(sent).latest;
        let decision =
            playout.play(sent, came.map(|delay| time(ms + delay)).filter(|arrived| *arrived <= latest));
        at.push((decision.play_at.since(sent).as_secs_f64() * 1e3, decision.is_there));
    }
    let cost = bytes as f64 / units.iter().map(Vec::len).sum::<usize>() as f64;
    Ok(Played { came, is_repaired, at, cost })
}

enum Packet {
    Unit(usize),
    Parity(quorate::protocols::stream::Parity),
}

/// A bad network, the same in every run.
struct Network {
    state: u64,
    is_bad: bool,
    spike: f64,
    last: f64,
}

impl Network {
    fn new() -> Self {
        Self { state: 7, is_bad: false, spike: 0.0, last: 0.0 }
    }

    /// How long a packet takes that is sent now; `None` loses it.
    fn carry(&mut self, now: f64) -> Option<f64> {
        self.is_bad = if self.is_bad { self.chance() > 0.3 } else { self.chance() < 0.01 };
        self.spike = (self.spike - (now - self.last)).max(0.0);
        self.last = now;
        if self.chance() < 0.004 {
            self.spike = 250.0 * self.chance();
        }
        let delay = 30.0 + self.spike - 6.0 * self.chance().ln();
        (!self.is_bad).then_some(delay)
    }

    fn chance(&mut self) -> f64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) as f64 + 0.5) / 2_147_483_648.0
    }
}

/// Samples of 16 bits, of all channels in turn.
#[derive(Clone)]
struct Sound {
    samples: Vec<i16>,
    channels: u16,
    rate: u32,
}

impl Sound {
    /// A scale that goes up and down, with a little of each tone's octave.
    fn tune() -> Self {
        const RATE: u32 = 16_000;
        const TONES: [f64; 8] = [261.6, 293.7, 329.6, 349.2, 392.0, 440.0, 493.9, 523.3];
        let sample = |at: u32| {
            let (tone, within) = ((at / 4_000) as usize % 14, f64::from(at % 4_000) / f64::from(RATE));
            let turns = TONES[if tone < 8 { tone } else { 14 - tone }] * within * std::f64::consts::TAU;
            (9_000.0 * (turns.sin() + 0.3 * (2.0 * turns).sin()) * (-4.0 * within).exp()) as i16
        };
        Self { samples: (0..30 * RATE).map(sample).collect(), channels: 1, rate: RATE }
    }

    fn unit_samples(&self) -> usize {
        (self.rate as usize / 50).max(1) * usize::from(self.channels)
    }

    fn units(&self) -> Vec<Vec<u8>> {
        let bytes = |unit: &[i16]| unit.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        self.samples.chunks(self.unit_samples()).map(bytes).collect()
    }

    /// What is heard: silence where a unit is missing, or the one before it again, ever more quietly.
    fn heard(&self, played: &Played, conceals: bool) -> Self {
        let mut heard = self.clone();
        let size = self.unit_samples();
        for (unit, (_, is_there)) in played.at.iter().enumerate() {
            let (before, rest) = heard.samples.split_at_mut(unit * size);
            let end = size.min(rest.len());
            if !is_there {
                let last = before.len().checked_sub(size).filter(|_| conceals).map(|from| &before[from..]);
                for (at, sample) in rest[..end].iter_mut().enumerate() {
                    *sample = last.map_or(0, |last| last[at] / 2);
                }
            }
        }
        heard
    }

    /// Signal over noise in decibels.
    fn quality(&self, heard: &Self) -> f64 {
        let square = |value: f64| value * value;
        let pairs = self.samples.iter().zip(&heard.samples);
        let noise: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        let signal: f64 = self.samples.iter().map(|sample| square(f64::from(*sample))).sum();
        10.0 * (signal / noise.max(1.0)).log10()
    }

    fn read(path: &Path) -> Outcome<Self> {
        let file = std::fs::read(path)?;
        let chunk = |name: &[u8]| {
            // Chunks are a name, a length and that many bytes, padded to an even number, behind 12 bytes.
            let mut rest = file.get(12..)?;
            while let Some((head, body)) = rest.split_first_chunk::<8>() {
                let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
                if head.starts_with(name) {
                    return Some(&body[..length.min(body.len())]);
                }
                rest = body.get(length.checked_add(length % 2)?..)?;
            }
            None
        };
        let format = chunk(b"fmt ").and_then(|format| format.first_chunk::<16>()).ok_or("no WAV file")?;
        let data = chunk(b"data").ok_or("no sound in the file")?;
        let number = |at: usize| u16::from_le_bytes([format[at], format[at + 1]]);
        let (channels, rate) = (number(2), u32::from_le_bytes([format[4], format[5], format[6], format[7]]));
        if number(0) != 1 || number(14) != 16 || channels == 0 || rate / 50 * u32::from(channels) > 30_000 {
            return Err("only plain samples of 16 bits are understood".into());
        }
        let samples = data.as_chunks::<2>().0.iter().map(|sample| i16::from_le_bytes(*sample)).collect();
        Ok(Self { samples, channels, rate })
    }

    fn write(&self, path: &Path) -> Outcome<()> {
        let bytes = u32::try_from(2 * self.samples.len())?;
        let frame = 2 * self.channels;
        let mut file = Vec::with_capacity(44 + bytes as usize);
        file.extend_from_slice(b"RIFF");
        file.extend_from_slice(&(36 + bytes).to_le_bytes());
        file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0");
        file.extend_from_slice(&self.channels.to_le_bytes());
        file.extend_from_slice(&self.rate.to_le_bytes());
        file.extend_from_slice(&(self.rate * u32::from(frame)).to_le_bytes());
        file.extend_from_slice(&frame.to_le_bytes());
        file.extend_from_slice(b"\x10\0data");
        file.extend_from_slice(&bytes.to_le_bytes());
        file.extend(self.samples.iter().flat_map(|sample| sample.to_le_bytes()));
        Ok(std::fs::write(path, file)?)
    }
}

/// Above without, below with: each unit's delay as a dot (blue when it was repaired), when it was played as a line, and gaps as
/// red ticks.
fn picture(without: &Played, with: &Played) -> Result<String, std::fmt::Error> {
    let mut svg = String::from(
        "<svg xmlns='http://www.w3.org/2000/svg' width='1040' height='640' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n",
    );
    for (top, name, played) in [(30.0, "without", without), (340.0, "with quality of service", with)] {
        let x = |unit: usize| 20.0 + 1_000.0 * unit as f64 / played.at.len().max(1) as f64;
        let y = |delay: f64| top + 260.0 - (delay / 2.0).min(250.0);
        writeln!(
            svg,
            "<text x='20' y='{top}'>{name}: delay of units up to 500 ms, and when they were played</text>"
        )?;
        for (unit, delay) in played.came.iter().enumerate() {
            if let Some(delay) = delay {
                let colour = if played.is_repaired[unit] { "#1f77b4" } else { "#bbb" };
                writeln!(svg, "<circle cx='{:.1}' cy='{:.1}' r='1.6' fill='{colour}'/>", x(unit), y(*delay))?;
            }
        }
        let line: Vec<_> = played
            .at
            .iter()
            .enumerate()
            .map(|(u, (delay, _))| format!("{:.1},{:.1}", x(u), y(*delay)))
            .collect();
        writeln!(svg, "<polyline points='{}' fill='none' stroke='black'/>", line.join(" "))?;
        for (unit, _) in played.at.iter().enumerate().filter(|(_, (_, is_there))| !is_there) {
            writeln!(
                svg,
                "<path d='M{:.1} {}v14' stroke='#d62728' stroke-width='2'/>",
                x(unit),
                top + 264.0
            )?;
        }
    }
    Ok(svg + "</svg>\n")
}
