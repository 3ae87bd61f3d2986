//! What a seed means: the path, the applications, and what goes wrong.

use std::time::Duration;

use crate::fault::model::{Bandwidth, Chance, LatencyModel, LinkModel, LossModel, Rng};
use crate::udp::machine::{Limits, MILLI, Nanos, PACKET_BYTES_MIN};

/// How the run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both write everything, read everything, and find the end.
    Whole,
    /// The path is cut at this moment, for ever, in this many of its directions: 1 is from the dialler, 2 to it, 3 both.
    Cut { at: Nanos, ways: u8 },
    /// One end drops its link at this moment.
    Dropped { at: Nanos, by: usize },
    /// One end drops one half of its link at this moment: the other direction has to arrive whole all the same.
    Halved { at: Nanos, by: usize, half: Half },
}

/// A half of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Sender,
    Receiver,
}

/// One end's application.
#[derive(Debug, Clone)]
pub(super) struct Habit {
    pub(super) bytes: u64,
    pub(super) write_max: u64,
    pub(super) write_pause: Nanos,
    pub(super) read_max: u64,
    pub(super) read_pause: Nanos,
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) limits: Limits,
    pub(super) ways: [LinkModel; 2],
    pub(super) habits: [Habit; 2],
    /// Cuts that heal: from, until, ways.
    pub(super) cuts: Vec<(Nanos, Nanos, u8)>,
    /// When the dialler gets another address.
    pub(super) moves: Vec<Nanos>,
    /// Of a million packets, how many a stranger copies, twists or makes up.
    pub(super) mischief: Chance,
    /// When the path becomes healthy.
    pub(super) healed_at: Nanos,
    pub(super) ending: Ending,
}

impl Plan {
    /// A long stream over a path that carries so many bytes in a second, and keeps what 40 ms take for its turn.
    pub(super) fn narrow(bytes_per_second: u64, bytes: u64) -> Self {
        let way = LinkModel {
            latency: LatencyModel::Constant(Duration::from_millis(10)),
            bandwidth: Some(Bandwidth { bytes_per_second, queue: Duration::from_millis(40) }),
            ..LinkModel::PERFECT
        };
        let habit =
            |bytes| Habit { bytes, write_max: 200_000, write_pause: 0, read_max: 200_000, read_pause: 0 };
        let mut limits = limits(|| 1 << 20);
        limits.silence_max = 60_000 * MILLI;
        Self {
            limits,
            ways: [way, way],
            habits: [habit(bytes), habit(0)],
            cuts: Vec::new(),
            moves: Vec::new(),
            mischief: Chance::NEVER,
            healed_at: 60_000 * MILLI,
            ending: Ending::Whole,
        }
    }

    pub(super) fn drawn(rng: &mut Rng) -> Self {
        let half = Chance::percent(50);
        let healed_at = rng.between(1, 3_000) * MILLI;
        let mut way = || {
            let mut model = LinkModel::drawn(rng);
            if rng.chance(Chance::percent(30)) {
                model.corruption = Chance::ppm(rng.between(1_000, 100_000) as u32);
            }
            if rng.chance(Chance::percent(20)) {
                model.loss = LossModel::Independent(Chance::percent(rng.between(5, 40) as u32));
            }
            if rng.chance(Chance::percent(20)) {
                model.bandwidth = Some(Bandwidth {
                    bytes_per_second: rng.between(50_000, 2_000_000),
                    queue: Duration::from_millis(rng.between(5, 300)),
                });
            }
            model
        };
        let ways = [way(), way()];
        let mut habit = || Habit {
            bytes: match rng.below(4) {
                0 => 0,
                1 => rng.between(1, 3_000),
                _ => rng.between(1, 120_000),
            },
            write_max: if rng.chance(half) { rng.between(1_000, 20_000) } else { 200_000 },
            write_pause: if rng.chance(half) { rng.between(1, 20) * MILLI } else { 0 },
            read_max: if rng.chance(half) { rng.between(500, 20_000) } else { 200_000 },
            read_pause: if rng.chance(half) { rng.between(1, 50) * MILLI } else { 0 },
        };
        let habits = [habit(), habit()];
        let mut cuts = Vec::new();
        let mut moves = Vec::new();
        if rng.chance(half) {
            for _ in 0..rng.between(1, 3) {
                let from = rng.between(0, healed_at);
                cuts.push((from, from + rng.between(1, 2_000) * MILLI, rng.between(1, 3) as u8));
            }
        }
        if rng.chance(Chance::percent(30)) {
            for _ in 0..rng.between(1, 2) {
                moves.push(rng.between(0, healed_at));
            }
        }
        moves.sort_unstable();
        let at = rng.between(0, 3_000) * MILLI;
        let ending = match rng.below(8) {
            0 => {
                // This cut is the only one, and it stands.
                cuts.clear();
                moves.clear();
                Ending::Cut { at, ways: rng.between(1, 3) as u8 }
            }
            1 => Ending::Dropped { at, by: rng.below(2) as usize },
            2 => {
                let half = if rng.chance(half) { Half::Sender } else { Half::Receiver };
                Ending::Halved { at, by: rng.below(2) as usize, half }
            }
            _ => Ending::Whole,
        };
        let mischief =
            if rng.chance(half) { Chance::NEVER } else { Chance::ppm(rng.between(1_000, 100_000) as u32) };
        let limits = limits(|| rng.between(2_000, 60_000) as usize);
        Self { limits, ways, habits, cuts, moves, mischief, healed_at, ending }
    }
}

pub(super) fn limits(mut bytes_max: impl FnMut() -> usize) -> Limits {
    Limits {
        packet_bytes: PACKET_BYTES_MIN,
        send_bytes_max: bytes_max(),
        unsent_bytes_max: bytes_max(),
        receive_bytes_max: bytes_max(),
        keepalive: 1_000 * MILLI,
        silence_max: SILENCE_MAX,
        dial_max: 60_000 * MILLI,
        handshake_max: 10_000 * MILLI,
        handshakes_max: 4,
        backlog_max: 4,
        connections_max: 16,
    }
}

pub(super) const SILENCE_MAX: Nanos = 15_000 * MILLI;
