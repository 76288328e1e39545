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

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use serde::de::DeserializeOwned;

use super::judge::{Judged, Why, judge};
use super::reading::{Miss, ReadFrom, Reading, snapshot};
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
pub(in crate::cache) async fn read<V: DeserializeOwned>(
    cache: &Cache,
    key: &Key,
    tags: &[Tag],
    from: ReadFrom,
    deadline: Deadline,
) -> Result<Reading<V>> {
    let keys = std::slice::from_ref(key);
    let mut readings = read_many(cache, keys, tags, from, deadline).await?;
    match readings.pop() {
        Some(reading) => Ok(reading),
        None => unreachable!("there is a reading for each key"),
    }
}

/// Reads the entries at `keys` in one trip, with the generations of the whole cache's tag and of
/// `tags`. If entries carry other tags, too, a second trip reads those of all entries together.
/// Another trip reads the entries that a replica does not have.
///
/// While keys move from one ring of shards to another, an entry that is a miss on the present ring
/// is looked for as the old ring places it, entry and tags: it was stamped with the generations
/// there. A miss is reported as the present ring sees it, because the load that follows asks for
/// its lease there.
pub(in crate::cache) async fn read_many<V: DeserializeOwned>(
    cache: &Cache,
    keys: &[Key],
    tags: &[Tag],
    from: ReadFrom,
    deadline: Deadline,
) -> Result<Vec<Reading<V>>> {
    let client = &cache.client;
    let fetch = Fetch {
        cache,
        tags: Asked {
            whole: &cache.names()?.whole,
            declared: tags,
        },
        stack: &cache.setup.stack,
        deadline,
    };
    let mut readings = fetch.on(Ring::Own, keys, from).await?;
    let mut missing: Vec<usize> = Vec::new();
    for (at, (key, reading)) in keys.iter().zip(&readings).enumerate() {
        let Reading::Miss(miss) = reading else {
            continue;
        };
        let copies = client.copies(key);
        // An entry that was judged here may have been stamped with the generations there.
        let may_be_there = copies.other.is_some() || !miss.seen.is_empty();
        if copies.read == ReadOther::WhenMissing && may_be_there {
            missing.push(at);
        }
    }
    if missing.is_empty() {
        return Ok(readings);
    }
    let there: Vec<Key> = missing.iter().map(|at| keys[*at].clone()).collect();
    // In a box, so that the future of a hit stays small.
    let found = Box::pin(fetch.on(Ring::Other, &there, from)).await?;
    for (at, reading) in missing.into_iter().zip(found) {
        if let hit @ Reading::Hit(_) = reading {
            readings[at] = hit;
        }
    }
    Ok(readings)
}

/// The ring of shards that places a key, while keys move from one ring to another.
#[derive(Debug, Clone, Copy)]
enum Ring {
    Own,
    Other,
}

impl Ring {
    fn place(self, key: &Key) -> Key {
        match self {
            Self::Own => key.clone(),
            Self::Other => key.on_other_ring(),
        }
    }
}

/// The tags whose generations are read together with an entry.
#[derive(Clone, Copy)]
struct Asked<'t> {
    whole: &'t Tag,
    declared: &'t [Tag],
}

/// Where and how entries are looked for.
#[derive(Clone, Copy)]
struct Fetch<'f> {
    cache: &'f Cache,
    tags: Asked<'f>,
    stack: &'f Stack,
    deadline: Deadline,
}

/// The keys of one read: entries, then the tag of the whole cache, then the declared tags.
struct Wanted {
    keys: Vec<Key>,
    entries: usize,
    /// The tag of the whole cache has one key in each slot group. This is how many of these keys
    /// are read.
    wholes: usize,
    /// Which of these keys belongs to which entry. Empty if all entries have the same, as on one
    /// server, so that the usual read needs no memory for it.
    whole_of: Vec<usize>,
}

impl Wanted {
    fn new(fetch: &Fetch<'_>, keys: &[Key], ring: Ring) -> Self {
        let (client, Asked { whole, declared }) = (&fetch.cache.client, fetch.tags);
        let entries = keys.len();
        let mut all = Vec::with_capacity(entries + 1 + declared.len());
        all.extend(keys.iter().map(|key| ring.place(key)));
        let mut whole_of = Vec::new();
        // The keys of the whole cache's tag follow the entries, each of them once.
        for at in 0..entries {
            let own = whole.colocated_key(client, &all[at]);
            let known = all[entries..].iter().position(|known| *known == own);
            let place = known.unwrap_or(all.len() - entries);
            if known.is_none() {
                all.push(own);
            }
            if place > 0 && whole_of.is_empty() {
                whole_of.resize(at, 0);
            }
            if place > 0 || !whole_of.is_empty() {
                whole_of.push(place);
            }
        }
        let wholes = all.len() - entries;
        all.extend(declared.iter().map(|tag| ring.place(&tag.key)));
        Self {
            keys: all,
            entries,
            wholes,
            whole_of,
        }
    }

    /// The present generation of the whole cache's tag for the entry `at`, in what was found.
    fn whole<'f>(&self, at: usize, found: &'f [Option<Bytes>]) -> Option<&'f Bytes> {
        let whole = self.whole_of.get(at).copied().unwrap_or_default();
        found[self.entries + whole].as_ref()
    }

    fn declared<'f>(&self, found: &'f [Option<Bytes>]) -> &'f [Option<Bytes>] {
        &found[self.entries + self.wholes..]
    }
}

impl Fetch<'_> {
    /// Reads and judges on one ring.
    async fn on<V: DeserializeOwned>(
        &self,
        ring: Ring,
        keys: &[Key],
        from: ReadFrom,
    ) -> Result<Vec<Reading<V>>> {
        if from == ReadFrom::PreferReplica
            && let Some(readings) = Box::pin(self.on_replica(ring, keys)).await?
        {
            return Ok(readings);
        }
        let client = &self.cache.client;
        let wanted = Wanted::new(self, keys, ring);
        // Entries and tags in one read, so that a hit costs one trip.
        let found = client.read(&wanted.keys, self.deadline).await?;
        let judged = self.judged(&wanted, &found, ring).await?;
        let mut readings = Vec::with_capacity(judged.len());
        let mut discards = Vec::new();
        for (at, judged) in judged.into_iter().enumerate() {
            let why = match judged {
                Judged::Hit(value) => {
                    readings.push(Reading::Hit(value));
                    continue;
                }
                Judged::Miss(why) => why,
                Judged::Needs(_) => unreachable!("all that an entry needs was read"),
            };
            let entry = found[at].as_deref().unwrap_or_default();
            discards.extend(self.missed(&wanted.keys[at], entry, why));
            let whole = Generation::of(wanted.whole(at, &found));
            let declared = snapshot(wanted.declared(&found));
            readings.push(Reading::Miss(Miss::of(entry, whole, declared)));
        }
        // Together: one after the other they could use up the time that other entries need. In a
        // box: damage is rare, and the future of a hit stays small.
        if !discards.is_empty() {
            Box::pin(join_all(discards)).await;
        }
        Ok(readings)
    }

    /// As [`on`](Self::on), with what a replica has. What the replica does not have is read from
    /// the primary. `None` if no replica can be asked.
    async fn on_replica<V: DeserializeOwned>(
        &self,
        ring: Ring,
        keys: &[Key],
    ) -> Result<Option<Vec<Reading<V>>>> {
        let wanted = Wanted::new(self, keys, ring);
        let found = self.cache.client.read_replica(&wanted.keys, self.deadline);
        let Some(found) = found.await else {
            return Ok(None);
        };
        let judged = self.judged(&wanted, &found, ring).await?;
        let hit = |judged: &Judged<V>| matches!(judged, Judged::Hit(_));
        let missing = keys.iter().zip(&judged).filter(|(_, judged)| !hit(judged));
        let missing: Vec<Key> = missing.map(|(key, _)| key.clone()).collect();
        let rest = match missing.is_empty() {
            true => Vec::new(),
            // Also what is invalid there: the replica may only be behind.
            false => Box::pin(self.on(ring, &missing, ReadFrom::Primary)).await?,
        };
        let mut rest = rest.into_iter();
        let readings = judged.into_iter().map(|judged| match judged {
            Judged::Hit(value) => Some(Reading::Hit(value)),
            _ => rest.next(),
        });
        Ok(readings.collect())
    }

    /// Judges what was found, and reads the generations that are still needed for that: at most
    /// once, since an entry names all its tags.
    async fn judged<V: DeserializeOwned>(
        &self,
        wanted: &Wanted,
        found: &[Option<Bytes>],
        ring: Ring,
    ) -> Result<Vec<Judged<V>>> {
        let judge = |at, others: &[_]| self.judge(at, wanted, found, others);
        let mut judged: Vec<Judged<V>> = (0..wanted.entries).map(|at| judge(at, &[])).collect();
        let mut needed: Vec<TagId> = Vec::new();
        for it in &judged {
            if let Judged::Needs(tags) = it {
                needed.extend(tags);
            }
        }
        if needed.is_empty() {
            return Ok(judged);
        }
        // Entries often share their tags. Each is read once.
        needed.sort_unstable();
        needed.dedup();
        // Read after the entries, so these generations may judge them.
        let others = Box::pin(self.present(needed, ring)).await?;
        for (at, it) in judged.iter_mut().enumerate() {
            if let Judged::Needs(_) = it {
                *it = judge(at, &others);
            }
        }
        Ok(judged)
    }

    /// The present generations of tags that were not read together with the entries.
    async fn present(
        &self,
        tags: Vec<TagId>,
        ring: Ring,
    ) -> Result<Vec<(TagId, Option<Generation>)>> {
        let client = &self.cache.client;
        let mut present = Vec::with_capacity(tags.len());
        // One entry may carry 255 tags, so many entries need many. Each part is read after the
        // entries, so it proves as much as all of them together would.
        for part in tags.chunks(MOST_TAGS_AT_ONCE) {
            let spelt = part
                .iter()
                .map(|tag| ring.place(&client.namespace().tag(*tag)));
            let keys: Vec<Key> = spelt.collect();
            let found = client.read(&keys, self.deadline).await?;
            present.extend(part.iter().copied().zip(snapshot(&found)));
        }
        Ok(present)
    }

    fn judge<V: DeserializeOwned>(
        &self,
        at: usize,
        wanted: &Wanted,
        found: &[Option<Bytes>],
        others: &[(TagId, Option<Generation>)],
    ) -> Judged<V> {
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
            self.stack.max_decoded,
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
        stack: &Stack::default(),
        deadline,
    };
    let wanted = Wanted {
        keys: Vec::new(),
        entries: 1,
        wholes: 1,
        whole_of: Vec::new(),
    };
    let mut judged = fetch.judged(&wanted, &found, Ring::Own).await?;
    Ok(match judged.pop() {
        Some(Judged::Hit(value)) => std::sync::Arc::into_inner(value),
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
