//! `SharedReads`: calls of `memoize` for one key share the reads of it.
//!
//! Invariant: a call uses what a read has found only if that read began after the call did, so that
//! the read sees every invalidation that had returned by then. A call that meets an earlier read
//! waits for its end. Then it joins the flight that this read has opened, or shares the next read
//! with all calls that have waited. So a herd costs a process one read, or two, and not one for
//! each call.
//!
//! A read is made by the task of a caller, which may not be polled. So no call waits for a read for
//! long: after [`LONGEST_WAIT_FOR_A_READ`], or half of what is left of its deadline, a call reads
//! by itself. Once a call has given up a read that has taken as long as
//! [`LONGEST_WAIT_FOR_A_READ`], later calls do not wait for that read.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use xxhash_rust::xxh3::xxh3_64;

use super::judge::Old;
use super::reading::{Miss, ReadFrom, Reading};
use crate::codec::DecodesLike;
use crate::error::{ErrorKind, Result};
use crate::key::{Key, TagId};
use crate::tags::Tag;
use crate::time::OnOutage;

/// The reads of one client that are under way.
#[derive(Debug)]
pub(in crate::cache) struct SharedReads {
    /// By the hash of the key, so that callers of different keys do not wait for one lock.
    stripes: [Mutex<Vec<UnderWay>>; STRIPES],
}

/// One read under way.
#[derive(Debug)]
struct UnderWay {
    key: Key,
    how: How,
    /// The read was sent after this moment.
    began: Instant,
    /// Made when another call waits. A lone read needs no channel.
    told: Option<watch::Sender<Option<Told>>>,
    /// A call has waited for it too long.
    slow: bool,
}

/// What two calls must have in common to share a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct How {
    pub(in crate::cache) from: ReadFrom,
    /// Whether stale entries are wanted, too.
    pub(in crate::cache) old: bool,
    pub(in crate::cache) decodes: DecodesLike,
    pub(in crate::cache) on_outage: OnOutage,
    pub(in crate::cache) freshness: Freshness,
}

/// By which generations a read judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Freshness {
    /// By those that it reads.
    Strict,
    /// By those that the near cache at this address knows, too. They may be behind by its bound.
    #[cfg(feature = "near")]
    Near(usize),
}

/// What a read has found, of a type that only its callers know.
type Told = Arc<dyn Any + Send + Sync>;

/// What a read has found, and for which tags.
pub(in crate::cache) struct Shared<V> {
    found: Result<Found<V>>,
    tags: Vec<TagId>,
    /// How long the call that read could take.
    limit: Duration,
}

/// What a read has found, in a form that several calls can have.
pub(in crate::cache) enum Found<V> {
    Hit(Arc<V>),
    Old(Old<Arc<V>>, Miss),
    Miss(Miss),
}

/// What a call has to do.
pub(in crate::cache) enum Turn<'r> {
    /// Read. With a reader, calls that come meanwhile share the read.
    Read(Option<Reader<'r>>),
    /// Wait for a read that is under way.
    Wait(Wait<'r>),
}

/// A read that others may wait for. Dropping it ends the read.
#[derive(Debug)]
pub(in crate::cache) struct Reader<'r> {
    stripe: &'r Mutex<Vec<UnderWay>>,
    key: &'r Key,
    began: Instant,
    has_ended: bool,
}

/// Waits for the read of another call.
#[derive(Debug)]
pub(in crate::cache) struct Wait<'r> {
    stripe: &'r Mutex<Vec<UnderWay>>,
    key: &'r Key,
    told: watch::Receiver<Option<Told>>,
    began: Instant,
    /// The read began after the call.
    shares: bool,
}

impl Default for SharedReads {
    fn default() -> Self {
        Self {
            stripes: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl SharedReads {
    /// Returns what a call for `key` that began at `called` has to do. If the call has to read, its
    /// read begins at `now` or later.
    pub(in crate::cache) fn turn<'r>(
        &'r self,
        key: &'r Key,
        how: How,
        called: Instant,
        now: Instant,
    ) -> Turn<'r> {
        let hash = xxh3_64(key.as_str().as_bytes());
        let stripe = &self.stripes[hash as usize % STRIPES];
        let mut reads = lock(stripe);
        let Some(read) = reads.iter_mut().find(|read| read.key == *key) else {
            reads.push(UnderWay {
                key: key.clone(),
                how,
                began: now,
                told: None,
                slow: false,
            });
            return Turn::Read(Some(Reader {
                stripe,
                key,
                began: now,
                has_ended: false,
            }));
        };
        // It reads beside the other, and shares with no call: one read of a key is registered at a
        // time.
        if read.slow || read.how != how {
            return Turn::Read(None);
        }
        let told = read.told.get_or_insert_with(|| watch::Sender::new(None));
        Turn::Wait(Wait {
            stripe,
            key,
            told: told.subscribe(),
            began: read.began,
            shares: called < read.began,
        })
    }
}

impl Reader<'_> {
    /// Ends the read, and hands what it has found to the calls that wait. If a flight serves them,
    /// it has been opened before.
    pub(in crate::cache) fn end<V: Send + Sync + 'static>(
        mut self,
        found: impl FnOnce() -> Shared<V>,
    ) {
        self.has_ended = true;
        // Removed first: a call that comes now must not wait for a read that is over.
        if let Some(told) = self.take() {
            told.send_replace(Some(Arc::new(found())));
        }
    }

    /// Ends the read for calls that come from now on. Returns the channel to those that wait, if
    /// there are any.
    fn take(&self) -> Option<watch::Sender<Option<Told>>> {
        let mut reads = lock(self.stripe);
        let own = |read: &UnderWay| read.began == self.began && read.key == *self.key;
        let own = reads.iter().position(own)?;
        reads.swap_remove(own).told
    }
}

impl Drop for Reader<'_> {
    /// Waiters learn that the read has ended without a result.
    fn drop(&mut self) {
        if !self.has_ended {
            drop(self.take());
        }
    }
}

impl Wait<'_> {
    /// Returns what the read has found, if this call may use it: any failure, and otherwise what
    /// was read after the call began. `Ok(None)` if the read has ended without that, an error if it
    /// has not ended. The call has until `over`, and may have to read by itself.
    ///
    /// Cancel safety: safe.
    pub(in crate::cache) async fn ended<V: Send + Sync + 'static>(
        mut self,
        over: Instant,
    ) -> std::result::Result<Option<Arc<Shared<V>>>, Slow> {
        // The other half is for the call's own read.
        let half = over.saturating_duration_since(Instant::now()) / 2;
        let told = timeout(
            LONGEST_WAIT_FOR_A_READ.min(half),
            self.told.wait_for(Option::is_some),
        )
        .await;
        let Ok(told) = told else {
            let mut reads = lock(self.stripe);
            let waited = |read: &&mut UnderWay| read.began == self.began && read.key == *self.key;
            if let Some(read) = reads.iter_mut().find(waited) {
                // That a call with little time gives up says nothing of the read.
                read.slow |= read.began.elapsed() >= LONGEST_WAIT_FOR_A_READ;
            }
            return Err(Slow);
        };
        let told = told.ok().and_then(|told| Option::clone(&told));
        // Calls of another type cannot use what was read, and read by themselves.
        let shared = told.and_then(|told| told.downcast::<Shared<V>>().ok());
        let shares = self.shares;
        Ok(shared.filter(|shared| shares || shared.found.is_err()))
    }
}

/// A read takes longer than others wait for it.
#[derive(Debug)]
pub(in crate::cache) struct Slow;

impl<V> Shared<V> {
    /// What a call that declares `tags` and gives the server `limit` has found.
    pub(in crate::cache) fn new(found: Result<Found<V>>, tags: &[Tag], limit: Duration) -> Self {
        Self {
            found,
            limit,
            tags: tags.iter().map(|tag| tag.id).collect(),
        }
    }

    /// Returns what a call that declares `tags` and gives the server `limit` would have read.
    /// `None` if it could have read something else.
    pub(in crate::cache) fn reading(
        &self,
        tags: &[Tag],
        limit: Duration,
    ) -> Option<Result<Reading<Arc<V>>>> {
        match &self.found {
            Ok(Found::Hit(value)) => Some(Ok(Reading::Hit(value.clone()))),
            Ok(Found::Old(old, miss)) => {
                let reading = || Ok(Reading::Old(old.clone(), miss.clone()));
                self.has_tags(tags).then(reading)
            }
            Ok(Found::Miss(miss)) => {
                let reading = || Ok(Reading::Miss(miss.clone()));
                self.has_tags(tags).then(reading)
            }
            // The call that read had less time, if only by the time that had passed of it.
            Err(error) if error.kind() == ErrorKind::Timeout => None,
            Err(_) if limit > self.limit + self.limit / 8 => None,
            Err(error) => Some(Err(error.clone())),
        }
    }
}

impl<V> Shared<V> {
    /// Whether the read was one for these tags. A load is stamped with the generations of its own
    /// tags, so these must be the same.
    fn has_tags(&self, tags: &[Tag]) -> bool {
        self.tags.iter().eq(tags.iter().map(|tag| &tag.id))
    }
}

fn lock(stripe: &Mutex<Vec<UnderWay>>) -> MutexGuard<'_, Vec<UnderWay>> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of locks over which the keys are spread.
const STRIPES: usize = 64;

/// How long a call waits for the read of another, if it has the time. This is longer than a busy
/// process takes to get to a reply, and a small part of the usual deadline.
const LONGEST_WAIT_FOR_A_READ: Duration = Duration::from_millis(100);
