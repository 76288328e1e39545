//! `invalidate_tags` and `clear`: invalidate many values at once.
//!
//! Invariant: both send one command per key of a tag, however many values carry the tag. All tag
//! names of a cache are checked and made distinct here. Users call this.

use std::collections::HashSet;
use std::future::IntoFuture;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::cache::Cache;
use crate::codec::MOST_STAMPS;
use crate::error::{Error, Result};
use crate::tags::{self, Invalidation, Mode, SLACK, Tag};

/// An invalidation, made by [`Cache::invalidate_tags`] or [`Cache::clear`]. Await it.
#[derive(Debug)]
#[must_use = "nothing is invalidated until it is awaited"]
pub struct Invalidate {
    cache: Cache,
    /// If one is invalid, the error is returned when this is awaited.
    tags: Result<Vec<Tag>>,
    mode: Mode,
    hold: Duration,
}

impl Cache {
    /// Invalidates every value that carries any of `tags`, in any cache of the namespace. This
    /// sends one command per tag, in parallel, however many values carry the tag.
    ///
    /// # Errors
    /// `InvalidInput` if a tag is invalid; nothing is sent then. Also whatever Redis refuses or
    /// does not answer: [`Error::key`](crate::Error::key) names the tags that failed, and the
    /// others are invalidated. It is safe to call again with all of them.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the tags invalidated. It is safe to call again.
    pub fn invalidate_tags(&self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Invalidate {
        Invalidate::of(self.clone(), self.tags(tags))
    }

    /// Invalidates every value of this cache, with one command, or one per shard, or 16 in a
    /// cluster.
    ///
    /// # Errors
    /// Whatever Redis refuses or does not answer. If there are several servers, the values on those
    /// that were reached are invalidated, and it is safe to call again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the cache cleared, not cleared, or cleared in part.
    pub fn clear(&self) -> Invalidate {
        let whole = self.names().map(|names| vec![names.whole.clone()]);
        Invalidate::of(self.clone(), whole)
    }

    /// The tags called `names`, each once.
    fn tags(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Tag>> {
        self.distinct(names, usize::MAX)
    }

    /// The tags of a value that is to be stored: as [`tags`](Self::tags), and no more than fit
    /// beside the tag of the whole cache.
    pub(in crate::cache) fn labels(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Vec<Tag>> {
        self.distinct(names, MOST_STAMPS - 1)
    }

    /// As [`tags`](Self::tags). Fails as soon as `names` gives more than `most` different ones.
    fn distinct(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
        most: usize,
    ) -> Result<Vec<Tag>> {
        let names = names.into_iter();
        let mut tags: Vec<Tag> = Vec::with_capacity(names.size_hint().0.min(FEW));
        // Used only once there are too many tags to look at each.
        let mut seen = HashSet::new();
        for (count, name) in names.enumerate() {
            // Without this, an endless list that repeats the same few names would never end.
            if count / 16 > most {
                return Err(Error::invalid(format!(
                    "over {count} names of tags on one value; name each of them once"
                )));
            }
            let tag = self.state().tags.named(&self.client, name.as_ref())?;
            let known = match tags.len() {
                0..FEW => tags.iter().any(|known| known.id == tag.id),
                FEW => {
                    seen.extend(tags.iter().map(|tag| tag.id));
                    !seen.insert(tag.id)
                }
                _ => !seen.insert(tag.id),
            };
            if known {
                continue;
            }
            if tags.len() == most {
                return Err(Error::invalid(format!(
                    "{} tags on one value, or more; use at most {most}",
                    most + 1
                )));
            }
            tags.push(tag);
        }
        Ok(tags)
    }
}

impl Invalidate {
    fn of(cache: Cache, tags: Result<Vec<Tag>>) -> Self {
        Self {
            cache,
            tags,
            mode: Mode::Hard,
            hold: Duration::ZERO,
        }
    }

    /// Lets values with a stale window still be served stale, by calls of
    /// [`memoize`](Cache::memoize) that allow it: as if their TTL had ended now. Values without
    /// such a window are gone.
    ///
    /// Without this, an invalidation is hard: what was loaded before it is never served again. A
    /// hard invalidation also ends what earlier soft ones have left. A value that was invalidated
    /// softly by more than eight invalidations of one tag since its load is gone, too.
    pub fn soft(mut self) -> Self {
        self.mode = Mode::Soft;
        self
    }

    /// Keeps loads that begin within `time` from now from being stored, if their values carry one
    /// of the tags: the callers get what was loaded, and the next call loads again. It is for
    /// sources that are behind after a change, such as the replicas of a database. At most a day.
    ///
    /// It holds for the loads of [`memoize`](Cache::memoize) and its relatives, and not for
    /// [`set`](Cache::set).
    pub fn hold(mut self, time: Duration) -> Self {
        self.hold = time;
        self
    }

    /// Sets how long this call may take in all. By default, the cache [decides](Cache::deadline).
    /// More than 100 years count as 100 years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.cache = self.cache.deadline(deadline);
        self
    }

    async fn run(self) -> Result<()> {
        let cache = &self.cache;
        if self.hold > LONGEST_HOLD {
            return Err(Error::invalid("loads are held back for longer than a day"));
        }
        let how = Invalidation {
            mode: self.mode,
            hold: self.hold,
            keep: cache.terms()?.max_load.duration() + SLACK,
        };
        // An invalid tag is reported here, and nothing is sent.
        tags::invalidate(&cache.client, &self.tags?, how, cache.deadline_now()).await
    }
}

impl IntoFuture for Invalidate {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// The longest that loads may be held back.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 60 * 60);

/// Up to this many tags, a search looks at each of them.
const FEW: usize = 16;
