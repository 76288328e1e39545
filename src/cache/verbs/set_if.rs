//! `add`, `if_absent`, `if_present`: stores a value under a condition.
//!
//! Invariant: the answer says whether the value was stored, and an outage is never such an answer.
//! Users call this.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;

use super::conditional::{Condition, stored};
use super::set::Set;
use crate::cache::Cache;
use crate::error::Result;
use crate::time::OnOutage;

/// A value about to be stored under a condition, made by [`Set::if_absent`] or [`Set::if_present`].
/// Await it to store the value.
#[must_use = "nothing is stored until it is awaited"]
pub struct SetIf<'v, V: ?Sized> {
    set: Set<'v, V>,
    condition: Condition,
}

impl Cache {
    /// Stores `value` for `ttl`, unless `key` has an entry: the same as
    /// [`set`](Self::set)`(..).`[`if_absent()`](Set::if_absent). Awaiting it returns whether the
    /// value was stored.
    ///
    /// # Errors
    /// As [`if_absent`](Set::if_absent).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value stored or not.
    pub fn add<'v, V: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &'v V,
        ttl: Duration,
    ) -> SetIf<'v, V> {
        self.set(key, value, ttl).if_absent()
    }
}

impl<'v, V: ?Sized> Set<'v, V> {
    /// Stores the value only if the key has no entry. Awaiting it returns whether it was stored. Of
    /// several callers, one at most stores its value.
    ///
    /// An entry that was invalidated counts as absent. One of a format that this build does not
    /// know counts as there, since another build can read it.
    ///
    /// # Errors
    /// As [`Cache::set`], also under [`Outage::Bypass`](crate::Outage::Bypass): the answer says
    /// whether the value was stored.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value stored or not.
    pub fn if_absent(self) -> SetIf<'v, V> {
        SetIf {
            set: self,
            condition: Condition::Absent,
        }
    }

    /// Stores the value only if the key has an entry. Awaiting it returns whether it was stored.
    /// See [`if_absent`](Self::if_absent).
    pub fn if_present(self) -> SetIf<'v, V> {
        SetIf {
            set: self,
            condition: Condition::Present,
        }
    }
}

impl<V: ?Sized> SetIf<'_, V> {
    /// Labels the value: see [`Set::tags`].
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.set = self.set.tags(tags);
        self
    }

    /// Sets how long this call may take in all: see [`Set::deadline`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.set = self.set.deadline(deadline);
        self
    }

    /// Sets whether this call keeps trying while Redis is out: see [`Set::on_outage`].
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.set = self.set.on_outage(on_outage);
        self
    }

    /// Fails at once while Redis is out: see [`Set::fail_fast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }
}

impl<V: ?Sized> fmt::Debug for SetIf<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetIf")
            .field("set", &self.set)
            .field("condition", &self.condition)
            .finish()
    }
}

impl<'v, V: Serialize + Sync + ?Sized> IntoFuture for SetIf<'v, V> {
    type Output = Result<bool>;
    type IntoFuture = BoxFuture<'v, Result<bool>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (value, keeps) = (self.set.value, self.set.keeps);
            let request = self.set.request()?;
            // The value that is asked for is not stored in an outage, and nothing older is served.
            request.forget_near();
            let deadline = request.cache.deadline_now();
            let stored = stored(value, &request, (self.condition, keeps), deadline).await;
            stored.map_err(|error| request.named(error))
        })
    }
}
