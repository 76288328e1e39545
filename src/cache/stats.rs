//! `Stats`: what a cache has done so far.
//!
//! Invariant: all handles of one name on one client share their counts, and a count only rises. The
//! verbs and the loads count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a cache has done in this process since its client was made.
///
/// Each number only rises. They are read one after the other, so a call that ends meanwhile may be
/// in one of them and not in another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Keys that `get` and `get_many` found, and keys that `memoize` and its relatives found a
    /// value for without a load.
    pub hits: u64,
    /// Keys that `get` and `get_many` did not find, and keys for which `memoize` and its relatives
    /// waited for a load or made one.
    pub misses: u64,
    /// Loads that ended with a value. Each key of a batch is a load.
    pub loads: u64,
    /// Loads that ended with an error or a panic, or took longer than `max_load`.
    pub failed_loads: u64,
    /// Calls of `memoize` that got the value of a load which another call of this process made.
    pub shared_loads: u64,
    /// Loaded values that were not stored, because the key was removed, set or taken over
    /// meanwhile.
    pub refused_commits: u64,
    /// Values that were stored: loaded ones, and those of `set`, `set_many`, `add` and `update`.
    pub stores: u64,
    /// Calls of `memoize` that were given a stale value.
    pub stale_served: u64,
    /// Loads that were started behind a value: a stale one, or one whose early refresh was due.
    pub refreshes: u64,
    /// Reads that the near cache answered without a command. Each is also a hit, or, if it answered
    /// that the key is missing, a miss of `get`. 0 without the feature `near`.
    pub near_hits: u64,
    /// Values that were read and not kept in the near cache, because they may have changed while
    /// they were read.
    pub near_refused: u64,
}

/// The counts of one cache.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: Count,
    pub(super) misses: Count,
    pub(super) loads: Count,
    pub(super) failed_loads: Count,
    pub(super) shared_loads: Count,
    pub(super) refused_commits: Count,
    pub(super) stores: Count,
    pub(super) stale_served: Count,
    pub(super) refreshes: Count,
    /// Whether an entry with a stale window was read. If so, reads ask for the time at once, and
    /// not only when they meet such an entry.
    windows: AtomicBool,
    pub(super) near_hits: Count,
    pub(super) near_refused: Count,
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

/// The counts of all caches of one client, by the name of the cache.
#[derive(Debug, Default)]
pub(super) struct AllCounts(Mutex<HashMap<Box<str>, Arc<Counts>>>);

impl Count {
    pub(super) fn one_more(&self) {
        self.more(1);
    }

    pub(super) fn more(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counts {
    pub(super) fn met_a_window(&self) -> bool {
        self.windows.load(Ordering::Relaxed)
    }

    pub(super) fn meet_a_window(&self) {
        self.windows.store(true, Ordering::Relaxed);
    }

    pub(super) fn so_far(&self) -> Stats {
        Stats {
            hits: self.hits.so_far(),
            misses: self.misses.so_far(),
            loads: self.loads.so_far(),
            failed_loads: self.failed_loads.so_far(),
            shared_loads: self.shared_loads.so_far(),
            refused_commits: self.refused_commits.so_far(),
            stores: self.stores.so_far(),
            stale_served: self.stale_served.so_far(),
            refreshes: self.refreshes.so_far(),
            near_hits: self.near_hits.so_far(),
            near_refused: self.near_refused.so_far(),
        }
    }
}

impl AllCounts {
    /// Returns the counts of the cache called `name`.
    pub(super) fn of(&self, name: &str) -> Arc<Counts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name) {
            return known.clone();
        }
        let counts: Arc<Counts> = Arc::default();
        // Names of caches are few. If they are made from input, each handle counts for itself.
        if all.len() < MOST_CACHES {
            all.insert(name.into(), counts.clone());
        }
        counts
    }
}

/// How many names are remembered at most.
const MOST_CACHES: usize = 1024;
