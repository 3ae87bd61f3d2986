//! What `#[service]` makes of a trait, called over real transports.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::codec::{Bincode, Codec, Json, Postcard};
use quorate::rpc::{CallError, ClientOptions, Refusal, RpcError};
use quorate::{Payload, service};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::support::{Over, soon};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Note {
    title: String,
    lines: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum DeskError {
    #[error("no note {0:?}")]
    NoSuchNote(String),
}

/// A bit of everything.
#[service]
pub(crate) trait Desk {
    /// Keeps a note; tells how many there are.
    async fn keep(&self, note: Note) -> usize;
    /// Finds a note.
    #[idempotent]
    async fn find(&self, title: String) -> Result<Note, DeskError>;
    /// Sends bytes back.
    async fn mirror(&self, bytes: Payload) -> Payload;
    /// Nothing in, nothing out.
    async fn nothing(&self);
    /// Counts, and nobody waits for it.
    #[one_way]
    async fn ring(&self, times: u64);
    /// Comes with an implementation.
    async fn twice(&self, number: u64) -> u64 {
        self.add(number, number, 0).await
    }
    async fn add(&self, a: u64, b: u64, c: u64) -> u64;
    /// Gives way before it answers, so that it needs a task of its own.
    async fn add_later(&self, a: u64, b: u64) -> u64;
}

#[derive(Default)]
struct Drawer {
    notes: Mutex<Vec<Note>>,
    rung: AtomicU64,
    rang: Notify,
}

impl Desk for Drawer {
    async fn keep(&self, note: Note) -> usize {
        let mut notes = self.notes.lock().unwrap();
        notes.push(note);
        notes.len()
    }
    async fn find(&self, title: String) -> Result<Note, DeskError> {
        let notes = self.notes.lock().unwrap();
        notes.iter().find(|note| note.title == title).cloned().ok_or(DeskError::NoSuchNote(title))
    }
    async fn mirror(&self, bytes: Payload) -> Payload {
        bytes
    }
    async fn nothing(&self) {}
    async fn ring(&self, times: u64) {
        self.rung.fetch_add(times, Ordering::SeqCst);
        self.rang.notify_one();
    }
    async fn add(&self, a: u64, b: u64, c: u64) -> u64 {
        a + b + c
    }
    async fn add_later(&self, a: u64, b: u64) -> u64 {
        tokio::task::yield_now().await;
        a + b
    }
}

async fn every_kind_of_method<C: Codec>(over: Over) {
    let (server, address) = over.server(1).await;
    let drawer = Arc::new(Drawer::default());
    let serving = server.serve("desk", DeskServer::shared(Arc::clone(&drawer)).with_codec::<C>()).unwrap();
    let node = over.client(2).await;
    let desk =
        DeskClient::<C>::connect_with(&node, "desk", &address, ClientOptions::default()).await.unwrap();

    let note = Note { title: "ä".into(), lines: vec![1, 2, 3] };
    assert_eq!(desk.keep(note.clone()).await.unwrap(), 1);
    assert_eq!(desk.find("ä".into()).await.unwrap(), note);
    assert_eq!(
        desk.find("b".into()).await.unwrap_err(),
        RpcError::Application(DeskError::NoSuchNote("b".into())),
        "the service's own error is told apart from the middleware's"
    );
    assert_eq!(desk.twice(21).await.unwrap(), 42, "a default method");
    assert_eq!(desk.add_later(1, 2).await.unwrap(), 3);
    desk.nothing().await.unwrap();
    for size in [0, 1, 4_000, 300_000] {
        let bytes = Payload::from(vec![7; size]);
        assert_eq!(desk.mirror(bytes.clone()).await.unwrap(), bytes);
    }
    desk.ring(5).await.unwrap();
    soon("the bell", drawer.rang.notified()).await;
    assert_eq!(drawer.rung.load(Ordering::SeqCst), 5);

    let stats = serving.stats();
    assert_eq!((stats.executing, stats.clients, stats.spawned), (0, 1, 1), "{stats:?}");
    // A request may come twice on a slow machine, and is executed once.
    assert_eq!(stats.malformed, 0);
    assert_eq!(desk.server().outstanding(), 0);
}

#[tokio::test]
async fn r01_every_kind_of_method_works_over_every_transport_and_codec() {
    for over in Over::all() {
        soon("postcard", every_kind_of_method::<Postcard>(over.clone())).await;
        soon("json", every_kind_of_method::<Json>(over.clone())).await;
        soon("bincode", every_kind_of_method::<Bincode>(over)).await;
    }
}

#[tokio::test]
async fn r01_a_thousand_calls_at_once_each_get_their_own_answer() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let _serving = server.serve("desk", DeskServer::new(Drawer::default())).unwrap();
        let node = over.client(2).await;
        let desk = DeskClient::connect(&node, "desk", &address).await.unwrap();
        let calls: Vec<_> = (0..1_000u64)
            .map(|number| {
                let desk = desk.clone();
                tokio::spawn(async move {
                    if number % 2 == 0 {
                        desk.add(number, 1, 2).await.unwrap() - 3
                    } else {
                        desk.add_later(number, 1).await.unwrap() - 1
                    }
                })
            })
            .collect();
        for (number, call) in calls.into_iter().enumerate() {
            assert_eq!(soon("a call", call).await.unwrap(), number as u64);
        }
    }
}

/// More than all buffers on the way hold: callers wait, nothing is lost, nothing hangs.
#[tokio::test]
async fn large_arguments_and_results_wait_for_room() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let _serving = server.serve("desk", DeskServer::new(Drawer::default())).unwrap();
        let node = over.client(2).await;
        let desk = DeskClient::connect(&node, "desk", &address).await.unwrap();
        let calls: Vec<_> = (0..32u8)
            .map(|number| {
                let desk = desk.clone();
                tokio::spawn(async move {
                    let bytes = Payload::from(vec![number; 1 << 20]);
                    desk.mirror(bytes.clone()).await.unwrap() == bytes
                })
            })
            .collect();
        for call in calls {
            assert!(soon("a large call", call).await.unwrap());
        }
    }
}

/// Each would wait for ever if it stopped reading while the other does not read.
#[tokio::test]
async fn two_nodes_that_call_each_other_with_large_arguments_do_not_block_each_other() {
    for over in Over::all() {
        let (one, one_address) = over.server(1).await;
        let (two, two_address) = over.server(2).await;
        let _serving =
            [&one, &two].map(|node| node.serve("desk", DeskServer::new(Drawer::default())).unwrap());
        let there = DeskClient::connect(&one, "desk", &two_address).await.unwrap();
        let back = DeskClient::connect(&two, "desk", &one_address).await.unwrap();
        let calls: Vec<_> = (0..64u8)
            .map(|number| {
                let desk = if number % 2 == 0 { there.clone() } else { back.clone() };
                tokio::spawn(async move {
                    let bytes = Payload::from(vec![number; 1 << 20]);
                    desk.mirror(bytes.clone()).await.unwrap() == bytes
                })
            })
            .collect();
        for call in calls {
            assert!(soon("a large call", call).await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_request_that_no_connection_carries_is_not_sent() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let _serving = server.serve("desk", DeskServer::new(Drawer::default())).unwrap();
        let node = over.client(2).await;
        let desk = DeskClient::connect(&node, "desk", &address).await.unwrap();
        let error = desk.mirror(Payload::from(vec![0; 17 << 20])).await.unwrap_err();
        assert!(error.is_not_executed() && !error.is_retryable(), "{error}");
        assert!(error.to_string().contains("exceeds the limit"), "{error}");
        assert_eq!(desk.add(1, 2, 3).await.unwrap(), 6, "the connection is none the worse");
    }
}

#[test]
fn r01_the_schema_can_be_printed_and_compared() {
    let text = DeskClient::<Postcard>::SCHEMA.to_string();
    assert!(text.starts_with("service Desk "), "{text}");
    assert!(text.contains("find(title: String) -> Result<Note, DeskError>"), "{text}");
    assert!(text.contains("add(a: u64, b: u64, c: u64) -> u64"), "{text}");
    assert!(text.contains("ring(times: u64) -> ()"), "{text}");
    assert!(text.lines().any(|line| line.contains("find") && line.ends_with("idempotent")), "{text}");
    let ids: std::collections::BTreeSet<u32> =
        DeskClient::<Postcard>::SCHEMA.methods.iter().map(|method| method.id).collect();
    assert_eq!(ids.len(), 8);
    assert_eq!(DeskServer::<Drawer>::SCHEMA, DeskClient::<Json>::SCHEMA);
    assert_ne!(older::DeskClient::<Postcard>::SCHEMA.fingerprint, DeskClient::<Postcard>::SCHEMA.fingerprint);
    // What travels between builds must never change by itself.
    assert_eq!(older::DeskClient::<Postcard>::SCHEMA.methods[0].id, 0x3b39_1274);
}

/// The desk as it was a year ago: a method less, another type for one, and one that must not be repeated.
mod older {
    use super::{DeskError, Note};

    #[quorate::service]
    pub(crate) trait Desk {
        async fn add(&self, a: u32, b: u32) -> u32;
        async fn nothing(&self);
        async fn find(&self, title: String) -> Result<Note, DeskError>;
    }

    pub(super) struct Old;

    impl Desk for Old {
        async fn add(&self, a: u32, b: u32) -> u32 {
            a + b
        }
        async fn nothing(&self) {}
        async fn find(&self, _: String) -> Result<Note, DeskError> {
            unreachable!("the client believes that it may be repeated")
        }
    }
}

#[tokio::test]
async fn r01_methods_may_be_called_like_those_of_what_holds_the_service() {
    #[service]
    pub(crate) trait Odd {
        async fn as_ref(&self) -> u32;
        async fn type_id(&self) -> u32;
    }
    struct Names;
    impl Odd for Names {
        async fn as_ref(&self) -> u32 {
            1
        }
        async fn type_id(&self) -> u32 {
            3
        }
    }
    let over = Over::Tcp;
    let (server, address) = over.server(1).await;
    let _serving = server.serve("odd", OddServer::new(Names)).unwrap();
    let odd = OddClient::connect(&over.client(2).await, "odd", &address).await.unwrap();
    assert_eq!((odd.as_ref().await, odd.type_id().await), (Ok(1), Ok(3)));
}

#[tokio::test]
async fn r01_another_version_of_the_trait_is_refused_method_by_method() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let _serving = server.serve("desk", older::DeskServer::new(older::Old)).unwrap();
        let node = over.client(2).await;
        let desk = DeskClient::connect(&node, "desk", &address).await.unwrap();
        let error = desk.add(1, 2, 3).await.unwrap_err();
        assert_eq!(error, CallError::NotExecuted(Refusal::SignatureMismatch));
        let error = desk.add_later(1, 2).await.unwrap_err();
        assert_eq!(error, CallError::NotExecuted(Refusal::NoSuchMethod));
        let error = desk.find("invoice".into()).await.unwrap_err();
        assert_eq!(error, RpcError::Call(CallError::NotExecuted(Refusal::SignatureMismatch)));
        desk.nothing().await.unwrap();
    }
}

/// A process may need the trait, the client or the server alone: the others do not warn.
mod unused {
    #[quorate::service]
    trait Alone {
        async fn nothing(&self);
    }
}

#[tokio::test]
async fn a_method_with_a_deadline_of_its_own_uses_it() {
    #[service]
    pub(crate) trait Slow {
        #[deadline = "30ms"]
        async fn never(&self);
    }
    struct Stuck;
    impl Slow for Stuck {
        async fn never(&self) {
            std::future::pending().await
        }
    }
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let _serving = server.serve("slow", SlowServer::new(Stuck)).unwrap();
        let node = over.client(2).await;
        let slow = SlowClient::connect(&node, "slow", &address).await.unwrap();
        let error = soon("the deadline", slow.never()).await.unwrap_err();
        assert_eq!(error, CallError::DeadlinePassed { deadline: Duration::from_millis(30), sent: true });
        assert!(!error.is_retryable());
        let shorter = slow.with_deadline(Duration::from_millis(10));
        let error = soon("the deadline", shorter.never()).await.unwrap_err();
        assert_eq!(error, CallError::DeadlinePassed { deadline: Duration::from_millis(10), sent: true });
    }
}
