//! The handshake on a link: one hello each way, within a deadline, before anything else.

use std::future::poll_fn;
use std::time::Duration;

use super::hello::{Agreement, Hello, HelloError, Mismatch, Verdict, agree};
use super::{ConnectionConfig, FRAME_BYTES_MAX};
use crate::address::Address;
use crate::error::LinkError;
use crate::frame::{FrameError, Inbox, Outbox};
use crate::identity::Identity;
use crate::transport::Link;

/// A link whose two sides know and accept each other. [`start`](Self::start) makes a connection of it.
#[derive(Debug)]
pub struct Established {
    /// The link.
    pub link: Link,
    /// What the peer said of itself.
    pub peer: Hello,
    /// What both agreed on.
    pub agreement: Agreement,
    /// Whether this side dialled.
    pub is_dialled: bool,
    /// What came in behind the hello.
    pub(super) inbox: Inbox,
}

impl Established {
    /// Takes the handshake for granted: for a link whose two ends are in the same hands.
    pub fn assume(link: Link, peer: Hello, agreement: Agreement, is_dialled: bool) -> Self {
        Self { link, peer, agreement, is_dialled, inbox: Inbox::new(FRAME_BYTES_MAX) }
    }
}

/// Speaks first on a link that this side dialled.
///
/// # Errors
/// [`HandshakeError`]; the link is gone, and the peer delivers nothing from it.
/// # Cancel safety
/// Dropping the future drops the link; the peer may have accepted a connection that breaks at once.
pub async fn dial(
    mut link: Link,
    ours: &Hello,
    config: &ConnectionConfig,
) -> Result<Established, HandshakeError> {
    let exchange = async {
        let mut inbox = Inbox::new(FRAME_BYTES_MAX);
        say(&mut link, ours, Verdict::Accept).await?;
        let (peer, verdict) = hear(&mut link, &mut inbox, ours).await?;
        let agreement = agree(ours, &peer)?;
        match verdict {
            Verdict::Accept => Ok((inbox, peer, agreement)),
            Verdict::Duplicate => Err(Cause::Duplicate(peer.identity)),
            Verdict::ShuttingDown => Err(Cause::ShuttingDown(peer.identity)),
            Verdict::Incompatible => Err(Cause::Refused(peer.identity)),
        }
    };
    match bounded(exchange, config.handshake_max).await {
        Ok((inbox, peer, agreement)) => Ok(Established { link, peer, agreement, is_dialled: true, inbox }),
        Err(cause) => Err(cause.at(&link.peer)),
    }
}

/// Answers on a link that a peer dialled. `decide` is asked once, when the two fit together; only
/// [`Verdict::Accept`] leads to a connection.
///
/// # Errors
/// [`HandshakeError`]; the peer was told why where that is possible. A peer that was accepted may still have vanished
/// before it heard so.
/// # Cancel safety
/// As [`dial`].
pub async fn answer(
    mut link: Link,
    ours: &Hello,
    config: &ConnectionConfig,
    decide: impl FnOnce(&Hello) -> Verdict,
) -> Result<Established, HandshakeError> {
    let exchange = async {
        let mut inbox = Inbox::new(FRAME_BYTES_MAX);
        let heard = hear(&mut link, &mut inbox, ours).await;
        let fits = heard.and_then(|(peer, _)| Ok((agree(ours, &peer)?, peer)));
        let (agreement, peer) = match fits {
            Ok(fits) => fits,
            Err(Cause::Mismatch(mismatch)) => {
                // The peer compares the hellos too and finds the same.
                refuse(&mut link, ours, Verdict::Incompatible).await;
                return Err(Cause::Mismatch(mismatch));
            }
            Err(cause) => return Err(cause),
        };
        let verdict = decide(&peer);
        let cause = match verdict {
            Verdict::Accept => {
                say(&mut link, ours, verdict).await?;
                return Ok((inbox, peer, agreement));
            }
            Verdict::Duplicate => Cause::Duplicate(peer.identity),
            Verdict::ShuttingDown => Cause::ShuttingDown(peer.identity),
            Verdict::Incompatible => Cause::Refused(peer.identity),
        };
        refuse(&mut link, ours, verdict).await;
        Err(cause)
    };
    match bounded(exchange, config.handshake_max).await {
        Ok((inbox, peer, agreement)) => Ok(Established { link, peer, agreement, is_dialled: false, inbox }),
        Err(cause) => Err(cause.at(&link.peer)),
    }
}

/// Why two sides did not come together. No message was or will be delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The two sides do not fit together.
    #[error("{peer} does not fit")]
    Mismatch {
        /// The other end.
        peer: Address,
        /// Both sides' values.
        #[source]
        source: Mismatch,
    },
    /// What came is not a hello.
    #[error("{peer} does not speak the protocol")]
    Hello {
        /// The other end.
        peer: Address,
        /// What is wrong with it.
        #[source]
        source: HelloError,
    },
    /// The link broke.
    #[error("link broke during the handshake")]
    Link(#[source] LinkError),
    /// The peer closed without answering.
    #[error("{peer} closed during the handshake")]
    Closed {
        /// The other end.
        peer: Address,
    },
    /// The peer did not finish in time.
    #[error("{peer} did not finish the handshake within {limit_ms} ms")]
    TimedOut {
        /// The other end.
        peer: Address,
        /// The limit.
        limit_ms: u64,
    },
    /// Another connection between the two is preferred.
    #[error("another connection with {identity} is preferred")]
    Duplicate {
        /// Who stands at the other end.
        identity: Identity,
    },
    /// The answering side takes no connections any more.
    #[error("{identity} is shutting down")]
    ShuttingDown {
        /// Who answers.
        identity: Identity,
    },
    /// The answering side does not admit this one, or found a mismatch that this side does not see.
    #[error("{identity} refused the connection")]
    Refused {
        /// Who answers.
        identity: Identity,
    },
}

/// A [`HandshakeError`] without the address.
enum Cause {
    Mismatch(Mismatch),
    Hello(HelloError),
    Link(LinkError),
    Closed,
    TimedOut(Duration),
    Duplicate(Identity),
    ShuttingDown(Identity),
    Refused(Identity),
}

impl Cause {
    fn at(self, peer: &Address) -> HandshakeError {
        let peer = peer.clone();
        match self {
            Self::Mismatch(source) => HandshakeError::Mismatch { peer, source },
            Self::Hello(source) => HandshakeError::Hello { peer, source },
            Self::Link(source) => HandshakeError::Link(source),
            Self::Closed => HandshakeError::Closed { peer },
            Self::TimedOut(limit) => {
                let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                HandshakeError::TimedOut { peer, limit_ms }
            }
            Self::Duplicate(identity) => HandshakeError::Duplicate { identity },
            Self::ShuttingDown(identity) => HandshakeError::ShuttingDown { identity },
            Self::Refused(identity) => HandshakeError::Refused { identity },
        }
    }
}

impl From<LinkError> for Cause {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<Mismatch> for Cause {
    fn from(mismatch: Mismatch) -> Self {
        Self::Mismatch(mismatch)
    }
}

async fn bounded<T>(exchange: impl Future<Output = Result<T, Cause>>, limit: Duration) -> Result<T, Cause> {
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(Cause::TimedOut(limit)))
}

async fn say(link: &mut Link, ours: &Hello, verdict: Verdict) -> Result<(), Cause> {
    let mut outbox = Outbox::new(FRAME_BYTES_MAX);
    outbox.push_body(&[], ours.encode(verdict)).map_err(|source| frame_error(link, source))?;
    Ok(poll_fn(|cx| link.sender.poll_send(cx, &mut outbox)).await?)
}

/// Tells the peer why not. A courtesy: the reason matters more here than a failure to tell it, and a peer that has heard
/// it may be gone before its word of that is back.
async fn refuse(link: &mut Link, ours: &Hello, verdict: Verdict) {
    if say(link, ours, verdict).await.is_ok() {
        let _ = poll_fn(|cx| link.sender.poll_close(cx)).await;
    }
}

async fn hear(link: &mut Link, inbox: &mut Inbox, ours: &Hello) -> Result<(Hello, Verdict), Cause> {
    loop {
        if let Some(frame) = inbox.next_frame().map_err(|source| frame_error(link, source))? {
            return Hello::decode(&frame, ours.versions).map_err(|error| match error {
                HelloError::Mismatch(mismatch) => Cause::Mismatch(mismatch),
                error => Cause::Hello(error),
            });
        }
        if !poll_fn(|cx| link.receiver.poll_receive(cx, inbox)).await? {
            return Err(Cause::Closed);
        }
    }
}

fn frame_error(link: &Link, source: FrameError) -> Cause {
    Cause::Link(LinkError::Frame { peer: link.peer.clone(), source })
}
