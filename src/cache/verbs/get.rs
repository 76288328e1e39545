//! `get`: reads a value, and loads nothing.
//!
//! Invariant: it answers as [`get_many`](super::get_many) of one key would, errors and outages
//! included. Users call it.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::cache::Cache;
#[cfg(feature = "near")]
use crate::cache::near::{self, held::NearHit};
use crate::cache::outage::Did;
use crate::cache::read::fetch;
#[cfg(feature = "near")]
use crate::cache::read::judge::Want;
use crate::cache::read::reading::Reading;
use crate::client::Request;
use crate::error::Result;
use crate::key::Key;
use crate::time::{Deadline, Patience};

impl Cache {
    /// Returns the value of `key`, if there is a valid one.
    ///
    /// # Errors
    /// `InvalidInput` if the key is invalid, and whatever Redis refuses or does not answer. Under
    /// [`Outage::Bypass`] the latter is `None`.
    ///
    /// A value that cannot be read is `None`, too. A damaged entry is removed. An entry that is
    /// whole but does not hold a `V`, or was written in a way that this build does not know, is
    /// left alone: another version of the service may read it (see [`version`](Self::version)).
    ///
    /// A key that holds another Redis type is `None`, too: the command that reads answers nil
    /// there. All calls that write, or judge an entry in order to change it, report it as
    /// `WrongType`: [`memoize`](Self::memoize) of a missing key, [`set`](Self::set),
    /// [`remove`](Self::remove), [`take`](Self::take) and the rest. [`explain`](Self::explain)
    /// does so, too.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// [`Outage::Bypass`]: crate::Outage::Bypass
    pub fn get<'c, V>(&'c self, key: &'c str) -> Request<'c, Option<Arc<V>>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let found = move |patience: Patience| self.found(key, patience);
        #[cfg(feature = "near")]
        return Request::unless(self.setup.patience, move || self.known(key), found);
        #[cfg(not(feature = "near"))]
        Request::new(self.setup.patience, found)
    }

    async fn found<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        key: &str,
        patience: Patience,
    ) -> Result<Option<Arc<V>>> {
        let value = self.value(&self.client.name(key))?;
        let read = self.read_one(&value, self.deadline_by(patience)).await;
        #[cfg(feature = "near")]
        if let Err(error) = &read
            && let Some(known) = self.known_in_grace(&value, error)
        {
            return Ok(self.served_in_grace(known));
        }
        match read {
            Ok(reading) => {
                let found = reading.hit();
                let counts = &self.setup.counts;
                match found.is_some() {
                    true => counts.hits.one_more(),
                    false => counts.misses.one_more(),
                }
                Ok(found)
            }
            Err(error) if self.setup.outage.bypasses(&error) => {
                self.does_without(Did::FindNothing, "get", &error);
                Ok(None)
            }
            // The name is made again, so that the future of a hit does not hold it.
            Err(error) => Err(error.about(&self.client.name(key))),
        }
    }

    /// Reads the entry at `value`.
    async fn read_one<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        value: &Key,
        deadline: Deadline,
    ) -> Result<Reading<Arc<V>>> {
        #[cfg(feature = "near")]
        if let Some(near) = self.near_to_fill() {
            let asked = (&[][..], Want::Fresh, near::read::Absence::Kept);
            return Box::pin(near::read::read(self, near, value, asked, deadline)).await;
        }
        let reading = fetch::read(self, value, &[], self.setup.read_from, deadline).await;
        // Found elsewhere, and not kept.
        #[cfg(feature = "near")]
        if let (Ok(_), Some(near)) = (&reading, &self.setup.near) {
            near.forget(value);
        }
        reading
    }

    /// Returns what the near cache knows of `key`, and counts it.
    // Apart from `found`, so that a hit builds neither its future nor a key.
    #[cfg(feature = "near")]
    fn known<V: Send + Sync + 'static>(&self, key: &str) -> Option<Result<Option<Arc<V>>>> {
        let near = self.setup.near.as_ref()?;
        // An invalid key, or a setting that was refused, is the error of the call.
        let keys = self.spelling().ok()?;
        let hit = keys.with_value(key, |key| near.hit(&self.client, key));
        let known = match hit.ok()?? {
            NearHit::Value(value) => Some(value),
            NearHit::Absent => None,
        };
        let counts = &self.setup.counts;
        match known.is_some() {
            true => counts.hits.one_more(),
            false => counts.misses.one_more(),
        }
        counts.near_hits.one_more();
        Some(Ok(known))
    }

    /// Returns what the near cache knows, and counts it.
    #[cfg(feature = "near")]
    fn served_in_grace<V>(&self, known: NearHit<V>) -> Option<Arc<V>> {
        let counts = &self.setup.counts;
        match known {
            NearHit::Value(value) => {
                counts.hits.one_more();
                counts.near_grace.one_more();
                Some(value)
            }
            NearHit::Absent => {
                counts.misses.one_more();
                None
            }
        }
    }
}
