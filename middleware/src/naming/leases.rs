//! The clock of the leases: every replica watches them, the first member of the view proposes their ends.
//!
//! Method      only time in which this replica was awake counts: while its process or its host stood still, renewals
//!             were not heard through no fault of their senders, and often they stood still with it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Replica;
use super::book::{Book, Command, SessionId};

/// How often the leases are looked through. A lease ends at most so much later than it might.
const TICK: Duration = Duration::from_millis(100);

/// The most that one tick counts. The proposals of the tick before may have taken their time.
const TICK_MAX: Duration = TICK.saturating_mul(2);

/// Since when, and after how many renewals, a lease has not been renewed.
type Watched = BTreeMap<SessionId, (u64, Duration)>;

/// How long this replica has been awake.
struct Awake {
    so_far: Duration,
    until: Instant,
}

impl Awake {
    fn since(now: Instant) -> Self {
        Self { so_far: Duration::ZERO, until: now }
    }

    fn tick(&mut self, now: Instant) -> Duration {
        self.so_far += now.saturating_duration_since(self.until).min(TICK_MAX);
        self.until = now;
        self.so_far
    }
}

/// Ends leases that run out, until the replica ends.
pub(super) async fn watch(replica: Replica) {
    let mut progress = replica.watch();
    let mut watched = Watched::new();
    let mut awake = Awake::since(Instant::now());
    loop {
        tokio::select! {
            biased;
            changed = progress.changed() => {
                if changed.is_err() || progress.borrow_and_update().is_over {
                    return;
                }
                // While the members change, and while there is no quorum, renewals are held up through no fault of their
                // senders: all leases start anew.
                watched.clear();
                continue;
            }
            () = tokio::time::sleep(TICK) => {}
        }
        let now = awake.tick(Instant::now());
        let due = replica.read(|book| look_through(&mut watched, book, now));
        let is_first = {
            let progress = progress.borrow();
            let first = progress.view.as_ref().and_then(|view| view.members.first().copied());
            progress.has_quorum && first == Some(replica.me())
        };
        if is_first {
            for (session, renewals) in due {
                let proposal = Command::Expire { session, renewals };
                // While there is no quorum it would wait, and what the others renewed meanwhile makes it void anyway.
                if !matches!(tokio::time::timeout(TICK, replica.apply(&proposal)).await, Ok(Ok(_))) {
                    break;
                }
            }
        }
    }
}

/// Which leases have run out at `now`, counted in time awake.
fn look_through(watched: &mut Watched, book: &Book, now: Duration) -> Vec<(SessionId, u64)> {
    watched.retain(|session, _| book.sessions.contains_key(session));
    let mut due = Vec::new();
    for (id, session) in &book.sessions {
        let (renewals, since) = watched.entry(*id).or_insert((session.renewals, now));
        if *renewals != session.renewals {
            (*renewals, *since) = (session.renewals, now);
        } else if now.saturating_sub(*since) > session.lease {
            due.push((*id, *renewals));
        }
    }
    due
}
