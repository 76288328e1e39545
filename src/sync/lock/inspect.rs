//! What `Lock::inspect` reports.

use std::time::Duration;

use crate::sync::fence::Fence;

/// What [`Lock::inspect`](super::Lock::inspect) tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// Who holds the lock; `None` when it is free.
    pub holder: Option<Holder>,
    /// Who waits, in order: one entry for each process, not for each task; at most 100.
    pub queue: Vec<Waiter>,
}

/// The holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The fence of its grant.
    pub fence: Fence,
    /// What is left of its lease, unless it renews it.
    pub remaining: Duration,
    /// What it says of itself.
    pub metadata: String,
}

/// A process in the queue of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiter {
    /// How long it has waited.
    pub waiting: Duration,
    /// What its first waiter says of itself.
    pub metadata: String,
}
