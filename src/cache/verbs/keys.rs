//! `keys` and `count`: which keys a cache has in Redis.
//!
//! Invariant: a listing holds a bounded number of keys, however many there are. Users call this.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::join;
use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};

use super::walk::{Aim, Seen, Versions, Walk};
use crate::cache::Cache;
use crate::error::Result;

/// Keys of a cache, made by [`Cache::keys`] and [`Cache::keys_by_tag`]. A stream.
#[must_use = "nothing is asked for until it is polled"]
pub struct Keys(BoxStream<'static, Result<String>>);

impl Cache {
    /// Returns the keys that match `pattern` and have an entry in Redis, in no order. `*` stands
    /// for any text, `?` for one character, and a backslash takes the meaning away from the
    /// character behind it.
    ///
    /// This walks over all keys of all servers (`SCAN`), in steps of about 1,000. It is made for
    /// operators and clean-ups. An entry that was invalidated by tag, or by [`clear`](Self::clear),
    /// is listed until it is gone from memory. A key that comes or goes meanwhile may be listed or
    /// not. A key is listed once, as long as the listing has no more than 262,144 keys; after a
    /// lost connection, earlier ones of a longer listing may come again. In a cluster, keys of a
    /// slot that moves meanwhile may be missed.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let mut keys = cache.keys("user:*");
    /// while let Some(key) = keys.next().await {
    ///     println!("{}", key?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The stream returns `InvalidInput` if the pattern is empty, longer than 1 KiB, or ends with a
    /// lone backslash. It returns what a server refuses or does not answer, and ends after an
    /// error. Each step has the [deadline](Self::deadline) of the cache, and the walk has none: put
    /// a [timeout](tokio::time::timeout) around the loop, or around each [`next`](Keys::next).
    pub fn keys(&self, pattern: &str) -> Keys {
        let walk = Walk::new(self, pattern, Versions::Own, Aim::List);
        let listing = walk.map(|walk| (walk, Seen::default()));
        let steps = stream::try_unfold(listing, |listing| async {
            let (mut walk, mut seen) = listing?;
            let Some(found) = walk.next().await? else {
                return Ok(None);
            };
            let new = found
                .entries()
                .filter(|it| seen.is_new(it.version, &it.name));
            let names: Vec<_> = new.map(|it| Ok(it.name)).collect();
            Ok(Some((stream::iter(names), Ok((walk, seen)))))
        });
        Keys(steps.try_flatten().boxed())
    }

    /// Returns how many entries the cache has in Redis, about: it walks as [`keys`](Self::keys)
    /// does, so the number is that of no single moment.
    ///
    /// # Errors
    /// As [`keys`](Self::keys).
    ///
    /// # Cancel safety
    /// Safe: a timeout around it bounds the walk as a whole.
    pub async fn count(&self) -> Result<u64> {
        let mut walk = Walk::new(self, "*", Versions::Own, Aim::List)?;
        let (mut count, mut seen) = (0, Seen::default());
        let mut found = walk.next().await?;
        while let Some(batch) = found {
            // The server makes the next step while these are counted.
            let counting = async {
                batch
                    .entries()
                    .filter(|it| seen.is_new(it.version, &it.name))
                    .count()
            };
            let (next, new) = join!(walk.next(), counting);
            count += new as u64;
            found = next?;
        }
        Ok(count)
    }
}

impl Keys {
    pub(super) fn of(keys: BoxStream<'static, Result<String>>) -> Self {
        Self(keys)
    }

    /// Returns the next key. `None` at the end.
    ///
    /// # Errors
    /// As the method that made it says.
    ///
    /// # Cancel safety
    /// Safe: a key that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Result<String>> {
        self.0.next().await
    }
}

impl Stream for Keys {
    type Item = Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}
