//! `LoadOptions`: how long a loaded value is kept, when it may be served stale, and how long a call
//! waits for a load.
//!
//! Invariant: nothing is checked before [`LoadOptions::parsed`], and everything is checked there.
//! `memoize` and its relatives collect options, and the loads follow them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::time::{FOREVER, Ttl};

/// The options as they were given.
#[derive(Debug, Clone)]
pub(super) struct LoadOptions {
    pub(super) ttl: Duration,
    pub(super) none_ttl: Option<Duration>,
    pub(super) stale: Duration,
    pub(super) stale_if_error: Duration,
    /// How long an entry is kept to be served stale. `None` for as long as the call may serve it.
    pub(super) keep_stale: Option<Duration>,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) hard_timeout: Option<Duration>,
    pub(super) early_refresh: EarlyRefresh,
    pub(super) error_ttl_by: Option<ErrorTtls>,
}

/// Whether values are loaded anew before they expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EarlyRefresh {
    Off,
    On,
}

/// How long errors of loads are remembered, by what they are.
#[derive(Clone)]
pub(super) struct ErrorTtls(Arc<ErrorTtl>);

/// The user's function.
type ErrorTtl = dyn Fn(&Error) -> Option<Duration> + Send + Sync;

/// Options that were checked.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) ttl: Ttl,
    /// Of a value that is `None`.
    pub(super) none_ttl: Option<Ttl>,
    /// How long the entry may be served stale, for whatever reason.
    pub(super) window: Duration,
    pub(super) error_ttl_by: Option<ErrorTtls>,
}

/// When a call may be served a stale value, and how long it waits. Checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Serves {
    /// A value that has been stale for no longer than this is served at once.
    pub(super) stale: Duration,
    /// A value that has been stale for no longer than this is served if the load fails, or takes
    /// longer than `soft_timeout`.
    pub(super) stale_if_error: Duration,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) hard_timeout: Option<Duration>,
    pub(super) early_refresh: EarlyRefresh,
}

impl LoadOptions {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            none_ttl: None,
            stale: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            keep_stale: None,
            soft_timeout: None,
            hard_timeout: None,
            early_refresh: EarlyRefresh::Off,
            error_ttl_by: None,
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// `InvalidInput` if a duration is out of range, or an option has no effect without another.
    pub(super) fn parsed(&self) -> Result<(Kept, Serves)> {
        for (name, window) in [
            ("stale", self.stale),
            ("stale_if_error", self.stale_if_error),
            ("keep_stale", self.keep_stale.unwrap_or_default()),
        ] {
            checked_window(name, window)?;
        }
        if self.soft_timeout.is_some() && self.stale_if_error.is_zero() {
            return Err(Error::invalid(
                "soft_timeout has nothing to serve; say with stale_if_error how old a value may be",
            ));
        }
        let none_ttl = self
            .none_ttl
            .map(|ttl| Ttl::new("none_ttl", ttl))
            .transpose();
        let kept = Kept {
            ttl: Ttl::new("ttl", self.ttl)?,
            none_ttl: none_ttl?,
            window: self
                .keep_stale
                .unwrap_or(self.stale.max(self.stale_if_error)),
            error_ttl_by: self.error_ttl_by.clone(),
        };
        let serves = Serves {
            stale: self.stale,
            stale_if_error: self.stale_if_error,
            soft_timeout: self.soft_timeout,
            hard_timeout: self.hard_timeout,
            early_refresh: self.early_refresh,
        };
        Ok((kept, serves))
    }
}

/// Returns `window`, the stale window called `name`.
///
/// # Errors
/// `InvalidInput` if it is too long.
pub(super) fn checked_window(name: &str, window: Duration) -> Result<Duration> {
    match window > FOREVER {
        true => Err(Error::invalid(format!(
            "{name} is longer than hedgerow::FOREVER (100 years); use that instead"
        ))),
        false => Ok(window),
    }
}

impl Kept {
    /// For a value that is never served stale.
    pub(super) fn fresh(ttl: Ttl) -> Self {
        Self {
            ttl,
            none_ttl: None,
            window: Duration::ZERO,
            error_ttl_by: None,
        }
    }

    /// The longest that a value may be fresh.
    pub(super) fn longest(&self) -> Ttl {
        self.none_ttl.map_or(self.ttl, |none| none.max(self.ttl))
    }

    /// The window in whole milliseconds.
    pub(super) fn window_millis(&self) -> u64 {
        u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Serves {
    /// Whether a call may ever be served a stale value. Such a call reads the entry before it joins
    /// a load.
    pub(super) fn may_be_stale(self) -> bool {
        !self.stale.max(self.stale_if_error).is_zero()
    }
}

impl ErrorTtls {
    pub(super) fn new(by: impl Fn(&Error) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self(Arc::new(by))
    }

    /// How long `error` is remembered. `None` if the cache decides.
    pub(super) fn of(&self, error: &Error) -> Option<Duration> {
        // The user's code: if it panics, the cache decides.
        let by = catch_unwind(AssertUnwindSafe(|| self.0(error)));
        by.ok().flatten()
    }
}

impl fmt::Debug for ErrorTtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ErrorTtls")
    }
}

/// The settings of how a value is loaded and kept, for a type with `options: LoadOptions`.
macro_rules! load_settings {
    () => {
        /// Sets the TTL of values that are `None`. By default, it is that of other values.
        #[must_use = "it returns the changed value"]
        pub fn none_ttl(mut self, ttl: Duration) -> Self {
            self.options.none_ttl = Some(ttl);
            self
        }

        /// Serves a value that has been stale for no longer than `window` at once, and loads it
        /// anew in the background. Zero by default: a value is not served once its TTL has passed.
        ///
        /// A value becomes stale at the end of its TTL, or by a soft invalidation of a tag. Entries
        /// are kept for their TTL and the longest stale window of the call that stores them. How
        /// long a value is served is decided by each call for itself. After a removal or a hard
        /// invalidation nothing is served.
        ///
        /// One background load of a key runs in the fleet at a time. If it fails, the stale value
        /// is served until the window ends. [`get`](crate::Cache::get) and the other verbs find
        /// fresh values only.
        ///
        /// Stale windows need the time of the server, so reads of such a cache cost one more
        /// command in the same trip, and values with a stale window are not read from replicas. A
        /// near cache holds such a value while it is fresh.
        #[must_use = "it returns the changed value"]
        pub fn stale(mut self, window: Duration) -> Self {
            self.options.stale = window;
            self
        }

        /// Serves a value that has been stale for no longer than `window` if the load fails, or
        /// Redis fails during the load. Zero by default: the call fails.
        ///
        /// Within [`error_ttl`](crate::Cache::error_ttl) of a failed load no other load is tried,
        /// so the source of the data is asked at most once in that time.
        #[must_use = "it returns the changed value"]
        pub fn stale_if_error(mut self, window: Duration) -> Self {
            self.options.stale_if_error = window;
            self
        }

        /// Sets how long an entry is kept to be served stale, in place of the longest stale window
        /// of this call. A loader that knows it better says it:
        /// [`Loading::keep_stale`](crate::cache::Loading::keep_stale).
        ///
        /// Use it where the window follows from the value: let calls serve whatever is there
        /// (`.stale(FOREVER)`), keep nothing (`.keep_stale(Duration::ZERO)`), and have the loader
        /// say for how long each value is kept.
        #[must_use = "it returns the changed value"]
        pub fn keep_stale(mut self, window: Duration) -> Self {
            self.options.keep_stale = Some(window);
            self
        }

        /// Serves a stale value if the load takes longer than `timeout`. The load goes on. How old
        /// the value may be is set by [`stale_if_error`](Self::stale_if_error), which this needs.
        /// If there is no such value, the call waits for the load.
        #[must_use = "it returns the changed value"]
        pub fn soft_timeout(mut self, timeout: Duration) -> Self {
            self.options.soft_timeout = Some(timeout);
            self
        }

        /// Ends the wait of this call after `timeout` with `LoaderTimeout`, or with a stale value
        /// where [`stale_if_error`](Self::stale_if_error) allows one. The load goes on, and is
        /// stored. The first read has the time that [`deadline`](crate::Cache::deadline) gives it,
        /// also if that is more. Without this setting, a call waits for
        /// [`max_load`](crate::Cache::max_load) and its deadline.
        #[must_use = "it returns the changed value"]
        pub fn hard_timeout(mut self, timeout: Duration) -> Self {
            self.options.hard_timeout = Some(timeout);
            self
        }

        /// Loads a value anew in the background before its TTL ends. Chance decides when: the
        /// sooner the TTL ends and the longer the load took, the more likely the load is (XFetch:
        /// Vattani, Chierichetti and Lowenstein, "Optimal probabilistic cache stampede prevention",
        /// PVLDB 8(8), 2015). So a value that is asked for often is always fresh, and nobody waits
        /// for its load. One such load of a key runs in the fleet at a time.
        ///
        /// Reads cost one more command in the same trip. Values that are found at a replica
        /// ([`PreferReplica`](crate::cache::ReadFrom::PreferReplica)) are not loaded early. A near
        /// cache decides by the same chance: a call that is to load the value reads Redis first.
        #[must_use = "it returns the changed value"]
        pub fn refresh_early(mut self) -> Self {
            self.options.early_refresh = crate::cache::load_options::EarlyRefresh::On;
            self
        }

        /// Sets how long a failed load is remembered, by its error. `by` returns `None` where the
        /// [cache](crate::Cache::error_ttl) decides, and zero for an error that is not remembered.
        ///
        /// ```no_run
        /// # use std::{io, time::Duration};
        /// # async fn load() -> io::Result<u8> { Ok(1) }
        /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
        /// let minute = Duration::from_secs(60);
        /// let value = cache
        ///     .memoize("k", minute, load)
        ///     .error_ttl_by(|error| match error.loader_error::<io::Error>()?.kind() {
        ///         io::ErrorKind::NotFound => Some(Duration::from_secs(30)),
        ///         _ => None,
        ///     })
        ///     .await?;
        /// # Ok(())
        /// # }
        /// ```
        #[must_use = "it returns the changed value"]
        pub fn error_ttl_by(
            mut self,
            by: impl Fn(&crate::error::Error) -> Option<Duration> + Send + Sync + 'static,
        ) -> Self {
            self.options.error_ttl_by = Some(crate::cache::load_options::ErrorTtls::new(by));
            self
        }
    };
}

pub(super) use load_settings;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_entry_is_kept_for_the_longest_window_of_all() {
        let mut options = LoadOptions::new(SECOND);
        options.stale = SECOND * 2;
        options.stale_if_error = SECOND * 3;
        let (kept, _) = options.parsed().expect("good options");
        assert_eq!(kept.window, SECOND * 3);
    }

    #[test]
    fn an_entry_is_kept_for_as_long_as_was_said() {
        let mut options = LoadOptions::new(SECOND);
        options.stale = FOREVER;
        options.keep_stale = Some(SECOND);
        let (kept, serves) = options.parsed().expect("good options");
        assert_eq!((kept.window, serves.stale), (SECOND, FOREVER));
        options.keep_stale = Some(FOREVER * 2);
        let refused = options.parsed().expect_err("too long");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_soft_timeout_without_anything_to_serve_is_refused() {
        let mut options = LoadOptions::new(SECOND);
        options.soft_timeout = Some(SECOND);
        let refused = options.parsed().expect_err("it has no effect");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_panic_of_the_users_code_leaves_the_decision_to_the_cache() {
        let ttls = ErrorTtls::new(|_| panic!("on purpose"));
        assert_eq!(ttls.of(&Error::invalid("x")), None);
    }
}
