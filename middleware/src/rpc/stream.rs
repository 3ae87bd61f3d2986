//! Streams as arguments and results of calls, in either direction, with backpressure.
//!
//! Guarantee   items arrive in order, each once, as long as the connection lasts; a reader learns whether it has seen all
//!             of them. A stream whose connection breaks ends with an error on both sides; it is not taken up again.
//! Method      a stream has two halves; one stays, the other travels with a call or its answer. The reader grants
//!             items and bytes, the writer waits for them. Who has waited long asks, so that words that were lost end
//!             the wait.
//! Limits      `window` items (at most 65,536) and 1 MiB (the last item may exceed it), 4,096 streams of a client or a service.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use quorate_protocols::rpc::{ReadingHalf, Taken, WritingHalf};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::pipe::{PATIENCE, Pipe, State};
use super::port;
use crate::codec::{Codec, DecodeError, EncodeError, Postcard, decode_frame};

/// Makes a stream of which at most `window` items (at least one) wait to be read.
///
/// Give one half to a method marked `#[streaming]`, or return it from one, and keep the other. A half travels before it is
/// used; a stream of which no half travels stays within the process. Items are encoded by postcard whatever the codec
/// of the service.
pub fn stream<T>(window: u32) -> (Outgoing<T>, Incoming<T>) {
    let pipe = Arc::new(Pipe::new(window));
    let writer = Outgoing { pipe: Arc::clone(&pipe), is_done: AtomicBool::new(false) };
    (writer, Incoming { pipe, is_done: AtomicBool::new(false) })
}

/// Why a stream does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Nobody reads any more. What was written may have been read or not.
    #[error("nobody reads the stream any more")]
    Stopped,
    /// The writer was dropped before it said that this was all.
    #[error("the stream was given up by its writer")]
    Abandoned,
    /// The connection broke, the call failed, or the other side is gone.
    #[error("the stream broke")]
    Broken,
    /// The item has no representation. The stream goes on without it.
    #[error("{0}")]
    Encode(EncodeError),
    /// The item exceeds what the connection carries. The stream goes on without it.
    #[error("an item of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The item is not understood: the two sides differ in its type. The stream goes on behind it.
    #[error("an item is not understood: {0}")]
    Decode(DecodeError),
}

/// The half that writes. Dropping it before [`end`](Self::end) tells the reader that something is missing.
pub struct Outgoing<T> {
    pipe: Arc<Pipe<T>>,
    /// It has travelled, or ended.
    is_done: AtomicBool,
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Outgoing<T> {
    /// Writes an item; waits until the reader has room for it.
    ///
    /// # Errors
    /// [`StreamError`]; the item was not written.
    /// # Cancel safety
    /// Dropping the future drops the item, unless it has been written.
    pub async fn send(&mut self, item: T) -> Result<(), StreamError> {
        if self.pipe.is_here() {
            return self.pipe.push(item).await;
        }
        let mut body = BytesMut::new();
        Postcard::encode(&item, &mut body).map_err(StreamError::Encode)?;
        self.pipe.say(Some(body.freeze())).await
    }

    /// Says that this was all. The reader sees the end behind the last item.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] and [`StreamError::Broken`]: the reader does not learn of it.
    /// # Cancel safety
    /// Dropping the future gives the stream up.
    pub async fn end(self) -> Result<(), StreamError> {
        if self.pipe.is_here() {
            self.pipe.end_here();
        } else {
            self.pipe.say(None).await?;
        }
        self.is_done.store(true, Ordering::Relaxed);
        self.pipe.leave();
        Ok(())
    }
}

impl<T> Drop for Outgoing<T> {
    fn drop(&mut self) {
        if !*self.is_done.get_mut() {
            self.pipe.give_up();
        }
    }
}

/// The half that reads. Dropping it tells the writer to stop.
pub struct Incoming<T> {
    pipe: Arc<Pipe<T>>,
    /// It has travelled.
    is_done: AtomicBool,
}

impl<T: DeserializeOwned> Incoming<T> {
    /// The next item; `None` when the writer said that this was all.
    ///
    /// # Errors
    /// [`StreamError::Abandoned`], [`StreamError::Broken`]: items may be missing. [`StreamError::Decode`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<T>, StreamError> {
        loop {
            let mut moved = pin!(self.pipe.reader.notified());
            moved.as_mut().enable();
            let (taken, far) = match &mut *self.pipe.state() {
                State::Here(here) => match (here.ready.pop_front(), here.end) {
                    (Some(item), _) => {
                        self.pipe.writer.notify_waiters();
                        return Ok(Some(item));
                    }
                    (None, Some(true)) => (Taken::End, None),
                    (None, Some(false)) => (Taken::Abandoned, None),
                    (None, None) => (Taken::Nothing, None),
                },
                State::Reads(half, far) => {
                    let taken = half.take();
                    let is_worth_a_word = matches!(taken, Taken::Item(_, Some(_)));
                    (taken, is_worth_a_word.then(|| far.clone()))
                }
                // This half has travelled.
                State::Writes(..) => (Taken::Broken, None),
            };
            match taken {
                Taken::Item(body, grant) => {
                    if let (Some(word), Some((link, stream))) = (grant, far) {
                        // Lost, it is said again when this side has waited for long.
                        let _ = link.say(stream, word);
                    }
                    return decode_frame::<Postcard, T>(&body).map(Some).map_err(StreamError::Decode);
                }
                Taken::Nothing => {}
                Taken::End => return Ok(None),
                Taken::Abandoned => return Err(StreamError::Abandoned),
                Taken::Broken => return Err(StreamError::Broken),
            }
            if tokio::time::timeout(PATIENCE, moved).await.is_err() {
                self.pipe.ask_writer();
            }
        }
    }
}

impl<T> Drop for Incoming<T> {
    fn drop(&mut self) {
        if !*self.is_done.get_mut() {
            self.pipe.stop();
        }
    }
}

/// How a half travels: number, window.
#[derive(serde::Serialize, serde::Deserialize)]
struct Ticket(u64, u32);

/// Sends one half on its way; the other one stays and is at work from now on.
fn depart<T, S>(
    pipe: &Arc<Pipe<T>>,
    is_done: &AtomicBool,
    is_reader: bool,
    serializer: S,
) -> Result<S::Ok, S::Error>
where
    T: Send + 'static,
    S: Serializer,
{
    let link =
        port::link().ok_or_else(|| S::Error::custom("a stream travels with a streaming method only"))?;
    let mut state = pipe.state();
    if !state.is_fresh() || is_done.load(Ordering::Relaxed) {
        return Err(S::Error::custom("a stream travels once, before it is used, and keeps one half at home"));
    }
    let number =
        link.enter(None, Arc::clone(pipe) as _).ok_or_else(|| S::Error::custom("too many streams"))?;
    port::note(number);
    *state = if is_reader {
        State::Writes(WritingHalf::new(), (link, number))
    } else {
        // The writer over there knows the window and may begin.
        State::Reads(ReadingHalf::new(pipe.window), (link, number))
    };
    drop(state);
    is_done.store(true, Ordering::Relaxed);
    Ticket(number, pipe.window).serialize(serializer)
}

/// Receives one half.
fn arrive<'de, T, D>(is_reader: bool, deserializer: D) -> Result<Arc<Pipe<T>>, D::Error>
where
    T: Send + 'static,
    D: Deserializer<'de>,
{
    let Ticket(number, window) = Ticket::deserialize(deserializer)?;
    let link =
        port::link().ok_or_else(|| D::Error::custom("a stream travels with a streaming method only"))?;
    let pipe = Arc::new(Pipe::new(window));
    let way = (Arc::clone(&link), number);
    *pipe.state() = if is_reader {
        State::Reads(ReadingHalf::new(pipe.window), way)
    } else {
        State::Writes(WritingHalf::granted(pipe.window), way)
    };
    link.enter(Some(number), Arc::clone(&pipe) as _).ok_or_else(|| D::Error::custom("too many streams"))?;
    if is_reader {
        pipe.ask_writer();
    }
    Ok(pipe)
}

impl<T: Send + 'static> Serialize for Outgoing<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        depart(&self.pipe, &self.is_done, false, serializer)
    }
}

impl<T: Send + 'static> Serialize for Incoming<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        depart(&self.pipe, &self.is_done, true, serializer)
    }
}

impl<'de, T: Send + 'static> Deserialize<'de> for Outgoing<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { pipe: arrive(false, deserializer)?, is_done: AtomicBool::new(false) })
    }
}

impl<'de, T: Send + 'static> Deserialize<'de> for Incoming<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { pipe: arrive(true, deserializer)?, is_done: AtomicBool::new(false) })
    }
}

impl<T> fmt::Debug for Outgoing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the writing half of a stream")
    }
}

impl<T> fmt::Debug for Incoming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reading half of a stream")
    }
}
