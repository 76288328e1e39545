//! `entry`, `update`, `update_with`: changes a value that was read, unless others have changed it.
//!
//! Invariant: an update stores only over the entry that was read, with the tags, the generations
//! and the end of that entry. So no other update is lost, and an entry that was invalidated
//! meanwhile stays invalid. Users call this.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::conditional::{Attempts, If, store_if};
use crate::cache::Cache;
use crate::cache::entry_keys::EntryKeys;
use crate::cache::read::mark::Mark;
use crate::client::Request;
use crate::codec::DecodesLike;
use crate::error::{Error, Result};
use crate::time::Deadline;

/// A value as it was read by [`Cache::entry`], and which entry it was.
pub struct Entry<V> {
    place: EntryKeys,
    value: Arc<V>,
    mark: Mark,
    /// How the handle that read it decodes.
    decodes: DecodesLike,
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

    /// Stores `value` in the place of `entry`, if that is still there. Returns whether it was. The
    /// new entry has the tags and the end of the old one. If the old one was invalidated meanwhile,
    /// the new one is invalid, too. A load of the key that is under way is not stored.
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
    pub fn update<'c, V>(&'c self, entry: &'c Entry<V>, value: &'c V) -> Request<'c, bool>
    where
        V: Serialize + Send + Sync,
    {
        Request::new(self.setup.patience, move |patience| async move {
            self.refuse_foreign(entry)?;
            let updated = self.updated(entry, value, self.deadline_by(patience)).await;
            updated.map_err(|error| error.about(&entry.place.name))
        })
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
                if self
                    .updated(&entry, &value, deadline)
                    .await
                    .map_err(about)?
                {
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
    fn refuse_foreign<V>(&self, entry: &Entry<V>) -> Result<()> {
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
        deadline: Deadline,
    ) -> Result<bool> {
        let stamps = &entry.mark.stamps;
        let key = entry.place.value.as_str();
        let (new, sizes) = self.setup.stack.entry(key, value, stamps, Duration::ZERO)?;
        self.setup.counts.encoded(sizes);
        let only = If {
            head: &entry.mark.head,
            ttl: None,
        };
        store_if(self, &entry.place, &new, only, deadline).await
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
