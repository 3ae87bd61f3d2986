//! Which trace a call belongs to, and the `tracing` spans of both sides.
//!
//! Guarantee   every call has a trace and a span of its own, whether anybody looks or not: they travel with the request,
//!             and the calls that a handler makes belong to the trace of the call that it executes.
//! Method      the numbers of the W3C trace context, in binary. Each side of a call has a `tracing` span at level debug,
//!             target `quorate::rpc`: `call` at the caller's, `serve` around the handler. Their fields `trace_id`,
//!             `span_id` and `parent_span_id` link them over processes, with any subscriber and any exporter, or none.
//! Source      W3C Recommendation "Trace Context", `traceparent`, version 00.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing::span::Entered;

use crate::node::Identity;

/// A place in a trace: what the `traceparent` of W3C says. Its text is that `traceparent`.
///
/// ```
/// use quorate::rpc::TraceContext;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context: TraceContext = text.parse()?;
/// assert!(context.is_sampled());
/// assert_eq!(context.to_string(), text);
/// # Ok::<(), quorate::rpc::TraceError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// High half first: a number of twice the size would be aligned to it, and everything around it grow.
    trace: [u64; 2],
    span: u64,
    flags: u8,
}

impl TraceContext {
    /// The first span of a new trace.
    pub fn root() -> Self {
        Self { trace: [fresh(), fresh()], span: fresh(), flags: SAMPLED }
    }

    /// A new span of the same trace, caused by this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span: fresh(), ..*self }
    }

    /// The number of the trace: equal for everything that one first call has caused. Not 0.
    pub const fn trace_id(&self) -> u128 {
        (self.trace[0] as u128) << 64 | self.trace[1] as u128
    }

    /// The number of the span. Not 0.
    pub const fn span_id(&self) -> u64 {
        self.span
    }

    /// Whoever began the trace wishes it to be recorded.
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The span of the handler that executes the call of this span: no chance is needed for it.
    pub(super) const fn served(&self) -> Self {
        Self { span: mixed(self.span.wrapping_add(STEP)), ..*self }
    }

    pub(super) fn to_bytes(self) -> [u8; TRACE_BYTES] {
        let mut bytes = [0; TRACE_BYTES];
        bytes[..8].copy_from_slice(&self.trace[0].to_be_bytes());
        bytes[8..16].copy_from_slice(&self.trace[1].to_be_bytes());
        bytes[16..24].copy_from_slice(&self.span.to_be_bytes());
        bytes[24] = self.flags;
        bytes
    }

    /// `None` for numbers that are 0, which are none.
    pub(super) fn from_bytes(bytes: [u8; TRACE_BYTES]) -> Option<Self> {
        let (high, rest) = bytes.split_first_chunk::<8>()?;
        let (low, rest) = rest.split_first_chunk::<8>()?;
        let (span, rest) = rest.split_first_chunk::<8>()?;
        let trace = [u64::from_be_bytes(*high), u64::from_be_bytes(*low)];
        let (span, flags) = (u64::from_be_bytes(*span), *rest.first()?);
        (trace != [0, 0] && span != 0).then_some(Self { trace, span, flags })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id(), self.span, self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a traceparent: it reads `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, and neither number is 0"
)]
pub struct TraceError;

impl FromStr for TraceContext {
    type Err = TraceError;

    /// Reads a `traceparent`. Of a later version than 00 it reads what version 00 has, as the standard says.
    ///
    /// # Errors
    /// [`TraceError`].
    fn from_str(text: &str) -> Result<Self, TraceError> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(TraceError)?;
            let is_hex = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
            if !part.bytes().all(is_hex) {
                return Err(TraceError);
            }
            u128::from_str_radix(part, 16).map_err(|_| TraceError)
        };
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let has_more = parts.next().is_some();
        if version == 0xff || version == 0 && has_more || trace == 0 || span == 0 {
            return Err(TraceError);
        }
        // Each has as many digits as its type.
        Ok(Self { trace: [(trace >> 64) as u64, trace as u64], span: span as u64, flags: flags as u8 })
    }
}

/// A span that takes no room where nobody looks, which is almost everywhere: calls are moved often, and many wait at once.
#[derive(Clone, Default)]
pub(super) struct Seen(Option<Box<Span>>);

impl Seen {
    fn by(span: Span) -> Self {
        Self((!span.is_disabled()).then(|| Box::new(span)))
    }

    /// Within it until the guard is dropped.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.0.as_deref().map(Span::enter)
    }

    /// Notes what the call failed with.
    pub(super) fn failed(&self, error: &dyn fmt::Display) {
        if let Some(span) = &self.0 {
            span.record("error", tracing::field::display(error));
        }
    }
}

/// Whether any subscriber wants spans of this level: one look at a number, where making a span to find out is many.
#[inline]
fn is_watched() -> bool {
    LevelFilter::current() >= LevelFilter::DEBUG
}

/// The caller's span around a call.
#[inline]
pub(super) fn call_span(service: &str, method: &str, server: impl fmt::Display, own: &TraceContext) -> Seen {
    if !is_watched() {
        return Seen::default();
    }
    Seen::by(tracing::debug_span!(
        target: "quorate::rpc",
        "call",
        service,
        method,
        peer = %server,
        trace_id = format_args!("{:032x}", own.trace_id()),
        span_id = format_args!("{:016x}", own.span),
        error = tracing::field::Empty,
    ))
}

/// The service's span around a handler.
#[inline]
pub(super) fn serve_span(
    service: &str,
    method: &str,
    caller: Identity,
    own: &TraceContext,
    parent: &TraceContext,
) -> Seen {
    if !is_watched() {
        return Seen::default();
    }
    Seen::by(tracing::debug_span!(
        target: "quorate::rpc",
        "serve",
        service,
        method,
        peer = %caller,
        trace_id = format_args!("{:032x}", own.trace_id()),
        span_id = format_args!("{:016x}", own.span),
        parent_span_id = format_args!("{:016x}", parent.span),
    ))
}

/// The numbers of one client's spans: the same in every run of a simulated program, and others in every life of every node.
pub(super) struct Numbers(AtomicU64);

impl Numbers {
    pub(super) const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The span of a call: a child of this one, or the first of a trace.
    pub(super) fn span(&self, parent: Option<TraceContext>) -> TraceContext {
        match parent {
            Some(parent) => TraceContext { span: self.next(), ..parent },
            None => {
                let first = self.0.fetch_add(STEP.wrapping_mul(3), Ordering::Relaxed);
                let nth = |n: u64| mixed(first.wrapping_add(STEP.wrapping_mul(n)));
                TraceContext { trace: [nth(0), nth(1)], span: nth(2), flags: SAMPLED }
            }
        }
    }

    /// Between 0 and 1.
    pub(super) fn chance(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn next(&self) -> u64 {
        mixed(self.0.fetch_add(STEP, Ordering::Relaxed))
    }
}

/// A number that no other span has, nor a trace. Not 0.
fn fresh() -> u64 {
    let next = NEXT.get().wrapping_add(STEP);
    NEXT.set(next);
    mixed(next)
}

/// Well mixed (splitmix64), not for secrets. Not 0.
const fn mixed(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    match mixed ^ (mixed >> 31) {
        0 => 1,
        number => number,
    }
}

thread_local! {
    // The only chance that every thread of every process has at hand.
    static NEXT: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
}

/// A trace context in binary: trace and span, big-endian as in their text, and flags.
pub(super) const TRACE_BYTES: usize = 25;
const SAMPLED: u8 = 1;
/// Between two numbers that are mixed.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written_as_it_stands() {
        let root = TraceContext::root();
        assert_eq!(root.to_string().parse(), Ok(root));
        assert_eq!(TraceContext::from_bytes(root.to_bytes()), Some(root));
        let child = root.child();
        assert_eq!(child.trace_id(), root.trace_id());
        assert_ne!(child.span_id(), root.span_id());
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b70-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(TraceError), "{text}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        assert!(!later.parse::<TraceContext>().expect("a later version").is_sampled());
    }
}
