//! Orphans: what still executes for a process that has died.
//!
//! Purpose     the server's side chooses among reincarnation, gentle reincarnation and expiration by
//!             [`ServeOptions::orphans`](super::ServeOptions); this file is the fourth treatment, extermination, which is
//!             the client's.
//! Guarantee   a service that was [noted](BindingLog::note) before the first call is asked, after a crash of the caller,
//!             to end what it executes for earlier lives, until it has said that it did.
//! Method      a binding is written to a journal before its first call leaves, and crossed out when it is given up; what
//!             is left at the next opening had calls under way, perhaps. One record for a binding, not one for a call:
//!             the server knows the calls, and a process that died waits for none of them.
//! Source      Nelson 1981; van Steen & Tanenbaum, client crashes.
//! Limits      what is noted is kept in memory; the journal is cut at every opening and after `CUT_RECORDS` notes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_journal::{AppendError, Journal, Position, ReadError, Record};
use quorate_protocols::WireError;
use quorate_protocols::rpc::{Message, Orphans};
use quorate_protocols::wire::{put_bytes, put_count, take_bytes, take_count, take_u8, take_u64};
use tokio::sync::Notify;

use super::post::{self, Way};
use crate::node::{Address, Channel, ChannelHandler, Identity, Node, process_id_of};

/// How often a service looks after its orphans; `None` when no time matters.
pub(super) fn period(orphans: Orphans) -> Option<Duration> {
    let span = match orphans {
        Orphans::Reincarnation => return None,
        Orphans::Gentle { grace } => grace,
        Orphans::Expiration { quantum } => quantum,
    };
    Some((span / 8).max(PERIOD_MIN))
}

/// A client's log of the services at which it may have calls under way. Cheap to clone; clones share it.
///
/// ```no_run
/// # async fn example(node: quorate::Node, journal: quorate_journal::Journal) -> Result<(), Box<dyn std::error::Error>> {
/// use quorate::rpc::BindingLog;
/// use std::time::Duration;
///
/// let log = BindingLog::open(journal).await?;
/// // What an earlier life of this process left behind somewhere is ended there.
/// for extermination in log.exterminate(&node, Duration::from_secs(5)).await {
///     println!("{} at {}: {}", extermination.service, extermination.address, extermination.is_done);
/// }
/// let _noted = log.note("bank", &"tcp://10.0.0.7:7000".parse()?).await?;
/// // `BankClient::connect(&node, "bank", "tcp://10.0.0.7:7000")`, and calls
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct BindingLog {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Journal,
    state: Mutex<State>,
}

/// Bindings with the positions of their records.
struct State {
    /// Of earlier lives.
    left: BTreeMap<u64, Binding>,
    /// Of this one.
    noted: BTreeMap<u64, Binding>,
    /// On their way into the journal.
    under_way: usize,
    /// Behind the last record that is known.
    end: Position,
    /// Notes since the journal was cut.
    logged: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cross_out(&self, position: u64) {
        // Need not be durable; a journal that fails keeps the entry, which does no harm.
        let _ = self.journal.append_then(vec![crossed_out(position)], |_| {});
    }

    /// Replaces the beginning of the journal by what counts of it, now and then. A cut that fails does no harm.
    async fn cut(&self) {
        let (end, blob) = {
            let mut state = self.lock();
            // A note under way would stand before the end and not be among those that are known.
            if state.logged < CUT_RECORDS || state.under_way > 0 {
                return;
            }
            state.logged = 0;
            (state.end, encode(state.left.iter().chain(&state.noted)))
        };
        if self.journal.save_snapshot(SNAPSHOT, end, blob).await.is_ok() {
            let _ = self.journal.truncate_before(end).await;
        }
    }
}

/// A note on its way into the journal, or given up.
struct UnderWay<'a>(&'a Shared);

impl<'a> UnderWay<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.lock().under_way += 1;
        Self(shared)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

/// Why a binding could not be noted, or the log not be opened. No call that depends on it must be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindingLogError {
    /// The journal could not be read.
    #[error("the journal cannot be read")]
    Read(#[from] ReadError),
    /// The journal could not be written.
    #[error("the journal cannot be written")]
    Append(#[from] AppendError),
    /// A record of the journal is none of ours.
    #[error("the journal holds a record that is none of a binding log: {0}")]
    Record(#[from] WireError),
    /// The runtime was shut down meanwhile.
    #[error("the runtime was shut down")]
    Runtime,
}

/// What became of one binding of an earlier life.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extermination {
    /// The service.
    pub service: String,
    /// Where it is.
    pub address: String,
    /// True when the service has said that nothing executes for earlier lives any more. Else it was not reached, and is
    /// asked again the next time.
    pub is_done: bool,
}

/// A binding that is noted. Dropped, it is crossed out, which need not be durable: at worst a service is asked in vain.
pub struct Noted {
    shared: Arc<Shared>,
    position: u64,
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.shared.lock().noted.remove(&self.position);
        self.shared.cross_out(self.position);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Binding {
    service: String,
    address: String,
}

impl BindingLog {
    /// Opens the log in `journal`, which must be one of its own.
    ///
    /// # Errors
    /// [`BindingLogError`].
    /// # Cancel safety
    /// Dropping the future leaves the journal as good as it was.
    pub async fn open(journal: Journal) -> Result<Self, BindingLogError> {
        let reading = journal.clone();
        let read = tokio::task::spawn_blocking(move || read(&reading));
        let (left, end) = read.await.map_err(|_| BindingLogError::Runtime)??;
        journal.save_snapshot(SNAPSHOT, end, encode(left.iter())).await?;
        journal.truncate_before(end).await?;
        let state = State { left, noted: BTreeMap::new(), under_way: 0, end, logged: 0 };
        Ok(Self { shared: Arc::new(Shared { journal, state: Mutex::new(state) }) })
    }

    /// Notes that calls of `service` at `address` may be under way; returns when that is durable.
    ///
    /// # Errors
    /// [`BindingLogError::Append`].
    /// # Cancel safety
    /// Dropping the future may leave the binding noted.
    pub async fn note(&self, service: &str, address: &Address) -> Result<Noted, BindingLogError> {
        let binding = Binding { service: service.to_owned(), address: address.to_string() };
        let mut record = BytesMut::new();
        record.put_u8(NOTED);
        binding.encode(&mut record);
        let shared = &self.shared;
        let under_way = UnderWay::new(shared);
        let appended = shared.journal.append(vec![Record::new(RECORD_KIND, record.freeze())]).await?;
        let position = appended.first.as_u64();
        {
            let mut state = shared.lock();
            state.noted.insert(position, binding);
            state.end = state.end.max(appended.next);
            state.logged += 1;
        }
        drop(under_way);
        let noted = Noted { shared: Arc::clone(shared), position };
        shared.cut().await;
        Ok(noted)
    }

    /// Asks every service at which an earlier life of this process may have left calls to end them. `node` must be a
    /// later life of the same node. Tells what became of each, at the latest after `deadline`; who was not reached is
    /// asked again by the next call of this, or the next life.
    ///
    /// # Cancel safety
    /// Dropping the future asks the remaining ones the next time.
    pub async fn exterminate(&self, node: &Node, deadline: Duration) -> Vec<Extermination> {
        let left = self.shared.lock().left.clone();
        let until = tokio::time::Instant::now() + deadline.min(post::FAR);
        let mut told = Vec::with_capacity(left.len());
        for (position, binding) in left {
            let asked = tokio::time::timeout_at(until, end_orphans(node, &binding)).await;
            let is_done = matches!(asked, Ok(true));
            if is_done {
                self.shared.lock().left.remove(&position);
                self.shared.cross_out(position);
            }
            let Binding { service, address } = binding;
            told.push(Extermination { service, address, is_done });
        }
        told
    }
}

/// Asks one service until it has answered; false when it cannot be reached.
async fn end_orphans(node: &Node, binding: &Binding) -> bool {
    let Ok(address) = binding.address.parse::<Address>() else { return false };
    let Ok(server) = node.connect(&address).await else { return false };
    let number = node.fresh_number();
    let answered = Arc::new(Notify::new());
    let channel = post::service_channel(&binding.service);
    let server_node = process_id_of(server).node;
    let handler = Arc::new(Answers { server: server_node, channel, answered: Arc::clone(&answered) });
    let Ok(_guard) = node.open(post::reply_channel(number), handler) else { return false };
    let message = Message::Exterminate { client: number };
    let (mut way, mut head) = (Way::default(), BytesMut::new());
    loop {
        let lane = quorate_protocols::Lane::Urgent;
        // Lost or refused for want of room, it is sent again.
        let _ = way.send(node, server.node, None, lane, channel, &message, &mut head);
        tokio::select! {
            () = answered.notified() => return true,
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    }
}

/// Hears the answer of one service, or that it is not there any more: then nothing executes there.
struct Answers {
    server: u64,
    channel: Channel,
    answered: Arc<Notify>,
}

impl ChannelHandler for Answers {
    fn poll_deliver(&self, _: &mut Context<'_>, from: Identity, frames: &mut Vec<Bytes>) -> Poll<()> {
        for frame in frames.drain(..) {
            let _ = post::each_message(frame, &mut Vec::new(), |message| {
                if matches!(message, Message::Exterminated { .. }) && from.node.0 == self.server {
                    self.answered.notify_one();
                }
            });
        }
        Poll::Ready(())
    }

    fn on_refused(&self, peer: Identity, channel: Channel) {
        if peer.node.0 == self.server && channel == self.channel {
            self.answered.notify_one();
        }
    }
}

impl Binding {
    fn encode(&self, out: &mut BytesMut) {
        put_bytes(out, self.service.as_bytes());
        put_bytes(out, self.address.as_bytes());
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let text = |bytes: Bytes| {
            let invalid = |_| WireError::Invalid { what: "text", value: bytes.len() as u64 };
            std::str::from_utf8(&bytes).map(str::to_owned).map_err(invalid)
        };
        let service = text(take_bytes(input, "service")?)?;
        Ok(Self { service, address: text(take_bytes(input, "address")?)? })
    }
}

fn crossed_out(position: u64) -> Record {
    let mut record = BytesMut::new();
    record.put_u8(CROSSED_OUT);
    record.put_u64_le(position);
    Record::new(RECORD_KIND, record.freeze())
}

fn read(journal: &Journal) -> Result<(BTreeMap<u64, Binding>, Position), BindingLogError> {
    let (mut left, mut end) = match journal.load_snapshot(SNAPSHOT)? {
        Some(snapshot) => (decode(snapshot.blob)?, snapshot.position),
        None => (BTreeMap::new(), journal.first()),
    };
    for entry in journal.read(end) {
        let entry = entry?;
        let mut payload = entry.payload.clone();
        match take_u8(&mut payload, "record tag")? {
            NOTED => {
                left.insert(entry.position.as_u64(), Binding::decode(&mut payload)?);
            }
            CROSSED_OUT => {
                left.remove(&take_u64(&mut payload, "position")?);
            }
            other => {
                return Err(WireError::Invalid { what: "record tag", value: other.into() }.into());
            }
        }
        end = entry.position.plus(1);
    }
    Ok((left, end))
}

fn encode<'a>(left: impl Iterator<Item = (&'a u64, &'a Binding)> + Clone) -> Bytes {
    let mut out = BytesMut::new();
    put_count(&mut out, left.clone().count());
    for (position, binding) in left {
        out.put_u64_le(*position);
        binding.encode(&mut out);
    }
    out.freeze()
}

fn decode(mut blob: Bytes) -> Result<BTreeMap<u64, Binding>, WireError> {
    let count = take_count(&mut blob, size_of::<u64>(), "bindings")?;
    let left: Result<_, _> =
        (0..count).map(|_| Ok((take_u64(&mut blob, "position")?, Binding::decode(&mut blob)?))).collect();
    if blob.is_empty() { left } else { left.and(Err(WireError::Trailing(blob.len()))) }
}

/// The kind of the records in the journal.
const RECORD_KIND: u16 = 0x2E;
/// The snapshot's name in the journal.
const SNAPSHOT: &str = "bindings";
const NOTED: u8 = 1;
const CROSSED_OUT: u8 = 2;
/// Notes after which the journal is cut: some 100 KiB.
const CUT_RECORDS: u64 = 1_024;
/// A service that does not answer is asked again so soon.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// More often than this, looking after orphans would be all that a service does.
const PERIOD_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use quorate_journal::{Config, MemoryStorage};

    use super::*;

    #[tokio::test]
    async fn a_life_that_notes_bindings_again_and_again_keeps_its_journal_short() {
        let storage = MemoryStorage::new();
        let config = || Config::new(1).segment_bytes(16 << 10);
        let (journal, _) = Journal::open(storage.clone(), config()).expect("it is new");
        let log = BindingLog::open(journal.clone()).await.expect("it is empty");
        let address: Address = "tcp://127.0.0.1:7000".parse().expect("an address");
        let first = log.note("first", &address).await.expect("noted");
        for _ in 0..3 * CUT_RECORDS {
            drop(log.note("again", &address).await.expect("noted"));
        }
        assert!(journal.first() > Position::default().plus(CUT_RECORDS), "nothing was cut");
        let last = log.note("last", &address).await.expect("noted");
        journal.close().await;
        // As after a crash: what still stood is known, and nothing else.
        std::mem::forget((first, last));
        let (journal, _) = Journal::open(storage, config()).expect("it is closed");
        let log = BindingLog::open(journal).await.expect("it is whole");
        let left: Vec<_> = log.shared.lock().left.values().map(|binding| binding.service.clone()).collect();
        assert_eq!(left, ["first", "last"]);
    }
}
