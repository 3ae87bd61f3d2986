//! Answers of a service on their way: sent at once, or kept in order for a client that does not read.
//!
//! Limits      requests of a client that lets more than [`BLOCKED_BYTES_MAX`] of answers pile up are dropped until it reads.

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_protocols::rpc::{Doubt, Message, Verdict};
use quorate_protocols::{Lane, ProcessId};

use super::post::{self, Posted};
use super::server::{Core, State};
use crate::node::{self, NodeId};

#[derive(Default)]
pub(super) struct Blocked {
    pub(super) answers: VecDeque<(ProcessId, Lane, Message)>,
    pub(super) bytes: usize,
}

impl Core {
    pub(super) fn answer(self: &Arc<Self>, state: &mut State, to: ProcessId, lane: Lane, message: Message) {
        let node = node::identity_of(to).node;
        if !state.blocked.contains_key(&node) {
            if self.try_answer(state, to, lane, &message) {
                return;
            }
            tokio::spawn(Arc::clone(self).unblock(node));
        }
        let blocked = state.blocked.entry(node).or_default();
        blocked.bytes += size(&message);
        blocked.answers.push_back((to, lane, message));
    }

    /// False when the connection is full.
    fn try_answer(&self, state: &mut State, to: ProcessId, lane: Lane, message: &Message) -> bool {
        match state.way.answer(&self.node, to, lane, message, &mut state.head) {
            Ok(Posted::TooLarge { size, limit }) => {
                tracing::warn!(service = self.name, peer = %to, size, limit, "a reply exceeds the limit");
                let Message::Reply { client, session, call, .. } = *message else { return true };
                let verdict = Verdict::Doubtful(Doubt::ReplyUnsendable);
                let message = Message::Reply { client, session, call, verdict };
                state.way.answer(&self.node, to, lane, &message, &mut state.head).is_ok()
            }
            Ok(_) => true,
            Err(post::Full) => false,
        }
    }

    /// Sends what waits for a full connection, in order.
    async fn unblock(self: Arc<Self>, node: NodeId) {
        while let Some(lane) = self.send_blocked(node) {
            // The lane of what is next: that another one has room says nothing. An error ends the waiting too: answers
            // to somebody who is gone are dropped by the sending.
            let _ = self.node.ready(node, lane).await;
            // Others may have taken the room by then, and whoever makes some must get a turn.
            tokio::task::yield_now().await;
        }
    }

    /// Sends as much as there is room for; gives the lane that is full, if one is.
    fn send_blocked(&self, node: NodeId) -> Option<node::Lane> {
        let mut state = self.lock();
        loop {
            let next = state.blocked.get_mut(&node).and_then(|blocked| blocked.answers.pop_front());
            let Some((to, lane, message)) = next else {
                state.blocked.remove(&node);
                if state.is_idle() {
                    self.idle.notify_waiters();
                }
                return None;
            };
            let is_sent = self.try_answer(&mut state, to, lane, &message);
            let blocked = state.blocked.get_mut(&node)?;
            if !is_sent {
                blocked.answers.push_front((to, lane, message));
                return Some(node::lane_of(lane));
            }
            blocked.bytes -= size(&message);
        }
    }
}

/// What an answer counts while it waits.
fn size(message: &Message) -> usize {
    let body = if let Message::Reply { verdict: Verdict::Done(body), .. } = message { body.len() } else { 0 };
    body + size_of::<Message>()
}

/// Answers to one client that may wait for room on its connection before its requests are dropped: twice what a lane
/// holds, so that bursts that fit into flight do not hit it.
pub(super) const BLOCKED_BYTES_MAX: usize = 8 << 20;
