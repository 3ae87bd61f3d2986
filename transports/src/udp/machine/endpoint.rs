//! What shares a socket: finds a packet's connection, and answers strangers without remembering them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::Hasher;
use std::io::IoSlice;

use siphasher::sip::SipHasher24;

use super::connection::{Connection, Phase};
use super::packet::{self, Body, Cookie, Packet, Reason};
use super::plant::{Plant, Planted};
use super::{Broken, Limits, MILLI, Nanos, Read};

/// How long a cookie is good. Longer than any path's round trip, shorter than anybody waits.
const COOKIE_MAX: Nanos = 10_000 * MILLI;
/// Answers to strangers that wait for the socket; more are as good as lost.
const REPLIES_MAX: usize = 64;

/// Ended connections that are remembered: 16 bytes each, so that a peer which missed the last word hears the truth.
const OVER_MAX: usize = 1024;

/// The address of the other end of a path.
pub(in crate::udp) trait Place: Copy + Ord {
    /// Its bytes, the same for the same place.
    fn bytes(&self) -> [u8; 18];
}

/// The connections of one socket.
#[derive(Debug)]
pub(in crate::udp) struct Endpoint<A> {
    limits: Limits,
    secret: [u64; 2],
    drawn: u64,
    accepts: bool,
    connections: BTreeMap<u64, Connection<A>>,
    /// Connections that came from outside, by the dialler's place and id.
    dialled: BTreeMap<(A, u64), u64>,
    /// Those of them whose dialler has not answered to the welcome, oldest first.
    welcoming: VecDeque<u64>,
    backlog: VecDeque<u64>,
    /// Deadlines, and which connection has which.
    timers: BTreeSet<(Nanos, u64)>,
    timer_of: BTreeMap<u64, Nanos>,
    /// Connections that may have something to send, each once.
    active: VecDeque<u64>,
    is_active: BTreeSet<u64>,
    replies: VecDeque<(A, Vec<u8>)>,
    news: BTreeMap<u64, News>,
    /// Connections that ended as they should, by both ids, oldest first.
    over: VecDeque<(u64, u64)>,
    is_over: BTreeSet<(u64, u64)>,
    pub(super) plant: Plant,
}

/// What an owner should look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::udp) struct News {
    pub(in crate::udp) read: bool,
    pub(in crate::udp) write: bool,
}

/// Datagrams to one place, in one run of bytes: each of `segment_bytes`, the last one perhaps shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::udp) struct Transmit<A> {
    pub(in crate::udp) to: A,
    pub(in crate::udp) segment_bytes: usize,
}

impl<A: Place> Endpoint<A> {
    /// `seed` is the source of everything that strangers must not guess.
    pub(in crate::udp) fn new(limits: Limits, seed: [u64; 2], accepts: bool) -> Self {
        Self {
            limits,
            secret: seed,
            drawn: 0,
            accepts,
            connections: BTreeMap::new(),
            dialled: BTreeMap::new(),
            welcoming: VecDeque::new(),
            backlog: VecDeque::new(),
            timers: BTreeSet::new(),
            timer_of: BTreeMap::new(),
            active: VecDeque::new(),
            is_active: BTreeSet::new(),
            replies: VecDeque::new(),
            news: BTreeMap::new(),
            over: VecDeque::new(),
            is_over: BTreeSet::new(),
            plant: Plant::default(),
        }
    }

    /// Begins a connection; `News` tells when something became of it.
    pub(in crate::udp) fn dial(&mut self, now: Nanos, to: A) -> u64 {
        let id = self.fresh_id();
        self.connections.insert(id, Connection::dial(now, &self.limits, id, to, self.plant));
        self.settle(now, id);
        id
    }

    /// `None` as long as it is not known, then whether it came to be.
    pub(in crate::udp) fn dialled(&self, id: u64) -> Option<Result<(), Broken>> {
        match self.connections.get(&id)?.phase {
            Phase::Dialling { .. } | Phase::Welcoming { .. } => None,
            Phase::Open => Some(Ok(())),
            Phase::Broken(broken) => Some(Err(broken)),
        }
    }

    /// The oldest connection that nobody has taken yet, and where it came from.
    pub(in crate::udp) fn accept(&mut self) -> Option<(u64, A)> {
        while let Some(id) = self.backlog.pop_front() {
            if let Some(connection) = self.connections.get(&id) {
                return Some((id, connection.place));
            }
        }
        None
    }

    /// Takes no more connections, and gives up those that nobody has taken.
    pub(in crate::udp) fn stop_accepting(&mut self, now: Nanos) {
        self.accepts = false;
        for id in std::mem::take(&mut self.backlog).into_iter().chain(std::mem::take(&mut self.welcoming)) {
            self.drop_sender(now, id);
            self.drop_receiver(now, id);
        }
    }

    /// True when nobody needs the socket any more.
    pub(in crate::udp) fn is_empty(&self) -> bool {
        !self.accepts && self.connections.is_empty()
    }

    /// True when [`accept`](Self::accept) may give something.
    pub(in crate::udp) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// How many connections there are, and the most bytes that one of them holds for its reader and its writer.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        let most =
            |bytes: fn(&Connection<A>) -> usize| self.connections.values().map(bytes).max().unwrap_or(0);
        (self.connections.len(), most(|it| it.incoming.bytes()), most(|it| it.out.bytes()))
    }

    /// Takes a datagram from the socket.
    pub(in crate::udp) fn handle(&mut self, now: Nanos, from: A, datagram: &[u8]) {
        let checks_sum = !self.plant.has(Planted::IgnoresChecksum);
        let Some(packet) = packet::decode(datagram, checks_sum) else { return };
        if let Body::Hello { version, cookie, credit } = packet.body {
            return self.on_hello(now, from, packet.from, version, cookie, credit);
        }
        let token = self.draw(TOKEN);
        let Some(connection) = self.connections.get_mut(&packet.to) else {
            return self.on_stray(from, &packet);
        };
        let is_named = connection.peer == packet.from;
        match packet.body {
            Body::Hello { .. } => {}
            Body::Retry { cookie } if connection.place == from => connection.on_retry(now, cookie),
            // For another attempt than this one.
            Body::Welcome { credit }
                if connection.place == from
                    && packet.from != 0
                    && !connection.on_welcome(now, packet.from, credit) =>
            {
                self.on_stray(from, &packet);
            }
            Body::Data(data) if is_named => {
                let was_welcoming = matches!(connection.phase, Phase::Welcoming { .. });
                connection.on_data(now, &self.limits, (from, datagram.len()), &data, token);
                if was_welcoming && connection.phase == Phase::Open {
                    self.welcoming.retain(|id| *id != packet.to);
                    self.backlog.push_back(packet.to);
                }
            }
            Body::Reset { reason }
                if is_named
                    || connection.peer == 0 && connection.place == from
                    || self.plant.has(Planted::BelievesAnyReset) =>
            {
                connection.on_reset(reason);
            }
            _ => {}
        }
        self.settle(now, packet.to);
    }

    fn on_hello(&mut self, now: Nanos, from: A, peer: u64, version: u8, cookie: Option<Cookie>, credit: u64) {
        if peer == 0 {
            return;
        }
        if !self.accepts || version != packet::VERSION {
            let reason = if self.accepts { Reason::Version } else { Reason::Refused };
            return self.reply(from, |out| packet::put_reset(out, peer, 0, reason));
        }
        let is_proved = cookie.is_some_and(|cookie| {
            now.saturating_sub(cookie.stamp) <= COOKIE_MAX
                && self.proof(from, peer, cookie.stamp) == cookie.proof
        });
        if !is_proved && !self.plant.has(Planted::IgnoresCookie) {
            // Never 0, which says that there is none.
            let stamp = now.max(1);
            let cookie = Cookie { stamp, proof: self.proof(from, peer, stamp) };
            return self.reply(from, |out| packet::put_retry(out, peer, cookie));
        }
        if let Some(&id) = self.dialled.get(&(from, peer)) {
            if let Some(connection) = self.connections.get_mut(&id)
                && matches!(connection.phase, Phase::Welcoming { .. })
            {
                connection.owes.welcome = true;
                self.settle(now, id);
            }
            return;
        }
        // It asks again; by then there may be room.
        if self.backlog.len() >= self.limits.backlog_max
            || self.connections.len() >= self.limits.connections_max
        {
            return;
        }
        while self.welcoming.len() >= self.limits.handshakes_max.max(1) {
            if let Some(oldest) = self.welcoming.pop_front() {
                self.forget(oldest);
            }
        }
        let id = self.fresh_id();
        let connection = Connection::welcome(now, &self.limits, (id, peer), from, credit, self.plant);
        self.connections.insert(id, connection);
        self.dialled.insert((from, peer), id);
        self.welcoming.push_back(id);
        self.settle(now, id);
    }

    /// A packet for nobody: tells the sender so, in fewer bytes than came. Resets are never answered.
    fn on_stray(&mut self, from: A, packet: &Packet<'_>) {
        if matches!(packet.body, Body::Data(_) | Body::Welcome { .. }) {
            let (to, id) = (packet.from, packet.to);
            let reason = if self.is_over.contains(&(id, to)) { Reason::Over } else { Reason::Unknown };
            self.reply(from, |out| packet::put_reset(out, to, id, reason));
        }
    }

    fn reply(&mut self, to: A, put: impl FnOnce(&mut Vec<u8>)) {
        if self.replies.len() < REPLIES_MAX {
            let mut out = Vec::new();
            put(&mut out);
            self.replies.push_back((to, out));
        }
    }

    /// When [`on_time`](Self::on_time) is wanted next.
    pub(in crate::udp) fn deadline(&self) -> Option<Nanos> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what was to be done by now.
    pub(in crate::udp) fn on_time(&mut self, now: Nanos) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.remove(&(at, id));
            self.timer_of.remove(&id);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.on_time(now, &self.limits);
            }
            // What is due is sent, and only then does it have another deadline.
            self.look_after(now, id, false);
        }
    }

    /// Appends datagrams for one place to the empty `out`, at most so many; `None` when there is nothing to send.
    pub(in crate::udp) fn transmit(
        &mut self,
        now: Nanos,
        segments_max: usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit<A>> {
        if let Some((to, reply)) = self.replies.pop_front() {
            out.extend_from_slice(&reply);
            return Some(Transmit { to, segment_bytes: out.len() });
        }
        while let Some(&id) = self.active.front() {
            let transmit = self.transmit_of(now, id, segments_max, out);
            self.active.pop_front();
            self.is_active.remove(&id);
            if transmit.is_some() {
                // It may have more; others go first.
                self.settle(now, id);
                return transmit;
            }
            self.look_after(now, id, true);
        }
        None
    }

    fn transmit_of(
        &mut self,
        now: Nanos,
        id: u64,
        segments_max: usize,
        out: &mut Vec<u8>,
    ) -> Option<Transmit<A>> {
        let connection = self.connections.get_mut(&id)?;
        let bytes_max = self.limits.packet_bytes;
        let to = connection.next_packet(now, &self.limits, bytes_max, out)?;
        let segment_bytes = out.len();
        let mut segments = 1;
        // Only what goes to the same place may follow, none larger than the first, and nothing behind a shorter one.
        let is_stream =
            to == connection.place && connection.phase == Phase::Open && segment_bytes == bytes_max;
        while is_stream
            && segments < segments_max
            && out.len() == segments * segment_bytes
            && connection.owes.challenge.is_none()
            && connection.owes.response.is_none()
            && connection.next_packet(now, &self.limits, bytes_max, out).is_some()
        {
            segments += 1;
        }
        Some(Transmit { to, segment_bytes })
    }

    /// The next owner that should look at its connection.
    pub(in crate::udp) fn pop_news(&mut self) -> Option<(u64, News)> {
        self.news.pop_first()
    }

    /// Takes bytes to be sent; 0 when there is no room, and then news tell when there is.
    pub(in crate::udp) fn write(
        &mut self,
        now: Nanos,
        id: u64,
        slices: &[IoSlice<'_>],
    ) -> Result<usize, Broken> {
        let connection = self.connections.get_mut(&id).ok_or(Broken::Reset)?;
        let taken = connection.write(&self.limits, slices);
        self.settle(now, id);
        taken
    }

    /// Ends the outgoing direction behind what was written; true when the peer has it all, and else news tell when.
    pub(in crate::udp) fn finish(&mut self, now: Nanos, id: u64) -> Result<bool, Broken> {
        let connection = self.connections.get_mut(&id).ok_or(Broken::Reset)?;
        let finished = connection.finish();
        self.settle(now, id);
        finished
    }

    /// Takes at most `count` bytes that came; `take` gets them in slices.
    pub(in crate::udp) fn read(
        &mut self,
        now: Nanos,
        id: u64,
        count: usize,
        take: impl FnMut(&[u8]),
    ) -> Result<Read, Broken> {
        let connection = self.connections.get_mut(&id).ok_or(Broken::Reset)?;
        let read = connection.read(count, take);
        if connection.owes.credit {
            self.settle(now, id);
        }
        read
    }

    /// The owner writes no more. Unless it finished, the peer hears that the stream is incomplete.
    pub(in crate::udp) fn drop_sender(&mut self, now: Nanos, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.drop_sender();
            self.settle(now, id);
        }
    }

    /// The owner reads no more.
    pub(in crate::udp) fn drop_receiver(&mut self, now: Nanos, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.drop_receiver();
            self.settle(now, id);
        }
    }

    /// After anything has happened to a connection.
    fn settle(&mut self, now: Nanos, id: u64) {
        self.look_after(now, id, false);
    }

    /// `is_done` when it has just been asked for packets and had none.
    fn look_after(&mut self, now: Nanos, id: u64, is_done: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.settle(now);
        if connection.is_gone() {
            return self.forget(id);
        }
        if !is_done && self.is_active.insert(id) {
            self.active.push_back(id);
        }
        let read = std::mem::take(&mut connection.readable);
        let write = connection.wake_writer(&self.limits);
        if read || write {
            let news = self.news.entry(id).or_default();
            news.read |= read;
            news.write |= write;
        }
        // As long as it is to be asked for packets, that comes before any deadline.
        let deadline = if is_done { connection.deadline(&self.limits) } else { None };
        let before = self.timer_of.get(&id).copied();
        if is_done && deadline != before {
            if let Some(at) = before {
                self.timers.remove(&(at, id));
                self.timer_of.remove(&id);
            }
            if let Some(at) = deadline {
                self.timers.insert((at, id));
                self.timer_of.insert(id, at);
            }
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            if self.dialled.get(&(connection.dialled_from, connection.peer)) == Some(&id) {
                self.dialled.remove(&(connection.dialled_from, connection.peer));
            }
            self.welcoming.retain(|welcoming| *welcoming != id);
            if connection.is_draining() {
                if self.over.len() >= OVER_MAX
                    && let Some(oldest) = self.over.pop_front()
                {
                    self.is_over.remove(&oldest);
                }
                self.over.push_back((id, connection.peer));
                self.is_over.insert((id, connection.peer));
            }
        }
        if let Some(at) = self.timer_of.remove(&id) {
            self.timers.remove(&(at, id));
        }
        // If it is active, its turn passes without it.
    }

    /// A fresh id, never 0.
    fn fresh_id(&mut self) -> u64 {
        loop {
            let id = self.draw(ID);
            if id != 0 && !self.connections.contains_key(&id) {
                return id;
            }
        }
    }

    fn draw(&mut self, purpose: u8) -> u64 {
        self.drawn += 1;
        let mut hasher = self.hasher(purpose);
        hasher.write(&self.drawn.to_le_bytes());
        hasher.finish()
    }

    fn proof(&self, place: A, peer: u64, stamp: Nanos) -> u64 {
        let mut hasher = self.hasher(PROOF);
        hasher.write(&place.bytes());
        hasher.write(&peer.to_le_bytes());
        hasher.write(&stamp.to_le_bytes());
        hasher.finish()
    }

    fn hasher(&self, purpose: u8) -> SipHasher24 {
        let mut hasher = SipHasher24::new_with_keys(self.secret[0], self.secret[1]);
        hasher.write(&[purpose]);
        hasher
    }
}

const ID: u8 = 1;
const TOKEN: u8 = 2;
const PROOF: u8 = 3;
