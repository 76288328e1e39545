//! `Tracked`: whether the pushes of a server about changed keys reach this client, and who receives
//! them.
//!
//! Invariant: an epoch is not 0 only while a session receives a push for every change of a tracked
//! key. It ends when that session is lost, and no two epochs have one number. Every write that the
//! server executed before `verified` was pushed and handled, if it happened in this epoch.
//!
//! The socket task of the subscriber connection ([`PubSub`](super::pubsub::PubSub)) reports pushes
//! and losses here, [`Tracking`](super::tracking::Tracking) begins and verifies epochs, and the
//! near caches read them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use redis::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Receives the keys that have changed. It is called on the socket task, so it must not block.
pub(crate) trait Changed: Send + Sync {
    /// The key, as the server spells it, was written, has expired or was evicted.
    fn changed(&self, key: &str);
}

/// The pushes about changed keys of one server.
#[derive(Default)]
pub(crate) struct Tracked {
    /// 0 while no session tracks.
    epoch: AtomicU64,
    /// The epoch that was lost last, until another begins.
    lost: AtomicU64,
    /// In nanoseconds since [`START`].
    verified: AtomicU64,
    /// The number of the last change of the connection for commands, when the epoch began.
    changes: AtomicU64,
    /// How many sessions were lost. A session that was lost while it began has not begun.
    // Locked while the epoch moves, so that a loss and a beginning do not cross.
    losses: Mutex<u64>,
    receivers: RwLock<Vec<Receiver>>,
    /// Wakes the task that keeps the tracking: a session was lost, or a receiver has come.
    wake: Notify,
}

/// Somebody who must know which keys have changed, and how old knowledge may be for it.
struct Receiver {
    changed: Weak<dyn Changed>,
    every: Duration,
}

impl Tracked {
    /// The present epoch, if a session tracks.
    pub(crate) fn epoch(&self) -> Option<u64> {
        Some(self.epoch.load(Ordering::Acquire)).filter(|epoch| *epoch != 0)
    }

    /// Whether `epoch` is the present one, was verified within `bound` before `now`, and began at
    /// the last of the `changes` of the connection for commands.
    pub(crate) fn is_verified(
        &self,
        epoch: u64,
        changes: u64,
        now: Instant,
        bound: Duration,
    ) -> bool {
        let verified = self.verified.load(Ordering::Acquire);
        let began = self.changes.load(Ordering::Acquire);
        // The epoch is read last: if it is still this one, so were the others.
        nanos(now).saturating_sub(verified) < bound.as_nanos() as u64
            && began == changes
            && self.epoch.load(Ordering::Acquire) == epoch
    }

    /// Whether `epoch` is the present one, or was lost and no other has begun since, and was
    /// verified within `grace` before `now`. All writes before that were pushed and handled.
    pub(super) fn was_verified(&self, epoch: u64, now: Instant, grace: Duration) -> bool {
        // No epoch begins meanwhile, so all that is read belongs to this one.
        let _losses = self.losses();
        let is_last = self.epoch.load(Ordering::Acquire) == epoch
            || self.lost.load(Ordering::Acquire) == epoch;
        let verified = self.verified.load(Ordering::Acquire);
        is_last && nanos(now).saturating_sub(verified) < grace.as_nanos() as u64
    }

    /// Whether the epoch began at the last of these `changes`, or there is none.
    pub(super) fn began_at(&self, changes: u64) -> bool {
        let began = self.changes.load(Ordering::Acquire);
        self.epoch().is_none() || began == changes
    }

    /// Notes that a session tracks since `sent`, unless one was lost since there were `losses`.
    pub(super) fn begins(&self, losses: u64, changes: u64, sent: Instant) {
        let lost = self.losses();
        if *lost == losses {
            self.verified.store(nanos(sent), Ordering::Release);
            self.changes.store(changes, Ordering::Release);
            self.lost.store(0, Ordering::Release);
            self.epoch.store(next(), Ordering::Release);
        }
    }

    /// Notes that all writes before `sent` were pushed, if that was found out in `epoch`.
    pub(super) fn verify(&self, epoch: u64, sent: Instant) {
        let _lost = self.losses();
        if self.epoch.load(Ordering::Acquire) == epoch {
            self.verified.store(nanos(sent), Ordering::Release);
        }
    }

    /// Ends the epoch: pushes may be missed from now on.
    pub(super) fn loses(&self) {
        let mut losses = self.losses();
        *losses += 1;
        let lost = self.epoch.swap(0, Ordering::AcqRel);
        if lost != 0 {
            self.lost.store(lost, Ordering::Release);
        }
        drop(losses);
        self.wake.notify_one();
    }

    /// How many sessions were lost so far.
    pub(super) fn lost_so_far(&self) -> u64 {
        *self.losses()
    }

    /// Returns when a session was lost, or a receiver has come, now or since this was awaited last.
    ///
    /// Cancel safety: safe.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Handles a push: a list of keys, or nil if all keys of the server are gone.
    pub(super) fn received(&self, data: Vec<Value>) {
        let Some(Value::Array(keys)) = data.into_iter().next() else {
            // Another epoch is the quickest way to forget what only this server has sent.
            let _lost = self.losses();
            if self.epoch().is_some() {
                self.epoch.store(next(), Ordering::Release);
            }
            return;
        };
        self.tell(keys.iter().filter_map(|key| match key {
            Value::BulkString(key) => std::str::from_utf8(key).ok(),
            _ => None,
        }));
    }

    /// Tells all receivers that these keys have changed.
    pub(super) fn tell<'k>(&self, keys: impl Iterator<Item = &'k str>) {
        let receivers = self.receivers.read();
        let receivers = receivers.unwrap_or_else(PoisonError::into_inner);
        // No list of those that are alive: there are few, and pushes are many.
        for key in keys {
            for receiver in receivers.iter() {
                if let Some(changed) = receiver.changed.upgrade() {
                    changed.changed(key);
                }
            }
        }
    }

    /// Passes pushes on to `changed`, which needs a look at the server at least each `every`.
    pub(super) fn pass_to<C: Changed + 'static>(&self, changed: &Weak<C>, every: Duration) {
        let is_known = |receivers: &[Receiver]| {
            let place = |it: &Receiver| it.changed.as_ptr().cast::<()>();
            let this = changed.as_ptr().cast::<()>();
            receivers
                .iter()
                .any(|receiver| std::ptr::eq(place(receiver), this))
        };
        let known = self.receivers.read();
        if is_known(&known.unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let receivers = self.receivers.write();
        let mut receivers = receivers.unwrap_or_else(PoisonError::into_inner);
        receivers.retain(|it| it.changed.strong_count() > 0);
        if !is_known(&receivers) {
            receivers.push(Receiver {
                changed: changed.clone(),
                every,
            });
            // It may need looks more often than the others.
            self.wake.notify_one();
        }
    }

    /// How often the server must be looked at, or `None` if nobody needs its pushes any more.
    pub(super) fn every(&self) -> Option<Duration> {
        let receivers = self.receivers.read();
        let receivers = receivers.unwrap_or_else(PoisonError::into_inner);
        let alive = receivers.iter().filter(|it| it.changed.strong_count() > 0);
        alive.map(|it| it.every).min()
    }

    fn losses(&self) -> MutexGuard<'_, u64> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next epoch. One count for the process, so that no two servers share a number.
fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn nanos(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*START);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment that atomic instants count from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(2);

    /// A moment that can be told from those before it.
    fn some_time() -> Instant {
        *START + BOUND
    }

    fn tracked(now: Instant) -> (Tracked, u64) {
        let tracked = Tracked::default();
        tracked.begins(0, 7, now);
        let epoch = tracked.epoch().expect("it has begun");
        (tracked, epoch)
    }

    #[test]
    fn an_epoch_is_relied_on_for_the_bound_after_the_last_look() {
        let now = some_time();
        let (tracked, epoch) = tracked(now);
        let just_before = BOUND - Duration::from_nanos(1);
        assert!(tracked.is_verified(epoch, 7, now + just_before, BOUND));
        assert!(!tracked.is_verified(epoch, 7, now + BOUND, BOUND));
        tracked.verify(epoch, now + BOUND / 2);
        assert!(tracked.is_verified(epoch, 7, now + BOUND, BOUND));
    }

    #[test]
    fn an_epoch_ends_with_a_loss_or_a_flush_or_another_session_for_commands() {
        let now = some_time();
        let (tracked, epoch) = tracked(now);
        assert!(!tracked.is_verified(epoch, 8, now, BOUND));
        assert!(!tracked.began_at(8));
        tracked.received(vec![Value::Nil]);
        assert!(!tracked.is_verified(epoch, 7, now, BOUND));
        let next = tracked.epoch().expect("the session goes on");
        assert!(tracked.is_verified(next, 7, now, BOUND));
        tracked.loses();
        assert_eq!(tracked.epoch(), None);
        assert!(!tracked.is_verified(next, 7, now, BOUND));
        tracked.verify(next, now);
        assert_eq!(tracked.epoch(), None);
    }

    #[test]
    fn a_lost_epoch_is_remembered_until_another_begins_or_its_grace_is_over() {
        let now = some_time();
        let (tracked, epoch) = tracked(now);
        assert!(tracked.was_verified(epoch, now, BOUND), "it goes on");
        tracked.loses();
        tracked.loses();
        let just_before = BOUND - Duration::from_nanos(1);
        assert!(tracked.was_verified(epoch, now + just_before, BOUND));
        assert!(!tracked.was_verified(epoch, now + BOUND, BOUND));
        assert!(!tracked.was_verified(epoch + 1, now, BOUND));
        tracked.begins(tracked.lost_so_far(), 8, now);
        assert!(!tracked.was_verified(epoch, now, BOUND), "another goes on");
        // What a server has flushed is gone, also if the session is lost then.
        let before = tracked.epoch().expect("it has begun");
        tracked.received(vec![Value::Nil]);
        tracked.loses();
        assert!(!tracked.was_verified(before, now, BOUND));
    }

    #[test]
    fn a_session_that_was_lost_while_it_began_has_not_begun() {
        let tracked = Tracked::default();
        let losses = tracked.lost_so_far();
        tracked.loses();
        tracked.begins(losses, 7, Instant::now());
        assert_eq!(tracked.epoch(), None);
    }
}
