//! `Traffic`: the bytes that a connection moves.
//!
//! Invariant: bytes are counted where they leave for the socket or come from it, so that a large
//! value on its way shows as progress long before its reply is whole.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes one connection has moved.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
    /// How many were written when the last ones were read.
    answered: AtomicU64,
    /// The socket has not taken all that it was given.
    full: AtomicBool,
}

/// What was moved up to some moment.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Moved {
    read: u64,
    written: u64,
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl Traffic {
    pub(crate) fn moved(&self) -> Moved {
        Moved {
            read: self.read.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
        }
    }

    /// Whether the peer has done something since `then`. Bytes written into a free
    /// buffer prove nothing; bytes written after the buffer was full do.
    pub(crate) fn has_progressed_since(&self, then: Moved) -> bool {
        let now = self.moved();
        now.read != then.read || (now.written != then.written && self.full.load(Ordering::Relaxed))
    }

    /// How many bytes may be on their way to the peer, in buffers that nobody can see into.
    pub(crate) fn under_way(&self) -> u64 {
        let answered = self.answered.load(Ordering::Relaxed);
        let written = self.written.load(Ordering::Relaxed);
        written.saturating_sub(answered)
    }

    fn was_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        let written = self.written.load(Ordering::Relaxed);
        self.answered.store(written, Ordering::Relaxed);
    }

    fn was_written(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.full.store(true, Ordering::Relaxed),
        }
    }
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.traffic.was_read(bytes);
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.traffic.was_written(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.traffic.was_written(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        if outcome.is_ready() {
            self.traffic.full.store(false, Ordering::Relaxed);
        }
        outcome
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
