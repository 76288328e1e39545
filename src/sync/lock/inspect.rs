//! What `Lock::inspect` reports.
//!
//! Invariant: it is as the server knows it at one moment, in one script. `Lock::inspect` makes it.

use std::time::Duration;

use crate::sync::fence::Fence;

/// What [`Lock::inspect`](super::Lock::inspect) reports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// The holder of the lock. `None` if it is free.
    pub holder: Option<Holder>,
    /// The waiters in their order: one entry for each process, not for each task. At most 100.
    pub queue: Vec<Waiter>,
}

/// The holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The fence of its grant.
    pub fence: Fence,
    /// How long its lease lasts if it is not renewed.
    pub remaining: Duration,
    /// The text that it gave as [`Lock::metadata`](super::Lock::metadata).
    pub metadata: String,
}

/// A process in the queue of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiter {
    /// How long it has waited.
    pub waiting: Duration,
    /// The text that its first waiter gave as [`Lock::metadata`](super::Lock::metadata).
    pub metadata: String,
}
