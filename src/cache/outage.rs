//! What a cache does while Redis cannot serve it.
//!
//! What does not pass by itself is never passed over: missing rights, wrong credentials, a
//! certificate that is not accepted, an error that the crate does not know, wrong data.
//!
//! Invariant: calls that take something out of the cache (`remove`, `invalidate_tags`, `clear`)
//! never fail silently, since a stale value would be served later. Calls that only make things
//! faster may do without Redis. The verbs of the cache and the load of a flight ask here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::time::Seldom;

/// What a cache does when Redis is out, full, or does not answer in time.
///
/// Whatever the policy, calls return errors about rights and credentials (`Forbidden`,
/// `Unauthenticated`, `Tls`), about wrong data (`WrongType`), and those that the crate does not
/// know (`Server`): these do not pass by themselves, so someone must look.
///
/// Whatever the policy, [`remove`](super::Cache::remove), [`clear`](super::Cache::clear) and
/// [`invalidate_tags`](super::Cache::invalidate_tags) return their errors: an invalidation that was
/// dropped would be a stale value later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outage {
    /// Every call reports what went wrong.
    #[default]
    Fail,
    /// The cache does without Redis:
    ///
    /// - Reads find nothing. [`get_many`](super::Cache::get_many) finds what other servers hold.
    /// - `memoize` loads, and stores nothing. It runs one load for each key, client and setting of
    ///   [`OnOutage`](super::Cache::on_outage), and at most
    ///   [64](crate::ClientBuilder::loads_without_redis) at once for each client. A load that runs
    ///   within a load needs no permit.
    /// - `set` removes the old value where it can, stores nothing, and returns `Ok`.
    ///
    /// [`Cache::bypassed`] counts all of that. The event `caches do without Redis` warns of it: at
    /// the first such call of a cache, then at most once a minute for each cache.
    ///
    /// If a `set` reaches no server, an older value stays where it is, and is found when Redis is
    /// back. Where that matters, call [`remove`](super::Cache::remove) and check its error.
    ///
    /// [`Cache::bypassed`]: super::Cache::bypassed
    Bypass,
}

/// What the caches of a client have done without Redis so far. A `memoize` that does without Redis
/// counts as a read, and its load, which others may share, as a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bypassed {
    /// Reads that found nothing because Redis was out, or not all of several keys.
    pub reads: u64,
    /// Values that were not stored because Redis was out. Those of loads are not counted.
    pub writes: u64,
    /// Loads that ran without Redis, and whose values were not stored.
    pub loads: u64,
}

/// What a cache does without Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Did {
    /// A read finds nothing.
    FindNothing,
    /// A value is not stored.
    NotStore,
    /// A load runs, and its value is not stored.
    Load,
}

impl Outage {
    /// Whether the cache does without Redis after `error`.
    pub(super) fn bypasses(self, error: &Error) -> bool {
        self == Self::Bypass && passes(error)
    }
}

/// Whether what `error` says passes by itself. Only then may a cache do without Redis, or serve
/// what it was told earlier. This is less than [`ErrorKind::is_outage`] says: missing rights are a
/// reason why nobody is served, and someone must look.
pub(super) fn passes(error: &Error) -> bool {
    matches!(
        error.reason(),
        ErrorKind::Unreachable
            | ErrorKind::Timeout
            | ErrorKind::Disconnected
            | ErrorKind::CircuitOpen
            | ErrorKind::Overloaded
            | ErrorKind::MaxClients
            | ErrorKind::OutOfMemory
            | ErrorKind::ReadOnly
            | ErrorKind::Misconfigured
            | ErrorKind::Loading
            | ErrorKind::Busy
            | ErrorKind::MasterDown
            | ErrorKind::ClusterDown
            | ErrorKind::NoReplicas
    )
}

/// Limits how many loads without Redis run at once, and counts what is done without it.
#[derive(Debug)]
pub(super) struct Bulkhead {
    /// One permit for each load that may run. What is behind a cache is rarely built to bear all
    /// that the cache has borne.
    places: Semaphore,
    /// The keys whose loads wait for a permit, and how many loads of each.
    queued: Mutex<HashMap<Key, usize>>,
    reads: AtomicU64,
    writes: AtomicU64,
    loads: AtomicU64,
}

/// A load that waits for a permit to run without Redis. Dropping this ends the wait.
#[derive(Debug)]
#[must_use = "the wait ends when this is dropped"]
pub(super) struct Queued<'b> {
    bulkhead: &'b Bulkhead,
    key: Key,
}

/// Warns of what one cache does without Redis: at once, then at most once a minute.
#[derive(Debug, Default)]
pub(super) struct BypassWarning(Mutex<Warned>);

/// When the last warning was written, and what was bypassed since. There is no timer: calls within
/// a minute of a warning are counted in the next one.
#[derive(Debug, Default)]
struct Warned {
    seldom: Seldom,
    since: Bypassed,
}

impl Bulkhead {
    pub(super) fn new(places: usize) -> Self {
        Self {
            // The semaphore panics above its maximum.
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
            queued: Mutex::default(),
            reads: AtomicU64::default(),
            writes: AtomicU64::default(),
            loads: AtomicU64::default(),
        }
    }

    /// Notes that a load of `key` waits for a permit.
    pub(super) fn queue(&self, key: &Key) -> Queued<'_> {
        *self.queued().entry(key.clone()).or_default() += 1;
        Queued {
            bulkhead: self,
            key: key.clone(),
        }
    }

    /// Whether a load of `key` waits for a permit.
    pub(super) fn has_queued(&self, key: &Key) -> bool {
        self.queued().contains_key(key)
    }

    fn queued(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit to load, until `until`.
    pub(super) async fn enter(&self, until: Instant) -> Result<SemaphorePermit<'_>> {
        match timeout_at(until, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Error::new(
                ErrorKind::LoaderTimeout,
                "Redis is out, and too many loads ran without it for longer than max_load",
            )
            // No loader has run, so the caller may try again.
            .with_fate(Fate::NotExecuted)),
        }
    }

    /// Waits for a permit to load, for as long as it takes.
    ///
    /// Cancel safety: safe. A dropped wait gives up its position in the queue.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// Counts what a cache does without Redis.
    pub(super) fn count(&self, did: Did) {
        let count = match did {
            Did::FindNothing => &self.reads,
            Did::NotStore => &self.writes,
            Did::Load => &self.loads,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counted(&self) -> Bypassed {
        Bypassed {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            loads: self.loads.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut queued = self.bulkhead.queued();
        if let Some(count) = queued.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                queued.remove(&self.key);
            }
        }
    }
}

impl BypassWarning {
    /// Notes what an operation of the cache does without Redis, because of `error`.
    pub(super) fn does_without(
        &self,
        did: Did,
        (operation, cache): (&'static str, &str),
        error: &Error,
    ) {
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = warned.did(did, Instant::now());
        // Released before the event: a subscriber is the user's code.
        drop(warned);
        if let Some(Bypassed {
            reads,
            writes,
            loads,
        }) = since
        {
            let (kind, count) = (error.kind(), reads + writes + loads);
            tracing::warn!(target: "hedgerow::cache", operation, cache, ?kind, count, reads, writes, loads, %error, "caches do without Redis");
        }
    }
}

impl Warned {
    /// Counts what was done. Returns what was bypassed since the last warning, if another is due.
    fn did(&mut self, did: Did, now: Instant) -> Option<Bypassed> {
        match did {
            Did::FindNothing => self.since.reads += 1,
            Did::NotStore => self.since.writes += 1,
            Did::Load => self.since.loads += 1,
        }
        let is_due = self.seldom.one_more(now).is_some();
        is_due.then(|| std::mem::take(&mut self.since))
    }
}
