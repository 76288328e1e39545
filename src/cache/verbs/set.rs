//! `set`: stores a value that the caller has.
//!
//! Invariant: a load under way is ended in the script that stores the value, so it is never stored
//! over what was set. Users call this.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;

use super::conditional::{Condition, Keeps, stored};
use super::settings::call_settings;
use crate::cache::Cache;
use crate::cache::load::upload;
use crate::cache::load::upload::Upload;
use crate::cache::outage::Did;
use crate::cache::stats::Timed;
use crate::cache::store_request::StoreRequest;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::script::script;
use crate::tags::Tag;
use crate::time::{Deadline, Ttl};

script!(SET = "set.lua" after "../entry.lua");

/// A value about to be stored, made by [`Cache::set`]. Await it to store the value.
#[must_use = "nothing is stored until it is awaited"]
pub struct Set<'v, V: ?Sized> {
    cache: Cache,
    key: Name,
    pub(super) value: &'v V,
    ttl: Duration,
    pub(super) keeps: Keeps,
    /// The declared tags. If one is invalid, the error is returned when this is awaited.
    tags: Result<Vec<Tag>>,
}

impl<V: ?Sized> fmt::Debug for Set<'_, V> {
    /// Leaves out the value, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set")
            .field("cache", &self.cache)
            .field("key", &self.key)
            .field("ttl", &self.ttl)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Stores `value` for `ttl`, give or take the [`jitter`](Self::jitter). With
    /// [`FOREVER`](crate::FOREVER) it stays until it is removed. A load of `key` that is under way
    /// is not stored.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// cache.set("motto", "fences against the herd", Duration::from_secs(60)).await?;
    /// let motto = cache.get::<String>("motto").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` if the key, a tag or the duration is invalid. `Encode` or `TooLarge` if the
    /// value cannot be stored. Whatever Redis refuses or does not answer; under
    /// [`Outage::Bypass`] that is no error. After an error that
    /// [is indeterminate](crate::Error::is_indeterminate), the value may be stored or not.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value stored or not.
    ///
    /// [`Outage::Bypass`]: crate::Outage::Bypass
    pub fn set<'v, V: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &'v V,
        ttl: Duration,
    ) -> Set<'v, V> {
        Set::new(self.clone(), key, value, ttl)
    }
}

impl<'v, V: ?Sized> Set<'v, V> {
    fn new(cache: Cache, key: &str, value: &'v V, ttl: Duration) -> Self {
        Self {
            tags: Ok(Vec::new()),
            key: cache.client.name(key),
            cache,
            value,
            ttl,
            keeps: Keeps::Nothing,
        }
    }

    /// Keeps the end of the entry that the value replaces, if there is a valid one. Otherwise the
    /// value gets the TTL that was given.
    pub fn keep_ttl(mut self) -> Self {
        self.keeps = Keeps::Ttl;
        self
    }

    /// Labels the value: invalidating any of the tags invalidates it. At most 254 tags; one that is
    /// named twice counts once.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }

    call_settings!();
}

impl<'v, V: Serialize + Sync + ?Sized> IntoFuture for Set<'v, V> {
    type Output = Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'v>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let deadline = self.cache.deadline_now();
            self.run(deadline).await
        })
    }
}

impl<V: ?Sized> Set<'_, V> {
    /// Checks everything that the call needs.
    pub(super) fn request(self) -> Result<StoreRequest> {
        let ttl = Ttl::new("ttl", self.ttl)?;
        StoreRequest::new(self.cache, self.key, ttl, &self.tags?)
    }
}

impl<V: Serialize + ?Sized> Set<'_, V> {
    pub(in crate::cache) async fn run(self, deadline: Deadline) -> Result<()> {
        let (value, keeps) = (self.value, self.keeps);
        let request = self.request()?;
        // Before the first wait, too: the call may be dropped in it.
        request.forget_near();
        let stored = match keeps {
            Keeps::Nothing => Self::stored(value, &request, deadline).await,
            Keeps::Ttl => {
                let either = (Condition::Either, keeps);
                let stored = Box::pin(stored(value, &request, either, deadline)).await;
                stored.map(drop).map_err(|error| request.named(error))
            }
        };
        if stored.is_err() {
            request.forget_near();
        }
        match stored {
            Err(error) if request.cache.setup.outage.bypasses(&error) => {
                // What is there now is older than the value. Left there, it would be served when
                // Redis is back.
                let removed = cleared(&request, deadline).await;
                tracing::debug!(target: "hedgerow::cache", key = request.place.name.shown().as_str(), %error, removed, "bypassed a set");
                request.cache.does_without(Did::NotStore, "set", &error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn stored(value: &V, request: &StoreRequest, deadline: Deadline) -> Result<()> {
        let generations = request.generations(deadline).await;
        let generations = generations.map_err(|error| request.named(error))?;
        let entry = request.encode(value, &generations, Duration::ZERO)?;
        store(request, entry, deadline).await
    }
}

/// Removes what is stored now, which is older than the value that was to be stored, if the server
/// accepts a removal.
async fn cleared(request: &StoreRequest, deadline: Deadline) -> bool {
    request.state.flights.detach(&request.place.value);
    let client = &request.cache.client;
    let here = request.place.clear_if_served(client, deadline);
    let there = async {
        match request.place.on_other_ring(client) {
            Some(on_other_ring) => on_other_ring.clear_if_served(client, deadline).await,
            None => Ok(()),
        }
    };
    let (here, there) = futures::join!(here, there);
    here.and(there).is_ok()
}

pub(super) async fn store(
    request: &StoreRequest,
    entry: Vec<u8>,
    deadline: Deadline,
) -> Result<()> {
    let _timer = request.cache.setup.counts.time(Timed::Store);
    let (client, ttl) = (&request.cache.client, request.jittered_ttl());
    // An upload changes nothing yet, so flights may go on meanwhile.
    let upload = Upload::of(client, &request.place, &entry, deadline).await;
    let upload = upload.map_err(|error| request.named(error))?;
    // Calls that come from now on must not join a load that is about to be ended.
    request.state.flights.detach(&request.place.value);
    let call = match &upload {
        Some(upload) => upload.adopt(&request.place, &entry, (ttl, &request.window()), None),
        None => SET
            .call(request.place.keys())
            .arg(entry)
            .arg(ttl.millis())
            .arg(request.window()),
    };
    let reply = client.change(call, deadline).await;
    let reply = reply.map_err(|error| request.named(error))?;
    match reply.status()? {
        "OK" | "STORED" => request.cache.setup.counts.stores.one_more(),
        "GONE" => return Err(request.named(upload::gone())),
        _ => return Err(request.named(reply.unexpected())),
    }
    // Stored here first, then cleared on the other ring: of two such calls on two rings, one value
    // stays, or none.
    match request.place.on_other_ring(&request.cache.client) {
        Some(on_other_ring) => {
            let cleared = on_other_ring.clear(&request.cache.client, deadline).await;
            cleared.map_err(Error::in_part)
        }
        None => Ok(()),
    }
}
