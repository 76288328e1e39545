//! `remove_matching` and `purge`: remove entries by the pattern of their keys.
//!
//! Invariant: when the call returns, nothing is left that was stored, or whose load had begun,
//! before the call. Two walks make sure of that: over load leases, then over values. A load that
//! was under way at the beginning either has its lease during all of the first walk, which ends it,
//! or it has stored its value before the second walk, which removes it. Users call this.

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use futures::{FutureExt as _, join};

use super::walk::{Aim, Batch, Seen, Versions, Walk};
use crate::cache::Cache;
use crate::cache::entry_keys::{Cleared, EntryKeys};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryAt, Key};
use crate::topology::Server;

/// The removal of entries by pattern, made by [`Cache::remove_matching`] or [`Cache::purge`]. Await
/// it to remove them.
#[must_use = "nothing is removed until it is awaited"]
pub struct RemoveMatching {
    what: What,
    on_progress: Option<OnProgress>,
}

type OnProgress = Box<dyn FnMut(Removed) + Send>;

/// What is removed.
#[derive(Clone)]
struct What {
    cache: Cache,
    pattern: String,
    versions: Versions,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Remove,
    DryRun,
}

/// How far a removal has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// Entries that matched and were removed or, in a [dry run](RemoveMatching::dry_run), would
    /// have been.
    pub entries: u64,
    /// Steps of the walks so far. Each looks at about 1,000 keys of one server.
    pub steps: u64,
}

impl Cache {
    /// Removes all entries whose keys match `pattern`, and ends loads of such keys that are under
    /// way. Returns how many entries were removed. Patterns are those of [`keys`](Self::keys).
    ///
    /// This walks twice over all keys of all servers, in steps of about 1,000: first over the
    /// leases of loads, which it ends, then over the entries, which it removes step by step. It is
    /// made for operators and clean-ups: in the course of requests, use
    /// [tags](Self::invalidate_tags), whose invalidation costs one command. Reads of other entries
    /// go on meanwhile.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let would = cache.remove_matching("user:7:*").dry_run().await?;
    /// let removed = cache.remove_matching("user:7:*").await?;
    /// println!("{removed} of about {would}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Promise
    /// No read that begins after this has returned is given a value that was stored, or whose load
    /// had begun, before the call. A value whose load begins during the call may stay. In a
    /// cluster, keys of a slot that moves meanwhile may be missed, and so may entries that
    /// [`move_version`](Self::move_version) moves meanwhile.
    ///
    /// # Errors
    /// As [`keys`](Self::keys), and whatever Redis refuses or does not answer. What was removed
    /// until then stays removed. It is safe to call again. The number that is returned may be too
    /// small: if an answer is lost, the step is sent again, and finds what it has removed gone. The
    /// [deadline](Self::deadline) of the cache is that of each step, and each step keeps trying
    /// until then while Redis is out. A value that is no string was not written by a cache, and is
    /// left alone. If a load of such a key is under way, the call returns `WrongType` when all
    /// others are removed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the entries removed. So a
    /// [timeout](tokio::time::timeout) around it bounds the walk as a whole.
    pub fn remove_matching(&self, pattern: &str) -> RemoveMatching {
        RemoveMatching {
            what: What {
                cache: self.clone(),
                pattern: pattern.to_owned(),
                versions: Versions::Own,
                mode: Mode::Remove,
            },
            on_progress: None,
        }
    }

    /// Removes all entries of this cache, of all [versions](Self::version), and frees their memory.
    /// [`clear`](Self::clear) is one command and leaves the entries in memory until their TTL ends.
    /// The [indexes of tags](Self::index_tags) stay until the last entry in them would have ended.
    ///
    /// # Errors
    /// As [`remove_matching`](Self::remove_matching).
    ///
    /// # Cancel safety
    /// As [`remove_matching`](Self::remove_matching).
    pub fn purge(&self) -> RemoveMatching {
        let mut all = self.remove_matching("*");
        all.what.versions = Versions::All;
        all
    }
}

impl RemoveMatching {
    /// Removes nothing, and counts the entries that match. It walks once. Entries that come or go
    /// meanwhile may be counted or not, and after a lost connection some may be counted twice.
    pub fn dry_run(mut self) -> Self {
        self.what.mode = Mode::DryRun;
        self
    }

    /// Sets what is called after each step, on the task of the caller. It must not block.
    pub fn on_progress(mut self, call: impl FnMut(Removed) + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(call));
        self
    }

    /// Returns the removal as a stream, which returns how far it has come after each step. Dropping
    /// the stream ends the removal.
    pub fn steps(self) -> Steps {
        let walks: &[Aim] = match self.what.mode {
            Mode::Remove => &[Aim::EndLoads, Aim::Remove],
            Mode::DryRun => &[Aim::List],
        };
        let removal = Removal {
            what: self.what,
            on_progress: self.on_progress,
            removed: Removed::default(),
            seen: Seen::default(),
            walk: None,
            ahead: None,
            walks,
            foreign: None,
        };
        let steps = stream::try_unfold(removal, |mut removal| async {
            let step = removal.step().await?;
            Ok(step.then_some((removal.removed, removal)))
        });
        Steps(steps.boxed())
    }
}

/// The steps of a removal by pattern, made by [`RemoveMatching::steps`]. A stream.
#[must_use = "nothing is removed until it is polled"]
pub struct Steps(BoxStream<'static, Result<Removed>>);

impl Steps {
    /// Makes the next step, and returns how far the removal has come. `None` at the end.
    ///
    /// # Errors
    /// As [`Cache::remove_matching`] says. The stream ends after an error.
    ///
    /// # Cancel safety
    /// Safe: the next call repeats a step that was dropped.
    pub async fn next(&mut self) -> Option<Result<Removed>> {
        self.0.next().await
    }
}

impl Stream for Steps {
    type Item = Result<Removed>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Steps")
    }
}

impl IntoFuture for RemoveMatching {
    type Output = Result<u64>;
    type IntoFuture = BoxFuture<'static, Result<u64>>;

    fn into_future(self) -> Self::IntoFuture {
        let mut steps = self.steps();
        Box::pin(async move {
            let mut removed = Removed::default();
            while let Some(step) = steps.next().await {
                removed = step?;
            }
            Ok(removed.entries)
        })
    }
}

impl fmt::Debug for RemoveMatching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        f.debug_struct("RemoveMatching")
            .field("cache", &what.cache)
            // It is made of names.
            .field("pattern", &what.cache.client.shown(&what.pattern).as_str())
            .field("versions", &what.versions)
            .field("mode", &what.mode)
            .finish_non_exhaustive()
    }
}

/// A removal under way.
struct Removal {
    what: What,
    on_progress: Option<OnProgress>,
    removed: Removed,
    /// The entries that a dry run has counted.
    seen: Seen,
    /// `None` before a walk begins.
    walk: Option<Walk>,
    /// What the step after the last one has found. `None` if it was not made yet.
    ahead: Option<Result<Option<Batch>>>,
    /// What the walks that have not ended are for.
    walks: &'static [Aim],
    /// The first key that is not ours. It does not keep the others from being removed.
    foreign: Option<Error>,
}

impl Removal {
    /// Makes one step. Returns `false` at the end.
    async fn step(&mut self) -> Result<bool> {
        while let Some((aim, rest)) = self.walks.split_first() {
            let mut walk = match self.walk.take() {
                Some(walk) => walk,
                None => self.what.walk(*aim)?,
            };
            let found = match self.ahead.take() {
                Some(found) => found,
                None => walk.next().await,
            };
            let Some(found) = found.map_err(|error| self.in_part(error))? else {
                self.walks = rest;
                continue;
            };
            // The server makes the next step while these entries are removed.
            let (ahead, done) = join!(walk.next(), self.deal_with(*aim, &found));
            (self.walk, self.ahead) = (Some(walk), Some(ahead));
            self.removed.entries += done?;
            self.removed.steps += 1;
            if let Some(call) = &mut self.on_progress {
                call(self.removed);
            }
            return Ok(true);
        }
        self.foreign.take().map_or(Ok(false), Err)
    }

    /// Removes or counts what a step has found. Returns how many entries there were.
    async fn deal_with(&mut self, aim: Aim, found: &Batch) -> Result<u64> {
        match aim {
            Aim::EndLoads => self.end_loads(found).await,
            Aim::Remove => self.what.remove(found).await,
            Aim::List => {
                let new = found
                    .entries()
                    .filter(|it| self.seen.is_new(it.version, &it.name));
                Ok(new.count() as u64)
            }
        }
    }

    /// Ends the loads that a step has found. Returns how many values were removed with them.
    async fn end_loads(&mut self, found: &Batch) -> Result<u64> {
        let places = found.entries().map(|entry| self.what.place(&entry));
        let places: Vec<EntryKeys> = places.collect::<Result<_>>()?;
        let (mut removed, mut failed) = (0, None);
        let cache = &self.what.cache;
        for outcome in cache.all_removed(&places, cache.deadline_now()).await {
            match outcome {
                Ok(Cleared::Removed) => removed += 1,
                Ok(Cleared::Absent) => {}
                // The others of the step are removed all the same.
                Err(error) if error.kind() == ErrorKind::WrongType => {
                    self.foreign.get_or_insert(error);
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(removed), |error| Err(error.after_a_part()))
    }

    /// The error of a walk. What earlier steps have removed is gone.
    fn in_part(&self, error: Error) -> Error {
        let has_removed = self.what.mode == Mode::Remove && self.removed.steps > 0;
        match has_removed {
            true => error.after_a_part(),
            false => error,
        }
    }
}

impl What {
    fn walk(&self, aim: Aim) -> Result<Walk> {
        Walk::new(&self.cache, &self.pattern, self.versions, aim)
    }

    /// Removes the values that a step has found. Returns how many there were.
    async fn remove(&self, found: &Batch) -> Result<u64> {
        let client = &self.cache.client;
        let keys = found.entries().map(|entry| match &found.server {
            // Where it was found, whatever the ring says.
            Server::Shard(shard) => entry.key.on(*shard),
            Server::Only | Server::Primary(_) => entry.key,
        });
        let keys: Vec<Key> = keys.collect();
        let mut groups: BTreeMap<usize, Vec<&Key>> = BTreeMap::new();
        for key in &keys {
            groups
                .entry(client.script_group(key))
                .or_default()
                .push(key);
        }
        let deadline = self.cache.deadline_now().keep_trying().reserved();
        let mut calls = Vec::with_capacity(groups.len());
        for group in groups.values() {
            for part in group.chunks(MOST_AT_ONCE) {
                calls.push(client.unlink(part, deadline).boxed());
            }
        }
        let mut calls = stream::iter(calls).buffer_unordered(MOST_CALLS);
        let (mut removed, mut failed) = (0, None);
        while let Some(outcome) = calls.next().await {
            match outcome {
                Ok(count) => removed += count,
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(removed), |error| Err(error.after_a_part()))
    }

    fn place(&self, entry: &EntryAt) -> Result<EntryKeys> {
        let name = self.cache.client.name(&entry.name);
        match entry.version == self.cache.setup.version {
            true => self.cache.place(name),
            false => self.cache.clone().version(entry.version).place(name),
        }
    }
}

/// How many values one command removes, so that other calls do not wait long behind it: the server
/// frees a value of 1 MiB in about 30 µs.
const MOST_AT_ONCE: usize = 100;

/// How many such commands are under way at a time.
const MOST_CALLS: usize = 64;
