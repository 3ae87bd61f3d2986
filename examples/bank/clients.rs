//! The bank's customers: tasks that take the file's orders one by one and insist until each has an answer.
//!
//! Guarantee   an order is repeated under its own number only; a desk's refusal is final, silence is not.
//! Limits      one order per client at a time; [`PATIENCE`] per order, then its fate counts as unknown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate::rpc::RpcError;

use super::books::lock;
use super::branch::Refusal;
use super::desk::{DeskClient, DeskError};
use super::input::Transfer;
use super::processes::Place;
use super::report::Tally;

/// How long an order is insisted on: longer than a killed process needs to come back.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long one attempt may take before another replica is asked.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);

/// The first pause between two attempts; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What clients share: the orders that wait, the desks that answer, the tally.
pub struct Hall {
    orders: Mutex<std::vec::IntoIter<(u64, Transfer)>>,
    desks: Mutex<BTreeMap<Place, DeskClient>>,
    tally: Mutex<Tally>,
    /// Lines with an answer; the kill and the progress watch it.
    finished: tokio::sync::watch::Sender<u64>,
    /// By branch: when it answered last, and the longest time in which it did not.
    silences: Mutex<BTreeMap<u8, (Instant, Duration)>>,
}

impl Hall {
    /// A hall with orders and a tally that has counted the lines that are none.
    pub fn new(orders: Vec<(u64, Transfer)>, tally: Tally) -> Self {
        let finished = tokio::sync::watch::Sender::new(tally.refused());
        Self {
            orders: Mutex::new(orders.into_iter()),
            desks: Mutex::default(),
            tally: Mutex::new(tally),
            finished,
            silences: Mutex::default(),
        }
    }

    /// Opens a desk, or replaces one that moved to another address.
    pub fn open_desk(&self, place: Place, desk: DeskClient) {
        lock(&self.desks).insert(place, desk);
    }

    /// All desks, in the order of their places.
    pub fn desks(&self) -> Vec<(Place, DeskClient)> {
        lock(&self.desks).iter().map(|(place, desk)| (*place, desk.clone())).collect()
    }

    /// How many lines have an answer, to be watched.
    pub fn finished(&self) -> tokio::sync::watch::Receiver<u64> {
        self.finished.subscribe()
    }

    /// Looks at the tally.
    pub fn tally<T>(&self, look: impl FnOnce(&Tally) -> T) -> T {
        look(&lock(&self.tally))
    }

    /// Measures a branch's silence anew, from now on.
    pub fn watch_silence(&self, branch: u8) {
        lock(&self.silences).insert(branch, (Instant::now(), Duration::ZERO));
    }

    /// The longest time in which a branch gave no answer.
    pub fn longest_silence(&self, branch: u8) -> Duration {
        lock(&self.silences).get(&branch).map_or(Duration::ZERO, |(_, longest)| *longest)
    }

    /// One client: orders until none is left.
    pub async fn client(self: Arc<Self>, seed: u64) {
        let mut chance = Chance(seed);
        while let Some((line, order)) = self.next_order() {
            let asked = Instant::now();
            let answer = self.insist(&order, &mut chance).await;
            self.count(line, &order, asked.elapsed(), answer);
        }
    }

    fn next_order(&self) -> Option<(u64, Transfer)> {
        lock(&self.orders).next()
    }

    /// Asks one replica after the other until one answers or the patience ends.
    async fn insist(&self, order: &Transfer, chance: &mut Chance) -> Result<(), Unanswered> {
        let desks = |hall: &Self| -> Vec<DeskClient> {
            let desks = lock(&hall.desks);
            desks
                .iter()
                .filter(|(place, _)| place.branch == order.from.branch)
                .map(|(_, desk)| desk.clone())
                .collect()
        };
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        let mut which = chance.next() as usize;
        let mut last;
        loop {
            // Looked up for each attempt: a desk may have moved.
            let desks = desks(self);
            let Some(desk) = desks.get(which % desks.len().max(1)) else {
                return Err(Unanswered::Refused(Refusal::UnknownAccount(order.from)));
            };
            match desk.with_deadline(ATTEMPT_MAX).transfer(*order).await {
                Ok(()) => return Ok(()),
                Err(RpcError::Application(DeskError::Refused(refusal))) => {
                    return Err(Unanswered::Refused(refusal));
                }
                Err(other) => last = other.to_string(),
            }
            if began.elapsed() >= PATIENCE {
                return Err(Unanswered::Unknown(last));
            }
            lock(&self.tally).retries += 1;
            // A random part keeps clients that failed together from coming back together.
            let jitter = pause.mul_f64((chance.next() % 1000) as f64 / 1000.0);
            tokio::time::sleep(pause / 2 + jitter / 2).await;
            pause = (pause * 2).min(PAUSE_MAX);
            which = which.wrapping_add(1);
        }
    }

    fn count(&self, line: u64, order: &Transfer, took: Duration, answer: Result<(), Unanswered>) {
        let mut tally = lock(&self.tally);
        match answer {
            Ok(()) => tally.execute(order.from.branch != order.to.branch, took),
            Err(Unanswered::Refused(refusal)) => tally.refuse(line, refusal.kind(), &refusal),
            Err(Unanswered::Unknown(why)) => tally.unknown.push((line, why)),
        }
        drop(tally);
        let now = Instant::now();
        let mut silences = lock(&self.silences);
        let (last, longest) = silences.entry(order.from.branch).or_insert((now, Duration::ZERO));
        *longest = (*longest).max(now - *last);
        *last = now;
        drop(silences);
        self.finished.send_modify(|finished| *finished += 1);
    }
}

/// Why an order was not executed, as far as a client can know.
enum Unanswered {
    Refused(Refusal),
    Unknown(String),
}

/// A small seeded source of numbers (splitmix64).
pub struct Chance(pub u64);

impl Chance {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
