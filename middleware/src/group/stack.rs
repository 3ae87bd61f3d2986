//! Stacks of the user's own, on nodes.

use std::fmt;
use std::marker::PhantomData;

use quorate_protocols::ProcessId;
use quorate_protocols::group::{self, Config};
use quorate_protocols::stack::{Impossible, Layer};

use super::Order;

/// Layers of the user's own choice: those of [`protocols`](crate::protocols), in another order or with some of one's own.
///
/// [`group::agreed`] gives what every group has below its order. A layer of one's own implements
/// [`Layer`]; where it stands, the others are none the wiser. All members must have the same stack.
///
/// ```
/// use quorate::group::{Builder, Own, ProcessId, Stack};
/// use quorate::node::Node;
/// use quorate::protocols::group::{Agreed, Config, agreed};
/// use quorate::protocols::multicast::causal::Causal;
/// use quorate::protocols::stack::Pair;
///
/// /// Causal order, and no state for joiners.
/// struct Bare;
///
/// impl Stack for Bare {
///     type Layers = Pair<Causal, Agreed>;
///
///     fn layers(me: ProcessId, config: &Config) -> Self::Layers {
///         Pair::new(Causal::new(me, config.plant), agreed(me, config))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::builder().start().await?;
/// let (group, _events) = Builder::<Own<Bare>>::own("room").create(&node).await?;
/// group.cast("hello".into()).await?;
/// # Ok(()) }
/// ```
pub trait Stack: Send + Sync + 'static {
    /// The layers, as one.
    type Layers: Layer<Message: Send> + Send + 'static;

    /// The layers of process `me`, with what the group's limits make of the configuration.
    fn layers(me: ProcessId, config: &Config) -> Self::Layers;
}

/// The order that a stack of the user's own gives.
pub struct Own<S>(PhantomData<fn() -> S>);

impl<S: Stack> Order for Own<S> {
    type Machine = group::Group<S::Layers>;

    fn machine(me: ProcessId, config: Config) -> Result<Self::Machine, Impossible> {
        group::Group::over(S::layers(me, &config))
    }
}

impl<S> Clone for Own<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Own<S> {}

impl<S> fmt::Debug for Own<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}
