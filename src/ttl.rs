//! `Ttl`: a time to live in whole milliseconds.
//!
//! Invariant: a `Ttl` is at least 1 ms and at most 100 years, so no key that carries one is born
//! dead (Redis deletes a key whose `PX` is 0) and no sum of two overflows. Every primitive that
//! takes a `Duration` turns it into a `Ttl` here and nowhere else.

use std::time::Duration;

use crate::error::{Error, Result};

/// A checked time to live. Sub-millisecond parts are rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ttl(u64);

impl Ttl {
    /// Parses `duration`; `what` names it in the error.
    pub(crate) fn new(what: &str, duration: Duration) -> Result<Self> {
        if duration.is_zero() {
            return Err(Error::invalid(format!(
                "{what} is zero; give a duration of at least 1 ms"
            )));
        }
        if duration > LONGEST {
            return Err(Error::invalid(format!(
                "{what} is longer than 100 years; leave it out instead"
            )));
        }
        let millis = duration.as_nanos().div_ceil(1_000_000);
        Ok(Self(u64::try_from(millis).unwrap_or(u64::MAX)))
    }

    /// Whole milliseconds, as Redis wants them.
    pub(crate) fn millis(self) -> u64 {
        self.0
    }

    /// The same times `factor`, which is about 1.
    pub(crate) fn spread(self, factor: f64) -> Self {
        debug_assert!((0.5..=2.0).contains(&factor), "a spread, not another TTL");
        Self(((self.0 as f64 * factor) as u64).max(1))
    }

    /// The shorter of this and `longest`, which is at least 1 ms.
    pub(crate) fn at_most(self, longest: Duration) -> Self {
        Self(
            self.0
                .min(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX))
                .max(1),
        )
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// 100 years of 365 days: far below what Redis accepts (it refuses what overflows an `i64` of ms).
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_millisecond_round_up() {
        for (nanos, millis) in [(1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2)] {
            let ttl = Ttl::new("ttl", Duration::from_nanos(nanos)).expect("in range");
            assert_eq!(ttl.millis(), millis, "{nanos} ns");
        }
    }

    #[test]
    fn zero_and_more_than_a_century_are_refused() {
        assert!(Ttl::new("ttl", Duration::ZERO).is_err());
        assert!(Ttl::new("ttl", LONGEST).is_ok());
        assert!(Ttl::new("ttl", LONGEST + Duration::from_nanos(1)).is_err());
        assert!(Ttl::new("ttl", Duration::MAX).is_err());
    }
}
