//! `remove_matching` and `purge`: remove entries by the pattern of their keys.
//!
//! Invariant: when the call returns, nothing is left that was stored, or whose load had begun,
//! before the call. Two walks make sure of that. A load that was under way at the beginning either
//! has its lease during all of the first walk, which ends it, or it has stored its value before the
//! second walk, which removes it. Users call this.

use std::fmt;
use std::future::IntoFuture;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};

use super::walk::{Versions, Walk};
use crate::cache::Cache;
use crate::cache::entry_keys::{Cleared, EntryKeys};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryAt, Rooms};

/// The removal of entries by pattern, made by [`Cache::remove_matching`] or [`Cache::purge`]. Await
/// it to remove them.
#[must_use = "nothing is removed until it is awaited"]
pub struct RemoveMatching {
    cache: Cache,
    pattern: String,
    versions: Versions,
    mode: Mode,
    on_progress: Option<OnProgress>,
}

type OnProgress = Box<dyn FnMut(Removed) + Send + Sync>;

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
    /// This walks twice over all keys of all servers, in steps of about 1,000, and removes what it
    /// finds step by step. It is made for operators and clean-ups: in the course of requests, use
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
    /// cluster, keys of a slot that moves meanwhile may be missed.
    ///
    /// # Errors
    /// As [`keys`](Self::keys), and whatever Redis refuses or does not answer. What was removed
    /// until then stays removed. It is safe to call again. The [deadline](Self::deadline) of the
    /// cache is that of each step. A key that holds another type is left alone; all others are
    /// removed, and then the call returns `WrongType`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the entries removed.
    pub fn remove_matching(&self, pattern: &str) -> RemoveMatching {
        RemoveMatching {
            cache: self.clone(),
            pattern: pattern.to_owned(),
            versions: Versions::Own,
            mode: Mode::Remove,
            on_progress: None,
        }
    }

    /// Removes all entries of this cache, of all [versions](Self::version), and frees their memory.
    /// [`clear`](Self::clear) is one command and leaves the entries in memory until their TTL ends.
    ///
    /// # Errors
    /// As [`remove_matching`](Self::remove_matching).
    ///
    /// # Cancel safety
    /// As [`remove_matching`](Self::remove_matching).
    pub fn purge(&self) -> RemoveMatching {
        RemoveMatching {
            versions: Versions::All,
            ..self.remove_matching("*")
        }
    }
}

impl RemoveMatching {
    /// Removes nothing, and counts the entries that match. It walks once. Entries that come or go
    /// meanwhile may be counted or not.
    pub fn dry_run(mut self) -> Self {
        self.mode = Mode::DryRun;
        self
    }

    /// Sets what is called after each step, on the task of the caller. It must not block.
    pub fn on_progress(mut self, call: impl FnMut(Removed) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Box::new(call));
        self
    }

    /// Returns the removal as a stream, which returns how far it has come after each step. The last
    /// item is the result. Dropping the stream ends the removal.
    pub fn steps(self) -> impl Stream<Item = Result<Removed>> + Send + 'static {
        self.stepwise()
    }

    fn stepwise(self) -> BoxStream<'static, Result<Removed>> {
        let removal = Removal {
            removed: Removed::default(),
            walk: None,
            foreign: None,
            walks_left: match self.mode {
                Mode::Remove => 2,
                Mode::DryRun => 1,
            },
            what: self,
        };
        stream::try_unfold(removal, |mut removal| async {
            let step = removal.step().await?;
            Ok(step.then_some((removal.removed, removal)))
        })
        .boxed()
    }
}

impl IntoFuture for RemoveMatching {
    type Output = Result<u64>;
    type IntoFuture = BoxFuture<'static, Result<u64>>;

    fn into_future(self) -> Self::IntoFuture {
        let mut steps = self.stepwise();
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
        f.debug_struct("RemoveMatching")
            .field("cache", &self.cache)
            .field("pattern", &self.pattern)
            .field("versions", &self.versions)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// A removal under way.
struct Removal {
    what: RemoveMatching,
    removed: Removed,
    /// `None` before a walk begins.
    walk: Option<Walk>,
    walks_left: u32,
    /// The first key that is not ours. It does not keep the others from being removed.
    foreign: Option<Error>,
}

impl Removal {
    /// Makes one step. Returns `false` at the end.
    async fn step(&mut self) -> Result<bool> {
        while self.walks_left > 0 {
            let walk = match &mut self.walk {
                Some(walk) => walk,
                unbegun => unbegun.insert(self.what.walk()?),
            };
            let Some(found) = walk.next().await? else {
                self.walk = None;
                self.walks_left -= 1;
                continue;
            };
            self.removed.steps += 1;
            let (removed, foreign) = self.what.handle(found).await?;
            self.removed.entries += removed;
            self.foreign = self.foreign.take().or(foreign);
            if let Some(call) = &mut self.what.on_progress {
                call(self.removed);
            }
            return Ok(true);
        }
        self.foreign.take().map_or(Ok(false), Err)
    }
}

impl RemoveMatching {
    fn walk(&self) -> Result<Walk> {
        let rooms = match self.mode {
            Mode::Remove => Rooms::ValuesAndLeases,
            Mode::DryRun => Rooms::Values,
        };
        Walk::new(&self.cache, &self.pattern, rooms, self.versions)
    }

    /// Removes what a step has found. Returns how many entries that were, and the error of a key
    /// that is not ours.
    async fn handle(&self, found: Vec<EntryAt>) -> Result<(u64, Option<Error>)> {
        if self.mode == Mode::DryRun {
            return Ok((found.len() as u64, None));
        }
        let places: Result<Vec<EntryKeys>> = found.iter().map(|it| self.place(it)).collect();
        let deadline = self.cache.deadline_now();
        let (mut removed, mut foreign, mut failed) = (0, None, None);
        for outcome in self.cache.all_removed(&places?, deadline).await {
            match outcome {
                Ok(Cleared::Removed) => removed += 1,
                Ok(Cleared::Absent) => {}
                Err(error) if error.kind() == ErrorKind::WrongType => foreign = Some(error),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok((removed, foreign)), |error| Err(error.in_part()))
    }

    fn place(&self, entry: &EntryAt) -> Result<EntryKeys> {
        let name = self.cache.client.name(&entry.name);
        match entry.version == self.cache.setup.version {
            true => self.cache.place(name),
            false => self.cache.clone().version(entry.version).place(name),
        }
    }
}
