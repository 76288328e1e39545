//! What a cache does while Redis cannot serve it.
//!
//! Invariant: what takes something out of the cache (`remove`, `invalidate_tags`, `clear`) never
//! fails silently, since a stale value would be served later. What only makes things faster may be
//! done without. Asked by the verbs of the cache and by the load of a flight.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Fate, Result};

/// What a cache does when Redis is out, refuses, or does not answer in time.
///
/// Whatever the policy, [`remove`](super::Cache::remove), [`clear`](super::Cache::clear) and
/// [`invalidate_tags`](super::Cache::invalidate_tags) tell their errors: an invalidation that was
/// dropped would be a stale value later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outage {
    /// Every call says what went wrong.
    #[default]
    Fail,
    /// The cache is done without: reads find nothing; `memoize` loads, one load for each key and
    /// process, at most [64](crate::ClientBuilder::loads_without_redis) at once for each client,
    /// and stores nothing; `set` removes the old value where it can, stores nothing, and says so to
    /// nobody. [`Cache::bypassed`] counts all of that.
    ///
    /// A load that runs within a load needs no place of its own.
    ///
    /// A `set` that reaches nobody leaves an older value where it is, to be found when Redis is
    /// back: where that matters, call [`remove`](super::Cache::remove) and heed its error.
    ///
    /// [`Cache::bypassed`]: super::Cache::bypassed
    Bypass,
}

/// What the caches of a client have done without Redis so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bypassed {
    /// Reads that found nothing because Redis was out.
    pub reads: u64,
    /// Values that were not stored because Redis was out, those of loads not counted.
    pub writes: u64,
    /// Loads that were run without asking anybody, and whose values were not stored.
    pub loads: u64,
}

impl Outage {
    /// Whether the cache is to be done without, after `error`.
    pub(super) fn bypasses(self, error: &Error) -> bool {
        self == Self::Bypass && error.kind().is_outage()
    }
}

/// Keeps loads without Redis from running all at once, and counts what is done without it.
#[derive(Debug)]
pub(super) struct Bulkhead {
    places: Semaphore,
    reads: AtomicU64,
    writes: AtomicU64,
    loads: AtomicU64,
}

impl Bulkhead {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
            reads: AtomicU64::default(),
            writes: AtomicU64::default(),
            loads: AtomicU64::default(),
        }
    }

    /// Waits for a place to load, until `until`.
    pub(super) async fn enter(&self, until: Instant) -> Result<SemaphorePermit<'_>> {
        match timeout_at(until, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Error::new(
                ErrorKind::LoaderTimeout,
                "Redis is out, and too many loads ran without it for longer than max_load",
            )
            .with_fate(Fate::NotExecuted)),
        }
    }

    /// Waits for a place to load, for as long as it takes.
    ///
    /// Cancel safety: a dropped wait gives its turn up.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    pub(super) fn load(&self) {
        self.loads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counted(&self) -> Bypassed {
        Bypassed {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            loads: self.loads.load(Ordering::Relaxed),
        }
    }
}
