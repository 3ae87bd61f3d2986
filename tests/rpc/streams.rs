//! Streams with calls, in both directions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::codec::{Bincode, Codec, Json, Postcard};
use quorate::rpc::{
    CallError, ClientOptions, Here, Incoming, NotSent, Outgoing, RpcError, StreamError, stream,
};
use quorate::{Payload, service};
use tokio::sync::Notify;

use crate::support::{Over, soon};

/// A reading room.
#[service]
trait Room {
    /// Reads all of it.
    #[streaming]
    async fn sum(&self, numbers: Incoming<u64>) -> Result<u64, String>;
    /// Writes the numbers below `end`.
    #[streaming]
    async fn count(&self, end: u64, numbers: Outgoing<u64>) -> u64;
    /// The answer is the stream.
    #[streaming]
    async fn words(&self, text: String) -> Incoming<String>;
    /// There and back.
    #[streaming]
    async fn double(&self, numbers: Incoming<u64>, doubled: Outgoing<u64>);
    /// Holds what it gets, unread.
    #[streaming]
    async fn hold(&self, bytes: Incoming<Payload>);
    /// Gives up halfway.
    #[streaming]
    async fn half(&self, numbers: Outgoing<u64>);
}

#[derive(Default)]
struct Reader {
    written: AtomicU64,
    held: Notify,
    go: Notify,
}

impl Room for Arc<Reader> {
    async fn sum(&self, mut numbers: Incoming<u64>) -> Result<u64, String> {
        let mut sum = 0;
        while let Some(number) = numbers.next().await.map_err(|error| error.to_string())? {
            sum += number;
        }
        Ok(sum)
    }
    async fn count(&self, end: u64, mut numbers: Outgoing<u64>) -> u64 {
        for number in 0..end {
            if numbers.send(number).await.is_err() {
                return number;
            }
            self.written.fetch_add(1, Ordering::SeqCst);
        }
        numbers.end().await.map_or(0, |()| end)
    }
    async fn words(&self, text: String) -> Incoming<String> {
        let (mut writer, reader) = stream(4);
        tokio::spawn(async move {
            for word in text.split(' ') {
                writer.send(word.to_owned()).await?;
            }
            writer.end().await
        });
        reader
    }
    async fn double(&self, mut numbers: Incoming<u64>, mut doubled: Outgoing<u64>) {
        while let Ok(Some(number)) = numbers.next().await {
            if doubled.send(2 * number).await.is_err() {
                return;
            }
        }
        let _ = doubled.end().await;
    }
    async fn hold(&self, bytes: Incoming<Payload>) {
        self.held.notify_one();
        self.go.notified().await;
        drop(bytes);
    }
    async fn half(&self, mut numbers: Outgoing<u64>) {
        let _ = numbers.send(1).await;
        // Dropped without an end.
    }
}

async fn everywhere<C: Codec>(check: impl AsyncFn(RoomClient<C>, Arc<Reader>)) {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let reader = Arc::new(Reader::default());
        let served = RoomServer::new(Arc::clone(&reader)).with_codec::<C>();
        let _serving = server.serve("room", served).unwrap();
        let node = over.client(2).await;
        let options = ClientOptions::default();
        let room = RoomClient::<C>::connect_with(&node, "room", &address, options).await.unwrap();
        soon("from afar", check(room, Arc::clone(&reader))).await;
        reader.written.store(0, Ordering::SeqCst);
        let room = RoomClient::<C>::connect_with(&server, "room", Here, options).await.unwrap();
        soon("from here", check(room, reader)).await;
    }
}

async fn rest<T: serde::de::DeserializeOwned>(mut incoming: Incoming<T>) -> Result<Vec<T>, StreamError> {
    let mut all = Vec::new();
    while let Some(item) = incoming.next().await? {
        all.push(item);
    }
    Ok(all)
}

async fn both_directions<C: Codec>() {
    everywhere::<C>(async |room, _| {
        let (mut writer, reader) = stream(8);
        let sum = room.sum_start(reader);
        for number in 1..=1_000 {
            writer.send(number).await.unwrap();
        }
        writer.end().await.unwrap();
        assert_eq!(sum.await, Ok(500_500));

        let (writer, reader) = stream(8);
        let count = room.count_start(1_000, writer);
        assert_eq!(rest(reader).await.unwrap(), (0..1_000).collect::<Vec<_>>());
        assert_eq!(count.await, Ok(1_000));

        let words = room.words("a stream is an answer".to_owned()).await.unwrap();
        assert_eq!(rest(words).await.unwrap(), ["a", "stream", "is", "an", "answer"]);

        let ((mut there, numbers), (doubled, back)) = (stream(3), stream(5));
        let call = room.double_start(numbers, doubled);
        let writing = async move {
            for number in 0..500 {
                there.send(number).await?;
            }
            there.end().await
        };
        let (written, doubled) = tokio::join!(writing, rest(back));
        written.unwrap();
        assert_eq!(doubled.unwrap(), (0..500).map(|number| 2 * number).collect::<Vec<u64>>());
        call.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn r03_streams_carry_items_in_both_directions_with_every_codec() {
    both_directions::<Postcard>().await;
    both_directions::<Json>().await;
    both_directions::<Bincode>().await;
}

#[tokio::test]
async fn r03_a_writer_is_never_further_ahead_than_its_reader_allows() {
    everywhere::<Postcard>(async |room, service| {
        let (writer, mut reader) = stream(10);
        let count = room.count_start(100, writer);
        for read in 0..100 {
            assert_eq!(reader.next().await.unwrap(), Some(read));
            // One more may just have been taken out of the window, and one is on its way into it.
            assert!(service.written.load(Ordering::SeqCst) <= read + 12);
        }
        assert_eq!(reader.next().await.unwrap(), None);
        assert_eq!(count.await, Ok(100));
    })
    .await;
}

#[tokio::test]
async fn r03_a_writer_waits_for_a_reader_that_does_not_read_and_learns_that_it_stopped() {
    everywhere::<Postcard>(async |room, service| {
        let (mut writer, reader) = stream(1_000);
        let hold = room.hold_start(reader);
        service.held.notified().await;
        let mut sent = 0;
        // Bytes are bounded too: not all items of the window fit.
        let writing = async {
            while sent < 1_000 {
                writer.send(vec![7; 64 << 10].into()).await?;
                sent += 1;
            }
            Ok::<_, StreamError>(writer)
        };
        let waiting = tokio::time::timeout(Duration::from_millis(50), writing).await;
        if let Ok(writing) = waiting {
            // Within a process only items are counted.
            writer = writing.unwrap();
            assert_eq!(sent, 1_000);
        } else {
            assert!((1..=18).contains(&sent), "{sent} of 64 KiB in a window of 1 MiB");
            let (writer, reader) = stream(1);
            let count = room.count_start(1, writer);
            assert_eq!(rest(reader).await.unwrap(), [0], "others go on beside it");
            assert_eq!(count.await, Ok(1));
            service.go.notify_one();
            hold.await.unwrap();
            return;
        }
        service.go.notify_one();
        hold.await.unwrap();
        assert_eq!(writer.send(Payload::default()).await, Err(StreamError::Stopped));
    })
    .await;
}

#[tokio::test]
async fn r03_a_reader_learns_that_something_is_missing() {
    everywhere::<Postcard>(async |room, _| {
        let (writer, mut reader) = stream(8);
        let half = room.half_start(writer);
        assert_eq!(reader.next().await, Ok(Some(1)));
        assert_eq!(reader.next().await, Err(StreamError::Abandoned));
        half.await.unwrap();

        let (writer, reader) = stream(8);
        let sum = room.sum_start(reader);
        drop(writer);
        assert!(sum.await.unwrap_err().to_string().contains("given up"));
    })
    .await;
}

#[tokio::test]
async fn r03_a_stream_ends_with_its_connection_and_with_its_call() {
    for over in Over::all() {
        let (server, address) = over.server(1).await;
        let reader = Arc::new(Reader::default());
        let serving = server.serve("room", RoomServer::new(Arc::clone(&reader))).unwrap();
        let node = over.client(2).await;
        let room = RoomClient::connect(&node, "room", &address).await.unwrap();

        // The call is cancelled: both directions end, here and there.
        let (writer, mut incoming) = stream(4);
        let count = room.count_start(u64::MAX, writer);
        assert_eq!(soon("an item", incoming.next()).await, Ok(Some(0)));
        drop(count);
        while let Ok(item) = soon("the end", incoming.next()).await {
            assert!(item.is_some(), "it was not all");
        }
        while serving.stats().executing > 0 {
            tokio::task::yield_now().await;
        }

        // The service goes, then the whole node.
        let (mut writer, incoming) = stream(4);
        let hold = room.hold_start(incoming);
        soon("the call", reader.held.notified()).await;
        drop(serving);
        server.shutdown(Duration::from_secs(5)).await;
        let error = soon("the end", async {
            loop {
                if let Err(error) = writer.send(vec![1].into()).await {
                    return error;
                }
            }
        })
        .await;
        assert!(matches!(error, StreamError::Broken | StreamError::Stopped), "{error}");
        drop(hold);
    }
}

#[tokio::test]
async fn r03_a_half_travels_once_and_before_it_is_used() {
    let (server, address) = Over::Tcp.server(1).await;
    let _serving = server.serve("room", RoomServer::new(Arc::new(Reader::default()))).unwrap();
    let node = Over::Tcp.client(2).await;
    let room = RoomClient::connect(&node, "room", &address).await.unwrap();
    let (mut writer, reader) = stream(8);
    writer.send(1u64).await.unwrap();
    let error = room.sum(reader).await.unwrap_err();
    // Some codecs say why, postcard does not.
    assert!(matches!(error, RpcError::Call(CallError::NotSent(NotSent::Encode(_)))), "{error}");
    assert_eq!(writer.send(2).await, Err(StreamError::Stopped));

    let (writer, reader) = stream(8);
    let error = room.double(reader, writer).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(NotSent::Encode(_))), "no half stays: {error}");
}
