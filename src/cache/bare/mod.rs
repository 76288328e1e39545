//! `BareCache`: a cache of values as their codec writes them, for other programs.
//!
//! Invariant: a bare value has no envelope, so nothing that an envelope carries exists here: tags,
//! stale windows, early refresh, `clear`. Its keys are no keys of entries, so neither is ever read
//! as the other. Reads, loads, leases and removals are those of [`Cache`], which this wraps. Users
//! call this.

pub(crate) mod memoize;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::memoize::BareMemoize;
use super::Cache;
use super::stats::Stats;
use super::verbs::remove_matching::RemoveMatching;
use crate::client::Request;
use crate::codec::{Compression, Shape};
#[cfg(feature = "encrypt")]
use crate::error::Error;
use crate::error::loader::{Loader, LoaderError};

impl Cache {
    /// Returns a handle on the bare values of this cache: each is stored as the
    /// [codec](Self::codec) writes it, with nothing added, so that other programs can read and
    /// write it. See [`BareCache`].
    ///
    /// The handle has the settings of this one, but compresses nothing and has no near cache. Set
    /// everything before this call. Each call fails with `InvalidInput` if this handle encrypts: a
    /// bare value has no place for the id of its key.
    #[must_use]
    pub fn bare(&self) -> BareCache {
        let mut cache = self.clone();
        let setup = Arc::make_mut(&mut cache.setup);
        setup.stack.shape = Shape::Bare;
        setup.stack.compression = Compression::None.into();
        #[cfg(feature = "encrypt")]
        if setup.stack.keyring.take().is_some() {
            setup.refused = Some(Error::invalid(
                "bare values cannot be encrypted: they have no place for the id of the key; use a \
                 cache with envelopes",
            ));
        }
        #[cfg(feature = "near")]
        {
            setup.near = None;
        }
        let version = setup.version;
        // Spells the keys anew.
        BareCache(cache.version(version))
    }
}

/// A cache of bare values: the bytes of the codec without an envelope, so that other programs read
/// and write them. [`Cache::bare`] makes it.
///
/// The value of `motto` in the cache `shared` is at the Redis key `hr:b:{shared:motto}`, where `hr`
/// is the [namespace](crate::ClientBuilder::namespace). With [`Codec::Raw`], strings and bytes are
/// there as they are; with [`Codec::Json`], there is a JSON document.
///
/// ```no_run
/// # use std::{io, time::Duration};
/// # use hedgerow::Codec;
/// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
/// let shared = client.cache("shared").codec(Codec::Raw).bare();
/// let minute = Duration::from_secs(60);
/// shared.set("motto", "fences against the herd", minute).await?;
/// // redis-cli GET 'hr:b:{shared:motto}' shows: fences against the herd
/// let price = shared
///     .memoize("price", minute, || async { io::Result::Ok("12.50".to_owned()) })
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// # What is there, and what is not
/// Loads are shared by the whole fleet, as those of a [`Cache`] are, unless they find
/// [nothing](Self::memoize). No read that begins after
/// [`remove`](Self::remove) or [`set`](Self::set) has returned is given a value that was loaded
/// before it. Settings are those of the [`Cache`] that made the handle: TTL with its
/// [jitter](Cache::jitter), [`max_load`](Cache::max_load), [`outage`](Cache::outage) and the rest.
///
/// An envelope says what a bare value cannot. So this type has no tags, no `clear`, no stale
/// windows and no early refresh, and nothing is compressed or encrypted. A value has no checksum.
/// It does not name its codec, so all handles must use one codec for one key. And there is no
/// `None`: see [`memoize`](Self::memoize).
///
/// # Other programs
/// A program that writes a value uses `SET` with a TTL. One that changes what a loader would read
/// removes value and lease in one command, `DEL hr:b:{shared:motto} hr:bl:{shared:motto}`: then a
/// load that is under way is not stored. After a `DEL` or `SET` of the value alone, such a load is
/// stored.
///
/// [`Codec::Raw`]: crate::Codec::Raw
/// [`Codec::Json`]: crate::Codec::Json
#[derive(Clone)]
pub struct BareCache(Cache);

impl BareCache {
    /// Returns the value of `key`, if there is one.
    ///
    /// # Errors
    /// As [`Cache::get`]. A value that is not of this codec and type is `None`, is left alone, and
    /// is counted by [`Cache::foreign`].
    ///
    /// # Cancel safety
    /// Safe.
    pub fn get<'c, V>(&'c self, key: &'c str) -> Request<'c, Option<Arc<V>>>
    where
        V: DeserializeOwned + Send + Sync + 'static,
    {
        self.0.get(key)
    }

    /// Stores `value` for `ttl`, give or take the [`jitter`](Cache::jitter). A load of `key` that
    /// is under way is not stored.
    ///
    /// # Errors
    /// As [`Cache::set`]. `InvalidInput` also if the value is `None`.
    ///
    /// If the server has run the command for a value of 64 KiB or more and its answer was lost, the
    /// error is indeterminate.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value stored or not.
    pub fn set<'v, V: Serialize + Sync + ?Sized>(
        &self,
        key: &str,
        value: &'v V,
        ttl: Duration,
    ) -> Request<'v, ()> {
        let (cache, set) = (self.0.clone(), self.0.set(key, value, ttl));
        Request::new(self.0.setup.patience, move |patience| async move {
            set.run(cache.deadline_by(patience)).await
        })
    }

    /// Removes the value of `key`. A load of `key` that is under way is not stored.
    ///
    /// # Errors
    /// As [`Cache::remove`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value removed or not.
    pub fn remove<'c>(&'c self, key: &'c str) -> Request<'c, ()> {
        self.0.remove(key)
    }

    /// Returns how long the value of `key` still lives, whatever it is.
    /// [`FOREVER`](crate::FOREVER) if it has no TTL, and `None` if there is no value.
    ///
    /// # Errors
    /// As [`Cache::ttl`].
    ///
    /// # Cancel safety
    /// Safe.
    pub fn ttl<'c>(&'c self, key: &'c str) -> Request<'c, Option<Duration>> {
        self.0.ttl(key)
    }

    /// Returns the value of `key`. If there is none, `loader` loads it, and the value is kept for
    /// `ttl`.
    ///
    /// All that [`Cache::memoize`] says holds here, too, but for tags. A value that is not of this
    /// codec and type is replaced. If another of the same length, with the same first and last 36
    /// bytes, has taken its place meanwhile, that one is replaced, too.
    ///
    /// If the loader returns `None`, the calls of this process that wait for the load get it, and
    /// nothing is stored. Each other process that waits loads for itself, one after the other, and
    /// so does the next call. If many keys have no value, store one that says so, or use a
    /// [`Cache`], which keeps `None`.
    ///
    /// # Errors
    /// As [`Cache::memoize`].
    ///
    /// # Cancel safety
    /// Safe. A load that has begun goes on and is stored, if Redis is there to store it.
    ///
    /// # Panics
    /// If it is first polled outside a tokio runtime.
    pub fn memoize<V, E, L, How>(&self, key: &str, ttl: Duration, loader: L) -> BareMemoize<L>
    where
        L: Loader<Value = V, Error = E>,
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: LoaderError<How>,
    {
        BareMemoize(self.0.memoize(key, ttl, loader))
    }

    /// Removes all bare values of the cache, of all [versions](Cache::version), and ends loads of
    /// them that are under way. Returns how many values were removed. Values in envelopes stay.
    ///
    /// # Errors
    /// As [`Cache::remove_matching`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the values removed.
    pub fn purge(&self) -> RemoveMatching {
        self.0.purge()
    }

    /// As [`Cache::stats`]. The values of the cache of this name that have envelopes are counted
    /// together with the bare ones.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }
}

impl fmt::Debug for BareCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BareCache").field(&self.0).finish()
    }
}
