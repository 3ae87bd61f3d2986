//! Admission control: a flow is taken only when what all flows were promised can still be kept.
//!
//! Guarantee   the service rates of the admitted flows never add up to more than the capacity; flows of one rate r are
//!             admitted exactly floor(C / r) at a time. What a flow gives back can be given away again.
//! Method      a flow that keeps to its token bucket and gets its service rate keeps its delay (RFC 2212); so rates are
//!             all that must be added up. What cannot be given is answered by what can: less rate, or more delay.
//! Source      RFC 2212; RFC 2205 (reservation); van Steen & Tanenbaum, "Distributed Systems", quality of service.
//! Limits      [`FLOWS_MAX`] flows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::flow::{FlowSpec, SpecError, span_of};
use super::mode::TransmissionMode;

/// Flows that one node admits; what it keeps of each is two numbers.
pub const FLOWS_MAX: usize = 65_536;

/// The capacity of a node or of a link, and who was promised how much of it.
#[derive(Debug, Clone)]
pub struct Admission {
    capacity: u64,
    base: Duration,
    promised: u64,
    flows: BTreeMap<u64, u64>,
    next: u64,
}

impl Admission {
    /// `capacity` bytes per second can be promised; the way itself takes `base` of every delay.
    pub const fn new(capacity: u64, base: Duration) -> Self {
        Self { capacity, base, promised: 0, flows: BTreeMap::new(), next: 0 }
    }

    /// Asks for a flow. Only [`Verdict::Accepted`] promises anything.
    pub fn ask(&mut self, spec: &FlowSpec) -> Verdict {
        if let Err(error) = spec.check() {
            return Verdict::Rejected(Refusal::Spec(error));
        }
        if self.flows.len() >= FLOWS_MAX {
            return Verdict::Rejected(Refusal::TooManyFlows);
        }
        let free = self.free();
        match spec.service_rate(self.base) {
            Some(rate) if rate <= free => {
                let grant = Grant(self.next);
                self.next += 1;
                self.promised += rate;
                self.flows.insert(grant.0, rate);
                Verdict::Accepted { grant, rate }
            }
            _ => self.counter(spec, free),
        }
    }

    /// Gives back what was promised; a grant that is given back twice is no harm. True when it stood.
    pub fn release(&mut self, grant: Grant) -> bool {
        let rate = self.flows.remove(&grant.0);
        self.promised -= rate.unwrap_or(0);
        rate.is_some()
    }

    /// Bytes per second that can still be promised.
    pub const fn free(&self) -> u64 {
        self.capacity - self.promised
    }

    /// Flows that stand.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The nearest specification that could be accepted now: its own rate with a longer delay when only the delay is too
    /// much, else what is left of the rate.
    fn counter(&self, spec: &FlowSpec, free: u64) -> Verdict {
        if free == 0 {
            return Verdict::Rejected(Refusal::NothingLeft);
        }
        let rate = spec.rate.min(free);
        let delay_max = self.base.saturating_add(span_of(spec.burst + u64::from(spec.unit_max), free));
        let mode = match spec.mode {
            TransmissionMode::Synchronous { delay_max: wanted } => {
                TransmissionMode::Synchronous { delay_max: delay_max.max(wanted) }
            }
            TransmissionMode::Isochronous { delay_min, delay_max: wanted } => {
                TransmissionMode::Isochronous { delay_min, delay_max: delay_max.max(wanted) }
            }
            TransmissionMode::Asynchronous => TransmissionMode::Asynchronous,
        };
        Verdict::CounterOffer(FlowSpec { rate, mode, ..*spec })
    }
}

/// The promise to one flow. Ids are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant(u64);

/// The answer to a flow that asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stands until it is [released](Admission::release).
    Accepted {
        /// The promise.
        grant: Grant,
        /// Bytes per second that were reserved: at least the flow's rate.
        rate: u64,
    },
    /// Not this, but that would be accepted if it were asked for now. Nothing is reserved.
    CounterOffer(FlowSpec),
    /// Nothing can be promised.
    Rejected(Refusal),
}

/// Why nothing can be promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The whole capacity is promised. Ask again when a flow has ended.
    #[error("the whole capacity is promised")]
    NothingLeft,
    /// [`FLOWS_MAX`] flows stand. Ask again when one has ended.
    #[error("{FLOWS_MAX} flows stand")]
    TooManyFlows,
    /// No stream could have this specification. Asking again cannot help.
    #[error("impossible flow specification")]
    Spec(#[from] SpecError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn m02_as_many_flows_are_admitted_as_the_capacity_holds_and_not_one_more(
            capacity in 1u64..10_000_000, rate in 1_000u64..2_000_000,
        ) {
            let mut admission = Admission::new(capacity, Duration::ZERO);
            let spec = FlowSpec::bulk(rate);
            let mut grants = Vec::new();
            while let Verdict::Accepted { grant, .. } = admission.ask(&spec) {
                grants.push(grant);
            }
            prop_assert_eq!(grants.len() as u64, capacity / rate);
            // One goes, one comes.
            if let Some(grant) = grants.pop() {
                prop_assert!(admission.release(grant) && !admission.release(grant));
                let came = matches!(admission.ask(&spec), Verdict::Accepted { .. });
                prop_assert!(came);
                let full = matches!(admission.ask(&spec), Verdict::Accepted { .. });
                prop_assert!(!full);
            }
        }

        #[test]
        fn m02_a_counter_offer_is_accepted_when_it_is_asked_for(
            capacity in 1u64..1_000_000, base in 0u64..300, rate in 1u64..2_000_000, burst in 1_200u64..500_000,
        ) {
            let mut admission = Admission::new(capacity, Duration::from_millis(base));
            let wanted = FlowSpec { rate, burst, ..FlowSpec::audio() };
            if let Verdict::CounterOffer(offer) = admission.ask(&wanted) {
                prop_assert!(offer.rate <= wanted.rate && offer.mode.delay_max() >= wanted.mode.delay_max());
                let taken = matches!(admission.ask(&offer), Verdict::Accepted { .. });
                prop_assert!(taken, "{:?} was offered by {:?}", offer, admission);
            }
            prop_assert!(admission.promised <= capacity);
        }
    }

    #[test]
    fn m02_a_flow_is_accepted_or_gets_a_counter_offer_or_is_rejected() {
        let mut admission = Admission::new(50_000, Duration::ZERO);
        let audio = FlowSpec::audio();
        // 4,400 bytes within 200 ms are 22,000 a second.
        assert!(matches!(admission.ask(&audio), Verdict::Accepted { rate: 22_000, .. }));
        assert!(matches!(admission.ask(&audio), Verdict::Accepted { rate: 22_000, .. }));
        let Verdict::CounterOffer(less) = admission.ask(&audio) else { panic!("6,000 are left") };
        assert_eq!((less.rate, less.mode.delay_max()), (6_000, Some(Duration::from_nanos(733_333_334))));
        assert!(matches!(admission.ask(&less), Verdict::Accepted { rate: 6_000, .. }));
        assert_eq!(admission.ask(&audio), Verdict::Rejected(Refusal::NothingLeft));
        let never = FlowSpec { rate: 0, ..audio };
        assert!(matches!(admission.ask(&never), Verdict::Rejected(Refusal::Spec(_))));
    }
}
