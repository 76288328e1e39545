//! `Refreshing`: which keys are being loaded anew behind a value that is still served.
//!
//! Invariant: at most one such load of a key runs in one client. `memoize` begins them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::key::Key;

/// The keys that one client loads anew.
#[derive(Debug, Default)]
pub(in crate::cache) struct Refreshing(Mutex<HashSet<Key>>);

/// One of these loads, until this is dropped.
#[derive(Debug)]
#[must_use = "the load counts as ended when this is dropped"]
pub(in crate::cache) struct Refresh {
    all: Arc<Refreshing>,
    key: Key,
}

impl Refreshing {
    /// Begins a load of `key`, unless one is under way.
    pub(in crate::cache) fn begin(self: &Arc<Self>, key: &Key) -> Option<Refresh> {
        let is_new = self.keys().insert(key.clone());
        is_new.then(|| Refresh {
            all: self.clone(),
            key: key.clone(),
        })
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Refresh {
    fn drop(&mut self) {
        self.all.keys().remove(&self.key);
    }
}
