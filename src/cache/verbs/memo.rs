//! `Memo`: a cached function. Its loader, its options and the spelling of its keys are given once.
//!
//! Invariant: `get` is `memoize` and `get_many` is `memoize_many`, under the key that the memo
//! spells. Users call this.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{self, Call};
use super::memoize::{Capture, capture};
use super::memoize_many::MemoizeMany;
use crate::cache::Cache;
use crate::cache::load::loading::{Loading, RunLoader};
use crate::cache::load_options::{LoadOptions, load_settings};
use crate::client::Request;
use crate::error::Result;
use crate::error::loader::{Captured, LoaderError};
use crate::tags::Tag;

/// A cached function from `K` to `V`, made by [`Cache::memo`]. It is cheap to clone.
pub struct Memo<K, V> {
    cache: Cache,
    key: Arc<dyn Fn(&K) -> String + Send + Sync>,
    options: LoadOptions,
    /// If one is invalid, each call returns the error.
    tags: Result<Vec<Tag>>,
    load: Load<K, V>,
    load_many: Option<LoadMany<K, V>>,
}

type Load<K, V> = Arc<
    dyn Fn(K, Loading<V>) -> BoxFuture<'static, std::result::Result<V, Captured>> + Send + Sync,
>;

type LoadMany<K, V> = Arc<
    dyn Fn(Vec<K>) -> BoxFuture<'static, std::result::Result<HashMap<K, V>, Captured>>
        + Send
        + Sync,
>;

impl Cache {
    /// Makes a cached function: `key` spells the key of an argument, and `loader` computes the
    /// value, which is kept for `ttl`.
    ///
    /// The loader also gets a [`Loading`], to which it may say more of the value. Make the memo
    /// once, and keep it.
    ///
    /// ```no_run
    /// # use std::{io, time::Duration};
    /// # async fn load_city(id: u32) -> io::Result<String> { Ok(id.to_string()) }
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let minute = Duration::from_secs(60);
    /// let cities = cache
    ///     .memo(minute, |id: &u32| format!("city:{id}"), |id, _| load_city(id))
    ///     .tags(["cities"])
    ///     .stale(minute * 10);
    /// let city = cities.get(&42).await?;
    /// cities.invalidate(&42).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn memo<K, V, E, L, Fut, How>(
        &self,
        ttl: Duration,
        key: impl Fn(&K) -> String + Send + Sync + 'static,
        loader: L,
    ) -> Memo<K, V>
    where
        L: Fn(K, Loading<V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<V, E>> + Send + 'static,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: LoaderError<How>,
    {
        let captured: Capture = capture::<How, E>;
        Memo {
            cache: self.clone(),
            key: Arc::new(key),
            options: LoadOptions::new(ttl),
            tags: Ok(Vec::new()),
            load: Arc::new(move |key, loading| {
                let loaded = loader(key, loading);
                let loaded = async move { loaded.await.map_err(|error| captured(Box::new(error))) };
                loaded.boxed()
            }),
            load_many: None,
        }
    }
}

impl<K, V> Memo<K, V> {
    load_settings!();

    /// Labels all values of this memo: invalidating any of the tags invalidates them. At most 254
    /// tags; one that is named twice counts once.
    #[must_use = "it returns the memo that has the tags"]
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }
}

impl<K, V> Memo<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Sets how several values are loaded together, for [`get_many`](Self::get_many). Arguments
    /// that the loader leaves out have no value.
    #[must_use = "it returns the memo that has the loader"]
    pub fn load_many<E, L, Fut, How>(mut self, loader: L) -> Self
    where
        L: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<HashMap<K, V>, E>> + Send + 'static,
        E: LoaderError<How>,
    {
        let captured: Capture = capture::<How, E>;
        self.load_many = Some(Arc::new(move |keys| {
            let loaded = loader(keys);
            let loaded = async move { loaded.await.map_err(|error| captured(Box::new(error))) };
            loaded.boxed()
        }));
        self
    }

    /// Returns the value for `argument`: as [`memoize_with`](Cache::memoize_with).
    ///
    /// # Errors
    /// As [`memoize`](Cache::memoize).
    ///
    /// # Cancel safety
    /// As [`memoize`](Cache::memoize).
    ///
    /// # Panics
    /// If it is polled outside a tokio runtime.
    pub async fn get(&self, argument: &K) -> Result<Arc<V>> {
        let name = self.cache.client.name(&(self.key)(argument));
        let call = Call::parsed(self.cache.clone(), name, &self.options, self.tags.clone());
        let loader = || -> RunLoader<V> {
            let (load, argument) = (self.load.clone(), argument.clone());
            Box::new(move |loading| load(argument, loading))
        };
        call::run(call, loader).await
    }

    /// Returns the values for `arguments`, in their order. With a loader for several
    /// ([`load_many`](Self::load_many)), the missing ones are loaded together, as by
    /// [`memoize_many`](Cache::memoize_many). Without, each is loaded by itself, up to 100 at the
    /// same time.
    ///
    /// # Errors
    /// As [`memoize_many`](Cache::memoize_many). Without a loader for several, each argument has an
    /// error of its own, also where a tag or a duration is invalid.
    ///
    /// # Cancel safety
    /// As [`memoize`](Cache::memoize).
    ///
    /// # Panics
    /// If it is polled outside a tokio runtime.
    pub async fn get_many(&self, arguments: &[K]) -> Result<Vec<Result<Option<Arc<V>>>>> {
        let Some(load_many) = &self.load_many else {
            let values = stream::iter(arguments).map(async |argument| self.get(argument).await);
            let values = values.buffered(MOST_AT_ONCE);
            return Ok(values.map(|value| value.map(Some)).collect().await);
        };
        let spelt = arguments.iter().map(|it| ((self.key)(it), it.clone()));
        let spelt: Vec<(String, K)> = spelt.collect();
        let keys = spelt.iter().map(|(key, _)| key.clone()).collect();
        let arguments: HashMap<String, K> = spelt.into_iter().collect();
        let (load_many, spell) = (load_many.clone(), self.key.clone());
        let loader = Arc::new(move |keys: Vec<String>| {
            let wanted = keys.iter().filter_map(|key| arguments.get(key).cloned());
            let (loaded, spell) = (load_many(wanted.collect()), spell.clone());
            let loaded = async move {
                let values = loaded.await?.into_iter();
                Ok(values
                    .map(|(argument, value)| (spell(&argument), value))
                    .collect())
            };
            loaded.boxed()
        });
        let (cache, tags) = (self.cache.clone(), self.tags.clone());
        MemoizeMany::new(cache, keys, self.options.clone(), tags, loader).await
    }

    /// Removes the value for `argument`, so that the next call loads it: as
    /// [`remove`](Cache::remove).
    ///
    /// # Errors
    /// As [`remove`](Cache::remove).
    ///
    /// # Cancel safety
    /// As [`remove`](Cache::remove).
    pub fn invalidate(&self, argument: &K) -> Request<'_, ()> {
        let key = (self.key)(argument);
        Request::new(self.cache.setup.patience, move |patience| async move {
            let remove = self.cache.remove(&key).deadline(patience.limit());
            remove.on_outage(patience.on_outage).await
        })
    }
}

impl<K, V> Clone for Memo<K, V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            key: self.key.clone(),
            options: self.options.clone(),
            tags: self.tags.clone(),
            load: self.load.clone(),
            load_many: self.load_many.clone(),
        }
    }
}

impl<K, V> fmt::Debug for Memo<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memo")
            .field("cache", &self.cache)
            .field("options", &self.options)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

/// How many arguments are loaded at a time, each by itself.
const MOST_AT_ONCE: usize = 100;
