//! `Fallback`: the stale value that a call is given if its load fails or takes too long.
//!
//! Invariant: the value was found by the last read of the call. Errors about the data, or about the
//! call, are never passed over for it. A [`Call`](super::call::Call) keeps one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::load::Replaced;
use crate::cache::outage;
use crate::cache::read::judge::{Age, Old};
use crate::cache::read::reading::Miss;
use crate::error::{Error, ErrorKind};

/// The stale value that a call may fall back on.
pub(super) struct Fallback<V> {
    stale: Mutex<Option<StaleValue<V>>>,
    /// Notified when there is one.
    kept: Notify,
}

/// A stale value that was read.
struct StaleValue<V> {
    value: Arc<V>,
    /// How long it had been stale when it was read.
    age: Duration,
    read: Instant,
}

impl<V> Fallback<V> {
    pub(super) fn none() -> Self {
        Self {
            stale: Mutex::new(None),
            kept: Notify::new(),
        }
    }

    /// Returns once a value was kept, now or before.
    pub(super) async fn kept(&self) {
        self.kept.notified().await;
    }

    /// Keeps a stale value in case the load fails, and returns it for the loader.
    pub(super) fn keep(&self, old: Old<Arc<V>>, miss: &Miss) -> Option<Replaced<V>> {
        let Age::Stale(age) = old.age else {
            return None;
        };
        let stale = StaleValue {
            value: old.taken.clone(),
            age,
            read: Instant::now(),
        };
        *self.stale.lock().unwrap_or_else(PoisonError::into_inner) = Some(stale);
        self.kept.notify_one();
        Some(Replaced::of(old, miss))
    }

    /// Forgets the value: a later read has not found it.
    pub(super) fn clear(&self) {
        *self.stale.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns the value, if it has been stale for no longer than `limit`.
    pub(super) fn value(&self, limit: Duration) -> Option<Arc<V>> {
        let stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = stale.as_ref()?;
        let age = stale.age + stale.read.elapsed();
        (!limit.is_zero() && age <= limit).then(|| stale.value.clone())
    }
}

/// Whether a stale value may be served in place of this error. Errors about the data, or about the
/// call, are never passed over.
pub(super) fn may_be_served_over(error: &Error) -> bool {
    let kind = error.kind();
    let of_the_load = matches!(
        kind,
        ErrorKind::Loader | ErrorKind::LoaderPanicked | ErrorKind::LoaderTimeout
    );
    of_the_load || outage::passes(error)
}

/// The error of a call whose hard timeout has passed.
pub(super) fn out_of_patience() -> Error {
    Error::new(
        ErrorKind::LoaderTimeout,
        "no load of the key ended within hard_timeout; one that is under way goes on",
    )
}
