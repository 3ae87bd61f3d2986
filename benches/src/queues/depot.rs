//! Messages for a queue of another process, counted where they are stored.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use quorate::journal::{Config, FileStorage};
use quorate::queue::{QueueManager, Queues};
use quorate::{Node, NodeId};

use super::{MESSAGE_BYTES, runtime, without_limits};
use crate::worker::Outcome;

/// The other process.
#[derive(Args)]
pub struct Depot {
    directory: PathBuf,
}

/// Says its address, and for each line that comes how many messages it has.
pub fn keep(depot: &Depot) -> Outcome<()> {
    let runtime = runtime()?;
    let (_node, _manager, queue) = runtime.block_on(async {
        let node = Node::builder().id(2).listen("tcp://127.0.0.1:0").start().await?;
        let queues = Queues::open(FileStorage::open(&depot.directory)?, Config::new(2))?;
        let queue = queues.queue_with("bench", without_limits()).await?;
        let manager = QueueManager::start(&node, &queues).await?;
        println!("{}", node.addresses().first().ok_or("it listens nowhere")?);
        Outcome::Ok((node, manager, queue))
    })?;
    for line in std::io::stdin().lines() {
        line?;
        println!("{}", queue.stats().messages);
    }
    Ok(())
}

/// How many messages a second came to be stored in the other process.
pub async fn transfer(directory: &Path, tasks: usize, time: Duration) -> Outcome<f64> {
    let mut other = Other::start(&directory.join("there"))?;
    let node = Node::builder().id(1).start().await?;
    node.add_address(NodeId(2), other.hear()?.parse()?);
    let queues = Queues::open(FileStorage::open(directory.join("here"))?, Config::new(1))?;
    let manager = QueueManager::start(&node, &queues).await?;
    let remote = manager.remote(NodeId(2), "bench").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let producers: Vec<_> = (0..tasks)
        .map(|_| {
            let (remote, stop) = (remote.clone(), stop.clone());
            tokio::spawn(async move {
                let payload = Bytes::from(vec![7; MESSAGE_BYTES]);
                while !stop.load(Ordering::Relaxed) {
                    remote.put(payload.clone()).await?;
                }
                Outcome::Ok(())
            })
        })
        .collect();
    // The first ones meet a connection that is still to be made.
    while other.count()? == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (start, before) = (Instant::now(), other.count()?);
    tokio::time::sleep(time).await;
    let rate = (other.count()? - before) as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for producer in producers {
        producer.await??;
    }
    manager.stop().await;
    queues.close().await;
    Ok(rate)
}

struct Other {
    child: Child,
    orders: ChildStdin,
    said: std::io::Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(directory: &Path) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("depot")
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().ok_or("no input")?;
        let said = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        Ok(Self { child, orders, said })
    }

    fn hear(&mut self) -> Outcome<String> {
        Ok(self.said.next().ok_or("the other process has ended")??)
    }

    fn count(&mut self) -> Outcome<u64> {
        self.orders.write_all(b"?\n")?;
        Ok(self.hear()?.parse()?)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
