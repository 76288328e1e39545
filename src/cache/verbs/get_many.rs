//! `get_many`: reads several values, and loads nothing.
//!
//! Invariant: each value is judged by itself. Where outages are told, one server that is out fails
//! the call. Where they are bypassed, it hides only what it has, and what was read is served and
//! counted. Users call this.

use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;

use crate::cache::Cache;
#[cfg(feature = "near")]
use crate::cache::near::{
    self,
    held::{Near, NearHit},
};
use crate::cache::outage::{Did, Outage};
use crate::cache::read::fetch;
use crate::cache::read::judge::Want;
use crate::cache::read::reading::Reading;
use crate::client::Request;
#[cfg(feature = "near")]
use crate::error::Error;
use crate::error::Result;
use crate::hash::SeededMap;
use crate::key::Key;
use crate::name::Name;
use crate::time::Deadline;

/// What was found at a key, or why it could not be read.
type Found<V> = Result<Option<Arc<V>>>;

impl Cache {
    /// Returns the values of `keys`, in their order: `None` for each key without a valid value.
    ///
    /// A key of another Redis type is `None`: see [`get`](Self::get).
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
    /// As [`get`](Self::get). The call fails as a whole if a server that holds one of the keys, or
    /// a tag of its entry, cannot be read, and what others have is not returned. Under
    /// [`Outage::Bypass`], only the keys that could not be read are `None` then. The others are
    /// found, and counted, as ever.
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
        let found = match self.setup.outage {
            Outage::Fail => self.all_read(&asked.keys, deadline).await,
            Outage::Bypass => self.read_where_possible(&asked.keys, deadline).await,
        };
        let found = found.map_err(|error| match &asked.only {
            Some(key) => error.about(key),
            None => error,
        })?;
        // No key was given twice, so each value is already at its position.
        if asked.places.is_empty() {
            return Ok(found);
        }
        let places = asked.places.into_iter();
        Ok(places.map(|place| found[place].clone()).collect())
    }

    /// Reads `keys`, or fails as a whole.
    async fn all_read<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<Vec<Option<Arc<V>>>> {
        let mut found: Vec<Option<Arc<V>>> = Vec::with_capacity(keys.len());
        for part in keys.chunks(MOST_AT_ONCE) {
            found.extend(self.read_part(part, deadline).await?);
        }
        let hits = found.iter().flatten().count();
        self.setup.counts.hits.more(hits as u64);
        self.setup.counts.misses.more((found.len() - hits) as u64);
        Ok(found)
    }

    /// Reads those of `keys` that can be read, and does without the others.
    async fn read_where_possible<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<Vec<Option<Arc<V>>>> {
        // By server, so that one that does not answer takes no time of the others.
        let mut reads = Vec::new();
        for places in self.client.by_server(keys) {
            reads.push(Box::pin(self.read_server(keys, places, deadline)));
        }
        let mut outcomes: Vec<Found<V>> = keys.iter().map(|_| Ok(None)).collect();
        for (at, outcome) in try_join_all(reads).await?.into_iter().flatten() {
            outcomes[at] = outcome;
        }
        let (mut hits, mut misses, mut outage) = (0, 0, None);
        let mut found = Vec::with_capacity(keys.len());
        for outcome in outcomes {
            found.push(match outcome {
                Ok(Some(value)) => {
                    hits += 1;
                    Some(value)
                }
                Ok(None) => {
                    misses += 1;
                    None
                }
                Err(error) if self.setup.outage.bypasses(&error) => {
                    outage.get_or_insert(error);
                    None
                }
                Err(error) => return Err(error),
            });
        }
        self.setup.counts.hits.more(hits);
        self.setup.counts.misses.more(misses);
        // Once for the call, however many keys it does without.
        if let Some(error) = outage {
            self.does_without(Did::FindNothing, "get_many", &error);
        }
        Ok(found)
    }

    /// Reads those of `keys` that are at these places, which one server has. Returns each outcome
    /// with its place.
    async fn read_server<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        keys: &[Key],
        places: Vec<usize>,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Found<V>)>> {
        let own: Vec<Key> = places.iter().map(|at| keys[*at].clone()).collect();
        let mut parts = Vec::new();
        for part in own.chunks(MOST_AT_ONCE) {
            parts.push(Box::pin(self.read_each(part, deadline)));
        }
        let parts = stream::iter(parts).buffered(PARTS_AT_ONCE);
        let parts: Vec<Vec<Found<V>>> = parts.try_collect().await?;
        Ok(places
            .into_iter()
            .zip(parts.into_iter().flatten())
            .collect())
    }

    /// Returns the values at `keys`, known or read, or fails as a whole.
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

    /// Returns the values at `keys`, known or read, each for itself.
    async fn read_each<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<Vec<Found<V>>> {
        #[cfg(feature = "near")]
        if let Some(near) = &self.setup.near {
            return Box::pin(self.near_each(near, keys, deadline)).await;
        }
        let how = (self.setup.read_from, Want::Fresh);
        let readings = fetch::read_each(self, keys, &[], how, deadline).await?;
        let readings = readings.into_iter();
        Ok(readings.map(|reading| reading.map(Reading::hit)).collect())
    }

    /// As [`read_part`](Self::read_part), with a near cache.
    #[cfg(feature = "near")]
    async fn near_part<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        near: &Arc<Near>,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<Vec<Option<Arc<V>>>> {
        let (mut found, missing) = self.held_near(near, keys);
        // Counted only once the call is sure to be answered.
        let near_hits = (keys.len() - missing.len()) as u64;
        let asked: Vec<Key> = missing.iter().map(|at| keys[*at].clone()).collect();
        let read = async {
            if asked.is_empty() {
                return Ok(Vec::new());
            }
            match self.near_to_fill() {
                Some(near) => near::read::read_many(self, near, &asked, deadline).await,
                None => {
                    let from = self.setup.read_from;
                    let read = fetch::read_many(self, &asked, &[], from, deadline).await;
                    // Found elsewhere, and not kept.
                    read.inspect(|_| asked.iter().for_each(|key| near.forget(key)))
                }
            }
        };
        let read = match read.await {
            Ok(readings) => readings.into_iter().map(Reading::hit).collect(),
            // The call fails as a whole, so it is also served as a whole.
            Err(error) => self.all_in_grace(&asked, &error).ok_or(error)?,
        };
        self.setup.counts.near_hits.more(near_hits);
        for (at, value) in missing.into_iter().zip(read) {
            found[at] = value;
        }
        Ok(found)
    }

    /// As [`read_each`](Self::read_each), with a near cache.
    #[cfg(feature = "near")]
    async fn near_each<V: DeserializeOwned + Send + Sync + 'static>(
        &self,
        near: &Arc<Near>,
        keys: &[Key],
        deadline: Deadline,
    ) -> Result<Vec<Found<V>>> {
        let (found, missing) = self.held_near(near, keys);
        let mut found: Vec<Found<V>> = found.into_iter().map(Ok).collect();
        let near_hits = (keys.len() - missing.len()) as u64;
        self.setup.counts.near_hits.more(near_hits);
        if missing.is_empty() {
            return Ok(found);
        }
        let asked: Vec<Key> = missing.iter().map(|at| keys[*at].clone()).collect();
        let readings = match self.near_to_fill() {
            Some(near) => {
                let how = (&[][..], Want::Fresh, near::read::Absence::Kept);
                near::read::read_each(self, near, &asked, how, deadline).await?
            }
            None => {
                let how = (self.setup.read_from, Want::Fresh);
                let readings = fetch::read_each(self, &asked, &[], how, deadline).await?;
                // Found elsewhere, and not kept.
                let read = asked.iter().zip(&readings).filter(|(_, it)| it.is_ok());
                read.for_each(|(key, _)| near.forget(key));
                readings
            }
        };
        for ((at, key), reading) in missing.into_iter().zip(&asked).zip(readings) {
            found[at] = match reading {
                Ok(reading) => Ok(reading.hit()),
                Err(error) => match self.known_in_grace(key, &error) {
                    Some(known) => Ok(self.value_in_grace(known)),
                    None => Err(error),
                },
            };
        }
        Ok(found)
    }

    /// Returns what the near cache knows of `keys`, and the positions of those that it does not
    /// know.
    #[cfg(feature = "near")]
    fn held_near<V: Send + Sync + 'static>(
        &self,
        near: &Near,
        keys: &[Key],
    ) -> (Vec<Option<Arc<V>>>, Vec<usize>) {
        let mut found = vec![None; keys.len()];
        let mut missing = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            match near.hit(&self.client, key.as_str()) {
                Some(NearHit::Value(value)) => found[at] = Some(value),
                Some(NearHit::Absent) => {}
                None => missing.push(at),
            }
        }
        (found, missing)
    }

    /// Returns what the near cache knows of all `keys`, if it knows that of each of them.
    #[cfg(feature = "near")]
    fn all_in_grace<V: Send + Sync + 'static>(
        &self,
        keys: &[Key],
        error: &Error,
    ) -> Option<Vec<Option<Arc<V>>>> {
        let known = keys.iter().map(|key| self.known_in_grace(key, error));
        let known: Vec<NearHit<V>> = known.collect::<Option<_>>()?;
        let values = known.into_iter().map(|known| self.value_in_grace(known));
        Some(values.collect())
    }

    /// Returns the value that is served because its server is out, and counts it so.
    #[cfg(feature = "near")]
    fn value_in_grace<V>(&self, known: NearHit<V>) -> Option<Arc<V>> {
        match known {
            NearHit::Value(value) => {
                self.setup.counts.near_grace.one_more();
                Some(value)
            }
            NearHit::Absent => None,
        }
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

/// How many such reads are made at a time where some of them may be in vain.
const PARTS_AT_ONCE: usize = 10;

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
