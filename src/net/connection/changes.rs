//! `ConnectionChanges`: which connections to one server were made and lost.
//!
//! Invariant: numbers only rise, and no two servers have one in common. So what was heard as of a
//! number is true of one connection and of no other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Numbers the connections for commands to one server. No two servers have a number in common.
#[derive(Debug, Default)]
pub(crate) struct ConnectionChanges {
    /// Moves when a connection is made; 0 before the first.
    made: AtomicU64,
    /// Moves also when one is not used any more.
    changed: AtomicU64,
    last: Mutex<Option<Instant>>,
}

/// The connections to one server at some moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) made: u64,
    pub(crate) changed: u64,
}

impl ConnectionChanges {
    /// A connection was made, and nothing sent on it yet.
    pub(crate) fn begins(&self) {
        let mut last = self.last();
        *last = Some(Instant::now());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.made.store(number, Ordering::SeqCst);
        self.changed.store(number, Ordering::SeqCst);
    }

    /// One is not used any more.
    pub(crate) fn ends(&self) {
        let mut last = self.last();
        *last = Some(Instant::now());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.changed.store(number, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> Count {
        Count {
            made: self.made.load(Ordering::Relaxed),
            changed: self.changed.load(Ordering::Relaxed),
        }
    }

    /// As of which connections an answer is true to a question sent at `sent`; `None` if it may be
    /// that of one before.
    pub(crate) fn before(&self, sent: Instant) -> Option<Count> {
        let last = self.last();
        last.is_none_or(|last| last <= sent).then(|| self.count())
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next number of a connection.
static NEXT: AtomicU64 = AtomicU64::new(1);
