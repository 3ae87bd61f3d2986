//! The client's way for streams to its service.

use std::sync::{Arc, Weak};

use quorate_protocols::ProcessId;
use quorate_protocols::rpc::{Spoken, Word};

use super::calls::{Core, State};
use super::generated::Boxed;
use super::objects::Home;
use super::port::{Half, Link, Unsaid};
use crate::node::{Lane, identity_of};

impl Core {
    /// Whose the streams are, in whichever life.
    pub(super) const fn peer(&self) -> ProcessId {
        ProcessId::any_life(self.server.0)
    }

    pub(super) fn say(&self, spoken: &Spoken) -> Result<(), Unsaid> {
        let mut state = self.lock();
        let State { machine, way, head, .. } = &mut *state;
        let server = machine.bound_to().map(identity_of).ok_or(Unsaid::Gone)?;
        way.say(&self.node, server, self.channel, spoken, head)
    }

    /// The way for streams to the service.
    pub(super) fn link(self: &Arc<Self>) -> Arc<dyn Link> {
        Arc::new(ToService(Arc::downgrade(self)))
    }
}

/// The way for streams to the service; they do not keep the client alive.
struct ToService(Weak<Core>);

impl Link for ToService {
    fn say(&self, stream: u64, word: Word) -> Result<(), Unsaid> {
        let core = self.0.upgrade().ok_or(Unsaid::Gone)?;
        core.say(&Spoken { client: core.number, stream, word })
    }

    fn ready(&self) -> Boxed<()> {
        let way = self.0.upgrade().map(|core| (core.node.clone(), core.server));
        Box::pin(async move {
            if let Some((node, server)) = way {
                // An error shows when the word is said again.
                let _ = node.ready(server, Lane::Bulk).await;
            }
        })
    }

    fn enter(&self, number: Option<u64>, half: Arc<dyn Half>) -> Option<u64> {
        let core = self.0.upgrade()?;
        core.streams.enter(core.peer(), core.number, number, half)
    }

    fn references(&self) -> Option<(Arc<Home>, ProcessId)> {
        let core = self.0.upgrade()?;
        // A request may be sent again to a later life of an unbound service.
        let peer = core.lock().machine.bound_to().unwrap_or(core.peer());
        Some((Home::of(&core.node)?, peer))
    }

    fn leave(&self, stream: u64) {
        if let Some(core) = self.0.upgrade() {
            core.streams.leave(core.peer(), core.number, stream);
        }
    }
}
