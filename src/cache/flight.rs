//! Flights: one shared execution in this process for one key.
//!
//! Invariant: whoever joins a flight began before it was closed, and what a flight gives to those
//! who joined was verified by commands that were sent after it was closed. So a joiner never gets
//! a value that was loaded before an invalidation which had returned when the joiner began.
//! Opened and joined by `memoize`, closed by the load.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

/// The open flights of one client.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Arc<Flight>>>);

/// One execution, and those who wait for it. Its creator is told apart, by a channel of its own.
pub(super) struct Flight {
    key: Key,
    outcome: watch::Sender<Option<Outcome>>,
}

/// What a flight tells those who joined it.
#[derive(Clone)]
pub(super) enum Outcome {
    /// A value that is proved fresh for all of them.
    Value(Arc<dyn Any + Send + Sync>),
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
pub(super) struct Passenger(watch::Receiver<Option<Outcome>>);

/// The right to settle a flight. Dropped in mid-flight, with its runtime, it closes the flight and
/// tells those who joined to ask again.
#[derive(Debug)]
pub(super) struct Open {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
}

impl Flights {
    /// Joins the open flight for `key`, or opens one.
    pub(super) fn board(self: &Arc<Self>, key: &Key) -> Boarding {
        let mut open = self.open();
        if let Some(flight) = open.get(key) {
            return Boarding::Joined(Passenger(flight.outcome.subscribe()));
        }
        let flight = Flight::new(key);
        open.insert(key.clone(), flight.clone());
        Boarding::Opened(Open {
            flights: self.clone(),
            flight,
        })
    }

    /// Opens a flight that nobody can join.
    pub(super) fn alone(self: &Arc<Self>, key: &Key) -> Open {
        Open {
            flights: self.clone(),
            flight: Flight::new(key),
        }
    }

    /// Closes the flight for `key`, whoever flies it: who comes now starts anew.
    pub(super) fn detach(&self, key: &Key) {
        self.open().remove(key);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn new(key: &Key) -> Arc<Self> {
        Arc::new(Self {
            key: key.clone(),
            outcome: watch::Sender::new(None),
        })
    }
}

impl Open {
    /// Nobody joins from now on.
    pub(super) fn close(&self) {
        let mut open = self.flights.open();
        let ours = open
            .get(&self.flight.key)
            .is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        if ours {
            open.remove(&self.flight.key);
        }
    }

    /// Closes the flight if nobody who joined it is left.
    pub(super) fn close_if_deserted(&self) -> bool {
        let mut open = self.flights.open();
        if self.has_passengers() {
            return false;
        }
        let ours = open
            .get(&self.flight.key)
            .is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        if ours {
            open.remove(&self.flight.key);
        }
        true
    }

    /// Returns when nobody who joined is left, for the moment.
    pub(super) async fn deserted(&self) {
        self.flight.outcome.closed().await;
    }

    pub(super) fn has_passengers(&self) -> bool {
        self.flight.outcome.receiver_count() > 0
    }

    /// Tells those who joined; only the first call counts. The flight must be closed.
    pub(super) fn settle(&self, outcome: Outcome) {
        debug_assert!(
            !self
                .flights
                .open()
                .get(&self.flight.key)
                .is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)),
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
    pub(super) async fn outcome(mut self) -> Outcome {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Outcome::Again),
            Err(_) => Outcome::Again,
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
            outer: RUNNING.try_with(Arc::clone).ok(),
        })
    }

    /// Runs `load` as this one.
    pub(super) async fn scope<F: Future>(self: Arc<Self>, load: F) -> F::Output {
        RUNNING.scope(self, load).await
    }

    /// Refuses a call for `key` from within its own load: it would wait for itself.
    pub(super) fn refuse_reentry(flights: &Arc<Flights>, key: &Key) -> Result<()> {
        let reentrant = RUNNING.try_with(|running| {
            std::iter::successors(Some(running), |running| running.outer.as_ref())
                .any(|running| running.key == *key && Arc::ptr_eq(&running.flights, flights))
        });
        if reentrant.unwrap_or(false) {
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
