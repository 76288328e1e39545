//! `NearCache`: the settings of a near cache.
//!
//! Invariant: a setting is checked when the near cache is made from it, and a bad one is the error
//! of the first call. Users pass it to [`Cache::near`](crate::Cache::near).

use std::time::Duration;

use crate::error::{Error, Result};
use crate::time::Ttl;

/// How much a near cache holds, and how old its answers may be.
///
/// ```no_run
/// # use std::time::Duration;
/// use hedgerow::cache::NearCache;
///
/// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
/// let near = NearCache::new()
///     .max_bytes(256 << 20)
///     .max_staleness(Duration::from_secs(1));
/// let cache = client.cache("catalogue").near(near);
/// let city = cache.get::<String>("city:42").await?; // One command.
/// let again = cache.get::<String>("city:42").await?; // None.
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is kept until it is given to `Cache::near`"]
pub struct NearCache {
    pub(super) max_bytes: u64,
    pub(super) max_value: usize,
    pub(super) max_ttl: Duration,
    pub(super) max_staleness: Duration,
    pub(super) outage_grace: Duration,
}

impl NearCache {
    /// A near cache of 64 MiB, for values of up to 256 KiB, which holds each for at most 5 minutes
    /// and is at most 2 s behind.
    pub fn new() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_value: 256 << 10,
            max_ttl: Duration::from_secs(5 * 60),
            max_staleness: Duration::from_secs(2),
            outage_grace: Duration::ZERO,
        }
    }

    /// Sets how many bytes are held at most: 64 MiB by default.
    ///
    /// A value counts as many bytes as it has when it is encoded and not compressed, with about 200
    /// bytes for its place. An eighth of the bytes is for the generations of tags. When it is full,
    /// values that are read rarely make room.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how many bytes a value may have: 256 KiB by default. Larger ones are read from Redis
    /// each time.
    pub fn max_value(mut self, bytes: usize) -> Self {
        self.max_value = bytes;
        self
    }

    /// Sets how long a value is held at most: 5 minutes by default. It is never held for longer
    /// than Redis has it.
    pub fn max_ttl(mut self, ttl: Duration) -> Self {
        self.max_ttl = ttl;
        self
    }

    /// Sets how long a change by another process may go unnoticed if the network fails: 2 s by
    /// default, from 100 ms to an hour. A server that works tells of a change within a round trip.
    ///
    /// Half of it is how often each server is asked whether its pushes arrive, and half is how long
    /// the answer may take.
    pub fn max_staleness(mut self, bound: Duration) -> Self {
        self.max_staleness = bound;
        self
    }

    /// Sets for how long values may be served while their server is out: not at all by default, and
    /// a day at most.
    ///
    /// `get`, `get_many`, `memoize` and its relatives then ask Redis as ever. If that fails because
    /// the server is out, they are served what is held, provided that it was valid when the server
    /// was last checked, and that this was within `grace`. So a call may be given a value that was
    /// invalidated at most `grace` before. A value is not served if this process has learned, by a
    /// push or by the answer to a later read, that it was invalidated. The servers are checked each
    /// half of [`max_staleness`](Self::max_staleness), so a grace below that is of little use.
    ///
    /// A value is never served after its TTL, or after [`max_ttl`](Self::max_ttl). What this client
    /// removes, sets or invalidates during the outage is not served any more, although the call
    /// fails. Once the server is back, all is read from it. [`Stats`](crate::cache::Stats) counts
    /// such values as `near_grace`.
    pub fn outage_grace(mut self, grace: Duration) -> Self {
        self.outage_grace = grace;
        self
    }

    /// Checks the settings.
    pub(super) fn checked(self) -> Result<Self> {
        Ttl::new("max_ttl", self.max_ttl)?;
        if !(LEAST_STALENESS..=MOST_STALENESS).contains(&self.max_staleness) {
            return Err(Error::invalid(format!(
                "max_staleness is {:?}; give a duration from 100 ms to an hour",
                self.max_staleness
            )));
        }
        if self.outage_grace > MOST_GRACE {
            return Err(Error::invalid(format!(
                "outage_grace is {:?}; give a day at most",
                self.outage_grace
            )));
        }
        Ok(self)
    }
}

impl Default for NearCache {
    fn default() -> Self {
        Self::new()
    }
}

/// Less would take a part of the network that the near cache saves.
const LEAST_STALENESS: Duration = Duration::from_millis(100);

/// The longest grace.
const MOST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// More is not a bound.
const MOST_STALENESS: Duration = Duration::from_secs(60 * 60);
