//! Reads that fill the near cache.
//!
//! Invariant: a ticket for the entry, and for each tag by which it is judged, is taken before the
//! entry, or the tag, is read. Only what was read from the primary is kept.
//!
//! `get`, `get_many`, `memoize` and `memoize_many` read here if their handle has a near cache. What
//! it holds they have looked up before. What they store is not put in: it is read first. What is
//! read and not kept takes its place all the same: an older value of the key is forgotten, or a
//! grace could bring it back. A held value of the same revision stays: a read that an outage has
//! ended must not take away what the grace is for.

use std::any::Any;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::held::{Fill, Near, Origin};
use super::table::{Kept, KnownTag, Ticket};
use crate::cache::Cache;
use crate::cache::read::fetch;
use crate::cache::read::judge::{Age, Judged, Left, Old, Rules, Taken, Want, judge_by};
use crate::cache::read::reading::{Gone, ReadFrom, Reading};
use crate::cache::stats::{Counts, Timed};
use crate::client::Client;
use crate::codec::{Decoder, Envelope, Stamp, Unreadable};
use crate::error::Result;
use crate::key::{Key, TagId};
use crate::script::Retry;
use crate::tags::{Generation, Tag, TagValue};
use crate::time::Deadline;
use crate::topology::placement::ReadOther;
use crate::wire::command::plain;
use crate::wire::value::integer;

/// What a read asks for: declared tags, which entries, and whether it is kept that there is none.
pub(in crate::cache) type Asked<'a> = (&'a [Tag], Want, Absence);

/// What a read does if there is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Absence {
    /// It is kept in the near cache that there is none.
    Kept,
    /// The caller loads the entry, so it soon is there.
    Loaded,
}

/// Reads one entry at the primary, also one that is to be loaded anew, as `want` says. A fresh one
/// is kept in the background.
///
/// If the generations of all its tags are known, one command reads the entry alone.
pub(in crate::cache) async fn read<V>(
    cache: &Cache,
    near: &Arc<Near>,
    key: &Key,
    (tags, want, absence): Asked<'_>,
    deadline: Deadline,
) -> Result<Reading<Arc<V>>>
where
    V: DeserializeOwned + Send + Sync + 'static,
{
    let counts = &cache.setup.counts;
    let how = (ReadFrom::Primary, want);
    let Some(watch) = Watch::begin(cache, near, key, absence)? else {
        let _timer = counts.time(Timed::Read);
        let reading = fetch::read_old(cache, key, tags, how, deadline).await?;
        return Ok(unwatched(near, key, reading));
    };
    // Where the time decides, the entry is not read alone.
    if want.early().is_none()
        && !counts.met_a_window()
        && let Some(reading) = watch.read_alone(cache, tags, deadline).await?
    {
        return Ok(watch.end(cache, Vec::new(), reading, deadline));
    }
    let tickets = watch.tickets(tags);
    let timer = counts.time(Timed::Read);
    let reading = fetch::read_old(cache, key, tags, how, deadline).await?;
    timer.stop();
    Ok(watch.end(cache, tickets, reading, deadline))
}

/// Reads one entry for a call that may be given a stale value, as [`fetch::read_old`] does: it is
/// judged by what the server says, and kept if it is fresh.
pub(in crate::cache) async fn read_old<V>(
    cache: &Cache,
    near: &Arc<Near>,
    key: &Key,
    (tags, want, absence): Asked<'_>,
    deadline: Deadline,
) -> Result<Reading<Arc<V>>>
where
    V: DeserializeOwned + Send + Sync + 'static,
{
    let how = (ReadFrom::Primary, want);
    let watch = Watch::begin(cache, near, key, absence)?;
    let tickets = watch.as_ref().map(|watch| watch.tickets(tags));
    let _timer = cache.setup.counts.time(Timed::Read);
    let reading = fetch::read_old::<Traced<V>>(cache, key, tags, how, deadline).await?;
    Ok(match (watch.zip(tickets), &reading) {
        (Some((watch, tickets)), Reading::Hit(traced)) if near.takes(traced.bytes) => {
            watch.end(cache, tickets, reading, deadline)
        }
        _ => unwatched(near, key, reading),
    })
}

/// Reads the entries at `keys` in one trip, as [`fetch::read_many`] does. They are kept in the
/// background.
pub(in crate::cache) async fn read_many<V>(
    cache: &Cache,
    near: &Arc<Near>,
    keys: &[Key],
    deadline: Deadline,
) -> Result<Vec<Reading<Arc<V>>>>
where
    V: DeserializeOwned + Send + Sync + 'static,
{
    let watches = watches(cache, near, keys, (&[], Absence::Kept))?;
    let readings = fetch::read_many(cache, keys, &[], ReadFrom::Primary, deadline).await?;
    let readings = readings.into_iter().zip(watches).zip(keys);
    let ended = readings.map(|((reading, watch), key)| match watch {
        Some((watch, tickets)) => watch.end(cache, tickets, reading, deadline),
        None => unwatched(near, key, reading),
    });
    Ok(ended.collect())
}

/// Reads the entries at `keys`, each for itself, as [`fetch::read_each`] does. Fresh ones are kept
/// in the background.
pub(in crate::cache) async fn read_each<V>(
    cache: &Cache,
    near: &Arc<Near>,
    keys: &[Key],
    (tags, want, absence): Asked<'_>,
    deadline: Deadline,
) -> Result<Vec<Result<Reading<Arc<V>>>>>
where
    V: DeserializeOwned + Send + Sync + 'static,
{
    let watches = watches(cache, near, keys, (tags, absence))?;
    let how = (ReadFrom::Primary, want);
    let readings = fetch::read_each(cache, keys, tags, how, deadline).await?;
    let readings = readings.into_iter().zip(watches).zip(keys);
    let ended = readings.map(|((reading, watch), key)| {
        let reading = reading?;
        Ok(match watch {
            Some((watch, tickets)) => watch.end(cache, tickets, reading, deadline),
            None => unwatched(near, key, reading),
        })
    });
    Ok(ended.collect())
}

/// Begins to watch each of `keys`, and the tags that are read together with it.
fn watches(
    cache: &Cache,
    near: &Arc<Near>,
    keys: &[Key],
    (tags, absence): (&[Tag], Absence),
) -> Result<Vec<Option<(Watch, TagTickets)>>> {
    let watched = keys.iter().map(|key| {
        let watch = Watch::begin(cache, near, key, absence)?;
        let tickets = watch.as_ref().map(|watch| watch.tickets(tags));
        Ok(watch.zip(tickets))
    });
    watched.collect()
}

/// The reading of a key that was not watched. What is held stays only if it is what was read.
fn unwatched<V>(near: &Near, key: &Key, reading: Reading<Traced<V>>) -> Reading<Arc<V>> {
    match (valid(&reading), &reading) {
        (Some(traced), _) => near.forget_older(key, Some(traced.revision)),
        (None, reading) if finds_nothing(reading) => near.forget_older(key, None),
        _ => near.forget(key),
    }
    value_of(reading)
}

/// The entry that was read, if it is valid.
fn valid<V>(reading: &Reading<Traced<V>>) -> Option<&Traced<V>> {
    match reading {
        Reading::Hit(traced) => Some(traced),
        Reading::Old(old, _) if old.age == Age::Due => Some(&old.taken),
        Reading::Old(..) | Reading::Miss(_) => None,
    }
}

/// Whether there is no entry.
fn finds_nothing<V>(reading: &Reading<Traced<V>>) -> bool {
    matches!(reading, Reading::Miss(miss) if miss.gone == Gone::Nothing)
}

/// What a read takes from an entry that is to be kept.
struct Traced<V> {
    value: Arc<V>,
    stamps: Vec<Stamp>,
    /// As encoded, without compression.
    bytes: usize,
    /// For how long Redis keeps the entry after it is fresh.
    stale_for: Duration,
    /// How long the load took.
    cost: Duration,
    revision: u64,
}

impl<V: DeserializeOwned> Taken for Traced<V> {
    fn of(_: &[u8], envelope: &Envelope<'_>, decoder: &Decoder<'_>) -> Result<Self, Unreadable> {
        let (value, bytes) = decoder.measured(envelope)?;
        Ok(Self {
            value: Arc::new(value),
            stamps: envelope.stamps().collect(),
            bytes,
            // A difference of two times of the server, so no clock of this process takes part.
            stale_for: Duration::from_millis(
                envelope.stale_until.saturating_sub(envelope.fresh_until),
            ),
            cost: envelope.cost,
            revision: envelope.revision,
        })
    }
}

/// One read whose answer is to be kept.
struct Watch {
    near: Arc<Near>,
    client: Client,
    ticket: Ticket<Origin>,
    /// The tag of the whole cache, as the entry carries it.
    whole: Tag,
    /// How many reads were sent to another server before this one.
    detours: u64,
    absence: Absence,
}

/// The tag tickets of one read.
type TagTickets = Vec<(TagId, Ticket<Origin>)>;

impl Watch {
    /// Begins to watch `key`. `None` if it cannot be watched yet.
    fn begin(cache: &Cache, near: &Arc<Near>, key: &Key, absence: Absence) -> Result<Option<Self>> {
        let client = &cache.client;
        let whole = &cache.names()?.whole;
        // An entry of the other ring is judged by the tags there.
        if client.copies(key).read == ReadOther::WhenMissing {
            return Ok(None);
        }
        let detours = client.detours();
        Ok(near.ticket(client, key).map(|ticket| Self {
            near: near.clone(),
            client: client.clone(),
            ticket,
            whole: whole.colocated(client, key),
            detours,
            absence,
        }))
    }

    /// Takes tickets for the tags that are read together with the entry.
    fn tickets(&self, declared: &[Tag]) -> TagTickets {
        let tags = std::iter::once(&self.whole).chain(declared);
        let ticket = |tag: &Tag| Some((tag.id, self.near.ticket(&self.client, &tag.key)?));
        tags.filter_map(ticket).collect()
    }

    /// Reads the entry alone, if the tags that it should have are known. `None` if they do not
    /// suffice to judge it, or say that it is invalid: they may be behind.
    async fn read_alone<V: DeserializeOwned>(
        &self,
        cache: &Cache,
        declared: &[Tag],
        deadline: Deadline,
    ) -> Result<Option<Reading<Traced<V>>>> {
        let generation = |tag: &Tag| {
            let known = self.near.tag(&self.client, &tag.key)?;
            Some(known.generation)
        };
        if generation(&self.whole).is_none() {
            return Ok(None);
        }
        if declared.iter().any(|tag| generation(tag).is_none()) {
            return Ok(None);
        }
        let timer = cache.setup.counts.time(Timed::Read);
        let key = slice::from_ref(&self.ticket.key);
        let found = self.client.read(key, deadline).await?;
        let entry = found.first().and_then(Option::as_deref);
        let known = |tag: TagId| self.known(tag).map(|tag| tag.generation);
        let decoder = cache.setup.stack.decoder(self.ticket.key.as_str());
        let rules = Rules {
            whole: Some(self.whole.id),
            want: Want::Fresh,
            draw: None,
            left: Left::Unread,
        };
        let judged = judge_by(entry, rules, known, &decoder);
        timer.stop();
        Ok(match judged {
            Judged::Hit(traced) => Some(Reading::Hit(traced)),
            // A load must know more of the tags than is known here, and of a stale window the time.
            _ => None,
        })
    }

    /// The tag of this id, as the entry carries it, if it is known.
    fn known(&self, tag: TagId) -> Option<Arc<KnownTag<Origin>>> {
        self.near.tag(&self.client, &self.key_of(tag))
    }

    fn key_of(&self, tag: TagId) -> Key {
        match tag == self.whole.id {
            true => self.whole.key.clone(),
            false => self.client.namespace().tag(tag),
        }
    }

    /// Keeps what was read, in the background, and returns it.
    fn end<V: Send + Sync + 'static>(
        self,
        cache: &Cache,
        tickets: TagTickets,
        reading: Reading<Traced<V>>,
        deadline: Deadline,
    ) -> Reading<Arc<V>> {
        let found = match (valid(&reading), &reading) {
            (Some(traced), _) if self.near.takes(traced.bytes) => Found {
                value: Some(traced.value.clone()),
                stamps: traced.stamps.clone(),
                bytes: traced.bytes,
                stale_for: traced.stale_for,
                cost: traced.cost,
                revision: Some(traced.revision),
            },
            (None, reading) if self.absence == Absence::Kept && finds_nothing(reading) => {
                Found::default()
            }
            _ => return unwatched(&self.near, &self.ticket.key, reading),
        };
        self.near.forget_older(&self.ticket.key, found.revision);
        let mut tags = Vec::with_capacity(found.stamps.len());
        for stamp in &found.stamps {
            let generation = Generation::from_stamp(stamp.generation);
            let ticket = tickets.iter().find(|(id, _)| id.0 == stamp.tag);
            tags.push(match ticket {
                // It was read with the entry, and the entry is valid: this is what was read.
                Some((_, ticket)) => self.near.keep_tag(&self.client, ticket, generation),
                None => self
                    .known(TagId(stamp.tag))
                    .filter(|known| known.generation == generation),
            });
        }
        let counts = cache.setup.counts.clone();
        let spawner = cache.client.spawner();
        spawner.spawn(keep(self, found, tags, counts, deadline));
        value_of(reading)
    }
}

/// What was found at a key. By default, nothing.
#[derive(Default)]
struct Found {
    value: Option<Arc<dyn Any + Send + Sync>>,
    stamps: Vec<Stamp>,
    bytes: usize,
    stale_for: Duration,
    cost: Duration,
    revision: Option<u64>,
}

/// Keeps what a read has found. The read spawns this task. It ends by the deadline of the read, and
/// if it panics, nothing is kept.
async fn keep(
    watch: Watch,
    found: Found,
    tags: Vec<Option<Arc<KnownTag<Origin>>>>,
    counts: Arc<Counts>,
    deadline: Deadline,
) {
    let revision = found.revision;
    let kept = match fill(&watch, found, tags, deadline).await {
        Ok(Some(fill)) => watch.near.keep(&watch.client, &watch.ticket, fill),
        Ok(None) => {
            watch.near.forget(&watch.ticket.key);
            Kept::Refused
        }
        Err(error) => {
            watch.near.forget_older(&watch.ticket.key, revision);
            tracing::debug!(target: "hedgerow::cache", %error, "not kept near");
            return;
        }
    };
    if kept == Kept::Refused {
        counts.near_refused.one_more();
    }
}

/// Completes what was found by its life in Redis and by the tags that are not known yet. `None` if
/// it may not be kept.
async fn fill(
    watch: &Watch,
    found: Found,
    tags: Vec<Option<Arc<KnownTag<Origin>>>>,
    deadline: Deadline,
) -> Result<Option<Fill>> {
    let Watch { near, client, .. } = watch;
    // Redis keeps the entry for so long after it has said so, hence longer after this.
    let since = Instant::now();
    let life = async {
        let left = plain("PTTL", &watch.ticket.key);
        let left = client.command(left, &watch.ticket.key, Retry::Reads, deadline);
        integer(left.await?)
    };
    let mut unknown = Vec::new();
    for (stamp, known) in found.stamps.iter().zip(&tags) {
        if known.is_none() {
            let key = watch.key_of(TagId(stamp.tag));
            let Some(ticket) = near.ticket(client, &key) else {
                return Ok(None);
            };
            unknown.push((ticket, Generation::from_stamp(stamp.generation)));
        }
    }
    let generations = async {
        let keys: Vec<Key> = unknown.iter().map(|(it, _)| it.key.clone()).collect();
        match keys.is_empty() {
            true => Ok(Vec::new()),
            false => client.read(&keys, deadline).await,
        }
    };
    let (life, generations) = try_join(life, generations).await?;
    let mut tags: Vec<_> = tags.into_iter().flatten().collect();
    for ((ticket, stamped), present) in unknown.iter().zip(generations) {
        // Read after the entry, so it may judge the entry.
        if TagValue::of(present.as_ref()).map(TagValue::generation) != Some(*stamped) {
            return Ok(None);
        }
        let Some(tag) = near.keep_tag(client, ticket, *stamped) else {
            return Ok(None);
        };
        tags.push(tag);
    }
    // A read that was sent on to another server is not tracked there.
    if client.detours() != watch.detours {
        return Ok(None);
    }
    let life = match (&found.value, life) {
        (None, Some(NO_KEY)) | (Some(_), Some(NO_END)) => None,
        // It was stored meanwhile, or is of another type, which a read takes for a missing key.
        (None, _) | (Some(_), None) => return Ok(None),
        (Some(_), Some(left)) => match u64::try_from(left) {
            Ok(left) => {
                let fresh = Duration::from_millis(left).saturating_sub(found.stale_for);
                Some(fresh.saturating_sub(BEGUN))
            }
            // It has gone meanwhile.
            Err(_) => return Ok(None),
        },
    };
    Ok(Some(Fill {
        value: found.value,
        tags: tags.into(),
        revision: found.revision,
        cost: found.cost,
        life,
        since,
        bytes: found.bytes,
    }))
}

/// `PTTL` counts whole milliseconds, of which the first may nearly be over.
const BEGUN: Duration = Duration::from_millis(1);

/// What `PTTL` answers where there is no key, and for a key without a TTL.
const NO_KEY: i64 = -2;
const NO_END: i64 = -1;

/// The value alone, as callers get it.
fn value_of<V>(reading: Reading<Traced<V>>) -> Reading<Arc<V>> {
    match reading {
        Reading::Hit(traced) => Reading::Hit(traced.value),
        Reading::Old(old, miss) => {
            let Old { taken, stamps, age } = old;
            let taken = taken.value;
            Reading::Old(Old { taken, stamps, age }, miss)
        }
        Reading::Miss(miss) => Reading::Miss(miss),
    }
}
