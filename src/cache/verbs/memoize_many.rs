//! `memoize_many`: several values are read, and those that are missing are loaded together.
//!
//! Invariant: the loader is called once for the keys whose loads are granted to this call at once.
//! For the other keys, the call waits for the loads of others as [`memoize`](super::memoize) does,
//! and holds nothing meanwhile that they could wait for. Users call this.

use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, join_all};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::{Instant, timeout_at};

use super::call::{self, Call};
use super::memoize::{Capture, capture};
use crate::cache::Cache;
use crate::cache::load::flight::LoadChain;
use crate::cache::load::gather::{Gather, Seat};
use crate::cache::load::loading::RunLoader;
use crate::cache::load::rounds::Rounds;
use crate::cache::load_options::{LoadOptions, load_settings};
use crate::cache::read::fetch;
use crate::cache::read::reading::Reading;
use crate::error::loader::{Captured, LoaderError};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::Name;
use crate::tags::Tag;
use crate::time::OnOutage;

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

/// The user's function, its errors captured.
pub(super) type LoadMany<V> =
    Arc<dyn Fn(Vec<String>) -> BoxFuture<'static, Loaded<V>> + Send + Sync>;

/// What one call of it comes to.
pub(super) type Loaded<V> = std::result::Result<HashMap<String, V>, Captured>;

/// What was found of one key.
type Outcome<V> = Result<Option<Arc<V>>>;

/// A value that may be none: a key that the loader has left out. It is stored as `Option<V>` is.
#[derive(Debug)]
struct Maybe<V>(Option<Arc<V>>);

/// One batch: the loads of a call that are made together.
struct Batch<V> {
    gather: Arc<Gather>,
    loader: LoadMany<V>,
    /// How long the loads wait for each other.
    limit: Duration,
    /// The Redis keys by the names, for the loads that the loader may ask for.
    places: HashMap<String, Key>,
    /// What the one call of the loader comes to, once it is called. Each load polls it.
    loaded: Mutex<Option<SharedLoad<V>>>,
}

type SharedLoad<V> = Shared<BoxFuture<'static, std::result::Result<Arc<Values<V>>, Captured>>>;
type Values<V> = HashMap<String, Arc<V>>;

impl Cache {
    /// Returns the values of `keys`, in their order. The missing ones are loaded by one call of
    /// `loader`, which gets their names, and are kept for `ttl` each.
    ///
    /// A key that the loader leaves out has no value: it is `None`, and that is kept, too (see
    /// [`none_ttl`](MemoizeMany::none_ttl)). Each key is loaded once in the fleet, whoever asks for
    /// it and however: keys that others load are waited for, and not loaded here. If such a load
    /// comes to nothing, this call loads the key by another call of `loader`.
    ///
    /// Up to 1,000 keys are loaded at a time; with more keys, the loader is called again for the
    /// next ones. A key that is given twice is loaded once. A value that is found is that of
    /// [`memoize`](Self::memoize) and [`get`](Self::get), too.
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
    /// [`memoize`](Self::memoize). A loader that fails fails for all keys that it was called for.
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

    /// Sets how long this call may take in all, its loader not counted. By default, the cache
    /// [decides](Cache::deadline). More than 100 years count as 100 years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.cache = self.cache.deadline(deadline);
        self
    }

    /// Sets whether this call keeps trying while Redis is out. By default, the cache
    /// [decides](Cache::on_outage).
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.cache = self.cache.on_outage(on_outage);
        self
    }
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
        let rounds = Rounds::begin(cache.terms()?, cache.setup.patience.limit());
        let readings = match self.read(&calls, tags, rounds.began()).await {
            Ok(readings) => readings,
            Err(error) if cache.setup.outage.bypasses(&error) => {
                cache.state().bulkhead.read(&cache.setup.name, &error);
                return Ok(self.without(calls, rounds, error).await);
            }
            Err(error) => return Ok(calls.iter().map(|_| Err(error.clone())).collect()),
        };
        let is_missing = |reading: &&Reading<_>| !matches!(reading, Reading::Hit(_));
        let missing = readings.iter().filter(is_missing).count();
        cache.setup.counts.hits.more((calls.len() - missing) as u64);
        let (gather, seats) = Gather::of(missing);
        let places = calls
            .iter()
            .map(|(key, call)| (key.clone(), call.place().clone()));
        let batch = Arc::new(Batch {
            gather,
            loader: self.loader.clone(),
            limit: cache.setup.patience.limit(),
            places: places.collect(),
            loaded: Mutex::new(None),
        });
        let mut seats = seats.into_iter();
        let waits = calls
            .into_iter()
            .zip(readings)
            .map(|((key, call), reading)| {
                let seat = match &reading {
                    Reading::Hit(_) => None,
                    _ => seats.next(),
                };
                let batch = &batch;
                async move {
                    let value: Arc<Maybe<V>> = match (reading, seat) {
                        (Reading::Hit(value), _) => value,
                        (reading, None) => {
                            debug_assert!(false, "a seat for each key that is missing");
                            let loader = batch.loader_of(key, None);
                            call::go_on(&call, Ok(reading), rounds, loader).await?
                        }
                        (reading, Some(seat)) => {
                            let loader = batch.loader_of(key, Some(seat.clone()));
                            let call = call.seated(seat);
                            call::go_on(&call, Ok(reading), rounds, loader).await?
                        }
                    };
                    Ok(value.0.clone())
                }
            });
        // At the same time: each load is a task of its own, and these only wait.
        Ok(join_all(waits).await)
    }

    async fn read(
        &self,
        calls: &[(String, Call)],
        tags: &[Tag],
        began: Instant,
    ) -> Result<Vec<Reading<Arc<Maybe<V>>>>> {
        let Some((_, first)) = calls.first() else {
            return Ok(Vec::new());
        };
        let setup = &self.cache.setup;
        let how = (setup.read_from, first.want());
        let deadline = setup.patience.deadline_from(began);
        let keys: Vec<Key> = calls.iter().map(|(_, call)| call.place().clone()).collect();
        // In parts: other calls use the connection, too.
        let parts = keys.chunks(MOST_READ_AT_ONCE);
        let reads = parts.map(|part| fetch::read_many_old(&self.cache, part, tags, how, deadline));
        let mut readings = Vec::with_capacity(keys.len());
        for part in join_all(reads).await {
            readings.extend(part?);
        }
        Ok(readings)
    }

    /// Loads all keys without Redis, because of `error`.
    async fn without(
        &self,
        calls: Vec<(String, Call)>,
        rounds: Rounds,
        error: Error,
    ) -> Vec<Outcome<V>> {
        let (cache, bulkhead) = (&self.cache, &self.cache.state().bulkhead);
        let keys: Vec<String> = calls.into_iter().map(|(key, _)| key).collect();
        let loaded = async {
            let until = rounds.over();
            let _place = bulkhead.enter(until).await?;
            bulkhead.load(&cache.setup.name, &error);
            let loaded = (self.loader)(keys.clone());
            match timeout_at(until, loaded).await {
                Ok(Ok(values)) => Ok(values),
                Ok(Err(cause)) => Err(Error::of_loader(cause)),
                Err(_) => Err(Error::new(
                    ErrorKind::LoaderTimeout,
                    "the loader took longer than max_load and was dropped; \
                     raise max_load or make it faster",
                )),
            }
        };
        let loaded = loaded.await;
        let counts = &cache.setup.counts;
        counts.misses.more(keys.len() as u64);
        match loaded {
            Ok(mut values) => {
                counts.loads.one_more();
                let value = |key| Ok(values.remove(key).map(Arc::new));
                keys.iter().map(value).collect()
            }
            Err(error) => {
                counts.failed_loads.one_more();
                let failed = |key| Err(error.clone().about(&cache.client.name(key)));
                keys.iter().map(|key: &String| failed(key)).collect()
            }
        }
    }
}

impl<V: Send + Sync + 'static> Batch<V> {
    /// The loader of one key.
    fn loader_of(self: &Arc<Self>, key: String, seat: Option<Arc<Seat>>) -> RunLoader<Maybe<V>> {
        let batch = self.clone();
        Box::new(move |_| {
            async move {
                let values = match seat.is_some_and(|seat| seat.leads(&key)) {
                    true => batch.together().await?,
                    // A later load: the batch is complete.
                    false => shared((batch.loader)(vec![key.clone()]).await?),
                };
                Ok(Maybe(values.get(&key).cloned()))
            }
            .boxed()
        })
    }

    /// What the one call of the loader comes to.
    async fn together(&self) -> std::result::Result<Arc<Values<V>>, Captured> {
        let keys = self.gather.complete(self.limit).await;
        let loaded = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || {
                let others = keys.iter().filter_map(|key| self.places.get(key).cloned());
                let (others, load) = (others.collect(), (self.loader)(keys.clone()));
                LoadChain::with_others(others, load)
                    .map(|loaded| loaded.map(shared))
                    .boxed()
            };
            loaded.get_or_insert_with(|| begin().shared()).clone()
        };
        loaded.await
    }
}

fn shared<V>(values: HashMap<String, V>) -> Arc<Values<V>> {
    let values = values
        .into_iter()
        .map(|(key, value)| (key, Arc::new(value)));
    Arc::new(values.collect())
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

/// How many entries one read asks a server for, so that other calls do not wait long behind it.
const MOST_READ_AT_ONCE: usize = 100;
