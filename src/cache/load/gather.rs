//! `Gather`: the loads of one batch that are granted together are made by one call of its loader.
//!
//! Invariant: no load waits here for a load that waits elsewhere. Each load of the batch has a
//! seat. It decides as soon as its first request for the lease is answered: it leads, or it is left
//! out. Once all have decided, the loader is called for those that lead. A load that leads later is
//! made by a call of its own. `memoize_many` makes one for each batch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// The keys of one batch that lead.
#[derive(Debug)]
pub(in crate::cache) struct Gather {
    keys: Mutex<Keys>,
    complete: watch::Sender<bool>,
}

#[derive(Debug)]
struct Keys {
    leading: Vec<String>,
    /// The seats that have not decided.
    undecided: usize,
}

/// One load of a batch, until it has decided. Dropping it leaves the load out.
#[derive(Debug)]
pub(in crate::cache) struct Seat {
    gather: Arc<Gather>,
    has_decided: AtomicBool,
}

impl Gather {
    /// Makes a gathering of so many loads, and their seats.
    pub(in crate::cache) fn of(loads: usize) -> (Arc<Self>, Vec<Arc<Seat>>) {
        let gather = Arc::new(Self {
            keys: Mutex::new(Keys {
                leading: Vec::with_capacity(loads),
                undecided: loads,
            }),
            complete: watch::Sender::new(loads == 0),
        });
        let seat = |_| {
            Arc::new(Seat {
                gather: gather.clone(),
                has_decided: AtomicBool::new(false),
            })
        };
        let seats = (0..loads).map(seat).collect();
        (gather, seats)
    }

    /// Waits until all seats have decided, but no longer than `limit`: the tasks of the others may
    /// stand still. Returns the keys that lead. All callers get the same.
    ///
    /// Cancel safety: safe.
    pub(in crate::cache) async fn complete(&self, limit: Duration) -> Vec<String> {
        let mut complete = self.complete.subscribe();
        // The sender is a field of this, so it is not dropped.
        let _ = timeout(limit, complete.wait_for(|complete| *complete)).await;
        let keys = self.keys();
        // Under the lock: no key is added from now on.
        self.complete.send_replace(true);
        keys.leading.clone()
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Leads for `key`. Returns whether the load is part of the batch. If not, the batch is
    /// complete without it.
    pub(in crate::cache) fn leads(&self, key: &str) -> bool {
        let mut keys = self.gather.keys();
        let open = !*self.gather.complete.borrow();
        if open {
            keys.leading.push(key.to_owned());
        }
        drop(keys);
        self.decide();
        open
    }

    /// Notes that the load does not lead now. Does nothing if it has decided.
    pub(in crate::cache) fn decide(&self) {
        if self.has_decided.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut keys = self.gather.keys();
        keys.undecided -= 1;
        if keys.undecided == 0 {
            self.gather.complete.send_replace(true);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.decide();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_complete_once_each_seat_has_decided_in_some_way() {
        let (gather, seats) = Gather::of(3);
        let [a, b, c] = &seats[..] else {
            panic!("three seats");
        };
        assert!(a.leads("a"));
        b.decide();
        // Once more: it counts once.
        b.decide();
        let complete = tokio::spawn({
            let gather = gather.clone();
            async move { gather.complete(LONG).await }
        });
        tokio::task::yield_now().await;
        assert!(!complete.is_finished(), "one seat has not decided");
        assert!(c.leads("c"));
        assert_eq!(complete.await.expect("no panic"), ["a", "c"]);
        drop(seats);
        assert_eq!(gather.complete(LONG).await, ["a", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_that_decides_too_late_is_not_part_of_the_batch() {
        let (gather, seats) = Gather::of(2);
        assert!(seats[0].leads("a"));
        assert_eq!(gather.complete(Duration::from_secs(1)).await, ["a"]);
        assert!(!seats[1].leads("b"));
        assert_eq!(gather.complete(LONG).await, ["a"]);
    }
}
