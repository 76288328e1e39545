//! The settings that calls of a cache have in common.
//!
//! Invariant: a setting of a call replaces that of its cache, for this call only. `memoize` and its
//! relatives, and `set`, have them.

/// How long a call may take, and what it does while Redis is out, for a type with `cache: Cache`.
macro_rules! call_settings {
    () => {
        /// Sets how long this call may take in all, a loader not counted. By default, the cache
        /// [decides](crate::Cache::deadline). More than 100 years count as 100 years.
        #[must_use = "it returns the changed value"]
        pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
            self.cache = self.cache.deadline(deadline);
            self
        }

        /// Sets whether this call keeps trying while Redis is out. By default, the cache
        /// [decides](crate::Cache::on_outage).
        #[must_use = "it returns the changed value"]
        pub fn on_outage(mut self, on_outage: crate::time::OnOutage) -> Self {
            self.cache = self.cache.on_outage(on_outage);
            self
        }

        /// Fails at once while Redis is out: the same as [`on_outage`](Self::on_outage) with
        /// [`OnOutage::FailFast`](crate::OnOutage::FailFast).
        #[must_use = "it returns the changed value"]
        pub fn fail_fast(self) -> Self {
            self.on_outage(crate::time::OnOutage::FailFast)
        }
    };
}

pub(super) use call_settings;
