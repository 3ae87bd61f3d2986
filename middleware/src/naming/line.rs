//! The way of a handle to the directory: one replica at a time, the next one when it does not answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::{NameError, NamesError};
use super::service::{Answer, DeskClient, Question, SERVICE, Seen};
use crate::node::{Address, Channel, ChannelGuard, ChannelHandler, Identity, Node, NodeId, PeerEvent};
use crate::rpc::{BindError, CallError, ClientOptions, NotSent, RpcError};

/// How long one replica may take to answer, beyond what it was told to wait, before the next one is asked.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// Longer than anybody waits for an answer.
const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The pause after all replicas have failed in turn.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Line {
    node: Node,
    servers: Vec<Address>,
    state: Mutex<State>,
    losses: Arc<Losses>,
    /// Keeps `losses` told; `None` when the node had begun to end.
    _told: Option<ChannelGuard>,
}

/// Counts the peers that were lost, so that a request to one of them need not wait for its deadline.
#[derive(Default)]
struct Losses(watch::Sender<u64>);

impl ChannelHandler for Losses {
    fn poll_deliver(&self, _: &mut Context<'_>, _: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        // Nobody has a reason to send anything here.
        frames.clear();
        Poll::Ready(())
    }

    fn on_peer(&self, event: PeerEvent) {
        if let PeerEvent::Down(_) = event {
            self.0.send_modify(|losses| *losses = losses.wrapping_add(1));
        }
    }
}

#[derive(Default)]
struct State {
    /// The replica that answered last.
    client: Option<DeskClient>,
    /// Which of the servers that is, or which is to be tried next.
    place: usize,
    /// Grows when the replica is changed, so that one failure is not counted twice by two that saw it.
    turn: u64,
    /// The newest state that any answer came from.
    seen: Seen,
    /// Who failed last, and what was said.
    failure: (String, String),
}

impl Line {
    pub(super) fn new(node: &Node, servers: &[Address]) -> Self {
        let losses = Arc::new(Losses::default());
        let channel = Channel::named("naming", &node.fresh_number().to_string());
        let told = node.open(channel, Arc::clone(&losses) as Arc<dyn ChannelHandler>).ok();
        Self { node: node.clone(), servers: servers.to_vec(), state: Mutex::default(), losses, _told: told }
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// The newest state of the directory that this handle has seen.
    pub(super) fn seen(&self) -> Seen {
        self.lock().seen
    }

    /// The error of one who waited so long in vain.
    pub(super) fn unreachable(&self, waited: Duration) -> NamesError {
        let (address, reason) = self.lock().failure.clone();
        NamesError::Unreachable { waited, address, reason }
    }

    /// Remembers what state an answer came from.
    pub(super) fn saw(&self, seen: Seen) {
        let mut state = self.lock();
        if state.seen.life != seen.life || state.seen.version < seen.version {
            state.seen = seen;
        }
    }

    /// Asks until a replica answers.
    pub(super) async fn look(&self, question: Question, limit: Duration) -> Result<Answer, NamesError> {
        let patience = question.patience;
        let look = |client: DeskClient| {
            let question = question.clone();
            async move { client.look(question).await }
        };
        let answer = self.ask(limit, patience, look).await?;
        self.saw(answer.seen);
        Ok(answer)
    }

    /// As [`look`](Self::look), until something is registered.
    pub(super) async fn find(&self, question: Question, limit: Duration) -> Result<Answer, NamesError> {
        let patience = question.patience;
        let find = |client: DeskClient| {
            let question = question.clone();
            async move { client.find(question).await }
        };
        let answer = self.ask(limit, patience, find).await?;
        self.saw(answer.seen);
        Ok(answer)
    }

    /// Asks one replica after the other, each at most `patience` and some, until one answers or `limit` has passed
    /// without an answer.
    pub(super) async fn ask<T, F>(
        &self,
        limit: Duration,
        patience: Duration,
        request: impl Fn(DeskClient) -> F,
    ) -> Result<T, NamesError>
    where
        F: Future<Output = Result<T, RpcError<NameError>>>,
    {
        let started = Instant::now();
        // "For ever" must not overflow the clock.
        let until = started + limit.min(LIMIT_MAX) + patience;
        let mut failures = 0;
        loop {
            let (client, place, turn) = {
                let state = self.lock();
                (state.client.clone(), state.place, state.turn)
            };
            let address = self.servers.get(place).ok_or(NamesError::NoAddress)?;
            let left = until.saturating_duration_since(Instant::now());
            let reason = match self.client(client, address, turn, left.min(ATTEMPT_MAX)).await {
                Ok(client) => {
                    let losses = self.losses.0.subscribe();
                    let server = client.server().node();
                    let client = client.with_deadline(left.min(patience + ATTEMPT_MAX));
                    let answer = tokio::select! {
                        biased;
                        answer = request(client) => Some(answer),
                        () = self.lost(server, losses) => None,
                    };
                    match answer {
                        Some(Ok(answer)) => return Ok(answer),
                        Some(Err(RpcError::Application(NameError::Unavailable(reason)))) => reason,
                        Some(Err(RpcError::Application(error))) => return Err(NamesError::Refused(error)),
                        Some(Err(RpcError::Call(error))) if is_end(&error) => return Err(NamesError::Closed),
                        Some(Err(RpcError::Call(error))) => error.to_string(),
                        None => "the connection to it is lost".to_owned(),
                    }
                }
                Err(BindError::NodeShutDown) => return Err(NamesError::Closed),
                Err(error) => error.to_string(),
            };
            tracing::debug!(%address, reason, "a replica of the directory does not answer");
            self.give_up(turn, (address.to_string(), reason));
            failures += 1;
            if failures % self.servers.len() == 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            if Instant::now() >= until {
                return Err(self.unreachable(started.elapsed()));
            }
        }
    }

    /// Returns when there is no connection to `server` any more.
    async fn lost(&self, server: NodeId, mut losses: watch::Receiver<u64>) {
        // A node has no connection to itself.
        let is_here = self.node.identity().node == server;
        while is_here || self.node.peers().iter().any(|peer| peer.node == server) {
            // Losses are told as long as this line lives.
            let _ = losses.changed().await;
        }
    }

    /// The client of the present replica, bound now if it was not.
    async fn client(
        &self,
        client: Option<DeskClient>,
        address: &Address,
        turn: u64,
        limit: Duration,
    ) -> Result<DeskClient, BindError> {
        if let Some(client) = client {
            return Ok(client);
        }
        let options = ClientOptions { bind_deadline: limit, ..ClientOptions::default() };
        let client = DeskClient::connect_with(&self.node, SERVICE, address, options).await?;
        let mut state = self.lock();
        if state.turn == turn {
            state.client = Some(client.clone());
        }
        Ok(client)
    }

    /// Turns to the next replica, unless somebody has done so already.
    fn give_up(&self, turn: u64, failure: (String, String)) {
        let mut state = self.lock();
        state.failure = failure;
        if state.turn == turn {
            state.client = None;
            state.turn += 1;
            state.place = (state.place + 1) % self.servers.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True when this node ends, so that no other replica needs to be asked.
fn is_end(error: &CallError) -> bool {
    matches!(error, CallError::NodeShutDown | CallError::NotSent(NotSent::NodeShutDown))
}
