//! `keys_by_tag` and `purge_tag`: what carries a tag, by the index of the tag.
//!
//! Invariant: a key is listed only if its entry was valid and carried the tag when it was read. A
//! purge removes only entries that are invalid. So an index that names too much does no harm.
//! Users call this.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::keys::Keys;
use super::walk::Seen;
use crate::cache::Cache;
use crate::cache::config::TagIndex;
use crate::cache::index::pages::{Noted, Pages};
use crate::cache::read::fetch;
use crate::cache::read::mark::Mark;
use crate::cache::read::reading::ReadFrom;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::tags::Tag;
use crate::time::Deadline;

impl Cache {
    /// Keeps an index of the tags of this handle from now on: which keys of the cache carry a tag.
    /// [`keys_by_tag`](Self::keys_by_tag) and [`purge_tag`](Self::purge_tag) need it.
    ///
    /// All handles that write to the cache must keep it, in all processes: what others store is not
    /// found. Each store of a value with tags costs one more command for each tag, and about 100
    /// bytes in Redis for each tag of a value. Invalidations do not need an index, and cost the
    /// same with it.
    ///
    /// [`take`](Self::take) takes the name of what it removes out of the index. Otherwise a name
    /// stays there until the end that its entry was to have, also if the entry is removed earlier.
    /// `keys_by_tag` and `purge_tag` take such names out. So where values live for long and are
    /// removed one by one, use `take`, or call one of them now and then.
    ///
    /// The index may be lost, as any key of a cache. Then what was stored before is not found by
    /// tag, and is as valid as before.
    #[must_use]
    pub fn index_tags(mut self) -> Self {
        Arc::make_mut(&mut self.setup).index = TagIndex::On;
        self
    }

    /// Returns the keys of this cache, in this [version](Self::version), whose values are valid and
    /// carry `tag`, in no order. The handle must [keep an index](Self::index_tags).
    ///
    /// This reads the index in pages of 100, and the entry of each key in it. A key is listed once,
    /// as long as the listing has no more than 262,144 keys. One that comes or goes meanwhile may
    /// be listed or not. Values that were stored without the index are missed.
    ///
    /// ```no_run
    /// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
    /// let cache = client.cache("sessions").index_tags();
    /// let mut keys = cache.keys_by_tag("user:7");
    /// while let Some(key) = keys.next().await {
    ///     println!("{}", key?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The stream returns `InvalidInput` if the tag is invalid or the handle keeps no index. It
    /// returns what a server refuses or does not answer, and ends after an error. Each step has the
    /// [deadline](Self::deadline) of the cache: set another on a handle of its own.
    pub fn keys_by_tag(&self, tag: &str) -> Keys {
        let walk = self.one_tag(tag).and_then(|tag| Pages::new(self, tag));
        let listing = walk.map(|pages| (pages, Seen::default()));
        let steps = stream::try_unfold(listing, |listing| async {
            let (mut pages, mut seen) = listing?;
            let deadline = pages.cache().deadline_now();
            let before = pages.position();
            let Some(page) = pages.next(deadline).await? else {
                return Ok(None);
            };
            let carry = carriers(&pages, &page, deadline).await?;
            let others: Vec<bool> = carry.iter().map(|carries| !carries).collect();
            if let Err(error) = pages.tidy((&page, before), &others, deadline).await {
                // What is listed is right all the same.
                tracing::debug!(target: "hedgerow::cache", %error, "index not tidied");
            }
            let names = page.into_iter().zip(carry);
            let names = names.filter(|(noted, carries)| *carries && seen.is_new(0, &noted.name));
            let names: Vec<_> = names.map(|(noted, _)| Ok(noted.name)).collect();
            Ok(Some((stream::iter(names), Ok((pages, seen)))))
        });
        Keys::of(steps.try_flatten().boxed())
    }

    /// Invalidates `tag`, and then removes what carries it from memory. Returns how many values
    /// were removed, or less: if an answer is lost, a step is sent again, and finds what it has
    /// removed gone. The handle must [keep an index](Self::index_tags).
    ///
    /// The invalidation is that of [`invalidate_tags`](Self::invalidate_tags), for all caches: with
    /// it, nothing that carries the tag is found any more. What follows frees the memory of the
    /// values of this cache, in this [version](Self::version), in steps of 100. A value that is
    /// stored again meanwhile is valid, and stays. What the index does not have stays until its TTL
    /// ends, and so may the value of a load that began before the invalidation, and a value that
    /// is still at its old place while keys move between shards. They are invalid all the same.
    ///
    /// # Errors
    /// `InvalidInput` if the tag is invalid or the handle keeps no index; nothing is sent then.
    /// Those of [`invalidate_tags`](Self::invalidate_tags), before anything is removed. After an
    /// error that [is indeterminate](crate::Error::is_indeterminate), the tag is invalid, or some
    /// of the values are removed. It is safe to call again. Each step has the
    /// [deadline](Self::deadline) of the cache, and keeps trying until then. There is no deadline
    /// of one call: set it on a handle of its own, or drop the future.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the tag invalidated or not, and some of the values removed.
    pub async fn purge_tag(&self, tag: &str) -> Result<u64> {
        let mut pages = Pages::new(self, self.one_tag(tag)?)?;
        self.invalidate_tags([tag]).await?;
        let mut removed = 0;
        loop {
            let deadline = self.deadline_now().keep_trying().reserved();
            match pages.purge_next(deadline).await {
                Ok(Some(some)) => removed += some,
                Ok(None) => return Ok(removed),
                Err(error) => return Err(error.after_a_part()),
            }
        }
    }

    fn one_tag(&self, name: &str) -> Result<Tag> {
        self.state().tags.named(&self.client, name)
    }
}

/// Returns which of these entries are valid and carry the tag.
async fn carriers(pages: &Pages, page: &[Noted], deadline: Deadline) -> Result<Vec<bool>> {
    let (cache, tag) = (pages.cache(), pages.tag());
    let keys = page
        .iter()
        .map(|noted| cache.value(&cache.client.name(&noted.name)));
    let keys: Vec<Key> = keys.collect::<Result<_>>()?;
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let tags = std::slice::from_ref(tag);
    let read = fetch::read_many::<Mark>(cache, &keys, tags, ReadFrom::Primary, deadline);
    let readings = read.await.map_err(Error::of_a_read)?;
    let carry = readings.into_iter().map(|reading| {
        let mark = reading.hit();
        mark.is_some_and(|mark| mark.stamps.iter().any(|stamp| stamp.tag == tag.id.0))
    });
    Ok(carry.collect())
}
