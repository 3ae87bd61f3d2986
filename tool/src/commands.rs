//! What is done.

use std::io::{self, BufRead, BufWriter, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use quorate::journal::{Config, FileStorage, OpenError};
use quorate::queue::{Message, MessageId, Queue, QueueConfig, Queues, QueuesOpenError, Start};
use serde_json::json;

use crate::arguments::{Arguments, Command, Get, Put};
use crate::failure::Failure;
use crate::show;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { dir, json, command } = arguments;
    let creates = matches!(command, Command::Put(_) | Command::Bench { .. });
    let queues = open(&dir, creates)?;
    let outcome = perform(&queues, json, command).await;
    // Also after a failure: what was accepted is stored.
    let left = queues.close().await;
    if let Some(failure) = left.failure {
        eprintln!("quorate: the journal failed: {failure}");
    }
    outcome
}

async fn perform(queues: &Queues, json: bool, command: Command) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    match command {
        Command::List => {
            let mut names = queues.names();
            names.sort();
            for name in names {
                show::queue(&mut out, json, &name, &find(queues, &name).await?.stats())?;
            }
        }
        Command::Put(asked) => put(queues, json, asked, &mut out).await?,
        Command::Get(asked) => get(queues, json, asked, &mut out).await?,
        Command::Tail { queue, count } => {
            let queue = find(queues, &queue).await?;
            let mut last = std::collections::VecDeque::new();
            pages(&queue, Start::First, usize::MAX, |view| {
                last.push_back(view);
                if last.len() > count {
                    last.pop_front();
                }
                Ok(())
            })?;
            for view in &last {
                show::message(&mut out, json, view)?;
            }
        }
        Command::Browse { queue, from, count } => {
            let queue = find(queues, &queue).await?;
            let start = from.map_or(Start::First, |from| Start::At(MessageId::from_u64(from)));
            let count = count.unwrap_or(usize::MAX);
            pages(&queue, start, count, |view| Ok(show::message(&mut out, json, &view)?))?;
        }
        Command::Move { from, to, count } => {
            let (from, to) = (find(queues, &from).await?, queues.queue_with(&to, settings()).await?);
            let moved = shift(queues, &from, &to, count.unwrap_or(usize::MAX)).await?;
            if json {
                writeln!(out, "{}", json!({ "moved": moved }))?;
            } else {
                writeln!(out, "{moved} moved")?;
            }
        }
        Command::Purge { queue } => {
            let queue = find(queues, &queue).await?;
            queue.purge().await?;
            let purged = queue.stats().purged;
            if json {
                writeln!(out, "{}", json!({ "purged": purged }))?;
            } else {
                writeln!(out, "{purged} purged")?;
            }
        }
        Command::Dump => {
            for record in queues.records() {
                show::record(&mut out, json, &record.map_err(Failure::Record)?)?;
            }
        }
        Command::Check => check(queues, json, &mut out).await?,
        Command::Bench { messages, bytes, producers } => {
            bench(queues, json, messages, bytes, producers, &mut out).await?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Opens the directory whoever it belongs to.
fn open(directory: &Path, creates: bool) -> Result<Queues, Failure> {
    if !creates && !directory.is_dir() {
        return Err(Failure::NoDirectory(directory.to_owned()));
    }
    let attempt = |owner| {
        let storage = FileStorage::open(directory).map_err(QueuesOpenError::Journal)?;
        Queues::open(storage, Config::new(owner))
    };
    match attempt(0) {
        Err(QueuesOpenError::Journal(OpenError::Owner { found, .. })) => attempt(found),
        outcome => outcome,
    }
    .map_err(Failure::Open)
}

/// A queue that is there.
async fn find(queues: &Queues, name: &str) -> Result<Queue, Failure> {
    if !queues.names().iter().any(|known| known == name) {
        return Err(Failure::NoQueue(name.to_owned()));
    }
    let queue = queues.queue_with(name, settings()).await?;
    if queue.stats().kept == 0 {
        return Ok(queue);
    }
    // Its node keeps what is acknowledged: so does the tool, and leaves it to the node to trim.
    Ok(queues.queue_with(name, settings().retain(usize::MAX, Duration::MAX)).await?)
}

/// Nothing is given up on behalf of a tool.
fn settings() -> QueueConfig {
    QueueConfig::new()
        .deliveries_max(None)
        .messages_max(usize::MAX)
        .bytes_max(usize::MAX)
        .message_bytes_max(usize::MAX)
        .deduplicate(1_000_000)
}

async fn put(queues: &Queues, json: bool, asked: Put, out: &mut impl Write) -> Result<(), Failure> {
    let queue = queues.queue_with(&asked.queue, settings()).await?;
    let message = |payload: Vec<u8>| {
        let mut message = Message::new(payload);
        if let Some(key) = &asked.key {
            message = message.key(key.clone().into_bytes());
        }
        if let Some(priority) = asked.priority {
            message = message.priority(priority);
        }
        if let Some(delay) = asked.delay {
            message = message.delay(delay);
        }
        if let Some(expires) = asked.expires {
            message = message.expires_after(expires);
        }
        if let Some(name) = &asked.name {
            message = message.name(name.clone().into_bytes());
        }
        message
    };
    let mut count = 0;
    let mut store = async |payloads: Vec<Vec<u8>>| -> Result<(), Failure> {
        count += payloads.len();
        if asked.name.is_some() && count > 1 {
            return Err(Failure::OneName(count));
        }
        for receipt in queue.put_all(payloads.into_iter().map(message)).await? {
            if json {
                let object = json!({ "id": receipt.id.as_u64(), "is_repeated": receipt.is_repeated });
                writeln!(out, "{object}")?;
            }
        }
        // Whoever feeds it line by line may wait for this.
        out.flush()?;
        Ok(())
    };
    if asked.whole {
        let mut payload = Vec::new();
        io::stdin().lock().read_to_end(&mut payload)?;
        return store(vec![payload]).await;
    }
    if !asked.messages.is_empty() {
        return store(asked.messages.iter().map(|text| text.clone().into_bytes()).collect()).await;
    }
    let mut lines = io::stdin().lock().split(b'\n');
    loop {
        let some: Vec<Vec<u8>> = lines.by_ref().take(MESSAGES_AT_ONCE).collect::<io::Result<_>>()?;
        if some.is_empty() {
            return Ok(());
        }
        store(some).await?;
    }
}

async fn get(queues: &Queues, json: bool, asked: Get, out: &mut impl Write) -> Result<(), Failure> {
    let queue = find(queues, &asked.queue).await?;
    let most = if asked.all { usize::MAX } else { asked.count };
    let (mut got, mut wait) = (0, asked.wait);
    while got < most {
        let deliveries = queue.get_many((most - got).min(MESSAGES_AT_ONCE), wait).await?;
        if deliveries.is_empty() {
            break;
        }
        got += deliveries.len();
        wait = Duration::ZERO;
        let mut work = queues.work();
        for delivery in deliveries {
            if json {
                let (field, text) = show::payload(delivery.payload());
                let object = json!({
                    "id": delivery.id().as_u64(), "deliveries": delivery.deliveries(), field: text,
                });
                writeln!(out, "{object}")?;
            } else {
                out.write_all(delivery.payload())?;
                out.write_all(b"\n")?;
            }
            work.ack(delivery);
        }
        // Written out before it is removed: who reads may see a message twice, and loses none.
        out.flush()?;
        work.commit().await?;
    }
    if got == 0 && most > 0 {
        return Err(Failure::Nothing(asked.queue));
    }
    Ok(())
}

/// Calls `each` for the messages of a queue.
fn pages(
    queue: &Queue,
    mut start: Start,
    most: usize,
    mut each: impl FnMut(quorate::queue::View) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut left = most;
    while left > 0 {
        let views = queue.browse(start, left.min(MESSAGES_AT_ONCE))?;
        let Some(last) = views.last().map(|view| view.id.as_u64()) else { break };
        start = Start::At(MessageId::from_u64(last + 1));
        left -= views.len();
        views.into_iter().try_for_each(&mut each)?;
    }
    Ok(())
}

async fn shift(queues: &Queues, from: &Queue, to: &Queue, most: usize) -> Result<usize, Failure> {
    // Only what is there now: a queue may be moved into itself.
    let most = most.min(from.stats().ready);
    let mut moved = 0;
    while moved < most {
        let deliveries = from.get_many((most - moved).min(MESSAGES_AT_ONCE), Duration::ZERO).await?;
        if deliveries.is_empty() {
            break;
        }
        moved += deliveries.len();
        let mut work = queues.work();
        for delivery in deliveries {
            work.put(to, delivery.to_message()).ack(delivery);
        }
        work.commit().await?;
    }
    Ok(moved)
}

async fn check(queues: &Queues, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let mut records = 0_u64;
    for record in queues.records() {
        record.map_err(Failure::Record)?;
        records += 1;
    }
    let (mut messages, mut bytes) = (0, 0);
    for name in queues.names() {
        pages(&find(queues, &name).await?, Start::First, usize::MAX, |view| {
            (messages, bytes) = (messages + 1, bytes + view.payload.len());
            Ok(())
        })?;
    }
    let count = queues.names().len();
    if json {
        let object = json!({ "queues": count, "records": records, "messages": messages, "bytes": bytes });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "ok: {count} queues, {messages} messages of {bytes} bytes, {records} records")?;
    }
    Ok(())
}

async fn bench(
    queues: &Queues,
    json: bool,
    messages: usize,
    bytes: usize,
    producers: usize,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let queue = queues.queue_with("bench", QueueConfig::new().deliveries_max(None)).await?;
    queue.purge().await?;
    let payload = vec![b'x'; bytes];
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for producer in 0..producers.max(1) {
        let (queue, payload) = (queue.clone(), payload.clone());
        let share = messages / producers.max(1) + usize::from(producer < messages % producers.max(1));
        tasks.push(tokio::spawn(async move {
            for _ in 0..share {
                queue.put(payload.clone()).await?;
            }
            Ok::<_, quorate::queue::PutError>(())
        }));
    }
    for task in tasks {
        task.await.map_err(io::Error::other)??;
    }
    let put = begun.elapsed();
    let begun = Instant::now();
    loop {
        let deliveries = queue.get_many(MESSAGES_AT_ONCE, Duration::ZERO).await?;
        if deliveries.is_empty() {
            break;
        }
        let mut work = queues.work();
        for delivery in deliveries {
            work.ack(delivery);
        }
        work.commit().await?;
    }
    let got = begun.elapsed();
    let rate = |time: Duration| messages as f64 / time.as_secs_f64().max(1e-9);
    if json {
        let object = json!({ "messages": messages, "bytes": bytes, "producers": producers,
            "put_per_second": rate(put), "got_per_second": rate(got) });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{messages} messages of {bytes} bytes, {producers} producers, each put synced")?;
        writeln!(out, "put {:>10.0} a second", rate(put))?;
        writeln!(out, "got {:>10.0} a second, {MESSAGES_AT_ONCE} at once", rate(got))?;
    }
    Ok(())
}

/// Messages that are stored, written out or removed together: enough to make a sync cheap, few enough to hold.
const MESSAGES_AT_ONCE: usize = 256;
