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

mod elsewhere;
mod timed;

use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use serde::de::DeserializeOwned;

use super::answers::{Answers, Others, Place, Undecided};
use super::judge::{Left, Taken, Want, Why};
use super::reading::{Gone, Miss, ReadFrom, Reading, snapshot};
use super::wanted::{Asked, Ring, Wanted};
use crate::cache::Cache;
use crate::cache::stats::Timed;
use crate::client::Client;
use crate::codec::{HEADER, Stack, Unreadable};
use crate::error::{Error, Result};
use crate::key::{Key, TagId};
use crate::net::pipeline::replies::Values;
use crate::script::script;
use crate::tags::{Snapshot, Tag};
use crate::time::Deadline;

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
    let _timer = cache.setup.counts.time(Timed::Read);
    // In place of a list: nearly every read is of one entry.
    let mut reading = None;
    let (keys, place) = (slice::from_ref(key), slice::from_mut(&mut reading));
    fetch.look(keys, place).await?;
    fetch.look_elsewhere(keys, place).await?;
    only(reading)
}

/// Reads one entry for a load: also one that is to be loaded anew, as `want` says. The caller
/// measures it: this future is the largest of a hit.
pub(in crate::cache) fn read_old<'f, T: Taken>(
    cache: &'f Cache,
    key: &'f Key,
    tags: &'f [Tag],
    how: (ReadFrom, Want),
    deadline: Deadline,
) -> impl Future<Output = Result<Reading<T>>> + use<'f, T> {
    // Made here, so that the future need not hold what it is made of, too.
    let fetch = Fetch::wanting(cache, tags, how, deadline);
    async move {
        let fetch = fetch.as_ref().map_err(Clone::clone)?;
        let mut reading = None;
        let (keys, place) = (slice::from_ref(key), slice::from_mut(&mut reading));
        fetch.look(keys, place).await?;
        fetch.look_elsewhere(keys, place).await?;
        only(reading)
    }
}

/// Reads several entries as [`read_old`] does, each for itself: a server that cannot be read is the
/// error of those entries that need it.
pub(in crate::cache) async fn read_each<T: Taken>(
    cache: &Cache,
    keys: &[Key],
    tags: &[Tag],
    how: (ReadFrom, Want),
    deadline: Deadline,
) -> Result<Vec<Result<Reading<T>>>> {
    let fetch = Fetch {
        failing: Failing::Each,
        ..Fetch::wanting(cache, tags, how, deadline)?
    };
    let _timer = cache.setup.counts.time(Timed::Read);
    // By server, so that none waits for what another one says of its entries.
    let parts = cache.client.by_server(keys).into_iter().map(|part| async {
        let own: Vec<Key> = part.iter().map(|at| keys[*at].clone()).collect();
        let mut readings = unread(&own);
        fetch.look(&own, &mut readings).await?;
        fetch.look_elsewhere(&own, &mut readings).await?;
        Ok((part, readings))
    });
    let mut readings = unread(keys);
    for part in join_all(parts).await {
        let (part, found) = part?;
        for (at, reading) in part.into_iter().zip(found) {
            readings[at] = reading;
        }
    }
    Ok(readings.into_iter().map(only).collect())
}

/// Does the same without tags, and only where the client's own ring places the entry, for a verb
/// that changes it there.
pub(in crate::cache) async fn read_here<T: Taken>(
    cache: &Cache,
    key: &Key,
    deadline: Deadline,
) -> Result<Reading<T>> {
    let fetch = Fetch::new(cache, &[], ReadFrom::Primary, deadline)?;
    let _timer = cache.setup.counts.time(Timed::Read);
    let mut reading = None;
    fetch
        .look(slice::from_ref(key), slice::from_mut(&mut reading))
        .await?;
    only(reading)
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
    let _timer = cache.setup.counts.time(Timed::Read);
    let mut readings = unread(keys);
    fetch.look(keys, &mut readings).await?;
    fetch.look_elsewhere(keys, &mut readings).await?;
    readings.into_iter().map(only).collect()
}

/// Returns the reading in a place that a look has filled in.
fn only<T>(reading: Place<T>) -> Result<Reading<T>> {
    debug_assert!(reading.is_some(), "there is a reading for each key");
    reading.unwrap_or_else(|| Ok(Reading::Miss(Miss::default())))
}

/// Returns a place for the reading of each key.
fn unread<T>(keys: &[Key]) -> Vec<Place<T>> {
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
    want: Want,
    time: Time,
    failing: Failing,
}

/// Whether a read also asks how long its entries still live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    NotAsked,
    /// At the same time.
    Asked,
    /// Before it reads them.
    AskedBefore,
}

/// What it means for a read of several entries that a server cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    /// The read fails.
    All,
    /// The entries that need the server fail.
    Each,
}

impl<'f> Fetch<'f> {
    fn new(
        cache: &'f Cache,
        declared: &'f [Tag],
        from: ReadFrom,
        deadline: Deadline,
    ) -> Result<Self> {
        let whole = cache.whole()?;
        Ok(Self {
            cache,
            tags: Asked { whole, declared },
            stack: &cache.setup.stack,
            deadline,
            ring: Ring::Own,
            from,
            want: Want::Fresh,
            time: Time::NotAsked,
            failing: Failing::All,
        })
    }

    /// Asks for the time at once if it is sure to be needed.
    fn wanting(
        cache: &'f Cache,
        declared: &'f [Tag],
        (from, want): (ReadFrom, Want),
        deadline: Deadline,
    ) -> Result<Self> {
        let time = match want.early() {
            Some(_) => Time::Asked,
            None => Time::NotAsked,
        };
        let fetch = Self::new(cache, declared, from, deadline)?;
        Ok(Self {
            want,
            time,
            ..fetch
        })
    }

    /// Reads and judges. There is a place in `readings` for each key.
    async fn look<T: Taken>(&self, keys: &[Key], readings: &mut [Place<T>]) -> Result<()> {
        // This is boxed, and so is what follows the read: the future of a hit stays small.
        if self.from == ReadFrom::PreferReplica {
            return Box::pin(self.look_at_replica(keys, readings)).await;
        }
        if self.time == Time::AskedBefore {
            return Box::pin(self.look_with_time_before(keys, readings)).await;
        }
        // The counts are those of all handles of this name. Bare values have no windows.
        let may_have_windows = self.tags.whole.is_some();
        let met_a_window = may_have_windows && self.cache.setup.counts.met_a_window();
        if self.time == Time::Asked || met_a_window {
            return Box::pin(self.look_with_time(keys, readings)).await;
        }
        let client = &self.cache.client;
        let wanted = Wanted::new(client, self.tags, keys, self.ring);
        // Entries and tags in one read, so that a hit costs one trip.
        let (found, lost) = match self.failing {
            Failing::All => (client.read(&wanted.keys, self.deadline).await?, Vec::new()),
            Failing::Each => Box::pin(self.found(&wanted.keys)).await?,
        };
        let answers = self.answers(wanted, (found, lost), Vec::new());
        let open = answers.judged(readings);
        if open.is_empty() {
            return Ok(());
        }
        Box::pin(self.settle(open, keys, answers, readings)).await
    }

    /// Reads `keys`. Also returns those that could not be read, with the position of each, if the
    /// read goes on without them.
    async fn found(&self, keys: &[Key]) -> Result<(Values, Vec<(usize, Error)>)> {
        let client = &self.cache.client;
        if self.failing == Failing::All {
            return Ok((client.read(keys, self.deadline).await?, Vec::new()));
        }
        let mut lost = Vec::new();
        let found = client.read_each(keys, self.deadline).await;
        let found = found.into_iter().enumerate().map(|(at, value)| {
            value.unwrap_or_else(|error| {
                lost.push((at, error));
                None
            })
        });
        Ok((found.collect(), lost))
    }

    fn answers(
        &self,
        wanted: Wanted,
        (found, lost): (Values, Vec<(usize, Error)>),
        left: Vec<Left>,
    ) -> Answers<'f> {
        Answers {
            wanted,
            tags: self.tags,
            found,
            lost,
            left,
            want: self.want,
            stack: self.stack,
        }
    }

    /// Reads and judges the keys at the positions `some`.
    async fn look_for_some<T: Taken>(&self, keys: &[Key], some: &[usize]) -> Result<Vec<Place<T>>> {
        let keys: Vec<Key> = some.iter().map(|at| keys[*at].clone()).collect();
        let mut readings = unread(&keys);
        self.look(&keys, &mut readings).await?;
        Ok(readings)
    }

    /// Fills in the readings of the entries that are no hit so far.
    async fn settle<T: Taken>(
        &self,
        mut open: Undecided,
        keys: &[Key],
        // By value, so that the future of a hit has no place for it.
        answers: Answers<'_>,
        readings: &mut [Place<T>],
    ) -> Result<()> {
        self.judge_again(&mut open, &answers, readings).await?;
        let mut discards = Vec::new();
        for (at, why) in open.missed {
            let gone = Gone::of(&why);
            discards.extend(self.missed(&answers.wanted.keys[at], answers.entry(at), why));
            readings[at] = Some(Ok(Reading::Miss(answers.miss(at, gone))));
        }
        for at in open.old {
            if let Some(Ok(Reading::Old(_, miss))) = &mut readings[at] {
                *miss = answers.miss(at, Gone::Dead);
            }
        }
        // Together: one after the other they could use up the time that other entries need.
        join_all(discards).await;
        if open.untimed.is_empty() {
            return Ok(());
        }
        // From now on, reads of this cache ask for the time at once.
        self.cache.setup.counts.meet_a_window();
        let timed = Self {
            time: match answers.left.is_empty() {
                true => Time::Asked,
                // It was asked for, and not answered in time.
                false => Time::AskedBefore,
            },
            ..*self
        };
        let rest = Box::pin(timed.look_for_some(keys, &open.untimed)).await?;
        for (at, reading) in open.untimed.into_iter().zip(rest) {
            readings[at] = reading;
        }
        Ok(())
    }

    /// Reads the generations that entries still need, and judges these entries again.
    async fn judge_again<T: Taken>(
        &self,
        open: &mut Undecided,
        answers: &Answers<'_>,
        readings: &mut [Place<T>],
    ) -> Result<()> {
        if open.needing.is_empty() {
            return Ok(());
        }
        let tags = open.needing.iter().flat_map(|(_, tags)| tags);
        let mut tags: Vec<TagId> = tags.copied().collect();
        // Entries often share their tags. Each is read once.
        tags.sort_unstable();
        tags.dedup();
        // Read after the entries, so these generations may judge them.
        let others = self.present(&tags).await?;
        answers.judged_again(open, &others, readings);
        Ok(())
    }

    /// Returns what tags hold at present that were not read together with the entries.
    async fn present(&self, tags: &[TagId]) -> Result<Others> {
        let client = &self.cache.client;
        let mut others = Others::default();
        // One entry may carry 255 tags, so many entries need many. Each part is read after the
        // entries, so it proves as much as all of them together would.
        for part in tags.chunks(MOST_TAGS_AT_ONCE) {
            let spelt = part
                .iter()
                .map(|tag| self.ring.place(&client.namespace().tag(*tag)));
            let keys: Vec<Key> = spelt.collect();
            let (found, lost) = self.found(&keys).await?;
            others.found.extend(part.iter().copied().zip(found));
            let lost = lost.into_iter().map(|(at, error)| (part[at], error));
            others.lost.extend(lost);
        }
        Ok(others)
    }

    /// Reports an entry that is no hit. Returns what removes it, if it is damaged.
    fn missed<'m>(&'m self, key: &'m Key, entry: &'m [u8], why: Why) -> Option<BoxFuture<'m, ()>> {
        let client = &self.cache.client;
        let shown = || key.shown(client.hide_keys());
        match why {
            Why::Absent | Why::Expired => {}
            Why::Invalidated => {
                tracing::debug!(target: "hedgerow::cache", redis_key = &*shown(), "invalidated");
            }
            Why::Unreadable(Unreadable::Damaged(error)) => {
                tracing::warn!(target: "hedgerow::cache", redis_key = &*shown(), %error, "damaged");
                self.cache.setup.counts.damaged.one_more();
                return Some(Box::pin(discard(client, key, entry, self.deadline)));
            }
            Why::Unreadable(Unreadable::Foreign(error)) => {
                // Not removed: another build, or a caller with another type, may be able to read
                // it.
                self.cache.setup.counts.foreign.one_more();
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
    let mut found = values(&cache.client, tags, deadline).await?;
    found.insert(0, Some(record));
    // The first tag of a store request is that of the whole cache, if it has any.
    let (whole, declared) = match tags.split_first() {
        Some((whole, declared)) => (Some(whole), declared),
        None => (None, tags),
    };
    let tags = Asked { whole, declared };
    let fetch = Fetch {
        cache,
        tags,
        // As the record was written, whatever the values are written in.
        stack: &cache.setup.stack.of_records(),
        deadline,
        ring: Ring::Own,
        from: ReadFrom::Primary,
        want: Want::Fresh,
        time: Time::NotAsked,
        failing: Failing::All,
    };
    let wanted = Wanted::answered(lease, tags);
    let answers = fetch.answers(wanted, (found, Vec::new()), Vec::new());
    let mut reading: Place<Arc<V>> = None;
    let place = slice::from_mut(&mut reading);
    let mut open = answers.judged(place);
    fetch.judge_again(&mut open, &answers, place).await?;
    Ok(match reading {
        Some(Ok(Reading::Hit(value))) => Arc::into_inner(value),
        _ => None,
    })
}

/// Reads the present generations of `tags`.
pub(in crate::cache) async fn generations(
    client: &Client,
    tags: &[Tag],
    deadline: Deadline,
) -> Result<Snapshot> {
    Ok(snapshot(&values(client, tags, deadline).await?))
}

/// Reads what `tags` hold at present.
async fn values(client: &Client, tags: &[Tag], deadline: Deadline) -> Result<Values> {
    // Bare values have none.
    if tags.is_empty() {
        return Ok(Values::new());
    }
    let keys: Vec<_> = tags.iter().map(|tag| tag.key.clone()).collect();
    client.read(&keys, deadline).await
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
