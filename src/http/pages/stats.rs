//! `PageStats`: what a layer has done so far.
//!
//! Invariant: each request is counted once, by how it was answered, and a count only rises. Serving
//! counts.

use crate::Cache;
use crate::meters::{Meters, counts};

counts! {
    /// What a [`PageCache`](super::PageCache) has done in this process.
    ///
    /// Each number only rises. They are read one after the other, so a request that ends
    /// meanwhile may be in one of them and not in another.
    pub struct PageStats, named "hedgerow_pages_";
    /// Requests that were answered with a stored page, stale ones included.
    hits,
    /// Of these, requests that were answered with a stale page.
    stale,
    /// Requests that waited for the render of another request and were answered with its page.
    collapsed,
    /// Requests that were answered with the result of their own render.
    misses,
    /// Requests that passed: nothing was looked up for them.
    passed,
    /// Requests that were rendered beside the cache, because their page may not be stored, or could
    /// not be had from the cache.
    beside,
    /// Pages that were rendered to be stored. Of these, `misses` were for a request that waited.
    rendered,
    /// Renders whose page may not be stored.
    unstorable,
    /// Renders that failed: with an error, a panic, or one of the statuses 500, 502, 503 and 504.
    failed,
    /// Answers of 304 that the layer has given.
    not_modified,
    /// Requests that may have changed their page, whose purge is lost: it has failed, and the
    /// client does not go on with it. Those that ended without an answer are not counted here.
    lost_purges,
}

impl Counts {
    /// The counts of a layer that keeps its pages in `cache`.
    pub(super) fn in_cache(cache: &Cache) -> Self {
        let labels = [("namespace", cache.namespace()), ("cache", cache.name())];
        Self::of(&Meters::new(&labels, Self::METRICS, &[]))
    }
}
