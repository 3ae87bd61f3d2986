//! How fast: round-trip time, congestion window, pacing.
//!
//! Source      RFC 9002, section 5 (round-trip time) and 7 (NewReno); RFC 6298.
//! Reason      NewReno, not CUBIC: it has two numbers and no clock of its own, and where it is slower, on long fat paths
//!             with losses, `quic://` has CUBIC.
//! Limits      the window lies between [`WINDOW_PACKETS_MIN`] packets and what the owner may have under way.

use super::{MILLI, Nanos};

/// What a path is taken for before it was measured: 100 ms.
const INITIAL_RTT: Nanos = 100 * MILLI;
/// The finest timer that is relied on.
const GRANULARITY: Nanos = MILLI;
const WINDOW_PACKETS_MIN: usize = 2;
const WINDOW_PACKETS_INITIAL: usize = 10;
/// Packets in a row are never fewer, however slow the path.
const BURST_PACKETS_MIN: usize = 10;
/// Two ticks of the timer: what the path carries in this time may leave at once.
const BURST: Nanos = 2 * MILLI;

/// Estimates of the path's round-trip time.
#[derive(Debug, Clone, Default)]
pub(super) struct Rtt {
    latest: Nanos,
    smoothed: Option<Nanos>,
    variation: Nanos,
    min: Nanos,
}

impl Rtt {
    /// `delay` is how long the peer says that it waited before it answered.
    pub(super) fn sample(&mut self, latest: Nanos, delay: Nanos) {
        self.latest = latest;
        let Some(smoothed) = self.smoothed else {
            (self.smoothed, self.variation, self.min) = (Some(latest), latest / 2, latest);
            return;
        };
        self.min = self.min.min(latest);
        let adjusted = if latest >= self.min + delay { latest - delay } else { latest };
        self.variation = (3 * self.variation + smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = Some((7 * smoothed + adjusted) / 8);
    }

    pub(super) fn smoothed(&self) -> Nanos {
        self.smoothed.unwrap_or(INITIAL_RTT)
    }

    /// When an answer is overdue; `delay` is how long the peer may wait before it answers.
    pub(super) fn overdue(&self, delay: Nanos) -> Nanos {
        let variation = if self.smoothed.is_some() { self.variation } else { INITIAL_RTT / 2 };
        self.smoothed() + (4 * variation).max(GRANULARITY) + delay
    }

    /// How much later than its successors a packet may arrive and not count as lost.
    pub(super) fn lost_after(&self) -> Nanos {
        (9 * self.smoothed().max(self.latest) / 8).max(GRANULARITY)
    }

    pub(super) fn is_measured(&self) -> bool {
        self.smoothed.is_some()
    }
}

/// How many bytes may be under way.
#[derive(Debug, Clone)]
pub(super) struct Window {
    bytes: usize,
    /// Below it the window doubles per round trip, above it grows by a packet.
    threshold: usize,
    /// Losses of packets that were sent before this moment are answered already.
    answered_until: Option<Nanos>,
    acked: usize,
    packet: usize,
    bytes_max: usize,
}

impl Window {
    pub(super) fn new(packet: usize, bytes_max: usize) -> Self {
        let bytes_max = bytes_max.max(WINDOW_PACKETS_MIN * packet);
        let bytes = (WINDOW_PACKETS_INITIAL * packet).min(bytes_max);
        Self { bytes, threshold: usize::MAX, answered_until: None, acked: 0, packet, bytes_max }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A packet of `bytes`, sent at `sent_at`, has arrived, when `in_flight` were under way.
    pub(super) fn on_acked(&mut self, bytes: usize, sent_at: Nanos, in_flight: usize) {
        // A window that nobody used proves nothing about the path.
        let is_used = 2 * in_flight >= self.bytes;
        if !is_used || self.answered_until.is_some_and(|until| sent_at <= until) {
            return;
        }
        if self.bytes < self.threshold {
            self.bytes += bytes;
        } else {
            self.acked += bytes;
            if self.acked >= self.bytes {
                self.acked -= self.bytes;
                self.bytes += self.packet;
            }
        }
        self.bytes = self.bytes.min(self.bytes_max);
    }

    /// Packets were lost, the last of them sent at `sent_at`.
    pub(super) fn on_lost(&mut self, now: Nanos, sent_at: Nanos, is_persistent: bool) {
        if self.answered_until.is_none_or(|until| sent_at > until) {
            self.answered_until = Some(now);
            self.bytes = (self.bytes / 2).max(WINDOW_PACKETS_MIN * self.packet);
            self.threshold = self.bytes;
            self.acked = 0;
        }
        if is_persistent {
            self.bytes = WINDOW_PACKETS_MIN * self.packet;
        }
    }
}

/// Spreads a window over its round trip: a bucket that fills at 5/4 of the window per round trip.
#[derive(Debug, Clone, Default)]
pub(super) struct Pacer {
    /// Bytes that may leave at once.
    allowance: u64,
    filled_at: Option<Nanos>,
}

impl Pacer {
    /// `None` when a packet may leave; else when the next one may.
    pub(super) fn wait(&mut self, now: Nanos, window: &Window, rtt: &Rtt) -> Option<Nanos> {
        let round_trip = rtt.smoothed().max(1);
        let rate = window.bytes as u128 * 5 / 4;
        let at_most = (rate * u128::from(BURST) / u128::from(round_trip)) as u64;
        let at_most = at_most.clamp((BURST_PACKETS_MIN * window.packet) as u64, u64::MAX / 2);
        let filled_at = self.filled_at.unwrap_or(0);
        let fresh = rate * u128::from(now.saturating_sub(filled_at)) / u128::from(round_trip);
        // A fraction of a byte stays in the time that is not counted yet.
        if fresh > 0 || self.filled_at.is_none() {
            let fresh =
                if self.filled_at.is_none() { at_most } else { fresh.min(u128::from(at_most)) as u64 };
            self.allowance = (self.allowance + fresh).min(at_most);
            self.filled_at = Some(now);
        }
        let needed = window.packet as u64;
        if self.allowance >= needed {
            return None;
        }
        let missing = u128::from(needed - self.allowance);
        let pause = (missing * u128::from(round_trip)).div_ceil(rate.max(1)) as u64;
        Some(now + pause.max(1))
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.allowance = self.allowance.saturating_sub(bytes as u64);
    }
}
