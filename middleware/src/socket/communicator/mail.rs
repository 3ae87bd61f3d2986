//! A member's mail: what came and nobody received yet, who waits for what, and which link leads to whom.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use quorate_protocols::collectives::Collectives;
use quorate_protocols::{Input, ProcessId, Wire};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{CollectiveError, Letter};
use crate::socket::Remote;
use crate::socket::body::Body;
use crate::socket::engine::{Core, Intake};

/// What a member keeps of its mail.
pub(super) struct Mailbox {
    pub(super) rank: u32,
    pub(super) began: Instant,
    pub(super) mail: Mutex<Mail>,
    /// Wakes the communicator's task.
    pub(super) chores: Notify,
}

pub(super) struct Mail {
    /// The link to each member.
    pub(super) links: Vec<Option<u32>>,
    /// Members whose link was lost, and since when.
    pub(super) gone: BTreeMap<u32, Instant>,
    pub(super) unexpected: VecDeque<Unexpected>,
    pub(super) posted: BTreeMap<u64, Posted>,
    pub(super) answers: BTreeMap<u64, Waiting>,
    pub(super) last: u64,
    pub(super) machine: Collectives,
    pub(super) operations: u64,
    pub(super) ends: BTreeMap<u64, Result<Vec<Bytes>, CollectiveError>>,
    /// Who waits for which operation.
    pub(super) enders: BTreeMap<u64, Option<Waker>>,
}

/// A message for which no receive waited.
pub(super) struct Unexpected {
    pub(super) letter: Letter,
    pub(super) kind: u8,
    pub(super) id: u64,
    /// What it fills of its link's window.
    pub(super) size: usize,
}

pub(super) struct Posted {
    pub(super) from: Option<u32>,
    pub(super) tag: Option<u32>,
    pub(super) got: Option<Letter>,
    pub(super) waker: Option<Waker>,
}

#[derive(Default)]
pub(super) struct Waiting {
    pub(super) link: Option<u32>,
    pub(super) answer: Option<Answer>,
    pub(super) waker: Option<Waker>,
}

pub(super) enum Answer {
    Yes(Bytes),
    NotReady,
    Gone,
}

impl Mail {
    pub(super) fn missing(&self) -> Option<u32> {
        self.links.iter().position(Option::is_none).map(|rank| rank as u32)
    }

    fn rank_of(&self, link: u32) -> Option<u32> {
        self.links.iter().position(|known| *known == Some(link)).map(|rank| rank as u32)
    }
}

impl Mailbox {
    pub(super) fn new(rank: u32, members: usize, machine: Collectives) -> Self {
        let mail = Mail {
            links: vec![None; members],
            gone: BTreeMap::new(),
            unexpected: VecDeque::new(),
            posted: BTreeMap::new(),
            answers: BTreeMap::new(),
            last: 0,
            machine,
            operations: 0,
            ends: BTreeMap::new(),
            enders: BTreeMap::new(),
        };
        Self { rank, began: Instant::now(), mail: Mutex::new(mail), chores: Notify::new() }
    }

    pub(super) fn mail(&self) -> MutexGuard<'_, Mail> {
        // Nothing panics while it is held half-changed, so a poisoned lock is a sound one.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the links of members that dialled, and of those that came back.
    pub(super) fn find_links(&self, core: &Core) {
        let found: Vec<(u32, u32)> = {
            let state = core.state();
            let up = state.links.values().filter(|link| link.is_up());
            up.filter_map(|link| Some((u32::from_le_bytes(link.name[..].try_into().ok()?), link.number)))
                .collect()
        };
        let dialled = core.dialled();
        let mut mail = self.mail();
        for (rank, link) in found {
            if let Some(slot) = mail.links.get_mut(rank as usize) {
                *slot = Some(link);
                mail.gone.remove(&rank);
            }
        }
        // Those that this side dials stand in the order of their ranks.
        for (rank, link) in dialled.into_iter().enumerate() {
            if let (Some(slot), Some(link)) = (mail.links.get_mut(rank), link) {
                *slot = Some(link);
                mail.gone.remove(&(rank as u32));
            }
        }
    }

    /// A receive has taken the message: it makes room, and its sender may want to know.
    pub(super) fn taken(&self, core: &Core, matched: &Unexpected) {
        if matched.size > 0 {
            core.use_held(matched.letter.link, matched.size);
        }
        if matches!(matched.kind, WANTS_RECEIPT | WANTS_READY) {
            self.post(core, matched.letter.link, RECEIPT, matched.letter.tag, matched.id, Bytes::new());
        }
    }

    pub(super) fn post(&self, core: &Core, link: u32, kind: u8, tag: u32, id: u64, body: Bytes) {
        let identity = core.node.identity();
        core.reply_now(Remote { identity, link }, &head(kind, self.rank, tag, id), &Body::Owned(body));
    }

    /// A message came, or came back (`is_first`).
    pub(super) fn arrive(&self, core: &Core, message: Unexpected, is_first: bool) {
        let waker = {
            let mut mail = self.mail();
            let letter = &message.letter;
            let fits = |posted: &&mut Posted| {
                posted.got.is_none()
                    && posted.from.is_none_or(|from| from == letter.from)
                    && posted.tag.is_none_or(|tag| tag == letter.tag)
            };
            match mail.posted.values_mut().find(fits) {
                Some(posted) => {
                    posted.got = Some(message.letter.clone());
                    posted.waker.take()
                }
                None if message.kind == WANTS_READY => {
                    drop(mail);
                    let Unexpected { letter, id, size, .. } = message;
                    core.use_held(letter.link, size);
                    self.post(core, letter.link, NOT_READY, letter.tag, id, Bytes::new());
                    return;
                }
                None => {
                    if is_first {
                        mail.unexpected.push_front(message);
                    } else {
                        mail.unexpected.push_back(message);
                    }
                    return;
                }
            }
        };
        self.taken(core, &message);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let waker = {
            let mut mail = self.mail();
            let Some(waiting) = mail.answers.get_mut(&id) else { return };
            waiting.answer = Some(answer);
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Intake for Mailbox {
    fn take(&self, core: &Core, from: Remote, mut item: Bytes) {
        let size = item.len();
        let Some((kind, rank, tag, id)) = take_head(&mut item) else {
            core.use_held(from.link, size);
            return;
        };
        if matches!(kind, MESSAGE | WANTS_RECEIPT | WANTS_READY | WANTS_REPLY) {
            let reply_to = (kind == WANTS_REPLY).then_some(id);
            let letter = Letter { from: rank, tag, body: item, link: from.link, reply_to };
            self.arrive(core, Unexpected { letter, kind, id, size }, false);
            return;
        }
        core.use_held(from.link, size);
        match kind {
            RECEIPT | REPLY => self.answer(id, Answer::Yes(item)),
            NOT_READY => self.answer(id, Answer::NotReady),
            TOGETHER => {
                if let Ok(message) = Wire::from_bytes(item) {
                    self.step(core, Input::Received { from: process(rank.into()), message });
                }
            }
            _ => {}
        }
    }

    fn on_gone(&self, from: Remote) {
        let mut wakers = Vec::new();
        {
            let mut mail = self.mail();
            if let Some(rank) = mail.rank_of(from.link) {
                mail.links[rank as usize] = None;
                mail.gone.insert(rank, Instant::now());
            }
            for waiting in mail.answers.values_mut().filter(|waiting| waiting.link == Some(from.link)) {
                waiting.answer.get_or_insert(Answer::Gone);
                wakers.extend(waiting.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        self.chores.notify_one();
    }
}

/// What the machine calls a member.
pub(super) fn process(rank: u64) -> ProcessId {
    ProcessId { node: rank, incarnation: 1 }
}

pub(super) fn head(kind: u8, rank: u32, tag: u32, id: u64) -> [u8; HEAD_BYTES] {
    let mut out = [0; HEAD_BYTES];
    out[0] = kind;
    out[1..5].copy_from_slice(&rank.to_le_bytes());
    out[5..9].copy_from_slice(&tag.to_le_bytes());
    out[9..].copy_from_slice(&id.to_le_bytes());
    out
}

fn take_head(item: &mut Bytes) -> Option<(u8, u32, u32, u64)> {
    use bytes::Buf;
    Some((
        item.try_get_u8().ok()?,
        item.try_get_u32_le().ok()?,
        item.try_get_u32_le().ok()?,
        item.try_get_u64_le().ok()?,
    ))
}

/// Kind, rank, tag, id.
const HEAD_BYTES: usize = 17;
pub(super) const MESSAGE: u8 = 1;
pub(super) const WANTS_RECEIPT: u8 = 2;
pub(super) const WANTS_READY: u8 = 3;
pub(super) const WANTS_REPLY: u8 = 4;
const RECEIPT: u8 = 5;
pub(super) const REPLY: u8 = 6;
const NOT_READY: u8 = 7;
pub(super) const TOGETHER: u8 = 8;
