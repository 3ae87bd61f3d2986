//! Publish/subscribe: filters are applied where messages are sent, so what nobody wants never travels.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::body::Body;
use super::config::WhenFull;
use super::engine::{ANSWER_MAX, Owner, Unanswered, send_wish};
use super::error::SendError;
use super::pipeline::open;
use super::reader::Reader;
use super::topics::PREFIXES_MAX;
use super::wire::{Role, SHORT_BYTES_MAX};
use super::{BindError, Options, ReceiveError, Remote, socket};
use crate::node::Node;

/// Publishes messages under topics.
///
/// A subscriber that does not keep up misses messages, counted for its link ([`links`](Self::links)), and holds up
/// nobody; with [`WhenFull::Wait`] it holds up the publisher instead.
pub struct Publisher {
    owner: Owner,
}

impl Publisher {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        Ok(Self { owner: open(node, Role::Publisher, name, options)? })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Publishes under `topic` (at most 65,535 bytes) to every subscriber that wants it, and tells how many got it.
    /// Waits only with [`WhenFull::Wait`].
    ///
    /// # Errors
    /// [`SendError::TooLarge`], [`SendError::Closed`].
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn publish(
        &self,
        topic: impl AsRef<[u8]>,
        body: impl Into<Body<'_>>,
    ) -> Result<usize, SendError> {
        let (topic, body) = (topic.as_ref(), body.into());
        let core = &self.owner.core;
        loop {
            let mut room = pin!(core.room.notified());
            room.as_mut().enable();
            match core.publish(topic, &body) {
                Ok(sent) => return Ok(sent),
                Err(refused)
                    if matches!(refused.error, SendError::Full) && core.when_full() == WhenFull::Wait =>
                {
                    core.wait_room(room, &refused.outlets, core.options.lane).await;
                }
                Err(refused) => return Err(refused.error),
            }
        }
    }

    /// As [`publish`](Self::publish), but never waits.
    ///
    /// # Errors
    /// [`SendError`]; with [`WhenFull::Wait`] also [`SendError::Full`], and then nobody got it.
    pub fn try_publish<'a>(
        &self,
        topic: impl AsRef<[u8]>,
        body: impl Into<Body<'a>>,
    ) -> Result<usize, SendError> {
        self.owner.core.publish(topic.as_ref(), &body.into()).map_err(|refused| refused.error)
    }
}

socket!(Publisher);

/// Receives what is published under the topics that it wants.
pub struct Subscriber {
    owner: Arc<Owner>,
    reader: Reader,
}

/// A message that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Who published it.
    pub from: Remote,
    /// Under what.
    pub topic: Bytes,
    /// Its content: a slice of what it came in, not a copy.
    pub body: Bytes,
}

impl Subscriber {
    fn make(node: &Node, name: Option<&str>, options: Options) -> Result<Self, BindError> {
        let owner = Arc::new(open(node, Role::Subscriber, name, options)?);
        Ok(Self { reader: Reader::new(owner.clone(), None), owner })
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Wants all topics that begin with `prefix` from now on, from every publisher that it is or will be linked
    /// with; the empty prefix is every topic. When it returns, every linked publisher knows: what it publishes later
    /// comes, unless the link breaks or this side does not keep up. It waits for their answers, at most 5 s; without a
    /// link it does not wait.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] when the prefix has more than 1,024 bytes; [`SendError::Full`] beyond 4,096
    /// prefixes; [`SendError::Unconfirmed`] when a publisher has not answered: the wish stands, and it is told again
    /// until it does; [`SendError::Closed`].
    /// # Cancel safety
    /// Dropping the future leaves the wish standing.
    pub async fn subscribe(&self, prefix: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.wish(prefix.as_ref(), true).await
    }

    /// No longer wants what [`subscribe`](Self::subscribe) asked for by the same prefix. When it returns, every
    /// linked publisher knows; what was published before may still come. It waits as `subscribe` does.
    ///
    /// # Errors
    /// [`SendError::TooLarge`], [`SendError::Unconfirmed`], [`SendError::Closed`].
    /// # Cancel safety
    /// Dropping the future leaves the wish withdrawn.
    pub async fn unsubscribe(&self, prefix: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.wish(prefix.as_ref(), false).await
    }

    /// The next message.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn receive(&mut self) -> Result<Published, ReceiveError> {
        loop {
            let (from, _, item) = self.reader.next().await?;
            // A publisher that sends something else is not one of ours: nothing of it is delivered.
            if let Some((topic, body)) = split(item) {
                return Ok(Published { from, topic, body });
            }
        }
    }

    /// The next message, if it has come.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn try_receive(&mut self) -> Result<Published, ReceiveError> {
        loop {
            let (from, _, item) = self.reader.try_next()?;
            if let Some((topic, body)) = split(item) {
                return Ok(Published { from, topic, body });
            }
        }
    }

    /// The next messages of one publisher that came together, borrowed, as topic and body. All of them count as
    /// received.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`].
    /// # Cancel safety
    /// Dropping the future loses nothing; dropping the batch loses what was not taken out of it.
    pub async fn receive_batch(&mut self) -> Result<impl Iterator<Item = (&[u8], &[u8])> + '_, ReceiveError> {
        Ok(self.reader.batch().await?.filter_map(|item| {
            let (length, rest) = item.split_first_chunk()?;
            rest.split_at_checked(u16::from_le_bytes(*length).into())
        }))
    }

    async fn wish(&self, prefix: &[u8], is_wanted: bool) -> Result<(), SendError> {
        if prefix.len() > SHORT_BYTES_MAX {
            return Err(SendError::TooLarge { size: prefix.len(), limit: SHORT_BYTES_MAX });
        }
        let core = &self.owner.core;
        let serial = {
            let mut state = core.state();
            if !state.is_open() {
                return Err(SendError::Closed);
            }
            let prefix = Bytes::copy_from_slice(prefix);
            if is_wanted && state.filters.len() >= PREFIXES_MAX && !state.filters.contains_key(&prefix) {
                return Err(SendError::Full);
            }
            state.last_serial += 1;
            let serial = state.last_serial;
            if is_wanted {
                state.filters.insert(prefix.clone(), serial);
            } else {
                state.filters.remove(&prefix);
            }
            let state = &mut *state;
            let asked_at = Instant::now();
            for link in state.links.values().filter(|link| link.is_up()) {
                let wish = Unanswered { prefix: prefix.clone(), is_wanted, asked_at };
                send_wish(link, core.options.lane, serial, &wish);
                state.unanswered.insert((serial, link.number), wish);
            }
            serial
        };
        core.look_after();
        let answered = async {
            loop {
                let mut changed = pin!(core.changed.notified());
                changed.as_mut().enable();
                {
                    let state = core.state();
                    if state.unanswered.range((serial, 0)..=(serial, u32::MAX)).next().is_none() {
                        return Ok(());
                    }
                    if !state.is_open() {
                        return Err(SendError::Closed);
                    }
                }
                changed.await;
            }
        };
        let unconfirmed = Err(SendError::Unconfirmed { waited: ANSWER_MAX });
        tokio::time::timeout(ANSWER_MAX, answered).await.unwrap_or(unconfirmed)
    }
}

socket!(Subscriber);

/// Topic and body of an item.
fn split(mut item: Bytes) -> Option<(Bytes, Bytes)> {
    let length = usize::from(item.try_get_u16_le().ok()?);
    if item.len() < length {
        return None;
    }
    Some((item.split_to(length), item))
}
