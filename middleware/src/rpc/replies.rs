//! What a client hears: the reader task of its connection steps the machine with the replies and wakes the callers.

use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quorate_protocols::Input;
use quorate_protocols::rpc::{self, Message, Rejection};

use super::calls::Core;
use super::post;
use crate::node::{Channel, ChannelHandler, Identity, PeerEvent, process_id_of};

/// Hears the service. Knows its client weakly, because the client owns the guard of the channel.
#[derive(Default)]
pub(super) struct Replies(OnceLock<Weak<Core>>);

impl ChannelHandler for Replies {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let Some(core) = self.0.get().and_then(Weak::upgrade) else {
            frames.clear();
            return Poll::Ready(());
        };
        let from = process_id_of(from);
        let mut state = core.lock();
        let now = core.now();
        let mut wakers = std::mem::take(&mut state.wakers);
        let mut words = Vec::new();
        for frame in frames.drain(..) {
            let read = post::each_message(frame, &mut words, |message| {
                core.step_at(now, &mut state, Input::Received { from, message }, &mut wakers);
            });
            if let Err(error) = read {
                tracing::warn!(peer = %from, %error, "a damaged rpc message was dropped");
            }
        }
        drop(state);
        wakers.drain(..).for_each(Waker::wake);
        core.lock().wakers = wakers;
        for spoken in words.into_iter().filter(|spoken| spoken.client == core.number) {
            if let Some(answer) = core.streams.hear(core.peer(), spoken) {
                // Should it not leave, the other half asks again.
                let _ = core.say(&answer);
            }
        }
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        if let PeerEvent::Down(peer) = event
            && let Some(core) = self.0.get().and_then(Weak::upgrade)
            && peer.node == core.server
        {
            core.streams.break_off(|_, _| true);
        }
        self.tell(match event {
            PeerEvent::Up(peer) => Input::Reachable(process_id_of(peer)),
            PeerEvent::Down(peer) => Input::Unreachable(process_id_of(peer)),
        });
    }

    fn on_refused(&self, peer: Identity, channel: Channel) {
        let Some(core) = self.0.get().and_then(Weak::upgrade) else { return };
        if channel == core.channel && peer.node == core.server {
            let message = Message::Rejected { client: core.number, reason: Rejection::NoSuchService };
            self.tell(Input::Received { from: process_id_of(peer), message });
        }
    }
}

impl Replies {
    /// Called once, when the client has been made.
    pub(super) fn belong_to(&self, client: &Arc<Core>) {
        // Only who made both knows the cell, so it is empty.
        let _ = self.0.set(Arc::downgrade(client));
    }

    fn tell(&self, input: Input<rpc::Client>) {
        let Some(core) = self.0.get().and_then(Weak::upgrade) else { return };
        let mut wakers = Vec::new();
        core.step(&mut core.lock(), input, &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }
}
