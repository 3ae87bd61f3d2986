//! The bank's customers: tasks that take the file's orders one by one and insist until each has an answer.
//!
//! Guarantee   an order is repeated under its own number only; a desk's refusal is final, silence is not.
//! Limits      one order per client at a time; [`PATIENCE`] per order, then its fate counts as unknown and no further
//!             order is sent.

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
    /// Lines with an answer, or that will have none; the kill and the progress watch it.
    finished: tokio::sync::watch::Sender<u64>,
    /// One watch for each kill.
    silences: Mutex<Vec<Silence>>,
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

    /// How many lines have an answer or will have none, to be watched.
    pub fn finished(&self) -> tokio::sync::watch::Receiver<u64> {
        self.finished.subscribe()
    }

    /// Looks at the tally.
    pub fn tally<T>(&self, look: impl FnOnce(&Tally) -> T) -> T {
        look(&lock(&self.tally))
    }

    /// Measures a branch's silence from now on, until it is measured anew.
    pub fn watch_silence(&self, branch: u8) {
        lock(&self.silences).push(Silence { branch, last: Instant::now(), longest: Duration::ZERO });
    }

    /// The longest times in which the watched branches gave no answer, one for each call of [`Hall::watch_silence`].
    pub fn longest_silences(&self) -> Vec<Duration> {
        lock(&self.silences).iter().map(|silence| silence.longest).collect()
    }

    /// One client: orders until none is left.
    pub async fn client(self: Arc<Self>, seed: u64) {
        let mut chance = Chance(seed);
        // Whoever gave the last answer gives the next one: a silent replica costs each client one attempt, not one in
        // three of all.
        let mut favourites = BTreeMap::new();
        while let Some((line, order)) = self.next_order() {
            let asked = Instant::now();
            let favourite = favourites.entry(order.from.branch).or_insert_with(|| chance.next() as usize);
            let answer = self.insist(&order, favourite, &mut chance).await;
            self.count(line, &order, asked.elapsed(), answer);
        }
    }

    fn next_order(&self) -> Option<(u64, Transfer)> {
        lock(&self.orders).next()
    }

    /// Asks one replica after the other, the `which`-th first, until one answers or the patience ends.
    async fn insist(
        &self,
        order: &Transfer,
        which: &mut usize,
        chance: &mut Chance,
    ) -> Result<(), Unanswered> {
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
        let mut last;
        loop {
            // Looked up for each attempt: a desk may have moved.
            let desks = desks(self);
            let Some(desk) = desks.get(*which % desks.len().max(1)) else {
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
            *which = which.wrapping_add(1);
        }
    }

    fn count(&self, line: u64, order: &Transfer, took: Duration, answer: Result<(), Unanswered>) {
        let mut tally = lock(&self.tally);
        match answer {
            Ok(()) => tally.execute(order, took),
            Err(Unanswered::Refused(refusal)) => tally.refuse(line, refusal.kind(), &refusal),
            Err(Unanswered::Unknown(why)) => tally.unknown.push((line, why)),
        }
        if !tally.unknown.is_empty() {
            // The proof has failed and a branch is silent: each further order could only wait as long.
            tally.unsent += lock(&self.orders).by_ref().count() as u64;
        }
        // Told with the lock held: nobody else's older number may come later.
        self.finished.send_replace(tally.answered() + tally.unsent);
        drop(tally);
        if let Some(silence) = lock(&self.silences).iter_mut().rfind(|s| s.branch == order.from.branch) {
            silence.longest = silence.longest.max(silence.last.elapsed());
            silence.last = Instant::now();
        }
    }
}

/// A branch's pauses between two answers.
struct Silence {
    branch: u8,
    last: Instant,
    longest: Duration,
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
