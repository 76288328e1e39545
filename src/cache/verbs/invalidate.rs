//! `invalidate_tags` and `clear`: invalidate many values at once.
//!
//! Invariant: both send one command per key of a tag, however many values carry the tag. All tag
//! names of a cache are checked and made distinct here. Users call this.

use std::collections::HashSet;
use std::future::IntoFuture;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::codec::MOST_STAMPS;
use crate::error::{Error, Result};
use crate::tags::{self, Invalidation, Mode, SLACK, Tag};
use crate::time::OnOutage;

/// An invalidation, made by [`Cache::invalidate_tags`] or [`Cache::clear`]. Await it.
#[derive(Debug)]
#[must_use = "nothing is invalidated until it is awaited"]
pub struct Invalidate {
    cache: Cache,
    /// If one is invalid, the error is returned when this is awaited.
    tags: Result<Vec<Tag>>,
    mode: Mode,
    hold: Duration,
    replicas: Option<usize>,
    on_outage: OnOutage,
}

impl Cache {
    /// Invalidates every value that carries any of `tags`, in any cache of the namespace. This
    /// sends one command per tag, in parallel, however many values carry the tag.
    ///
    /// # Errors
    /// `InvalidInput` if a tag is invalid; nothing is sent then. Also whatever Redis refuses or
    /// does not answer: [`Error::key`](crate::Error::key) names the tags that failed, and the
    /// others are invalidated. It is safe to call again with all of them.
    ///
    /// # Delivery after an error
    /// If the error is an [outage](crate::ErrorKind::is_outage) other than
    /// [`NotReplicated`](crate::ErrorKind::NotReplicated), and does not say that the call was
    /// executed, the client keeps the tags that failed, and invalidates them in the background. It
    /// tries every 2 s or sooner while a server is out, and every 30 s or sooner where the server
    /// refuses it or does not answer. What is refused for missing rights, wrong credentials, or an
    /// error that the crate does not know, is tried for about five minutes. Until then values that
    /// carry the tags may be found. Servers that were reached are not invalidated again.
    ///
    /// [`undelivered`](Self::undelivered) counts what waits, and a later call for the same tags
    /// that succeeds ends the wait. A client keeps up to 10,000 tags, each once; the text of the
    /// error says so if there was no room. What waits is lost with the client: it lives in this
    /// process only. It is delivered by a task on the runtime of the call. If that runtime has
    /// ended, the next call of any cache of the client starts the task again. The end of a
    /// [hold](Invalidate::hold) does not move.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of the tags invalidated, and the client goes on with all of
    /// them in the background, as after an outage. A future that was never polled does nothing.
    pub fn invalidate_tags(&self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Invalidate {
        Invalidate::of(self.clone(), self.tags(tags))
    }

    /// Invalidates every value of this cache, with one command, or one per shard, or 16 in a
    /// cluster.
    ///
    /// # Errors
    /// Whatever Redis refuses or does not answer. If there are several servers, the values on those
    /// that were reached are invalidated, and it is safe to call again. After an outage, the client
    /// [goes on in the background](Self::invalidate_tags).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the cache cleared, not cleared, or cleared in part, and the
    /// client goes on in the background.
    pub fn clear(&self) -> Invalidate {
        let whole = self.names().map(|names| vec![names.whole.clone()]);
        Invalidate::of(self.clone(), whole)
    }

    /// The tags called `names`, each once.
    fn tags(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Tag>> {
        self.distinct(names, usize::MAX)
    }

    /// The tags of a value that is to be stored: as [`tags`](Self::tags), and no more than fit
    /// beside the tag of the whole cache.
    pub(in crate::cache) fn labels(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Vec<Tag>> {
        self.distinct(names, MOST_STAMPS - 1)
    }

    /// As [`tags`](Self::tags). Fails as soon as `names` gives more than `most` different ones.
    fn distinct(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
        most: usize,
    ) -> Result<Vec<Tag>> {
        let names = names.into_iter();
        let mut tags: Vec<Tag> = Vec::with_capacity(names.size_hint().0.min(FEW));
        // Used only once there are too many tags to look at each.
        let mut seen = HashSet::new();
        for (count, name) in names.enumerate() {
            // Without this, an endless list that repeats the same few names would never end.
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

impl Invalidate {
    fn of(cache: Cache, tags: Result<Vec<Tag>>) -> Self {
        Self {
            cache,
            tags,
            mode: Mode::Hard,
            hold: Duration::ZERO,
            replicas: None,
            // Until it is done, stale values are served.
            on_outage: OnOutage::KeepTrying,
        }
    }

    /// Lets values with a stale window still be served stale, by calls of
    /// [`memoize`](Cache::memoize) that allow it: as if their TTL had ended now. Values without
    /// such a window are gone.
    ///
    /// Without this, an invalidation is hard: what was loaded before it is never served again. A
    /// hard invalidation also ends what earlier soft ones have left. A value that was invalidated
    /// softly by more than eight invalidations of one tag since its load is gone, too.
    pub fn soft(mut self) -> Self {
        self.mode = Mode::Soft;
        self
    }

    /// Keeps loads that begin within `time` from now from being stored, if their values carry one
    /// of the tags: the callers get what was loaded, and the next call loads again. It is for
    /// sources that are behind after a change, such as the replicas of a database. At most a day.
    /// Where a value and the tag are on two servers, loads are held back for a second more, since
    /// the clocks of the servers may differ by so much.
    ///
    /// It holds for the loads of [`memoize`](Cache::memoize) and its relatives, and not for
    /// [`set`](Cache::set).
    pub fn hold(mut self, time: Duration) -> Self {
        self.hold = time;
        self
    }

    /// Returns only once `replicas` of the primary have acknowledged the invalidation, so that a
    /// failover to one of those does not undo it. From 1 to 1,000; of several primaries, each of
    /// those that have a tag needs so many.
    ///
    /// The call takes one more round trip to the replicas, and one to the primary, over a
    /// connection of its own, which is opened when it is first needed. Calls of one client that
    /// wait for the replicas of one primary do so together; a new one waits up to 50 ms for its
    /// turn. A client over a connection that the caller made cannot wait. The primary must be a
    /// server that acknowledges by `WAIT`, as Redis and Valkey do. A soft invalidation that is
    /// tried again counts once for each try.
    ///
    /// # Errors
    /// [`NotReplicated`](crate::ErrorKind::NotReplicated) if too few have by the deadline: the
    /// invalidation was executed on the primary and holds, unless a failover undoes it. The text
    /// says how many have. Such a call does not go on in the background. The same holds where the
    /// server does not allow `WAIT` or `INFO`: the error says that the call was executed. After any
    /// other outage the client goes on in the background, without waiting for replicas.
    /// [`Overloaded`](crate::ErrorKind::Overloaded) if 4,096 tags of this client wait for their
    /// turn at a primary. `InvalidInput` for a number out of range, or for a client that cannot
    /// wait.
    pub fn durable(mut self, replicas: usize) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// Sets how long this call may take in all. By default, the cache [decides](Cache::deadline).
    /// More than 100 years count as 100 years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.cache = self.cache.deadline(deadline);
        self
    }

    /// Does not wait for a server that is out: what is to be invalidated there fails at once, with
    /// [`CircuitOpen`](crate::ErrorKind::CircuitOpen), and the client
    /// [goes on in the background](Cache::invalidate_tags). Without this, the call keeps trying
    /// until its deadline, whatever the cache says of [outages](Cache::on_outage).
    ///
    /// It is for callers that must not wait, and can bear that old values are served until the
    /// server is back.
    pub fn fail_fast(mut self) -> Self {
        self.on_outage = OnOutage::FailFast;
        self
    }

    async fn run(self) -> Result<()> {
        let cache = &self.cache;
        if self.hold > LONGEST_HOLD {
            return Err(Error::invalid("loads are held back for longer than a day"));
        }
        if self.replicas.is_some_and(|it| !REPLICAS.contains(&it)) {
            return Err(Error::invalid(
                "a durable invalidation waits for 1 to 1,000 replicas; or leave it out",
            ));
        }
        let how = Invalidation {
            mode: self.mode,
            hold_until: match self.hold {
                Duration::ZERO => None,
                hold => Some(Instant::now() + hold),
            },
            keep: cache.terms()?.max_load.duration() + SLACK,
            replicas: self.replicas.unwrap_or_default(),
        };
        // An invalid tag is reported here, and nothing is sent.
        let (client, tags) = (&cache.client, self.tags?);
        let copies = tags.iter().flat_map(|tag| tag.copies(client)).collect();
        // Made before anything is sent: whatever becomes of this future, it is not forgotten.
        let owed = cache.state().undelivered.owes(client, copies, how);
        let deadline = match self.on_outage {
            OnOutage::KeepTrying => cache.setup.patience.deadline().keep_trying(),
            OnOutage::FailFast => cache.setup.patience.deadline().fail_fast(),
        };
        let outcome = tags::invalidate(client, owed.copies(), how, deadline).await;
        owed.settled(outcome)
    }
}

impl IntoFuture for Invalidate {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// The longest that loads may be held back.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 60 * 60);

/// How many replicas may be waited for.
const REPLICAS: RangeInclusive<usize> = 1..=1000;

/// Up to this many tags, a search looks at each of them.
const FEW: usize = 16;
