//! A whiteboard that calls everybody back who looks at it: objects are passed, returned, called and let go of.
//!
//! ```text
//! cargo run --example objects
//! ```
//! Prints who sees what, who puts the pen down, and last `the board holds nobody and nobody holds the board`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use quorate::rpc::{Objects, Remote};
use quorate::{Node, service};
use tokio::sync::mpsc;

#[service]
trait Board {
    /// From now on `watcher` sees every stroke; who puts the pen down looks away, too.
    async fn join(&self, name: String, watcher: Remote<WatcherClient>) -> Remote<PenClient>;
}

/// What a painter has: a reference is a right to draw under one's own name.
#[service]
trait Pen {
    /// Draws; returns how many have seen it.
    async fn draw(&self, shape: String) -> u32;
}

#[service]
trait Watcher {
    async fn drawn(&self, by: String, shape: String);
}

/// The board's process.
struct Wall {
    objects: Objects,
    watchers: Mutex<BTreeMap<String, Remote<WatcherClient>>>,
    put_down: mpsc::Sender<String>,
}

impl Wall {
    fn watchers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Remote<WatcherClient>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Desk(Arc<Wall>);

impl Board for Desk {
    async fn join(&self, name: String, watcher: Remote<WatcherClient>) -> Remote<PenClient> {
        self.0.watchers().insert(name.clone(), watcher);
        let pen = NamedPen { wall: Arc::clone(&self.0), name };
        self.0.objects.export(PenServer::new(pen)).expect("a handful of painters")
    }
}

struct NamedPen {
    wall: Arc<Wall>,
    name: String,
}

impl Pen for NamedPen {
    async fn draw(&self, shape: String) -> u32 {
        // A copy: nobody joins while everybody is being called.
        let watchers = self.wall.watchers().clone();
        let mut seen = 0;
        for (name, watcher) in watchers {
            match watcher.drawn(self.name.clone(), shape.clone()).await {
                Ok(()) => seen += 1,
                // Whoever went without a word is not called again.
                Err(error) if error.dangling().is_some() => drop(self.wall.watchers().remove(&name)),
                Err(error) => eprintln!("{name} did not see it: {error}"),
            }
        }
        seen
    }
}

impl Drop for NamedPen {
    /// Nobody holds the reference any more: its painter dropped it, or its process died and its lease ended.
    fn drop(&mut self) {
        self.wall.watchers().remove(&self.name);
        let _ = self.wall.put_down.try_send(self.name.clone());
    }
}

struct Eyes(&'static str);

impl Watcher for Eyes {
    async fn drawn(&self, by: String, shape: String) {
        println!("{} sees {by} draw a {shape}", self.0);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Node::builder().listen("tcp://127.0.0.1:0").start().await?;
    let (put_down, mut pens) = mpsc::channel(8);
    let wall = Arc::new(Wall { objects: Objects::on(&server)?, watchers: Mutex::default(), put_down });
    let _serving = server.serve("board", BoardServer::new(Desk(Arc::clone(&wall))))?;
    let address = &server.addresses()[0];

    // Ann listens nowhere: the board calls her back over her own connection.
    let ann = Node::builder().start().await?;
    let anns = Objects::on(&ann)?;
    let board = BoardClient::connect(&ann, "board", address).await?;
    // The pen is used before it has come: both calls travel at once.
    let pen = board.join_ahead("ann".into(), anns.export(WatcherServer::new(Eyes("ann")))?);
    println!("seen by {}", pen.draw("circle".into()).await?);
    let pen = pen.await?;

    let bob = Node::builder().start().await?;
    let bobs = Objects::on(&bob)?;
    let board = BoardClient::connect(&bob, "board", address).await?;
    let bobs_pen = board.join("bob".into(), bobs.export(WatcherServer::new(Eyes("bob")))?).await?;
    println!("seen by {}", bobs_pen.draw("square".into()).await?);

    drop(bobs_pen);
    println!("{} puts the pen down", pens.recv().await.ok_or("the board is there")?);
    println!("seen by {}", pen.draw("star".into()).await?);
    drop(pen);
    println!("{} puts the pen down", pens.recv().await.ok_or("the board is there")?);
    while wall.objects.stats().held + wall.objects.stats().exported + anns.stats().exported > 0 {
        tokio::task::yield_now().await;
    }
    println!("the board holds nobody and nobody holds the board");
    Ok(())
}
