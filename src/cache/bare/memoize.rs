//! `BareMemoize`: a cached load of a bare value.
//!
//! Invariant: it has the settings that need no envelope, and no others. [`BareCache`] makes it.
//!
//! [`BareCache`]: super::BareCache

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::verbs::memoize::{AnyLoader, Memoize, Plain};
use crate::error::Error;
use crate::time::OnOutage;

/// A cached load of a bare value, made by [`BareCache::memoize`](super::BareCache::memoize). Await
/// it to get the value.
#[must_use = "nothing is read or loaded until it is awaited"]
pub struct BareMemoize<L>(pub(super) Memoize<Plain<L>>);

impl<L> BareMemoize<L> {
    /// As [`Memoize::hard_timeout`].
    pub fn hard_timeout(self, timeout: Duration) -> Self {
        Self(self.0.hard_timeout(timeout))
    }

    /// As [`Memoize::error_ttl_by`].
    pub fn error_ttl_by(
        self,
        by: impl Fn(&Error) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.error_ttl_by(by))
    }

    /// As [`Memoize::deadline`].
    pub fn deadline(self, deadline: Duration) -> Self {
        Self(self.0.deadline(deadline))
    }

    /// As [`Memoize::on_outage`].
    pub fn on_outage(self, on_outage: OnOutage) -> Self {
        Self(self.0.on_outage(on_outage))
    }

    /// As [`Memoize::fail_fast`].
    pub fn fail_fast(self) -> Self {
        Self(self.0.fail_fast())
    }
}

impl<L> IntoFuture for BareMemoize<L>
where
    Plain<L>: AnyLoader,
    <Plain<L> as AnyLoader>::Value: Serialize + DeserializeOwned,
{
    type Output = <Memoize<Plain<L>> as IntoFuture>::Output;
    type IntoFuture = <Memoize<Plain<L>> as IntoFuture>::IntoFuture;

    fn into_future(self) -> Self::IntoFuture {
        self.0.into_future()
    }
}

impl<L> fmt::Debug for BareMemoize<L> {
    /// Leaves out the loader, which may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BareMemoize").field(&self.0).finish()
    }
}
