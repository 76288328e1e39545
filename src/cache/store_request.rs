//! What a call that stores something asks for, parsed.
//!
//! Invariant: a `StoreRequest` is valid by construction. What is stored for it is stamped with
//! generations that this module returned, and they were read before that. `set` and `memoize` make
//! store requests.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use serde::Serialize;

use super::Cache;
use super::config::{CacheState, Jitter, LeaseTimes, TagIndex};
use super::entry_keys::EntryKeys;
use super::index;
use super::load_options::Kept;
use super::read::fetch;
use crate::cache::load::failure::Failure;
use crate::codec::{Shape, Stamp};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::tags::{Life, SLACK, Snapshot, Tag, TagState};
use crate::time::{Deadline, FOREVER, Ttl};

/// What one call asks for, beside its value or its loader.
#[derive(Debug)]
pub(super) struct StoreRequest {
    pub(super) cache: Cache,
    pub(super) state: Arc<CacheState>,
    pub(super) place: EntryKeys,
    /// The tag of the whole cache comes first. None for a bare value.
    pub(super) tags: Vec<Tag>,
    pub(super) kept: Kept,
    pub(super) terms: LeaseTimes,
}

impl StoreRequest {
    /// Makes the request for a value that carries `tags` and the tag of the whole cache.
    pub(super) fn new(cache: Cache, key: Name, ttl: Ttl, tags: &[Tag]) -> Result<Self> {
        Self::keeping(cache, key, Kept::fresh(ttl), tags)
    }

    /// As [`new`](Self::new), for a value that is kept in this way.
    pub(super) fn keeping(cache: Cache, key: Name, kept: Kept, tags: &[Tag]) -> Result<Self> {
        let terms = cache.terms()?;
        let place = cache.place(key)?;
        // The copy beside the value, so that a read of the entry asks one server.
        let whole = cache.whole()?;
        let whole = whole.map(|whole| whole.colocated(&cache.client, &place.value));
        debug_assert!(
            whole.is_some() || tags.is_empty(),
            "bare values have no tags"
        );
        let tags = whole.into_iter().chain(tags.iter().cloned()).collect();
        Ok(Self {
            place,
            state: cache.state().clone(),
            cache,
            tags,
            kept,
            terms,
        })
    }

    /// The tags except that of the whole cache.
    pub(super) fn declared(&self) -> &[Tag] {
        self.tags.get(1..).unwrap_or_default()
    }

    /// Reads the present generations of the tags. Each tag is made to outlive the entry.
    pub(super) async fn generations(&self, deadline: Deadline) -> Result<Vec<TagState>> {
        let snapshot = fetch::generations(&self.cache.client, &self.tags, deadline).await;
        let snapshot = snapshot.map_err(|error| self.named(error))?;
        self.settled(&snapshot, deadline).await
    }

    /// Completes a snapshot of the tags. Each tag is made to outlive the entry.
    pub(super) async fn settled(
        &self,
        snapshot: &Snapshot,
        deadline: Deadline,
    ) -> Result<Vec<TagState>> {
        let tags = &self.tags;
        self.settled_for(self.kept.longest(), tags, snapshot, deadline)
            .await
    }

    /// As [`settled`](Self::settled), for these tags and an entry that is fresh for `ttl`.
    pub(super) async fn settled_for(
        &self,
        ttl: Ttl,
        tags: &[Tag],
        snapshot: &Snapshot,
        deadline: Deadline,
    ) -> Result<Vec<TagState>> {
        // What is stored may be executed as late as the deadline.
        let need = self.need(ttl) + deadline.remaining();
        let tag_ttls = &self.state.tag_ttls;
        let settled = tag_ttls.settle(&self.cache.client, tags, snapshot, need, deadline);
        if self.cache.setup.index == TagIndex::Off {
            return settled.await.map_err(|error| self.named(error));
        }
        // Noted before the entry is stored: an entry that the index misses is not found by tag.
        let ids = tags.iter().map(|tag| tag.id);
        let names = [&self.place.name];
        // A load is stored some time after it has ended: its tags are read, and it is committed.
        let life = Life::For(need + SLACK);
        let noted = index::note(&self.cache, ids, &names, life, deadline);
        let (settled, noted) = Box::pin(join(settled, noted)).await;
        let settled = noted.and(settled);
        settled.map_err(|error| self.named(error))
    }

    /// As [`generations`](Self::generations), for a request that is noted with others, by
    /// [`note_all`](Self::note_all).
    pub(super) async fn generations_unnoted(&self, deadline: Deadline) -> Result<Vec<TagState>> {
        let (client, tags) = (&self.cache.client, &self.tags);
        let generations = async {
            let snapshot = fetch::generations(client, tags, deadline).await?;
            let need = self.need(self.kept.longest()) + deadline.remaining();
            let tag_ttls = &self.state.tag_ttls;
            tag_ttls
                .settle(client, tags, &snapshot, need, deadline)
                .await
        };
        generations.await.map_err(|error| self.named(error))
    }

    /// Notes all of `requests` in the index of their tags, if there is one. They have the same tags
    /// and the same TTL.
    pub(super) async fn note_all(requests: &[Self], deadline: Deadline) -> Result<()> {
        let Some(first) = requests.first() else {
            return Ok(());
        };
        let names: Vec<&Name> = requests.iter().map(|it| &it.place.name).collect();
        let ids = first.declared().iter().map(|tag| tag.id);
        let need = first.need(first.kept.longest()) + deadline.remaining();
        let life = Life::For(need + SLACK);
        index::note(&first.cache, ids, &names, life, deadline).await
    }

    /// How long the tags of the entry are needed: for the load, and then for as long as an entry
    /// may live that is fresh for `ttl`.
    fn need(&self, ttl: Ttl) -> Duration {
        self.terms.max_load.duration() + self.life(ttl)
    }

    /// The longest that an entry lives which is fresh for `ttl`.
    pub(super) fn life(&self, ttl: Ttl) -> Duration {
        self.jitter().longest(ttl).duration() + self.kept.window
    }

    /// How long the entry may be served stale, as the scripts that store it take it: in whole
    /// milliseconds, and empty for a bare value, which has no deadlines.
    pub(super) fn window(&self) -> String {
        match self.cache.setup.stack.shape {
            Shape::Enveloped => self.kept.window_millis().to_string(),
            Shape::Bare => String::new(),
        }
    }

    /// How long a loaded `value` is fresh, before the jitter.
    pub(super) fn ttl_of<V: Serialize + ?Sized>(&self, value: &V) -> Ttl {
        match self.kept.none_ttl {
            Some(ttl) if self.cache.setup.stack.is_none(value) => ttl,
            _ => self.kept.ttl,
        }
    }

    /// The entry for `value`, stamped with `generations`.
    pub(super) fn encode<V: Serialize + ?Sized>(
        &self,
        value: &V,
        generations: &[TagState],
        cost: Duration,
    ) -> Result<Vec<u8>> {
        self.encode_stamped(value, &self.stamps(generations), cost)
    }

    /// As [`encode`](Self::encode), with these stamps.
    pub(super) fn encode_stamped<V: Serialize + ?Sized>(
        &self,
        value: &V,
        stamps: &[Stamp],
        cost: Duration,
    ) -> Result<Vec<u8>> {
        let setup = &self.cache.setup;
        let place = self.place.value.as_str();
        let entry = setup.stack.entry(place, value, stamps, cost);
        let (entry, sizes) = entry.map_err(|error| self.named(error))?;
        setup.counts.encoded(sizes);
        Ok(entry)
    }

    /// The record of a load that has failed with `error`, stamped as its value would have been, and
    /// how long it is kept. `None` if there is to be no record.
    pub(super) fn record(
        &self,
        error: &Error,
        failure: &Failure,
        generations: &[TagState],
    ) -> Option<(Vec<u8>, Ttl)> {
        let by = self.kept.error_ttl_by.as_ref();
        let ttl = match by.and_then(|by| by.of(error)) {
            Some(ttl) => Ttl::new("error_ttl", ttl.min(FOREVER)).ok(),
            None => self.cache.setup.error_ttl.as_ref().ok().copied().flatten(),
        }?;
        let stamps = self.stamps(generations);
        let stack = self.cache.setup.stack.of_records();
        let record = stack.entry(self.place.lease.as_str(), failure, &stamps, Duration::ZERO);
        let (record, _) = record.ok()?;
        Some((record, self.jitter().spread(ttl)))
    }

    /// The stamps of an entry, one for each tag.
    pub(super) fn stamps(&self, generations: &[TagState]) -> Vec<Stamp> {
        debug_assert_eq!(self.tags.len(), generations.len(), "one for each tag");
        let tags = self.tags.iter().zip(generations);
        tags.map(|(tag, generation)| Stamp {
            tag: tag.id.0,
            generation: generation.generation.stamp(),
        })
        .collect()
    }

    /// The TTL, give or take the jitter, so that values which are stored together do not expire
    /// together.
    pub(super) fn jittered_ttl(&self) -> Ttl {
        self.jittered(self.kept.ttl)
    }

    /// `ttl`, give or take the jitter.
    pub(super) fn jittered(&self, ttl: Ttl) -> Ttl {
        self.jitter().spread(ttl)
    }

    fn jitter(&self) -> Jitter {
        self.cache.setup.jitter
    }

    /// Lets near caches serve what is there no more: the caller has asked for another value,
    /// whether it was stored or not.
    pub(super) fn forget_near(&self) {
        #[cfg(feature = "near")]
        self.cache.client.changed_here(&self.place.value);
    }

    /// `error`, about the key of this request unless it is about a tag.
    pub(super) fn named(&self, error: Error) -> Error {
        error.about(&self.place.name)
    }
}
