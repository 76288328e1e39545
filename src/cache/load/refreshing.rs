//! `Refreshing`: which keys are being loaded anew behind a value that is still served.
//!
//! Invariant: at most one such load of a key runs in one client, and at most [`MOST`] in all. No
//! call waits for them, so nothing else holds them back. `memoize` begins them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::key::Key;

/// The keys that one client loads anew.
#[derive(Debug, Default)]
pub(in crate::cache) struct Refreshing(Mutex<HashMap<Key, Instant>>);

/// One of these loads, until this is dropped.
#[derive(Debug)]
#[must_use = "the load counts as ended when this is dropped"]
pub(in crate::cache) struct Refresh {
    all: Arc<Refreshing>,
    key: Key,
    /// Until when it counts, also if its runtime is not driven any more.
    until: Instant,
}

impl Refreshing {
    /// Begins a load of `key` that takes `longest` at the most, unless one is under way, or too
    /// many are.
    pub(in crate::cache) fn begin(
        self: &Arc<Self>,
        key: &Key,
        longest: Duration,
    ) -> Option<Refresh> {
        let now = Instant::now();
        let mut keys = self.keys();
        if keys.get(key).is_some_and(|until| now < *until) {
            return None;
        }
        if keys.len() >= MOST {
            keys.retain(|_, until| now < *until);
        }
        if keys.len() >= MOST {
            return None;
        }
        let until = now + longest;
        keys.insert(key.clone(), until);
        Some(Refresh {
            all: self.clone(),
            key: key.clone(),
            until,
        })
    }

    /// Whether a load of `key` is under way.
    #[cfg(feature = "near")]
    pub(in crate::cache) fn is_under_way(&self, key: &Key) -> bool {
        let keys = self.keys();
        keys.get(key).is_some_and(|until| Instant::now() < *until)
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Refresh {
    fn drop(&mut self) {
        let mut keys = self.all.keys();
        // Another may have begun in its place.
        if keys.get(&self.key) == Some(&self.until) {
            keys.remove(&self.key);
        }
    }
}

/// How many of these loads run at a time in one client.
const MOST: usize = 256;
