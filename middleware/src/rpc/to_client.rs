//! The service's way for streams to one client.

use std::sync::{Arc, Weak};

use quorate_protocols::ProcessId;
use quorate_protocols::rpc::{Execution, Spoken, Word};

use super::generated::Boxed;
use super::objects::Home;
use super::port::{Half, Link, Unsaid};
use super::post;
use super::server::{Core, State};
use crate::node::{self, identity_of};

impl Core {
    /// The way for streams to who asked for the execution.
    pub(super) fn link(self: &Arc<Self>, execution: Execution) -> Arc<dyn Link> {
        Arc::new(ToClient { core: Arc::downgrade(self), to: execution.from, client: execution.client })
    }

    pub(super) fn say(&self, to: ProcessId, spoken: &Spoken) -> Result<(), Unsaid> {
        let mut state = self.lock();
        let State { way, head, .. } = &mut *state;
        way.say(&self.node, identity_of(to), post::reply_channel(spoken.client), spoken, head)
    }
}

/// Streams do not keep the service alive.
struct ToClient {
    core: Weak<Core>,
    to: ProcessId,
    client: u32,
}

impl Link for ToClient {
    fn say(&self, stream: u64, word: Word) -> Result<(), Unsaid> {
        let core = self.core.upgrade().ok_or(Unsaid::Gone)?;
        core.say(self.to, &Spoken { client: self.client, stream, word })
    }

    fn ready(&self) -> Boxed<()> {
        let way = self.core.upgrade().map(|core| (core.node.clone(), identity_of(self.to).node));
        Box::pin(async move {
            if let Some((node, client)) = way {
                // An error shows when the word is said again.
                let _ = node.ready(client, node::Lane::Bulk).await;
            }
        })
    }

    fn enter(&self, number: Option<u64>, half: Arc<dyn Half>) -> Option<u64> {
        self.core.upgrade()?.streams.enter(self.to, self.client, number, half)
    }

    fn references(&self) -> Option<(Arc<Home>, ProcessId)> {
        Some((Home::of(&self.core.upgrade()?.node)?, self.to))
    }

    fn leave(&self, stream: u64) {
        if let Some(core) = self.core.upgrade() {
            core.streams.leave(self.to, self.client, stream);
        }
    }
}
