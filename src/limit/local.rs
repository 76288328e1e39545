//! `LocalLimit`: the limiter in this process that decides while Redis is out.
//!
//! Invariant: it is fed with everything that the server lets through, so it knows its keys before
//! it is needed. It never lets through more than its share in any time: `share * burst` at once,
//! and `share * limit` in each window after that. Checks and waits of limiters with
//! [`LimitOutage::Local`](super::LimitOutage::Local) use it.

use std::fmt;
use std::hash::BuildHasher as _;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, NotUntil, RateLimiter};

use super::decision::{DecidedBy, Decision};
use super::quota::Terms;
use crate::error::{Error, Result};
use crate::hash::Seeded;

/// A limiter of this process, for the keys of one limiter.
pub(super) struct LocalLimit {
    limiter: DefaultKeyedRateLimiter<Counted>,
    /// How many requests it lets through at once.
    burst: NonZeroU32,
    clock: DefaultClock,
    hasher: Seeded,
    /// When keys that are as good as new were taken out last.
    swept: Mutex<Instant>,
}

/// What is counted apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Counted {
    Key(Box<str>),
    /// All keys that find no place and have this number.
    Shared(u64),
}

impl LocalLimit {
    /// # Errors
    /// `InvalidInput` if the share is not above 0 and at most 1, or so small that a request would
    /// need more than 100 years.
    pub(super) fn new(terms: &Terms, share: f64) -> Result<Self> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::invalid(
                "the local share of the limit is not above 0 and at most 1; give the part of the \
                 limit that this process may use on its own",
            ));
        }
        let one = match *terms {
            Terms::Gcra { unit, .. } => Duration::from_nanos(unit),
            Terms::Window { limit, span, .. } => Duration::from_micros(span) / limit,
        };
        let period = one.as_secs_f64() / share;
        let quota = Duration::try_from_secs_f64(period)
            .ok()
            .filter(|period| *period < crate::time::FOREVER)
            .and_then(|period| governor::Quota::with_period(period.max(Duration::from_nanos(1))));
        let Some(quota) = quota else {
            return Err(Error::invalid(
                "the local share of the limit has no request in 100 years; give a larger share",
            ));
        };
        // Rounded down, but for the one request without which nothing would ever get through.
        let burst = (f64::from(terms.most()) * share) as u32;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        Ok(Self {
            limiter: RateLimiter::keyed(quota.allow_burst(burst)),
            burst,
            clock: DefaultClock::default(),
            hasher: Seeded::default(),
            swept: Mutex::new(Instant::now()),
        })
    }

    /// Counts what the server has let through.
    pub(super) fn feed(&self, key: &str, cost: u32) {
        let Some(cost) = NonZeroU32::new(cost.min(self.burst.get())) else {
            return;
        };
        // If it does not fit, this process had more than its share: it is full already.
        let _ = self.limiter.check_key_n(&self.known(key), cost);
    }

    /// Decides on a request.
    pub(super) fn decide(&self, key: &str, cost: u32) -> Decision {
        let wait = self.take(key, cost);
        Decision {
            allowed: wait.is_none(),
            limit: self.burst.get(),
            remaining: 0,
            retry_after: wait.unwrap_or_default(),
            reset_after: Duration::ZERO,
            decided_by: DecidedBy::Outage,
        }
    }

    /// Takes `cost`. Returns how long to wait if it does not fit now; a cost above the share never
    /// fits.
    pub(super) fn take(&self, key: &str, cost: u32) -> Option<Duration> {
        let cost = NonZeroU32::new(cost)?;
        match self.limiter.check_key_n(&self.known(key), cost) {
            Ok(Ok(())) => None,
            Ok(Err(not_until)) => Some(self.wait(&not_until)),
            Err(_) => Some(NEVER),
        }
    }

    fn wait(
        &self,
        not_until: &NotUntil<<DefaultClock as governor::clock::Clock>::Instant>,
    ) -> Duration {
        not_until.wait_time_from(self.clock.now())
    }

    /// What is counted for `key`: itself, unless there are too many.
    fn known(&self, key: &str) -> Counted {
        if self.limiter.len() < MOST_KEYS || self.sweep() {
            return Counted::Key(key.into());
        }
        Counted::Shared(self.hasher.hash_one(key) % SHARED)
    }

    /// Takes out the keys that are as good as new, at most once a second. Returns whether there is
    /// room.
    fn sweep(&self) -> bool {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.elapsed() < BETWEEN_SWEEPS {
            return false;
        }
        *swept = Instant::now();
        self.limiter.retain_recent();
        self.limiter.len() < MOST_KEYS
    }
}

impl fmt::Debug for LocalLimit {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalLimit")
            .field("burst", &self.burst)
            .finish_non_exhaustive()
    }
}

/// How many keys a limiter counts apart, and how many places the others share.
const MOST_KEYS: usize = 65_536;
const SHARED: u64 = 1024;
const BETWEEN_SWEEPS: Duration = Duration::from_secs(1);

/// How long a cost waits that never fits.
const NEVER: Duration = Duration::from_secs(60 * 60);
