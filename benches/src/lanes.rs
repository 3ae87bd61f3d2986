//! How long does an urgent message wait while a transfer fills the same connection?
//!
//! Set-up      two nodes in two threads with runtimes of their own, over each transport and loopback. The client asks one urgent
//!             64 B question after the other and the server answers on the urgent lane; first on an idle connection,
//!             then while the client keeps the bulk lane full until the whole transfer has gone.
//! Blind spot  loopback: the transfer is bound by the processor, which the urgent messages need too.

use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use quorate::node::{Channel, ChannelHandler, Identity, Lane, Node, NodeBuilder, NodeId, SendError};
use quorate_transports::Certificates;
use quorate_transports::mem::Mem;
use quorate_transports::quic::Quic;
use quorate_transports::tls::Tls;
use quorate_transports::udp::Udp;
use quorate_transports::unix::Unix;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::Notify;

use crate::Settings;
use crate::worker::Outcome;

const QUESTIONS: Channel = Channel::named("bench", "questions");
const ANSWERS: Channel = Channel::named("bench", "answers");
const TRANSFER: Channel = Channel::named("bench", "transfer");
const SERVER: u64 = 1;
const PIECE_BYTES: usize = 1 << 20;

pub fn run(settings: &Settings) -> Outcome<()> {
    let authority = Authority::new()?;
    let (ours, theirs) = (authority.certificates()?, authority.certificates()?);
    let folder = tempfile::tempdir()?;
    let mem = Mem::new();
    let local = format!("unix://{}/*", folder.path().display());
    let media: [(&str, Make); 6] = [
        ("mem://", Box::new(move |node, _| node.transport(mem.clone()))),
        (&local, Box::new(|node, _| node.transport(Unix::new()))),
        ("tcp://127.0.0.1:0", Box::new(|node, _| node)),
        ("tls://127.0.0.1:0", {
            let both = [ours.clone(), theirs.clone()];
            Box::new(move |node, at| node.transport(Tls::new(both[at].clone())))
        }),
        ("quic://127.0.0.1:0", {
            let both = [ours, theirs];
            Box::new(move |node, at| node.transport(Quic::new(both[at].clone())))
        }),
        ("udp://127.0.0.1:0", Box::new(|node, _| node.transport(Udp::new()))),
    ];
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>9}",
        "urgent round trip, 64 B", "turns", "p50 us", "p99 us", "p99.9 us"
    );
    for (listen, make) in media {
        measure(settings, listen, make.into())?;
    }
    Ok(())
}

/// Gives a node its transport; the server is 0, the client 1.
type Make = Box<dyn Fn(NodeBuilder, usize) -> NodeBuilder + Send + Sync>;

fn measure(
    settings: &Settings,
    listen: &str,
    make: Arc<dyn Fn(NodeBuilder, usize) -> NodeBuilder + Send + Sync>,
) -> Outcome<()> {
    let (bytes, turns) = if settings.quick { (256 << 20, 2_000) } else { (4 << 30, 20_000) };
    let (place, told) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (medium, _) = listen.split_once(':').ok_or("no scheme")?;
    let (listen, serving) = (listen.to_owned(), make.clone());
    let medium = medium.to_owned();
    let server = std::thread::spawn(move || -> Outcome<()> {
        runtime()?.block_on(async {
            let node = serving(Node::builder().id(SERVER).listen(listen), 0).start().await?;
            let _questions = node.open(QUESTIONS, Arc::new(Answering(node.clone())))?;
            let _transfer = node.open(TRANSFER, Arc::new(Taking))?;
            place.send(node.addresses()[0].clone())?;
            // Either way the client is done.
            let _ = stopped.await;
            node.shutdown(Duration::from_secs(5)).await;
            Ok(())
        })
    });
    let address = told.recv()?;
    runtime()?.block_on(async {
        let node = make(Node::builder().id(2), 1).start().await?;
        let heard = Arc::new(Heard::default());
        let _answers = node.open(ANSWERS, heard.clone())?;
        node.connect(&address).await?;
        let idle = ask(&node, &heard, |turn| turn < turns).await?;
        let transfer = tokio::spawn(fill(node.clone(), bytes));
        let start = Instant::now();
        let busy = ask(&node, &heard, |_| !transfer.is_finished()).await?;
        transfer.await??;
        let rate = bytes as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64();
        for (name, times) in [("idle", idle), ("behind a bulk transfer", busy)] {
            let micros = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
            let (p50, p99, p999) = (micros(0.5), micros(0.99), micros(0.999));
            let name = format!("{medium}, {name}");
            println!("{name:<44} {:>9} {p50:>9.1} {p99:>9.1} {p999:>9.1}", times.len());
        }
        println!("{medium}, the transfer: {} MiB at {rate:.0} MiB/s", bytes >> 20);
        node.shutdown(Duration::from_secs(5)).await;
        Outcome::Ok(())
    })?;
    // The server may have gone already.
    let _ = stop.send(());
    server.join().map_err(|_| "the server panicked")?
}

/// Signs both sides' certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Outcome<Self> {
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    fn certificates(&self) -> Outcome<Certificates> {
        let key = KeyPair::generate()?;
        let chain = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &self.0)?;
        Ok(Certificates::from_pem(&self.0.pem(), &chain.pem(), &key.serialize_pem())?)
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn ask(node: &Node, heard: &Heard, goes_on: impl Fn(u64) -> bool) -> Outcome<Histogram<u64>> {
    let mut times = Histogram::new(3)?;
    let mut turn = 0;
    while goes_on(turn) {
        let start = Instant::now();
        node.send(NodeId(SERVER), Lane::Urgent, QUESTIONS, &[&[7; 64]], Bytes::new())?;
        heard.next.notified().await;
        times.record(u64::try_from(start.elapsed().as_nanos())?)?;
        turn += 1;
    }
    Ok(times)
}

async fn fill(node: Node, bytes: usize) -> Outcome<()> {
    let piece = Bytes::from(vec![7; PIECE_BYTES]);
    for _ in 0..bytes / PIECE_BYTES {
        loop {
            match node.send(NodeId(SERVER), Lane::Bulk, TRANSFER, &[], piece.clone()) {
                Ok(()) => break,
                Err(SendError::Full { .. }) => node.ready(NodeId(SERVER), Lane::Bulk).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

struct Answering(Node);

impl ChannelHandler for Answering {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        for frame in frames.drain(..) {
            // A client that has gone needs no answer.
            let _ = self.0.send(from.node, Lane::Urgent, ANSWERS, &[&frame], Bytes::new());
        }
        Poll::Ready(())
    }
}

#[derive(Default)]
struct Heard {
    next: Notify,
}

impl ChannelHandler for Heard {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        frames.clear();
        self.next.notify_one();
        Poll::Ready(())
    }
}

struct Taking;

impl ChannelHandler for Taking {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, _: &mut Vec<Bytes>) -> Poll<()> {
        Poll::Ready(())
    }
}
