//! `Tapped`: a stream that shows its bytes to a [`Tap`] as they pass.
//!
//! Invariant: no byte is changed, held back or copied. If the tap returns an error, the stream ends
//! with it.
//!
//! [`dial`](crate::net::connection::dial) wraps each socket in one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Observes the bytes of a stream.
pub(crate) trait Tap: Unpin {
    /// Observes bytes that were read, at least one. An error ends the stream, and is its reason.
    fn read(&mut self, bytes: &[u8]) -> Result<(), &'static str>;

    /// Observes the outcome of a write.
    fn written(&mut self, _outcome: &Poll<io::Result<usize>>) {}

    /// Observes that the kernel has taken all that was written.
    fn flushed(&mut self) {}
}

/// A stream and its tap.
#[derive(Debug)]
pub(crate) struct Tapped<S, T> {
    stream: S,
    tap: T,
}

impl<S, T: Tap> Tapped<S, T> {
    pub(crate) fn new(stream: S, tap: T) -> Self {
        Self { stream, tap }
    }
}

/// Both observe, the first one first.
impl<A: Tap, B: Tap> Tap for (A, B) {
    fn read(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.0.read(bytes)?;
        self.1.read(bytes)
    }

    fn written(&mut self, outcome: &Poll<io::Result<usize>>) {
        self.0.written(outcome);
        self.1.written(outcome);
    }

    fn flushed(&mut self) {
        self.0.flushed();
        self.1.flushed();
    }
}

impl<S: AsyncRead + Unpin, T: Tap> AsyncRead for Tapped<S, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        // Only the new bytes: the caller's buffer may hold others already.
        match &buffer.filled()[before..] {
            [] => outcome,
            read => match self.tap.read(read) {
                Ok(()) => outcome,
                Err(why) => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why))),
            },
        }
    }
}

impl<S: AsyncWrite + Unpin, T: Tap> AsyncWrite for Tapped<S, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.tap.written(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.tap.written(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        if outcome.is_ready() {
            self.tap.flushed();
        }
        outcome
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
