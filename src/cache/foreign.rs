//! Foreign entries: entries that are whole, but not readable by this build or as this type.
//!
//! Invariant: each foreign entry that is met is counted, and an event reports them at most once a
//! minute: under a hot key, every call meets one. Reads of entries call this.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::error::Error;
use crate::time::Seldom;

/// The foreign entries that the caches of one client have met.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    met: AtomicU64,
    told: Mutex<Told>,
}

/// When the last event was written, and how many entries had been counted by then.
#[derive(Debug, Default)]
struct Told {
    seldom: Seldom,
    met: u64,
}

impl Foreign {
    /// Counts one that was met in `cache`, at `redis_key`, and cannot be read because of `error`.
    pub(super) fn meet(&self, cache: &str, redis_key: &str, error: &Error) {
        self.met.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.seldom.one_more(Instant::now()).is_none() {
            return;
        }
        let all = self.met();
        let met = all - std::mem::replace(&mut told.met, all);
        // Released before the event: a subscriber is the user's code.
        drop(told);
        tracing::info!(target: "hedgerow::cache", cache, redis_key, met, %error, "foreign");
    }

    pub(super) fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }
}
