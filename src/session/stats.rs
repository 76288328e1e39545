//! `SessionStats`: what a store has done so far.
//!
//! Invariant: all clones of a store count together, and a count only rises.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::meters::{Described, Meters};
use crate::Cache;

/// Makes `SessionStats` and `Counts` of one list, in which each count stands once, and names the
/// metric of each.
macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $count:ident,)+) => {
        /// What a store has done in this process since it was made.
        ///
        /// Each number only rises. They are read one after the other.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct SessionStats {
            $($(#[doc = $doc])+ pub $count: u64,)+
        }

        /// The counts of one store.
        #[derive(Debug)]
        pub(super) struct Counts {
            $(pub(super) $count: Count,)+
        }

        const METRICS: &[Described] = &[$((
            concat!("hedgerow_session_", stringify!($count), "_total"),
            concat!($($doc),+),
        ),)+];

        impl Counts {
            /// The counts of a store that keeps its sessions in `cache`.
            pub(super) fn of(cache: &Cache) -> Self {
                let meters = Arc::new(Meters::new(cache, METRICS));
                let mut positions = 0_usize..;
                $(let $count = Count::new(&meters, positions.next().unwrap_or_default());)+
                Self { $($count,)+ }
            }

            pub(super) fn so_far(&self) -> SessionStats {
                SessionStats { $($count: self.$count.so_far.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counts! {
    /// Sessions that were created.
    created,
    /// Sessions that were written anew.
    saved,
    /// Sessions whose end was moved, because a save changed nothing else.
    moved,
    /// Saves that changed nothing, because the session had ended since the request loaded it: it
    /// was deleted, got another id, was logged out everywhere, or belongs to another user.
    dropped,
    /// Saves of a session that another request had saved meanwhile. They overwrote it, or were
    /// refused, as the setting `conflict` says. Those under another id overwrote it.
    conflicts,
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
