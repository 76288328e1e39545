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
//! A replica may be behind. So what it answers counts only when it is a hit, judged by what it holds
//! itself at the same moment; that something is missing, and which generations a load is stamped
//! with, is asked of the primary.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::codec::{self, Envelope, HEADER, Stack, Unreadable};
use crate::error::Result;
use crate::key::{Key, TagId};
use crate::script::script;
use crate::tags::{Generation, Snapshot, Tag};
use crate::time::Deadline;

script!(DISCARD = "discard.lua");

/// What a read came to.
#[derive(Debug)]
pub(super) enum Reading<V> {
    Hit(Arc<V>),
    Miss(Miss),
}

/// Nothing valid was there.
#[derive(Debug, Default, Clone)]
pub(super) struct Miss {
    /// The first bytes of the entry that was judged invalid; empty when there was none.
    pub(super) seen: Bytes,
    /// The present generations of the tags that were asked for.
    pub(super) snapshot: Snapshot,
}

/// Where a cache may read values that it finds.
///
/// Everything else is asked of the primary: what is missing, loads, tags, locks and counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// At the primary: nothing that was removed or invalidated is found.
    #[default]
    Primary,
    /// At a replica that is proved to have applied all that this client has written and that the
    /// primary had 2 s ago; at the primary when there is none. So what *other* clients remove, set
    /// or invalidate may be seen up to 2 s late.
    PreferReplica,
}

/// Reads the entry at `key` in one trip, with the generations of `tags`, the first of which is the
/// whole cache's. An entry stamped with other tags too costs a second trip, and so does one that a
/// replica has not.
///
/// While keys move from one ring of shards to another, what is a miss on the present ring is
/// looked for as the old ring places it, entry and tags: what was stored there was stamped with
/// the generations there. A miss is told as the present ring sees it, which is where the load
/// that follows asks for its lease.
pub(super) async fn read<V: DeserializeOwned>(
    client: &Client,
    key: &Key,
    tags: &[Tag],
    stack: &Stack,
    from: ReadFrom,
    deadline: Deadline,
) -> Result<Reading<V>> {
    let here = look(client, key, tags, stack, from, deadline, Key::clone).await?;
    let Reading::Miss(miss) = &here else {
        return Ok(here);
    };
    let nothing = miss.seen.is_empty() && client.twin(key).is_none();
    if nothing || !client.looks_back() {
        return Ok(here);
    }
    let there = look(client, key, tags, stack, from, deadline, Key::elsewhere);
    match there.await? {
        Reading::Miss(_) => Ok(here),
        hit => Ok(hit),
    }
}

/// Reads and judges on one ring: `at` places a key there.
async fn look<V: DeserializeOwned>(
    client: &Client,
    key: &Key,
    tags: &[Tag],
    stack: &Stack,
    from: ReadFrom,
    deadline: Deadline,
    at: fn(&Key) -> Key,
) -> Result<Reading<V>> {
    let key = &at(key);
    let mut keys = Vec::with_capacity(1 + tags.len());
    keys.push(key.clone());
    if let Some((whole, named)) = tags.split_first() {
        keys.push(whole.key_beside(client, key));
        keys.extend(named.iter().map(|tag| at(&tag.key)));
    }
    if from == ReadFrom::PreferReplica
        && let Some(found) = client.peek(&keys, deadline).await
        && let Some(Verdict::Valid(value)) =
            judged(client, &found, tags, stack, deadline, at).await?
    {
        return Ok(Reading::Hit(value));
    }
    let found = client.read(&keys, deadline).await?;
    let (entry, present) = split(&found);
    match judged(client, &found, tags, stack, deadline, at).await? {
        None => {}
        Some(Verdict::Valid(value)) => return Ok(Reading::Hit(value)),
        Some(Verdict::Invalidated) => {
            tracing::debug!(target: "hedgerow::cache", redis_key = &*key.shown(client.hide_keys()), "invalidated");
        }
        Some(Verdict::Unreadable(Unreadable::Damaged(error))) => {
            tracing::warn!(target: "hedgerow::cache", redis_key = &*key.shown(client.hide_keys()), %error, "damaged");
            discard(client, key, entry.unwrap_or_default(), deadline).await;
        }
        Some(Verdict::Unreadable(Unreadable::Foreign(error))) => {
            tracing::info!(target: "hedgerow::cache", redis_key = &*key.shown(client.hide_keys()), %error, "foreign");
        }
    }
    Ok(Reading::Miss(Miss::of(entry.unwrap_or_default(), present)))
}

/// What an entry comes to.
enum Verdict<V> {
    Valid(Arc<V>),
    Invalidated,
    Unreadable(Unreadable),
}

/// Judges what was found: an entry and the generations of `tags`; `None` when there is no entry.
async fn judged<V: DeserializeOwned>(
    client: &Client,
    found: &[Option<Bytes>],
    tags: &[Tag],
    stack: &Stack,
    deadline: Deadline,
    at: fn(&Key) -> Key,
) -> Result<Option<Verdict<V>>> {
    let (entry, present) = split(found);
    let Some(entry) = entry else {
        return Ok(None);
    };
    Ok(Some(match Envelope::parse(entry) {
        Err(error) => Verdict::Unreadable(error),
        Ok(envelope) if is_valid(client, &envelope, tags, present, deadline, at).await? => {
            match codec::decode(&envelope, stack.max_decoded) {
                Ok(value) => Verdict::Valid(Arc::new(value)),
                Err(error) => Verdict::Unreadable(error),
            }
        }
        Ok(_) => Verdict::Invalidated,
    }))
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
pub(super) async fn record<V: DeserializeOwned>(
    client: &Client,
    record: Bytes,
    tags: &[Tag],
    deadline: Deadline,
) -> Result<Option<V>> {
    let keys: Vec<_> = tags.iter().map(|tag| tag.key.clone()).collect();
    let mut found = client.read(&keys, deadline).await?;
    found.insert(0, Some(record));
    let stack = Stack::default();
    let verdict = judged(client, &found, tags, &stack, deadline, Key::clone).await?;
    Ok(match verdict {
        Some(Verdict::Valid(value)) => Arc::into_inner(value),
        _ => None,
    })
}

/// Reads the present generations of `tags`.
pub(super) async fn generations(
    client: &Client,
    tags: &[Tag],
    deadline: Deadline,
) -> Result<Snapshot> {
    let keys: Vec<_> = tags.iter().map(|tag| tag.key.clone()).collect();
    let found = client.read(&keys, deadline).await?;
    Ok(snapshot(&found))
}

impl Miss {
    fn of(entry: &[u8], present: &[Option<Bytes>]) -> Self {
        Self {
            seen: Bytes::copy_from_slice(&entry[..entry.len().min(HEADER)]),
            snapshot: snapshot(present),
        }
    }
}

async fn is_valid(
    client: &Client,
    envelope: &Envelope<'_>,
    tags: &[Tag],
    present: &[Option<Bytes>],
    deadline: Deadline,
    at: fn(&Key) -> Key,
) -> Result<bool> {
    let mut others: Vec<(Key, Generation)> = Vec::new();
    let mut clearable = false;
    for stamp in envelope.stamps() {
        let stamped = Generation::from_stamp(stamp.generation);
        let Some(place) = tags.iter().position(|tag| tag.id.0 == stamp.tag) else {
            let key = client.namespace().tag(TagId(stamp.tag));
            others.push((at(&key), stamped));
            continue;
        };
        if Generation::of(present[place].as_ref()) != Some(stamped) {
            return Ok(false);
        }
        clearable |= place == 0;
    }
    if !clearable {
        return Ok(false);
    }
    if others.is_empty() {
        return Ok(true);
    }
    let keys: Vec<_> = others.iter().map(|(key, _)| key.clone()).collect();
    let present = client.read(&keys, deadline).await?;
    Ok(others
        .iter()
        .zip(&present)
        .all(|((_, stamped), present)| Generation::of(present.as_ref()) == Some(*stamped)))
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

fn snapshot(present: &[Option<Bytes>]) -> Snapshot {
    present
        .iter()
        .map(|value| Generation::of(value.as_ref()))
        .collect()
}
