//! `invalidate_tags` and `clear`: invalidate many values at once.
//!
//! Invariant: both send one command per key of a tag, however many values carry the tag. All tag
//! names of a cache are checked and made distinct here. Users call this.

use std::collections::HashSet;

use crate::cache::Cache;
use crate::client::Request;
use crate::codec::MOST_STAMPS;
use crate::error::{Error, Result};
use crate::tags::{self, SLACK, Tag};
use crate::time::Deadline;

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
    pub fn invalidate_tags(
        &self,
        tags: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Request<'_, ()> {
        let tags = self.tags(tags);
        Request::new(self.setup.patience, move |patience| async move {
            // An invalid tag is reported here, when the request is awaited, and nothing is sent.
            self.invalidate(&tags?, patience.deadline()).await
        })
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
    pub fn clear(&self) -> Request<'_, ()> {
        Request::new(self.setup.patience, move |patience| async move {
            let whole = [self.names()?.whole.clone()];
            self.invalidate(&whole, patience.deadline()).await
        })
    }

    async fn invalidate(&self, tags: &[Tag], deadline: Deadline) -> Result<()> {
        let keep = self.terms()?.max_load.duration() + SLACK;
        tags::invalidate(&self.client, tags, keep, deadline).await
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

/// Up to this many tags, a search looks at each of them.
const FEW: usize = 16;
