//! `Flights`: the open flights of one client, who opens, joins, closes and settles them, and which
//! loads led to which.
//!
//! Invariant: a flight is settled only once it is closed, and a closed flight is not joined. A call
//! joins before or after the load of its flight begins, and which of the two is known: both happen
//! under the lock of the open flights.
//!
//! `memoize` opens and joins flights. The load closes and settles them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::flight::{Flight, Follower, Outcome};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::time::Patience;

/// The open flights of one client.
#[derive(Debug, Default)]
pub(in crate::cache) struct Flights {
    /// At most two flights for a key: one of the calls that keep trying while the server is out,
    /// and one of those that fail at once.
    open: Mutex<HashMap<Key, Vec<Arc<Flight>>>>,
    /// The number of keys in `open`. A hit usually meets no flight, and so takes no lock.
    count: AtomicUsize,
}

/// How a call came to a flight.
#[derive(Debug)]
pub(in crate::cache) enum Role {
    Joined(Follower),
    Opened(Leader),
}

/// The right to settle a flight. If it is dropped in mid-flight, with its runtime, it closes the
/// flight and its followers ask again.
#[derive(Debug)]
pub(in crate::cache) struct Leader {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
}

impl Flights {
    /// Joins the open flight for `key`, if there is one, for a call of this `patience` that began
    /// at `began`. A flight whose task has been silent for `silence` does not count: its runtime is
    /// not driven, or its loader blocks the thread.
    pub(in crate::cache) fn join(
        &self,
        key: &Key,
        patience: Patience,
        began: Instant,
        silence: Duration,
    ) -> Option<Follower> {
        // A count that is out of date costs a read at most: `board` looks again, under the lock.
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let open = self.open();
        let flight = open
            .get(key)?
            .iter()
            .find(|flight| flight.on_outage == patience.on_outage);
        flight
            .filter(|flight| !flight.is_silent(silence))
            .map(|flight| {
                self.urge(flight);
                flight.joined(began, patience.limit())
            })
    }

    /// Joins the open flight for `key` as [`join`](Self::join) does, or opens one.
    pub(in crate::cache) fn board(
        self: &Arc<Self>,
        key: &Key,
        patience: Patience,
        began: Instant,
        silence: Duration,
    ) -> Role {
        let mut open = self.open();
        let flights = open.entry(key.clone()).or_default();
        if let Some(at) = flights
            .iter()
            .position(|flight| flight.on_outage == patience.on_outage)
        {
            if !flights[at].is_silent(silence) {
                self.urge(&flights[at]);
                return Role::Joined(flights[at].joined(began, patience.limit()));
            }
            // A silent flight is replaced. Its followers find out by themselves that it is silent.
            flights.swap_remove(at);
        }
        let flight = Flight::new(key, patience);
        self.urge(&flight);
        flights.push(flight.clone());
        self.count.store(open.len(), Ordering::Relaxed);
        Role::Opened(Leader {
            flights: self.clone(),
            flight,
        })
    }

    /// Opens a flight that no other call can join.
    pub(in crate::cache) fn alone(self: &Arc<Self>, key: &Key, patience: Patience) -> Leader {
        let flight = Flight::new(key, patience);
        self.urge(&flight);
        Leader {
            flights: self.clone(),
            flight,
        }
    }

    /// Closes all flights for `key`. A call that comes now starts anew.
    pub(in crate::cache) fn detach(&self, key: &Key) {
        let mut open = self.open();
        open.remove(key);
        self.count.store(open.len(), Ordering::Relaxed);
    }

    /// Closes the flight that `follower` joined. Calls that come now do not wait for it.
    pub(in crate::cache) fn give_up(&self, follower: &Follower) {
        self.leave(&mut self.open(), &follower.flight);
    }

    fn leave(&self, open: &mut HashMap<Key, Vec<Arc<Flight>>>, flight: &Arc<Flight>) {
        let Some(flights) = open.get_mut(&flight.key) else {
            return;
        };
        flights.retain(|other| !Arc::ptr_eq(other, flight));
        if flights.is_empty() {
            open.remove(&flight.key);
            self.count.store(open.len(), Ordering::Relaxed);
        }
    }

    /// Tells `flight` if the present task runs a load, and if that load has a permit of the
    /// bulkhead. A load keeps its permits while it waits. If `flight` had to wait for one, too, all
    /// permits could be held by loads that wait for it.
    fn urge(&self, flight: &Flight) {
        // A load of another client may wait for one that has a permit of this client.
        if LoadChain::any(|_| true) {
            flight.nested.notify_one();
        }
        if LoadChain::any(|running| {
            running.placed.load(Ordering::Relaxed) && std::ptr::eq(&*running.flights, self)
        }) {
            // The notification is kept if the flight does not wait for a permit yet.
            flight.urgent.notify_one();
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, Vec<Arc<Flight>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flight that no call can join any more. Only such a flight has an outcome: a call that joined a
/// settled flight would get an outcome from before its own beginning.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Closed<'l>(&'l Leader);

impl Leader {
    pub(in crate::cache) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Whether no call can join any more.
    pub(in crate::cache) fn is_closed(&self) -> bool {
        !self.is_among(&self.flights.open())
    }

    /// Whether a call that joined still waits.
    pub(in crate::cache) fn has_joined(&self) -> bool {
        self.flight.outcome.receiver_count() > 0
    }

    /// Notes that the load begins. A call that begins from now on may begin after an invalidation
    /// that the load does not know of.
    pub(in crate::cache) fn begin_load(&self) {
        // Under the lock, so that each call that joins is known to be early or late.
        let _open = self.flights.open();
        self.flight.load_began.get_or_init(Instant::now);
    }

    /// Closes the flight: no call joins from now on.
    pub(in crate::cache) fn close(&self) -> Closed<'_> {
        self.flights.leave(&mut self.flights.open(), &self.flight);
        Closed(self)
    }

    /// Closes the flight if no follower is left.
    pub(in crate::cache) fn close_if_deserted(&self) -> bool {
        let mut open = self.flights.open();
        // Counted under the lock: no call can join between the count and the close.
        let deserted = self.flight.outcome.receiver_count() == 0;
        if deserted {
            self.flights.leave(&mut open, &self.flight);
        }
        deserted
    }

    /// Whether this flight is among the open ones. After a detach, another flight may be open for
    /// the same key.
    fn is_among(&self, open: &HashMap<Key, Vec<Arc<Flight>>>) -> bool {
        let flights = open.get(&self.flight.key);
        flights.is_some_and(|all| all.iter().any(|flight| Arc::ptr_eq(flight, &self.flight)))
    }

    /// Returns when no follower is left, for the moment: another call may still join.
    pub(in crate::cache) async fn deserted(&self) {
        self.flight.outcome.closed().await;
    }

    /// Returns once any load waits for this flight.
    pub(in crate::cache) async fn joined_within(&self) {
        self.flight.nested.notified().await;
    }

    /// Returns once a load that has a permit of the bulkhead waits for this flight.
    pub(in crate::cache) async fn urged(&self) {
        self.flight.urgent.notified().await;
    }
}

impl Closed<'_> {
    /// Whether a call joined that began after the load.
    pub(in crate::cache) fn has_late(&self) -> bool {
        self.0.flight.has_late.load(Ordering::Relaxed)
    }

    /// Gives the followers an outcome. Only the first call counts.
    pub(in crate::cache) fn settle(&self, outcome: Outcome) {
        self.0.flight.outcome.send_if_modified(|settled| {
            // A later outcome is that of a load that went on after the followers had theirs.
            let first = settled.is_none();
            if first {
                *settled = Some(outcome);
            }
            first
        });
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Without effect if the flight is settled: only the first outcome counts.
        self.close().settle(Outcome::Again);
    }
}

tokio::task_local! {
    /// The load that the present task runs, and the loads that led to it.
    static RUNNING: Arc<LoadChain>;
}

/// One load in a chain of loads, each started by the loader of the one before.
#[derive(Debug)]
pub(in crate::cache) struct LoadChain {
    flights: Arc<Flights>,
    key: Key,
    /// The other keys of a batch that one call of a loader loads.
    others: HashSet<Key>,
    /// It counts as a load with a permit of the bulkhead: it has one, or a load that waits for it
    /// has one, or it could wait for a permit no longer.
    placed: AtomicBool,
    outer: Option<Arc<LoadChain>>,
}

impl LoadChain {
    /// Makes the load of `key`, started from the present task.
    ///
    /// A cycle over tasks that a loader spawns by itself is not detected; `max_load` ends it.
    pub(in crate::cache) fn begin(flights: &Arc<Flights>, key: &Key) -> Arc<Self> {
        Arc::new(Self {
            flights: flights.clone(),
            key: key.clone(),
            others: HashSet::new(),
            placed: AtomicBool::new(false),
            // Taken in the task of the caller: the task of the flight, spawned later, does not
            // inherit it.
            outer: RUNNING.try_with(Arc::clone).ok(),
        })
    }

    /// Makes the load of `key` that no call waits for.
    pub(in crate::cache) fn root(flights: &Arc<Flights>, key: &Key) -> Arc<Self> {
        Arc::new(Self {
            flights: flights.clone(),
            key: key.clone(),
            others: HashSet::new(),
            placed: AtomicBool::new(false),
            outer: None,
        })
    }

    /// Whether the loader of another load has started this one.
    pub(in crate::cache) fn is_within(&self) -> bool {
        self.outer.is_some()
    }

    /// Notes that the load runs without a lease and was let in. Loads within it need no permit.
    pub(in crate::cache) fn let_in(&self) {
        self.placed.store(true, Ordering::Relaxed);
    }

    /// Whether the load of the present task, or one that led to it, satisfies `is_such`.
    fn any(is_such: impl Fn(&Self) -> bool) -> bool {
        let any = |running: &Arc<Self>| {
            std::iter::successors(Some(running), |running| running.outer.as_ref())
                .any(|running| is_such(running))
        };
        RUNNING.try_with(any).unwrap_or(false)
    }

    /// The load of this client that the present task runs.
    pub(in crate::cache) fn running(flights: &Arc<Flights>) -> Option<Arc<Self>> {
        let running = RUNNING.try_with(Arc::clone).ok();
        running.filter(|running| Arc::ptr_eq(&running.flights, flights))
    }

    /// Whether it loads `key`.
    pub(in crate::cache) fn loads(&self, key: &Key) -> bool {
        self.key == *key || self.others.contains(key)
    }

    /// Runs `load`, which loads also `others`, within the load that the present task runs.
    pub(in crate::cache) async fn with_others<F: Future>(
        others: HashSet<Key>,
        load: F,
    ) -> F::Output {
        let Ok(running) = RUNNING.try_with(Arc::clone) else {
            return load.await;
        };
        let batch = Arc::new(Self {
            flights: running.flights.clone(),
            key: running.key.clone(),
            others,
            placed: AtomicBool::new(running.placed.load(Ordering::Relaxed)),
            outer: Some(running),
        });
        RUNNING.scope(batch, load).await
    }

    /// Runs `load` as this one.
    pub(in crate::cache) async fn scope<F: Future>(self: Arc<Self>, load: F) -> F::Output {
        RUNNING.scope(self, load).await
    }

    /// Refuses a call for `key` from within its own load, which would wait for itself.
    pub(in crate::cache) fn refuse_reentry(flights: &Arc<Flights>, key: &Key) -> Result<()> {
        let is_it = |running: &Self| running.loads(key) && Arc::ptr_eq(&running.flights, flights);
        if Self::any(is_it) {
            return Err(Error::new(
                ErrorKind::Reentrant,
                "the loader of a key asks for the same key; it would wait for itself",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
