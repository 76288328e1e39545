//! Times as every layer uses them: how long something lives (`Ttl`), how long a call may take
//! (`Deadline`), how long to pause between tries (`Backoff`), and whether another warning is due
//! (`Seldom`).
//!
//! Invariant: a `Ttl` is at least 1 ms and at most 100 years. So no key with one is dead from the
//! start (Redis deletes a key whose `PX` is 0), and no sum of two overflows. A `Deadline` belongs
//! to one call and is never extended. A `Backoff` is jittered, so processes do not retry in step.
//!
//! Every primitive that takes a `Duration` turns it into a `Ttl` here and nowhere else.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};

/// A checked time to live in whole milliseconds. Parts of a millisecond are rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ttl(u64);

impl Ttl {
    /// Parses `duration`. `what` names it in the error.
    ///
    /// # Errors
    /// `InvalidInput` if it is zero, or longer than 100 years.
    pub(crate) fn new(what: &str, duration: Duration) -> Result<Self> {
        if duration.is_zero() {
            return Err(Error::invalid(format!(
                "{what} is zero; give a duration of at least 1 ms"
            )));
        }
        if duration > FOREVER {
            return Err(Error::invalid(format!(
                "{what} is longer than hedgerow::FOREVER (100 years); use that instead"
            )));
        }
        // Rounded up, so that a positive duration never becomes 0.
        let millis = duration.as_nanos().div_ceil(1_000_000);
        Ok(Self(u64::try_from(millis).unwrap_or(u64::MAX)))
    }

    /// Whole milliseconds, as Redis expects them.
    pub(crate) fn millis(self) -> u64 {
        self.0
    }

    /// The same, multiplied by `factor`, which is from 0.5 to 2; at least 1 ms.
    pub(crate) fn spread(self, factor: f64) -> Self {
        debug_assert!((0.5..=2.0).contains(&factor), "a spread, not another TTL");
        Self(((self.0 as f64 * factor) as u64).max(1))
    }

    /// The shorter of this and `longest`; at least 1 ms.
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

/// When a call ends at the latest, and what it does while its server is out or overloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// Nothing is sent after this, and the caller does not wait longer.
    pub(crate) at: Instant,
    pub(crate) on_outage: OnOutage,
    pub(crate) priority: Priority,
}

/// What a call may do that ordinary calls may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Nothing.
    Ordinary,
    /// Use the reserve of its queue when the rest is full. It is for releases and invalidations: if
    /// one is lost, more is lost than the call.
    Reserved,
    /// Be sent past the queue. It is for renewals, which are worth nothing when they are late.
    /// There are few of them.
    Timely,
    /// Wait in another queue, and use the connection for large values, if there is one. So it may
    /// be executed before or after any other call, and it must have no effect until a call of
    /// another priority refers to it.
    Apart,
}

/// What a call does while its server is out. A server is out while its circuit breaker is open,
/// because it has not answered lately.
///
/// With either choice, calls go through as soon as the server answers again. A call that removes
/// something from a cache keeps trying, whatever the cache says; only
/// [`Invalidate::fail_fast`](crate::cache::Invalidate::fail_fast) does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnOutage {
    /// The call fails at once, as not executed ([`CircuitOpen`](crate::ErrorKind::CircuitOpen)).
    /// This is the default of calls of caches. One call at a time is let through to find out
    /// whether the server is back.
    FailFast,
    /// The call keeps trying until its deadline. This is the default of calls of counters, locks
    /// and semaphores.
    KeepTrying,
}

/// The settings from which the deadline of a call is made: how long it may take, and what it does
/// while its server is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    limit: Duration,
    pub(crate) on_outage: OnOutage,
}

impl Patience {
    /// Settings for calls that may take `limit`.
    pub(crate) fn new(limit: Duration, on_outage: OnOutage) -> Self {
        Self {
            // Bounded, so that adding it to an instant does not overflow.
            limit: limit.min(FOREVER),
            on_outage,
        }
    }

    /// The same, with another `limit`.
    pub(crate) fn within(self, limit: Duration) -> Self {
        Self::new(limit, self.on_outage)
    }

    /// The longest that a call may take.
    pub(crate) fn limit(self) -> Duration {
        self.limit
    }

    /// The deadline of a call that begins now.
    pub(crate) fn deadline(self) -> Deadline {
        self.deadline_from(Instant::now())
    }

    /// The deadline of a call that began at `began`.
    pub(crate) fn deadline_from(self, began: Instant) -> Deadline {
        Deadline {
            at: began + self.limit,
            on_outage: self.on_outage,
            priority: Priority::Ordinary,
        }
    }
}

impl Deadline {
    /// A deadline that is `patience` from now, for a call that keeps trying until then.
    pub(crate) fn after(patience: Duration) -> Self {
        Self {
            at: Instant::now() + patience,
            on_outage: OnOutage::KeepTrying,
            priority: Priority::Ordinary,
        }
    }

    /// The same, for a caller that can do without the server.
    pub(crate) fn fail_fast(self) -> Self {
        Self {
            on_outage: OnOutage::FailFast,
            ..self
        }
    }

    /// The same, for a call that must not be given up before its deadline.
    pub(crate) fn keep_trying(self) -> Self {
        Self {
            on_outage: OnOutage::KeepTrying,
            ..self
        }
    }

    /// The same, for a call that may use the reserve of its queue.
    pub(crate) fn reserved(self) -> Self {
        Self {
            priority: Priority::Reserved,
            ..self
        }
    }

    /// The same, for a call that uses the connection for large values.
    pub(crate) fn apart(self) -> Self {
        Self {
            priority: Priority::Apart,
            ..self
        }
    }

    /// The same, but not after `at`.
    pub(crate) fn at_most(self, at: Instant) -> Self {
        Self {
            at: self.at.min(at),
            ..self
        }
    }

    /// How much time is left.
    pub(crate) fn remaining(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// The pauses between tries. Each is twice as long as the one before, up to the longest, and is
/// then multiplied by a random factor.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    longest: Duration,
    spread: Range<f64>,
    next: Duration,
}

impl Backoff {
    /// Pauses that begin at `first` and stop growing at `longest`, each multiplied by a random
    /// factor in `spread`.
    pub(crate) fn new(first: Duration, longest: Duration, spread: Range<f64>) -> Self {
        debug_assert!(first <= longest, "pauses grow");
        Self {
            next: first,
            longest,
            spread,
        }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        jittered(whole, self.spread.clone())
    }
}

/// `pause` times a random factor in `spread`, so that processes do not act in step.
pub(crate) fn jittered(pause: Duration, spread: Range<f64>) -> Duration {
    pause.mul_f64(rand::random_range(spread))
}

/// Lets a warning be written at once, then at most once a minute, and counts what it warns of.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Instant>,
    since: u64,
}

impl Seldom {
    /// Counts one more. Returns how many there were since the last warning, if another is due. The
    /// caller writes it then.
    pub(crate) fn one_more(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.last.is_some_and(|last| now < last + BETWEEN_WARNINGS) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

/// The least time from one warning to the next.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

/// The longest time to live: 100 years of 365 days. Use it for values that stay until they are
/// removed.
///
/// ```no_run
/// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
/// cache.set("founded", &1789, hedgerow::FOREVER).await?;
/// # Ok(())
/// # }
/// ```
// Far below the limit of Redis, which refuses a time that overflows an `i64` of ms.
pub const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(10), millis(35), 1.0..1.0 + f64::EPSILON);
        let pauses: Vec<u128> = (0..4).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 35, 35]);
    }

    #[test]
    fn a_pause_stays_within_its_spread() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_secs(1), 0.25..1.0);
            assert!((0.25..1.0).contains(&pause.as_secs_f64()), "{pause:?}");
        }
    }

    #[test]
    fn parts_of_a_millisecond_round_up() {
        for (nanos, millis) in [(1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2)] {
            let ttl = Ttl::new("ttl", Duration::from_nanos(nanos)).expect("in range");
            assert_eq!(ttl.millis(), millis, "{nanos} ns");
        }
    }

    #[test]
    fn a_warning_is_due_at_once_and_then_once_a_minute_and_counts_all() {
        let (mut seldom, began) = (Seldom::default(), Instant::now());
        let mut at = |seconds| seldom.one_more(began + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(1), at(59), at(60), at(61)],
            [Some(1), None, None, Some(3), None]
        );
    }

    #[test]
    fn zero_and_more_than_a_century_are_refused() {
        assert!(Ttl::new("ttl", Duration::ZERO).is_err());
        assert!(Ttl::new("ttl", FOREVER).is_ok());
        assert!(Ttl::new("ttl", FOREVER + Duration::from_nanos(1)).is_err());
        assert!(Ttl::new("ttl", Duration::MAX).is_err());
    }
}
