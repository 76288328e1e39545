//! `entry`, `update`, `update_with`: changes a value that was read, unless others have changed it.
//!
//! Invariant: an update stores only over the entry that was read, and keeps the tags of that entry
//! with their generations. So no other update is lost, and an entry that was invalidated meanwhile
//! stays invalid. A tag can be added, and its generation is read before the value is stored; none
//! can be taken away. Users call this.

use std::fmt;
use std::future::IntoFuture;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::conditional::{Attempts, If, store_if};
use super::settings::call_settings;
use crate::cache::Cache;
use crate::cache::entry_keys::EntryKeys;
use crate::cache::read::mark::Mark;
use crate::cache::store_request::StoreRequest;
use crate::client::Request;
use crate::codec::{DecodesLike, Stamp};
use crate::error::{Error, Result};
use crate::tags::{Life, SLACK, Tag};
use crate::time::{Deadline, Ttl};

/// A value as it was read by [`Cache::entry`], and which entry it was.
pub struct Entry<V> {
    place: EntryKeys,
    value: Arc<V>,
    mark: Mark,
    /// How the handle that read it decodes.
    decodes: DecodesLike,
}

/// A value about to be stored in the place of an entry, made by [`Cache::update`]. Await it to
/// store the value; it returns whether the entry was still there.
#[must_use = "nothing is stored until it is awaited"]
pub struct Update<'e, V> {
    cache: Cache,
    entry: &'e Entry<V>,
    value: &'e V,
    ttl: Option<Duration>,
    /// The tags that the entry gets. If one is invalid, the error is returned when this is awaited.
    tags: Result<Vec<Tag>>,
}

impl Cache {
    /// Returns the value of `key` as it is now, for [`update`](Self::update). `None` without a
    /// valid value. It reads at the primary.
    ///
    /// # Errors
    /// As [`get`](Self::get), also under [`Outage::Bypass`](crate::Outage::Bypass). `WrongType` if
    /// the key holds another Redis type.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn entry<'c, V>(&'c self, key: &'c str) -> Request<'c, Option<Entry<V>>>
    where
        V: DeserializeOwned + Send + Sync + 'c,
    {
        Request::new(self.setup.patience, move |patience| async move {
            let place = self.place(self.client.name(key))?;
            let read = self.entry_at(&place, self.deadline_by(patience)).await;
            read.map_err(|error| error.about(&place.name))
        })
    }

    /// Stores `value` in the place of `entry`, if that is still there. Awaiting it returns whether
    /// it was. The new entry has the tags and the end of the old one, unless [`Update::ttl`] or
    /// [`Update::tags`] say otherwise. If the old one was invalidated meanwhile, the new one is
    /// invalid, too. A load of the key that is under way is not stored.
    ///
    /// The entry must be one that this handle, or a clone of it, has read. Another handle may be
    /// used if it has the same name, version, custom codecs and keyring.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// if let Some(stock) = cache.entry::<u32>("stock:7").await? {
    ///     let is_stored = cache.update(&stock, &(*stock + 1)).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set), also under [`Outage::Bypass`](crate::Outage::Bypass). `InvalidInput`
    /// if the entry was read by the handle of another cache, version, custom codec or keyring.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value stored or not.
    pub fn update<'e, V>(&self, entry: &'e Entry<V>, value: &'e V) -> Update<'e, V>
    where
        V: Serialize + Send + Sync,
    {
        Update {
            cache: self.clone(),
            entry,
            value,
            ttl: None,
            tags: Ok(Vec::new()),
        }
    }

    /// Replaces the value of `key` by what `change` makes of it, and returns the new value. `None`
    /// without a valid value. If another call changes the value meanwhile, `change` is called again
    /// with that, from the second time on after a short pause of random length. The new entry has
    /// the tags and the end of the old one.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let stock = cache.update_with("stock:7", |stock: &u32| stock + 1).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`entry`](Self::entry) and [`update`](Self::update). `Contended` if others changed the
    /// value each time until the deadline; nothing is stored then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the value replaced or not.
    pub fn update_with<'c, V>(
        &'c self,
        key: &'c str,
        mut change: impl FnMut(&V) -> V + Send + 'c,
    ) -> Request<'c, Option<Arc<V>>>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'c,
    {
        Request::new(self.setup.patience, move |patience| async move {
            let place = self.place(self.client.name(key))?;
            let deadline = self.deadline_by(patience);
            let about = |error: Error| error.about(&place.name);
            let mut attempt = Attempts::until(deadline);
            loop {
                attempt.begins().await.map_err(about)?;
                let Some(entry) = self.entry_at(&place, deadline).await.map_err(about)? else {
                    return Ok(None);
                };
                let value = change(&entry);
                let updated = self.updated(&entry, &value, Changes::default(), deadline);
                if updated.await.map_err(about)? {
                    return Ok(Some(Arc::new(value)));
                }
            }
        })
    }

    async fn entry_at<V: DeserializeOwned>(
        &self,
        place: &EntryKeys,
        deadline: Deadline,
    ) -> Result<Option<Entry<V>>> {
        let reading = self.judged(&place.value, deadline).await?;
        Ok(reading.hit().map(|(value, mark)| Entry {
            place: place.clone(),
            value,
            mark,
            decodes: self.setup.stack.decodes_like(),
        }))
    }

    /// Refuses an entry that this handle would not have read: its value would be stored at a key of
    /// another cache, or without the key that it was encrypted with.
    pub(super) fn refuse_foreign<V>(&self, entry: &Entry<V>) -> Result<()> {
        let own = self.value(&entry.place.name)?;
        if own.as_str() == entry.place.value.as_str()
            && self.setup.stack.decodes_like() == entry.decodes
        {
            return Ok(());
        }
        let message = "the entry was read by a handle of another cache, version, custom codec or \
                       keyring; update it by the handle that has read it, or by a clone of that";
        Err(Error::invalid(message).with_key(&entry.place.name))
    }

    async fn updated<V: Serialize>(
        &self,
        entry: &Entry<V>,
        value: &V,
        changes: Changes,
        deadline: Deadline,
    ) -> Result<bool> {
        let place = &entry.place;
        let Some(stamps) = self.stamped(entry, &changes, deadline).await? else {
            return Ok(false);
        };
        let key = place.value.as_str();
        let (new, sizes) = self
            .setup
            .stack
            .entry(key, value, &stamps, Duration::ZERO)?;
        self.setup.counts.encoded(sizes);
        let only = If {
            head: &entry.mark.head,
            ttl: changes.ttl.map(|ttl| self.setup.jitter.spread(ttl)),
        };
        store_if(self, place, &new, only, deadline).await
    }

    /// The stamps of the entry that replaces `entry`. All of its tags live as long as it will.
    /// `None` if `entry` is seen to be gone.
    async fn stamped<V>(
        &self,
        entry: &Entry<V>,
        changes: &Changes,
        deadline: Deadline,
    ) -> Result<Option<Vec<Stamp>>> {
        let (place, mut stamps) = (&entry.place, entry.mark.stamps.clone());
        let mut added = changes.tags.clone();
        added.retain(|tag| stamps.iter().all(|stamp| stamp.tag != tag.id.0));
        let ttl = match changes.ttl {
            Some(ttl) => ttl,
            None if added.is_empty() => return Ok(Some(stamps)),
            // It keeps its end, and so must the tags that it gets.
            None => match self.left(place, deadline).await? {
                Some(left) => Ttl::new("ttl", left)?,
                None => return Ok(None),
            },
        };
        let life = self.setup.jitter.longest(ttl).duration() + SLACK + deadline.remaining();
        // Whatever becomes of the tags, nothing is stored.
        let outlived = self.outlive(place, &stamps, Life::For(life), deadline);
        outlived.await.map_err(Error::of_own_question)?;
        if !added.is_empty() {
            let request = StoreRequest::new(self.clone(), place.name.clone(), ttl, &added)?;
            let generations = request.generations(deadline).await;
            let generations = generations.map_err(Error::of_own_question)?;
            // The entry has the tag of the whole cache, which comes first, and keeps its stamp.
            stamps.extend(request.stamps(&generations).into_iter().skip(1));
        }
        Ok(Some(stamps))
    }
}

/// What an update changes beside the value.
#[derive(Debug, Default)]
struct Changes {
    /// `None` keeps the end of the entry.
    ttl: Option<Ttl>,
    /// The tags that the entry gets.
    tags: Vec<Tag>,
}

impl<V> Update<'_, V> {
    /// Makes the value live for `ttl` from now, give or take the [`jitter`](Cache::jitter), without
    /// a stale window. By default, it keeps the end of the entry.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Labels the value with these tags, too: see [`Set::tags`](super::set::Set::tags). It keeps
    /// the tags that the entry has.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.tags = self.cache.labels(tags);
        self
    }

    call_settings!();
}

impl<'e, V: Serialize + Send + Sync> IntoFuture for Update<'e, V> {
    type Output = Result<bool>;
    type IntoFuture = BoxFuture<'e, Result<bool>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            cache,
            entry,
            value,
            ttl,
            tags,
        } = self;
        Box::pin(async move {
            let deadline = cache.deadline_now();
            let updated = async {
                cache.refuse_foreign(entry)?;
                let ttl = ttl.map(|ttl| Ttl::new("ttl", ttl)).transpose()?;
                let changes = Changes { ttl, tags: tags? };
                cache.updated(entry, value, changes, deadline).await
            };
            updated
                .await
                .map_err(|error| error.about(&entry.place.name))
        })
    }
}

impl<V> fmt::Debug for Update<'_, V> {
    /// Leaves out the value, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("cache", &self.cache)
            .field("entry", &self.entry)
            .field("ttl", &self.ttl)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl<V> Entry<V> {
    /// Returns when the entry ends, by the clock of the server, as it was when it was read.
    pub fn ends_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.mark.ends()
    }

    pub(super) fn place(&self) -> &EntryKeys {
        &self.place
    }

    /// Its tags, with their generations. That of the whole cache comes first.
    pub(super) fn stamps(&self) -> &[Stamp] {
        &self.mark.stamps
    }
}

impl<V> Deref for Entry<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V> fmt::Debug for Entry<V> {
    /// Leaves out the value, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.place.name)
            .finish_non_exhaustive()
    }
}
