//! A caller is another process and is killed during a long call: what it left behind is ended (catalogue R9).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate::node::Node;
use quorate::rpc::{BindingLog, Orphans, ServeOptions, Serving};
use quorate::service;
use quorate_journal::{Config, FileStorage, Journal};
use tokio::sync::Notify;

use crate::processes::{READY, place, start};
use crate::support::soon;

#[service]
pub(crate) trait Quarry {
    /// Works for ever, or until nobody waits for it.
    async fn dig(&self);
}

#[derive(Default)]
struct Inside {
    begun: AtomicU32,
    ended: AtomicU32,
    changed: Notify,
}

struct Pit(Arc<Inside>);

struct Digging(Arc<Inside>);

impl Drop for Digging {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Quarry for Pit {
    async fn dig(&self) {
        let _digging = Digging(Arc::clone(&self.0));
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
        std::future::pending().await
    }
}

impl Inside {
    async fn until(&self, what: &str, begun: u32, ended: u32) {
        soon(what, async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let now = (self.begun.load(Ordering::SeqCst), self.ended.load(Ordering::SeqCst));
                if now == (begun, ended) {
                    return;
                }
                assert!(now.1 <= ended, "more was ended than orphans: {now:?}");
                changed.await;
            }
        })
        .await;
    }
}

/// The program of the caller. Does nothing unless a test below starts it.
#[tokio::test]
async fn caller_that_is_killed() {
    let Some((directory, address)) = place() else { return };
    let node = Node::builder().id(7).directory(directory.join("node")).start().await.unwrap();
    let storage = FileStorage::open(directory.join("bindings")).unwrap();
    let (journal, _) = Journal::open(storage, Config::new(7)).unwrap();
    let log = BindingLog::open(journal).await.unwrap();
    if directory.join(EXTERMINATES).exists() {
        for extermination in log.exterminate(&node, Duration::from_secs(20)).await {
            println!("{READY}{} {}", extermination.service, extermination.is_done);
        }
    } else {
        let _noted = log.note("quarry", &address.parse().unwrap()).await.unwrap();
        let quarry = QuarryClient::connect(&node, "quarry", &address).await.unwrap();
        println!("{READY}{address}");
        let _ = quarry.with_deadline(Duration::from_secs(3_600)).dig().await;
    }
    std::future::pending::<()>().await;
}

async fn serve(orphans: Orphans) -> (Node, String, Serving, Arc<Inside>) {
    let server = Node::builder().id(1).listen("tcp://127.0.0.1:0").start().await.unwrap();
    let inside = Arc::new(Inside::default());
    let mut options = ServeOptions::default();
    options.orphans = orphans;
    let quarry = QuarryServer::new(Pit(Arc::clone(&inside)));
    let serving = server.serve_with("quarry", quarry, options).unwrap();
    let address = server.addresses()[0].to_string();
    (server, address, serving, inside)
}

async fn caller(directory: &Path, address: &str) -> tokio::process::Child {
    start(CALLER, directory, address).await.0
}

#[tokio::test]
async fn r09_reincarnation_a_killed_callers_next_life_ends_what_it_left_behind() {
    let (_server, address, serving, inside) = serve(Orphans::Reincarnation).await;
    let directory = tempfile::tempdir().unwrap();
    let mut first = caller(directory.path(), &address).await;
    inside.until("the work", 1, 0).await;
    first.kill().await.unwrap();
    let mut second = caller(directory.path(), &address).await;
    inside.until("the orphan's end", 2, 1).await;
    assert_eq!(serving.stats().requests.orphans, 1);
    second.kill().await.unwrap();
}

#[tokio::test]
async fn r09_extermination_a_killed_caller_asks_for_the_end_of_what_its_log_says_it_left_behind() {
    let (_server, address, serving, inside) = serve(Orphans::Reincarnation).await;
    let directory = tempfile::tempdir().unwrap();
    let mut first = caller(directory.path(), &address).await;
    inside.until("the work", 1, 0).await;
    first.kill().await.unwrap();
    // Its next life has nothing to call there: only the log knows where the first one was.
    std::fs::write(directory.path().join(EXTERMINATES), "").unwrap();
    let (mut second, told) = start(CALLER, directory.path(), &address).await;
    assert_eq!(told, "quarry true");
    inside.until("the orphan's end", 1, 1).await;
    assert_eq!(serving.stats().requests.orphans, 1);
    second.kill().await.unwrap();
}

/// A caller is killed and does not come back; another one lives and waits.
async fn a_caller_is_killed_beside_one_that_lives(orphans: Orphans, kills: u32) {
    let (_server, address, serving, inside) = serve(orphans).await;
    let node = Node::builder().id(8).start().await.unwrap();
    let quarry = QuarryClient::connect(&node, "quarry", &address).await.unwrap();
    let living = tokio::spawn(async move { quarry.with_deadline(Duration::from_secs(3_600)).dig().await });
    inside.until("the work of the living", 1, 0).await;
    // Several times, so that the living one is looked at, too; each a later life of the same node, which comes when the
    // orphan of the one before has ended.
    let directory = tempfile::tempdir().unwrap();
    for killed in 1..=kills {
        let mut child = caller(directory.path(), &address).await;
        inside.until("the work", 1 + killed, killed - 1).await;
        child.kill().await.unwrap();
        inside.until("the orphan's end", 1 + killed, killed).await;
    }
    let stats = serving.stats();
    assert_eq!((stats.requests.orphans, stats.executing), (u64::from(kills), 1), "{stats:?}");
    assert!(!living.is_finished());
}

#[tokio::test]
async fn r09_gentle_reincarnation_a_killed_caller_does_not_answer_and_loses_what_it_left_behind() {
    let grace = Duration::from_millis(300);
    a_caller_is_killed_beside_one_that_lives(Orphans::Gentle { grace }, 3).await;
}

#[tokio::test]
async fn r09_expiration_a_killed_caller_renews_nothing_and_a_living_one_does() {
    // A living caller says so three times as often, and must not be held up for longer on a busy machine.
    let quantum = Duration::from_secs(3);
    a_caller_is_killed_beside_one_that_lives(Orphans::Expiration { quantum }, 2).await;
}

const CALLER: &str = "orphans::caller_that_is_killed";
/// A file that says that the caller's next life does nothing but exterminate.
const EXTERMINATES: &str = "exterminates";
