//! `memoize_many`: several values are read, and those that are missing are loaded together.
//!
//! Invariant: the loader is called once for the keys whose loads are granted to this call at once.
//! For the other keys, the call waits for the loads of others as [`memoize`](super::memoize) does,
//! and holds nothing meanwhile that they could wait for. Users call this.

use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::Instant;

use super::batch::{Batch, LoadMany, Together};
use super::call::{self, Call};
use super::memoize::{Capture, capture};
use super::settings::call_settings;
use crate::cache::Cache;
use crate::cache::load::gather::Gather;
use crate::cache::load::rounds::Rounds;
use crate::cache::load_options::{LoadOptions, load_settings};
#[cfg(feature = "near")]
use crate::cache::near;
use crate::cache::read::fetch;
use crate::cache::read::judge::Want;
use crate::cache::read::reading::{Miss, Reading};
use crate::error::Result;
use crate::error::loader::LoaderError;
use crate::key::Key;
use crate::name::Name;
use crate::tags::Tag;
use crate::time::Deadline;

/// Cached loads of several keys, made by [`Cache::memoize_many`]. Await it to get the values.
#[must_use = "nothing is read or loaded until it is awaited"]
pub struct MemoizeMany<V> {
    cache: Cache,
    keys: Vec<String>,
    options: LoadOptions,
    /// The declared tags. If one is invalid, the error is returned when this is awaited.
    tags: Result<Vec<Tag>>,
    loader: LoadMany<V>,
}

/// What was found of one key.
type Outcome<V> = Result<Option<Arc<V>>>;

/// What a read of one key came to.
type ReadingOf<V> = Result<Reading<Arc<Maybe<V>>>>;

/// A value that may be none: a key that the loader has left out. It is stored as `Option<V>` is.
#[derive(Debug)]
struct Maybe<V>(Option<Arc<V>>);

impl Cache {
    /// Returns the values of `keys`, in their order. The missing ones are loaded by one call of
    /// `loader`, which gets their names, and are kept for `ttl` each.
    ///
    /// A key that the loader leaves out has no value: it is `None`, and that is kept, too (see
    /// [`none_ttl`](MemoizeMany::none_ttl)). What it returns for other keys is ignored. Each key is
    /// loaded once in the fleet, whichever process or method asks for it. This call waits for keys
    /// that others load, and does not load them. If such a load is of no use to this call, the call
    /// loads the key by another call of `loader`.
    ///
    /// Up to 1,000 keys are read and loaded at a time. With more keys, the loader is called again
    /// for the next ones, and the deadline and the timeouts count anew. A key that is given twice
    /// is loaded once.
    ///
    /// Values are stored as those of [`memoize`](Self::memoize) are, and each method finds what the
    /// other has stored. A key without a value is stored as the `None` of an `Option<V>`, so a
    /// `get` of a `V` misses it. A near cache does not share values between `memoize_many` and
    /// calls on single keys. If both ask for one key, it holds the value of the last read only.
    ///
    /// ```no_run
    /// # use std::{collections::HashMap, io, time::Duration};
    /// # async fn load_cities(names: Vec<String>) -> io::Result<HashMap<String, String>> {
    /// #     Ok(HashMap::new())
    /// # }
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let minute = Duration::from_secs(60);
    /// let cities = cache.memoize_many(["city:1", "city:2"], minute, load_cities).await?;
    /// for city in cities {
    ///     match city? {
    ///         Some(city) => println!("{city}"),
    ///         None => println!("there is no such city"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` for the call as a whole if a key, a tag or a duration is invalid; nothing is
    /// sent then. Otherwise, each key has an outcome of its own, with the errors of
    /// [`memoize`](Self::memoize). A server that is out fails the keys that it holds, and those
    /// whose tags it holds. A loader that fails fails for all keys that it was called for.
    ///
    /// Under [`Outage::Bypass`](crate::Outage::Bypass), while Redis is out, the keys are loaded by
    /// one call of the loader and not stored.
    ///
    /// # Cancel safety
    /// As [`memoize`](Self::memoize): loads that have begun go on and are stored.
    ///
    /// # Panics
    /// If it is first polled outside a tokio runtime.
    pub fn memoize_many<V, E, L, Fut, How>(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<str>>,
        ttl: Duration,
        loader: L,
    ) -> MemoizeMany<V>
    where
        L: Fn(Vec<String>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<HashMap<String, V>, E>> + Send + 'static,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: LoaderError<How>,
    {
        let captured: Capture = capture::<How, E>;
        let loader: LoadMany<V> = Arc::new(move |keys| {
            let loaded = loader(keys);
            let loaded = async move { loaded.await.map_err(|error| captured(Box::new(error))) };
            loaded.boxed()
        });
        let keys = keys.into_iter().map(|key| key.as_ref().to_owned());
        let (keys, options) = (keys.collect(), LoadOptions::new(ttl));
        MemoizeMany::new(self.clone(), keys, options, Ok(Vec::new()), loader)
    }
}

impl<V> MemoizeMany<V> {
    pub(super) fn new(
        cache: Cache,
        keys: Vec<String>,
        options: LoadOptions,
        tags: Result<Vec<Tag>>,
        loader: LoadMany<V>,
    ) -> Self {
        Self {
            cache,
            keys,
            options,
            tags,
            loader,
        }
    }

    load_settings!();

    /// Labels what the loader loads: invalidating any of the tags invalidates the values. At most
    /// 254 tags; one that is named twice counts once.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }

    call_settings!();
}

impl<V> IntoFuture for MemoizeMany<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    type Output = Result<Vec<Outcome<V>>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<V> MemoizeMany<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(self) -> Result<Vec<Outcome<V>>> {
        let tags = self.tags.clone()?;
        // Each key once. All are checked before anything is sent.
        let mut places = HashMap::new();
        let mut calls = Vec::new();
        for key in &self.keys {
            if places.contains_key(key.as_str()) {
                continue;
            }
            places.insert(key.as_str(), calls.len());
            let name = self.cache.client.name(key);
            calls.push((key.clone(), self.call(name, &tags)?));
        }
        let mut outcomes = Vec::with_capacity(calls.len());
        let mut calls = calls.into_iter().peekable();
        while calls.peek().is_some() {
            let part = calls.by_ref().take(MOST_AT_ONCE).collect();
            outcomes.extend(self.loaded(part, &tags).await?);
        }
        let of = |key: &String| outcomes[places[key.as_str()]].clone();
        Ok(self.keys.iter().map(of).collect())
    }

    fn call(&self, name: Name, tags: &[Tag]) -> Result<Call> {
        Call::parsed(self.cache.clone(), name, &self.options, Ok(tags.to_vec()))
    }

    /// Reads some keys, and loads the missing ones.
    async fn loaded(&self, calls: Vec<(String, Call)>, tags: &[Tag]) -> Result<Vec<Outcome<V>>> {
        let cache = &self.cache;
        let terms = cache.terms()?;
        let rounds = Rounds::begin(terms, cache.setup.patience.limit());
        let readings = self.read(&calls, tags, rounds.began()).await;
        let is_hit = |reading: &Result<_>| matches!(reading, Ok(Reading::Hit(_)));
        let hits = readings.iter().filter(|reading| is_hit(reading)).count();
        cache.setup.counts.hits.more(hits as u64);
        let missing = calls
            .iter()
            .zip(&readings)
            .filter(|(_, reading)| !is_hit(reading));
        let missing = missing.map(|((key, _), _)| key.clone());
        let (gather, members) = Gather::of(missing.collect(), cache.setup.max_loads.as_ref());
        let places = calls
            .iter()
            .map(|(key, call)| (key.clone(), call.place().clone()));
        let batch = Arc::new(Batch {
            gather,
            loader: self.loader.clone(),
            state: cache.state().clone(),
            // Within this time, a load of the batch asks for its lease, and decides.
            pause: cache.setup.patience.limit().max(SHORTEST_PAUSE),
            limit: terms.max_load.duration() / 4,
            places: places.collect(),
            together: Mutex::new(Together::NotCalled),
        });
        let mut members = members.into_iter();
        let mut outcomes = Vec::with_capacity(readings.len());
        let mut waits = Vec::with_capacity(readings.len() - hits);
        for (at, ((_, call), reading)) in calls.into_iter().zip(readings).enumerate() {
            let member = match reading {
                Ok(Reading::Hit(value)) => {
                    outcomes.push(Ok(value.0.clone()));
                    continue;
                }
                _ => members.next(),
            };
            let Some(member) = member else {
                unreachable!("there is a member for each key that is missing");
            };
            // Filled in below.
            outcomes.push(Ok(None));
            let loader = batch.loader_of(member.clone(), Maybe);
            let call = call.joining(member);
            waits.push(async move {
                let value = call::go_on(&call, reading, rounds, loader).await;
                (at, value.map(|value| value.0.clone()))
            });
        }
        drop(batch);
        // At the same time: each load is a task of its own, and these only wait.
        for (at, outcome) in join_all(waits).await {
            outcomes[at] = outcome;
        }
        Ok(outcomes)
    }

    /// Reads the entries, or finds them near. One that cannot be read is an error of its key.
    async fn read(
        &self,
        calls: &[(String, Call)],
        tags: &[Tag],
        began: Instant,
    ) -> Vec<ReadingOf<V>> {
        let Some((_, first)) = calls.first() else {
            return Vec::new();
        };
        // One for all of them: each key has a number of its own in it.
        let want = first.want();
        let mut readings: Vec<Option<ReadingOf<V>>> = calls.iter().map(|_| None).collect();
        #[cfg(feature = "near")]
        for ((_, call), reading) in calls.iter().zip(&mut readings) {
            *reading = call.near_value(want).map(|value| Ok(Reading::Hit(value)));
        }
        let unknown = |at: &usize| readings[*at].is_none();
        let missing: Vec<usize> = (0..calls.len()).filter(unknown).collect();
        let keys = missing.iter().map(|at| calls[*at].1.place().clone());
        let keys: Vec<Key> = keys.collect();
        let deadline = self.cache.deadline_since(began, self.cache.setup.patience);
        // In parts: other calls use the connection, too.
        let reads = keys.chunks(MOST_READ_AT_ONCE);
        let reads = reads.map(|part| self.read_part(part, (tags, want), deadline));
        let found: Vec<Vec<ReadingOf<V>>> = join_all(reads).await;
        for (at, reading) in missing.into_iter().zip(found.into_iter().flatten()) {
            readings[at] = Some(reading);
        }
        let unread = || Ok(Reading::Miss(Miss::default()));
        let readings = readings.into_iter();
        readings
            .map(|reading| reading.unwrap_or_else(unread))
            .collect()
    }

    async fn read_part(
        &self,
        keys: &[Key],
        (tags, want): (&[Tag], Want),
        deadline: Deadline,
    ) -> Vec<ReadingOf<V>> {
        let cache = &self.cache;
        #[cfg(feature = "near")]
        let read = match cache.near_to_fill() {
            Some(near) => {
                let asked = (tags, want, near::read::Absence::Loaded);
                near::read::read_each(cache, near, keys, asked, deadline).await
            }
            None => {
                let how = (cache.setup.read_from, want);
                let read = fetch::read_each(cache, keys, tags, how, deadline).await;
                // Found elsewhere, and not kept.
                if let (Ok(readings), Some(near)) = (&read, &cache.setup.near) {
                    let read = keys.iter().zip(readings).filter(|(_, it)| it.is_ok());
                    read.for_each(|(key, _)| near.forget(key));
                }
                read
            }
        };
        #[cfg(not(feature = "near"))]
        let read = {
            let how = (cache.setup.read_from, want);
            fetch::read_each(cache, keys, tags, how, deadline).await
        };
        read.unwrap_or_else(|error| keys.iter().map(|_| Err(error.clone())).collect())
    }
}

impl<V: Serialize> Serialize for Maybe<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.as_deref().serialize(serializer)
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Maybe<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = Option::<V>::deserialize(deserializer)?;
        Ok(Self(value.map(Arc::new)))
    }
}

impl<V> fmt::Debug for MemoizeMany<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoizeMany")
            .field("cache", &self.cache)
            .field("keys", &self.keys.len())
            .field("options", &self.options)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

/// How many keys one call of the loader gets at most.
const MOST_AT_ONCE: usize = 1000;

/// The least time that the loads of a batch wait for one that does not decide.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);

/// How many entries one read asks a server for, so that other calls do not wait long behind it.
const MOST_READ_AT_ONCE: usize = 100;
