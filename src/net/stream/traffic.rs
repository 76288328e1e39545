//! `Traffic`: counts the bytes that a session moves.
//!
//! Invariant: bytes are counted at the socket, so a large value on its way counts as progress long
//! before its reply is complete.
//!
//! The watchdog ([`watch`](crate::net::connection::watch)) judges a session by it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use super::tapped::Tap;

/// How many bytes one session has moved.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
    /// How many bytes were written when the last ones were read.
    answered: AtomicU64,
    /// The socket has not taken all bytes that it was given.
    full: AtomicBool,
}

/// How many bytes were moved up to some moment.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Moved {
    read: u64,
    written: u64,
}

impl Traffic {
    /// How many bytes were moved until now.
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

    /// How many bytes may still be on their way to the peer, in buffers that cannot be observed.
    pub(crate) fn under_way(&self) -> u64 {
        let answered = self.answered.load(Ordering::Relaxed);
        let written = self.written.load(Ordering::Relaxed);
        written.saturating_sub(answered)
    }
}

impl Tap for Arc<Traffic> {
    fn read(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // An estimate: a peer that answers reads, so what was written before counts as arrived.
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
            // The kernel takes no more: a later write proves that the peer has read.
            Poll::Pending => self.full.store(true, Ordering::Relaxed),
        }
    }

    fn flushed(&mut self) {
        // It is nearly always false already. Without a store, other cores keep their cached copy.
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
    }
}
