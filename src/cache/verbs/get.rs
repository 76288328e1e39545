//! `get` and `get_many`: read values, and load nothing.
//!
//! Invariant: `get` answers as `get_many` of one key would, errors and outages included. Users call
//! both.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::cache::Cache;
#[cfg(feature = "near")]
use crate::cache::near::{
    self,
    held::{Near, NearHit},
};
use crate::cache::outage::Did;
use crate::cache::read::fetch;
use crate::cache::read::reading::Reading;
use crate::client::Request;
#[cfg(feature = "near")]
use crate::error::Error;
use crate::error::Result;
use crate::hash::SeededMap;
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
        let found = move |patience: Patience| self.found(key, patience);
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
        let asked = self.asked(keys);
        Request::new(self.setup.patience, move |patience| async move {
            self.all_found(asked?, self.deadline_by(patience)).await
        })
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

    /// Spells `keys`, so that an invalid one is an error before anything is sent.
    fn asked(&self, keys: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Distinct> {
        let spelling = self.spelling()?;
        let mut spelt = Vec::new();
        let mut only = None;
        let mut buffer = String::new();
        for (at, key) in keys.into_iter().enumerate() {
            let key = key.as_ref();
            let value = spelling.value_by(&mut buffer, key);
            spelt.push(value.map_err(|error| error.with_key(&self.client.name(key)))?);
            only = (at == 0).then(|| self.client.name(key));
        }
        let (keys, places) = distinct(spelt);
        Ok(Distinct { keys, places, only })
    }

    async fn all_found<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        asked: Distinct,
        deadline: Deadline,
    ) -> Result<Vec<Option<Arc<V>>>> {
        let mut found: Vec<Option<Arc<V>>> = Vec::with_capacity(asked.keys.len());
        for part in asked.keys.chunks(MOST_AT_ONCE) {
            match self.read_part(part, deadline).await {
                Ok(readings) => found.extend(readings),
                Err(error) if self.setup.outage.bypasses(&error) => {
                    self.does_without(Did::FindNothing, "get_many", &error);
                    // The call finds nothing as a whole, just as it fails as a whole.
                    return Ok(vec![None; asked.places.len().max(asked.keys.len())]);
                }
                Err(error) => {
                    return Err(match &asked.only {
                        Some(key) => error.about(key),
                        None => error,
                    });
                }
            }
        }
        let hits = found.iter().flatten().count();
        self.setup.counts.hits.more(hits as u64);
        self.setup.counts.misses.more((found.len() - hits) as u64);
        // No key was given twice, so each value is already at its position.
        if asked.places.is_empty() {
            return Ok(found);
        }
        let places = asked.places.into_iter();
        Ok(places.map(|place| found[place].clone()).collect())
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
        if let Some(near) = &self.setup.near {
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

    /// Returns what the near cache knows of all `keys`, if it knows that of each of them.
    #[cfg(feature = "near")]
    fn all_in_grace<V: Send + Sync + 'static>(
        &self,
        keys: &[Key],
        error: &Error,
    ) -> Option<Vec<Option<Arc<V>>>> {
        let known = keys.iter().map(|key| self.known_in_grace(key, error));
        let known: Vec<Option<Arc<V>>> = known
            .map(|known| match known? {
                NearHit::Value(value) => Some(Some(value)),
                NearHit::Absent => Some(None),
            })
            .collect::<Option<_>>()?;
        let values = known.iter().flatten().count();
        self.setup.counts.near_grace.more(values as u64);
        Some(known)
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
        let near_hits = || self.setup.counts.near_hits.more(known as u64);
        if missing.is_empty() {
            near_hits();
            return Ok(found);
        }
        let asked: Vec<Key> = missing.iter().map(|at| keys[*at].clone()).collect();
        let read = async {
            match self.near_to_fill() {
                Some(near) => near::read::read_many(self, near, &asked, deadline).await,
                None => fetch::read_many(self, &asked, &[], self.setup.read_from, deadline).await,
            }
        };
        let readings = match read.await {
            Ok(readings) => readings,
            // The call fails as a whole, so it is also served as a whole.
            Err(error) => match self.all_in_grace(&asked, &error) {
                Some(known) => {
                    near_hits();
                    for (at, value) in missing.into_iter().zip(known) {
                        found[at] = value;
                    }
                    return Ok(found);
                }
                // What was known is not served, so it is no hit.
                None => return Err(error),
            },
        };
        near_hits();
        for (at, reading) in missing.into_iter().zip(readings) {
            found[at] = reading.hit();
        }
        Ok(found)
    }
}

/// The keys of one `get_many`.
struct Distinct {
    /// Each of them once.
    keys: Vec<Key>,
    /// The index of each key that was given. Empty if none was given twice.
    places: Vec<usize>,
    /// The name of the key, if one was given.
    only: Option<Name>,
}

/// Returns each of `keys` once, and the index of each that was given, unless none was given twice.
fn distinct(keys: Vec<Key>) -> (Vec<Key>, Vec<usize>) {
    let mut known: SeededMap<&Key, usize> = SeededMap::default();
    known.reserve(keys.len());
    let mut places = Vec::with_capacity(keys.len());
    for key in &keys {
        let next = known.len();
        places.push(*known.entry(key).or_insert(next));
    }
    if known.len() == keys.len() {
        return (keys, Vec::new());
    }
    let mut once: Vec<Key> = Vec::with_capacity(known.len());
    for (key, place) in keys.iter().zip(&places) {
        // Indexes are given in order, so the next one is that of a key which is met first.
        if *place == once.len() {
            once.push(key.clone());
        }
    }
    (once, places)
}

/// How many entries one read asks a server for, so that other calls do not wait long behind it.
const MOST_AT_ONCE: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Namespace;

    #[test]
    fn each_key_is_asked_for_once_and_found_at_each_of_its_places() {
        let space = Namespace::new("hr").expect("a good namespace");
        let spelling = space.cache("c", 0).expect("a good name");
        let spelt = |names: &str| -> Vec<Key> {
            let names = names.chars().map(String::from);
            names
                .map(|name| spelling.value(&name).expect("a key"))
                .collect()
        };
        assert_eq!(distinct(spelt("abc")), (spelt("abc"), vec![]));
        assert_eq!(
            distinct(spelt("abacbd")),
            (spelt("abcd"), vec![0, 1, 0, 2, 1, 3])
        );
        assert_eq!(distinct(Vec::new()), (Vec::new(), Vec::new()));
    }
}
