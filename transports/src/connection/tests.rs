//! Messages that are held back; the drivers are polled by hand.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::*;
use crate::identity::{Identity, Incarnation, NodeId};
use crate::mem::{MemConfig, link_pair};

const STAMP: u64 = 7;
const LANE: Lane = Lane::Ordinary;

/// Holds back what it is told to.
struct Keeper {
    connection: Connection,
    held: Mutex<Vec<u8>>,
    asked: AtomicU32,
}

impl Keeper {
    fn new(connection: &Connection) -> Arc<Self> {
        Arc::new(Self { connection: connection.clone(), held: Mutex::default(), asked: AtomicU32::new(0) })
    }

    /// Queues `first`, and asks to hold back what follows.
    fn begins(self: &Arc<Self>, first: u8) -> bool {
        let source: Weak<Self> = Arc::downgrade(self);
        let mut batch = self.connection.batch(LANE).unwrap();
        if !batch.join(STAMP, &[&[first]]) {
            batch.push_joinable(STAMP, &[b"<", &[first]]).unwrap();
        }
        batch.hold_back(STAMP, &(source as Weak<dyn Source>)).is_some()
    }

    fn holds(&self, items: &[u8]) {
        self.held.lock().unwrap().extend_from_slice(items);
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Source for Keeper {
    fn hand_over(&self, stamp: u64) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        if let Ok(mut batch) = self.connection.batch_held(LANE, stamp)
            && !held.is_empty()
        {
            batch.push_held(stamp, &[b"<"], &held);
        }
    }
}

#[derive(Clone, Default)]
struct Came(Arc<Mutex<Vec<Bytes>>>);

impl Came {
    fn take(&self) -> Vec<Bytes> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Deliver for Came {
    fn poll_deliver(&mut self, _: &mut Context<'_>, messages: &mut Vec<Bytes>) -> Poll<()> {
        self.0.lock().unwrap().append(messages);
        Poll::Ready(())
    }
}

struct Side {
    connection: Connection,
    driver: Driver<Came>,
    came: Came,
}

impl Side {
    fn turn(&mut self) -> Poll<Ended> {
        Pin::new(&mut self.driver).poll(&mut Context::from_waker(Waker::noop()))
    }
}

fn pair() -> [Side; 2] {
    let hello =
        |node| Hello::new(Identity::new(NodeId(node), Incarnation(1)), CodecId::default(), 1 << 20, &[]);
    let (one, two) = link_pair(&MemConfig::default());
    [(one, true), (two, false)].map(|(link, is_dialled)| {
        let agreement = Agreement { version: Hello::VERSIONS.1, message_bytes_max: 1 << 20 };
        let established = Established::assume(link, hello(u64::from(is_dialled)), agreement, is_dialled);
        let came = Came::default();
        let (connection, driver) = established.start(&ConnectionConfig::default(), came.clone());
        Side { connection, driver, came }
    })
}

#[tokio::test(start_paused = true)]
async fn t08_what_is_held_back_leaves_in_the_next_turn_and_before_the_goodbye() {
    let [mut here, mut there] = pair();
    let keeper = Keeper::new(&here.connection);
    assert!(keeper.begins(b'a'), "a driver that has not run is about to");
    keeper.holds(b"bc");
    assert_eq!(keeper.asked(), 0);
    assert!(here.turn().is_pending() && there.turn().is_pending());
    assert_eq!((keeper.asked(), there.came.take()), (1, vec![Bytes::from("<abc")]));

    // It sleeps, and wakes up for what is queued beside it.
    assert!(keeper.begins(b'd'));
    keeper.holds(b"e");
    here.connection.close();
    let is_refused = |batch: Result<Batch<'_>, _>| matches!(batch, Err(SendError::Closed));
    assert!(is_refused(here.connection.batch(LANE)));
    keeper.holds(b"f");
    let mut ends = [None, None];
    while ends.contains(&None) {
        for (side, end) in [&mut here, &mut there].into_iter().zip(&mut ends) {
            if end.is_none()
                && let Poll::Ready(ended) = side.turn()
            {
                assert!(matches!(ended.end, End::Closed), "{ended:?}");
                *end = Some(ended.left);
            }
        }
    }
    assert_eq!((ends, there.came.take()), ([Some(Left::default()); 2], vec![Bytes::from("<def")]));
    assert!(is_refused(here.connection.batch_held(LANE, STAMP)));
}

#[tokio::test(start_paused = true)]
async fn t08_what_is_held_back_when_the_connection_is_broken_off_is_counted_as_left() {
    let [mut here, _there] = pair();
    let keeper = Keeper::new(&here.connection);
    assert!(keeper.begins(b'a'));
    keeper.holds(b"bc");
    here.connection.abort();
    let Poll::Ready(ended) = here.turn() else { panic!("it goes on") };
    // Length, tag, head, three items.
    assert!(matches!(ended.end, End::Aborted), "{ended:?}");
    assert_eq!(ended.left, Left { messages: 1, bytes: 4 + 1 + 1 + 3 });
}

#[tokio::test(start_paused = true)]
async fn t08_nothing_is_held_back_while_the_link_takes_no_more() {
    let [mut here, mut there] = pair();
    let keeper = Keeper::new(&here.connection);
    let large = Bytes::from(vec![0; 200_000]);
    for _ in 0..3 {
        here.connection.send(LANE, &[], large.clone()).unwrap();
    }
    assert!(keeper.begins(b'a'));
    assert!(here.turn().is_pending());
    assert_eq!(keeper.asked(), 1, "it does not sleep on what is held back");
    assert!(!keeper.begins(b'b'), "nobody knows when it will look again");
    while there.came.0.lock().unwrap().len() < 4 {
        assert!(here.turn().is_pending() && there.turn().is_pending());
    }
    assert_eq!(there.came.take()[3], Bytes::from("<ab"));
}
