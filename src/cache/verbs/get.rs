//! `get` and `get_many`: read values, and load nothing.
//!
//! Invariant: `get` answers as `get_many` of one key would, errors and outages included. Users call
//! both.

use std::collections::HashMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::cache::Cache;
#[cfg(feature = "near")]
use crate::cache::near::{
    self,
    held::{Near, NearHit},
};
use crate::cache::read::fetch;
use crate::cache::read::reading::Reading;
use crate::client::Request;
use crate::error::Result;
use crate::key::Key;
use crate::name::Name;
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
    /// left alone: another version of the service may read it (see [`version`](Self::version)). If
    /// the key holds another Redis type, only the calls that write report that, as `WrongType`
    /// ([`memoize`](Self::memoize) of a missing key, [`set`](Self::set), [`remove`](Self::remove)).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// [`Outage::Bypass`]: crate::Outage::Bypass
    pub fn get<'c, V>(&'c self, key: &'c str) -> Request<'c, Option<Arc<V>>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let found = move |patience: Patience| self.found(key, patience.deadline());
        #[cfg(feature = "near")]
        return Request::unless(self.setup.patience, move || self.known(key), found);
        #[cfg(not(feature = "near"))]
        Request::new(self.setup.patience, found)
    }

    /// Returns the values of `keys`, in their order: `None` for each key without a valid value.
    ///
    /// Up to 100 keys cost one trip to each server that holds any of them, and one more if some
    /// entries carry tags. A key that is given twice is read once. Without keys, nothing is sent.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let cities = cache.get_many::<String>(["city:1", "city:2", "city:3"]).await?;
    /// let found = cities.iter().flatten().count();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get). The call fails as a whole if a server that holds one of the keys
    /// cannot be read. Under [`Outage::Bypass`], nothing is found then.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// [`Outage::Bypass`]: crate::Outage::Bypass
    pub fn get_many<'c, V>(
        &'c self,
        keys: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Request<'c, Vec<Option<Arc<V>>>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        let keys: Vec<Name> = keys
            .into_iter()
            .map(|key| self.client.name(key.as_ref()))
            .collect();
        Request::new(self.setup.patience, move |patience| async move {
            self.all_found(&keys, patience.deadline()).await
        })
    }

    async fn found<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        key: &str,
        deadline: Deadline,
    ) -> Result<Option<Arc<V>>> {
        let value = self.value(&self.client.name(key))?;
        match self.read_one(&value, deadline).await {
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
                self.state().bulkhead.read(&self.setup.name, &error);
                Ok(None)
            }
            // The name is made again, so that the future of a hit does not hold it.
            Err(error) => Err(error.about(&self.client.name(key))),
        }
    }

    async fn all_found<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        keys: &[Name],
        deadline: Deadline,
    ) -> Result<Vec<Option<Arc<V>>>> {
        // Spelt first, so that an invalid name is an error before anything is sent.
        self.names()?;
        let mut spelt: Vec<Key> = Vec::with_capacity(keys.len());
        let mut places = Vec::with_capacity(keys.len());
        let mut known = HashMap::new();
        for key in keys {
            let value = self.value(key)?;
            let place = *known.entry(value.clone()).or_insert(spelt.len());
            if place == spelt.len() {
                spelt.push(value);
            }
            places.push(place);
        }
        let mut found: Vec<Option<Arc<V>>> = Vec::with_capacity(spelt.len());
        for part in spelt.chunks(MOST_AT_ONCE) {
            match self.read_part(part, deadline).await {
                Ok(readings) => found.extend(readings),
                Err(error) if self.setup.outage.bypasses(&error) => {
                    self.state().bulkhead.read(&self.setup.name, &error);
                    // The call finds nothing as a whole, just as it fails as a whole.
                    return Ok(vec![None; keys.len()]);
                }
                Err(error) => {
                    return Err(match keys {
                        [key] => error.about(key),
                        _ => error,
                    });
                }
            }
        }
        let hits = found.iter().flatten().count();
        self.setup.counts.hits.more(hits as u64);
        self.setup.counts.misses.more((found.len() - hits) as u64);
        // No key was given twice, so each value is already at its position.
        if spelt.len() == keys.len() {
            return Ok(found);
        }
        Ok(places
            .into_iter()
            .map(|place| found[place].clone())
            .collect())
    }

    /// Reads the entry at `value`.
    async fn read_one<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        value: &Key,
        deadline: Deadline,
    ) -> Result<Reading<Arc<V>>> {
        #[cfg(feature = "near")]
        if let Some(near) = self.near_to_fill() {
            let read = near::read::read(self, near, value, &[], deadline);
            return Box::pin(read).await;
        }
        fetch::read(self, value, &[], self.setup.read_from, deadline).await
    }

    /// Returns the values at `keys`, known or read.
    async fn read_part<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<Vec<Option<Arc<V>>>> {
        #[cfg(feature = "near")]
        if let Some(near) = self.near_to_fill() {
            return Box::pin(self.near_part(near, keys, deadline)).await;
        }
        let readings = fetch::read_many(self, keys, &[], self.setup.read_from, deadline).await?;
        Ok(readings.into_iter().map(Reading::hit).collect())
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

    /// As [`read_part`](Self::read_part), with a near cache.
    #[cfg(feature = "near")]
    async fn near_part<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        near: &Arc<Near>,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<Vec<Option<Arc<V>>>> {
        let mut found = vec![None; keys.len()];
        let mut missing = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            match near.hit(&self.client, key.as_str()) {
                Some(NearHit::Value(value)) => found[at] = Some(value),
                Some(NearHit::Absent) => {}
                None => missing.push(at),
            }
        }
        let known = keys.len() - missing.len();
        self.setup.counts.near_hits.more(known as u64);
        if missing.is_empty() {
            return Ok(found);
        }
        let asked: Vec<Key> = missing.iter().map(|at| keys[*at].clone()).collect();
        let readings = near::read::read_many(self, near, &asked, deadline).await?;
        for (at, reading) in missing.into_iter().zip(readings) {
            found[at] = reading.hit();
        }
        Ok(found)
    }
}

/// How many entries one read asks a server for, so that other calls do not wait long behind it.
const MOST_AT_ONCE: usize = 100;
