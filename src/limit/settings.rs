//! The settings that limiters and groups have in common, and those of their calls.
//!
//! Invariant: a setting of a call replaces that of its limiter or group, for this call only.

/// How long calls may take, and what they do while Redis is out, for a type with `setup:
/// Arc<Setup>` whose setup has a `patience`.
macro_rules! handle_settings {
    () => {
        /// Sets how long one call may take in all, retries included. The default is that of
        /// [caches](crate::ClientBuilder::cache_deadline), 1 s. More than 100 years count as 100
        /// years.
        pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
            let setup = std::sync::Arc::make_mut(&mut self.setup);
            setup.patience = setup.patience.within(deadline);
            self
        }

        /// Sets what calls do while the server is out, before the [policy](Self::outage) decides.
        /// The default is that of [caches](crate::ClientBuilder::cache_on_outage): they fail at
        /// once.
        pub fn on_outage(mut self, on_outage: crate::time::OnOutage) -> Self {
            std::sync::Arc::make_mut(&mut self.setup).patience.on_outage = on_outage;
            self
        }

        /// Short for [`on_outage`](Self::on_outage) with
        /// [`OnOutage::FailFast`](crate::OnOutage::FailFast).
        pub fn fail_fast(self) -> Self {
            self.on_outage(crate::time::OnOutage::FailFast)
        }
    };
}

/// The same for one call, a type with a `patience`.
macro_rules! call_settings {
    () => {
        /// Sets how long the server may take to answer, retries included. By default, the limiter
        /// or the group decides. A wait for a turn is not part of it.
        pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
            self.patience = self.patience.within(deadline);
            self
        }

        /// Sets what this call does while the server is out, before the policy decides. By default,
        /// the limiter or the group decides.
        pub fn on_outage(mut self, on_outage: crate::time::OnOutage) -> Self {
            self.patience.on_outage = on_outage;
            self
        }

        /// Short for [`on_outage`](Self::on_outage) with
        /// [`OnOutage::FailFast`](crate::OnOutage::FailFast).
        pub fn fail_fast(self) -> Self {
            self.on_outage(crate::time::OnOutage::FailFast)
        }
    };
}

pub(super) use {call_settings, handle_settings};
