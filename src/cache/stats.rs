//! `Stats`: what a cache has done so far.
//!
//! Invariant: all handles of one name on one client share their counts, and a count only rises. The
//! verbs and the loads count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::outage::BypassWarning;
use crate::codec::Sizes;
use crate::meters::{Described, Labels, Meters, Timer, counts};

counts! {
    /// What a cache has done in this process since its client was made.
    ///
    /// Each number only rises. They are read one after the other, so a call that ends meanwhile
    /// may be in one of them and not in another.
    pub struct Stats, named "hedgerow_cache_";
    /// Keys that `get` and `get_many` found, and keys that `memoize` and its relatives found a
    /// value for without a load.
    hits,
    /// Keys that `get` and `get_many` did not find, and keys for which `memoize` and its relatives
    /// waited for a load or made one.
    misses,
    /// Loads that ended with a value. Each key of a batch is a load.
    loads,
    /// Loads that ended with an error or a panic, or took longer than `max_load`.
    failed_loads,
    /// Calls of `memoize` that got the value of a flight which another call of this process had
    /// opened: nearly always the value of its load.
    shared_loads,
    /// Calls of `memoize` that waited, and got the value of a load which another call made, in this
    /// process or elsewhere. Those of `shared_loads` are among them.
    saved_loads,
    /// Loads that had lost their lease when they ended, because the key was removed, set or taken
    /// over meanwhile. Their values were not stored.
    refused_commits,
    /// Loads that ended with a value which was not stored, although their lease was not lost: the
    /// loader said so, a tag holds loads back, a tag that the loader named may have been
    /// invalidated meanwhile, or Redis did not store it. Loads without a lease do not count.
    not_stored,
    /// Loads that were begun in place of a leader which had been silent for the takeover.
    takeovers,
    /// Values that were stored: loaded ones, and those of `set`, `set_many`, `add` and `update`.
    /// Entries that a loader found `not_modified` count, too.
    stores,
    /// Calls of `memoize` that were given a stale value.
    stale_served,
    /// Loads that were started behind a value: a stale one, or one whose early refresh was due.
    refreshes,
    /// What was done without Redis under `Outage::Bypass`: reads that found nothing, or not all of
    /// several keys, values of `set` that were not stored, and loads whose values were not stored.
    bypassed,
    /// Entries that were read and found damaged: bytes were changed, lost or added. Each was a
    /// miss, and was removed.
    damaged,
    /// Entries that were read and are whole, but of another type, too large, or of a format that
    /// this build does not know. Each was a miss, and was left alone.
    foreign,
    /// The bytes of values that were encoded to be stored, before compression.
    encoded_bytes,
    /// The bytes of the same values after compression. The head of an entry and its tags do not
    /// count.
    compressed_bytes,
    /// Keys that the near cache answered for without a command. Each is also a hit, or, if it
    /// answered that the key is missing, a miss of `get`. One of a `get_many` of more than 100 keys
    /// is neither if the call fails later. 0 without the feature `near`.
    near_hits,
    /// Values that were read and not kept in the near cache, because they may have changed while
    /// they were read. So are keys that were read as missing, and are not.
    near_refused,
    /// Values that the near cache served because their server was out. Each is also a hit, unless
    /// it was counted as a miss before: by a call of `memoize` that had begun to wait for a load
    /// when the server went out. 0 without `NearCache::outage_grace`.
    near_grace,
    also:
    /// Whether an entry with a stale window was read. If so, reads ask for the time at once, and
    /// not only when they meet such an entry.
    windows: AtomicBool,
    /// Warns of what is counted as bypassed. All names beyond [`MOST_CACHES`] have one together, so
    /// that it cannot write an event for each handle.
    pub(super) without_redis: Arc<BypassWarning>,
    /// Those of the counts, and of what takes its time.
    meters: Arc<Meters>,
    /// The label `cache` of the metrics.
    label: Box<str>,
}

/// What takes its time in a cache.
#[derive(Debug, Clone, Copy)]
pub(super) enum Timed {
    Read,
    Load,
    Store,
}

/// By the order of [`Timed`].
const TIMES: &[Described] = &[
    Described {
        name: "hedgerow_cache_read_duration_seconds",
        what: "How long a read of entries took, from the call to the judged entries.",
    },
    Described {
        name: "hedgerow_cache_load_duration_seconds",
        what: "How long a loader ran, whatever it came to.",
    },
    Described {
        name: "hedgerow_cache_store_duration_seconds",
        what: "How long it took to store an entry that was encoded, whatever became of it.",
    },
];

/// The counts of all caches of one client, by the name of the cache.
#[derive(Debug, Default)]
pub(super) struct AllCounts {
    named: Mutex<HashMap<Box<str>, Arc<Counts>>>,
    /// That of the names that are not remembered.
    without_redis: Arc<BypassWarning>,
}

impl Counts {
    fn new(namespace: &str, label: &str, without_redis: Arc<BypassWarning>) -> Self {
        let labels: Labels<'_> = &[("namespace", namespace), ("cache", label)];
        let meters = Meters::new(labels, Self::METRICS, TIMES);
        let windows = AtomicBool::new(false);
        Self::of(
            &meters.clone(),
            windows,
            without_redis,
            meters,
            label.into(),
        )
    }

    pub(super) fn met_a_window(&self) -> bool {
        self.windows.load(Ordering::Relaxed)
    }

    pub(super) fn meet_a_window(&self) {
        self.windows.store(true, Ordering::Relaxed);
    }

    /// Counts the value of an entry that was encoded.
    pub(super) fn encoded(&self, sizes: Sizes) {
        self.encoded_bytes.more(sizes.encoded as u64);
        self.compressed_bytes.more(sizes.compressed as u64);
    }

    /// Returns what the metrics of this cache are labelled with.
    #[cfg_attr(not(feature = "near"), expect(dead_code))]
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Begins to measure. What is measured ends when the timer is dropped, however it ends.
    pub(super) fn time(&self, timed: Timed) -> Timer<'_> {
        self.meters.time(timed as usize)
    }
}

impl AllCounts {
    /// Returns the counts of the cache called `name`, in this namespace.
    pub(super) fn of(&self, namespace: &str, name: &str) -> Arc<Counts> {
        let mut all = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name) {
            return known.clone();
        }
        let counts = |label, warning| Arc::new(Counts::new(namespace, label, warning));
        // Names of caches are few. If they are made from input, each handle counts for itself, and
        // the metrics of all these handles are one.
        if all.len() >= MOST_CACHES {
            return counts(OTHERS, self.without_redis.clone());
        }
        let counts = counts(name, Arc::default());
        all.insert(name.into(), counts.clone());
        counts
    }
}

/// How many names are remembered at most.
const MOST_CACHES: usize = 1024;

/// What the metrics of all further names are labelled with.
const OTHERS: &str = "(others)";
