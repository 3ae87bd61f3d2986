//! The future of a call of a generated client.
//!
//! Guarantee   nothing happens before the first poll; the request leaves at it.
//! Method      written by hand: nested `async fn`s keep what they were given beside what they make of it, some 300 bytes for
//!             each call that waits, and a thousand calls should stay in a core's own memory.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::error::CallError;
use super::generated::{self, Encoded};
use super::port;
use super::schema::MethodSchema;
use super::stub::Begun;
use crate::codec::Codec;

/// A call and its result.
pub struct Calling<'a, C, R> {
    sending: Sending<'a, C>,
    result: PhantomData<fn() -> R>,
}

impl<'a, C, R> Calling<'a, C, R> {
    pub(super) const fn of(sending: Sending<'a, C>) -> Self {
        Self { sending, result: PhantomData }
    }
}

impl<C: Codec, R: DeserializeOwned> Future for Calling<'_, C, R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = ready!(Pin::new(&mut self.sending).poll(cx))?;
        let Sending { client, method, .. } = &self.sending;
        let read = || generated::read::<C, R>(reply);
        Poll::Ready(if method.has_port() { port::through(client.core.link(), read).0 } else { read() })
    }
}

/// A call and its encoded result.
pub(super) struct Sending<'a, C> {
    client: &'a Client<C>,
    method: &'static MethodSchema,
    progress: Progress<'a>,
}

enum Progress<'a> {
    Wanted(Result<Encoded, CallError>),
    Begun(Begun<'a>),
    Over,
}

impl<'a, C> Sending<'a, C> {
    pub(super) const fn new(
        client: &'a Client<C>,
        method: &'static MethodSchema,
        encoded: Result<Encoded, CallError>,
    ) -> Self {
        Self { client, method, progress: Progress::Wanted(encoded) }
    }
}

impl<C: Codec> Future for Sending<'_, C> {
    type Output = Result<Bytes, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Progress::Wanted(_) = this.progress
            && let Progress::Wanted(encoded) = std::mem::replace(&mut this.progress, Progress::Over)
        {
            let begun = this.client.begin(this.method, encoded?, cx.waker())?;
            // It has the waker already.
            let is_going = matches!(&begun, Begun::Call(call) if call.is_going());
            this.progress = Progress::Begun(begun);
            if is_going {
                return Poll::Pending;
            }
        }
        let result = match &mut this.progress {
            Progress::Begun(Begun::Call(call)) => ready!(Pin::new(call).poll(cx)),
            Progress::Begun(Begun::Aside(call)) => ready!(call.as_mut().poll(cx)),
            // Polled after it was ready: a caller's mistake that must not end in a panic.
            Progress::Wanted(_) | Progress::Over => return Poll::Pending,
        };
        this.progress = Progress::Over;
        Poll::Ready(result)
    }
}
