//! How a direction ends, and what a reader that does not read costs.

use super::{BUFFERED_BYTES_MAX, FRAME_BYTES, fail};
use crate::conformance::wire::{Wire, pattern};
use crate::conformance::{Failure, Subject, Verdict};
use crate::error::LinkError;

pub(super) async fn close_flushes(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    let sending = async {
        for number in 0..200 {
            a.outbox.push(&[&pattern(number, 20_000)])?;
        }
        a.flush().await?;
        a.close().await?;
        // The link goes at once: what was flushed must arrive all the same.
        drop(a);
        Ok::<_, Failure>(())
    };
    let receiving = async {
        for number in 0..200 {
            b.expect(&pattern(number, 20_000)).await?;
            // A reader that is slower than the writer's exit.
            tokio::task::yield_now().await;
        }
        b.expect_end().await?;
        b.expect_end().await
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

pub(super) async fn half_close(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    a.send(b"question").await?;
    a.close().await?;
    // Once more is no harm.
    a.close().await?;
    b.expect(b"question").await?;
    b.expect_end().await?;
    for number in 0..50 {
        b.send(&pattern(number, 10_000)).await?;
        a.expect(&pattern(number, 10_000)).await?;
    }
    b.close().await?;
    a.expect_end().await
}

pub(super) async fn send_after_close(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    a.send(b"last").await?;
    a.close().await?;
    a.outbox.push(&[b"late"])?;
    match a.flush().await {
        Err(LinkError::Closed) => {}
        other => return fail(format!("a send after closing gave {other:?}")),
    }
    b.expect(b"last").await?;
    b.expect_end().await
}

pub(super) async fn backpressure(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    let mut offered = 0;
    loop {
        a.outbox.push(&[&pattern(offered, FRAME_BYTES)])?;
        offered += 1;
        if a.send_once()?.is_pending() {
            break;
        }
        if offered * FRAME_BYTES > BUFFERED_BYTES_MAX {
            return fail(format!("took {} bytes that nobody reads", offered * FRAME_BYTES));
        }
        tokio::task::yield_now().await;
    }
    let sending = async {
        a.flush().await?;
        a.close().await?;
        Ok::<_, Failure>(())
    };
    let receiving = async {
        for number in 0..offered {
            b.expect(&pattern(number, FRAME_BYTES)).await?;
        }
        b.expect_end().await
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

pub(super) async fn independence(subject: Subject) -> Verdict {
    let mut listener = subject.listener().await?;
    let (mut full, unread) = subject.wires_to(listener.as_mut()).await?;
    let mut offered = 0;
    loop {
        full.outbox.push(&[&pattern(0, FRAME_BYTES)])?;
        offered += FRAME_BYTES;
        if full.send_once()?.is_pending() || offered > BUFFERED_BYTES_MAX {
            break;
        }
    }
    let (mut a, mut b) = subject.wires_to(listener.as_mut()).await?;
    for number in 0..50 {
        a.send(&pattern(number, 1_000)).await?;
        b.expect(&pattern(number, 1_000)).await?;
    }
    drop(unread);
    Ok(())
}

pub(super) async fn dropped_link(subject: Subject) -> Verdict {
    for dialler_goes in [true, false] {
        let (a, b) = subject.wires().await?;
        let (gone, mut left) = if dialler_goes { (a, b) } else { (b, a) };
        drop(gone);
        // An error or the end, as the contract says, but not for ever nothing and no frame.
        if let Ok(Some(frame)) = left.receive().await {
            return fail(format!("a frame of {} bytes from a dropped link", frame.len()));
        }
        // The sender finds out when it sends, perhaps not at the first frame.
        let mut sent = 0;
        while left.send(&pattern(0, FRAME_BYTES)).await.is_ok() {
            sent += FRAME_BYTES;
            if sent > BUFFERED_BYTES_MAX {
                return fail(format!("took {sent} bytes for a dropped link"));
            }
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

pub(super) async fn dropped_sender(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    a.send(b"first").await?;
    b.expect(b"first").await?;
    let Wire { link, .. } = a;
    drop(link.sender);
    match b.receive().await {
        Ok(Some(frame)) => fail(format!("a frame of {} bytes from a dropped sender", frame.len())),
        Ok(None) | Err(_) => {
            drop(link.receiver);
            Ok(())
        }
    }
}
