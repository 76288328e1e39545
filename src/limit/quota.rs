//! `Quota`: how much a limit lets through, and by which algorithm.
//!
//! Invariant: [`Terms`] are right by construction: every number that a script calculates with them
//! is an integer below 2^53, which a Lua number holds exactly. Limiters and groups parse their
//! quotas here; checks and their answers calculate with the terms.

use std::borrow::Cow;
use std::time::Duration;

use crate::error::{Error, Result};

/// How much a limit lets through: `limit` requests in each `window`, by an [`Algorithm`].
///
/// ```
/// use std::time::Duration;
/// use hedgerow::limit::Quota;
///
/// let api = Quota::per_second(100).burst(20); // 100 each second, never more than 20 at once
/// let login = Quota::new(5, Duration::from_secs(15 * 60)).sliding_window(); // a hard bound
/// # assert_ne!(api, login);
/// ```
///
/// It is checked by the first call that uses it: see [`Client::rate_limiter`].
///
/// [`Client::rate_limiter`]: crate::Client::rate_limiter
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a quota limits nothing until a limiter has it"]
pub struct Quota {
    limit: u32,
    window: Duration,
    burst: Option<u32>,
    algorithm: Algorithm,
}

/// How a limit counts. Each has its own promise, by the clock of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Algorithm {
    /// The generic cell rate algorithm: capacity for [`burst`](Quota::burst) requests, which comes
    /// back steadily, one request each `window / limit`.
    ///
    /// In any time `t`, no more than `burst + t * limit / window` requests are let through. So a
    /// whole `window` may have as many as `burst + limit`. Requests that are refused for a moment
    /// get their turn as soon as one fits: the caller who retries does not wait for a window to
    /// end. A key has about 40 bytes in Redis.
    #[default]
    Gcra,
    /// A sliding window: in any `window`, no more than `limit` requests are let through. That is a
    /// hard bound, whenever the window begins.
    ///
    /// All of them may come at once, and then none for a whole window. Up to a limit of 64, each
    /// request counts for exactly one window. Above, the requests of each 64th of a window share a
    /// time, and count for up to a 64th longer: at a constant load, at least 98 % of the limit is
    /// used. A key has up to 1.8 KB in Redis.
    SlidingWindow,
}

impl Quota {
    /// Returns a quota of `limit` requests in each `window`, by [`Algorithm::Gcra`] with a
    /// [`burst`](Self::burst) of `limit`.
    pub const fn new(limit: u32, window: Duration) -> Self {
        Self {
            limit,
            window,
            burst: None,
            algorithm: Algorithm::Gcra,
        }
    }

    /// Returns a quota of `limit` requests each second.
    pub const fn per_second(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(1))
    }

    /// Returns a quota of `limit` requests each minute.
    pub const fn per_minute(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(60))
    }

    /// Returns a quota of `limit` requests each hour.
    pub const fn per_hour(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(60 * 60))
    }

    /// Returns a quota of `limit` requests each day of 24 hours.
    pub const fn per_day(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(24 * 60 * 60))
    }

    /// Sets how many requests may come at once: `limit` by default. A sliding window has no burst
    /// of its own, and refuses one.
    pub const fn burst(mut self, burst: u32) -> Self {
        self.burst = Some(burst);
        self
    }

    /// Counts by [`Algorithm::SlidingWindow`].
    pub const fn sliding_window(mut self) -> Self {
        self.algorithm = Algorithm::SlidingWindow;
        self
    }

    /// Returns how many requests each window lets through.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Returns the window.
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// Returns how the limit counts.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Checks the quota.
    pub(super) fn terms(&self) -> Result<Terms> {
        let Self { limit, window, .. } = *self;
        if limit == 0 || self.burst == Some(0) {
            return Err(Error::invalid(
                "the quota lets nothing through; give a limit and a burst of at least 1",
            ));
        }
        if window < SHORTEST || window > LONGEST {
            return Err(Error::invalid(
                "the window of the quota is shorter than 1 ms or longer than 50 days; choose \
                 another",
            ));
        }
        match (self.algorithm, self.burst) {
            (Algorithm::Gcra, burst) => Terms::gcra(limit, window, burst.unwrap_or(limit)),
            (Algorithm::SlidingWindow, None) => Ok(Terms::window(limit, window)),
            (Algorithm::SlidingWindow, Some(_)) => Err(Error::invalid(
                "a sliding window has no burst of its own: all of its limit may come at once; \
                 leave the burst out",
            )),
        }
    }
}

/// A quota that was checked, in the units of the scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Terms {
    Gcra {
        /// How long one request needs to drain, in ns.
        unit: u64,
        burst: u32,
    },
    Window {
        limit: u32,
        /// The window, in µs.
        span: u64,
        /// Requests within so many µs share a time.
        slice: u64,
    },
}

impl Terms {
    fn gcra(limit: u32, window: Duration, burst: u32) -> Result<Self> {
        let nanos = window.as_nanos();
        // Rounded up, so that never more than the limit gets through.
        let unit = nanos.div_ceil(u128::from(limit));
        if unit * u128::from(limit) * 100 > nanos * 101 {
            return Err(Error::invalid(
                "the quota has a request in less than 100 ns, which cannot be counted exactly; \
                 count larger units, such as KiB in place of bytes",
            ));
        }
        if unit * u128::from(burst) > LONGEST.as_nanos() {
            return Err(Error::invalid(
                "the burst of the quota needs more than 50 days to come back; choose a smaller one",
            ));
        }
        let unit = u64::try_from(unit).unwrap_or(u64::MAX);
        Ok(Self::Gcra { unit, burst })
    }

    fn window(limit: u32, window: Duration) -> Self {
        let span = u64::try_from(window.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        let slice = match limit <= SLICES {
            true => 1,
            false => span.div_ceil(u64::from(SLICES)),
        };
        Self::Window { limit, span, slice }
    }

    /// What stands in the keys of a limit, before its name: the algorithm, and the length of a
    /// window. A shorter window drops what a longer one still counts, so each has keys of its own.
    pub(super) fn room(&self) -> Cow<'static, str> {
        match self {
            Self::Gcra { .. } => "r".into(),
            Self::Window { span, .. } => format!("w{span}").into(),
        }
    }

    /// The most that one request may cost.
    pub(super) fn most(&self) -> u32 {
        match *self {
            Self::Gcra { burst, .. } => burst,
            Self::Window { limit, .. } => limit,
        }
    }

    /// Checks the cost of a request.
    pub(super) fn check(&self, cost: u32) -> Result<()> {
        if cost <= self.most() {
            return Ok(());
        }
        let most = self.most();
        Err(Error::invalid(format!(
            "a request of cost {cost} never fits in a limit of {most} at once; split it, or raise \
             the limit"
        )))
    }

    /// The word that scripts know the algorithm by.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Gcra { .. } => "gcra",
            Self::Window { .. } => "window",
        }
    }

    /// `cost` in the unit of the scripts.
    pub(super) fn amount(&self, cost: u32) -> u64 {
        match *self {
            Self::Gcra { unit, .. } => unit * u64::from(cost),
            Self::Window { .. } => u64::from(cost),
        }
    }

    /// All that the limit has, in the unit of the scripts.
    pub(super) fn capacity(&self) -> u64 {
        self.amount(self.most())
    }

    /// The window in µs, and its slice; both 0 without a window.
    pub(super) fn span(&self) -> (u64, u64) {
        match *self {
            Self::Gcra { .. } => (0, 0),
            Self::Window { span, slice, .. } => (span, slice),
        }
    }

    /// The longest that a request can be made to wait for its turn.
    pub(super) fn longest_wait(&self) -> Duration {
        match *self {
            Self::Gcra { .. } => LONGEST,
            // Further ahead, the log would grow.
            Self::Window { span, .. } => Duration::from_micros(span),
        }
    }
}

/// The shortest and the longest window. Two of the longest, in ns, are below 2^53.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(50 * 24 * 60 * 60);

/// Into how many slices a window is cut, and up to which limit each request has a time of its own.
const SLICES: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn refused(quota: Quota) {
        let error = quota.terms().expect_err("no good quota");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{quota:?}");
    }

    #[test]
    fn a_quota_that_lets_nothing_through_or_cannot_be_counted_is_refused() {
        refused(Quota::per_second(0));
        refused(Quota::per_second(1).burst(0));
        refused(Quota::new(1, Duration::ZERO));
        refused(Quota::new(1, Duration::from_micros(999)));
        refused(Quota::new(1, LONGEST + Duration::from_nanos(1)));
        refused(Quota::per_second(120_000_000));
        refused(Quota::per_day(1).burst(51));
        refused(Quota::per_second(5).burst(5).sliding_window());
    }

    #[test]
    fn one_request_takes_its_exact_share_rounded_up() {
        let terms = Quota::per_second(3).terms().expect("good");
        assert_eq!(
            terms,
            Terms::Gcra {
                unit: 333_333_334,
                burst: 3
            }
        );
        let terms = Quota::per_second(100_000_000)
            .burst(7)
            .terms()
            .expect("good");
        assert_eq!(terms, Terms::Gcra { unit: 10, burst: 7 });
        assert_eq!(terms.capacity(), 70);
    }

    #[test]
    fn a_window_of_few_requests_is_exact_and_one_of_many_has_64_slices() {
        let second = 1_000_000;
        let terms = |limit| {
            Quota::per_second(limit)
                .sliding_window()
                .terms()
                .expect("good")
        };
        assert_eq!(
            terms(64),
            Terms::Window {
                limit: 64,
                span: second,
                slice: 1
            }
        );
        assert_eq!(
            terms(65),
            Terms::Window {
                limit: 65,
                span: second,
                slice: second / 64
            }
        );
    }

    #[test]
    fn all_that_a_script_adds_up_stays_exact() {
        // The level is at most the capacity and the longest wait, and a cost is at most the
        // capacity.
        let most = 2 * LONGEST.as_nanos();
        assert!(most < 1 << 53, "{most}");
    }
}
