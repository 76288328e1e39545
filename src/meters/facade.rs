//! Meters with the feature `metrics`.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use metrics::{Counter, Gauge, Histogram, Label, Unit};

use super::{Described, Labels};

/// The counters and the histograms of one owner.
pub(crate) struct Meters {
    labels: Vec<Label>,
    counters: &'static [Described],
    histograms: &'static [Described],
    // Not registered at once: the program may install its recorder after it has made its client.
    registered: OnceLock<Registered>,
}

struct Registered {
    counters: Box<[Counter]>,
    histograms: Box<[Histogram]>,
}

/// One of the counters.
#[derive(Debug)]
pub(crate) struct Tally {
    meters: Arc<Meters>,
    at: usize,
}

/// Something that takes its time. When it is dropped, the time is recorded.
#[derive(Debug)]
#[must_use = "the time is recorded when this is dropped"]
pub(crate) struct Timer<'m> {
    meters: &'m Meters,
    at: usize,
    since: Instant,
}

/// One more of something, until it is dropped.
pub(crate) struct Raised(Gauge);

impl Meters {
    pub(crate) fn new(
        labels: Labels<'_>,
        counters: &'static [Described],
        histograms: &'static [Described],
    ) -> Arc<Self> {
        Arc::new(Self {
            labels: owned(labels),
            counters,
            histograms,
            registered: OnceLock::new(),
        })
    }

    /// Returns the counter at this position.
    pub(crate) fn tally(self: &Arc<Self>, at: usize) -> Tally {
        Tally {
            meters: self.clone(),
            at,
        }
    }

    /// Begins to measure for the histogram at this position.
    pub(crate) fn time(&self, at: usize) -> Timer<'_> {
        Timer {
            meters: self,
            at,
            since: Instant::now(),
        }
    }

    fn registered(&self) -> &Registered {
        self.registered.get_or_init(|| {
            let counter = |it: &Described| {
                metrics::describe_counter!(it.name, it.what.trim());
                metrics::counter!(it.name, self.labels.iter())
            };
            let histogram = |it: &Described| {
                metrics::describe_histogram!(it.name, Unit::Seconds, it.what.trim());
                metrics::histogram!(it.name, self.labels.iter())
            };
            Registered {
                counters: self.counters.iter().map(counter).collect(),
                histograms: self.histograms.iter().map(histogram).collect(),
            }
        })
    }
}

impl Tally {
    pub(crate) fn more(&self, by: u64) {
        self.meters.registered().counters[self.at].increment(by);
    }
}

impl Timer<'_> {
    /// Records the time until now. A timer that is dropped does the same.
    #[expect(clippy::unused_self)]
    pub(crate) fn stop(self) {}
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        self.meters.registered().histograms[self.at].record(took);
    }
}

impl Raised {
    pub(crate) fn new(labels: Labels<'_>, described: Described) -> Self {
        metrics::describe_gauge!(described.name, described.what);
        let labels = owned(labels);
        let gauge = metrics::gauge!(described.name, labels.iter());
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

pub(super) fn owned(labels: Labels<'_>) -> Vec<Label> {
    let labels = labels.iter();
    labels
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect()
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl fmt::Debug for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raised").finish_non_exhaustive()
    }
}
