//! `TagSnapshot`: the tags of a value that is kept elsewhere.
//!
//! Invariant: a snapshot is valid only if each generation in it is the present one. It was taken
//! before the value was loaded, or is that of an entry, so a valid value was loaded after the last
//! invalidation of each tag. Users call this.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::update::Entry;
use crate::cache::Cache;
use crate::cache::read::fetch;
use crate::client::Request;
use crate::error::{Error, Result};
use crate::key::{Key, TagId};
use crate::tags::{Life, TagValue};
use crate::time::{Deadline, Ttl};

/// The generations that some tags had at one moment: what a value that is kept elsewhere is
/// labelled with, such as one in the memory of the process, in a file or in the cache of a browser.
///
/// [`Cache::tag_snapshot`] takes one, [`Cache::tag_snapshot_of`] that of an entry, and
/// [`Cache::is_current`] says whether any of its tags was invalidated since. It can be stored
/// beside the value, by serde.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagSnapshot {
    /// The ids of the tags, and their generations. That of the whole cache comes first; it has the
    /// generation of any of its copies.
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

    /// Returns the tags of `entry`, with the generations that it has, and makes them live for `ttl`
    /// at least. So the snapshot is current until one of the tags is invalidated that the entry had
    /// when it was read, or the cache is [cleared](Self::clear): for what is made of the entry and
    /// kept elsewhere. It needs no memory of the server, so it works while Redis is full.
    ///
    /// # Errors
    /// `InvalidInput` if the duration is invalid, or the entry was read by the handle of another
    /// cache, version, custom codec or keyring, and whatever Redis refuses or does not answer, also
    /// under [`Outage::Bypass`](crate::Outage::Bypass).
    ///
    /// # Cancel safety
    /// Safe. A tag may live longer.
    pub fn tag_snapshot_of<'c, V: Send + Sync>(
        &'c self,
        entry: &'c Entry<V>,
        ttl: Duration,
    ) -> Request<'c, TagSnapshot> {
        Request::new(self.setup.patience, move |patience| async move {
            self.refuse_foreign(entry)?;
            let life = Ttl::new("ttl", ttl)?.duration();
            let (place, deadline) = (entry.place(), self.deadline_by(patience));
            let prolonged = self.prolong_tags(place, entry.stamps(), Life::For(life), deadline);
            let prolonged = prolonged.await.map_err(Error::of_own_question);
            prolonged.map_err(|error| error.about(&entry.place().name))?;
            let stamps = entry.stamps().iter();
            Ok(TagSnapshot {
                generations: stamps.map(|it| (it.tag, it.generation)).collect(),
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
        let all_copies = &self.names()?.whole;
        let whole = all_copies.one_copy();
        // A snapshot that was stored elsewhere may be anything.
        let of_whole = match snapshot.generations.first() {
            Some((first, generation)) if *first == whole.id.0 => *generation,
            _ => return Ok(false),
        };
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
        let has = |value: Option<&Bytes>, generation: u64| {
            TagValue::of(value).is_some_and(|it| it.generation().stamp() == generation)
        };
        let of_one_copy = all.next().and_then(|(value, _)| value.as_ref());
        if !all.all(|(value, (_, generation))| has(value.as_ref(), *generation)) {
            return Ok(false);
        }
        if has(of_one_copy, of_whole) {
            return Ok(true);
        }
        // An entry has the generation of the copy beside it. Each copy has one of its own, and an
        // invalidation renews them all.
        let copies = all_copies.copies(&self.client);
        if copies.len() < 2 {
            return Ok(false);
        }
        let copies = fetch::generations(&self.client, &copies, deadline).await;
        let mut copies = copies.map_err(Error::of_a_read)?.into_iter().flatten();
        Ok(copies.any(|state| state.generation.stamp() == of_whole))
    }
}
