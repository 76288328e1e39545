//! `set_many`: stores several values.
//!
//! Invariant: each value is stored as `set` stores it, and has an outcome of its own. Users call
//! this.

use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures::future::{BoxFuture, join, join_all};
use serde::Serialize;

use super::store_all::store_all;
use crate::cache::Cache;
use crate::cache::store_request::StoreRequest;
use crate::error::Result;
use crate::key::Key;
use crate::name::Name;
use crate::tags::{Tag, TagState};
use crate::time::{Deadline, OnOutage, Ttl};

/// Values about to be stored, made by [`Cache::set_many`]. Await it to store them.
#[must_use = "nothing is stored until it is awaited"]
pub struct SetMany<'v, V> {
    cache: Cache,
    items: Vec<(Name, &'v V)>,
    ttl: Duration,
    tags: Result<Vec<Tag>>,
}

impl Cache {
    /// Stores values for `ttl`, each give or take the [`jitter`](Self::jitter), and returns an
    /// outcome for each, in their order. Loads of their keys that are under way are not stored.
    ///
    /// The generations of the tags are read once for each server. Then one command stores up to 100
    /// values of a server, or 1 MiB of them; in a cluster, those of one slot. Up to four commands
    /// are under way at a time for a server, and in a cluster for up to 64 slots at a time. Values
    /// of 64 KiB or more are sent one by one. Of two values with one key, one is stored, and it is
    /// not known which.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let cities = [("city:1", "Ghent"), ("city:2", "Lyon")];
    /// let cities = cities.iter().map(|(key, city)| (*key, city));
    /// for outcome in cache.set_many(cities, Duration::from_secs(60)).tags(["cities"]).await? {
    ///     outcome?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The call returns `InvalidInput` if a key, a tag or the duration is invalid; nothing is
    /// stored then. The outcome of a value is `Encode` or `TooLarge` if it cannot be stored, and
    /// whatever Redis refuses or does not answer for it, also under
    /// [`Outage::Bypass`](crate::Outage::Bypass). If the reply to a command is lost, all of its
    /// values are [indeterminate](crate::Error::is_indeterminate), and no others. What a server
    /// refuses before the command runs, such as a key that the user may not use, is the outcome of
    /// all values of the command.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the values stored.
    pub fn set_many<'v, V: Serialize>(
        &self,
        items: impl IntoIterator<Item = (impl AsRef<str>, &'v V)>,
        ttl: Duration,
    ) -> SetMany<'v, V> {
        let items = items.into_iter();
        let items = items.map(|(key, value)| (self.client.name(key.as_ref()), value));
        SetMany {
            cache: self.clone(),
            items: items.collect(),
            ttl,
            tags: Ok(Vec::new()),
        }
    }
}

impl<V> SetMany<'_, V> {
    /// Labels all of the values: see [`Set::tags`](super::set::Set::tags).
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }

    /// Sets how long this call may take in all. By default, the cache [decides](Cache::deadline).
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

    /// Fails at once while Redis is out: the same as [`on_outage`](Self::on_outage) with
    /// [`OnOutage::FailFast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }
}

impl<'v, V: Serialize + Sync> IntoFuture for SetMany<'v, V> {
    type Output = Result<Vec<Result<()>>>;
    type IntoFuture = BoxFuture<'v, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<V: Serialize + Sync> SetMany<'_, V> {
    async fn run(self) -> Result<Vec<Result<()>>> {
        let (ttl, tags) = (Ttl::new("ttl", self.ttl)?, self.tags?);
        let deadline = self.cache.deadline_now();
        let (names, values): (Vec<Name>, Vec<&V>) = self.items.into_iter().unzip();
        let requests = names
            .into_iter()
            .map(|name| StoreRequest::new(self.cache.clone(), name, ttl, &tags));
        let requests: Vec<StoreRequest> = requests.collect::<Result<_>>()?;
        // Before the first wait, too: the call may be dropped in it.
        requests.iter().for_each(StoreRequest::forget_near);
        // Both before anything is stored.
        let noted = StoreRequest::note_all(&requests, deadline);
        let (mut generations, noted) = join(generations(&requests, deadline), noted).await;
        if let Err(error) = noted {
            let error = error.of_own_question().without_key();
            generations
                .values_mut()
                .for_each(|it| *it = Err(error.clone()));
        }
        let encode = |at: usize| {
            let request: &StoreRequest = &requests[at];
            // The copy of the cache's own tag tells the servers apart.
            let generations = generations[&request.tags[0].key].as_ref();
            let generations = generations.map_err(|error| request.named(error.clone()))?;
            request.encode(values[at], generations, Duration::ZERO)
        };
        Ok(store_all(&self.cache.client, &requests, encode, deadline).await)
    }
}

/// Reads the generations of the tags of all requests, once for each copy of the cache's own tag.
async fn generations(
    requests: &[StoreRequest],
    deadline: Deadline,
) -> HashMap<Key, Result<Vec<TagState>>> {
    let firsts: HashMap<&Key, &StoreRequest> = requests
        .iter()
        .map(|request| (&request.tags[0].key, request))
        .collect();
    // In parallel: a server that does not answer must not use up the time of the others.
    let reads = firsts.into_iter().map(async |(whole, first)| {
        let read = first.generations_unnoted(deadline).await.map_err(|error| {
            let error = error.of_own_question();
            match error.key() == Some(first.place.name.shown().as_str()) {
                // What it met concerns all values of the server, and each gives it its own name.
                true => error.without_key(),
                false => error,
            }
        });
        (whole.clone(), read)
    });
    join_all(reads).await.into_iter().collect()
}

impl<V> fmt::Debug for SetMany<'_, V> {
    /// Leaves out the values, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetMany")
            .field("cache", &self.cache)
            .field("values", &self.items.len())
            .field("ttl", &self.ttl)
            .field("tags", &self.tags)
            .finish()
    }
}
