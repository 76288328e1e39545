//! Fetching: entries are read with the generations of their tags, and judged. This is the hit path,
//! and the only way in which a value leaves Redis.
//!
//! Invariant: the generations by which an entry is judged were read together with it or after it.
//! So an entry that was loaded before an invalidation is no hit for any read that began after the
//! invalidation returned. Every verb of the cache reads through here.
//!
//! An entry that cannot be read is a miss. A damaged entry is of no use to any reader and is
//! removed. A foreign entry belongs to another build or another type, and stays.
//!
//! A replica may be behind. So its answer counts only if it is a hit, judged by the generations
//! that the replica itself holds at the same moment. Everything else is asked of the primary:
//! whether something is missing, and which generations a load is stamped with.

use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use serde::de::DeserializeOwned;

use super::judge::{Judged, Taken, Why, judge};
use super::reading::{Gone, Miss, ReadFrom, Reading, snapshot};
use super::wanted::{Asked, Ring, Wanted};
use crate::cache::Cache;
use crate::client::Client;
use crate::codec::{HEADER, Stack, Unreadable};
use crate::error::Result;
use crate::key::{Key, TagId};
use crate::script::script;
use crate::tags::{Generation, Snapshot, Tag};
use crate::time::Deadline;
use crate::topology::placement::ReadOther;

script!(DISCARD = "discard.lua");

/// Reads one entry; see [`read_many`].
pub(in crate::cache) async fn read<T: Taken>(
    cache: &Cache,
    key: &Key,
    tags: &[Tag],
    from: ReadFrom,
    deadline: Deadline,
) -> Result<Reading<T>> {
    let fetch = Fetch::new(cache, tags, from, deadline)?;
    // In place of a list: nearly every read is of one entry.
    let mut reading = None;
    let (keys, place) = (slice::from_ref(key), slice::from_mut(&mut reading));
    fetch.look(keys, place).await?;
    fetch.look_elsewhere(keys, place).await?;
    Ok(only(reading))
}

/// Does the same without tags, and only where the client's own ring places the entry, for a verb
/// that changes it there.
pub(in crate::cache) async fn read_here<T: Taken>(
    cache: &Cache,
    key: &Key,
    deadline: Deadline,
) -> Result<Reading<T>> {
    let fetch = Fetch::new(cache, &[], ReadFrom::Primary, deadline)?;
    let mut reading = None;
    fetch
        .look(slice::from_ref(key), slice::from_mut(&mut reading))
        .await?;
    Ok(only(reading))
}

/// Reads the entries at `keys` in one trip, with the generations of the whole cache's tag and of
/// `tags`. If entries carry other tags, too, a second trip reads those of all entries together.
/// Another trip reads the entries that a replica does not have.
///
/// While keys move from one ring of shards to another, an entry that is a miss on the present ring
/// is looked for as the old ring places it, entry and tags: it was stamped with the generations
/// there. A miss is reported as the present ring sees it, because the load that follows asks for
/// its lease there.
pub(in crate::cache) async fn read_many<T: Taken>(
    cache: &Cache,
    keys: &[Key],
    tags: &[Tag],
    from: ReadFrom,
    deadline: Deadline,
) -> Result<Vec<Reading<T>>> {
    let fetch = Fetch::new(cache, tags, from, deadline)?;
    let mut readings = unread(keys);
    fetch.look(keys, &mut readings).await?;
    fetch.look_elsewhere(keys, &mut readings).await?;
    Ok(readings.into_iter().map(only).collect())
}

/// Returns the reading in a place that a look has filled in.
fn only<T>(reading: Option<Reading<T>>) -> Reading<T> {
    debug_assert!(reading.is_some(), "there is a reading for each key");
    reading.unwrap_or_else(|| Reading::Miss(Miss::default()))
}

/// Returns a place for the reading of each key.
fn unread<T>(keys: &[Key]) -> Vec<Option<Reading<T>>> {
    keys.iter().map(|_| None).collect()
}

/// Where and how entries are looked for.
#[derive(Clone, Copy)]
struct Fetch<'f> {
    cache: &'f Cache,
    tags: Asked<'f>,
    stack: &'f Stack,
    deadline: Deadline,
    ring: Ring,
    from: ReadFrom,
}

/// The entries that are no hit so far, by their positions.
#[derive(Default)]
struct Undecided {
    missed: Vec<(usize, Why)>,
    /// With the tags whose generations decide.
    needing: Vec<(usize, Vec<TagId>)>,
}

impl Undecided {
    fn is_empty(&self) -> bool {
        self.missed.is_empty() && self.needing.is_empty()
    }
}

impl<'f> Fetch<'f> {
    fn new(
        cache: &'f Cache,
        declared: &'f [Tag],
        from: ReadFrom,
        deadline: Deadline,
    ) -> Result<Self> {
        let whole = &cache.names()?.whole;
        Ok(Self {
            cache,
            tags: Asked { whole, declared },
            stack: &cache.setup.stack,
            deadline,
            ring: Ring::Own,
            from,
        })
    }

    /// Reads and judges. There is a place in `readings` for each key.
    async fn look<T: Taken>(
        &self,
        keys: &[Key],
        readings: &mut [Option<Reading<T>>],
    ) -> Result<()> {
        // This is boxed, and so is what follows the read: the future of a hit stays small.
        if self.from == ReadFrom::PreferReplica {
            return Box::pin(self.look_at_replica(keys, readings)).await;
        }
        let wanted = Wanted::new(&self.cache.client, self.tags, keys, self.ring);
        // Entries and tags in one read, so that a hit costs one trip.
        let found = self.cache.client.read(&wanted.keys, self.deadline).await?;
        let open = self.judged(&wanted, &found, readings);
        if open.is_empty() {
            return Ok(());
        }
        Box::pin(self.settle(open, &wanted, &found, readings)).await
    }

    /// As [`look`](Self::look), with what a replica has. What no replica has is read from the
    /// primary.
    async fn look_at_replica<T: Taken>(
        &self,
        keys: &[Key],
        readings: &mut [Option<Reading<T>>],
    ) -> Result<()> {
        let client = &self.cache.client;
        let primary = Self {
            from: ReadFrom::Primary,
            ..*self
        };
        let wanted = Wanted::new(client, self.tags, keys, self.ring);
        let found = client.read_replica(&wanted.keys, self.deadline);
        let Some(found) = found.await else {
            return Box::pin(primary.look(keys, readings)).await;
        };
        let open = self.judged(&wanted, &found, readings);
        let missed = self.judged_again(open, &wanted, &found, readings).await?;
        // Also what is invalid there: the replica may only be behind.
        let missing: Vec<usize> = missed.into_iter().map(|(at, _)| at).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let rest = Box::pin(primary.look_for_some(keys, &missing)).await?;
        for (at, reading) in missing.into_iter().zip(rest) {
            readings[at] = reading;
        }
        Ok(())
    }

    /// Looks for the misses on the other ring, if it may have them.
    async fn look_elsewhere<T: Taken>(
        &self,
        keys: &[Key],
        readings: &mut [Option<Reading<T>>],
    ) -> Result<()> {
        let mut missing = Vec::new();
        for (at, (key, reading)) in keys.iter().zip(&*readings).enumerate() {
            let Some(Reading::Miss(miss)) = reading else {
                continue;
            };
            let copies = self.cache.client.copies(key);
            // An entry that was judged here may have been stamped with the generations there.
            let may_be_there = copies.other.is_some() || !miss.seen.is_empty();
            if copies.read == ReadOther::WhenMissing && may_be_there {
                missing.push(at);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let other = Self {
            ring: Ring::Other,
            ..*self
        };
        // In a box, so that the future of a hit stays small.
        let found = Box::pin(other.look_for_some(keys, &missing)).await?;
        for (at, reading) in missing.into_iter().zip(found) {
            if let hit @ Some(Reading::Hit(_)) = reading {
                readings[at] = hit;
            }
        }
        Ok(())
    }

    /// Reads and judges the keys at the positions `some`.
    async fn look_for_some<T: Taken>(
        &self,
        keys: &[Key],
        some: &[usize],
    ) -> Result<Vec<Option<Reading<T>>>> {
        let keys: Vec<Key> = some.iter().map(|at| keys[*at].clone()).collect();
        let mut readings = unread(&keys);
        self.look(&keys, &mut readings).await?;
        Ok(readings)
    }

    /// Fills in the readings of the entries that are no hit so far.
    async fn settle<T: Taken>(
        &self,
        open: Undecided,
        wanted: &Wanted,
        found: &[Option<Bytes>],
        readings: &mut [Option<Reading<T>>],
    ) -> Result<()> {
        let missed = self.judged_again(open, wanted, found, readings).await?;
        let mut discards = Vec::new();
        for (at, why) in missed {
            let (gone, entry) = (Gone::of(&why), found[at].as_deref().unwrap_or_default());
            discards.extend(self.missed(&wanted.keys[at], entry, why));
            let whole = Generation::of(wanted.whole(at, found));
            let declared = snapshot(wanted.declared(found));
            readings[at] = Some(Reading::Miss(Miss::of(gone, entry, whole, declared)));
        }
        // Together: one after the other they could use up the time that other entries need.
        join_all(discards).await;
        Ok(())
    }

    /// Judges what was found, and fills in the hits. Returns the other entries.
    fn judged<T: Taken>(
        &self,
        wanted: &Wanted,
        found: &[Option<Bytes>],
        readings: &mut [Option<Reading<T>>],
    ) -> Undecided {
        let mut open = Undecided::default();
        for (at, reading) in readings.iter_mut().enumerate() {
            match self.judge(at, wanted, found, &[]) {
                Judged::Hit(value) => *reading = Some(Reading::Hit(value)),
                Judged::Miss(why) => open.missed.push((at, why)),
                Judged::Needs(tags) => open.needing.push((at, tags)),
            }
        }
        open
    }

    /// Reads the generations that entries still need, and judges these entries again: only once,
    /// since an entry names all its tags. Fills in the hits, and returns the misses.
    async fn judged_again<T: Taken>(
        &self,
        open: Undecided,
        wanted: &Wanted,
        found: &[Option<Bytes>],
        readings: &mut [Option<Reading<T>>],
    ) -> Result<Vec<(usize, Why)>> {
        let Undecided {
            mut missed,
            needing,
        } = open;
        if needing.is_empty() {
            return Ok(missed);
        }
        let tags = needing.iter().flat_map(|(_, tags)| tags);
        let mut tags: Vec<TagId> = tags.copied().collect();
        // Entries often share their tags. Each is read once.
        tags.sort_unstable();
        tags.dedup();
        // Read after the entries, so these generations may judge them.
        let others = self.present(&tags).await?;
        for (at, _) in needing {
            match self.judge(at, wanted, found, &others) {
                Judged::Hit(value) => readings[at] = Some(Reading::Hit(value)),
                Judged::Miss(why) => missed.push((at, why)),
                Judged::Needs(_) => {
                    debug_assert!(false, "all that an entry needs was read");
                    missed.push((at, Why::Invalidated));
                }
            }
        }
        Ok(missed)
    }

    /// Returns the present generations of tags that were not read together with the entries.
    async fn present(&self, tags: &[TagId]) -> Result<Vec<(TagId, Option<Generation>)>> {
        let client = &self.cache.client;
        let mut present = Vec::with_capacity(tags.len());
        // One entry may carry 255 tags, so many entries need many. Each part is read after the
        // entries, so it proves as much as all of them together would.
        for part in tags.chunks(MOST_TAGS_AT_ONCE) {
            let spelt = part
                .iter()
                .map(|tag| self.ring.place(&client.namespace().tag(*tag)));
            let keys: Vec<Key> = spelt.collect();
            let found = client.read(&keys, self.deadline).await?;
            let generations = found.iter().map(|it| Generation::of(it.as_ref()));
            present.extend(part.iter().copied().zip(generations));
        }
        Ok(present)
    }

    fn judge<T: Taken>(
        &self,
        at: usize,
        wanted: &Wanted,
        found: &[Option<Bytes>],
        others: &[(TagId, Option<Generation>)],
    ) -> Judged<T> {
        let Asked { whole, declared } = self.tags;
        let known = |tag: TagId| {
            if tag == whole.id {
                return Some(Generation::of(wanted.whole(at, found)));
            }
            if let Some(place) = declared.iter().position(|it| it.id == tag) {
                return Some(Generation::of(wanted.declared(found)[place].as_ref()));
            }
            // They are in order, since each was asked for once.
            let other = others.binary_search_by_key(&tag, |(id, _)| *id).ok()?;
            Some(others[other].1)
        };
        judge(
            found[at].as_deref(),
            whole.id,
            known,
            &self.stack.decoder(wanted.keys[at].as_str()),
        )
    }

    /// Reports an entry that is no hit. Returns what removes it, if it is damaged.
    fn missed<'m>(&'m self, key: &'m Key, entry: &'m [u8], why: Why) -> Option<BoxFuture<'m, ()>> {
        let client = &self.cache.client;
        let shown = || key.shown(client.hide_keys());
        match why {
            Why::Absent => {}
            Why::Invalidated => {
                tracing::debug!(target: "hedgerow::cache", redis_key = &*shown(), "invalidated");
            }
            Why::Unreadable(Unreadable::Damaged(error)) => {
                tracing::warn!(target: "hedgerow::cache", redis_key = &*shown(), %error, "damaged");
                return Some(Box::pin(discard(client, key, entry, self.deadline)));
            }
            Why::Unreadable(Unreadable::Foreign(error)) => {
                // Not removed: another build, or a caller with another type, may be able to read
                // it.
                let foreign = &self.cache.state().foreign;
                foreign.meet(&self.cache.setup.name, &shown(), &error);
            }
        }
        None
    }
}

/// Returns what the record of a failed load says, if it is valid. It is judged as an entry is, by
/// the generations that `tags` have from now on. A record that cannot be read says nothing.
pub(in crate::cache) async fn record<V: DeserializeOwned>(
    cache: &Cache,
    lease: &Key,
    record: Bytes,
    tags: &[Tag],
    deadline: Deadline,
) -> Result<Option<V>> {
    let keys: Vec<_> = tags.iter().map(|tag| tag.key.clone()).collect();
    let mut found = cache.client.read(&keys, deadline).await?;
    found.insert(0, Some(record));
    // The first tag of a store request is that of the whole cache.
    let Some((whole, declared)) = tags.split_first() else {
        return Ok(None);
    };
    let fetch = Fetch {
        cache,
        tags: Asked { whole, declared },
        // As the record was written, whatever the values are written in.
        stack: &cache.setup.stack.of_records(),
        deadline,
        ring: Ring::Own,
        from: ReadFrom::Primary,
    };
    let wanted = Wanted::answered(lease);
    let mut reading: Option<Reading<Arc<V>>> = None;
    let place = slice::from_mut(&mut reading);
    let open = fetch.judged(&wanted, &found, place);
    fetch.judged_again(open, &wanted, &found, place).await?;
    Ok(match reading {
        Some(Reading::Hit(value)) => Arc::into_inner(value),
        _ => None,
    })
}

/// Reads the present generations of `tags`.
pub(in crate::cache) async fn generations(
    client: &Client,
    tags: &[Tag],
    deadline: Deadline,
) -> Result<Snapshot> {
    let keys: Vec<_> = tags.iter().map(|tag| tag.key.clone()).collect();
    let found = client.read(&keys, deadline).await?;
    Ok(snapshot(&found))
}

/// Removes a damaged entry, unless it was replaced meanwhile. A failure is only logged: the load
/// that follows overwrites the entry.
async fn discard(client: &Client, key: &Key, entry: &[u8], deadline: Deadline) {
    let call = DISCARD
        .call([key])
        .arg(&entry[..entry.len().min(HEADER)])
        .arg(entry.len());
    if let Err(error) = client.change(call, deadline).await {
        tracing::debug!(target: "hedgerow::cache", redis_key = &*key.shown(client.hide_keys()), %error, "not discarded");
    }
}

/// How many tags that were not read with the entries one read asks for.
const MOST_TAGS_AT_ONCE: usize = 500;
