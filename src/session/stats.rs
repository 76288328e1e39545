//! `SessionStats`: what a store has done so far.
//!
//! Invariant: all clones of a store count together, and a count only rises.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a store has done in this process since it was made.
///
/// Each number only rises. They are read one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStats {
    /// Sessions that were created.
    pub created: u64,
    /// Sessions that were written anew.
    pub saved: u64,
    /// Sessions whose end was moved, because a save changed nothing else.
    pub moved: u64,
    /// Saves that changed nothing, because the session had ended since the request loaded it: it
    /// was deleted, got another id, was logged out everywhere, or belongs to another user.
    pub dropped: u64,
    /// Saves of a session that another request had saved meanwhile. They overwrote it, or were
    /// refused, as [`Conflict`](super::Conflict) says. Those under another id overwrote it.
    pub conflicts: u64,
}

/// The counts of one store.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) created: Count,
    pub(super) saved: Count,
    pub(super) moved: Count,
    pub(super) dropped: Count,
    pub(super) conflicts: Count,
}

impl Counts {
    pub(super) fn so_far(&self) -> SessionStats {
        SessionStats {
            created: self.created.so_far(),
            saved: self.saved.so_far(),
            moved: self.moved.so_far(),
            dropped: self.dropped.so_far(),
            conflicts: self.conflicts.so_far(),
        }
    }
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn one_more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
