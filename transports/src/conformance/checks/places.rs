//! Addresses, and listeners beside each other.

use super::fail;
use crate::conformance::wire::{Wire, accept, pattern};
use crate::conformance::{Failure, Subject, Verdict};
use crate::error::TransportError;

pub(super) async fn addresses_carry_the_scheme(subject: Subject) -> Verdict {
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

pub(super) async fn refused(subject: Subject) -> Verdict {
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

pub(super) async fn in_use(subject: Subject) -> Verdict {
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

pub(super) async fn released(subject: Subject) -> Verdict {
    let mut listener = subject.listener().await?;
    let place = listener.local_address();
    for _ in 0..2 {
        let (mut a, mut b) = subject.wires_to(listener.as_mut()).await?;
        a.send(b"there").await?;
        b.expect(b"there").await?;
        let released = listener.released();
        drop((listener, a, b));
        released.await;
        listener = subject.listening.listen(&place).await?;
    }
    Ok(())
}

pub(super) async fn other_scheme(subject: Subject) -> Verdict {
    let strange = "no-such-scheme://anywhere:1".parse()?;
    if subject.dialling.connect(&strange).await.is_ok() {
        return fail("a link to an address of another scheme");
    }
    if subject.listening.listen(&strange).await.is_ok() {
        return fail("a listener on an address of another scheme");
    }
    Ok(())
}

pub(super) async fn many_links(subject: Subject) -> Verdict {
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

pub(super) async fn many_listeners(subject: Subject) -> Verdict {
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

pub(super) async fn listener_dropped(subject: Subject) -> Verdict {
    let mut listener = subject.listener().await?;
    let (mut a, mut b) = subject.wires_to(listener.as_mut()).await?;
    drop(listener);
    a.send(b"there").await?;
    b.expect(b"there").await?;
    b.send(b"and back").await?;
    a.expect(b"and back").await
}
