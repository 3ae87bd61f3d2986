//! The clock of the leases: every replica watches them, the first member of the view proposes their ends.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Replica;
use super::book::{Book, Command, SessionId};

/// How often the leases are looked through. A lease ends at most so much later than it might.
const TICK: Duration = Duration::from_millis(100);

/// Since when, and after how many renewals, a lease has not been renewed.
type Watched = BTreeMap<SessionId, (u64, Instant)>;

/// Ends leases that run out, until the replica ends.
pub(super) async fn watch(replica: Replica) {
    let mut progress = replica.watch();
    let mut watched = Watched::new();
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
        let due = replica.read(|book| look_through(&mut watched, book, Instant::now()));
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

/// Which leases have run out at `now`.
fn look_through(watched: &mut Watched, book: &Book, now: Instant) -> Vec<(SessionId, u64)> {
    watched.retain(|session, _| book.sessions.contains_key(session));
    let mut due = Vec::new();
    for (id, session) in &book.sessions {
        let (renewals, since) = watched.entry(*id).or_insert((session.renewals, now));
        if *renewals != session.renewals {
            (*renewals, *since) = (session.renewals, now);
        } else if now.duration_since(*since) > session.lease {
            due.push((*id, *renewals));
        }
    }
    due
}
