//! `ConnectionChanges`: which sessions with one server were opened and lost.
//!
//! Invariant: the numbers only rise, and no two servers share one. So an answer that is tagged with
//! a number belongs to exactly one session.
//!
//! Only connections for commands are counted. [`InFlight`](super::in_flight::InFlight) reports
//! their beginning and end, and the check of the namespace format reads the numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Numbers the sessions for commands with one server. No two servers share a number.
#[derive(Debug, Default)]
pub(crate) struct ConnectionChanges {
    /// The number of the last session that was opened; 0 before the first.
    made: AtomicU64,
    /// The number of the last change: a session was opened, or is not used any more.
    changed: AtomicU64,
    /// When the last change was.
    // Locked while the numbers move, so that `before` never sees half of a change.
    last: Mutex<Option<Instant>>,
}

/// The numbers of one server at some moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) made: u64,
    pub(crate) changed: u64,
}

impl ConnectionChanges {
    /// Notes that a session was opened. Call it before anything is sent on it.
    pub(crate) fn begins(&self) {
        let mut last = self.last();
        *last = Some(Instant::now());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A new session is also a change, so both numbers move.
        self.made.store(number, Ordering::SeqCst);
        self.changed.store(number, Ordering::SeqCst);
    }

    /// Notes that a session is not used any more.
    pub(crate) fn ends(&self) {
        let mut last = self.last();
        *last = Some(Instant::now());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.changed.store(number, Ordering::SeqCst);
    }

    /// The numbers now.
    pub(crate) fn count(&self) -> Count {
        Count {
            made: self.made.load(Ordering::Relaxed),
            changed: self.changed.load(Ordering::Relaxed),
        }
    }

    /// The numbers that hold for the answer to a command sent at `sent`, or `None` if a session
    /// changed since, so that the answer may come from an earlier one.
    pub(crate) fn before(&self, sent: Instant) -> Option<Count> {
        let last = self.last();
        last.is_none_or(|last| last <= sent).then(|| self.count())
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next number. One for the whole process, so that no two servers share a number.
static NEXT: AtomicU64 = AtomicU64::new(1);
