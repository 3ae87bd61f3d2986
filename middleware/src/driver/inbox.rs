//! What has arrived for a machine and waits for its task.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quorate_transports::{Credentials, Identity, NodeId};
use tokio::sync::Notify;

use super::{Admit, Counts};
use crate::node::{Channel, ChannelHandler, PeerEvent};

/// One thing that arrived.
pub(super) enum Arrival {
    Frame(Identity, Bytes),
    Peer(PeerEvent),
    /// The node has not opened the channel: whoever was heard from there has gone.
    Refused(NodeId),
}

/// A queue between the connections' tasks and the machine's, bounded in bytes.
pub(super) struct Inbox {
    channel: Channel,
    bytes_max: usize,
    state: Mutex<State>,
    filled: Notify,
    /// Without one, everybody is heard.
    admit: Option<Admit>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct State {
    arrivals: VecDeque<Arrival>,
    bytes: usize,
    /// How many of the arrivals are events about peers.
    peer_events: usize,
    /// Each node once, however often it refuses.
    refused: BTreeSet<NodeId>,
    /// Connections that wait for room.
    blocked: Vec<Waker>,
}

impl State {
    /// The connections' tasks cannot wait with what they tell of a peer. So beyond [`PEER_EVENTS_MAX`] what waits about the
    /// same peer gives way: that its connection was lost, if it was, and how it is now is all that a machine acts on.
    fn put_peer(&mut self, event: PeerEvent) {
        let mut lost = None;
        if self.peer_events >= PEER_EVENTS_MAX {
            let node = event.peer().node;
            self.arrivals.retain(|arrival| match arrival {
                Arrival::Peer(earlier) if earlier.peer().node == node => {
                    lost = matches!(earlier, PeerEvent::Down(_)).then_some(*earlier).or(lost);
                    self.peer_events -= 1;
                    false
                }
                _ => true,
            });
        }
        let lost = lost.filter(|_| matches!(event, PeerEvent::Up(_)));
        for event in lost.into_iter().chain([event]) {
            self.arrivals.push_back(Arrival::Peer(event));
            self.peer_events += 1;
        }
    }
}

impl Inbox {
    pub(super) fn new(channel: Channel, bytes_max: usize, admit: Option<Admit>, counts: Arc<Counts>) -> Self {
        Self { channel, bytes_max, state: Mutex::default(), filled: Notify::new(), admit, counts }
    }

    pub(super) fn pop(&self) -> Option<Arrival> {
        let mut state = self.lock();
        if let Some(node) = state.refused.pop_first() {
            return Some(Arrival::Refused(node));
        }
        let arrival = state.arrivals.pop_front();
        match &arrival {
            Some(Arrival::Frame(_, frame)) => state.bytes -= frame.len() + FRAME_OVERHEAD_BYTES,
            Some(Arrival::Peer(_)) => state.peer_events -= 1,
            _ => {}
        }
        // Half empty again: waking for every frame would make the connections run in small steps.
        if state.bytes * 2 <= self.bytes_max && !state.blocked.is_empty() {
            let blocked = std::mem::take(&mut state.blocked);
            drop(state);
            blocked.into_iter().for_each(Waker::wake);
        }
        arrival
    }

    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.arrivals.is_empty() && state.refused.is_empty()
    }

    /// Resolves when something has arrived since it resolved last.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChannelHandler for Inbox {
    fn poll_deliver(&self, cx: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        let mut state = self.lock();
        if state.bytes >= self.bytes_max {
            state.blocked.push(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes += frames.iter().map(|frame| frame.len() + FRAME_OVERHEAD_BYTES).sum::<usize>();
        state.arrivals.extend(frames.drain(..).map(|frame| Arrival::Frame(from, frame)));
        drop(state);
        self.filled.notify_one();
        Poll::Ready(())
    }

    fn poll_deliver_vouched(
        &self,
        cx: &mut Context<'_>,
        from: Identity,
        credentials: Option<&Credentials>,
        frames: &mut Vec<Bytes>,
    ) -> Poll<()> {
        if self.admit.as_ref().is_some_and(|admit| !admit(from.node, credentials)) {
            self.counts.refused.fetch_add(frames.len() as u64, Ordering::Relaxed);
            frames.clear();
            return Poll::Ready(());
        }
        self.poll_deliver(cx, from, frames)
    }

    fn on_peer(&self, event: PeerEvent) {
        self.lock().put_peer(event);
        self.filled.notify_one();
    }

    fn on_refused(&self, peer: Identity, channel: Channel) {
        // What a connection vouches for is not known here: who is admitted by that only is not believed that it has gone, and
        // is missed by its silence.
        let is_admitted = self.admit.as_ref().is_none_or(|admit| admit(peer.node, None));
        if channel == self.channel && is_admitted {
            self.lock().refused.insert(peer.node);
            self.filled.notify_one();
        }
    }
}

/// What a waiting frame costs beside its bytes, so that a flood of empty frames is bounded, too.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Events about peers that wait before those of one peer are drawn together; beyond it there are two of each peer at most.
const PEER_EVENTS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use quorate_transports::Incarnation;

    use super::*;

    fn peer(node: u64, life: u64) -> Identity {
        Identity { node: NodeId(node), incarnation: Incarnation(life) }
    }

    #[test]
    fn a_peer_that_comes_and_goes_takes_no_more_room_than_its_last_coming_and_going() {
        let inbox = Inbox::new(Channel::named("test", "inbox"), 1 << 20, None, Arc::default());
        inbox.on_peer(PeerEvent::Up(peer(2, 1)));
        for life in 1..100_000 {
            inbox.on_peer(PeerEvent::Up(peer(1, life)));
            inbox.on_peer(PeerEvent::Down(peer(1, life)));
        }
        inbox.on_peer(PeerEvent::Up(peer(1, 100_000)));
        assert!(inbox.lock().arrivals.len() <= PEER_EVENTS_MAX + 2);
        let mut told = Vec::new();
        while let Some(arrival) = inbox.pop() {
            let Arrival::Peer(event) = arrival else { panic!("events about peers only") };
            told.push(event);
        }
        assert!(inbox.is_empty() && inbox.lock().peer_events == 0);
        let (down, up) = (PeerEvent::Down(peer(1, 99_999)), PeerEvent::Up(peer(1, 100_000)));
        assert_eq!(told[0], PeerEvent::Up(peer(2, 1)), "the other one is not forgotten");
        assert_eq!(told[told.len() - 2..], [down, up]);
    }
}
