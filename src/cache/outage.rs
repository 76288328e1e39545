//! What a cache does while Redis cannot serve it.
//!
//! Invariant: what takes something out of the cache (`remove`, `invalidate_tags`, `clear`) never
//! fails silently, since a stale value would be served later. What only makes things faster may be
//! done without. Asked by the verbs of the cache and by the load of a flight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    /// The cache is done without: reads find nothing; `memoize` loads, one load for each key,
    /// client and [policy for outages](super::Cache::on_outage), at most
    /// [64](crate::ClientBuilder::loads_without_redis) at once for each client, and stores nothing;
    /// `set` removes the old value where it can, stores nothing, and returns `Ok`.
    /// [`Cache::bypassed`] counts all of that, and the event `caches do without Redis` warns of it:
    /// with the first such call of a client, then at most once a minute.
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

/// Keeps loads without Redis from running all at once, counts what is done without it, and warns of
/// that: at once, then at most once a minute.
#[derive(Debug)]
pub(super) struct Bulkhead {
    places: Semaphore,
    reads: AtomicU64,
    writes: AtomicU64,
    loads: AtomicU64,
    warned: Mutex<Warned>,
}

/// When the last warning was written, and what had been counted by then. It has no timer: calls
/// within a minute of a warning are counted in the next one.
#[derive(Debug, Default)]
struct Warned {
    seldom: Seldom,
    counted: Bypassed,
}

/// Lets something happen at once, then at most once a minute.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    last: Option<Instant>,
}

impl Seldom {
    /// Whether it may happen now; then it does.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.last.is_none_or(|last| now >= last + BETWEEN_WARNINGS);
        if due {
            self.last = Some(now);
        }
        due
    }
}

impl Bulkhead {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
            reads: AtomicU64::default(),
            writes: AtomicU64::default(),
            loads: AtomicU64::default(),
            warned: Mutex::default(),
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

    /// A load of `cache` runs without Redis, because of `error`.
    pub(super) fn load(&self, cache: &str, error: &Error) {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.warn(cache, error);
    }

    /// A read of `cache` finds nothing, because of `error`.
    pub(super) fn read(&self, cache: &str, error: &Error) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.warn(cache, error);
    }

    /// A value is not stored in `cache`, because of `error`.
    pub(super) fn write(&self, cache: &str, error: &Error) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.warn(cache, error);
    }

    fn warn(&self, cache: &str, error: &Error) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let since = warned.due(Instant::now(), self.counted());
        drop(warned);
        if let Some(Bypassed {
            reads,
            writes,
            loads,
        }) = since
        {
            tracing::warn!(target: "hedgerow::cache", cache, reads, writes, loads, %error, "caches do without Redis");
        }
    }

    pub(super) fn counted(&self) -> Bypassed {
        Bypassed {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            loads: self.loads.load(Ordering::Relaxed),
        }
    }
}

impl Warned {
    /// What was bypassed since the last warning, if it is time for another.
    fn due(&mut self, now: Instant, counted: Bypassed) -> Option<Bypassed> {
        if !self.seldom.is_due(now) {
            return None;
        }
        let before = std::mem::replace(&mut self.counted, counted);
        Some(Bypassed {
            reads: counted.reads - before.reads,
            writes: counted.writes - before.writes,
            loads: counted.loads - before.loads,
        })
    }
}

/// The least time from one warning of a client to the next.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);
