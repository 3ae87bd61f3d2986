//! Faults as a list: drawn from a seed, printed, cut down by hand, carried out.
//!
//! Purpose     a failing run is worth more as a list of what was done to it than as a seed, which dies with the next
//!             change of the code.
//! Guarantee   the same seed, hosts and length give the same plan; a drawn plan ends with a whole network on which every
//!             host runs, so that what follows may ask for progress.
//! Limits      crashes are left to the caller, who owns the tasks that must die with their host.

use std::time::Duration;

use super::SimNetwork;
use crate::fault::model::{LinkModel, Rng};

/// One thing to do to a [`SimNetwork`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SimFault {
    /// [`SimNetwork::partition`].
    Partition(Vec<Vec<String>>),
    /// [`SimNetwork::partition_one_way`].
    OneWay {
        /// Those who are no longer heard.
        from: Vec<String>,
        /// Those who no longer hear them.
        to: Vec<String>,
    },
    /// [`SimNetwork::isolate`].
    Isolate(String),
    /// [`SimNetwork::heal`].
    Heal,
    /// [`SimNetwork::pause`].
    Pause(String),
    /// [`SimNetwork::resume`].
    Resume(String),
    /// [`SimNetwork::reset_connections`].
    Reset(String, String),
    /// [`SimNetwork::set_link`].
    Link {
        /// From this host.
        from: String,
        /// To this one.
        to: String,
        /// The behaviour from now on.
        model: LinkModel,
    },
    /// [`SimNetwork::set_default_link`].
    DefaultLink(LinkModel),
    /// [`SimNetwork::reset_links`].
    ResetLinks,
}

/// One fault and its moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimStep {
    /// When, from the beginning of the plan on.
    pub at: Duration,
    /// What.
    pub fault: SimFault,
}

/// Draws a plan for a swarm test: faults at random moments of `length`, of kinds that differ from seed to seed, then a
/// healed network with the links it had. Hosts with fewer than two names give no partitions.
pub fn draw(seed: u64, hosts: &[&str], length: Duration) -> Vec<SimStep> {
    let mut rng = Rng::new(seed);
    let mut steps = Vec::new();
    let mut at = Duration::ZERO;
    if hosts.is_empty() {
        return steps;
    }
    // Each seed leaves out some kinds: a cut that every plan heals at once hides what a long one would show.
    let mut kinds: Vec<u64> = (0..KINDS).collect();
    rng.shuffle(&mut kinds);
    kinds.truncate(rng.between(2, KINDS) as usize);
    let gap_max = length / (rng.between(4, 30) as u32);
    let host = |rng: &mut Rng| (*rng.pick(hosts).unwrap_or(&"")).to_owned();
    loop {
        at += rng.duration(Duration::from_millis(1)..gap_max.max(Duration::from_millis(2)));
        if at >= length {
            break;
        }
        let fault = match rng.pick(&kinds) {
            Some(0) => SimFault::Partition(split(&mut rng, hosts)),
            Some(1) => {
                let mut sides = split(&mut rng, hosts).into_iter();
                let mut side = || sides.next().unwrap_or_default();
                SimFault::OneWay { from: side(), to: side() }
            }
            Some(2) => SimFault::Isolate(host(&mut rng)),
            Some(3) => SimFault::Pause(host(&mut rng)),
            Some(4) => SimFault::Resume(host(&mut rng)),
            Some(5) => SimFault::Reset(host(&mut rng), host(&mut rng)),
            Some(6) => {
                let (from, to) = (host(&mut rng), host(&mut rng));
                SimFault::Link { from, to, model: LinkModel::drawn(&mut rng) }
            }
            _ => SimFault::Heal,
        };
        steps.push(SimStep { at, fault });
    }
    let mut last = |fault| steps.push(SimStep { at: length, fault });
    hosts.iter().for_each(|&host| last(SimFault::Resume(host.to_owned())));
    last(SimFault::ResetLinks);
    last(SimFault::Heal);
    steps
}

impl SimNetwork {
    /// Does one thing now.
    pub fn apply(&self, fault: &SimFault) {
        match fault {
            SimFault::Partition(groups) => {
                let groups: Vec<Vec<&str>> = groups.iter().map(|group| names(group)).collect();
                let groups: Vec<&[&str]> = groups.iter().map(Vec::as_slice).collect();
                self.partition(&groups);
            }
            SimFault::OneWay { from, to } => self.partition_one_way(&names(from), &names(to)),
            SimFault::Isolate(host) => self.isolate(host),
            SimFault::Heal => self.heal(),
            SimFault::Pause(host) => self.pause(host),
            SimFault::Resume(host) => self.resume(host),
            SimFault::Reset(a, b) => self.reset_connections(a, b),
            SimFault::Link { from, to, model } => self.set_link(from, to, *model),
            SimFault::DefaultLink(model) => self.set_default_link(*model),
            SimFault::ResetLinks => self.reset_links(),
        }
    }

    /// Carries a plan out, step by step, each at its moment from now on.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the network as the last step made it.
    pub async fn carry_out(&self, plan: &[SimStep]) {
        let start = tokio::time::Instant::now();
        for step in plan {
            tokio::time::sleep_until(start + step.at).await;
            self.apply(&step.fault);
        }
    }
}

/// Two groups, neither empty when there are two hosts or more.
fn split(rng: &mut Rng, hosts: &[&str]) -> Vec<Vec<String>> {
    let mut hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    rng.shuffle(&mut hosts);
    let second = hosts.split_off(rng.between(1, (hosts.len() as u64).saturating_sub(1).max(1)) as usize);
    vec![hosts, second]
}

fn names(hosts: &[String]) -> Vec<&str> {
    hosts.iter().map(String::as_str).collect()
}

/// Kinds of faults that [`draw`] knows.
const KINDS: u64 = 8;
