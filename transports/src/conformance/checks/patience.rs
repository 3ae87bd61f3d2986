//! Polls that are given up, and repeated by somebody else.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::fail;
use crate::conformance::wire::{Wire, accept, pattern, same};
use crate::conformance::{Failure, Subject, Verdict};

pub(super) async fn abandoned_send(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    const FRAMES: usize = 300;
    let sending = async {
        for number in 0..FRAMES {
            a.outbox.push(&[&pattern(number, 30_000)])?;
            // Looks once and turns to something else, as a `select` does; the outbox remembers.
            let _ = a.send_once()?;
            if number % 10 == 0 {
                a.flush().await?;
            }
        }
        a.flush().await?;
        Ok::<_, Failure>(())
    };
    let receiving = async {
        for number in 0..FRAMES {
            b.expect(&pattern(number, 30_000)).await?;
        }
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

pub(super) async fn abandoned_receive(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    const FRAMES: usize = 200;
    let sending = async {
        for number in 0..FRAMES {
            a.send(&pattern(number, 5_000)).await?;
            tokio::task::yield_now().await;
        }
        Ok::<_, Failure>(())
    };
    let receiving = async {
        for number in 0..FRAMES {
            for _ in 0..number % 4 {
                // Whatever this look brings stays in the inbox.
                if let Poll::Ready(result) = b.receive_once() {
                    result?;
                    break;
                }
            }
            b.expect(&pattern(number, 5_000)).await?;
        }
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

pub(super) async fn last_waker(subject: Subject) -> Verdict {
    struct Flag(AtomicBool, Waker);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
            self.1.wake_by_ref();
        }
    }
    let (mut a, mut b) = subject.wires().await?;
    // First by a task that goes away, then by this one.
    if b.receive_once().is_ready() {
        return fail("something arrived unsent");
    }
    let here = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let flag = Arc::new(Flag(AtomicBool::new(false), here));
    let waker = Waker::from(flag.clone());
    let polled = b.link.receiver.poll_receive(&mut Context::from_waker(&waker), &mut b.inbox);
    if polled.is_ready() {
        return fail("something arrived unsent");
    }
    a.send(b"wake up").await?;
    poll_fn(|_| if flag.0.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }).await;
    b.expect(b"wake up").await
}

pub(super) async fn abandoned_connect(subject: Subject) -> Verdict {
    let mut listener = subject.listener().await?;
    let target = listener.local_address();
    for _ in 0..5 {
        let mut attempt = subject.dialling.connect(&target);
        if let Poll::Ready(link) =
            Pin::new(&mut attempt).as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            drop(link?);
        }
        drop(attempt);
    }
    // Links of abandoned attempts may have been accepted; they end without a frame.
    let dialling = async {
        let mut wire = Wire::new(subject.dialling.connect(&target).await?);
        wire.send(b"it works").await?;
        wire.expect(b"so it does").await
    };
    let accepting = async {
        loop {
            let mut wire = accept(listener.as_mut()).await?;
            if let Ok(Some(frame)) = wire.receive().await {
                same(&frame, b"it works")?;
                wire.send(b"so it does").await?;
                return Ok::<_, Failure>(wire);
            }
        }
    };
    tokio::try_join!(dialling, accepting)?;
    Ok(())
}

pub(super) async fn abandoned_accept(subject: Subject) -> Verdict {
    let mut listener = subject.listener().await?;
    let target = listener.local_address();
    for number in 0..10 {
        // A look that finds nothing, or a link that must not be lost when the next look is another task's.
        let early = match listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(link) => {
                return fail(format!("accepted {:?} although nobody dialled", link.map(|l| l.peer)));
            }
            Poll::Pending => subject.dialling.connect(&target),
        };
        // Whichever fails says why: waiting for the other would hide it.
        let (dialled, accepted) = tokio::try_join!(early, accept(listener.as_mut()))?;
        let (mut a, mut b) = (Wire::new(dialled), accepted);
        a.send(&pattern(number, 100)).await?;
        b.expect(&pattern(number, 100)).await?;
    }
    Ok(())
}
