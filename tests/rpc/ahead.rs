//! Calls on references that have not come yet: a chain in one round trip, and what its failures say (catalogue R10).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate::codec::{Codec, Json, Postcard};
use quorate::node::Node;
use quorate::rpc::{CallError, EarlierFailure, NotSent, Objects, Refusal, Remote, RpcError, Serving};
use quorate::service;
use tests::until;
use tokio::sync::Semaphore;

use crate::support::{Over, soon};

/// Folders in folders.
#[service]
pub(crate) trait Folder {
    /// The folder of this name in this one.
    async fn open(&self, name: String) -> Result<Remote<FolderClient>, NoSuchFolder>;
    /// The same, of one that cannot fail.
    async fn root(&self) -> Remote<FolderClient>;
    async fn path(&self) -> String;
    /// Gives back what it is given.
    async fn same(&self, folder: Remote<FolderClient>) -> Remote<FolderClient>;
    #[one_way]
    async fn visit(&self);
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct NoSuchFolder(String);

struct Tree {
    path: String,
    disk: Arc<Disk>,
}

/// What all folders share.
struct Disk {
    objects: Objects,
    /// A folder is opened when there is a permit.
    gate: Semaphore,
    living: AtomicU64,
    visits: AtomicU64,
}

impl Tree {
    fn new(path: String, disk: &Arc<Disk>) -> Self {
        disk.living.fetch_add(1, Ordering::SeqCst);
        Self { path, disk: Arc::clone(disk) }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.disk.living.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Folder for Tree {
    async fn open(&self, name: String) -> Result<Remote<FolderClient>, NoSuchFolder> {
        self.disk.gate.acquire().await.unwrap().forget();
        if name == "missing" {
            return Err(NoSuchFolder(name));
        }
        assert_ne!(name, "broken", "this one panics");
        let folder = Self::new(format!("{}/{name}", self.path), &self.disk);
        Ok(self.disk.objects.export(FolderServer::new(folder)).unwrap())
    }
    async fn root(&self) -> Remote<FolderClient> {
        self.disk.objects.export(FolderServer::new(Self::new(String::new(), &self.disk))).unwrap()
    }
    async fn path(&self) -> String {
        self.path.clone()
    }
    async fn same(&self, folder: Remote<FolderClient>) -> Remote<FolderClient> {
        folder
    }
    async fn visit(&self) {
        self.disk.visits.fetch_add(1, Ordering::SeqCst);
    }
}

struct Story {
    disk: Arc<Disk>,
    _serving: Serving,
    objects: Objects,
    _node: Node,
}

async fn story<C: Codec>(over: &Over) -> (Story, FolderClient<C>) {
    let (node, address) = over.server(1).await;
    let disk = Arc::new(Disk {
        objects: Objects::on(&node).unwrap(),
        gate: Semaphore::new(0),
        living: AtomicU64::new(0),
        visits: AtomicU64::new(0),
    });
    let root = FolderServer::new(Tree::new(String::new(), &disk)).with_codec::<C>();
    let serving = node.serve("files", root).unwrap();
    let client = over.client(2).await;
    let objects = Objects::on(&client).unwrap();
    let files = FolderClient::connect_with(&client, "files", &*address, Default::default()).await.unwrap();
    (Story { disk, _serving: serving, objects, _node: node }, files)
}

#[tokio::test]
async fn r10_a_chain_of_calls_leaves_before_the_first_of_them_is_answered() {
    for over in Over::all() {
        let (story, files) = story::<Postcard>(&over).await;
        let disk = &story.disk;
        let a = files.open_ahead("a".into());
        let b = a.open_ahead("b".into());
        let c = b.open_ahead("c".into());
        c.visit().await.unwrap();
        let path = c.path_start();
        // All of them are there, and none has been answered.
        until(|| disk.objects.calls().executing == 4).await;
        assert_eq!(disk.living.load(Ordering::SeqCst), 1);
        disk.gate.add_permits(3);
        assert_eq!(soon("the path", path).await, Ok("/a/b/c".to_owned()));
        let c = soon("the folder", c).await.unwrap();
        assert_eq!(c.path().await, Ok("/a/b/c".to_owned()));
        assert_eq!(soon("the middle", b).await.unwrap().path().await, Ok("/a/b".to_owned()));
        until(|| disk.visits.load(Ordering::SeqCst) == 1).await;
        // What was made on the way goes with the promises, and the rest with its references.
        drop(a);
        until(|| disk.living.load(Ordering::SeqCst) == 2).await;
        drop(c);
        until(|| disk.living.load(Ordering::SeqCst) == 1).await;
        assert_eq!(story.objects.stats().held, 0);
    }
}

#[tokio::test]
async fn r10_calls_ahead_of_a_call_that_fails_are_not_executed_and_say_which_one_it_was() {
    let over = Over::Tcp;
    let (story, files) = story::<Json>(&over).await;
    let disk = &story.disk;
    disk.gate.add_permits(100);
    let a = files.open_ahead("a".into());
    let missing = a.open_ahead("missing".into());
    let below = missing.open_ahead("b".into());
    let failed =
        |position, why| CallError::EarlierFailed { service: "Folder", method: "open", position, why };
    let error = failed(2, EarlierFailure::Application);
    assert_eq!(soon("the call", below.path()).await, Err(error.clone()));
    assert_eq!(soon("the deferred call", below.path_start()).await, Err(error.clone()));
    assert_eq!(soon("what depends", below).await, Err(RpcError::Call(error.clone())));
    assert!(error.is_not_executed() && !error.is_retryable());
    assert_eq!(
        error.to_string(),
        "not executed: Folder::open, call 2 of the chain, failed: the service answered with an error"
    );
    // Whoever made the call has what the service said.
    let said = soon("the failure", missing).await.unwrap_err();
    assert_eq!(said, RpcError::Application(NoSuchFolder("missing".into())));
    assert_eq!(a.path().await, Ok("/a".to_owned()));

    // It panics, and nobody knows how far it came.
    let broken = files.open_ahead("broken".into());
    let error = soon("the call", broken.path()).await.unwrap_err();
    let CallError::EarlierFailed { position: 1, why: EarlierFailure::Call(why), .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(*why, CallError::MaybeExecuted(_)));
    drop((a, broken));
    until(|| disk.living.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn r10_what_is_called_ahead_and_given_up_is_cancelled_and_leaves_nothing() {
    let over = Over::Tcp;
    let (story, files) = story::<Postcard>(&over).await;
    let disk = &story.disk;
    let a = files.open_ahead("a".into());
    let b = a.open_ahead("b".into());
    let path = b.path_start();
    until(|| disk.objects.calls().executing == 2).await;
    drop((a, b));
    // The deferred call keeps what it depends on.
    disk.gate.add_permits(2);
    assert_eq!(soon("the path", path).await, Ok("/a/b".to_owned()));
    until(|| disk.living.load(Ordering::SeqCst) == 1).await;

    let a = files.open_ahead("a".into());
    let b = a.open_ahead("b".into());
    until(|| disk.objects.calls().executing == 1).await;
    drop((a, b));
    until(|| disk.objects.calls().executing == 0).await;
    until(|| disk.objects.stats().exported == 0).await;
}

#[tokio::test]
async fn r10_calls_ahead_need_objects_and_an_object_of_the_node_that_was_asked() {
    let over = Over::Tcp;
    let (story, files) = story::<Postcard>(&over).await;
    // The reference that comes back is one of the caller's own.
    let other = Disk {
        objects: story.objects,
        gate: Semaphore::new(0),
        living: AtomicU64::new(0),
        visits: AtomicU64::new(0),
    };
    let other = Arc::new(other);
    let mine = other.objects.export(FolderServer::new(Tree::new("mine".into(), &other))).unwrap();
    let same = files.same_ahead(mine.clone());
    let elsewhere = CallError::NotExecuted(Refusal::ObjectElsewhere);
    assert_eq!(soon("the call", same.path()).await, Err(elsewhere));
    let same = soon("the reference", same).await.unwrap();
    assert_eq!(same, mine);
    assert_eq!(same.path().await, Ok("mine".to_owned()));

    let (node, address) = over.server(3).await;
    let disk = Disk {
        objects: Objects::on(&node).unwrap(),
        gate: Semaphore::new(0),
        living: AtomicU64::new(0),
        visits: AtomicU64::new(0),
    };
    let disk = Arc::new(disk);
    let _serving = node.serve("files", FolderServer::new(Tree::new(String::new(), &disk))).unwrap();
    let closed = over.client(4).await;
    let files = FolderClient::connect(&closed, "files", &address).await.unwrap();
    let error = soon("the reference", files.root_ahead()).await.unwrap_err();
    assert_eq!(error, CallError::NotSent(NotSent::NoObjects));
}
