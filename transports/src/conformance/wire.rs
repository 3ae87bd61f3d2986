//! A link with its buffers, as the checks use it.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Failure, Subject};
use crate::address::Address;
use crate::error::{LinkError, TransportError};
use crate::frame::{Inbox, Outbox};
use crate::transport::{Link, Listener};

/// The largest frame in the checks.
pub(super) const FRAME_BYTES_MAX: usize = 1 << 20;

/// One end of a link.
pub(super) struct Wire {
    pub(super) link: Link,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
}

impl Wire {
    pub(super) fn new(link: Link) -> Self {
        Self { link, outbox: Outbox::new(FRAME_BYTES_MAX), inbox: Inbox::new(FRAME_BYTES_MAX) }
    }

    /// Sends what is in the outbox.
    pub(super) async fn flush(&mut self) -> Result<(), LinkError> {
        poll_fn(|cx| self.link.sender.poll_send(cx, &mut self.outbox)).await
    }

    /// Sends one frame.
    pub(super) async fn send(&mut self, frame: &[u8]) -> Result<(), Failure> {
        self.outbox.push(&[frame])?;
        Ok(self.flush().await?)
    }

    pub(super) async fn close(&mut self) -> Result<(), LinkError> {
        poll_fn(|cx| self.link.sender.poll_close(cx)).await
    }

    /// The next frame; `None` at a clean end.
    pub(super) async fn receive(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(frame) = self.inbox.next_frame()? {
                return Ok(Some(frame));
            }
            if !poll_fn(|cx| self.link.receiver.poll_receive(cx, &mut self.inbox)).await? {
                return Ok(None);
            }
            if self.inbox.bytes() > INBOX_BYTES_MAX {
                return Err(Failure::new(format!(
                    "one poll put {} bytes into the inbox",
                    self.inbox.bytes()
                )));
            }
        }
    }

    /// The next frame, which must be there.
    pub(super) async fn frame(&mut self) -> Result<Bytes, Failure> {
        self.receive().await?.ok_or_else(|| Failure::new("the stream ended where a frame was due"))
    }

    /// Takes one frame and compares it.
    pub(super) async fn expect(&mut self, expected: &[u8]) -> Result<(), Failure> {
        let got = self.frame().await?;
        same(&got, expected)
    }

    /// Takes the clean end.
    pub(super) async fn expect_end(&mut self) -> Result<(), Failure> {
        match self.receive().await? {
            None => Ok(()),
            Some(frame) => Err(Failure::new(format!("a frame of {} bytes instead of the end", frame.len()))),
        }
    }

    /// Polls the sender once, without anybody to be woken.
    pub(super) fn send_once(&mut self) -> Poll<Result<(), LinkError>> {
        self.link.sender.poll_send(&mut Context::from_waker(Waker::noop()), &mut self.outbox)
    }

    /// Polls the receiver once, without anybody to be woken.
    pub(super) fn receive_once(&mut self) -> Poll<Result<bool, LinkError>> {
        self.link.receiver.poll_receive(&mut Context::from_waker(Waker::noop()), &mut self.inbox)
    }
}

impl Subject {
    /// The place to listen at.
    pub(super) fn address(&self) -> Result<Address, Failure> {
        Ok(self.place.parse()?)
    }

    pub(super) async fn listener(&self) -> Result<Box<dyn Listener>, Failure> {
        Ok(self.listening.listen(&self.address()?).await?)
    }

    /// A dialled and an accepted end of one link.
    pub(super) async fn wires(&self) -> Result<(Wire, Wire), Failure> {
        let mut listener = self.listener().await?;
        self.wires_to(listener.as_mut()).await
    }

    pub(super) async fn wires_to(&self, listener: &mut dyn Listener) -> Result<(Wire, Wire), Failure> {
        let target = listener.local_address();
        // Whichever fails says why: waiting for the other would hide it.
        let (dialled, accepted) = tokio::try_join!(self.dialling.connect(&target), accept(listener))?;
        Ok((Wire::new(dialled), accepted))
    }
}

pub(super) async fn accept(listener: &mut dyn Listener) -> Result<Wire, TransportError> {
    poll_fn(|cx| listener.poll_accept(cx)).await.map(Wire::new)
}

/// Compares two frames and says where they differ.
pub(super) fn same(got: &[u8], expected: &[u8]) -> Result<(), Failure> {
    if got == expected {
        return Ok(());
    }
    let at = got.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(got.len().min(expected.len()));
    let (got, expected) = (got.len(), expected.len());
    Err(Failure::new(format!("a frame of {got} bytes instead of {expected}, different from byte {at} on")))
}

/// Bytes that tell frames apart: each position depends on the frame's number.
pub(super) fn pattern(number: usize, size: usize) -> Vec<u8> {
    let step = (number as u8).wrapping_mul(2).wrapping_add(1);
    (0..size).map(|at| (at as u8).wrapping_mul(step).wrapping_add((at >> 8) as u8) ^ number as u8).collect()
}

/// What one poll may add to an inbox: a read or a window, and a frame. More is not backpressure.
const INBOX_BYTES_MAX: usize = 8 << 20;
