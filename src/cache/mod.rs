//! Caching: [`Cache`], whose loads are shared by the whole fleet, and what its calls take and
//! return.
//!
//! Invariant: no read that begins after `remove`, `set`, `invalidate_tags` or `clear` has returned
//! is given a value that was loaded before it. Users get a `Cache` from [`Client::cache`].

mod bare;
mod config;
mod entry_keys;
mod explanation;
mod foreign;
mod index;
mod load;
mod load_options;
#[cfg(feature = "near")]
mod near;
mod outage;
mod read;
mod retry_queue;
mod stats;
mod store_request;
mod verbs;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use bare::BareCache;
pub use bare::memoize::BareMemoize;
pub use explanation::{
    EntryInfo, Explanation, FailureInfo, LoadInfo, NearInfo, NearWhy, TagInfo, TagVerdict, Verdict,
};
pub use load::loading::Loading;
#[cfg(feature = "near")]
pub use near::options::NearCache;
pub use outage::{Bypassed, Outage};
pub use read::reading::ReadFrom;
pub use retry_queue::Undelivered;
pub use stats::Stats;
pub use verbs::invalidate::Invalidate;
pub use verbs::keys::Keys;
pub use verbs::memo::Memo;
pub use verbs::memoize::{AnyLoader, Informed, Memoize, Plain};
pub use verbs::memoize_many::MemoizeMany;
pub use verbs::pattern::literal;
pub use verbs::remove_matching::{RemoveMatching, Removed, Steps};
pub use verbs::set::Set;
pub use verbs::set_if::SetIf;
pub use verbs::set_many::SetMany;
pub use verbs::tag_snapshot::TagSnapshot;
pub use verbs::update::{Entry, Update};

use self::config::{
    CacheState, Config, ERROR_TTL, Jitter, LeaseTimes, MAX_LOAD, Names, TAKEOVER, TagIndex,
};
use self::entry_keys::EntryKeys;
use self::load::limit::LoadLimit;
use self::outage::Did;
use crate::client::Client;
#[cfg(doc)]
use crate::codec::Compression;
#[cfg(feature = "encrypt")]
use crate::codec::Keyring;
use crate::codec::{Codec, CompressionOptions, CustomCodec, Shape, Stack};
use crate::error::{Error, Result};
use crate::key::{CacheKeys, Key};
use crate::name::{HideKeys, Name};
use crate::tags::Tag;
use crate::time::{Deadline, OnOutage, Patience, Ttl};

/// How many loads of a client have not ended, and how many tags wait to be invalidated. If some
/// wait, the task that invalidates them runs.
pub(crate) fn work_under_way(client: &Client) -> (usize, u64) {
    let state = client.shared(|| CacheState::of(client));
    state.undelivered.look(client);
    (state.loads.count(), state.undelivered.so_far().waiting)
}

impl Client {
    /// Returns a handle on the cache called `name`. Caches of different names share nothing but
    /// tags: invalidating a tag reaches every cache of the namespace.
    ///
    /// If the name is empty or too long, the first call fails with `InvalidInput`.
    pub fn cache(&self, name: &str) -> Cache {
        let names = match self.namespace().cache(name, 0) {
            Ok(keys) => Ok(Names {
                keys,
                whole: Tag::whole_cache(self, name),
            }),
            // Never hidden: the names of caches are shown in any case.
            Err(error) => Err(error.with_key(HideKeys::off().show(name))),
        };
        // Shared by all handles, so that calls through different handles share flights and reads.
        let state = self.shared(|| CacheState::of(self));
        Cache {
            client: self.clone(),
            setup: Arc::new(Config {
                counts: state.counts.of(self.namespace().as_str(), name),
                name: name.into(),
                names,
                version: 0,
                stack: Stack {
                    max_decoded: self.max_value_size(),
                    ..Stack::default()
                },
                max_load: MAX_LOAD,
                takeover: TAKEOVER,
                terms: LeaseTimes::new(MAX_LOAD, TAKEOVER),
                error_ttl: Ttl::new("error_ttl", ERROR_TTL).map(Some),
                jitter: Jitter::default(),
                max_loads: None,
                refused: None,
                outage: Outage::default(),
                patience: self.cache_patience(),
                read_from: ReadFrom::Primary,
                index: TagIndex::default(),
                #[cfg(feature = "near")]
                near: None,
                state,
            }),
        }
    }
}

/// A cache in Redis whose loads are shared, whose values can be invalidated by tag, and which is
/// never stale after an invalidation.
///
/// [`Client::cache`] makes it. It is cheap to clone: make one and keep it.
///
/// ```no_run
/// # use std::{io, time::Duration};
/// # async fn load_city(id: u32) -> io::Result<String> { Ok(id.to_string()) }
/// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
/// let cache = client.cache("catalogue");
/// let city = cache
///     .memoize("city:42", Duration::from_secs(60), || load_city(42))
///     .tags(["country:FR"])
///     .await?;
/// println!("{city}");
/// cache.invalidate_tags(["country:FR"]).await?;
/// # Ok(())
/// # }
/// ```
///
/// # What is promised
/// On one primary that loses no data, with the default settings (`Cache::near`,
/// [`read_from`](Self::read_from) and [soft](Invalidate::soft) invalidations each state a promise
/// of their own):
///
/// - No read that begins after [`remove`](Self::remove), [`set`](Self::set),
///   [`invalidate_tags`](Self::invalidate_tags) or [`clear`](Self::clear) has returned is given a
///   value that was loaded before it.
/// - One load per key runs in the whole fleet at a time, while no leader stalls past its
///   [`takeover`](Self::takeover). A caller whose key is invalidated during three loads of others
///   then loads alone, and that load is not stored.
#[derive(Clone)]
pub struct Cache {
    client: Client,
    setup: Arc<Config>,
}

impl Cache {
    /// Sets how values are written from now on: CBOR by default. Readers decode entries of any
    /// codec, whatever is set here.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        Arc::make_mut(&mut self.setup).stack.codec = codec;
        self
    }

    /// Adds a format of your own, under a number from 8 to 15. Entries name it by that number, so
    /// all processes that share the cache must use one number for one format, for ever. See
    /// [`CustomCodec`] for an example.
    ///
    /// The handle then reads such entries. To write them, too, set
    /// [`codec`](Self::codec)`(Codec::Custom(number))`. A cache that does not know the number
    /// leaves such entries alone.
    ///
    /// Each call of the cache fails with `InvalidInput` if the number is not from 8 to 15.
    #[must_use]
    pub fn custom_codec(mut self, number: u8, codec: impl CustomCodec) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        match setup.stack.custom.with(number, codec) {
            Ok(custom) => {
                setup.stack.custom = custom;
                #[cfg(feature = "near")]
                setup.forget_near(&self.client);
            }
            Err(error) => setup.refused = Some(error),
        }
        self
    }

    /// Encrypts the values of this handle from now on, and reads only encrypted ones. See
    /// [`Keyring`] for what is protected.
    ///
    /// Entries that are not encrypted, or with a key that the keyring does not have, are foreign:
    /// reads miss them and leave them alone, and the next store overwrites them. This also holds
    /// for the older entries of a cache that was in use before it was encrypted. An entry takes 40
    /// bytes more.
    ///
    /// Calls of several handles of one client may share a load, which is stored as the handle of
    /// the first of them says. So encrypt all handles of a cache.
    #[cfg(feature = "encrypt")]
    #[must_use]
    pub fn encrypt(mut self, keyring: Keyring) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        setup.stack.keyring = Some(keyring);
        #[cfg(feature = "near")]
        setup.forget_near(&self.client);
        self
    }

    /// Keeps the values of this handle apart from those of every other version. The version is 0 by
    /// default.
    ///
    /// Entries state how they were encoded, but not their type. If two builds of a service store
    /// different types under one key, each finds the other's values unreadable, loads its own and
    /// stores it over the other's, for as long as both run. So give the cache a new version when
    /// the type of its values changes in a way that the old or the new build cannot read: a field
    /// that was renamed, removed or changed its type, or an enum with a new variant. Changes that
    /// `#[serde(default)]` or [`Option`] makes readable need no new version.
    ///
    /// Every call uses this version only, except [`invalidate_tags`](Self::invalidate_tags),
    /// [`clear`](Self::clear) and [`purge`](Self::purge), which reach all versions, and
    /// [`move_version`](Self::move_version), which moves an entry to another one. While two
    /// versions run side by side, invalidate by tags.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        setup.version = version;
        let (space, name) = (self.client.namespace(), &setup.name);
        let keys = match setup.stack.shape {
            Shape::Enveloped => space.cache(name, version),
            Shape::Bare => space.bare_cache(name, version),
        };
        // The tag of the whole cache stays the same, so that `clear` reaches all versions.
        if let (Ok(names), Ok(keys)) = (&mut setup.names, keys) {
            names.keys = keys;
        }
        self
    }

    /// Sets how values are compressed from now on: LZ4 from 4 KiB up by default. Readers decompress
    /// entries of any compressor, whatever is set here.
    ///
    /// Each call of the cache fails with `InvalidInput` if the compressor has no such
    /// [level](Compression::level).
    #[must_use]
    pub fn compression(mut self, compression: impl Into<CompressionOptions>) -> Self {
        Arc::make_mut(&mut self.setup).stack.compression = compression.into();
        self
    }

    /// Sets how long a loader may run at the longest: 30 s by default, and a day at most. After
    /// that, the loader is dropped, and no lease of it is left.
    ///
    /// A call of [`memoize`](Self::memoize) waits no longer than this and its
    /// [deadline](Self::deadline), also for loads of others. The first call fails with
    /// `InvalidInput` if the duration is zero or too long.
    #[must_use]
    pub fn max_load(mut self, max_load: Duration) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        setup.max_load = max_load;
        setup.terms = LeaseTimes::new(max_load, setup.takeover);
        self
    }

    /// Sets how many loaders of this handle and its clones run at once in this process: any number
    /// by default. Make the handle once and clone it: each call of this makes a limit of its own.
    ///
    /// It keeps a burst of missing keys from reaching the source of the data all at once. Each call
    /// of a loader has a permit until it ends; that of [`memoize_many`](Self::memoize_many) has one
    /// for all its keys. A load waits for its permit in the order of the calls, without a lease, so
    /// another process may load the key meanwhile. A load that another load waits for needs no
    /// permit, because the permit of the other counts for both.
    ///
    /// A call whose load has not begun within [`max_load`](Self::max_load) fails with
    /// `LoaderTimeout`, not executed. If the key was invalidated again and again meanwhile, the
    /// load begins without a permit once half of `max_load` has passed. A loader that asks the
    /// cache in a task that it spawns is not recognised as one that waits: there, `max_load` ends
    /// the wait.
    ///
    /// A load in the background, behind a stale value or for an early refresh, begins only if a
    /// permit is free. Where there hardly ever is one, a value is loaded anew only when its stale
    /// window has ended, and calls wait for it: raise the limit there.
    ///
    /// Loads without Redis have a [limit](crate::ClientBuilder::loads_without_redis) of the whole
    /// client beside this one.
    ///
    /// Each call of the cache fails with `InvalidInput` if the number is 0.
    #[must_use]
    pub fn max_loads(mut self, loads: usize) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        match LoadLimit::new(loads) {
            Ok(limit) => setup.max_loads = Some(limit),
            Err(error) => setup.refused = Some(error),
        }
        self
    }

    /// Sets how long a failed load is remembered: 1 s by default, give or take the
    /// [`jitter`](Self::jitter).
    ///
    /// The calls that waited for the load fail with its error, also in other processes, and so do
    /// the calls that come within this time. So a database that is down is not asked again by each
    /// of them in turn. Redis keeps the kind of the error and at most 200 bytes of its text.
    /// [`remove`](Self::remove), [`set`](Self::set) and invalidations end that record.
    ///
    /// Zero turns this off, and keeps the text of the loader's error out of Redis. Then only
    /// callers of the process that loads share the error.
    #[must_use]
    pub fn error_ttl(mut self, ttl: Duration) -> Self {
        let checked = match ttl.is_zero() {
            true => Ok(None),
            false => Ttl::new("error_ttl", ttl).map(Some),
        };
        Arc::make_mut(&mut self.setup).error_ttl = checked;
        self
    }

    /// Sets by which part of itself the TTL of an entry differs at random: 0.1 by default, from 0
    /// to 0.5. It keeps values that are stored together from expiring together. With 0, an entry
    /// never outlives the TTL that it was given.
    #[must_use]
    pub fn jitter(mut self, part: f64) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        match Jitter::new(part) {
            Ok(jitter) => setup.jitter = jitter,
            Err(error) => setup.refused = Some(error),
        }
        self
    }

    /// Sets how long a leader may be silent before another process loads in its place: 10 s by
    /// default. This is what the crash of a loading process costs the callers that wait for it.
    #[must_use]
    pub fn takeover(mut self, takeover: Duration) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        setup.takeover = takeover;
        setup.terms = LeaseTimes::new(setup.max_load, takeover);
        self
    }

    /// Sets where values are read: at the primary by default. With a client that knows replicas
    /// ([`replicas`](crate::ClientBuilder::replicas),
    /// [`sentinels`](crate::ClientBuilder::sentinels)), values may be read at one of those. See
    /// [`ReadFrom`] for the price.
    #[must_use]
    pub fn read_from(mut self, from: ReadFrom) -> Self {
        Arc::make_mut(&mut self.setup).read_from = from;
        self
    }

    /// Sets how long a call of this cache may take in all, its loader not counted. By default, the
    /// client [decides](crate::ClientBuilder::cache_deadline). More than 100 years count as 100
    /// years.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        setup.patience = setup.patience.within(deadline);
        self
    }

    /// Sets whether calls of this cache keep trying until their deadline while Redis is out, or
    /// fail at once. By default, the client [decides](crate::ClientBuilder::cache_on_outage). What
    /// happens after a call has failed is set by [`outage`](Self::outage).
    #[must_use]
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        Arc::make_mut(&mut self.setup).patience.on_outage = on_outage;
        self
    }

    /// Sets what this cache does while Redis is out: [`Outage::Fail`] by default.
    #[must_use]
    pub fn outage(mut self, outage: Outage) -> Self {
        Arc::make_mut(&mut self.setup).outage = outage;
        self
    }

    /// Sets how errors, `Debug`, spans and events show the names of this cache's keys and tags. By
    /// default, the client [decides](crate::ClientBuilder::hide_keys); see there for what is
    /// covered.
    ///
    /// Set it before [`Memoize::tags`] or [`Set::tags`] name anything. Calls of several handles may
    /// wait for one load. Each gets the error as its own handle shows it, but a name that the
    /// loading handle hid stays hidden.
    #[must_use]
    pub fn hide_keys(mut self, hide: HideKeys) -> Self {
        self.client = self.client.hiding(hide);
        self
    }

    /// Returns the name that the cache was given.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Returns the namespace of its client as it stands in keys: with escapes, if it has characters
    /// that need them.
    pub fn namespace(&self) -> &str {
        self.client.namespace().as_str()
    }

    /// Returns what this cache has done in this process so far: hits, misses, loads. All handles of
    /// its name on this client are counted together, also those of other
    /// [versions](Self::version).
    pub fn stats(&self) -> Stats {
        self.setup.counts.so_far()
    }

    /// Returns what all caches of this client have done without Redis so far, under
    /// [`Outage::Bypass`].
    pub fn bypassed(&self) -> Bypassed {
        self.state().bulkhead.counted()
    }

    /// Returns whether a load of `key` waits in this client for a permit to run without Redis,
    /// under [`Outage::Bypass`]: as many as [`loads_without_redis`] allows run now. `false` if
    /// `key` is invalid.
    ///
    /// Such a load waits for up to [`max_load`](Self::max_load). A caller that has a fallback asks
    /// here whether to wait. A wait for the load of another process, while Redis answers, does not
    /// count.
    ///
    /// [`loads_without_redis`]: crate::ClientBuilder::loads_without_redis
    pub fn waits_without_redis(&self, key: &str) -> bool {
        let key = self.value(&self.client.name(key));
        key.is_ok_and(|key| self.state().bulkhead.has_queued(&key))
    }

    /// Returns how many tags wait to be invalidated in the background, because an invalidation of
    /// them has failed or was dropped, and what became of others so far. All caches of this client
    /// are counted together.
    pub fn undelivered(&self) -> Undelivered {
        self.state().undelivered.so_far()
    }

    /// Returns how often reads of all caches of this client have met an entry that is whole, but of
    /// another type, too large, or of a format that this build does not know. Each is a miss. The
    /// event `foreign` reports it: at the first, then at most once a minute.
    ///
    /// While two builds with different types run side by side, this counts how often one undoes the
    /// work of the other: see [`version`](Self::version).
    pub fn foreign(&self) -> u64 {
        self.state().foreign.met()
    }

    /// Notes that `operation` does without Redis because of `error`.
    fn does_without(&self, did: Did, operation: &'static str, error: &Error) {
        self.setup.counts.bypassed.one_more();
        self.state().bulkhead.count(did);
        let warning = &self.setup.counts.without_redis;
        warning.does_without(did, (operation, &self.setup.name), error);
    }

    /// The deadline of a call that starts now.
    fn deadline_now(&self) -> Deadline {
        self.deadline_by(self.setup.patience)
    }

    /// The deadline of a call that starts now and has so much patience.
    fn deadline_by(&self, patience: Patience) -> Deadline {
        self.deadline_since(Instant::now(), patience)
    }

    /// The deadline of a call that began at `began` and has so much patience. Nearly each call asks
    /// here, so here it is seen whether invalidations wait whose task has ended with its runtime.
    fn deadline_since(&self, began: Instant, patience: Patience) -> Deadline {
        self.state().undelivered.look(&self.client);
        patience.deadline_from(began)
    }

    /// The names of this cache, or the error of a setting that was refused.
    fn names(&self) -> Result<&Names> {
        // A refused setting fails every call before anything is sent.
        self.terms()?;
        if let Err(error) = &self.setup.error_ttl {
            return Err(error.clone());
        }
        if let Some(error) = &self.setup.refused {
            return Err(error.clone());
        }
        self.setup.stack.check()?;
        self.setup.names.as_ref().map_err(Clone::clone)
    }

    /// The tag that every entry of this cache carries. `None` if its values are bare.
    fn whole(&self) -> Result<Option<&Tag>> {
        let names = self.names()?;
        Ok(match self.setup.stack.shape {
            Shape::Enveloped => Some(&names.whole),
            Shape::Bare => None,
        })
    }

    fn terms(&self) -> Result<LeaseTimes> {
        self.setup.terms.clone()
    }

    fn spelling(&self) -> Result<&CacheKeys> {
        Ok(&self.names()?.keys)
    }

    fn state(&self) -> &Arc<CacheState> {
        &self.setup.state
    }

    /// The Redis key of the value of `key`.
    fn value(&self, key: &Name) -> Result<Key> {
        let value = self.spelling()?.value(key.real());
        value.map_err(|error| error.with_key(key))
    }

    fn place(&self, key: Name) -> Result<EntryKeys> {
        let lease = self.spelling()?.load_lease(key.real());
        Ok(EntryKeys {
            value: self.value(&key)?,
            lease: lease.map_err(|error| error.with_key(&key))?,
            name: key,
        })
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("client", &self.client)
            .field("name", &self.setup.name)
            .field("codec", &self.setup.stack.codec)
            .field("compression", &self.setup.stack.compression)
            .field("max_load", &self.setup.max_load)
            .field("takeover", &self.setup.takeover)
            .field("outage", &self.setup.outage)
            .field("patience", &self.setup.patience)
            .field("read_from", &self.setup.read_from)
            .finish()
    }
}
