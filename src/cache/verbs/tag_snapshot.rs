//! `TagSnapshot`: the tags of a value that is kept elsewhere.
//!
//! Invariant: a snapshot is valid only if each generation in it is the present one. It was taken
//! before the value was loaded, so a valid value was loaded after the last invalidation of each
//! tag. Users call this.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::cache::read::fetch;
use crate::client::Request;
use crate::error::{Error, Result};
use crate::key::{Key, TagId};
use crate::tags::TagValue;
use crate::time::{Deadline, Ttl};

/// The generations that some tags had at one moment: what a value that is kept elsewhere is
/// labelled with, such as one in the memory of the process, in a file or in the cache of a browser.
///
/// [`Cache::tag_snapshot`] takes one, and [`Cache::is_current`] says whether any of its tags was
/// invalidated since. It can be stored beside the value, by serde.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagSnapshot {
    /// The ids of the tags, and their generations. That of the whole cache comes first.
    generations: Vec<(u128, u64)>,
}

impl fmt::Debug for TagSnapshot {
    /// Shows how many tags there are: the numbers look like tokens to a reader.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagSnapshot")
            .field("tags", &self.generations.len())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Takes a snapshot of `tags`, for a value that is kept elsewhere for `ttl` at the longest.
    ///
    /// Take it before the value is loaded: an invalidation between the two then makes the value
    /// invalid, and none is missed. [`clear`](Self::clear) invalidates it, too.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn render() -> String { String::new() }
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let day = Duration::from_secs(24 * 3600);
    /// let snapshot = cache.tag_snapshot(["country:FR"], day).await?;
    /// let page = render().await;
    /// // Later, in this process or in another:
    /// if cache.is_current(&snapshot).await? {
    ///     println!("{page}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` if a tag or the duration is invalid, or with more than 254 tags, and whatever
    /// Redis refuses or does not answer, also under [`Outage::Bypass`](crate::Outage::Bypass).
    ///
    /// # Cancel safety
    /// Safe. A tag may have been made.
    pub fn tag_snapshot(
        &self,
        tags: impl IntoIterator<Item = impl AsRef<str>>,
        ttl: Duration,
    ) -> Request<'_, TagSnapshot> {
        let tags = self.labels(tags);
        Request::new(self.setup.patience, move |patience| async move {
            let mut all = tags?;
            // An invalidation renews all copies of this tag, so one of them is enough.
            all.insert(0, self.names()?.whole.one_copy());
            let ttl = Ttl::new("ttl", ttl)?.duration();
            let deadline = self.deadline_by(patience);
            let present = fetch::generations(&self.client, &all, deadline).await?;
            let (tag_ttls, client) = (&self.state().tag_ttls, &self.client);
            let states = tag_ttls
                .settle(client, &all, &present, ttl, deadline)
                .await?;
            let generations = all.iter().zip(states);
            let generations = generations.map(|(tag, state)| (tag.id.0, state.generation.stamp()));
            Ok(TagSnapshot {
                generations: generations.collect(),
            })
        })
    }

    /// Returns whether no tag of `snapshot` was invalidated since it was taken. A tag that the
    /// server does not have any more counts as invalidated. Soft invalidations count, too.
    ///
    /// A snapshot of another cache or another namespace is never current.
    ///
    /// # Errors
    /// Whatever Redis refuses or does not answer, also under
    /// [`Outage::Bypass`](crate::Outage::Bypass).
    ///
    /// # Cancel safety
    /// Safe.
    pub fn is_current<'c>(&'c self, snapshot: &'c TagSnapshot) -> Request<'c, bool> {
        Request::new(self.setup.patience, move |patience| async move {
            self.proves(snapshot, self.deadline_by(patience)).await
        })
    }

    async fn proves(&self, snapshot: &TagSnapshot, deadline: Deadline) -> Result<bool> {
        let whole = self.names()?.whole.one_copy();
        // A snapshot that was stored elsewhere may be anything.
        match snapshot.generations.first() {
            Some((first, _)) if *first == whole.id.0 => {}
            _ => return Ok(false),
        }
        let namespace = self.client.namespace();
        let rest = snapshot.generations.iter().skip(1);
        let rest = rest.map(|(tag, _)| namespace.tag(TagId(*tag)));
        let keys: Vec<Key> = std::iter::once(whole.key).chain(rest).collect();
        let found = self
            .client
            .read(&keys, deadline)
            .await
            .map_err(Error::of_a_read)?;
        let mut all = found.iter().zip(&snapshot.generations);
        Ok(all.all(|(value, (_, generation))| {
            TagValue::of(value.as_ref()).is_some_and(|it| it.generation().stamp() == *generation)
        }))
    }
}
