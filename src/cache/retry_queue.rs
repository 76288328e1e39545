//! `RetryQueue`: invalidations that could not be delivered, and the task that delivers them.
//!
//! Invariant: a tag that is kept here is invalidated later than its call has failed, unless the
//! client ends first. A tag is kept once, and there are at most 10,000. It does not matter whether
//! the call that failed was executed all the same: a later invalidation only invalidates more.
//! `invalidate_tags` and `clear` put here what has failed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::outage::Seldom;
use crate::background::{Background, Spawner};
use crate::client::{Client, WeakClient};
use crate::error::{Error, Fate};
use crate::key::TagId;
use crate::tags::{self, Invalidation, NotInvalidated, Tag};
use crate::time::{Backoff, Deadline};

/// What has become of invalidations that failed, for all caches of one client. See
/// [`Cache::undelivered`](super::Cache::undelivered).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered {
    /// Tags that wait now: values that carry one of them may be stale.
    pub waiting: u64,
    /// Tags that waited and were invalidated in the background. Only rises.
    pub delivered: u64,
    /// Tags that were not kept, because 10,000 waited already. Only rises.
    pub refused: u64,
}

/// The tags of one client that wait to be invalidated.
#[derive(Debug)]
pub(super) struct RetryQueue {
    state: Mutex<State>,
    delivered: AtomicU64,
    refused: AtomicU64,
    /// Wakes the task when a tag was added. A field of its own, so that the task can wait for it
    /// without the queue.
    added: Arc<Notify>,
    /// The first tag that is kept starts it, and it ends with the queue, which ends with the
    /// client. After a panic, or when its runtime has ended, the next invalidation starts another.
    task: Background,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<TagId, Waiting>,
    /// Numbers what is kept and the calls that may make it superfluous, in their order.
    clock: u64,
    warned: Seldom,
}

/// A tag that waits.
#[derive(Debug, Clone)]
struct Waiting {
    tag: Tag,
    how: Invalidation,
    /// When it was last asked for.
    asked: u64,
}

/// What a round has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlook {
    /// Nothing waits.
    Delivered,
    /// Some servers are out. To try again costs nothing while their breakers are open.
    Out,
    /// The servers answer, and refuse all that waits: rights are missing, or the like.
    Refused,
}

/// When a call began, in the order of this queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Began(u64);

impl RetryQueue {
    /// An empty queue, whose task is spawned by `spawner`.
    pub(super) fn by(spawner: &Spawner) -> Self {
        Self {
            state: Mutex::default(),
            delivered: AtomicU64::default(),
            refused: AtomicU64::default(),
            added: Arc::default(),
            task: Background::by(spawner),
        }
    }

    /// Notes that an invalidation begins.
    pub(super) fn begins(self: &Arc<Self>, client: &Client) -> Began {
        let mut state = self.state();
        state.clock += 1;
        let (began, is_empty) = (Began(state.clock), state.waiting.is_empty());
        drop(state);
        if !is_empty {
            // Its runtime may have ended.
            self.be_delivered(client);
        }
        began
    }

    /// Forgets those of `tags` that the call which began at `began` has invalidated: what was asked
    /// for before it is done with it.
    pub(super) fn done(&self, tags: &[Tag], how: Invalidation, began: Began) {
        self.state().done(tags, how.on_primary(), began);
    }

    /// Keeps what a call has not delivered. Returns the error of the call.
    pub(super) fn keep(
        self: &Arc<Self>,
        client: &Client,
        failed: NotInvalidated,
        how: Invalidation,
    ) -> Error {
        let (NotInvalidated { error, tags }, how) = (failed, how.on_primary());
        let tags = tags.into_iter().filter(|(_, error)| may_pass(error));
        let mut state = self.state();
        let (kept, refused) = state.keep(tags.map(|(tag, _)| tag), how);
        if kept == 0 && refused == 0 {
            return error;
        }
        let (waiting, is_due) = (state.waiting.len(), state.warned.is_due(Instant::now()));
        // Released before the event: a subscriber is the user's code.
        drop(state);
        self.refused.fetch_add(refused, Ordering::Relaxed);
        self.be_delivered(client);
        if is_due {
            let refused = self.refused.load(Ordering::Relaxed);
            tracing::warn!(target: "hedgerow::cache", waiting, refused, %error, "invalidations wait to be delivered");
        }
        error.adding(match refused {
            0 => "the client goes on in the background until it is delivered",
            _ => "too many invalidations wait to go on in the background; call again",
        })
    }

    /// Returns how many tags wait, and what became of others.
    pub(super) fn so_far(&self) -> Undelivered {
        Undelivered {
            waiting: self.state().waiting.len() as u64,
            delivered: self.delivered.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Starts the task, unless it runs, and wakes it.
    fn be_delivered(self: &Arc<Self>, client: &Client) {
        let (queue, added) = (Arc::downgrade(self), self.added.clone());
        self.task
            .ensure(|| deliver(queue, client.downgrade(), added));
        self.added.notify_one();
    }

    /// Tries each tag that waits once.
    async fn round(&self, client: &Client) -> Outlook {
        let mut outlook = Outlook::Refused;
        let mut groups: Vec<(Invalidation, Vec<Waiting>)> = Vec::new();
        for waiting in self.state().waiting.values() {
            // There are few ways in which the tags of one client are invalidated.
            match groups.iter_mut().find(|(how, _)| *how == waiting.how) {
                Some((_, group)) => group.push(waiting.clone()),
                None => groups.push((waiting.how, vec![waiting.clone()])),
            }
        }
        // While the breaker of a server is open, its tags cost nothing, and it lets one through now
        // and then.
        let deadline = Deadline::after(client.patience().limit()).fail_fast();
        for (how, group) in groups {
            let tags: Vec<Tag> = group.iter().map(|waiting| waiting.tag.clone()).collect();
            let outcome = tags::invalidate(client, &tags, how, deadline).await;
            let failed = outcome.err().map_or_else(Vec::new, |failed| failed.tags);
            if failed
                .iter()
                .any(|(_, error)| error.fate() != Fate::Refused)
            {
                outlook = Outlook::Out;
            }
            let failed = failed.into_iter().map(|(tag, error)| (tag.id, error));
            self.settle(group, &failed.collect());
        }
        match self.state().waiting.is_empty() {
            true => Outlook::Delivered,
            false => outlook,
        }
    }

    /// Forgets those of a group that were delivered, and those that never will be.
    fn settle(&self, group: Vec<Waiting>, failed: &HashMap<TagId, Error>) {
        let mut state = self.state();
        for tried in group {
            let error = failed.get(&tried.tag.id);
            if error.is_some_and(may_pass) {
                continue;
            }
            if error.is_none() {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
            state.forget(&tried);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Adds `tags`. Returns how many were kept, and how many not.
    fn keep(&mut self, tags: impl Iterator<Item = Tag>, how: Invalidation) -> (u64, u64) {
        self.clock += 1;
        let (mut kept, mut refused) = (0, 0);
        for tag in tags {
            let known = self.waiting.get(&tag.id).map(|known| known.how);
            if known.is_none() && self.waiting.len() >= MOST_WAITING {
                refused += 1;
                continue;
            }
            kept += 1;
            let waiting = Waiting {
                how: known.map_or(how, |known| known.joined(how)),
                asked: self.clock,
                tag,
            };
            self.waiting.insert(waiting.tag.id, waiting);
        }
        (kept, refused)
    }

    fn done(&mut self, tags: &[Tag], how: Invalidation, began: Began) {
        if self.waiting.is_empty() {
            return;
        }
        for tag in tags {
            let covered = |known: &Waiting| known.asked < began.0 && how == how.joined(known.how);
            if self.waiting.get(&tag.id).is_some_and(covered) {
                self.waiting.remove(&tag.id);
            }
        }
    }

    /// Removes a tag, unless it was asked for again since it was tried.
    fn forget(&mut self, tried: &Waiting) {
        let known = self.waiting.get(&tried.tag.id);
        if known.is_some_and(|known| known.asked == tried.asked) {
            self.waiting.remove(&tried.tag.id);
        }
    }
}

/// Delivers what waits. It ends when the client has ended, and is aborted with the queue.
async fn deliver(queue: Weak<RetryQueue>, client: WeakClient, added: Arc<Notify>) {
    let mut reported = 0;
    loop {
        added.notified().await;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, 0.5..1.0);
        let mut longer = 1;
        loop {
            // Nothing is held while it sleeps, so that the client may end.
            sleep(backoff.pause() * longer).await;
            let (Some(queue), Some(client)) = (queue.upgrade(), client.upgrade()) else {
                return;
            };
            longer = match queue.round(&client).await {
                Outlook::Out => 1,
                Outlook::Refused => LONGER_IF_REFUSED,
                Outlook::Delivered => {
                    let delivered = queue.delivered.load(Ordering::Relaxed);
                    // It may have been woken for what the last round has delivered.
                    if delivered > reported {
                        tracing::info!(target: "hedgerow::cache", delivered, "no invalidation waits any more");
                    }
                    reported = delivered;
                    break;
                }
            };
        }
    }
}

/// Whether the same call is still to be delivered, and may succeed later. Where a key of another
/// type is in the way, it never will.
fn may_pass(error: &Error) -> bool {
    error.kind().is_outage() && error.fate() != Fate::Executed
}

/// How many tags wait at most.
const MOST_WAITING: usize = 10_000;

/// The shortest and the longest pause between two rounds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The pause is so many times longer after a round that was refused, which costs the servers a
/// command for each tag.
const LONGER_IF_REFUSED: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tags::{Mode, RecentTags};

    fn tags(names: impl IntoIterator<Item = String>) -> Vec<Tag> {
        let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
        let recent = RecentTags::default();
        let tags = names.into_iter().map(|name| recent.named(&client, &name));
        tags.map(|tag| tag.expect("a good name")).collect()
    }

    fn one() -> Vec<Tag> {
        tags(["t".to_owned()])
    }

    fn how(mode: Mode, hold: u64) -> Invalidation {
        Invalidation {
            mode,
            hold: Duration::from_secs(hold),
            keep: Duration::from_secs(60),
            replicas: 0,
        }
    }

    fn began(state: &mut State) -> Began {
        state.clock += 1;
        Began(state.clock)
    }

    #[test]
    fn a_tag_is_kept_once_and_as_its_strongest_invalidation() {
        let mut state = State::default();
        for how in [how(Mode::Soft, 5), how(Mode::Hard, 0), how(Mode::Soft, 1)] {
            assert_eq!(state.keep(one().into_iter(), how), (1, 0));
        }
        let kept: Vec<_> = state.waiting.values().map(|it| it.how).collect();
        assert_eq!(kept, [how(Mode::Hard, 5)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_waits_stays() {
        let mut state = State::default();
        let many = tags((0..MOST_WAITING + 3).map(|number| number.to_string()));
        let hard = how(Mode::Hard, 0);
        let most = MOST_WAITING as u64;
        assert_eq!(state.keep(many.iter().cloned(), hard), (most, 3));
        assert_eq!(state.keep(many.iter().take(5).cloned(), hard), (5, 0));
        assert_eq!(state.waiting.len(), MOST_WAITING);
    }

    #[test]
    fn a_later_call_that_does_as_much_makes_what_waits_superfluous_and_no_other() {
        let (soft, hard) = (how(Mode::Soft, 0), how(Mode::Hard, 0));
        for (waits, does, is_done) in [
            (hard, hard, true),
            (soft, hard, true),
            (hard, soft, false),
            (how(Mode::Hard, 5), hard, false),
            (hard, how(Mode::Hard, 5), true),
        ] {
            let mut state = State::default();
            let before = began(&mut state);
            state.keep(one().into_iter(), waits);
            state.done(&one(), does, before);
            assert_eq!(state.waiting.len(), 1, "a call that began before");
            let after = began(&mut state);
            state.done(&one(), does, after);
            assert_eq!(state.waiting.is_empty(), is_done, "{waits:?}, {does:?}");
        }
    }

    #[test]
    fn a_tag_that_is_asked_for_again_while_it_is_delivered_waits_on() {
        let mut state = State::default();
        state.keep(one().into_iter(), how(Mode::Hard, 0));
        let tried: Vec<Waiting> = state.waiting.values().cloned().collect();
        state.keep(one().into_iter(), how(Mode::Hard, 0));
        state.forget(&tried[0]);
        assert_eq!(state.waiting.len(), 1);
        let tried: Vec<Waiting> = state.waiting.values().cloned().collect();
        state.forget(&tried[0]);
        assert!(state.waiting.is_empty());
    }
}
