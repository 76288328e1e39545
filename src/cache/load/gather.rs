//! `Gather`: the loads of one batch that are granted together are made by one call of its loader.
//!
//! Invariant: no load waits here for a load that waits elsewhere. Each load of the batch is a
//! member. It decides as soon as its first request for the lease is answered: it leads, or it is
//! left out. Once all have decided, the loader is called for those that lead. A load that leads
//! later is made by a call of its own. `memoize_many` makes one for each batch.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::limit::{LoadLimit, LoadPermit, SharedPermit};
use crate::sync::lock::Fence;

/// The keys of one batch that lead.
#[derive(Debug)]
pub(in crate::cache) struct Gather {
    keys: Mutex<Keys>,
    complete: watch::Sender<bool>,
    /// Notified when a load that has a permit of the bulkhead waits for one of the batch.
    urgent: Notify,
    /// Notified when any load waits for one of the batch, which therefore needs no permit.
    excused: Arc<Notify>,
}

#[derive(Debug)]
struct Keys {
    leading: Vec<String>,
    /// Whether any of them leads without a lease.
    unleased: bool,
    /// The permit for the call of the loader, where the cache has a limit. Taken by that call.
    permit: Option<SharedPermit>,
    /// The members that have not decided.
    undecided: usize,
    /// When one of them has decided last, or the gathering was made.
    last_decided: Instant,
}

/// One load of a batch. Dropping it leaves the load out, unless it has decided.
#[derive(Debug)]
pub(in crate::cache) struct Member {
    gather: Arc<Gather>,
    key: String,
    decision: OnceLock<Decision>,
}

/// What a load of a batch has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Leads,
    IsLeftOut,
}

impl Gather {
    /// Makes a gathering of the loads of these keys, and its members. They wait for a permit of
    /// `limit` together.
    pub(in crate::cache) fn of(
        keys: Vec<String>,
        limit: Option<&LoadLimit>,
    ) -> (Arc<Self>, Vec<Arc<Member>>) {
        let loads = keys.len();
        let excused = Arc::new(Notify::new());
        let gather = Arc::new(Self {
            keys: Mutex::new(Keys {
                leading: Vec::with_capacity(loads),
                unleased: false,
                permit: limit.map(|limit| limit.shared(excused.clone())),
                undecided: loads,
                last_decided: Instant::now(),
            }),
            complete: watch::Sender::new(loads == 0),
            urgent: Notify::new(),
            excused,
        });
        let member = |key| {
            Arc::new(Member {
                gather: gather.clone(),
                key,
                decision: OnceLock::new(),
            })
        };
        let members = keys.into_iter().map(member).collect();
        (gather, members)
    }

    /// Waits until all members have decided, or none has for `pause`, but no longer than `longest`:
    /// the tasks of the others may stand still. Returns the keys that lead, and whether any leads
    /// without a lease. All callers get the same.
    ///
    /// Cancel safety: safe.
    pub(in crate::cache) async fn complete(
        &self,
        pause: Duration,
        longest: Duration,
    ) -> (Vec<String>, bool) {
        let until = Instant::now() + longest;
        let mut complete = self.complete.subscribe();
        loop {
            let look = until.min(self.keys().last_decided + pause);
            // The sender is a field of this, so it is not dropped.
            let decided = complete.wait_for(|complete| *complete);
            // Only whether: what it returns is a lock of the channel.
            let decided = timeout_at(look, decided).await.is_ok();
            let keys = self.keys();
            // A busy machine takes its time for many loads.
            let goes_on = keys.last_decided + pause > look && look < until;
            if decided || !goes_on {
                // Under the lock: no key is added from now on.
                self.complete.send_replace(true);
                return (keys.leading.clone(), keys.unleased);
            }
        }
    }

    /// Counts one load that has decided.
    fn decided(&self, keys: &mut Keys) {
        keys.undecided -= 1;
        keys.last_decided = Instant::now();
        if keys.undecided == 0 {
            if keys.leading.is_empty() {
                // The loader is not called for all of them together.
                keys.permit = None;
            }
            self.complete.send_replace(true);
        }
    }

    /// Takes the permit of the batch, for the call of the loader. The loads that lead have waited
    /// for it, unless they need none.
    pub(in crate::cache) fn take_permit(&self) -> Option<Arc<LoadPermit>> {
        // Only one that is there: a wait that nobody polls would keep its position in the queue.
        self.keys().permit.take()?.peek().cloned().flatten()
    }

    /// Returns once a load that has a permit of the bulkhead waits for one of the batch.
    pub(in crate::cache) async fn urged(&self) {
        self.urgent.notified().await;
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Leads, under a lease with this `fence`, or under none. Returns whether the load is part of
    /// the batch. If not, it was left out before, or the batch is complete without it. Asked
    /// again, the answer is the same.
    pub(in crate::cache) fn leads(&self, fence: Option<Fence>) -> bool {
        let mut keys = self.gather.keys();
        let decision = *self.decision.get_or_init(|| {
            let is_open = !*self.gather.complete.borrow();
            if is_open {
                keys.leading.push(self.key.clone());
                keys.unleased |= fence.is_none();
            }
            self.gather.decided(&mut keys);
            match is_open {
                true => Decision::Leads,
                false => Decision::IsLeftOut,
            }
        });
        decision == Decision::Leads
    }

    /// The permit of the batch, for a load that has not decided: it may become part of the batch.
    pub(in crate::cache) fn permit(&self) -> Option<SharedPermit> {
        let keys = self.gather.keys();
        let undecided = self.decision.get().is_none();
        undecided.then(|| keys.permit.clone()).flatten()
    }

    /// Notes that another load waits for this one. Then the batch needs no permit: its other loads
    /// must not wait for one while this load waits for them.
    pub(in crate::cache) fn excuse(&self) {
        // The notification is kept if no load waits for the permit yet.
        self.gather.excused.notify_one();
    }

    pub(in crate::cache) fn key(&self) -> &str {
        &self.key
    }

    /// Notes that a load which has a permit of the bulkhead waits for this one.
    pub(in crate::cache) fn urge(&self) {
        self.gather.urgent.notify_one();
    }

    /// Notes that the load does not lead now. Does nothing if it has decided.
    pub(in crate::cache) fn decide(&self) {
        let mut keys = self.gather.keys();
        self.decision.get_or_init(|| {
            self.gather.decided(&mut keys);
            Decision::IsLeftOut
        });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.decide();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_complete_once_each_seat_has_decided_in_some_way() {
        let (gather, members) = Gather::of(["a", "b", "c"].map(str::to_owned).to_vec(), None);
        let [a, b, c] = &members[..] else {
            panic!("three members");
        };
        assert!(a.leads(None));
        b.decide();
        // Once more: it counts once.
        b.decide();
        let complete = tokio::spawn({
            let gather = gather.clone();
            async move { gather.complete(LONG, LONG).await }
        });
        tokio::task::yield_now().await;
        assert!(!complete.is_finished(), "one member has not decided");
        assert!(c.leads(None));
        assert_eq!(complete.await.expect("no panic").0, ["a", "c"]);
        drop(members);
        assert_eq!(gather.complete(LONG, LONG).await.0, ["a", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_that_decides_too_late_is_not_part_of_the_batch() {
        let (gather, members) = Gather::of(["a", "b"].map(str::to_owned).to_vec(), None);
        assert!(members[0].leads(None));
        assert_eq!(gather.complete(Duration::from_secs(1), LONG).await.0, ["a"]);
        assert!(!members[1].leads(None));
        assert_eq!(gather.complete(LONG, LONG).await.0, ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_that_no_load_waits_for_any_more_goes_to_the_next() {
        let limit = LoadLimit::new(1).expect("a limit");
        let taken = limit.permit().await;
        let (gather, members) = Gather::of(vec!["a".to_owned()], Some(&limit));
        let permit = members[0].permit().expect("the batch waits for one");
        assert!(permit.now_or_never().is_none(), "it is taken");
        assert!(members[0].leads(None));
        assert!(gather.take_permit().is_none());
        drop(taken);
        let next = limit.permit().now_or_never();
        assert!(next.is_some(), "the batch does not wait for it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_as_long_as_its_members_decide_one_after_the_other() {
        let keys: Vec<String> = (0..5).map(|at| at.to_string()).collect();
        let (gather, members) = Gather::of(keys.clone(), None);
        let slowly = tokio::spawn(async move {
            for member in members {
                tokio::time::sleep(Duration::from_millis(900)).await;
                assert!(member.leads(None));
            }
        });
        assert_eq!(gather.complete(Duration::from_secs(1), LONG).await.0, keys);
        slowly.await.expect("no panic");
        let (gather, members) = Gather::of(keys, None);
        let waited = gather
            .complete(Duration::from_secs(2), Duration::from_secs(1))
            .await;
        assert!(
            waited.0.is_empty() && !members[0].leads(None),
            "it waits no longer"
        );
    }
}
