//! Reading an entry and judging it: the hit path, and the only way in which a value leaves Redis.
//!
//! Invariant: an entry is valid only if each generation stamped on it equals the present one, and
//! the present ones are read together with the entry or after it. So an entry that was loaded
//! before an invalidation is not valid for any read that began after the invalidation returned.
//! Every verb of the cache reads through here.
//!
//! What cannot be read is a miss. A damaged entry is of no use to anybody and removes itself; a
//! foreign one is another build's or another type's, and stays.
//!
//! A replica may be behind. So what it answers counts only when it is a hit, judged by what it
//! holds itself at the same moment; that something is missing, and which generations a load is
//! stamped with, is asked of the primary.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::reading::{Miss, ReadFrom, Reading, snapshot};
use crate::cache::Cache;
use crate::client::Client;
use crate::codec::{self, Envelope, HEADER, Stack, Stamp, Unreadable};
use crate::error::Result;
use crate::key::{Key, TagId};
use crate::script::script;
use crate::tags::{Generation, Snapshot, Tag};
use crate::time::Deadline;

script!(DISCARD = "discard.lua");

/// Reads the entry at `key` in one trip, with the generations of the whole cache's tag and of
/// `tags`. An entry stamped with other tags too costs a second trip, and so does one that a
/// replica has not.
///
/// While keys move from one ring of shards to another, what is a miss on the present ring is
/// looked for as the old ring places it, entry and tags: what was stored there was stamped with
/// the generations there. A miss is told as the present ring sees it, which is where the load
/// that follows asks for its lease.
pub(in crate::cache) async fn read<V: DeserializeOwned>(
    cache: &Cache,
    key: &Key,
    tags: &[Tag],
    from: ReadFrom,
    deadline: Deadline,
) -> Result<Reading<V>> {
    let client = &cache.client;
    let look = Look {
        cache,
        tags: Asked {
            whole: &cache.names()?.whole,
            declared: tags,
        },
        stack: &cache.setup.stack,
        deadline,
    };
    let here = look.at(key, from, Key::clone).await?;
    let Reading::Miss(miss) = &here else {
        return Ok(here);
    };
    let nothing = miss.seen.is_empty() && client.on_other_ring(key).is_none();
    if nothing || !client.reads_old_ring() {
        return Ok(here);
    }
    match Box::pin(look.at(key, from, Key::on_other_ring)).await? {
        Reading::Miss(_) => Ok(here),
        hit => Ok(hit),
    }
}

/// The tags whose generations are read together with an entry.
#[derive(Clone, Copy)]
struct Asked<'t> {
    whole: &'t Tag,
    declared: &'t [Tag],
}

/// Where and how an entry is looked for.
#[derive(Clone, Copy)]
struct Look<'l> {
    cache: &'l Cache,
    tags: Asked<'l>,
    stack: &'l Stack,
    deadline: Deadline,
}

impl<'l> Asked<'l> {
    /// The tags of an order, the first of which is the whole cache's.
    fn all(tags: &'l [Tag]) -> Option<Self> {
        let (whole, declared) = tags.split_first()?;
        Some(Self { whole, declared })
    }

    /// Where the generation of `tag` stands among those that were read.
    fn position(&self, tag: u128) -> Option<usize> {
        let all = std::iter::once(self.whole).chain(self.declared);
        all.into_iter().position(|asked| asked.id.0 == tag)
    }
}

impl Look<'_> {
    /// Reads and judges on one ring: `place` places a key there.
    async fn at<V: DeserializeOwned>(
        &self,
        key: &Key,
        from: ReadFrom,
        place: fn(&Key) -> Key,
    ) -> Result<Reading<V>> {
        let (client, deadline) = (&self.cache.client, self.deadline);
        let key = place(key);
        let Asked { whole, declared } = self.tags;
        let mut keys = Vec::with_capacity(2 + declared.len());
        let whole = whole.colocated_key(client, &key);
        keys.extend([key, whole]);
        keys.extend(declared.iter().map(|tag| place(&tag.key)));
        if from == ReadFrom::PreferReplica
            && let Some(found) = Box::pin(client.read_replica(&keys, deadline)).await
            && let Some(Verdict::Valid(value)) = self.judged(&found, place).await?
        {
            return Ok(Reading::Hit(value));
        }
        let found = client.read(&keys, deadline).await?;
        let verdict = match self.judged(&found, place).await? {
            Some(Verdict::Valid(value)) => return Ok(Reading::Hit(value)),
            verdict => verdict,
        };
        let (key, (entry, present)) = (&keys[0], split(&found));
        match verdict {
            None | Some(Verdict::Valid(_)) => {}
            Some(Verdict::Invalidated) => {
                tracing::debug!(target: "hedgerow::cache", redis_key = &*key.shown(client.hide_keys()), "invalidated");
            }
            Some(Verdict::Unreadable(Unreadable::Damaged(error))) => {
                tracing::warn!(target: "hedgerow::cache", redis_key = &*key.shown(client.hide_keys()), %error, "damaged");
                Box::pin(discard(client, key, entry.unwrap_or_default(), deadline)).await;
            }
            Some(Verdict::Unreadable(Unreadable::Foreign(error))) => {
                let (foreign, shown) = (&self.cache.state().foreign, key.shown(client.hide_keys()));
                foreign.meet(&self.cache.setup.name, &shown, &error);
            }
        }
        Ok(Reading::Miss(Miss::of(entry.unwrap_or_default(), present)))
    }

    /// Judges what was found: an entry and the generations of the tags; `None` when there is no
    /// entry.
    async fn judged<V: DeserializeOwned>(
        &self,
        found: &[Option<Bytes>],
        place: fn(&Key) -> Key,
    ) -> Result<Option<Verdict<V>>> {
        let (entry, present) = split(found);
        let Some(entry) = entry else {
            return Ok(None);
        };
        let envelope = match Envelope::parse(entry) {
            Ok(envelope) => envelope,
            Err(error) => return Ok(Some(Verdict::Unreadable(error))),
        };
        let valid = match compared(&envelope, self.tags, present) {
            Stamps::Equal => true,
            Stamps::Differ => false,
            Stamps::EqualBut(others) => Box::pin(self.equal(others, place)).await?,
        };
        Ok(Some(match valid {
            false => Verdict::Invalidated,
            true => match codec::decode(&envelope, self.stack.max_decoded) {
                Ok(value) => Verdict::Valid(Arc::new(value)),
                Err(error) => Verdict::Unreadable(error),
            },
        }))
    }

    /// Whether the generations of `others`, which were not read together with the entry, are the
    /// present ones.
    async fn equal(&self, others: Vec<Stamp>, place: fn(&Key) -> Key) -> Result<bool> {
        let namespace = self.cache.client.namespace();
        let keys = others
            .iter()
            .map(|stamp| place(&namespace.tag(TagId(stamp.tag))));
        let keys: Vec<_> = keys.collect();
        let present = self.cache.client.read(&keys, self.deadline).await?;
        let mut all = others.iter().zip(&present);
        Ok(all.all(|(stamp, present)| {
            Generation::of(present.as_ref()) == Some(Generation::from_stamp(stamp.generation))
        }))
    }
}

/// What an entry comes to.
enum Verdict<V> {
    Valid(Arc<V>),
    Invalidated,
    Unreadable(Unreadable),
}

/// What the stamps of an entry come to beside the present generations.
enum Stamps {
    Equal,
    Differ,
    /// These are of tags that were not asked for; the others are equal.
    EqualBut(Vec<Stamp>),
}

/// Compares the stamps of an entry with the `present` generations of `tags`.
fn compared(envelope: &Envelope<'_>, tags: Asked<'_>, present: &[Option<Bytes>]) -> Stamps {
    let mut others = Vec::new();
    let mut clearable = false;
    for stamp in envelope.stamps() {
        let Some(place) = tags.position(stamp.tag) else {
            others.push(stamp);
            continue;
        };
        let stamped = Generation::from_stamp(stamp.generation);
        if Generation::of(present[place].as_ref()) != Some(stamped) {
            return Stamps::Differ;
        }
        clearable |= place == 0;
    }
    match others.is_empty() {
        _ if !clearable => Stamps::Differ,
        true => Stamps::Equal,
        false => Stamps::EqualBut(others),
    }
}

/// The entry, and what stands for the tags.
fn split(found: &[Option<Bytes>]) -> (Option<&[u8]>, &[Option<Bytes>]) {
    let Some((entry, present)) = found.split_first() else {
        unreachable!("a read answers each key");
    };
    (entry.as_deref(), present)
}

/// What the record of a failed load says, if it is valid: it is judged as an entry is, by the
/// generations that `tags` have from now on. One that cannot be read says nothing.
pub(in crate::cache) async fn record<V: DeserializeOwned>(
    cache: &Cache,
    record: Bytes,
    tags: &[Tag],
    deadline: Deadline,
) -> Result<Option<V>> {
    let keys: Vec<_> = tags.iter().map(|tag| tag.key.clone()).collect();
    let mut found = cache.client.read(&keys, deadline).await?;
    found.insert(0, Some(record));
    let Some(tags) = Asked::all(tags) else {
        return Ok(None);
    };
    let look = Look {
        cache,
        tags,
        stack: &Stack::default(),
        deadline,
    };
    Ok(match look.judged(&found, Key::clone).await? {
        Some(Verdict::Valid(value)) => Arc::into_inner(value),
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

/// Removes a damaged entry, unless it was replaced meanwhile. Best effort: the
/// load that follows overwrites it.
async fn discard(client: &Client, key: &Key, entry: &[u8], deadline: Deadline) {
    let call = DISCARD
        .call([key])
        .arg(&entry[..entry.len().min(HEADER)])
        .arg(entry.len());
    if let Err(error) = client.change(call, deadline).await {
        tracing::debug!(target: "hedgerow::cache", redis_key = &*key.shown(client.hide_keys()), %error, "not discarded");
    }
}
