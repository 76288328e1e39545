//! `Level`: a gauge of the `metrics` facade, for near caches and for what waits to be invalidated.
//!
//! Invariant: a level adds to the gauge what it was set to last, and takes it back when it is
//! dropped. So several of them may share the labels of one cache.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Gauge, Label};

use super::facade::owned;
use super::{Described, Labels};

/// How much of something there is now. What several owners with the same labels have is added up.
pub(crate) struct Level {
    labels: Vec<Label>,
    described: Described,
    gauge: OnceLock<Gauge>,
    told: AtomicU64,
}

impl Level {
    pub(crate) fn new(labels: Labels<'_>, described: Described) -> Self {
        Self {
            labels: owned(labels),
            described,
            gauge: OnceLock::new(),
            told: AtomicU64::new(0),
        }
    }

    pub(crate) fn set(&self, now: u64) {
        let before = self.told.swap(now, Ordering::Relaxed);
        // The differences add up to what there is, in whichever order they come.
        self.gauge().increment(now as f64 - before as f64);
    }

    fn gauge(&self) -> &Gauge {
        self.gauge.get_or_init(|| {
            metrics::describe_gauge!(self.described.name, self.described.what);
            metrics::gauge!(self.described.name, self.labels.iter())
        })
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        if let Some(gauge) = self.gauge.get() {
            gauge.decrement(*self.told.get_mut() as f64);
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Level").field(&self.told).finish()
    }
}
