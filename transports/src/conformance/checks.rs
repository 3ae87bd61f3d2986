//! The checks, one promise each.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::wire::{FRAME_BYTES_MAX, Wire, accept, pattern, same};
use super::{CheckFn, Failure, Subject, Verdict};
use crate::error::{LinkError, TransportError};
use crate::frame::Inbox;

/// Every check by its name, in the order in which a failure says most.
pub(super) const ALL: &[(&str, CheckFn)] = &[
    ("addresses_carry_the_scheme", |s| Box::pin(addresses_carry_the_scheme(s))),
    ("frames_of_every_size_arrive_whole_and_in_order", |s| Box::pin(sizes(s))),
    ("every_stream_delivers_all_of_it_in_its_order", |s| Box::pin(streams(s))),
    ("a_batch_of_small_frames_arrives_whole_and_in_order", |s| Box::pin(small_batch(s))),
    ("large_bodies_between_small_frames_arrive_whole", |s| Box::pin(mixed_batch(s))),
    ("both_directions_carry_at_once", |s| Box::pin(full_duplex(s))),
    ("halves_work_in_different_tasks", |s| Box::pin(halves_apart(s))),
    ("nothing_arrives_unsent", |s| Box::pin(silence(s))),
    ("closing_flushes_and_ends_cleanly", |s| Box::pin(close_flushes(s))),
    ("closing_leaves_the_other_direction_open", |s| Box::pin(half_close(s))),
    ("sending_after_closing_is_an_error", |s| Box::pin(send_after_close(s))),
    ("a_slow_reader_makes_the_sender_wait_within_bounds", |s| Box::pin(backpressure(s))),
    ("a_slow_reader_holds_up_its_own_link_only", |s| Box::pin(independence(s))),
    ("a_frame_beyond_the_receivers_limit_is_refused", |s| Box::pin(too_large(s))),
    ("a_dropped_link_is_noticed_by_both_halves_of_its_peer", |s| Box::pin(dropped_link(s))),
    ("a_dropped_sender_is_noticed_by_its_receiver", |s| Box::pin(dropped_sender(s))),
    ("an_abandoned_send_continues_where_it_stopped", |s| Box::pin(abandoned_send(s))),
    ("an_abandoned_receive_loses_nothing", |s| Box::pin(abandoned_receive(s))),
    ("the_last_waker_of_a_receiver_is_woken", |s| Box::pin(last_waker(s))),
    ("an_abandoned_connect_leaves_the_listener_working", |s| Box::pin(abandoned_connect(s))),
    ("an_abandoned_accept_loses_no_link", |s| Box::pin(abandoned_accept(s))),
    ("connecting_to_nobody_is_refused", |s| Box::pin(refused(s))),
    ("an_address_in_use_is_refused_and_free_again_later", |s| Box::pin(in_use(s))),
    ("an_address_of_another_scheme_gives_no_link", |s| Box::pin(other_scheme(s))),
    ("many_links_of_one_listener_do_not_mix", |s| Box::pin(many_links(s))),
    ("several_listeners_do_not_mix", |s| Box::pin(many_listeners(s))),
    ("accepted_links_outlive_their_listener", |s| Box::pin(listener_dropped(s))),
    ("datagrams_arrive_whole_or_are_unsupported", |s| Box::pin(datagrams(s))),
];

async fn addresses_carry_the_scheme(subject: Subject) -> Verdict {
    let scheme = subject.listening.scheme();
    let mut listener = subject.listener().await?;
    let local = listener.local_address();
    if local.scheme() != scheme || subject.dialling.scheme() != scheme {
        return fail(format!("the transport calls itself {scheme}, its listener {local}"));
    }
    let (dialled, accepted) = subject.wires_to(listener.as_mut()).await?;
    for address in [&dialled.link.local, &dialled.link.peer, &accepted.link.local, &accepted.link.peer] {
        if address.scheme() != scheme {
            return fail(format!("a link of {scheme} names an end {address}"));
        }
    }
    if dialled.link.peer != local {
        return fail(format!("dialled {local}, but the link says {}", dialled.link.peer));
    }
    Ok(())
}

async fn sizes(subject: Subject) -> Verdict {
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

async fn streams(subject: Subject) -> Verdict {
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

async fn small_batch(subject: Subject) -> Verdict {
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

async fn mixed_batch(subject: Subject) -> Verdict {
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

async fn full_duplex(subject: Subject) -> Verdict {
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

async fn halves_apart(subject: Subject) -> Verdict {
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

async fn silence(subject: Subject) -> Verdict {
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

async fn close_flushes(subject: Subject) -> Verdict {
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

async fn half_close(subject: Subject) -> Verdict {
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

async fn send_after_close(subject: Subject) -> Verdict {
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

async fn backpressure(subject: Subject) -> Verdict {
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

async fn independence(subject: Subject) -> Verdict {
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

async fn too_large(subject: Subject) -> Verdict {
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

async fn dropped_link(subject: Subject) -> Verdict {
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

async fn dropped_sender(subject: Subject) -> Verdict {
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

async fn abandoned_send(subject: Subject) -> Verdict {
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

async fn abandoned_receive(subject: Subject) -> Verdict {
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

async fn last_waker(subject: Subject) -> Verdict {
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

async fn abandoned_connect(subject: Subject) -> Verdict {
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

async fn abandoned_accept(subject: Subject) -> Verdict {
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
        let (dialled, accepted) = tokio::join!(early, accept(listener.as_mut()));
        let (mut a, mut b) = (Wire::new(dialled?), accepted?);
        a.send(&pattern(number, 100)).await?;
        b.expect(&pattern(number, 100)).await?;
    }
    Ok(())
}

async fn refused(subject: Subject) -> Verdict {
    let listener = subject.listener().await?;
    let target = listener.local_address();
    drop(listener);
    match subject.dialling.connect(&target).await {
        // Not every medium has a word for it.
        Err(TransportError::Refused { address } | TransportError::TimedOut { address, .. })
            if address == target =>
        {
            Ok(())
        }
        other => fail(format!("connecting to {target} where nobody listens gave {other:?}")),
    }
}

async fn in_use(subject: Subject) -> Verdict {
    let listener = subject.listener().await?;
    let taken = listener.local_address();
    match subject.listening.listen(&taken).await.map(|second| second.local_address()) {
        Err(TransportError::InUse { address }) if address == taken => {}
        other => return fail(format!("listening on {taken} a second time gave {other:?}")),
    }
    drop(listener);
    let mut again = subject.listening.listen(&taken).await?;
    let (mut a, mut b) = subject.wires_to(again.as_mut()).await?;
    a.send(b"again").await?;
    b.expect(b"again").await
}

async fn other_scheme(subject: Subject) -> Verdict {
    let strange = "no-such-scheme://anywhere:1".parse()?;
    if subject.dialling.connect(&strange).await.is_ok() {
        return fail("a link to an address of another scheme");
    }
    if subject.listening.listen(&strange).await.is_ok() {
        return fail("a listener on an address of another scheme");
    }
    Ok(())
}

async fn many_links(subject: Subject) -> Verdict {
    const LINKS: usize = 32;
    let mut listener = subject.listener().await?;
    let target = listener.local_address();
    let mut tasks = Vec::new();
    for index in 0..LINKS {
        let (subject, target) = (subject.clone(), target.clone());
        tasks.push(tokio::spawn(async move {
            let mut wire = Wire::new(subject.dialling.connect(&target).await?);
            for number in 0..20 {
                wire.send(&pattern(index * 1_000 + number, 3_000 + index)).await?;
                wire.expect(&pattern(index * 1_000 + number, 3_000 + index)).await?;
            }
            wire.close().await?;
            wire.expect_end().await
        }));
    }
    let mut echoes = Vec::new();
    for _ in 0..LINKS {
        let mut wire = accept(listener.as_mut()).await?;
        echoes.push(tokio::spawn(async move {
            while let Some(frame) = wire.receive().await? {
                wire.send(&frame).await?;
            }
            Ok::<_, Failure>(wire.close().await?)
        }));
    }
    for task in tasks.into_iter().chain(echoes) {
        task.await??;
    }
    Ok(())
}

async fn many_listeners(subject: Subject) -> Verdict {
    let mut listeners = Vec::new();
    for _ in 0..8 {
        listeners.push(subject.listener().await?);
    }
    let mut addresses: Vec<_> = listeners.iter().map(|listener| listener.local_address()).collect();
    addresses.sort();
    addresses.dedup();
    if addresses.len() < listeners.len() {
        return fail("two listeners at one address");
    }
    for (number, listener) in listeners.iter_mut().enumerate() {
        let (mut a, mut b) = subject.wires_to(listener.as_mut()).await?;
        a.send(&pattern(number, 100)).await?;
        b.expect(&pattern(number, 100)).await?;
    }
    Ok(())
}

async fn listener_dropped(subject: Subject) -> Verdict {
    let mut listener = subject.listener().await?;
    let (mut a, mut b) = subject.wires_to(listener.as_mut()).await?;
    drop(listener);
    a.send(b"there").await?;
    b.expect(b"there").await?;
    b.send(b"and back").await?;
    a.expect(b"and back").await
}

async fn datagrams(subject: Subject) -> Verdict {
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

fn fail<T>(what: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(what))
}

/// The frame of the checks that fill a link.
const FRAME_BYTES: usize = 65_536;
/// What a link and the system below it may hold of what nobody reads. Loopback TCP takes some 6 MiB by default and up to
/// 32 MiB on machines tuned for long fat links.
const BUFFERED_BYTES_MAX: usize = 128 << 20;
