//! `Traffic`: the bytes that a connection moves.
//!
//! Invariant: bytes are counted where they leave for the socket or come from it, so that a large
//! value on its way shows as progress long before its reply is whole.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use super::tapped::Tap;

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
}

impl Tap for Arc<Traffic> {
    fn read(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let written = self.written.load(Ordering::Relaxed);
        self.answered.store(written, Ordering::Relaxed);
        Ok(())
    }

    fn written(&mut self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.full.store(true, Ordering::Relaxed),
        }
    }

    fn flushed(&mut self) {
        // Nearly always false already: other cores need not fetch it anew then.
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
    }
}
