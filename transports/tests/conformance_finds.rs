//! The conformance suite itself is tested: transports that are broken in one way each must fail, by the check that the
//! defect is about. Time is paused, so a hang is found at once.

use std::task::{Context, Poll};

use bytes::Bytes;
use quorate_transports::conformance::{self, Subject};
use quorate_transports::fault::model::{Chance, LinkModel, LossModel};
use quorate_transports::fault::{FaultHandle, Manner};
use quorate_transports::mem::{Mem, MemConfig};
use quorate_transports::{
    Address, BoxFuture, FrameReceiver, FrameSender, Inbox, Link, LinkError, Listener, Outbox, Transport,
    TransportError,
};

/// One way of being broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    /// The last frame waits for the next one, and closing forgets it.
    ForgetsToFlush,
    /// Frames beyond 64 KiB lose their tail.
    CutsLargeFrames,
    /// The sender takes everything at once and keeps it somewhere.
    NeverWaits,
    /// A frame after closing is swallowed.
    SwallowsAfterClose,
    /// The waker of the first poll is the only one that is ever woken.
    KeepsFirstWaker,
    /// What a poll brings is shown by the next poll, without waking anybody for it.
    ForgetsToWake,
    /// Closing ends the other direction as well.
    ClosesBothWays,
    /// A dropped link leaves its peer waiting.
    DiesInSilence,
    /// The receiver's limit is ignored.
    IgnoresTheLimit,
    /// Connecting always works; nobody is there.
    ConnectsToNobody,
    /// A second listener at an address gets another one.
    ListensElsewhere,
    /// An empty frame is more than it can take.
    PanicsOnEmptyFrames,
    /// The end of the stream is told once.
    EndsOnce,
    /// There is a second stream, and nothing comes out of it.
    LosesAStream,
    /// Its places are never free again.
    KeepsItsPlaces,
}

#[derive(Clone)]
struct Broken {
    inner: Mem,
    defect: Defect,
}

impl Broken {
    fn wrap(&self, link: Link) -> Link {
        let defect = self.defect;
        Link {
            sender: Box::new(BrokenSender { inner: Some(link.sender), kept: None, is_closed: false, defect }),
            receiver: Box::new(BrokenReceiver {
                inner: Some(link.receiver),
                held: Inbox::new(usize::MAX),
                waker: None,
                is_ended: false,
                defect,
            }),
            ..link
        }
    }
}

impl Transport for Broken {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        Box::pin(async move {
            let listener = match self.inner.listen(address).await {
                Err(TransportError::InUse { .. }) if self.defect == Defect::ListensElsewhere => {
                    self.inner.listen(&"mem://".parse().unwrap()).await?
                }
                other => other?,
            };
            Ok(Box::new(BrokenListener { inner: listener, transport: self.clone() }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            match self.inner.connect(address).await {
                Err(TransportError::Refused { .. }) if self.defect == Defect::ConnectsToNobody => {
                    let nobody = self.inner.listen(address).await?;
                    let link = self.inner.connect(&nobody.local_address()).await?;
                    Ok(self.wrap(link))
                }
                other => Ok(self.wrap(other?)),
            }
        })
    }
}

struct BrokenListener {
    inner: Box<dyn Listener>,
    transport: Broken,
}

impl Listener for BrokenListener {
    fn local_address(&self) -> Address {
        self.inner.local_address()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        self.inner.poll_accept(cx).map_ok(|link| self.transport.wrap(link))
    }

    fn released(&self) -> BoxFuture<'static, ()> {
        match self.transport.defect {
            Defect::KeepsItsPlaces => Box::pin(std::future::pending()),
            _ => self.inner.released(),
        }
    }
}

struct BrokenSender {
    inner: Option<Box<dyn FrameSender>>,
    kept: Option<Bytes>,
    is_closed: bool,
    defect: Defect,
}

impl FrameSender for BrokenSender {
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>> {
        let inner = self.inner.as_mut().unwrap();
        if self.is_closed && self.defect == Defect::SwallowsAfterClose {
            while outbox.pop_frame().is_some() {}
            return Poll::Ready(Ok(()));
        }
        let mut frames = Vec::new();
        match self.defect {
            Defect::ForgetsToFlush | Defect::CutsLargeFrames | Defect::PanicsOnEmptyFrames => {
                while let Some(frame) = outbox.pop_frame() {
                    frames.push(frame);
                }
            }
            _ => return inner.poll_send(cx, outbox),
        }
        let mut changed = Outbox::new(usize::MAX);
        for mut frame in frames {
            assert!(!frame.is_empty() || self.defect != Defect::PanicsOnEmptyFrames, "an empty frame");
            if self.defect == Defect::CutsLargeFrames {
                frame.truncate(65_536);
            }
            if self.defect == Defect::ForgetsToFlush {
                match self.kept.replace(frame) {
                    Some(kept) => frame = kept,
                    None => continue,
                }
            }
            changed.push_body(&[], frame).unwrap();
        }
        inner.poll_send(cx, &mut changed)
    }

    fn streams(&self) -> usize {
        if self.defect == Defect::LosesAStream { 2 } else { 1 }
    }

    fn poll_send_on(
        &mut self,
        cx: &mut Context<'_>,
        stream: usize,
        outbox: &mut Outbox,
    ) -> Poll<Result<(), LinkError>> {
        if stream == 0 {
            return self.poll_send(cx, outbox);
        }
        while outbox.pop_frame().is_some() {}
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.is_closed = true;
        self.inner.as_mut().unwrap().poll_close(cx)
    }
}

impl Drop for BrokenSender {
    fn drop(&mut self) {
        if self.defect == Defect::DiesInSilence && !self.is_closed {
            std::mem::forget(self.inner.take());
        }
    }
}

struct BrokenReceiver {
    inner: Option<Box<dyn FrameReceiver>>,
    held: Inbox,
    waker: Option<std::task::Waker>,
    is_ended: bool,
    defect: Defect,
}

impl FrameReceiver for BrokenReceiver {
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>> {
        let inner = self.inner.as_mut().unwrap();
        match self.defect {
            Defect::KeepsFirstWaker => {
                let first = self.waker.get_or_insert_with(|| cx.waker().clone());
                inner.poll_receive(&mut Context::from_waker(first), inbox)
            }
            Defect::ForgetsToWake => {
                if let Some(frame) = self.held.next_frame().unwrap() {
                    inbox.push_frame(frame).unwrap();
                    return Poll::Ready(Ok(true));
                }
                match inner.poll_receive(cx, &mut self.held) {
                    Poll::Ready(Ok(true)) => Poll::Pending,
                    other => other,
                }
            }
            Defect::IgnoresTheLimit => {
                let mut all = Inbox::new(usize::MAX);
                let polled = inner.poll_receive(cx, &mut all);
                while let Some(mut frame) = all.next_frame().unwrap() {
                    frame.truncate(inbox.frame_bytes_max());
                    inbox.push_frame(frame).unwrap();
                }
                polled
            }
            Defect::EndsOnce if self.is_ended => Poll::Pending,
            _ => {
                let polled = inner.poll_receive(cx, inbox);
                self.is_ended |= matches!(polled, Poll::Ready(Ok(false)));
                polled
            }
        }
    }
}

impl Drop for BrokenReceiver {
    fn drop(&mut self) {
        if self.defect == Defect::DiesInSilence {
            std::mem::forget(self.inner.take());
        }
    }
}

/// Both ends share one flag: who closes takes the other direction along.
struct OneWay(Box<dyn FrameReceiver>, std::sync::Arc<std::sync::atomic::AtomicBool>);

impl FrameReceiver for OneWay {
    fn poll_receive(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<Result<bool, LinkError>> {
        if self.1.load(std::sync::atomic::Ordering::Acquire) {
            return Poll::Ready(Ok(false));
        }
        self.0.poll_receive(cx, inbox)
    }
}

struct OneWaySender(Box<dyn FrameSender>, std::sync::Arc<std::sync::atomic::AtomicBool>);

impl FrameSender for OneWaySender {
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LinkError>> {
        self.0.poll_send(cx, outbox)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.1.store(true, std::sync::atomic::Ordering::Release);
        self.0.poll_close(cx)
    }
}

/// The transport whose links close both ways.
#[derive(Clone)]
struct ClosesBothWays(Broken);

impl Transport for ClosesBothWays {
    fn scheme(&self) -> &'static str {
        self.0.scheme()
    }

    fn listen<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Listener>, TransportError>> {
        self.0.listen(address)
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Link, TransportError>> {
        Box::pin(async move {
            let link = self.0.connect(address).await?;
            let flag = std::sync::Arc::default();
            let sender = Box::new(OneWaySender(link.sender, std::sync::Arc::clone(&flag)));
            Ok(Link { sender, receiver: Box::new(OneWay(link.receiver, flag)), ..link })
        })
    }
}

async fn failed_by(defect: Defect) -> Vec<&'static str> {
    let make = || {
        let mut config = MemConfig::default();
        if defect == Defect::NeverWaits {
            config.link_bytes_max = usize::MAX;
        }
        let broken = Broken { inner: Mem::with_config(config), defect };
        match defect {
            Defect::ClosesBothWays => Subject::new(ClosesBothWays(broken), "mem://"),
            _ => Subject::new(broken, "mem://"),
        }
    };
    conformance::run(make).await.failed()
}

#[tokio::test(start_paused = true)]
async fn t02_a_transport_broken_in_one_way_fails_the_check_that_is_about_it() {
    let expected = [
        (Defect::ForgetsToFlush, "closing_flushes_and_ends_cleanly"),
        (Defect::CutsLargeFrames, "frames_of_every_size_arrive_whole_and_in_order"),
        (Defect::NeverWaits, "a_slow_reader_makes_the_sender_wait_within_bounds"),
        (Defect::SwallowsAfterClose, "sending_after_closing_is_an_error"),
        (Defect::KeepsFirstWaker, "the_last_waker_of_a_receiver_is_woken"),
        (Defect::ForgetsToWake, "many_links_of_one_listener_do_not_mix"),
        (Defect::ClosesBothWays, "closing_leaves_the_other_direction_open"),
        (Defect::DiesInSilence, "a_dropped_link_is_noticed_by_both_halves_of_its_peer"),
        (Defect::IgnoresTheLimit, "a_frame_beyond_the_receivers_limit_is_refused"),
        (Defect::ConnectsToNobody, "connecting_to_nobody_is_refused"),
        (Defect::ListensElsewhere, "an_address_in_use_is_refused_and_free_again_later"),
        (Defect::PanicsOnEmptyFrames, "frames_of_every_size_arrive_whole_and_in_order"),
        (Defect::EndsOnce, "closing_flushes_and_ends_cleanly"),
        (Defect::LosesAStream, "every_stream_delivers_all_of_it_in_its_order"),
        (Defect::KeepsItsPlaces, "a_place_that_was_released_is_free"),
    ];
    for (defect, check) in expected {
        let failed = failed_by(defect).await;
        assert!(failed.contains(&check), "{defect:?} failed {failed:?} and not {check}");
    }
}

#[tokio::test(start_paused = true)]
async fn t02_lossy_doubling_overtaking_and_corrupting_transports_fail() {
    let half = Chance::percent(50);
    let models = [
        LinkModel { loss: LossModel::Independent(half), ..LinkModel::PERFECT },
        LinkModel { duplication: half, ..LinkModel::PERFECT },
        LinkModel { reordering: half, ..LinkModel::PERFECT },
        LinkModel { corruption: half, ..LinkModel::PERFECT },
    ];
    for model in models {
        let make = || {
            let faults = FaultHandle::new(3);
            faults.set_manner(Manner::Frames);
            faults.change(|network| network.set_default(model));
            let world = Mem::new();
            Subject::pair(faults.wrap(1, world.clone()), faults.wrap(2, world), "mem://")
        };
        let report = conformance::run(make).await;
        let check = "frames_of_every_size_arrive_whole_and_in_order";
        assert!(report.failed().contains(&check), "{model:?}\n{report}");
        assert!(report.into_result().is_err());
    }
}
