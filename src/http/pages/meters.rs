//! `Meters`: what a layer tells the `metrics` facade. Without the feature `metrics`, nothing.
//!
//! Invariant: the counters of a layer are registered together, when the first of them rises. They
//! have the name of its cache and the namespace as labels, so there are few. Its counts
//! call this.

#[cfg(feature = "metrics")]
use std::sync::OnceLock;

use crate::Cache;

/// The name of a counter, and what it counts.
pub(super) type Described = (&'static str, &'static str);

/// The counters of a layer.
pub(super) struct Meters {
    #[cfg(feature = "metrics")]
    labels: [metrics::Label; 2],
    #[cfg(feature = "metrics")]
    described: &'static [Described],
    // Not registered at once: the program may install its recorder after it has made its layer.
    #[cfg(feature = "metrics")]
    counters: OnceLock<Box<[metrics::Counter]>>,
}

#[cfg(feature = "metrics")]
impl Meters {
    pub(super) fn new(cache: &Cache, described: &'static [Described]) -> Self {
        let label = |name, value: &str| metrics::Label::new(name, value.to_owned());
        Self {
            labels: [
                label("namespace", cache.namespace()),
                label("cache", cache.name()),
            ],
            described,
            counters: OnceLock::new(),
        }
    }

    /// Counts one more at this position.
    pub(super) fn one_more(&self, at: usize) {
        let counters = self.counters.get_or_init(|| {
            let counter = |(name, what): &Described| {
                metrics::describe_counter!(*name, what.trim());
                metrics::counter!(*name, self.labels.iter())
            };
            self.described.iter().map(counter).collect()
        });
        counters[at].increment(1);
    }
}

#[cfg(not(feature = "metrics"))]
impl Meters {
    pub(super) fn new(_: &Cache, _: &'static [Described]) -> Self {
        Self {}
    }

    #[expect(clippy::unused_self)]
    pub(super) fn one_more(&self, _: usize) {}
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}
