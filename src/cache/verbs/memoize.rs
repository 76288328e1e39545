//! `memoize` and `memoize_with`: a value is read, or loaded once and kept.
//!
//! Invariant: nothing happens before a [`Memoize`] is awaited, and all that it was given is checked
//! then, before anything is sent. Users call this; [`Call`] does it.

use std::any::Any;
use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{self, Call};
use super::settings::call_settings;
use crate::cache::Cache;
use crate::cache::load::loading::{Loading, RunLoader};
use crate::cache::load_options::{LoadOptions, load_settings};
use crate::error::Result;
use crate::error::loader::{Captured, Loader, LoaderError};
use crate::name::Name;
use crate::tags::Tag;

/// A cached load, made by [`Cache::memoize`] or [`Cache::memoize_with`]. Await it to get the value.
#[must_use = "nothing is read or loaded until it is awaited"]
pub struct Memoize<L> {
    cache: Cache,
    key: Name,
    options: LoadOptions,
    /// The declared tags. If one is invalid, the error is returned when this is awaited.
    tags: Result<Vec<Tag>>,
    /// Set if a stale value is given.
    stale_seen: Option<Arc<AtomicBool>>,
    loader: L,
    /// Keeps the loader's error, whose type is known where the call is made.
    captured: Capture,
}

/// A loader without parameters: that of [`Cache::memoize`].
pub struct Plain<L>(L);

/// A loader that gets a [`Loading`]: that of [`Cache::memoize_with`].
pub struct Informed<L, V>(L, PhantomData<fn() -> V>);

/// What can be awaited in a [`Memoize`]: [`Plain`] or [`Informed`].
pub trait AnyLoader: Send + 'static {
    /// The value that is loaded.
    type Value: Send + Sync + 'static;
    /// The type of its errors.
    type Error: Send + Sync + 'static;

    /// Runs the loader.
    #[doc(hidden)]
    fn load(self, loading: Loading<Self::Value>) -> BoxFuture<'static, Loaded<Self>>;
}

/// What a loader returns.
type Loaded<L> = std::result::Result<<L as AnyLoader>::Value, <L as AnyLoader>::Error>;

impl<L, Fut, V, E> AnyLoader for Plain<L>
where
    L: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = std::result::Result<V, E>> + Send + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    type Value = V;
    type Error = E;

    fn load(self, _: Loading<V>) -> BoxFuture<'static, Loaded<Self>> {
        (self.0)().boxed()
    }
}

impl<L, Fut, V, E> AnyLoader for Informed<L, V>
where
    L: FnOnce(Loading<V>) -> Fut + Send + 'static,
    Fut: Future<Output = std::result::Result<V, E>> + Send + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    type Value = V;
    type Error = E;

    fn load(self, loading: Loading<V>) -> BoxFuture<'static, Loaded<Self>> {
        (self.0)(loading).boxed()
    }
}

impl Cache {
    /// Returns the value of `key`. If there is none, `loader` loads it, and the value is kept for
    /// `ttl`.
    ///
    /// However many callers ask for a missing key, in however many processes, one of them loads and
    /// all get its value. The load runs in a task of its own: it is completed and stored even if
    /// every caller is dropped. The value is kept for `ttl`, give or take the
    /// [`jitter`](Self::jitter).
    ///
    /// # Errors
    /// - `InvalidInput` if the key, a tag or a duration is invalid.
    /// - `Loader` if the loader fails. It has the text of the loader's error, and, where the loader
    ///   ran, for the calls that shared the load, the error itself (see
    ///   [`Error::loader_error`](crate::Error::loader_error)).
    /// - `LoaderPanicked` if the loader panics.
    /// - `LoaderTimeout` if the loader runs longer than [`max_load`](Self::max_load), or no load of
    ///   another caller ends in time: within `max_load` and the [deadline](Self::deadline).
    /// - `Reentrant` if the loader asks for its own key, or for one whose load waits for this load,
    ///   directly or through others.
    /// - `Encode` or `TooLarge` if the value cannot be stored.
    /// - Whatever Redis refuses or does not answer before the load, unless [`outage`](Self::outage)
    ///   says to do without Redis. Then it is `LoaderTimeout` if no permit to load becomes free
    ///   within `max_load`.
    ///
    /// All calls that wait for a load that fails get its error, and so do calls within
    /// [`error_ttl`](Self::error_ttl) of its end. If the loader failed because of `Reentrant`, or
    /// because too many loads or calls ran in its process, its error is not kept: another caller
    /// may succeed, so the waiting calls ask again. Only calls that share a load which is not
    /// stored get such an error together. If only storing fails, the loaded value is returned.
    ///
    /// # Cancel safety
    /// Safe. A load that has begun goes on and is stored, if Redis is there to store it.
    ///
    /// # Panics
    /// If it is first polled outside a tokio runtime.
    pub fn memoize<V, E, L, How>(&self, key: &str, ttl: Duration, loader: L) -> Memoize<Plain<L>>
    where
        L: Loader<Value = V, Error = E>,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: LoaderError<How>,
    {
        let captured = capture::<How, E>;
        Memoize::new(self.clone(), key, ttl, Plain(loader), captured)
    }

    /// As [`memoize`](Self::memoize), with a loader that decides what becomes of its value: it gets
    /// a [`Loading`], to which it says tags, a TTL, or that nothing is to be stored.
    ///
    /// ```no_run
    /// # use std::{io, time::Duration};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct City { country: String, is_draft: bool }
    /// # async fn load_city(id: u32) -> io::Result<City> { Err(io::Error::other("")) }
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let city = cache
    ///     .memoize_with("city:42", Duration::from_secs(60), |load| async move {
    ///         let city = load_city(42).await?;
    ///         load.tag(format!("country:{}", city.country));
    ///         if city.is_draft {
    ///             load.no_store();
    ///         }
    ///         io::Result::Ok(city)
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`memoize`](Self::memoize). `InvalidInput` if the loader says an invalid tag or TTL, or
    /// more tags than fit; the value is not stored then.
    ///
    /// # Cancel safety
    /// As [`memoize`](Self::memoize).
    ///
    /// # Panics
    /// As [`memoize`](Self::memoize).
    pub fn memoize_with<V, E, L, Fut, How>(
        &self,
        key: &str,
        ttl: Duration,
        loader: L,
    ) -> Memoize<Informed<L, V>>
    where
        L: FnOnce(Loading<V>) -> Fut + Send + 'static,
        Fut: Future<Output = std::result::Result<V, E>> + Send + 'static,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: LoaderError<How>,
    {
        let captured = capture::<How, E>;
        let loader = Informed(loader, PhantomData);
        Memoize::new(self.clone(), key, ttl, loader, captured)
    }
}

/// Keeps an error of the one type that it is made for.
pub(super) type Capture = fn(Box<dyn Any + Send + Sync>) -> Captured;

/// Keeps an error of type `E`.
pub(super) fn capture<How, E: LoaderError<How>>(error: Box<dyn Any + Send + Sync>) -> Captured {
    match error.downcast::<E>() {
        Ok(error) => error.captured(),
        Err(_) => unreachable!("the loader of this call fails with this type"),
    }
}

impl<L> fmt::Debug for Memoize<L> {
    /// Leaves out the loader, which may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memoize")
            .field("cache", &self.cache)
            .field("key", &self.key)
            .field("options", &self.options)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl<L> Memoize<L> {
    fn new(cache: Cache, key: &str, ttl: Duration, loader: L, captured: Capture) -> Self {
        Self {
            tags: Ok(Vec::new()),
            stale_seen: None,
            key: cache.client.name(key),
            cache,
            options: LoadOptions::new(ttl),
            loader,
            captured,
        }
    }

    load_settings!();

    /// Labels what the loader loads: invalidating any of the tags invalidates the value.
    ///
    /// The tags belong to the value. A call that finds a value which another call has loaded gets
    /// that value, whichever tags the two calls declare. At most 254 tags; one that is named twice
    /// counts once.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }

    /// Sets `seen` to `true` if this call is given a stale value: one whose TTL is over, or that
    /// was invalidated [softly](crate::cache::Invalidate::soft). It is set before the call returns.
    /// A value that a near cache serves because its server is out does not count.
    pub fn stale_seen(mut self, seen: Arc<AtomicBool>) -> Self {
        self.stale_seen = Some(seen);
        self
    }

    call_settings!();
}

impl<L: AnyLoader> IntoFuture for Memoize<L>
where
    L::Value: Serialize + DeserializeOwned,
{
    type Output = Result<Arc<L::Value>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            cache,
            key,
            options,
            tags,
            stale_seen,
            loader,
            captured,
        } = self;
        // Boxed only when there is something to load.
        let loader = move || -> RunLoader<L::Value> {
            Box::new(move |loading| {
                let loaded = loader.load(loading);
                let loaded = async move { loaded.await.map_err(|error| captured(Box::new(error))) };
                loaded.boxed()
            })
        };
        // Parsed here, and not in the future, which would then hold the parts twice.
        let call = Call::parsed(cache, key, &options, tags);
        let call = call.map(|call| call.noting_stale(stale_seen));
        Box::pin(call::run(call, loader))
    }
}

impl<L> fmt::Debug for Plain<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain")
    }
}

impl<L, V> fmt::Debug for Informed<L, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Informed")
    }
}
