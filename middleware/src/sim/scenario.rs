//! What a test says about its machines: how to make them, what to ask of them, what must hold.

use std::fmt;

use quorate_protocols::{Machine, Output, ProcessId, Time, Violation};

use super::world::World;

/// A system under simulation: machines, workload and oracle. One value lives for one run of one seed.
///
/// Everything it draws must come from [`World::rng`] or from the generator that its constructor was given, and it
/// must not depend on hash-map order or time: the runner compares trace hashes.
pub trait Scenario {
    /// The machine of every node.
    type Machine: Machine<Command: fmt::Debug, Event: fmt::Debug>;

    /// How many nodes take part; at most [`NODES_MAX`](super::NODES_MAX).
    fn nodes(&self) -> usize;

    /// Makes the machine of one incarnation of one node, from the records that survived.
    fn boot(&mut self, boot: Boot<Self::Machine>) -> Self::Machine;

    /// Called once before anything happens: schedule the workload.
    fn start(&mut self, world: &mut World<Self::Machine>) {
        let _ = world;
    }

    /// A moment that was asked for by [`World::wake_in`] has come.
    ///
    /// # Errors
    /// A broken invariant.
    fn wake(&mut self, token: u64, world: &mut World<Self::Machine>) -> Result<(), Violation> {
        let _ = (token, world);
        Ok(())
    }

    /// A machine told its user something. Commands given here reach the machine at the same instant, in order.
    ///
    /// # Errors
    /// A broken invariant.
    fn observe(
        &mut self,
        who: Observed,
        event: &<Self::Machine as Machine>::Event,
        world: &mut World<Self::Machine>,
    ) -> Result<(), Violation>;

    /// Whether the node may die now; a crash that may not happen does not, wherever it comes from. For systems that a
    /// certain loss ends for good, so that most runs see what comes after a crash. By default any node may.
    fn may_crash(&self, node: usize, world: &World<Self::Machine>) -> bool {
        let _ = (node, world);
        true
    }

    /// A node died: whatever the scenario keeps on behalf of its volatile memory is gone.
    fn crashed(&mut self, node: usize, world: &mut World<Self::Machine>) {
        let _ = (node, world);
    }

    /// The class of promise that an output makes to others, below [`promise_classes`](Self::promise_classes);
    /// `None` when it makes none. Strikes aim at these. By default every record is a promise.
    fn promise(&self, output: &Output<Self::Machine>) -> Option<u8> {
        matches!(output, Output::Persist(_)).then_some(0)
    }

    /// How many classes of promises there are.
    fn promise_classes(&self) -> u8 {
        1
    }

    /// All faults are healed and every node is up; from here on everything must make progress.
    fn calm(&mut self, world: &mut World<Self::Machine>) {
        let _ = world;
    }

    /// The end: safety over the whole run, and liveness after the calm phase.
    ///
    /// # Errors
    /// A broken invariant.
    fn finish(&mut self, world: &mut World<Self::Machine>) -> Result<(), Violation>;
}

/// What a new incarnation starts from.
pub struct Boot<M: Machine> {
    /// The node's index.
    pub node: usize,
    /// Its name and incarnation: `node` is the index, incarnations count from one.
    pub id: ProcessId,
    /// What its clock shows.
    pub now: Time,
    /// The seed of all chance that the machine may take.
    pub seed: u64,
    /// The durable records, in order.
    pub records: Vec<M::Record>,
}

/// Who told something, and when.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// The node's index.
    pub node: usize,
    /// The incarnation that spoke.
    pub id: ProcessId,
    /// Virtual time, the same for all nodes.
    pub at: Time,
}
