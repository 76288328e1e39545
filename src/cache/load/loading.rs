//! `Loading`: a load under way, as its loader sees it.
//!
//! Invariant: what a loader says takes effect only once its value is there, and only where the
//! value is stored. `memoize_with` hands it to the loader; the load reads what was said.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::error::loader::Captured;
use crate::sync::lock::Fence;

/// A load under way, for its loader: what the loader may know, and what it may say of the value.
///
/// [`Cache::memoize_with`](crate::Cache::memoize_with) hands it to the loader.
pub struct Loading<V> {
    fence: Option<Fence>,
    old: Option<Arc<V>>,
    said: Arc<Mutex<Said>>,
}

/// What a loader has said of the value that it loads.
#[derive(Debug, Default, Clone)]
pub(in crate::cache) struct Said {
    pub(in crate::cache) tags: Vec<String>,
    pub(in crate::cache) ttl: Option<Duration>,
    pub(in crate::cache) keep_stale: Option<Duration>,
    pub(in crate::cache) storing: Storing,
}

/// What is to become of the loaded value.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Storing {
    #[default]
    Stored,
    NotStored,
    /// The old value is still right.
    NotModified,
}

/// What runs a loader.
pub(in crate::cache) type RunLoader<V> =
    Box<dyn FnOnce(Loading<V>) -> BoxFuture<'static, Result<V, Captured>> + Send>;

impl<V> Loading<V> {
    pub(in crate::cache) fn new(fence: Option<Fence>, old: Option<Arc<V>>) -> Self {
        Self {
            fence,
            old,
            said: Arc::default(),
        }
    }

    /// Where the loader says something.
    pub(in crate::cache) fn said(&self) -> Arc<Mutex<Said>> {
        self.said.clone()
    }

    /// Labels the value with one more tag: see [`tags`](Self::tags).
    pub fn tag(&self, tag: impl AsRef<str>) {
        self.tags([tag]);
    }

    /// Labels the value with more tags, beside those that the call declares. Use it for tags that
    /// follow from what was loaded.
    ///
    /// A value with such a tag is stored only if the tag was last invalidated, or made, more than a
    /// second before the load. Otherwise it is not known whether the loader has seen what the
    /// invalidation was about. So the first load that names a new tag is not stored, and the next
    /// one is. Tags that are known beforehand are better declared with
    /// [`Memoize::tags`](super::super::Memoize::tags). If the servers of a cluster or of shards
    /// have clocks that differ by more than a second, use declared tags only.
    ///
    /// A loader that fails labels nothing: what is remembered of the failure
    /// ([`error_ttl`](crate::Cache::error_ttl)) ends with a removal of the key, and with an
    /// invalidation of declared tags or of the whole cache, and not with one of these tags.
    ///
    /// If a tag is invalid, the call fails with `InvalidInput`, and nothing is stored.
    pub fn tags(&self, tags: impl IntoIterator<Item = impl AsRef<str>>) {
        // One more than an entry can have, so that too many are an error and not a list without
        // end.
        let tags = tags.into_iter().take(MOST_TAGS + 1);
        // Before the lock is taken: the iterator is the user's code.
        let tags: Vec<String> = tags.map(|tag| tag.as_ref().to_owned()).collect();
        let mut said = self.lock();
        let room = (MOST_TAGS + 1).saturating_sub(said.tags.len());
        said.tags.extend(tags.into_iter().take(room));
    }

    /// Sets how long the value is fresh, in place of the TTL of the call. The last call counts.
    ///
    /// If the duration is zero or more than 100 years, the call fails with `InvalidInput`, and
    /// nothing is stored.
    pub fn ttl(&self, ttl: Duration) {
        self.lock().ttl = Some(ttl);
    }

    /// Sets how long the value is kept behind its TTL to be served stale, in place of the stale
    /// windows of the call. Zero keeps it for its TTL only. How long it is served is still decided
    /// by each call for itself, see [`Memoize::stale`](super::super::Memoize::stale). The last call
    /// counts.
    ///
    /// If the duration is more than 100 years, the call fails with `InvalidInput`, and nothing is
    /// stored. A bare value has no stale window, so this has no effect there.
    pub fn keep_stale(&self, window: Duration) {
        self.lock().keep_stale = Some(window);
    }

    /// Says that the value is not to be stored. The calls that wait for this load get it all the
    /// same, and the next call loads again.
    pub fn no_store(&self) {
        self.lock().storing = Storing::NotStored;
    }

    /// Returns the value that the load replaces, if there is one that is stale and may still be
    /// served. It is there for calls with [`stale`](super::super::Memoize::stale) or
    /// [`stale_if_error`](super::super::Memoize::stale_if_error), and never after a removal or a
    /// hard invalidation.
    pub fn stale(&self) -> Option<Arc<V>> {
        self.old.clone()
    }

    /// Says that `old`, which [`stale`](Self::stale) has returned, is still right, and returns it
    /// for the loader to return. The entry lives on, and its bytes are not sent again, unless its
    /// tags have changed.
    ///
    /// ```no_run
    /// # use std::{io, time::Duration};
    /// # use hedgerow::cache::Loading;
    /// # #[derive(Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Page { etag: String }
    /// # async fn fetch(etag: Option<&str>) -> io::Result<Option<Page>> { Ok(None) }
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let minute = Duration::from_secs(60);
    /// let page = cache
    ///     .memoize_with("page", minute, |load: Loading<Page>| async move {
    ///         let old = load.stale();
    ///         let etag = old.as_ref().map(|page| page.etag.as_str());
    ///         match (fetch(etag).await?, &old) {
    ///             (Some(page), _) => Ok(page),
    ///             (None, Some(old)) => Ok(load.not_modified(old)),
    ///             (None, None) => Err(io::Error::other("no page")),
    ///         }
    ///     })
    ///     .stale_if_error(minute * 60)
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn not_modified(&self, old: &Arc<V>) -> V
    where
        V: Clone,
    {
        let mut said = self.lock();
        if said.storing == Storing::Stored {
            said.storing = Storing::NotModified;
        }
        drop(said);
        V::clone(old)
    }

    /// Returns the number of the right under which this load runs. Of two loads of one key, the
    /// later has the greater number. `None` for a load without Redis, whose value is not stored.
    pub fn fence(&self) -> Option<Fence> {
        self.fence
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> fmt::Debug for Loading<V> {
    /// Leaves out the old value, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loading")
            .field("fence", &self.fence)
            .field("said", &*self.lock())
            .finish_non_exhaustive()
    }
}

/// The most tags that a loader can name with effect.
const MOST_TAGS: usize = 255;
