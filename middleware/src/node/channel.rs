//! Channels: many ways to communicate share one connection per peer.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use quorate_transports::connection::{Connection, Deliver, Lane};
use quorate_transports::{Credentials, Identity};

use super::error::ChannelTaken;

/// The name of a channel on the wire: the same number on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(pub u64);

impl Channel {
    /// The channel of a kind of communication (`"rpc"`, `"group"`) and a name within it. The number is a stable hash
    /// (FNV-1a, 64 bits), part of the wire format.
    pub const fn named(kind: &str, name: &str) -> Self {
        let hash = fnv1a(FNV_START, kind.as_bytes());
        // The separator keeps ("a", "bc") and ("ab", "c") apart.
        Self(fnv1a(fnv1a(hash, &[0]), name.as_bytes()))
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What became of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// A connection stands. Frames of this life of the peer come after this.
    Up(Identity),
    /// The connection ended and no other replaced it. Not a proof of death.
    Down(Identity),
}

impl PeerEvent {
    /// Whose connection it is about.
    pub const fn peer(&self) -> Identity {
        match self {
            Self::Up(peer) | Self::Down(peer) => *peer,
        }
    }
}

/// Takes what arrives on a channel.
pub trait ChannelHandler: Send + Sync {
    /// Takes frames of `from`, in order, in the task of the connection: quick work only. `Ready` when it is done with
    /// all of them (what it left behind is dropped); `Pending` when it cannot take the rest now, which are then
    /// offered again. `Pending` stops all reading from that peer, on every channel: wake `cx` soon. Several
    /// connections may wait at once, so keep every waker.
    fn poll_deliver(&self, cx: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()>;

    /// As [`poll_deliver`](Self::poll_deliver), with what the medium of this very connection vouches for: a peer may have
    /// had others.
    fn poll_deliver_vouched(
        &self,
        cx: &mut Context<'_>,
        from: Identity,
        credentials: Option<&Credentials>,
        frames: &mut Vec<Bytes>,
    ) -> Poll<()> {
        let _ = credentials;
        self.poll_deliver(cx, from, frames)
    }

    /// What opened the channel, for whoever on the same node can do without messages.
    fn local(&self) -> Option<Box<dyn Any + Send>> {
        None
    }

    /// Learns of a peer. It may send, but must not open or close channels nor block: peers' events are told one at a
    /// time.
    fn on_peer(&self, event: PeerEvent) {
        let _ = event;
    }

    /// Learns that a peer has not opened `channel`, to which this node sent something that was dropped there. Told to
    /// every handler; the same rules as for [`on_peer`](Self::on_peer).
    fn on_refused(&self, peer: Identity, channel: Channel) {
        let _ = (peer, channel);
    }
}

/// Keeps a channel open; dropping it closes the channel.
pub struct ChannelGuard {
    channels: Arc<Channels>,
    channel: Channel,
    entry: Arc<Entry>,
}

impl ChannelGuard {
    /// Lets frames through: the handler has been told of the peers that they may come from.
    pub(super) fn introduce(&self) {
        self.entry.introduce();
    }

    /// Which channel it is.
    pub fn channel(&self) -> Channel {
        self.channel
    }
}

impl fmt::Debug for ChannelGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel {}", self.channel)
    }
}

impl Drop for ChannelGuard {
    fn drop(&mut self) {
        self.channels.open.write().unwrap_or_else(PoisonError::into_inner).remove(&self.channel);
        self.entry.close();
    }
}

/// The open channels of a node.
#[derive(Default)]
pub(super) struct Channels {
    open: RwLock<BTreeMap<Channel, Arc<Entry>>>,
    /// Frames for channels that nobody opened.
    pub(super) unclaimed: AtomicU64,
    /// Messages too short to name a channel.
    pub(super) malformed: AtomicU64,
}

impl Channels {
    pub(super) fn open(
        self: &Arc<Self>,
        channel: Channel,
        handler: Arc<dyn ChannelHandler>,
    ) -> Result<ChannelGuard, ChannelTaken> {
        let entry = Arc::new(Entry {
            handler,
            is_introduced: AtomicBool::new(false),
            is_open: AtomicBool::new(true),
            blocked: Mutex::default(),
        });
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(&channel) {
            return Err(ChannelTaken { channel });
        }
        open.insert(channel, entry.clone());
        drop(open);
        Ok(ChannelGuard { channels: self.clone(), channel, entry })
    }

    /// Tells every handler.
    pub(super) fn tell(&self, event: PeerEvent) {
        let entries: Vec<_> =
            self.open.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for entry in entries {
            entry.handler.on_peer(event);
        }
    }

    /// Tells every handler that a peer has not opened a channel.
    fn tell_refused(&self, peer: Identity, channel: Channel) {
        let entries: Vec<_> =
            self.open.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for entry in entries {
            entry.handler.on_refused(peer, channel);
        }
    }

    /// See [`ChannelHandler::local`].
    pub(super) fn local(&self, channel: Channel) -> Option<Box<dyn Any + Send>> {
        self.entry(channel)?.handler.local()
    }

    fn entry(&self, channel: Channel) -> Option<Arc<Entry>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&channel).cloned()
    }
}

struct Entry {
    handler: Arc<dyn ChannelHandler>,
    /// The handler knows the peers; frames wait until then.
    is_introduced: AtomicBool,
    is_open: AtomicBool,
    /// Connections that wait for the handler, by serial number; woken when the channel is introduced or closes, or
    /// they would wait for ever.
    blocked: Mutex<BTreeMap<u64, Waker>>,
}

impl Entry {
    fn introduce(&self) {
        self.change(&self.is_introduced, true);
    }

    fn close(&self) {
        self.change(&self.is_open, false);
    }

    /// Sets a flag and wakes whoever may have waited for it.
    fn change(&self, flag: &AtomicBool, value: bool) {
        let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        flag.store(value, Ordering::Release);
        let wakers = std::mem::take(&mut *blocked);
        drop(blocked);
        wakers.into_values().for_each(Waker::wake);
    }

    fn forget(&self, serial: u64) {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).remove(&serial);
    }

    /// Takes the frames; false when the channel was closed meanwhile.
    fn poll_deliver(
        &self,
        cx: &mut Context<'_>,
        serial: u64,
        from: &Sender,
        frames: &mut Vec<Bytes>,
    ) -> Poll<bool> {
        if !self.is_introduced.load(Ordering::Acquire) {
            let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_introduced.load(Ordering::Acquire) && self.is_open.load(Ordering::Acquire) {
                blocked.insert(serial, cx.waker().clone());
                return Poll::Pending;
            }
        }
        let mut deliver =
            || self.handler.poll_deliver_vouched(cx, from.identity, from.credentials.as_ref(), frames);
        if self.is_open.load(Ordering::Acquire) && deliver().is_pending() {
            let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock, so that a close in between is not missed.
            if self.is_open.load(Ordering::Acquire) {
                blocked.insert(serial, cx.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(self.is_open.load(Ordering::Acquire))
    }
}

/// Who is at the other end of a connection.
pub(super) struct Sender {
    pub(super) identity: Identity,
    /// What the medium vouches for.
    pub(super) credentials: Option<Credentials>,
}

/// Sorts what a connection delivers by channel and hands it on in batches.
pub(super) struct Dispatch {
    channels: Arc<Channels>,
    from: Sender,
    /// The connection itself, for saying that a channel is not open.
    back: Arc<OnceLock<Connection>>,
    /// The connection's number.
    serial: u64,
    is_blocked: bool,
    /// Set when a later life of the peer has been announced: what an earlier one sent is not taken any more.
    is_muted: Arc<AtomicBool>,
    /// Where in the connection's batch the next frame stands.
    at: usize,
    entry: Option<Arc<Entry>>,
    /// The channel of the last frames; weak, or its handler would not go before the next frame comes.
    last: (Channel, Weak<Entry>),
    frames: Vec<Bytes>,
}

impl Dispatch {
    pub(super) fn new(
        channels: Arc<Channels>,
        from: Sender,
        back: Arc<OnceLock<Connection>>,
        serial: u64,
        is_muted: Arc<AtomicBool>,
    ) -> Self {
        Self {
            channels,
            from,
            back,
            serial,
            is_blocked: false,
            is_muted,
            at: 0,
            entry: None,
            last: (Channel(0), Weak::new()),
            frames: Vec::new(),
        }
    }

    /// The channel's entry, which is mostly that of the last frames.
    fn known(&mut self, channel: Channel) -> Option<Arc<Entry>> {
        if self.last.0 == channel
            && let Some(entry) = self.last.1.upgrade()
            && entry.is_open.load(Ordering::Acquire)
        {
            return Some(entry);
        }
        let entry = self.channels.entry(channel)?;
        self.last = (channel, Arc::downgrade(&entry));
        Some(entry)
    }

    fn unblock(&mut self) {
        if std::mem::take(&mut self.is_blocked)
            && let Some(entry) = &self.entry
        {
            entry.forget(self.serial);
        }
    }
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        self.unblock();
    }
}

impl Deliver for Dispatch {
    fn poll_deliver(&mut self, cx: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        loop {
            if self.is_muted.load(Ordering::Acquire) {
                self.frames.clear();
                self.at = messages.len();
            }
            if let Some(entry) = &self.entry
                && !self.frames.is_empty()
            {
                match entry.poll_deliver(cx, self.serial, &self.from, &mut self.frames) {
                    Poll::Pending => {
                        self.is_blocked = true;
                        return Poll::Pending;
                    }
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => {
                        self.channels.unclaimed.fetch_add(self.frames.len() as u64, Ordering::Relaxed);
                    }
                }
                self.frames.clear();
                self.unblock();
            }
            // The next run of frames of one channel.
            let Some(first) = messages.get(self.at) else {
                self.at = 0;
                self.entry = None;
                return Poll::Ready(());
            };
            let Some(channel) = channel_of(first) else {
                self.channels.malformed.fetch_add(1, Ordering::Relaxed);
                self.at += 1;
                continue;
            };
            if channel == REFUSALS {
                if let Some(refused) = channel_of(&first.slice(CHANNEL_BYTES..)) {
                    self.channels.tell_refused(self.from.identity, refused);
                }
                self.at += 1;
                continue;
            }
            self.entry = self.known(channel);
            if self.entry.is_none()
                && let Some(back) = self.back.get()
            {
                // Once for the whole run of frames; if the lane is full, who waits for an answer asks again.
                let parts = [&REFUSALS.0.to_le_bytes()[..], &channel.0.to_le_bytes()[..]];
                let _ = back.send(Lane::Urgent, &parts, Bytes::new());
            }
            while let Some(message) = messages.get_mut(self.at)
                && channel_of(message) == Some(channel)
            {
                self.at += 1;
                if self.entry.is_some() {
                    message.advance(CHANNEL_BYTES);
                    self.frames.push(std::mem::take(message));
                } else {
                    self.channels.unclaimed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

fn channel_of(message: &Bytes) -> Option<Channel> {
    message.first_chunk().map(|bytes| Channel(u64::from_le_bytes(*bytes)))
}

const fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Where a node hears that a peer has not opened a channel; the message is that channel, little-endian.
const REFUSALS: Channel = Channel::named("node", "refusals");
/// Every message begins with its channel, little-endian.
pub(crate) const CHANNEL_BYTES: usize = 8;
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channels_number_never_changes() {
        assert_eq!(Channel::named("", ""), Channel(0xaf63_bd4c_8601_b7df));
        assert_eq!(Channel::named("rpc", "bank"), Channel::named("rpc", "bank"));
        assert_ne!(Channel::named("a", "bc"), Channel::named("ab", "c"));
    }
}
