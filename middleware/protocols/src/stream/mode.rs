//! Transmission modes: which bounds the delay of a stream's units has, and who broke them.
//!
//! Guarantee   every unit whose delay lies outside the mode's bounds is reported, once, with how far outside it lies.
//! Needs       sender's and receiver's moments on one clock, or a delay that the caller has corrected.
//! Source      van Steen & Tanenbaum, "Distributed Systems", continuous media: asynchronous, synchronous and isochronous
//!             transmission.

use std::time::Duration;

use super::flow::SpecError;

/// Which bounds the end-to-end delay of every unit has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransmissionMode {
    /// Units come one after the other, with no bound in time: a file.
    #[default]
    Asynchronous,
    /// No unit takes longer than `delay_max`; sooner is welcome: a sensor's samples.
    Synchronous {
        /// The longest end-to-end delay.
        delay_max: Duration,
    },
    /// No unit takes longer than `delay_max` nor less than `delay_min`: bounded jitter, as audio and video need it.
    Isochronous {
        /// The shortest end-to-end delay.
        delay_min: Duration,
        /// The longest end-to-end delay.
        delay_max: Duration,
    },
}

impl TransmissionMode {
    /// The longest delay, where there is a bound.
    pub const fn delay_max(self) -> Option<Duration> {
        match self {
            Self::Asynchronous => None,
            Self::Synchronous { delay_max } | Self::Isochronous { delay_max, .. } => Some(delay_max),
        }
    }

    /// The shortest delay; zero where there is no bound.
    pub const fn delay_min(self) -> Duration {
        match self {
            Self::Isochronous { delay_min, .. } => delay_min,
            Self::Asynchronous | Self::Synchronous { .. } => Duration::ZERO,
        }
    }

    /// How far the delays of two units may lie apart, where there is a bound.
    pub fn jitter_max(self) -> Option<Duration> {
        self.delay_max().map(|max| max.saturating_sub(self.delay_min()))
    }

    /// Checks that the bounds leave room.
    ///
    /// # Errors
    /// [`SpecError::Delay`] when a unit can keep no bound at all.
    pub fn check(self) -> Result<(), SpecError> {
        match self.delay_max() {
            Some(max) if max.is_zero() || max < self.delay_min() => {
                Err(SpecError::Delay { min: self.delay_min(), max })
            }
            _ => Ok(()),
        }
    }
}

/// What a unit did to the bounds of its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// It took longer than the longest delay.
    TooLate {
        /// By how much.
        by: Duration,
    },
    /// It took less than the shortest delay. A receiver that can keep it until then has done no harm.
    TooEarly {
        /// By how much.
        by: Duration,
    },
}

/// Watches the units of one stream at the receiver.
#[derive(Debug, Clone, Default)]
pub struct Monitor {
    mode: TransmissionMode,
    units: u64,
    late: u64,
    early: u64,
}

impl Monitor {
    /// Watches a stream of this mode.
    pub const fn new(mode: TransmissionMode) -> Self {
        Self { mode, units: 0, late: 0, early: 0 }
    }

    /// Takes the end-to-end delay of one unit; gives the bound that it broke.
    pub fn handle_unit(&mut self, delay: Duration) -> Option<Breach> {
        self.units += 1;
        if let Some(by) =
            self.mode.delay_max().and_then(|max| delay.checked_sub(max)).filter(|by| !by.is_zero())
        {
            self.late += 1;
            return Some(Breach::TooLate { by });
        }
        let by = self.mode.delay_min().checked_sub(delay).filter(|by| !by.is_zero())?;
        self.early += 1;
        Some(Breach::TooEarly { by })
    }

    /// Units so far.
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// Units so far that took too long.
    pub const fn late(&self) -> u64 {
        self.late
    }

    /// Units so far that came too early.
    pub const fn early(&self) -> u64 {
        self.early
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn m01_every_unit_outside_the_bounds_of_its_mode_is_reported_with_how_far() {
        let delays = [ms(5), ms(20), ms(60), ms(60) + Duration::from_nanos(1), ms(200)];
        let check = |mode, expected: [Option<Breach>; 5]| {
            let mut monitor = Monitor::new(mode);
            assert_eq!(delays.map(|delay| monitor.handle_unit(delay)), expected, "{mode:?}");
            let late = expected.iter().filter(|b| matches!(b, Some(Breach::TooLate { .. }))).count() as u64;
            let early = expected.iter().filter(|b| matches!(b, Some(Breach::TooEarly { .. }))).count() as u64;
            assert_eq!((monitor.units(), monitor.late(), monitor.early()), (5, late, early));
        };
        let late = |by| Some(Breach::TooLate { by });
        let just = Duration::from_nanos(1);
        check(TransmissionMode::Asynchronous, [None; 5]);
        check(
            TransmissionMode::Synchronous { delay_max: ms(60) },
            [None, None, None, late(just), late(ms(140))],
        );
        let isochronous = TransmissionMode::Isochronous { delay_min: ms(20), delay_max: ms(60) };
        check(isochronous, [Some(Breach::TooEarly { by: ms(15) }), None, None, late(just), late(ms(140))]);
        assert_eq!(isochronous.jitter_max(), Some(ms(40)));
    }

    #[test]
    fn m01_bounds_that_no_unit_can_keep_are_refused() {
        assert!(TransmissionMode::Synchronous { delay_max: Duration::ZERO }.check().is_err());
        assert!(TransmissionMode::Isochronous { delay_min: ms(2), delay_max: ms(1) }.check().is_err());
        assert!(TransmissionMode::Isochronous { delay_min: ms(1), delay_max: ms(1) }.check().is_ok());
    }
}
