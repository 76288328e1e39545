//! `RetryQueue`: invalidations that could not be delivered, and the task that delivers them.
//!
//! Invariant: a copy of a tag that is kept here is invalidated later than its call has failed, or
//! was dropped, unless the client ends first or its key is in the way. Only what failed is
//! repeated. It does not matter whether the call that failed was executed all the same: a later
//! invalidation only invalidates more. `invalidate_tags` and `clear` put here what has failed, and
//! each call of a cache looks whether the task runs.

mod waiting;

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::background::{Background, Spawner};
use crate::client::{Client, WeakClient};
use crate::error::Result;
use crate::key::Key;
use crate::meters::{Count, Described, Level, Meters};
use crate::tags::{Invalidation, NotInvalidated, Tag, invalidate_late, may_pass, needs_someone};
use crate::time::{Deadline, FOREVER, Seldom};
use waiting::{Began, FIRST_PAUSE, Kept, Outlook, WaitingTags};

/// What has become of invalidations that failed, for all caches of one client. See
/// [`Cache::undelivered`](super::Cache::undelivered).
///
/// A tag counts once for each of its keys: once, twice while it moves between two rings of shards.
/// That of a [whole cache](super::Cache::clear) counts once for each shard, or up to 16 times in a
/// cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered {
    /// Tags that wait now: values that carry one of them may be stale.
    pub waiting: u64,
    /// Tags that waited and were invalidated in the background. Only rises.
    pub delivered: u64,
    /// Tags that were not kept, because 10,000 waited already. Only rises.
    pub refused: u64,
    /// Tags that waited and are tried no more, because someone must look: one whose key holds
    /// another type, or one that the servers have refused for about five minutes for missing
    /// rights or credentials. Only rises.
    pub given_up: u64,
}

/// The tags of one client that wait to be invalidated.
#[derive(Debug)]
pub(super) struct RetryQueue {
    state: Mutex<State>,
    /// Whether any wait. Each call of a cache reads this, and most find that none do.
    waits: AtomicBool,
    delivered: AtomicU64,
    refused: Count,
    given_up: Count,
    /// Wakes the task when a tag was added. A field of its own, so that the task can wait for it
    /// without the queue.
    added: Arc<Notify>,
    /// How many wait, for the metrics.
    level: Level,
    /// The first tag that is kept starts it, and it ends with the queue, which ends with the
    /// client. After a panic, or when its runtime has ended, the next call of any cache starts
    /// another.
    task: Background,
}

#[derive(Debug, Default)]
struct State {
    tags: WaitingTags,
    warned: Seldom,
    gave_up: Seldom,
}

/// An invalidation under way. If it is dropped before it is settled, its tags are put into the
/// queue.
#[derive(Debug)]
#[must_use = "if it is dropped, the invalidation counts as not delivered"]
pub(super) struct Owed<'c> {
    queue: &'c Arc<RetryQueue>,
    client: &'c Client,
    /// Empty once it is settled.
    copies: Vec<Tag>,
    how: Invalidation,
    began: Began,
}

impl RetryQueue {
    /// An empty queue, whose task is spawned by `spawner`, for caches of this namespace.
    pub(super) fn by(spawner: &Spawner, namespace: &str) -> Self {
        let labels = [("namespace", namespace)];
        let lost = Meters::new(&labels, LOST, &[]);
        Self {
            state: Mutex::default(),
            waits: AtomicBool::default(),
            delivered: AtomicU64::default(),
            refused: Count::new(lost.tally(0)),
            given_up: Count::new(lost.tally(1)),
            added: Arc::default(),
            level: Level::new(&labels, UNDELIVERED),
            task: Background::by(spawner),
        }
    }

    /// Starts the task again if tags wait and its runtime has ended.
    pub(super) fn look(self: &Arc<Self>, client: &Client) {
        if self.waits.load(Ordering::Relaxed) {
            self.be_delivered(client);
        }
    }

    /// Notes that an invalidation begins.
    pub(super) fn owes<'c>(
        self: &'c Arc<Self>,
        client: &'c Client,
        copies: Vec<Tag>,
        how: Invalidation,
    ) -> Owed<'c> {
        self.look(client);
        let began = self.state().tags.begins();
        Owed {
            queue: self,
            client,
            copies,
            how,
            began,
        }
    }

    /// Returns how many tags wait, and what became of others.
    pub(super) fn so_far(&self) -> Undelivered {
        Undelivered {
            waiting: self.state().tags.len() as u64,
            delivered: self.delivered.load(Ordering::Relaxed),
            refused: self.refused.so_far(),
            given_up: self.given_up.so_far(),
        }
    }

    /// Keeps `copies`, which were not invalidated for the reason `why`.
    fn keep(
        self: &Arc<Self>,
        client: &Client,
        copies: impl Iterator<Item = Tag>,
        how: Invalidation,
        why: &dyn Display,
    ) -> Kept {
        let now = Instant::now();
        let mut state = self.state();
        let kept = state.tags.keep(copies, how.on_primary(), now);
        if kept == Kept::default() {
            return kept;
        }
        let (waiting, is_due) = (state.tags.len(), state.warned.one_more(now).is_some());
        self.note(&state);
        drop(state);
        // Also if it is none, so that the counters are there before the first is lost.
        self.refused.more(kept.refused);
        let refused = self.refused.so_far();
        self.be_delivered(client);
        self.added.notify_one();
        if is_due {
            tracing::warn!(target: "hedgerow::cache", waiting, refused, error = %why, "invalidations wait to be delivered");
        }
        kept
    }

    /// Starts the task, unless it runs.
    fn be_delivered(self: &Arc<Self>, client: &Client) {
        // A future may be made, or dropped, where there is no runtime. The next call starts the
        // task.
        if Handle::try_current().is_err() {
            return;
        }
        let (queue, added) = (Arc::downgrade(self), self.added.clone());
        self.task
            .ensure(|| deliver(queue, client.downgrade(), added));
    }

    /// Tries the tag at `key` once.
    async fn try_again(&self, client: &Client, key: &Key) {
        let Some(tried) = self.state().tags.begin(key) else {
            return;
        };
        // While the breaker of the server is open, this costs nothing, and it lets one through now
        // and then.
        let deadline = Deadline::after(LONGEST_TRY).fail_fast();
        let outcome = invalidate_late(client, &tried.copy, tried.how, deadline).await;
        let now = Instant::now();
        let mut state = self.state();
        let outlook = state.tags.tried(&tried, outcome.as_ref().copied(), now);
        self.note(&state);
        let is_over = state.tags.is_empty();
        let warns = outlook == Outlook::GivenUp && state.gave_up.one_more(now).is_some();
        drop(state);
        match outlook {
            Outlook::Delivered => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Outlook::GivenUp => self.given_up.one_more(),
            Outlook::Waits | Outlook::Superseded => return,
        }
        if let (true, Err(error)) = (warns, outcome) {
            let given_up = self.given_up.so_far();
            tracing::warn!(target: "hedgerow::cache", given_up, %error, "an invalidation is given up");
        }
        if is_over {
            let delivered = self.delivered.load(Ordering::Relaxed);
            tracing::info!(target: "hedgerow::cache", delivered, "no invalidation waits any more");
        }
    }

    /// Notes whether any tags wait now.
    fn note(&self, state: &State) {
        let waits = !state.tags.is_empty();
        self.waits.store(waits, Ordering::Relaxed);
        self.level.set(state.tags.len() as u64);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RetryQueue {
    fn drop(&mut self) {
        let waiting = self.state().tags.len();
        if waiting > 0 {
            tracing::warn!(target: "hedgerow::cache", waiting, "invalidations are lost with their client");
        }
    }
}

impl Owed<'_> {
    /// The copies of tags to invalidate.
    pub(super) fn copies(&self) -> &[Tag] {
        &self.copies
    }

    /// Notes how the call has ended: what failed is kept, if it may succeed later. Returns the
    /// error of the call.
    pub(super) fn settled(mut self, outcome: Result<(), NotInvalidated>) -> Result<()> {
        let copies = std::mem::take(&mut self.copies);
        let (queue, how) = (self.queue, self.how);
        let (error, failed) = match outcome {
            Ok(()) => (None, Vec::new()),
            Err(NotInvalidated { error, copies }) => (Some(error), copies),
        };
        let missed: HashSet<&Key> = failed.iter().map(|(copy, _)| &copy.key).collect();
        let mut state = queue.state();
        let keys = copies.iter().map(|copy| &copy.key);
        let reached = keys.filter(|key| !missed.contains(key));
        state.tags.done(reached, how.on_primary(), self.began);
        queue.note(&state);
        drop(state);
        let Some(error) = error else { return Ok(()) };
        let all = failed.len() as u64;
        let failed = failed.into_iter().filter(|(_, error)| may_pass(error));
        let kept = queue.keep(self.client, failed.map(|(copy, _)| copy), how, &error);
        Err(match (kept, how.replicas) {
            (Kept { refused: 1.., .. }, _) => {
                error.advising("too many invalidations wait to go on in the background; call again")
            }
            (Kept { kept: 0, .. }, _) => error,
            (Kept { kept, .. }, _) if kept < all => {
                error.advising("the client goes on in the background with a part of them")
            }
            (_, 0) if needs_someone(&error) => error
                .advising("the client goes on in the background for about five minutes")
                .going_on(),
            (_, 0) => error
                .advising("the client goes on in the background until it is delivered")
                .going_on(),
            _ => error
                .advising("the client goes on in the background, without waiting for replicas")
                .going_on(),
        })
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        let copies = std::mem::take(&mut self.copies);
        let why = "the call was dropped before it was answered";
        self.queue
            .keep(self.client, copies.into_iter(), self.how, &why);
    }
}

/// Delivers what waits. It ends when the client has ended, and is aborted with the queue.
async fn deliver(queue: Weak<RetryQueue>, client: WeakClient, added: Arc<Notify>) {
    // What an earlier task had under way has no one who tries it.
    if let Some(queue) = queue.upgrade() {
        queue.state().tags.all_due(Instant::now());
    }
    // Side by side, so that no tag waits for one whose server is out.
    let mut tries = FuturesUnordered::new();
    let mut turns: HashMap<Option<usize>, Arc<Semaphore>> = HashMap::new();
    loop {
        // Nothing is held while it sleeps, so that the client may end.
        let next = {
            let (Some(queue), Some(client)) = (queue.upgrade(), client.upgrade()) else {
                return;
            };
            let now = Instant::now();
            let mut state = queue.state();
            // Those that are due soon, too, so that it does not wake for each.
            let due = state.tags.take_due(now + FIRST_PAUSE / 2);
            let next = state.tags.next_due();
            drop(state);
            if tries.is_empty() {
                // Servers come and go.
                turns.clear();
            }
            for key in due {
                let turns = turns.entry(client.server_number(&key));
                let turns = turns.or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
                let (queue, client) = (Arc::downgrade(&queue), client.downgrade());
                tries.push(in_turn(queue, client, key, turns.clone()));
            }
            let soon = (!tries.is_empty()).then_some(now + FIRST_PAUSE);
            soon.or(next).unwrap_or(now + FOREVER)
        };
        let tried = !tries.is_empty();
        let all = tries.by_ref().for_each(|()| async {});
        tokio::select! {
            () = all, if tried => {}
            () = added.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

/// Tries the tag at `key` once, when it has its turn at the server.
async fn in_turn(queue: Weak<RetryQueue>, client: WeakClient, key: Key, turns: Arc<Semaphore>) {
    let Ok(_turn) = turns.acquire().await else {
        return;
    };
    if let (Some(queue), Some(client)) = (queue.upgrade(), client.upgrade()) {
        // Boxed, so that those that wait for their turn are small.
        Box::pin(queue.try_again(&client, &key)).await;
    }
}

const UNDELIVERED: Described = Described {
    name: "hedgerow_undelivered_tags",
    what: "Tags whose invalidation has failed and is tried again in the background.",
};

/// What `refused` and `given_up` tell, in this order.
const LOST: &[Described] = &[
    Described {
        name: "hedgerow_undelivered_refused_total",
        what: "Tags whose invalidation has failed and found no room to be tried again.",
    },
    Described {
        name: "hedgerow_undelivered_given_up_total",
        what: "Tags whose invalidation was tried again in the background and is given up.",
    },
];

/// How long one try takes at most. A client that is dropped lives on for so long.
const LONGEST_TRY: Duration = Duration::from_secs(2);

/// How many tags are tried at one server at once.
const AT_ONCE: usize = 64;
