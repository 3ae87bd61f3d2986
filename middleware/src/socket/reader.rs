//! Taking what has come out of a socket: message by message, or a whole frame of them at once.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::engine::{Owner, Taken};
use super::error::ReceiveError;
use super::wire::{self, Class};
use super::{Message, Remote};

/// The reading end of a socket: takes frames under the socket's lock and messages out of them without it.
pub(super) struct Reader {
    owner: Arc<Owner>,
    /// Only this link.
    link: Option<u32>,
    from: Option<Remote>,
    class: Class,
    items: Bytes,
    /// What a batch borrows.
    held: Bytes,
}

impl Reader {
    pub(super) fn new(owner: Arc<Owner>, link: Option<u32>) -> Self {
        Self { owner, link, from: None, class: Class::Ordinary, items: Bytes::new(), held: Bytes::new() }
    }

    #[inline]
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Remote, Class, Bytes), ReceiveError>> {
        loop {
            if let Some(next) = self.next_here() {
                return Poll::Ready(Ok(next));
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    #[inline]
    pub(super) async fn next(&mut self) -> Result<(Remote, Class, Bytes), ReceiveError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(super) async fn message(&mut self) -> Result<Message, ReceiveError> {
        let (from, _, body) = self.next().await?;
        Ok(Message { from, body })
    }

    pub(super) fn try_next(&mut self) -> Result<(Remote, Class, Bytes), ReceiveError> {
        loop {
            if let Some(next) = self.next_here() {
                return Ok(next);
            }
            let taken = self.owner.core.try_frame()?;
            self.hold(taken);
        }
    }

    pub(super) async fn batch(&mut self) -> Result<Batch<'_>, ReceiveError> {
        let from = loop {
            if let Some(from) = self.from.filter(|_| !self.items.is_empty()) {
                break from;
            }
            poll_fn(|cx| self.poll_fill(cx)).await?;
        };
        self.held = std::mem::take(&mut self.items);
        Ok(Batch { from, frame: &self.held, rest: &self.held })
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ReceiveError>> {
        let taken = ready!(match self.link {
            Some(link) => self.owner.core.poll_frame_of(cx, link),
            None => self.owner.core.poll_frame(cx),
        })?;
        self.hold(taken);
        Poll::Ready(Ok(()))
    }

    fn hold(&mut self, taken: Taken) {
        self.from = Some(taken.from);
        self.class = taken.class;
        self.items = taken.items;
    }

    #[inline]
    fn next_here(&mut self) -> Option<(Remote, Class, Bytes)> {
        let item = wire::next_item(&mut self.items)?;
        Some((self.from?, self.class, item))
    }
}

/// Messages of one sender that came together, borrowed: the fastest way to read many. An iterator over their bytes.
#[derive(Debug)]
pub struct Batch<'a> {
    from: Remote,
    frame: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Who sent them.
    pub fn from(&self) -> Remote {
        self.from
    }

    /// One of the batch's messages, to be kept, without copying it. It keeps the frame that it came in alive.
    pub fn keep(&self, message: &'a [u8]) -> Bytes {
        self.frame.slice_ref(message)
    }
}

impl<'a> Iterator for Batch<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        wire::next_slice(&mut self.rest)
    }
}
