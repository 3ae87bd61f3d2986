//! One connection: what comes in, and what the time brings. What its owner asks for and what goes out is in the files beside.

mod owner;
mod sending;

use super::acks::{ACK_DELAY_MAX, Received};
use super::packet::{CHALLENGE_BYTES, Cookie, Data, Reason};
use super::plant::{Plant, Planted};
use super::recovery::{News, Recovery, Sent};
use super::stream::{Incoming, Outgoing};
use super::{Broken, Limits, MILLI, Nanos};

/// The first pause before a hello is repeated; it doubles.
const HELLO_PAUSE: Nanos = 200 * MILLI;
/// The longest pause between hellos and between probes: a path that heals is found within it.
const PAUSE_MAX: Nanos = 1_000 * MILLI;
/// How long a connection that nobody holds any more may take to end.
const LINGER_MAX: Nanos = 2_000 * MILLI;
/// Overdue answers for which an ended connection stays to acknowledge what is repeated.
const DRAIN: u64 = 3;
/// How long a dialler stays for that at least: so long may a peer that has not heard the last word wait to ask again.
const DIALLER_DRAIN_MIN: Nanos = PAUSE_MAX;
/// How often a new address is asked to prove itself.
const CHALLENGES_MAX: u32 = 3;

#[derive(Debug)]
pub(super) struct Connection<A> {
    pub(super) local: u64,
    /// 0 as long as it is not known.
    pub(super) peer: u64,
    pub(super) place: A,
    /// Where the dialler was when it dialled.
    pub(super) dialled_from: A,
    is_dialled: bool,
    pub(super) phase: Phase,
    pub(super) recovery: Recovery,
    pub(super) received: Received,
    pub(super) out: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) owes: Owes<A>,
    /// Packets that may leave although the window is full.
    pub(super) probes_left: u32,
    /// When the next packet may leave, if it must wait.
    pub(super) paced_until: Option<Nanos>,
    moving: Option<Moving<A>>,
    heard_at: Nanos,
    /// The owner still holds the half.
    has_sender: bool,
    has_receiver: bool,
    is_stopped_by_peer: bool,
    is_aborted_by_peer: bool,
    stop_acked: bool,
    abort_acked: bool,
    is_aborting: bool,
    /// When an ended or orphaned connection is forgotten.
    gone_at: Option<Nanos>,
    is_gone: bool,
    /// What the owner should look at.
    pub(super) readable: bool,
    pub(super) writable: bool,
    is_writer_waiting: bool,
    pub(super) plant: Plant,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    /// Our hello is under way.
    Dialling {
        cookie: Option<Cookie>,
        retries: u32,
        hello_at: Nanos,
        pause: Nanos,
        give_up_at: Nanos,
    },
    /// Our welcome is under way.
    Welcoming {
        give_up_at: Nanos,
    },
    Open,
    Broken(Broken),
}

/// What is to be sent beside the stream.
#[derive(Debug)]
pub(super) struct Owes<A> {
    pub(super) stop: bool,
    pub(super) abort: bool,
    pub(super) credit: bool,
    pub(super) ping: bool,
    pub(super) welcome: bool,
    /// A reset, once.
    pub(super) reset: bool,
    pub(super) challenge: Option<(u64, A)>,
    pub(super) response: Option<(u64, A)>,
}

impl<A> Default for Owes<A> {
    fn default() -> Self {
        Self {
            stop: false,
            abort: false,
            credit: false,
            ping: false,
            welcome: false,
            reset: false,
            challenge: None,
            response: None,
        }
    }
}

/// The peer seems to have a new address, which has not proved itself yet.
#[derive(Debug, Clone, Copy)]
struct Moving<A> {
    place: A,
    token: u64,
    asked: u32,
    again_at: Nanos,
    /// Bytes that came from there and were not answered: a stranger's address gets no more than that.
    unanswered: usize,
}

impl<A: Copy + Eq> Connection<A> {
    pub(super) fn dial(now: Nanos, limits: &Limits, local: u64, place: A, plant: Plant) -> Self {
        let phase = Phase::Dialling {
            cookie: None,
            retries: 0,
            hello_at: now,
            pause: HELLO_PAUSE,
            give_up_at: now + limits.dial_max,
        };
        Self::new(now, limits, local, 0, place, phase, 0, plant)
    }

    pub(super) fn welcome(
        now: Nanos,
        limits: &Limits,
        (local, peer): (u64, u64),
        place: A,
        credit: u64,
        plant: Plant,
    ) -> Self {
        let phase = Phase::Welcoming { give_up_at: now + limits.handshake_max };
        let mut connection = Self::new(now, limits, local, peer, place, phase, credit, plant);
        connection.owes.welcome = true;
        connection
    }

    #[expect(clippy::too_many_arguments, reason = "what the two ways to begin have in common")]
    fn new(
        now: Nanos,
        limits: &Limits,
        local: u64,
        peer: u64,
        place: A,
        phase: Phase,
        credit: u64,
        plant: Plant,
    ) -> Self {
        Self {
            local,
            peer,
            place,
            dialled_from: place,
            is_dialled: peer == 0,
            phase,
            recovery: Recovery::new(limits.packet_bytes, limits.send_bytes_max, plant),
            received: Received::new(plant),
            out: Outgoing::new(credit, plant),
            incoming: Incoming::new(limits.receive_bytes_max, plant),
            owes: Owes::default(),
            probes_left: 0,
            paced_until: None,
            moving: None,
            heard_at: now,
            has_sender: true,
            has_receiver: true,
            is_stopped_by_peer: false,
            is_aborted_by_peer: false,
            stop_acked: false,
            abort_acked: false,
            is_aborting: false,
            gone_at: None,
            is_gone: false,
            readable: false,
            writable: false,
            is_writer_waiting: false,
            plant,
        }
    }

    /// The listener wants to hear the hello again, with this cookie.
    pub(super) fn on_retry(&mut self, now: Nanos, fresh: Cookie) {
        if let Phase::Dialling { cookie, retries, hello_at, .. } = &mut self.phase {
            *cookie = Some(fresh);
            // At once for the first; a listener that is never content must not make a storm.
            if *retries == 0 {
                *hello_at = now;
            }
            *retries += 1;
        }
    }

    /// False when the welcome is for another attempt than this one.
    pub(super) fn on_welcome(&mut self, now: Nanos, from: u64, credit: u64) -> bool {
        if !matches!(self.phase, Phase::Dialling { .. }) {
            return self.peer == from;
        }
        self.peer = from;
        self.out.grant(credit);
        self.open(now);
        // Tells the listener that its welcome came; repeated like everything else.
        self.owes.ping = true;
        true
    }

    fn open(&mut self, now: Nanos) {
        self.phase = Phase::Open;
        self.heard_at = now;
        self.writable = true;
    }

    pub(super) fn on_reset(&mut self, reason: Reason) {
        // For a connection whose directions have both ended it is no news.
        match (self.phase, reason) {
            (Phase::Dialling { .. }, Reason::Refused | Reason::Version) => self.end(Broken::Refused),
            (Phase::Open | Phase::Welcoming { .. }, _) if !self.is_over() => {
                if reason == Reason::Over {
                    self.out.on_all_acked();
                }
                self.end(Broken::Reset);
            }
            _ => {}
        }
    }

    /// Takes a packet of `bytes` from `from` whose ids are right; `token` is a fresh random number.
    pub(super) fn on_data(
        &mut self,
        now: Nanos,
        limits: &Limits,
        (from, bytes): (A, usize),
        data: &Data<'_>,
        token: u64,
    ) {
        match self.phase {
            Phase::Dialling { .. } | Phase::Broken(_) => return,
            // Whoever knows the id has seen the welcome.
            Phase::Welcoming { .. } => self.open(now),
            Phase::Open => {}
        }
        if self.received.is_known(data.number) {
            if data.wants_ack {
                self.received.hurry(now);
            }
            return;
        }
        if let Some(acks) = &data.acks {
            let Ok(news) = self.recovery.on_acks(now, acks) else { return };
            self.out.grant(acks.credit);
            self.take_news(news);
        }
        if let Some(piece) = &data.piece {
            match self.incoming.push(piece) {
                Ok(more) => self.readable |= more,
                // Not recorded: as if it had been lost.
                Err(_) => return,
            }
        }
        self.heard_at = now;
        let is_newest = self.received.largest().is_none_or(|largest| data.number > largest);
        self.received.record(now, data.number, data.wants_ack);
        if data.stops && !self.is_stopped_by_peer {
            self.is_stopped_by_peer = true;
            self.out.discard();
            self.writable = true;
        }
        if data.aborts && !self.is_aborted_by_peer {
            self.is_aborted_by_peer = true;
            self.readable = true;
        }
        if let Some(token) = data.challenge {
            self.owes.response = Some((token, from));
        }
        if let Some(moving) = self.moving
            && data.response == Some(moving.token)
            && from == moving.place
        {
            self.move_to(limits, from);
        }
        if from == self.place {
            // It is where it was, after all.
            if is_newest {
                self.moving = None;
            }
        } else if is_newest {
            // The answer to a challenge takes as much as came.
            let bytes = if data.challenge.is_some() { 0 } else { bytes };
            self.on_moved(now, limits, (from, bytes), token);
        }
    }

    /// The newest packet came from another place.
    fn on_moved(&mut self, now: Nanos, limits: &Limits, (place, bytes): (A, usize), token: u64) {
        if self.plant.has(Planted::MovesUnproved) {
            return self.move_to(limits, place);
        }
        match &mut self.moving {
            Some(moving) if moving.place == place => moving.unanswered += bytes,
            // One at a time; it is over soon.
            Some(_) => {}
            None => self.moving = Some(Moving { place, token, asked: 0, again_at: now, unanswered: bytes }),
        }
    }

    fn move_to(&mut self, limits: &Limits, place: A) {
        self.place = place;
        self.moving = None;
        self.recovery.start_over(limits.packet_bytes, limits.send_bytes_max);
    }

    fn take_news(&mut self, news: News) {
        for Sent { piece, stops, aborts, .. } in news.acked {
            if let Some((start, end, ends)) = piece {
                self.out.on_acked(start, end, ends);
            }
            self.stop_acked |= stops;
            self.abort_acked |= aborts;
        }
        for sent in news.lost {
            self.on_lost(&sent);
        }
    }

    /// What the packet carried must be said again.
    fn on_lost(&mut self, sent: &Sent) {
        if let Some((start, end, ends)) = sent.piece
            && !self.is_stopped_by_peer
            && !self.is_aborting
        {
            self.out.on_lost(start, end, ends);
        }
        let says = |is_lost: bool, bug| is_lost && !self.plant.has(bug);
        self.owes.stop |= says(sent.stops && !self.stop_acked, Planted::ForgetsLostStop);
        self.owes.abort |= says(sent.aborts && !self.abort_acked, Planted::ForgetsLostAbort);
        self.owes.credit |= sent.grants;
    }

    pub(super) fn on_time(&mut self, now: Nanos, limits: &Limits) {
        if self.gone_at.is_some_and(|at| at <= now) {
            if !self.is_over() {
                self.end(Broken::Silence);
            }
            self.is_gone = true;
            return;
        }
        match &mut self.phase {
            Phase::Dialling { give_up_at, .. } if *give_up_at <= now => self.end(Broken::NoAnswer),
            Phase::Welcoming { give_up_at } if *give_up_at <= now => self.end(Broken::NoAnswer),
            Phase::Open => self.on_time_open(now, limits),
            _ => {}
        }
    }

    fn on_time_open(&mut self, now: Nanos, limits: &Limits) {
        if self.heard_at + limits.silence_max <= now && !self.plant.has(Planted::WaitsForEver) {
            return self.end(Broken::Silence);
        }
        let news = self.recovery.on_time(now);
        self.take_news(news);
        if self.recovery.deadline(ACK_DELAY_MAX, PAUSE_MAX, self.pauses_grow()).is_some_and(|at| at <= now) {
            self.recovery.on_probe();
            self.probes_left = 1;
            // Something that is worth its way, or else a mere question.
            match self.recovery.oldest().copied() {
                Some(oldest) => self.on_lost(&oldest),
                None => self.owes.ping = true,
            }
            self.owes.ping |= !self.wants_to_say();
        }
        if self.keepalive_at(limits).is_some_and(|at| at <= now) {
            self.owes.ping = true;
            self.out.shrink();
            self.incoming.shrink();
        }
        if let Some(moving) = &mut self.moving
            && moving.again_at <= now
        {
            if moving.asked < CHALLENGES_MAX {
                moving.asked += 1;
                moving.again_at = now + self.recovery.rtt.overdue(ACK_DELAY_MAX).min(PAUSE_MAX);
                if let Some(left) = moving.unanswered.checked_sub(CHALLENGE_BYTES) {
                    moving.unanswered = left;
                    self.owes.challenge = Some((moving.token, moving.place));
                }
            } else {
                self.moving = None;
            }
        }
    }

    /// The next moment at which [`on_time`](Self::on_time) or a look for packets is wanted.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Nanos> {
        let own = match self.phase {
            Phase::Dialling { hello_at, give_up_at, .. } => Some(hello_at.min(give_up_at)),
            Phase::Welcoming { give_up_at } => Some(give_up_at),
            Phase::Open => [
                Some(self.heard_at + limits.silence_max).filter(|_| !self.plant.has(Planted::WaitsForEver)),
                self.recovery.deadline(ACK_DELAY_MAX, PAUSE_MAX, self.pauses_grow()),
                self.keepalive_at(limits),
                self.received.due(),
                self.paced_until,
                self.moving.map(|moving| moving.again_at),
            ]
            .into_iter()
            .flatten()
            .min(),
            Phase::Broken(_) => None,
        };
        [own, self.gone_at].into_iter().flatten().min()
    }

    fn keepalive_at(&self, limits: &Limits) -> Option<Nanos> {
        (self.recovery.is_idle() && !self.owes.ping && !self.is_over())
            .then(|| self.heard_at.max(self.recovery.asked_at) + limits.keepalive)
    }

    fn pauses_grow(&self) -> bool {
        !self.plant.has(Planted::ProbesWithoutPause)
    }

    fn end(&mut self, broken: Broken) {
        // Nobody has it yet who could let it go.
        self.is_gone |= matches!(self.phase, Phase::Welcoming { .. });
        // Who only does not hear us may hear this.
        self.owes = Owes { reset: self.peer != 0 && broken != Broken::Reset, ..Owes::default() };
        self.phase = Phase::Broken(broken);
        self.out.discard();
        (self.readable, self.writable) = (true, true);
    }

    /// True when it stays only to acknowledge what is repeated.
    pub(super) fn is_draining(&self) -> bool {
        !self.has_sender && !self.has_receiver && self.phase == Phase::Open && self.is_over()
    }

    /// Both directions have ended, as far as the peer and we know.
    pub(super) fn is_over(&self) -> bool {
        let out = self.out.is_delivered() || self.abort_acked || self.is_stopped_by_peer;
        let incoming = self.incoming.is_whole() || self.is_aborted_by_peer || self.stop_acked;
        out && incoming
    }

    /// True when it may be forgotten.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone && !self.owes.reset
    }

    /// Looks whether the owner and both directions are done, after anything has happened.
    pub(super) fn settle(&mut self, now: Nanos) {
        if self.has_sender || self.has_receiver || self.is_gone {
            return;
        }
        match self.phase {
            Phase::Open if self.is_over() => {
                let wait = DRAIN * self.recovery.rtt.overdue(ACK_DELAY_MAX).min(PAUSE_MAX);
                // A listener remembers what is over; a dialler's socket goes with its connection.
                let at = now + if self.is_dialled { wait.max(DIALLER_DRAIN_MIN) } else { wait };
                // Once: what is repeated meanwhile does not make it longer.
                if self.gone_at.is_none_or(|gone_at| gone_at > at) {
                    self.gone_at = Some(at);
                }
            }
            Phase::Open => self.gone_at = Some(self.gone_at.unwrap_or(now + LINGER_MAX)),
            _ => {
                self.owes.reset |= matches!(self.phase, Phase::Welcoming { .. });
                self.phase = Phase::Broken(Broken::Reset);
                self.is_gone = true;
            }
        }
    }

    /// True when there is something to be said that wants an answer.
    pub(super) fn wants_to_say(&self) -> bool {
        self.owes.stop || self.owes.abort || self.owes.credit || self.owes.ping || self.has_piece()
    }

    /// True when a piece of the stream may be sent.
    pub(super) fn has_piece(&self) -> bool {
        !self.is_aborting && !self.is_stopped_by_peer && self.out.has_piece()
    }
}
