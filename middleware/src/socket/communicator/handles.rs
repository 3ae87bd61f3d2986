//! What a member holds while a send or a receive of its is under way.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use super::mail::{Answer, MESSAGE, Mailbox, Unexpected, Waiting};
use super::{Communicator, Letter, PassError, failed};

/// A message on its way; dropping the handle changes nothing for the message.
pub struct Sending<'a> {
    pub(super) communicator: &'a Communicator,
    pub(super) to: u32,
    pub(super) link: u32,
    pub(super) messages: u64,
    pub(super) asking: Option<Asking<'a>>,
}

impl Sending<'_> {
    /// Waits for the moment of the mode that it was sent in.
    ///
    /// # Errors
    /// [`PassError`].
    /// # Cancel safety
    /// Dropping the future drops the handle.
    pub async fn wait(self) -> Result<(), PassError> {
        match self.asking {
            Some(asking) => asking.answer(self.to).await.map(drop),
            None => {
                let left = self.communicator.owner.core.wait_sent(self.link, self.messages).await;
                left.map_err(|error| failed(error, self.to))
            }
        }
    }
}

/// A receive that waits for its message; dropping it gives the message, if it has come, to the next receive.
pub struct Receiving<'a> {
    pub(super) communicator: &'a Communicator,
    pub(super) id: u64,
}

impl Receiving<'_> {
    /// The message, if it has come; the handle gives it once.
    pub fn test(&mut self) -> Option<Letter> {
        self.communicator.mail.mail().posted.get_mut(&self.id)?.got.take()
    }

    /// Waits for the message.
    /// # Cancel safety
    /// Dropping the future drops the handle.
    pub async fn wait(self) -> Letter {
        poll_fn(|cx| {
            let mut mail = self.communicator.mail.mail();
            if let Some(posted) = mail.posted.get_mut(&self.id) {
                if let Some(letter) = posted.got.take() {
                    return Poll::Ready(letter);
                }
                posted.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let mail = &self.communicator.mail;
        let unread = mail.mail().posted.remove(&self.id).and_then(|posted| posted.got);
        if let Some(letter) = unread {
            // It counts as taken already; the next receive that fits gets it.
            let unread = Unexpected { letter, kind: MESSAGE, id: 0, size: 0 };
            mail.arrive(&self.communicator.owner.core, unread, true);
        }
    }
}

/// Waits for a receipt or a reply.
pub(super) struct Asking<'a> {
    pub(super) mail: &'a Mailbox,
    pub(super) id: u64,
}

impl Asking<'_> {
    pub(super) fn sent_on(&self, link: u32) {
        if let Some(waiting) = self.mail.mail().answers.get_mut(&self.id) {
            waiting.link = Some(link);
        }
    }

    pub(super) async fn answer(&self, to: u32) -> Result<Bytes, PassError> {
        poll_fn(|cx| {
            let mut mail = self.mail.mail();
            let Some(waiting) = mail.answers.get_mut(&self.id) else {
                return Poll::Ready(Err(PassError::Gone { rank: to }));
            };
            match waiting.answer.take() {
                Some(Answer::Yes(body)) => Poll::Ready(Ok(body)),
                Some(Answer::NotReady) => Poll::Ready(Err(PassError::NotReady { rank: to })),
                Some(Answer::Gone) => Poll::Ready(Err(PassError::Gone { rank: to })),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.mail.mail().answers.remove(&self.id);
    }
}

impl Mailbox {
    pub(super) fn begin_asking(&self) -> Asking<'_> {
        let mut mail = self.mail();
        mail.last += 1;
        let id = mail.last;
        mail.answers.insert(id, Waiting::default());
        Asking { mail: self, id }
    }
}
