//! A socket that is read in large pieces: TLS itself asks for 4 KiB at a time, which would be four calls of the system for
//! every record.
//!
//! Limits      [`AHEAD_BYTES`] while there is something to be read, nothing while there is not.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is written goes straight to the socket.
#[derive(Debug)]
pub(super) struct Ahead {
    socket: TcpStream,
    read: BytesMut,
}

impl Ahead {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, read: BytesMut::new() }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, read } = &mut *self;
        if read.is_empty() {
            read.reserve(AHEAD_BYTES);
            // The future is dropped without having taken anything unless it is ready.
            let polled = pin!(socket.read_buf(read)).poll(cx);
            if polled.is_pending() {
                // An idle link costs no buffer.
                *read = BytesMut::new();
            }
            ready!(polled)?;
        }
        let count = read.len().min(buffer.remaining());
        buffer.put_slice(&read[..count]);
        read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Four records of the largest kind.
const AHEAD_BYTES: usize = 64 * 1024;
