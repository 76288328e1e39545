//! The near cache: values that this process has read are served again without a command, until
//! their server tells of a change.
//!
//! Invariant: see [`held`] for what is served, and [`table`] for why pushes and replies may come in
//! any order. A handle without a near cache, and one that is [`strict`](Cache::strict), never looks
//! here.
//!
//! Users give a handle a near cache by [`Cache::near`]; `get`, `get_many`, `memoize` and its
//! relatives use it.

pub(in crate::cache) mod held;
pub(in crate::cache) mod options;
pub(in crate::cache) mod read;
mod table;

use std::sync::Arc;

use self::held::{Near, NearHit};
use self::options::NearCache;
use super::read::reading::ReadFrom;
use super::{Cache, outage};
use crate::error::{Error, ErrorKind, Fate};
use crate::key::Key;

impl Cache {
    /// Keeps what this handle and its clones read in the memory of this process, and serves it from
    /// there until the server tells of a change.
    ///
    /// A hit costs no command. It is shared: all callers get the same `Arc`, as the type that the
    /// value was read as. A read as another type asks Redis. [`get`](Self::get) also remembers that
    /// a key is missing. What this process stores itself is kept once it was read.
    ///
    /// `get`, [`get_many`](Self::get_many), [`memoize`](Self::memoize) and its relatives are served
    /// and keep values. Only fresh values are held: a value leaves the near cache when it becomes
    /// stale, and a call that allows a stale one reads it from Redis. With `refresh_early`, a
    /// call whose turn it is to load the value anew reads Redis, too. All others are served what is
    /// held until the new value is stored. A value that [`memoize_many`](Self::memoize_many) has
    /// read counts as one of another type for the calls on single keys, and the other way round.
    ///
    /// Each call of this makes a near cache of its own. Its bytes are shared by this handle and its
    /// clones, so make one handle for each cache and keep it. The first call fails with
    /// `InvalidInput` if a setting is out of its range.
    ///
    /// # What is promised
    /// A change of a key or of a tag, by whatever process, ends what is held of it when the push of
    /// the server arrives. That is about when the reply to the change arrives. While the network
    /// fails, or this process stands still, nothing older than
    /// [`max_staleness`](NearCache::max_staleness) is served. So the promise of [`Cache`] holds
    /// with a delay for reads of such a handle: a read may be given a value that was invalidated at
    /// most `max_staleness` before. Handles without a near cache, or [`strict`](Self::strict) ones,
    /// are never late. Two limits: the bound does not count time in which the whole machine sleeps,
    /// and the server sends no push for `SWAPDB`. After either, make a new client.
    ///
    /// # What it costs
    /// The server pushes the name of each value and tag of the namespace that changes, of all of
    /// its caches, over the connection for pushes. A read that is kept costs one command more
    /// (`PTTL`), also if it is kept that the key is missing. The user needs the right
    /// `client|tracking`. A client over a [connection](crate::ClientBuilder::connection) of the
    /// caller's has no near cache. Values that are [read at a replica](Self::read_from) are not
    /// kept.
    #[must_use]
    pub fn near(mut self, near: NearCache) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        match near.checked() {
            Ok(near) => {
                setup.near = Some(Arc::new(Near::new(
                    &self.client,
                    setup.counts.label(),
                    near,
                )))
            }
            Err(error) => setup.refused = Some(error),
        }
        self
    }

    /// Returns a handle whose reads ask Redis, whatever the near cache of this one holds.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let balance = cache.clone().strict().get::<u64>("balance:42").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn strict(mut self) -> Self {
        Arc::make_mut(&mut self.setup).near = None;
        self
    }

    /// Returns what the near cache knows of the entry at `key`, if a read of it has failed with
    /// `error` because the server is out, and the grace for that is not over.
    pub(in crate::cache) fn known_in_grace<V: Send + Sync + 'static>(
        &self,
        key: &Key,
        error: &Error,
    ) -> Option<NearHit<V>> {
        // A server that refuses the call is not out, nor is one whose queue is full in this
        // process.
        let is_out = outage::passes(error) && error.kind() != ErrorKind::Overloaded;
        if !is_out || error.fate() == Fate::Refused {
            return None;
        }
        self.setup.near.as_ref()?.in_grace(&self.client, key)
    }

    /// The near cache, if it keeps what this handle reads.
    pub(in crate::cache) fn near_to_fill(&self) -> Option<&Arc<Near>> {
        let near = self.setup.near.as_ref();
        near.filter(|_| self.setup.read_from == ReadFrom::Primary)
    }
}
