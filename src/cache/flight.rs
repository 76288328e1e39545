//! Flights: one shared execution in this process for one key.
//!
//! Invariant: whose call began before the load of a flight did may have whatever it loads, as its
//! creator may. A call that began later began before the flight was closed,
//! and gets a value only if that was proved by commands that were sent after it was closed. So
//! nobody gets a value that was loaded before an invalidation which had returned when his call
//! began. Opened and joined by `memoize`, closed by the load.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

/// The open flights of one client.
#[derive(Debug, Default)]
pub(super) struct Flights {
    open: Mutex<HashMap<Key, Arc<Flight>>>,
    /// As many as the map has, so that a hit, which usually meets none, takes no lock.
    count: AtomicUsize,
}

/// One execution, and those who wait for it. Its creator is told apart, by a channel of its own.
pub(super) struct Flight {
    key: Key,
    /// When the load began. Set and read under the lock of the open flights.
    load_began: OnceLock<Instant>,
    /// Somebody joined whose call began after that.
    has_late: AtomicBool,
    /// A load that has a place in the bulkhead waits for this one.
    urgent: Notify,
    outcome: watch::Sender<Option<Outcome>>,
}

/// What a flight tells those who joined it.
#[derive(Clone)]
pub(super) enum Outcome {
    /// A value; `proved` fresh for those, too, whose calls began after its load did.
    Value {
        value: Arc<dyn Any + Send + Sync>,
        proved: bool,
    },
    /// The load failed.
    Failed(Error),
    /// Nothing is proved: each must ask again.
    Again,
}

/// How a caller came aboard.
#[derive(Debug)]
pub(super) enum Boarding {
    Joined(Passenger),
    Opened(Open),
}

/// One who waits for a flight that somebody else opened.
pub(super) struct Passenger {
    outcome: watch::Receiver<Option<Outcome>>,
    /// The call began after the load did.
    late: bool,
}

/// The right to settle a flight. Dropped in mid-flight, with its runtime, it closes the flight and
/// tells those who joined to ask again.
#[derive(Debug)]
pub(super) struct Open {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
}

impl Flights {
    /// Joins the open flight for `key`, if there is one, for a call that began at `began`.
    pub(super) fn join(&self, key: &Key, began: Instant) -> Option<Passenger> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.open().get(key).map(|flight| {
            self.urge(flight);
            flight.joined(began)
        })
    }

    /// Joins the open flight for `key`, or opens one.
    pub(super) fn board(self: &Arc<Self>, key: &Key, began: Instant) -> Boarding {
        let mut open = self.open();
        if let Some(flight) = open.get(key) {
            self.urge(flight);
            return Boarding::Joined(flight.joined(began));
        }
        let flight = Flight::new(key);
        self.urge(&flight);
        open.insert(key.clone(), flight.clone());
        self.count.store(open.len(), Ordering::Relaxed);
        Boarding::Opened(Open {
            flights: self.clone(),
            flight,
        })
    }

    /// Opens a flight that nobody can join.
    pub(super) fn alone(self: &Arc<Self>, key: &Key) -> Open {
        let flight = Flight::new(key);
        self.urge(&flight);
        Open {
            flights: self.clone(),
            flight,
        }
    }

    /// Closes the flight for `key`, whoever flies it: who comes now starts anew.
    pub(super) fn detach(&self, key: &Key) {
        let mut open = self.open();
        open.remove(key);
        self.count.store(open.len(), Ordering::Relaxed);
    }

    /// If the present task runs a load that has a place in the bulkhead, which it keeps while it
    /// waits, `flight` must not wait for one: all places could be those of loads that wait for it.
    fn urge(&self, flight: &Flight) {
        if Running::any(|running| {
            running.placed.load(Ordering::Relaxed) && std::ptr::eq(&*running.flights, self)
        }) {
            flight.urgent.notify_one();
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn new(key: &Key) -> Arc<Self> {
        Arc::new(Self {
            key: key.clone(),
            load_began: OnceLock::new(),
            has_late: AtomicBool::new(false),
            urgent: Notify::new(),
            outcome: watch::Sender::new(None),
        })
    }

    /// The caller holds the lock of the open flights.
    fn joined(&self, began: Instant) -> Passenger {
        let late = self.load_began.get().is_some_and(|load| *load <= began);
        if late {
            self.has_late.store(true, Ordering::Relaxed);
        }
        Passenger {
            outcome: self.outcome.subscribe(),
            late,
        }
    }
}

impl Open {
    /// The load begins: calls that begin from now on may have begun after an invalidation that the
    /// load does not know of.
    pub(super) fn begin_load(&self) {
        let _open = self.flights.open();
        self.flight.load_began.get_or_init(Instant::now);
    }

    /// Nobody joins from now on.
    pub(super) fn close(&self) {
        self.leave(&mut self.flights.open());
    }

    /// Closes the flight if nobody who joined it is left.
    pub(super) fn close_if_deserted(&self) -> bool {
        let mut open = self.flights.open();
        let deserted = self.flight.outcome.receiver_count() == 0;
        if deserted {
            self.leave(&mut open);
        }
        deserted
    }

    fn leave(&self, open: &mut HashMap<Key, Arc<Flight>>) {
        if self.is_among(open) {
            open.remove(&self.flight.key);
            self.flights.count.store(open.len(), Ordering::Relaxed);
        }
    }

    /// Another flight may have taken the place of one that was detached.
    fn is_among(&self, open: &HashMap<Key, Arc<Flight>>) -> bool {
        open.get(&self.flight.key)
            .is_some_and(|flight| Arc::ptr_eq(flight, &self.flight))
    }

    /// Returns when nobody who joined is left, for the moment.
    pub(super) async fn deserted(&self) {
        self.flight.outcome.closed().await;
    }

    /// Returns once a load that has a place in the bulkhead waits for this flight.
    pub(super) async fn urged(&self) {
        self.flight.urgent.notified().await;
    }

    /// Whether somebody joined whose call began after the load did. The flight is closed.
    pub(super) fn has_late(&self) -> bool {
        self.flight.has_late.load(Ordering::Relaxed)
    }

    /// Tells those who joined; only the first call counts. The flight is closed.
    pub(super) fn settle(&self, outcome: Outcome) {
        debug_assert!(
            !self.is_among(&self.flights.open()),
            "a flight is closed before it is settled"
        );
        self.flight.outcome.send_if_modified(|settled| {
            let first = settled.is_none();
            if first {
                *settled = Some(outcome);
            }
            first
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
        self.settle(Outcome::Again);
    }
}

impl Passenger {
    /// What the flight came to, for this caller.
    pub(super) async fn outcome(mut self) -> Outcome {
        match self.outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Outcome::Value { proved: false, .. })) if self.late => Outcome::Again,
            // "No such row" may be the answer of a load that began before the row was there.
            Ok(Some(Outcome::Failed(_))) if self.late => Outcome::Again,
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Outcome::Again,
        }
    }
}

tokio::task_local! {
    /// The load that the present task runs, and the loads that led to it.
    static RUNNING: Arc<Running>;
}

/// One load in a chain of loads, each started by the loader of the one before.
#[derive(Debug)]
pub(super) struct Running {
    flights: Arc<Flights>,
    key: Key,
    /// It has a place in the bulkhead, or one of those who wait for it has.
    placed: AtomicBool,
    outer: Option<Arc<Running>>,
}

impl Running {
    /// The load of `key`, started from the present task.
    ///
    /// A cycle over tasks that a loader spawns by itself is not seen; `max_load` ends it.
    pub(super) fn begin(flights: &Arc<Flights>, key: &Key) -> Arc<Self> {
        Arc::new(Self {
            flights: flights.clone(),
            key: key.clone(),
            placed: AtomicBool::new(false),
            outer: RUNNING.try_with(Arc::clone).ok(),
        })
    }

    /// It runs without Redis, and was let in.
    pub(super) fn let_in(&self) {
        self.placed.store(true, Ordering::Relaxed);
    }

    /// Whether one of the loads that led to the present task is such.
    fn any(is_such: impl Fn(&Self) -> bool) -> bool {
        let any = |running: &Arc<Self>| {
            std::iter::successors(Some(running), |running| running.outer.as_ref())
                .any(|running| is_such(running))
        };
        RUNNING.try_with(any).unwrap_or(false)
    }

    /// Runs `load` as this one.
    pub(super) async fn scope<F: Future>(self: Arc<Self>, load: F) -> F::Output {
        RUNNING.scope(self, load).await
    }

    /// Refuses a call for `key` from within its own load: it would wait for itself.
    pub(super) fn refuse_reentry(flights: &Arc<Flights>, key: &Key) -> Result<()> {
        if Self::any(|running| running.key == *key && Arc::ptr_eq(&running.flights, flights)) {
            return Err(Error::new(
                ErrorKind::Reentrant,
                "the loader of a key asks for the same key; it would wait for itself",
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight")
            .field("key", &self.key)
            .field("passengers", &self.outcome.receiver_count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Passenger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passenger")
    }
}
