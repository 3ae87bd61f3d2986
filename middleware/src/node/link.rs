//! Dialling, answering, and the life of a connection within the node.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use quorate_transports::connection::{
    Agreement, Connection, Driver, Ended, Established, HandshakeError, Hello, Mismatch, Verdict, answer, dial,
};
use quorate_transports::mem::{MemConfig, link_pair};
use quorate_transports::{Address, Credentials, Identity, Link, Listener, NodeId};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::channel::{Dispatch, Sender};
use super::error::{ConnectError, SendError};
use super::inner::{Inner, Role};
use super::peer::{Active, Candidate, Choice, Peer, PeerState, Spare, choose};

impl Inner {
    /// Accepts links until the node stops.
    pub(super) fn spawn_accepting(this: &Arc<Self>, mut listener: Box<dyn Listener>) {
        let inner = this.clone();
        let address = listener.local_address();
        this.releases.lock().unwrap_or_else(PoisonError::into_inner).push(listener.released());
        let span =
            tracing::info_span!("listener", node = %this.identity, transport = address.scheme(), %address);
        let accepting = async move {
            tracing::info!(node = %inner.identity, %address, "listening");
            loop {
                match poll_fn(|cx| listener.poll_accept(cx)).await {
                    Ok(link) => {
                        let mut place = inner.handshakes.enter(&link.peer);
                        let answering = Self::answer_link(inner.clone(), link);
                        let inner = inner.clone();
                        inner.clone().spawn(Role::Helper, async move {
                            if place.hold(answering).await.is_none() {
                                inner.counters.handshakes_refused.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(node = %inner.identity, %address, %error, "accepting failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        this.spawn(Role::Helper, accepting.instrument(span));
    }

    /// One attempt at one address. The connection stands, and the handlers know, when it returns.
    pub(super) async fn dial_once(
        this: &Arc<Self>,
        address: &Address,
        wanted: Option<NodeId>,
        insists: bool,
    ) -> Result<Identity, ConnectError> {
        let attempt = async {
            if this.is_stopping() {
                return Err(ConnectError::ShutDown);
            }
            let link = this.registry.connect(address).await?;
            let established = dial(link, &this.hello(wanted, insists), &this.limits.connection).await?;
            let identity = established.peer.identity;
            Self::install(this, established, insists)?;
            Ok(identity)
        };
        let transport = address.scheme();
        let span = tracing::debug_span!("dial", node = %this.identity, transport, %address);
        async {
            tracing::debug!(node = %this.identity, %address, "dialling");
            attempt.await.inspect_err(|error| {
                this.counters.dials_failed.fetch_add(1, Ordering::Relaxed);
                let error = error as &dyn std::error::Error;
                tracing::debug!(node = %this.identity, %address, error, "dialling failed");
            })
        }
        .instrument(span)
        .await
    }

    /// Dials a peer until it is connected or nobody wants it any more.
    pub(super) async fn redial(this: Arc<Self>, peer: Arc<Peer>) {
        let mut insists = false;
        let mut tried = peer.state().addresses();
        loop {
            let Some((failures, _)) = this.start_attempt(&peer, false) else { return };
            let pause = this.backoff(failures);
            if !pause.is_zero() {
                let pause_ms = pause.as_millis() as u64;
                tracing::debug!(node = %this.identity, peer = %peer.node, failures, pause_ms, "dialling again later");
                Self::pause(&peer, pause, &tried).await;
            }
            let Some((_, addresses)) = this.start_attempt(&peer, true) else { return };
            tried.clone_from(&addresses);
            let mut is_turned_away = false;
            for address in addresses {
                match Self::dial_once(&this, &address, Some(peer.node), insists).await {
                    Ok(_) => break,
                    Err(ConnectError::Handshake(error)) => {
                        is_turned_away |= matches!(error, HandshakeError::Duplicate { .. });
                        // What was once said of this address does not hold.
                        if let HandshakeError::Mismatch { source: Mismatch::Node { .. }, .. } = error {
                            peer.state().unlearn(&address);
                        }
                    }
                    Err(_) => {}
                }
                if peer.state().active.is_some() {
                    break;
                }
            }
            insists = is_turned_away;
            let mut state = peer.state();
            state.is_attempting = false;
            if state.active.is_none() {
                state.failures = state.failures.saturating_add(1);
                let expired = state.backlog.expire(this.limits.backlog_wait_max);
                this.counters.expired.fetch_add(expired as u64, Ordering::Relaxed);
            }
            drop(state);
            peer.changed.notify_waiters();
        }
    }

    /// Waits, unless the peer gets an address that was not tried: that one need not wait for what the others did.
    async fn pause(peer: &Peer, pause: Duration, tried: &[Address]) {
        let until = Instant::now() + pause;
        loop {
            let mut changed = pin!(peer.changed.notified());
            changed.as_mut().enable();
            if peer.state().addresses().iter().any(|address| !tried.contains(address)) {
                return;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    /// Looks whether dialling still makes sense; if not, the dialling task is over.
    fn start_attempt(&self, peer: &Peer, is_attempting: bool) -> Option<(u32, Vec<Address>)> {
        let is_stopping = self.is_stopping();
        let mut state = peer.state();
        if is_stopping || !state.wants_connection() {
            state.is_dialling = false;
            return None;
        }
        state.is_attempting = is_attempting;
        Some((state.failures, state.addresses()))
    }

    async fn answer_link(this: Arc<Self>, link: Link) {
        let address = link.peer.clone();
        let span =
            tracing::debug_span!("handshake", node = %this.identity, transport = address.scheme(), %address);
        Self::answer_at(this, link, address).instrument(span).await;
    }

    async fn answer_at(this: Arc<Self>, link: Link, address: Address) {
        // Lives until the connection is installed, or the attempt is over.
        let mut accepting = None;
        let hello = this.hello(None, false);
        let credentials = link.credentials.clone();
        let answered = answer(link, &hello, &this.limits.connection, |theirs| {
            if !this.admits(theirs.identity, credentials.get()) {
                return Verdict::Incompatible;
            }
            Self::decide(&this, theirs, &mut accepting)
        })
        .await;
        let installed = match answered {
            Ok(established) => {
                let insists = established.peer.insists;
                Self::install(&this, established, insists)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = installed {
            this.counters.handshakes_refused.fetch_add(1, Ordering::Relaxed);
            let error = &error as &dyn std::error::Error;
            tracing::debug!(node = %this.identity, %address, error, "link refused");
        }
    }

    /// Whether the user wants this peer at all.
    fn admits(&self, identity: Identity, credentials: Option<&Credentials>) -> bool {
        self.admit.as_ref().is_none_or(|admit| admit(identity, credentials))
    }

    /// Whether a peer that dialled us gets its connection.
    fn decide(this: &Arc<Self>, theirs: &Hello, accepting: &mut Option<Accepting>) -> Verdict {
        if this.is_stopping() {
            return Verdict::ShuttingDown;
        }
        let Ok(peer) = this.peer_or_insert(theirs.identity.node) else { return Verdict::Incompatible };
        let mut state = peer.state();
        let we_are_lower = this.identity.node < theirs.identity.node;
        if let Some(active) = &state.active {
            match choose(old(active), new(theirs, false, theirs.insists), we_are_lower) {
                Choice::ReplaceDead => {}
                Choice::Replace if !active.connection.is_open() => {}
                Choice::Replace | Choice::Keep => return Verdict::Duplicate,
                Choice::Refuse => return Verdict::Incompatible,
            }
        } else if !theirs.insists && (state.accepting > 0 || state.is_attempting && we_are_lower) {
            return Verdict::Duplicate;
        }
        state.accepting += 1;
        drop(state);
        *accepting = Some(Accepting { inner: this.clone(), peer });
        Verdict::Accept
    }

    /// Makes an established link the connection with its peer, or lets it end beside a better one.
    fn install(this: &Arc<Self>, established: Established, insists: bool) -> Result<(), ConnectError> {
        let theirs = established.peer.clone();
        let identity = theirs.identity;
        let credentials = established.link.credentials.get().cloned();
        if established.is_dialled && !this.admits(identity, credentials.as_ref()) {
            return Err(ConnectError::NotAdmitted { identity });
        }
        let is_dialled = established.is_dialled;
        let told = dialable(&theirs.addresses, &established.link.peer, &established.link.local);
        let peer = this.peer_or_insert(identity.node)?;
        let starting = Starting::new(this, established);
        let mut state = peer.state();
        let we_are_lower = this.identity.node < identity.node;
        let choice = match &state.active {
            None => Choice::Replace,
            Some(active) => choose(old(active), new(&theirs, is_dialled, insists), we_are_lower),
        };
        if choice == Choice::Refuse {
            return Err(HandshakeError::Duplicate { identity }.into());
        }
        let (serial, connection) = (starting.serial, starting.connection.clone());
        if !this.register(serial, identity, &connection) {
            return Err(ConnectError::ShutDown);
        }
        let is_muted = starting.is_muted.clone();
        if choice == Choice::Keep
            && let Some(active) = &mut state.active
        {
            // The peer may have sent on it already: take that, then end it in peace. A goodbye from the side that
            // did not dial the other one could arrive before that one has come to be, and look like a break.
            let is_closing = active.is_dialled;
            let connection = connection.clone();
            active.spares.push(Spare { connection, identity, credentials, serial, is_dialled, is_muted });
            drop(state);
            if is_closing {
                starting.connection.close();
            }
            starting.run(this, Some(peer));
            return Ok(());
        }
        // Taken under the lock: announcements must follow the order of the replacements, not that of the handshakes.
        let rank = this.serial.fetch_add(1, Ordering::Relaxed);
        let mut beside = std::mem::take(&mut state.lingering);
        let mut closing = None;
        if let Some(old) = state.active.take() {
            let (old, spares) = old.retire();
            if choice == Choice::Replace && is_dialled {
                closing = Some(old.connection.clone());
            }
            beside.push(old);
            beside.extend(spares);
        }
        // Nothing of an earlier life is taken any more, nor of connections of which the peer knows nothing.
        let (mut spares, mut dead): (Vec<_>, Vec<_>) =
            beside.into_iter().partition(|spare| choice != Choice::ReplaceDead && spare.identity == identity);
        dead.iter().for_each(|spare| spare.is_muted.store(true, Ordering::Release));
        // A peer that says goodbye, stays, and comes again would pile them up.
        while spares.len() > SPARES_MAX
            && let Some(oldest) = (0..spares.len()).min_by_key(|&at| spares[at].serial)
        {
            dead.push(spares.remove(oldest));
        }
        state.active =
            Some(Active { connection, identity, credentials, serial, rank, is_dialled, is_muted, spares });
        state.connections += 1;
        let reconnects = state.connections - 1;
        if reconnects > 0 {
            tracing::info!(node = %this.identity, peer = %identity, reconnects, "connected again");
        }
        state.told = told;
        this.send_backlog(&mut state);
        drop(state);
        peer.changed.notify_waiters();
        this.announce_up(identity, rank);
        // Only now, or an end could be told before its replacement.
        dead.iter().for_each(|spare| spare.connection.abort());
        closing.iter().for_each(Connection::close);
        starting.run(this, Some(peer));
        Ok(())
    }

    /// Sends what waited for a connection on the one that is used now.
    fn send_backlog(&self, state: &mut PeerState) {
        let Some(active) = &state.active else { return };
        while let Some(waiting) = state.backlog.pop() {
            let fits = waiting.life.is_none_or(|life| life == active.identity.incarnation);
            if !fits || active.connection.send(waiting.lane, &[], waiting.message).is_err() {
                self.counters.expired.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The connection of the node with itself: the same lanes and limits as every other.
    pub(super) fn loopback(this: &Arc<Self>) -> Result<Connection, SendError> {
        let mut loopback = this.loopback.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A handler that panicked took the last one with it, as it does with a connection to a peer.
        if let Some(connection) = loopback.as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        let message_bytes_max = this.limits.connection.message_bytes_max;
        let agreement = Agreement { version: Hello::VERSIONS.1, message_bytes_max };
        let (one, two) = link_pair(&MemConfig::default());
        let [sending, receiving] = [(one, true), (two, false)].map(|(link, is_dialled)| {
            Starting::new(this, Established::assume(link, this.hello(None, false), agreement, is_dialled))
        });
        for starting in [&receiving, &sending] {
            if !this.register(starting.serial, this.identity, &starting.connection) {
                this.unregister(receiving.serial, None);
                return Err(SendError::ShutDown);
            }
        }
        let connection = sending.connection.clone();
        receiving.run(this, None);
        sending.run(this, None);
        *loopback = Some(connection.clone());
        Ok(connection)
    }

    /// A connection is over.
    fn finish(this: &Arc<Self>, ending: &Ending, ended: Option<Ended>) {
        let (node, peer) = (this.identity, ending.identity);
        match &ended {
            Some(Ended { end, left, .. }) => {
                let reason = end as &dyn std::error::Error;
                tracing::info!(%node, %peer, reason, left_messages = left.messages, "connection ended");
            }
            None => tracing::info!(%node, %peer, reason = "its task was ended", "connection ended"),
        }
        if let Some(peer) = &ending.place {
            let mut state = peer.state();
            let mut up = None;
            if let Some(active) = state.active.take_if(|active| active.serial == ending.serial) {
                let rank = active.rank;
                match active.successor(|| this.serial.fetch_add(1, Ordering::Relaxed)) {
                    Ok(successor) => {
                        up = Some((successor.identity, successor.rank));
                        state.active = Some(successor);
                        this.send_backlog(&mut state);
                    }
                    Err(closing) => {
                        state.lingering.extend(closing);
                        state.postponed = Some((ending.identity, rank));
                        // One that breaks at once counts as a failed attempt, or two nodes could dial in a tight loop.
                        let is_stable = ending.since.elapsed() >= STABLE_AFTER;
                        state.failures = if is_stable { 0 } else { state.failures.saturating_add(1) };
                        Self::ensure_dialling(this, peer, &mut state);
                    }
                }
            } else {
                state.lingering.retain(|spare| spare.serial != ending.serial);
                if let Some(active) = &mut state.active {
                    active.spares.retain(|spare| spare.serial != ending.serial);
                }
            }
            // Postponed while a connection is closing, and while one is accepted that may have made the peer close
            // this one.
            let down = state.take_down();
            drop(state);
            peer.changed.notify_waiters();
            if let Some((identity, rank)) = up {
                Self::announce_running(this, peer, identity, rank);
            }
            if let Some((identity, rank)) = down {
                this.announce_down(identity, rank);
            }
        }
        this.unregister(ending.serial, ended.as_ref());
    }

    /// Announces a connection that runs already: it may be over before it is announced, and then its end was told
    /// too early to be heard.
    fn announce_running(this: &Arc<Self>, peer: &Peer, identity: Identity, rank: u64) {
        this.announce_up(identity, rank);
        let state = peer.state();
        let is_told = state.active.is_none() && state.postponed.is_none();
        drop(state);
        if is_told {
            this.announce_down(identity, rank);
        }
    }
}

/// A connection whose driver does not run yet.
struct Starting {
    serial: u64,
    identity: Identity,
    /// The other end.
    address: Address,
    is_dialled: bool,
    connection: Connection,
    driver: Driver<Dispatch>,
    is_muted: Arc<AtomicBool>,
}

impl Starting {
    fn new(inner: &Inner, established: Established) -> Self {
        let serial = inner.serial.fetch_add(1, Ordering::Relaxed);
        let identity = established.peer.identity;
        let (address, is_dialled) = (established.link.peer.clone(), established.is_dialled);
        let is_muted = Arc::new(AtomicBool::new(false));
        let back = Arc::new(OnceLock::new());
        let from = Sender { identity, credentials: established.link.credentials.get().cloned() };
        let dispatch = Dispatch::new(inner.channels.clone(), from, back.clone(), serial, is_muted.clone());
        let budget = inner.assembly_budget.clone();
        let (connection, driver) = established.start_within(budget, &inner.limits.connection, dispatch);
        // Just made, so it is empty.
        let _ = back.set(connection.clone());
        Self { serial, identity, address, is_dialled, connection, driver, is_muted }
    }

    fn run(self, inner: &Arc<Inner>, place: Option<Arc<Peer>>) {
        let ending = Ending {
            inner: inner.clone(),
            place,
            serial: self.serial,
            identity: self.identity,
            since: Instant::now(),
            ended: None,
        };
        let Self { identity: peer, address, is_dialled, serial, .. } = self;
        let (node, transport) = (inner.identity, address.scheme());
        let span =
            tracing::info_span!("connection", %node, %peer, transport, %address, is_dialled, number = serial);
        span.in_scope(|| tracing::info!(%node, %peer, %address, "connection established"));
        inner.spawn(Role::Connection, ending.watch(self.driver).instrument(span));
    }
}

/// Cleans up behind a connection's task, also when that is aborted or a handler panics.
struct Ending {
    inner: Arc<Inner>,
    /// The peer whose connection it became, or beside whose connection it stands.
    place: Option<Arc<Peer>>,
    serial: u64,
    identity: Identity,
    since: Instant,
    ended: Option<Ended>,
}

impl Ending {
    async fn watch(mut self, driver: Driver<Dispatch>) {
        self.ended = Some(driver.await);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let ended = self.ended.take();
        Inner::finish(&self.inner, self, ended);
    }
}

/// An incoming connection between the verdict and its installation.
struct Accepting {
    inner: Arc<Inner>,
    peer: Arc<Peer>,
}

impl Drop for Accepting {
    fn drop(&mut self) {
        let postponed = {
            let mut state = self.peer.state();
            state.accepting -= 1;
            state.take_down()
        };
        // Says nothing when the new connection was announced in the meantime.
        if let Some((identity, rank)) = postponed {
            self.inner.announce_down(identity, rank);
        }
    }
}

fn old(active: &Active) -> Candidate {
    Candidate {
        incarnation: active.identity.incarnation,
        is_dialled: active.is_dialled,
        is_open: active.connection.is_open(),
        insists: false,
    }
}

fn new(theirs: &Hello, is_dialled: bool, insists: bool) -> Candidate {
    Candidate { incarnation: theirs.identity.incarnation, is_dialled, is_open: true, insists }
}

/// What a peer says of its addresses, as seen from here: one that listens on all interfaces means the one that we see;
/// a loopback address on another machine is not there for us, and here somebody else may have it.
fn dialable(told: &[Address], seen: &Address, local: &Address) -> Vec<Address> {
    let ip = |address: &Address| address.rest().parse::<SocketAddr>().ok().map(|place| place.ip());
    let (seen_ip, local_ip) = (ip(seen), ip(local));
    let is_elsewhere = seen_ip != local_ip && seen_ip.is_some_and(|ip| !ip.is_loopback());
    let place = |address: &Address| {
        // A path means something on its own machine only.
        if address.scheme() == "unix" && is_elsewhere {
            return None;
        }
        let place: SocketAddr = match address.rest().parse() {
            Ok(place) => place,
            Err(_) => return Some(address.clone()),
        };
        if place.ip().to_canonical().is_loopback() && is_elsewhere {
            return None;
        }
        if !place.ip().is_unspecified() {
            return Some(address.clone());
        }
        let ip = seen_ip.filter(|_| seen.scheme() == address.scheme())?;
        Address::new(address.scheme(), &SocketAddr::new(ip, place.port()).to_string()).ok()
    };
    told.iter().filter_map(place).collect()
}

/// After a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections of one peer that may be closing beside the one that is used. Two nodes that dial each other at once need
/// one; the oldest beyond it is broken off.
const SPARES_MAX: usize = 4;
/// A connection that lasted so long was a good one.
const STABLE_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use quorate_transports::connection::CodecId;
    use quorate_transports::{Incarnation, Registry};

    use super::super::builder::Limits;
    use super::super::inner::Settings;
    use super::*;

    #[test]
    fn a_peer_that_listens_everywhere_is_dialled_where_it_was_seen() {
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Address>>();
        let told = addresses(&["tcp://[::]:80", "tcp://0.0.0.0:81", "tcp://10.0.0.9:82", "mem://a"]);
        let seen = "tcp://10.0.0.7:5555".parse().unwrap();
        let here = "tcp://10.0.0.1:6666".parse().unwrap();
        let expected = ["tcp://10.0.0.7:80", "tcp://10.0.0.7:81", "tcp://10.0.0.9:82", "mem://a"];
        assert_eq!(dialable(&told, &seen, &here), addresses(&expected));
        let seen = "mem://b".parse().unwrap();
        assert_eq!(dialable(&told, &seen, &seen), addresses(&expected[2..]));
    }

    #[tokio::test]
    async fn a_connection_that_was_over_before_it_was_announced_is_not_left_standing() {
        let life = |node| Identity::new(NodeId(node), Incarnation(1));
        let registry = Registry::new();
        let settings =
            Settings { codec: CodecId::default(), limits: Limits::default(), admit: None, seed: 0 };
        let inner = Inner::new(life(1), vec![], None, registry, settings);
        let inner = Arc::new(inner);
        let peer = inner.peer_or_insert(NodeId(2)).unwrap();
        inner.announce_up(life(2), 1);
        // The second connection took the place of the first one and ended before that was announced.
        inner.announce_down(life(2), 2);
        Inner::announce_running(&inner, &peer, life(2), 2);
        assert_eq!(inner.announced(), []);
        // An end that waits for others to close is told when they have.
        peer.state().postponed = Some((life(2), 3));
        Inner::announce_running(&inner, &peer, life(2), 3);
        assert_eq!(inner.announced(), [life(2)]);
    }

    fn crowded(peers_max: usize) -> Arc<Inner> {
        let limits = Limits { peers_max, ..Limits::default() };
        let settings = Settings { codec: CodecId::default(), limits, admit: None, seed: 0 };
        let me = Identity::new(NodeId(1), Incarnation(1));
        Arc::new(Inner::new(me, vec![], None, Registry::new(), settings))
    }

    #[tokio::test]
    async fn hearsay_displaces_nobody_but_hearsay_and_makes_room_for_whoever_comes() {
        let place = |number: u64| format!("mem://{number}").parse::<Address>().unwrap();
        let inner = crowded(4);
        inner.add_address(NodeId(2), place(2));
        let once_connected = inner.peer_or_insert(NodeId(3)).unwrap();
        once_connected.state().connections = 1;
        for invented in 100..1_000 {
            inner.hear_address(NodeId(invented), place(invented));
            inner.hear_address(NodeId(2), place(invented));
        }
        let known: Vec<u64> = inner.peers().keys().map(|node| node.0).collect();
        assert!(known.starts_with(&[2, 3]) && known.len() == 4, "{known:?}");
        // The user's word is the first that is tried, whatever others say.
        let addresses = inner.addresses_of(NodeId(2));
        assert_eq!((&addresses[0], addresses.len()), (&place(2), 9));
        // Something is sent to what is left of the hearsay, so that it is dialled; still it makes room.
        let doubtful = inner.peers().values().filter(|peer| peer.node.0 >= 100).cloned().collect::<Vec<_>>();
        doubtful.iter().for_each(|peer| peer.state().is_dialling = true);
        inner.hear_address(NodeId(5_000), place(5));
        assert!(inner.addresses_of(NodeId(5_000)).is_empty(), "hearsay does not end an attempt");
        for newcomer in [10, 11, 12] {
            inner.peer_or_insert(NodeId(newcomer)).unwrap().state().accepting = 1;
        }
        assert!(doubtful.iter().all(|peer| !peer.state().is_dialable()), "nobody goes on dialling it");
        assert!(matches!(inner.peer_or_insert(NodeId(13)), Err(ConnectError::TooManyPeers { limit: 4 })));
        assert!(inner.peers().contains_key(&NodeId(2)), "whom the user named is not forgotten");
    }

    #[test]
    fn a_loopback_address_of_another_machine_is_not_dialled_here() {
        let [loopback, other, here]: [Address; 3] =
            ["tcp://127.0.0.1:80", "tcp://10.0.0.7:5555", "tcp://10.0.0.1:6666"]
                .map(|text| text.parse().unwrap());
        let told = [loopback.clone()];
        assert_eq!(dialable(&told, &other, &here), []);
        assert_eq!(dialable(&told, &here, &here), told);
        assert_eq!(dialable(&told, &loopback, &loopback), told);
    }
}
