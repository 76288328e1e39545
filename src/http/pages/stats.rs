//! `PageStats`: what a layer has done so far.
//!
//! Invariant: each request is counted once, by how it was answered, and a count only rises. Serving
//! counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::meters::{Described, Meters};
use crate::Cache;

/// Makes `PageStats` and `Counts` of one list, in which each count stands once, and names the
/// metric of each.
macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $count:ident,)+) => {
        /// What a [`PageCache`](super::PageCache) has done in this process.
        ///
        /// Each number only rises. They are read one after the other, so a request that ends
        /// meanwhile may be in one of them and not in another.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct PageStats {
            $($(#[doc = $doc])+ pub $count: u64,)+
        }

        /// The counts of one layer and its clones.
        #[derive(Debug)]
        pub(super) struct Counts {
            $(pub(super) $count: Count,)+
        }

        const METRICS: &[Described] = &[$((
            concat!("hedgerow_pages_", stringify!($count), "_total"),
            concat!($($doc),+),
        ),)+];

        impl Counts {
            /// The counts of a layer that keeps its pages in `cache`.
            pub(super) fn of(cache: &Cache) -> Self {
                let meters = Arc::new(Meters::new(cache, METRICS));
                let mut positions = 0_usize..;
                $(let $count = Count::new(&meters, positions.next().unwrap_or_default());)+
                Self { $($count,)+ }
            }

            pub(super) fn so_far(&self) -> PageStats {
                PageStats { $($count: self.$count.so_far.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counts! {
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

/// A number that only rises.
#[derive(Debug)]
pub(super) struct Count {
    so_far: AtomicU64,
    meters: Arc<Meters>,
    /// Its position among the meters.
    at: usize,
}

impl Count {
    fn new(meters: &Arc<Meters>, at: usize) -> Self {
        Self {
            so_far: AtomicU64::new(0),
            meters: meters.clone(),
            at,
        }
    }

    pub(super) fn one_more(&self) {
        self.so_far.fetch_add(1, Ordering::Relaxed);
        self.meters.one_more(self.at);
    }
}
