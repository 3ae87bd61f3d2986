//! What users expect of calls beside their answers: metadata, traces, credentials, compression, repetitions that are
//! bounded, calls beside slow ones (catalogue R11).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate::node::{Credentials, Node};
use quorate::rpc::{
    Budget, CallError, ClientOptions, Compression, Hedge, Key, Metadata, NotSent, Refusal, Retry,
    ServeOptions, TraceContext, caller,
};
use quorate::service;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::support::{Over, soon};

const TENANT: Key<String> = Key::propagating("tenant");
const SECRET: Key<u64> = Key::new("secret");

/// What a handler knows of its caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    node: u64,
    tenant: Option<String>,
    secret: Option<u64>,
    trace: String,
    has_deadline: bool,
    has_credentials: bool,
}

#[service]
trait Clerk {
    async fn know(&self) -> Known;
    /// What the next one knows.
    async fn know_next(&self) -> Result<(String, Known), String>;
    async fn echo(&self, text: String) -> String;
    /// The bytes themselves, and how often the method was called.
    async fn bytes(&self, bytes: Bytes) -> Bytes;
    #[one_way]
    async fn leave(&self);
    /// Waits for a permit of the test's.
    #[idempotent]
    async fn wait(&self) -> u64;
    /// The same, but not to be made twice.
    async fn wait_once(&self) -> u64;
}

struct Desk {
    next: Option<ClerkClient>,
    begun: AtomicU64,
    permits: Semaphore,
    left: tokio::sync::mpsc::Sender<Known>,
}

fn known() -> Known {
    let caller = caller().expect("a handler asks");
    Known {
        node: caller.node.node.0,
        tenant: caller.metadata().value(&TENANT).unwrap(),
        secret: caller.metadata().value(&SECRET).unwrap(),
        trace: caller.trace().to_string(),
        has_deadline: caller.deadline().is_some(),
        has_credentials: caller.credentials().is_some(),
    }
}

impl Clerk for Desk {
    async fn know(&self) -> Known {
        let at_once = known();
        tokio::task::yield_now().await;
        assert_eq!(known(), at_once, "and later the same");
        at_once
    }
    async fn know_next(&self) -> Result<(String, Known), String> {
        let next = self.next.as_ref().ok_or("nobody stands behind")?;
        let mine = known().trace;
        next.know().await.map(|theirs| (mine, theirs)).map_err(|error| error.to_string())
    }
    async fn echo(&self, text: String) -> String {
        text
    }
    async fn bytes(&self, bytes: Bytes) -> Bytes {
        bytes
    }
    async fn leave(&self) {
        let _ = self.left.send(known()).await;
    }
    async fn wait(&self) -> u64 {
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.expect("it stays open").forget();
        number
    }
    async fn wait_once(&self) -> u64 {
        self.wait().await
    }
}

fn desk(next: Option<ClerkClient>) -> (Arc<Desk>, tokio::sync::mpsc::Receiver<Known>) {
    let (left, leaving) = tokio::sync::mpsc::channel(16);
    let desk = Desk { next, begun: AtomicU64::new(0), permits: Semaphore::new(0), left };
    (Arc::new(desk), leaving)
}

async fn connect(node: &Node, address: &str, change: impl FnOnce(&mut ClientOptions)) -> ClerkClient {
    let mut options = ClientOptions::default();
    change(&mut options);
    ClerkClient::connect_with(node, "clerk", address, options).await.unwrap()
}

#[tokio::test]
async fn r11_metadata_and_traces_travel_with_calls_and_go_on_where_they_are_asked_to() {
    for over in Over::all() {
        let (far, far_address) = over.server(1).await;
        let _far = far.serve("clerk", ClerkServer::shared(desk(None).0)).unwrap();
        let (near, near_address) = over.server(2).await;
        let next = connect(&near, &far_address, |_| {}).await;
        let (near_desk, mut left) = desk(Some(next));
        let _near = near.serve("clerk", ClerkServer::shared(near_desk)).unwrap();
        let node = over.client(3).await;
        // By messages from another node, and without any from the same one.
        let apart = connect(&node, &near_address, |_| {}).await;
        let here = ClerkClient::connect_here(&near, "clerk").await.unwrap();
        for (clerk, id) in [(apart, 3), (here, 2)] {
            let plain = soon("an answer", clerk.know()).await.unwrap();
            let trace: TraceContext = plain.trace.parse().unwrap();
            assert!(trace.is_sampled());
            assert_eq!(
                (plain.node, plain.tenant, plain.secret, plain.has_deadline),
                (id, None, None, true),
                "nothing was said"
            );
            let parent = TraceContext::root();
            let said = Metadata::new().with(&TENANT, "acme").unwrap().with(&SECRET, &7).unwrap();
            let clerk = clerk.with_metadata(said.with_trace(parent));
            let told = soon("an answer", clerk.know()).await.unwrap();
            assert_eq!((told.tenant.as_deref(), told.secret), (Some("acme"), Some(7)));
            let (mine, theirs) = soon("an answer", clerk.know_next()).await.unwrap();
            assert_eq!((theirs.node, theirs.tenant.as_deref(), theirs.secret), (2, Some("acme"), None));
            // One trace, a span for each.
            let (mine, theirs): (TraceContext, TraceContext) =
                (mine.parse().unwrap(), theirs.trace.parse().unwrap());
            let told: TraceContext = told.trace.parse().unwrap();
            for span in [mine, theirs, told] {
                assert_eq!(span.trace_id(), parent.trace_id());
                assert_ne!(span.span_id(), parent.span_id());
            }
            assert_ne!(mine.span_id(), theirs.span_id());
            clerk.leave().await.unwrap();
            let left = soon("the one-way call", left.recv()).await.unwrap();
            assert_eq!((left.tenant.as_deref(), left.has_deadline), (Some("acme"), false));
        }
        assert_eq!(caller(), None);
    }
}

#[tokio::test]
async fn r11_what_is_said_and_what_goes_on_are_together_bounded() {
    const BULK: Key<String> = Key::propagating("bulk");
    const MORE: Key<String> = Key::new("more");
    let over = Over::Tcp;
    let (far, far_address) = over.server(1).await;
    let _far = far.serve("clerk", ClerkServer::shared(desk(None).0)).unwrap();
    let (near, near_address) = over.server(2).await;
    let large = "x".repeat(5_000);
    let said = |key| Metadata::new().with(key, large.as_str()).unwrap();
    let next = connect(&near, &far_address, |_| {}).await.with_metadata(said(&MORE));
    let _near = near.serve("clerk", ClerkServer::shared(desk(Some(next)).0)).unwrap();
    let clerk = connect(&over.client(3).await, &near_address, |_| {}).await;
    let error = clerk.with_metadata(said(&BULK)).know_next().await.unwrap_err().to_string();
    assert!(error.contains("metadata exceed the limit"), "{error}");
    assert!(clerk.with_metadata(said(&MORE)).know_next().await.is_ok());
}

#[service]
trait Guard {
    async fn who(&self) -> String;
}

struct Porter;

impl Guard for Porter {
    async fn who(&self) -> String {
        tokio::task::yield_now().await;
        match caller().unwrap().credentials() {
            Some(Credentials::Process(process)) => {
                format!("process {:?} of user {}", process.process, process.user)
            }
            Some(Credentials::Certificate(certificate)) => {
                format!("certificate of {} bytes", certificate.der().len())
            }
            other => format!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn r11_a_handler_sees_what_the_medium_vouches_for() {
    for net in tests::nets() {
        let over = Over::Net(net.clone());
        let (server, address) = over.server(1).await;
        let _serving = server.serve("guard", GuardServer::new(Porter)).unwrap();
        let node = over.client(2).await;
        let guard = GuardClient::connect(&node, "guard", &address).await.unwrap();
        let who = soon("an answer", guard.who()).await.unwrap();
        match address.split_once("://").unwrap().0 {
            "unix" => assert!(who.starts_with(&format!("process Some({})", std::process::id())), "{who}"),
            "tls" | "quic" => assert!(who.starts_with("certificate of "), "{who}"),
            _ => assert_eq!(who, "None"),
        }
        let here = GuardClient::connect_here(&server, "guard").await.unwrap();
        assert_eq!(here.who().await.unwrap(), "None", "the process itself");
    }
}

#[tokio::test]
async fn r11_calls_are_compressed_in_either_direction_when_somebody_asks_for_it() {
    let text = "the same again and again, ".repeat(4_000);
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let mut options = ServeOptions::default();
        options.compression = Compression::Lz4 { above_bytes: 512 };
        let _packing = server.serve_with("packing", ClerkServer::shared(desk(None).0), options).unwrap();
        let _plain = server.serve("plain", ClerkServer::shared(desk(None).0)).unwrap();
        let node = over.client(2).await;
        let sent = || {
            let stats = server.peer_stats(node.identity().node).unwrap().connection.unwrap();
            (stats.bytes_received, stats.bytes_sent)
        };
        for (service, packs) in [("plain", false), ("plain", true), ("packing", false), ("packing", true)] {
            let mut options = ClientOptions::default();
            if packs {
                options.compression = Compression::Lz4 { above_bytes: 512 };
            }
            let clerk: ClerkClient =
                ClerkClient::connect_with(&node, service, address.as_str(), options).await.unwrap();
            let before = sent();
            assert_eq!(soon("an echo", clerk.echo(text.clone())).await.unwrap(), text);
            let bytes = Bytes::from(text.clone());
            assert_eq!(soon("an echo", clerk.bytes(bytes.clone())).await.unwrap(), bytes);
            assert_eq!(clerk.echo("short".into()).await.unwrap(), "short");
            let after = sent();
            let whole = 2 * text.len() as u64;
            let (there, back) = (after.0 - before.0, after.1 - before.1);
            assert_eq!(there < whole / 10, packs, "{there} bytes there");
            assert_eq!(back < whole / 10, service == "packing", "{back} bytes back");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r11_what_was_not_executed_is_tried_again_within_a_budget_and_the_deadline() {
    let over = Over::Mem(quorate_transports::mem::Mem::new());
    let (server, address) = over.server(1).await;
    let (desk, _left) = desk(None);
    let mut serve = ServeOptions::default();
    serve.executing_max = 1;
    let _serving = server.serve_with("clerk", ClerkServer::shared(Arc::clone(&desk)), serve).unwrap();
    let node = over.client(2).await;
    let clerk = connect(&node, &address, |options| {
        let mut retry = Retry::default();
        retry.tries_max = 5;
        options.retry = Some(retry);
        let mut budget = Budget::default();
        (budget.percent, budget.reserve) = (0, 6);
        options.budget = budget;
    })
    .await;
    // One takes the only place.
    let busy = clerk.wait_once_start();
    while desk.begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let overloaded = Err(CallError::NotExecuted(Refusal::Overloaded));
    assert_eq!(clerk.echo("a".into()).await, overloaded);
    assert_eq!((clerk.server().retry_stats().retried, clerk.server().retry_stats().refused), (4, 0));
    // The place gets free while the second one waits for its turn.
    let freeing = async {
        while clerk.server().retry_stats().retried < 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        desk.permits.add_permits(1);
    };
    let (again, ()) = tokio::join!(clerk.echo("b".into()), freeing);
    assert_eq!(again, Ok("b".into()));
    assert_eq!(busy.await, Ok(0));
    assert_eq!(clerk.server().retry_stats().retried, 5);

    let _busy = clerk.wait_once_start();
    while desk.begun.load(Ordering::SeqCst) == 1 {
        tokio::task::yield_now().await;
    }
    // A deadline that the first pause does not fit into.
    let hurried = clerk.with_deadline(Duration::from_millis(4));
    assert_eq!(hurried.echo("c".into()).await, overloaded);
    assert_eq!(clerk.server().retry_stats().retried, 5);
    // One is left of the budget.
    assert_eq!(clerk.echo("d".into()).await, overloaded);
    assert_eq!((clerk.server().retry_stats().retried, clerk.server().retry_stats().refused), (6, 1));
    // What cannot succeed is not tried again.
    let vast = "x".repeat(64 << 20);
    let error = clerk.echo(vast).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(NotSent::TooLarge { .. })), "{error:?}");
    assert_eq!(clerk.server().retry_stats().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn r11_an_idempotent_call_that_takes_long_is_made_again_beside_and_the_first_answer_counts() {
    let over = Over::Mem(quorate_transports::mem::Mem::new());
    let (server, address) = over.server(1).await;
    let (desk, _left) = desk(None);
    let serving = server.serve("clerk", ClerkServer::shared(Arc::clone(&desk))).unwrap();
    let node = over.client(2).await;
    let clerk = connect(&node, &address, |options| {
        let mut hedge = Hedge::default();
        (hedge.after, hedge.extra_max) = (Duration::from_millis(50), 2);
        options.hedge = Some(hedge);
    })
    .await;
    let patient = clerk.clone();
    let call = tokio::spawn(async move { patient.wait().await });
    // Three in all, and no more, however long it takes.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(desk.begun.load(Ordering::SeqCst), 3);
    desk.permits.add_permits(1);
    assert_eq!(soon("one of them", call).await.unwrap(), Ok(0), "who waits longest gets the permit");
    assert_eq!(clerk.server().retry_stats().hedged, 2);
    while serving.stats().executing > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(serving.stats().requests.aborted, 2, "the others were cancelled");
    // What is not idempotent is made once.
    let call = tokio::spawn(async move { clerk.wait_once().await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(desk.begun.load(Ordering::SeqCst), 4);
    desk.permits.add_permits(1);
    assert_eq!(soon("its answer", call).await.unwrap(), Ok(3));
}
