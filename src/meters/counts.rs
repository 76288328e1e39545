//! `Count`, and `counts!`, which makes the counts of an owner of one list.
//!
//! Invariant: a count only rises. Each stands once in its list, which makes the field of the public
//! type, the count and its metric. Caches, limiters, stores of sessions and layers of pages count.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Tally;

/// A number that only rises.
#[derive(Debug)]
pub(crate) struct Count {
    so_far: AtomicU64,
    tally: Tally,
}

impl Count {
    pub(crate) fn new(tally: Tally) -> Self {
        Self {
            so_far: AtomicU64::new(0),
            tally,
        }
    }

    pub(crate) fn one_more(&self) {
        self.more(1);
    }

    pub(crate) fn more(&self, by: u64) {
        self.so_far.fetch_add(by, Ordering::Relaxed);
        self.tally.more(by);
    }

    pub(crate) fn so_far(&self) -> u64 {
        self.so_far.load(Ordering::Relaxed)
    }
}

/// Makes a public type of numbers and a private `Counts` that they are read from, of one list. The
/// prefix begins the name of each metric. `Counts` has the fields behind `also`, too.
macro_rules! counts {
    (
        $(#[doc = $about:literal])+
        pub struct $stats:ident, named $prefix:literal;
        $(#[doc = $doc:literal] $(#[doc = $more:literal])* $count:ident,)+
        $(also: $(#[doc = $why:literal] $(#[doc = $further:literal])* $seen:vis $field:ident: $of:ty,)+)?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $stats {
            $(#[doc = $doc] $(#[doc = $more])* pub $count: u64,)+
        }

        /// What the numbers are read from.
        #[derive(Debug)]
        pub(super) struct Counts {
            $(pub(super) $count: $crate::meters::Count,)+
            $($(#[doc = $why] $(#[doc = $further])* $seen $field: $of,)+)?
        }

        impl Counts {
            const METRICS: &[$crate::meters::Described] = &[$($crate::meters::Described {
                name: concat!($prefix, stringify!($count), "_total"),
                what: concat!($doc, $($more),*),
            },)+];

            /// The counts whose metrics are the counters of `meters`.
            fn of(meters: &std::sync::Arc<$crate::meters::Meters>, $($($field: $of),+)?) -> Self {
                let mut positions = 0_usize..;
                $(
                    let tally = meters.tally(positions.next().unwrap_or_default());
                    let $count = $crate::meters::Count::new(tally);
                )+
                Self { $($count,)+ $($($field),+)? }
            }

            pub(super) fn so_far(&self) -> $stats {
                $stats { $($count: self.$count.so_far(),)+ }
            }
        }
    };
}

pub(crate) use counts;
