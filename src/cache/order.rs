//! What a call that stores something asks for, parsed.
//!
//! Invariant: an order is right by construction, and whatever is stored for it is stamped with
//! generations that were read before this module returned them.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::lease::{Place, Terms};
use super::{Cache, Room, entry};
use crate::codec::Stamp;
use crate::error::{Error, Result};
use crate::tags::{Generation, Snapshot, Tag};
use crate::time::{Deadline, Ttl};

/// What one call asks for, beside its value or its loader.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) cache: Cache,
    pub(super) room: Arc<Room>,
    pub(super) place: Place,
    /// The whole cache's first.
    pub(super) tags: Vec<Tag>,
    pub(super) ttl: Ttl,
    pub(super) terms: Terms,
}

impl Order {
    pub(super) fn new(cache: Cache, key: String, ttl: Ttl, mut tags: Vec<Tag>) -> Result<Self> {
        let max_load = Ttl::new("max_load", cache.setup.max_load)?;
        let takeover = Ttl::new("takeover", cache.setup.takeover)?;
        let place = cache.place(key)?;
        for tag in &mut tags {
            *tag = tag.beside(&cache.client, &place.value);
        }
        Ok(Self {
            place,
            room: cache.room().clone(),
            cache,
            tags,
            ttl,
            terms: Terms {
                max_load,
                takeover: takeover.min(max_load),
            },
        })
    }

    /// The present generations of the tags, each made to outlive the entry.
    pub(super) async fn generations(&self, deadline: Deadline) -> Result<Vec<Generation>> {
        let snapshot = entry::generations(&self.cache.client, &self.tags, deadline).await;
        let snapshot = snapshot.map_err(|error| self.named(error))?;
        self.settled(&snapshot, deadline).await
    }

    /// Completes a snapshot of the tags; each is made to outlive the entry.
    pub(super) async fn settled(
        &self,
        snapshot: &Snapshot,
        deadline: Deadline,
    ) -> Result<Vec<Generation>> {
        // The load, then the longest that the entry may live.
        let need = self.terms.max_load.duration() + self.ttl.spread(LONGEST_SPREAD).duration();
        let horizon = &self.room.horizon;
        let settled = horizon.settle(&self.cache.client, &self.tags, snapshot, need, deadline);
        settled.await.map_err(|error| self.named(error))
    }

    /// The entry for `value`, stamped with `generations`.
    pub(super) fn encode<V: Serialize>(
        &self,
        value: &V,
        generations: &[Generation],
        cost: Duration,
    ) -> Result<Vec<u8>> {
        debug_assert_eq!(self.tags.len(), generations.len(), "one for each tag");
        let stamps: Vec<Stamp> = self
            .tags
            .iter()
            .zip(generations)
            .map(|(tag, generation)| Stamp {
                tag: tag.id.0,
                generation: generation.stamp(),
            })
            .collect();
        let entry = self.cache.setup.stack.encode(value, &stamps, cost);
        entry.map_err(|error| self.named(error))
    }

    /// The TTL, give or take a tenth: what is stored together does not expire together.
    pub(super) fn jittered_ttl(&self) -> Ttl {
        let shortest = 2.0 - LONGEST_SPREAD;
        self.ttl
            .spread(rand::random_range(shortest..=LONGEST_SPREAD))
    }

    /// `error`, about the key of this order unless it is about a tag.
    pub(super) fn named(&self, error: Error) -> Error {
        match error.key() {
            Some(_) => error,
            None => error.with_key(&self.place.name),
        }
    }
}

/// A stored entry lives at most this many times its TTL.
const LONGEST_SPREAD: f64 = 1.1;
