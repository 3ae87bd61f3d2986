//! What a node tells a `tracing` subscriber: spans of listeners, dials and connections, events with the same field names
//! everywhere, and nothing for each message. And the spans of calls, which link over processes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quorate::Node;
use quorate::node::{Channel, ChannelHandler, Identity, Incarnation, Lane, NodeId, SendError};
use quorate::service;
use quorate_transports::sim::SimNetwork;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// A span or an event as it was told.
#[derive(Debug, Clone)]
struct Told {
    /// The name of a span, the message of an event.
    what: String,
    is_span: bool,
    level: Level,
    fields: BTreeMap<String, String>,
    /// The spans around an event, the innermost last.
    within: Vec<String>,
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

/// Keeps everything that is told by the library at this level and above.
#[derive(Clone)]
struct Listening {
    level: Level,
    told: Arc<Mutex<Vec<Told>>>,
    names: Arc<Mutex<BTreeMap<u64, String>>>,
    entered: Arc<Mutex<Vec<u64>>>,
    next: Arc<AtomicU64>,
}

impl Listening {
    fn to(level: Level) -> Self {
        let (told, names, entered) = Default::default();
        Self { level, told, names, entered, next: Arc::new(AtomicU64::new(1)) }
    }

    fn told(&self, what: &str) -> Vec<Told> {
        self.told.lock().unwrap().iter().filter(|told| told.what == what).cloned().collect()
    }
}

impl Subscriber for Listening {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("quorate") && *metadata.level() <= self.level
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut fields = Fields::default();
        span.record(&mut fields);
        let (what, level) = (span.metadata().name().to_owned(), *span.metadata().level());
        self.names.lock().unwrap().insert(number, what.clone());
        let told = Told { what, is_span: true, level, fields: fields.0, within: Vec::new() };
        self.told.lock().unwrap().push(told);
        Id::from_u64(number)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let names = self.names.lock().unwrap();
        let within = self.entered.lock().unwrap().iter().map(|id| names[id].clone()).collect();
        let what = fields.0.remove("message").unwrap_or_default();
        let level = *event.metadata().level();
        self.told.lock().unwrap().push(Told { what, is_span: false, level, fields: fields.0, within });
    }

    fn enter(&self, span: &Id) {
        self.entered.lock().unwrap().push(span.into_u64());
    }

    fn exit(&self, span: &Id) {
        let mut entered = self.entered.lock().unwrap();
        let at = entered.iter().rposition(|id| *id == span.into_u64()).expect("it was entered");
        entered.remove(at);
    }
}

/// Counts what comes.
#[derive(Default)]
struct Count(AtomicU64);

impl ChannelHandler for Count {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        self.0.fetch_add(frames.drain(..).count() as u64, Ordering::Relaxed);
        Poll::Ready(())
    }
}

async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it becomes so");
}

async fn node(network: &SimNetwork, id: u64, host: &str) -> Node {
    let node = Node::builder().id(id).incarnation(Incarnation(1)).transport(network.transport(host));
    node.listen(format!("sim://{host}:1")).start().await.unwrap()
}

const NEWS: Channel = Channel::named("test", "news");

/// Two nodes meet, talk, are cut off, meet again and part.
async fn story() -> u64 {
    let network = SimNetwork::new(1);
    let (here, there) = (node(&network, 1, "here").await, node(&network, 2, "there").await);
    let count = Arc::new(Count::default());
    let _open = there.open(NEWS, count.clone()).unwrap();
    here.connect(&"sim://nowhere:1".parse().unwrap()).await.unwrap_err();
    here.connect(&"sim://there:1".parse().unwrap()).await.unwrap();
    let mut sent = 0;
    loop {
        match here.send(NodeId(2), Lane::Bulk, NEWS, &[], vec![7; 10_000].into()) {
            Ok(()) => sent += 1,
            Err(SendError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    until(|| count.0.load(Ordering::Relaxed) == sent).await;
    network.reset_connections("here", "there");
    until(|| here.stats().breaks == 1).await;
    until(|| here.stats().connections == 2 && there.stats().peers == 1).await;
    here.shutdown(Duration::from_secs(10)).await;
    there.shutdown(Duration::from_secs(10)).await;
    sent
}

#[tokio::test(start_paused = true)]
async fn a_node_tells_the_life_of_its_connections_in_spans_and_events_with_equal_fields() {
    let listening = Listening::to(Level::TRACE);
    let guard = tracing::subscriber::set_default(listening.clone());
    story().await;
    drop(guard);

    let listeners = listening.told("listener");
    assert_eq!(listeners.len(), 2, "{listeners:?}");
    assert_eq!(listeners[0].fields["node"], "1#1");
    assert_eq!(listeners[0].fields["transport"], "sim");
    assert_eq!(listeners[0].fields["address"], "sim://here:1");
    assert_eq!(listening.told("listening").len(), 2);

    let failed = listening.told("dialling failed");
    assert_eq!(failed[0].fields["address"], "sim://nowhere:1");
    assert!(failed[0].within.contains(&"dial".to_owned()), "{failed:?}");

    // Two connections, each told by both sides.
    let connections = listening.told("connection");
    assert_eq!(connections.len(), 4, "{connections:?}");
    for connection in &connections {
        assert!(connection.is_span && connection.level == Level::INFO);
        let keys: Vec<_> = connection.fields.keys().map(String::as_str).collect();
        assert_eq!(keys, ["address", "is_dialled", "node", "number", "peer", "transport"]);
    }
    assert_eq!(connections.iter().filter(|told| told.fields["node"] == "1#1").count(), 2);
    for what in ["connection established", "connection ended"] {
        let told = listening.told(what);
        assert_eq!(told.len(), 4, "{told:?}");
        for event in &told {
            assert_eq!(event.within.last().map(String::as_str), Some("connection"), "{event:?}");
            assert!(event.fields.contains_key("node") && event.fields.contains_key("peer"));
        }
    }
    let reasons: Vec<_> =
        listening.told("connection ended").iter().map(|told| told.fields["reason"].clone()).collect();
    assert_eq!(
        reasons.iter().filter(|reason| reason.contains("closed by agreement")).count(),
        2,
        "{reasons:?}"
    );
    let again = listening.told("connected again");
    assert_eq!(again[0].fields["reconnects"], "1");
    let full = listening.told("lane full");
    assert_eq!((full[0].fields["lane"].as_str(), full[0].level), ("bulk", Level::TRACE));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_of_single_messages_at_the_levels_that_are_on_by_default() {
    let listening = Listening::to(Level::INFO);
    let guard = tracing::subscriber::set_default(listening.clone());
    let messages = story().await;
    drop(guard);
    let told = listening.told.lock().unwrap().len();
    assert!(messages > 300 && told < 60, "{told} for {messages} messages");
}

#[service]
trait Echo {
    async fn echo(&self, hops: u32) -> u32;
}

struct Relay(Option<EchoClient>);

impl Echo for Relay {
    async fn echo(&self, hops: u32) -> u32 {
        tokio::task::yield_now().await;
        tracing::debug!(target: "quorate::test", "in the handler");
        match &self.0 {
            Some(next) => next.echo(hops + 1).await.unwrap_or_default(),
            None => hops,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r11_every_call_has_a_span_on_both_sides_and_all_of_a_chain_are_one_trace() {
    let listening = Listening::to(Level::DEBUG);
    let guard = tracing::subscriber::set_default(listening.clone());
    let network = SimNetwork::new(1);
    let (near, far) = (node(&network, 1, "near").await, node(&network, 2, "far").await);
    let _far = far.serve("echo", EchoServer::new(Relay(None))).unwrap();
    let next = EchoClient::connect(&near, "echo", "sim://far:1").await.unwrap();
    let _near = near.serve("echo", EchoServer::new(Relay(Some(next)))).unwrap();
    // The first call within one node, the second by messages.
    let echo = EchoClient::connect_here(&near, "echo").await.unwrap();
    assert_eq!(echo.echo(0).await, Ok(1));
    drop(guard);

    let (calls, serves) = (listening.told("call"), listening.told("serve"));
    assert_eq!((calls.len(), serves.len()), (2, 2), "{calls:?} {serves:?}");
    for (call, serve) in calls.iter().zip(&serves) {
        assert_eq!((call.fields["service"].as_str(), call.fields["method"].as_str()), ("echo", "echo"));
        assert_eq!((serve.fields["service"].as_str(), serve.fields["method"].as_str()), ("echo", "echo"));
        assert_eq!(call.fields["trace_id"], calls[0].fields["trace_id"]);
        assert_eq!(serve.fields["trace_id"], calls[0].fields["trace_id"]);
        assert_eq!(serve.fields["parent_span_id"], call.fields["span_id"]);
        assert_ne!(serve.fields["span_id"], call.fields["span_id"]);
        assert_eq!(serve.fields["peer"], "1#1");
    }
    assert_eq!((calls[0].fields["peer"].as_str(), calls[1].fields["peer"].as_str()), ("1", "2"));
    for event in listening.told("in the handler") {
        assert_eq!(event.within.last().map(String::as_str), Some("serve"));
    }
    assert_eq!(listening.told("in the handler").len(), 2);
}
