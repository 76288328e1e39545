//! `get` and `get_many`: read values, and load nothing.
//!
//! Invariant: `get` answers as `get_many` of one key would, errors and outages included. Users call
//! both.

use std::collections::HashMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::cache::read::fetch;
use crate::cache::read::reading::Reading;
use crate::client::Request;
use crate::error::Result;
use crate::key::Key;
use crate::name::Name;
use crate::time::Deadline;

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
        V: DeserializeOwned + Send + Sync + 'c,
    {
        Request::new(self.setup.patience, move |patience| {
            self.found(key, patience.deadline())
        })
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
        V: DeserializeOwned + Send + Sync + 'c,
    {
        let keys: Vec<Name> = keys
            .into_iter()
            .map(|key| self.client.name(key.as_ref()))
            .collect();
        Request::new(self.setup.patience, move |patience| async move {
            self.all_found(&keys, patience.deadline()).await
        })
    }

    async fn found<V: DeserializeOwned>(
        &self,
        key: &str,
        deadline: Deadline,
    ) -> Result<Option<Arc<V>>> {
        let value = self.value(&self.client.name(key))?;
        match fetch::read(self, &value, &[], self.setup.read_from, deadline).await {
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

    async fn all_found<V: DeserializeOwned>(
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
            match fetch::read_many(self, part, &[], self.setup.read_from, deadline).await {
                Ok(readings) => found.extend(readings.into_iter().map(Reading::hit)),
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
}

/// How many entries one read asks a server for, so that other calls do not wait long behind it.
const MOST_AT_ONCE: usize = 100;
