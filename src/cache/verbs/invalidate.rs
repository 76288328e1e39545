//! `invalidate_tags` and `clear`: many values at once.

use std::collections::HashSet;

use crate::cache::Cache;
use crate::client::Request;
use crate::codec::MOST_STAMPS;
use crate::error::{Error, Result};
use crate::tags::{self, SLACK, Tag};
use crate::time::Deadline;

impl Cache {
    /// Invalidates every value that carries any of `tags`, in any cache of the namespace: one
    /// command a tag, sent in parallel, however many values carry it.
    ///
    /// # Errors
    /// `InvalidInput` for a bad tag, before anything is sent. What Redis refuses or does not
    /// answer: [`Error::key`](crate::Error::key) names the tags that failed, the others are
    /// invalidated, and calling again with all of them is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the tags invalidated; calling again is safe.
    pub fn invalidate_tags(
        &self,
        tags: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Request<'_, ()> {
        let tags = self.tags(tags);
        Request::new(self.setup.patience, move |patience| async move {
            self.invalidate(&tags?, patience.deadline()).await
        })
    }

    /// Invalidates every value of this cache, with one command; with one for each shard, and with
    /// 16 in a cluster.
    ///
    /// # Errors
    /// What Redis refuses or does not answer. Where there are several servers, values on those that
    /// were reached are invalidated, and calling again is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the cache cleared or not, or cleared in part.
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

    /// The tags that `names` names, each once.
    fn tags(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Tag>> {
        self.distinct(names, usize::MAX)
    }

    /// The tags of a value that is to be stored: as [`tags`](Self::tags), and as many as fit beside
    /// that of the whole cache.
    pub(in crate::cache) fn labels(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Vec<Tag>> {
        self.distinct(names, MOST_STAMPS - 1)
    }

    /// As [`tags`](Self::tags); stops at one more than `most` that `names` names.
    fn distinct(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
        most: usize,
    ) -> Result<Vec<Tag>> {
        let names = names.into_iter();
        let mut tags: Vec<Tag> = Vec::with_capacity(names.size_hint().0.min(FEW));
        // Only once there are too many to look at each.
        let mut seen = HashSet::new();
        for (count, name) in names.enumerate() {
            // A list that names the same few over and over has no end otherwise.
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

/// Among so many tags one is looked for by looking at each.
const FEW: usize = 16;
