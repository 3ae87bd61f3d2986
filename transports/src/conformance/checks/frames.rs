//! What goes through a link: whole frames, in order, in both directions.

use std::future::poll_fn;
use std::task::Poll;

use super::fail;
use crate::conformance::wire::{FRAME_BYTES_MAX, Wire, pattern, same};
use crate::conformance::{Failure, Subject, Verdict};
use crate::error::{LinkError, TransportError};
use crate::frame::Inbox;

pub(super) async fn sizes(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    let sizes = [
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        100,
        255,
        256,
        1_000,
        4_095,
        4_096,
        8_187,
        8_188,
        8_191,
        8_192,
        8_193,
        65_531,
        65_535,
        65_536,
        65_537,
        131_072,
        500_000,
        FRAME_BYTES_MAX,
        0,
        1,
    ];
    let sending = async {
        for (number, size) in sizes.into_iter().enumerate() {
            a.send(&pattern(number, size)).await?;
        }
        Ok::<_, Failure>(())
    };
    let receiving = async {
        for (number, size) in sizes.into_iter().enumerate() {
            b.expect(&pattern(number, size)).await?;
        }
        Ok::<_, Failure>(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

pub(super) async fn streams(subject: Subject) -> Verdict {
    const FRAMES: u32 = 500;
    let (mut a, mut b) = subject.wires().await?;
    let streams = a.link.sender.streams();
    if streams == 0 || streams != b.link.sender.streams() {
        return fail(format!("one end has {streams} streams, the other {}", b.link.sender.streams()));
    }
    let sending = async {
        for number in 0..FRAMES {
            for stream in 0..streams {
                let large = vec![stream as u8; (number as usize % 50) * 100];
                a.outbox.push(&[&[stream as u8], &number.to_le_bytes(), &large])?;
                poll_fn(|cx| a.link.sender.poll_send_on(cx, stream, &mut a.outbox)).await?;
            }
        }
        Ok::<_, Failure>(a.close().await?)
    };
    let receiving = async {
        let mut next = vec![0; streams];
        while let Some(frame) = b.receive().await? {
            let (Some(&stream), Some(number)) = (frame.first(), frame.get(1..5)) else {
                return fail("a frame that nobody sent");
            };
            let Some(next) = next.get_mut(usize::from(stream)) else { return fail("a frame of no stream") };
            if number != u32::to_le_bytes(*next) {
                return fail(format!("stream {stream} did not deliver frame {next} next"));
            }
            *next += 1;
        }
        match next.iter().position(|next| *next != FRAMES) {
            Some(stream) => fail(format!("stream {stream} ended after {} of {FRAMES} frames", next[stream])),
            None => Ok(()),
        }
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

pub(super) async fn small_batch(subject: Subject) -> Verdict {
    const FRAMES: usize = 20_000;
    let (mut a, mut b) = subject.wires().await?;
    for number in 0..FRAMES {
        a.outbox.push(&[&number.to_le_bytes(), &pattern(number, number % 17)])?;
    }
    let sending = async { Ok::<_, Failure>(a.flush().await?) };
    let receiving = async {
        for number in 0..FRAMES {
            let frame = b.frame().await?;
            let expected = [&number.to_le_bytes()[..], &pattern(number, number % 17)].concat();
            same(&frame, &expected)?;
        }
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    if a.outbox.is_empty() && a.outbox.frames() == 0 {
        Ok(())
    } else {
        fail("the outbox is not empty after a send")
    }
}

pub(super) async fn mixed_batch(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    let sizes: Vec<(usize, usize)> =
        (0..60).map(|n| (n % 23, [0, 10, 8_192, 20_000, 70_000][n % 5] + n)).collect();
    for (number, &(head, body)) in sizes.iter().enumerate() {
        let (head, body) = (pattern(number, head), pattern(number + 1, body));
        match number % 3 {
            0 => a.outbox.push_body(&[&head], body.into())?,
            1 => a.outbox.push(&[&head, &body])?,
            _ => a.outbox.push_with(|out| {
                out.extend_from_slice(&head);
                out.extend_from_slice(&body);
            })?,
        }
    }
    let sending = async { Ok::<_, Failure>(a.flush().await?) };
    let receiving = async {
        for (number, &(head, body)) in sizes.iter().enumerate() {
            b.expect(&[pattern(number, head), pattern(number + 1, body)].concat()).await?;
        }
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

pub(super) async fn full_duplex(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    // Both sides have more to send than any window holds, and read only while they send.
    tokio::try_join!(exchange(&mut a, 1), exchange(&mut b, 2))?;
    Ok(())
}

/// Sends and receives 32 MiB at once.
async fn exchange(wire: &mut Wire, salt: usize) -> Verdict {
    const FRAMES: usize = 512;
    for number in 0..FRAMES {
        wire.outbox.push_body(&[], pattern(number + salt, 65_536).into())?;
    }
    let mut received = 0;
    let mut is_sent = false;
    let Wire { link, outbox, inbox } = wire;
    poll_fn(|cx| {
        if !is_sent && let Poll::Ready(sent) = link.sender.poll_send(cx, outbox) {
            sent?;
            is_sent = true;
        }
        while received < FRAMES {
            while let Some(frame) = inbox.next_frame()? {
                same(&frame, &pattern(received + 3 - salt, 65_536))?;
                received += 1;
            }
            if received < FRAMES {
                match link.receiver.poll_receive(cx, inbox) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false)) => return Poll::Ready(fail("the stream ended early")),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        if is_sent { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

pub(super) async fn halves_apart(subject: Subject) -> Verdict {
    let (a, b) = subject.wires().await?;
    let (mut sender, mut receiver) = (a.link.sender, b.link.receiver);
    let mut outbox = a.outbox;
    let mut inbox = b.inbox;
    let sending = tokio::spawn(async move {
        for number in 0..100 {
            outbox.push(&[&pattern(number, 30_000)])?;
            poll_fn(|cx| sender.poll_send(cx, &mut outbox)).await?;
        }
        poll_fn(|cx| sender.poll_close(cx)).await?;
        Ok::<_, Failure>(sender)
    });
    let receiving = tokio::spawn(async move {
        let mut number = 0;
        while poll_fn(|cx| receiver.poll_receive(cx, &mut inbox)).await? {
            while let Some(frame) = inbox.next_frame()? {
                same(&frame, &pattern(number, 30_000))?;
                number += 1;
            }
        }
        if number == 100 { Ok(()) } else { fail(format!("{number} frames of 100")) }
    });
    let sender = sending.await??;
    receiving.await??;
    drop((sender, a.link.receiver, b.link.sender));
    Ok(())
}

pub(super) async fn silence(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    for _ in 0..10 {
        for (name, wire) in [("dialling", &mut a), ("accepting", &mut b)] {
            if let Poll::Ready(result) = wire.receive_once() {
                return fail(format!("the {name} end received {result:?} although nothing was sent"));
            }
        }
        tokio::task::yield_now().await;
    }
    // Nothing to send is sent at once.
    a.flush().await?;
    if b.inbox.bytes() == 0 { Ok(()) } else { fail("bytes in the inbox although nothing was sent") }
}

pub(super) async fn too_large(subject: Subject) -> Verdict {
    let (mut a, mut b) = subject.wires().await?;
    b.inbox = Inbox::new(1_000);
    a.send(&pattern(1, 1_000)).await?;
    b.expect(&pattern(1, 1_000)).await?;
    a.send(&pattern(2, 1_001)).await?;
    match b.receive().await {
        Ok(frame) => fail(format!("got {:?} bytes beyond a limit of 1000", frame.map(|frame| frame.len()))),
        Err(_) => Ok(()),
    }
}

pub(super) async fn datagrams(subject: Subject) -> Verdict {
    let place = subject.address()?;
    let mut one = match subject.listening.bind(&place).await {
        Ok(socket) => socket,
        Err(TransportError::Unsupported { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut two = subject.listening.bind(&place).await?;
    let (here, there) = (one.local_address(), two.local_address());
    if here == there {
        return fail("two sockets at one address");
    }
    for (number, size) in [0, 1, 100, 1_000].into_iter().enumerate() {
        let sent = pattern(number, size);
        poll_fn(|cx| one.poll_send_to(cx, &there, &sent)).await?;
        let (from, got) = poll_fn(|cx| two.poll_receive_from(cx)).await?;
        if from != here {
            return fail(format!("a datagram of {here} says that it comes from {from}"));
        }
        same(&got, &sent)?;
    }
    let large = vec![0; one.datagram_bytes_max() + 1];
    match poll_fn(|cx| one.poll_send_to(cx, &there, &large)).await {
        Err(LinkError::Frame { .. }) => {}
        other => return fail(format!("a datagram beyond the limit gave {other:?}")),
    }
    drop(two);
    // Nobody is there: silence, not an error.
    poll_fn(|cx| one.poll_send_to(cx, &there, b"anybody?")).await?;
    Ok(())
}
