//! `LocalLimit`: the limiter in this process that decides while Redis is out.
//!
//! Invariant: it is fed with everything that the server lets through, so it knows its keys before
//! it is needed. It never lets through more than its share of a key in any time: `share * burst` at
//! once, and `share * limit` in each window after that. With very many keys, some have one share
//! together. Checks and waits of limiters with [`LimitOutage::Local`](super::LimitOutage::Local)
//! use it.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::RateLimiter;
use governor::clock::{Clock as _, DefaultClock};

use super::decision::{CLOSED_FOR, DecidedBy, Decision};
use super::places::{Place, Places};
use super::quota::Terms;
use crate::error::{Error, Result};

/// A limiter of this process, for the keys of one limiter.
pub(super) struct LocalLimit {
    limiter: RateLimiter<Box<str>, Places, DefaultClock>,
    /// Those of the limiter.
    places: Places,
    /// How many requests it lets through at once.
    burst: NonZeroU32,
    clock: DefaultClock,
    /// When keys that are as good as new were taken out last.
    swept: Mutex<Instant>,
}

/// Whether a request fits in the share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fits {
    /// It does, and is counted.
    Now,
    /// It may after this time.
    After(Duration),
    /// It costs more than the share.
    Never,
}

impl LocalLimit {
    /// # Errors
    /// `InvalidInput` if the share is not above 0 and at most 1, or so small that a request would
    /// need more than 100 years.
    pub(super) fn new(terms: &Terms, share: f64) -> Result<Self> {
        let quota = quota(terms, share)?;
        // Rounded down, but for the one request without which nothing would ever get through.
        let burst = (f64::from(terms.most()) * share) as u32;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let (places, clock) = (Places::new(MOST_KEYS), DefaultClock::default());
        Ok(Self {
            limiter: RateLimiter::new(quota.allow_burst(burst), places.clone(), clock.clone()),
            places,
            burst,
            clock,
            swept: Mutex::new(Instant::now()),
        })
    }

    /// Checks what a local limit is made of.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(super) fn verify(terms: &Terms, share: f64) -> Result<()> {
        quota(terms, share).map(drop)
    }

    /// Counts what the server has let through.
    pub(super) fn feed(&self, key: &str, cost: u32) {
        // If it does not fit, this process had more than its share: it is full already.
        let _ = self.take(key, cost.min(self.burst.get()));
    }

    /// Decides on a request.
    pub(super) fn decide(&self, key: &str, cost: u32) -> Decision {
        let fits = self.take(key, cost);
        Decision {
            allowed: fits == Fits::Now,
            limit: self.burst.get(),
            remaining: 0,
            retry_after: match fits {
                Fits::Now => Duration::ZERO,
                Fits::After(wait) => wait,
                // The server may let it through when it is back.
                Fits::Never => CLOSED_FOR,
            },
            reset_after: Duration::ZERO,
            decided_by: DecidedBy::Outage,
        }
    }

    /// Takes `cost` if it fits now.
    pub(super) fn take(&self, key: &str, cost: u32) -> Fits {
        let Some(cost) = NonZeroU32::new(cost) else {
            return Fits::Now;
        };
        self.make_room();
        match self.limiter.check_key_n(&key.into(), cost) {
            Ok(Ok(())) => Fits::Now,
            Ok(Err(not_until)) => Fits::After(not_until.wait_time_from(self.clock.now())),
            Err(_) => Fits::Never,
        }
    }

    /// Returns where `key` stands, to [put it back](Self::put_back).
    pub(super) fn place(&self, key: &str) -> Place {
        self.places.of(key)
    }

    /// Gives back what was taken since `key` stood at `place`. Nobody else may have taken from it
    /// meanwhile.
    pub(super) fn put_back(&self, key: &str, place: Place) {
        self.places.put_back(key, place);
    }

    /// Runs `then` while nobody can take anything.
    #[cfg(test)]
    pub(super) fn while_held<T>(&self, then: impl FnOnce() -> T) -> T {
        self.places.while_held(then)
    }

    /// Takes out the keys that are as good as new if there is no place left, at most once a second.
    fn make_room(&self) {
        if self.limiter.len() < MOST_KEYS {
            return;
        }
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.elapsed() >= BETWEEN_SWEEPS {
            *swept = Instant::now();
            self.limiter.retain_recent();
        }
    }
}

/// How fast requests come back in the share.
fn quota(terms: &Terms, share: f64) -> Result<governor::Quota> {
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
    quota.ok_or_else(|| {
        Error::invalid(
            "the local share of the limit has no request in 100 years; give a larger share",
        )
    })
}

impl fmt::Debug for LocalLimit {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalLimit")
            .field("burst", &self.burst)
            .finish_non_exhaustive()
    }
}

/// How many keys have a place of their own.
const MOST_KEYS: usize = 65_536;

/// The least time from one look for keys that are as good as new to the next.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Quota;

    fn local(quota: Quota) -> LocalLimit {
        let terms = quota.terms().expect("a good quota");
        LocalLimit::new(&terms, 1.0).expect("a good share")
    }

    #[test]
    fn keys_that_are_as_good_as_new_make_room() {
        let local = local(Quota::new(1, Duration::from_millis(1)));
        for number in 0..MOST_KEYS {
            local.feed(&number.to_string(), 1);
        }
        let began = Instant::now();
        while local.limiter.len() == MOST_KEYS {
            assert!(began.elapsed() < Duration::from_secs(60), "no room");
            std::thread::sleep(Duration::from_millis(10));
            local.feed("late", 1);
        }
    }

    #[test]
    fn a_key_that_used_up_its_share_gets_no_other_however_many_keys_come() {
        let local = local(Quota::per_day(2));
        local.feed("a", 2);
        for number in 0..MOST_KEYS {
            local.feed(&number.to_string(), 1);
        }
        assert!(!local.decide("a", 1).allowed);
        assert!(!local.decide("0", 2).allowed);
        assert!(local.decide("0", 1).allowed);
    }
}
